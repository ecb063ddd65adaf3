//! Frames: how bytes on the link are cut into pieces.
//!
//! ```text
//! u32 LE  length of the rest (kind + stream + payload)
//! u8      kind
//! u32 LE  stream id, 0 = control
//! ...     payload, at most MAX_PAYLOAD bytes
//! ```
//!
//! This module owns the framing only. It does not know what a payload means
//! (see [`crate::message`]) nor whether a frame is allowed now (see
//! [`crate::endpoint`]). A relay that passes frames between links needs nothing
//! else: it reads [`Frame::stream`], changes it and encodes the frame again.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::Error;

/// Largest payload of one frame, in bytes.
///
/// One pipe-buffer's worth: larger frames would not move data faster, and a
/// small bound keeps one bulky stream from holding the link for long.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Largest number of data bytes in one [`Kind::Data`] frame: the payload less
/// its channel byte.
pub const MAX_DATA: usize = MAX_PAYLOAD - 1;

/// Bytes before the payload: length, kind, stream.
pub const HEADER_LEN: usize = 9;

/// Largest encoded frame, header included.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;

/// What the length field counts besides the payload: kind and stream.
const COUNTED_HEADER: usize = HEADER_LEN - 4;

/// Names one stream of the link; chosen by the side that opens it, the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The stream of control messages; it is always there.
    pub const CONTROL: StreamId = StreamId(0);

    /// Tells whether this is the control stream.
    pub fn is_control(self) -> bool {
        self == StreamId::CONTROL
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stream {}", self.0)
    }
}

/// One of the flow-controlled byte channels of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Host to guest.
    Stdin = 0,
    /// Guest to host; carries everything when the exec has a terminal.
    Stdout = 1,
    /// Guest to host.
    Stderr = 2,
}

impl Channel {
    /// Every channel, in wire order.
    pub const ALL: [Channel; 3] = [Channel::Stdin, Channel::Stdout, Channel::Stderr];

    /// Reads the channel number used on the wire.
    pub fn from_wire(byte: u8) -> Option<Channel> {
        Channel::ALL.get(usize::from(byte)).copied()
    }

    /// The number used on the wire, also an index below 3.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl std::fmt::Display for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Channel::Stdin => "stdin",
            Channel::Stdout => "stdout",
            Channel::Stderr => "stderr",
        })
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A control message (stream 0 only).
    Control = 0x01,
    /// The first part of a message that is longer than one frame; the next
    /// frame of the same stream that is no `Part` ends it and names its kind.
    Part = 0x02,
    /// Host to guest: opens a stream with a request.
    Open = 0x10,
    /// Guest to host: something happened to what the stream stands for.
    Event = 0x11,
    /// Host to guest: do something to it.
    Command = 0x12,
    /// Channel byte, then data; uses up credit.
    Data = 0x13,
    /// Channel byte: no more data on this channel.
    Eof = 0x14,
    /// Channel byte, then u32 LE: that many more bytes may be sent.
    Window = 0x15,
    /// The sender is done with the stream.
    Close = 0x16,
    /// The sender gave the stream up; one byte says why.
    Reset = 0x17,
}

impl Kind {
    /// Every kind there is.
    pub const ALL: [Kind; 10] = [
        Kind::Control,
        Kind::Part,
        Kind::Open,
        Kind::Event,
        Kind::Command,
        Kind::Data,
        Kind::Eof,
        Kind::Window,
        Kind::Close,
        Kind::Reset,
    ];

    /// Reads the kind number used on the wire.
    pub fn from_wire(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Tells whether frames of this kind may stand on `stream`.
    fn fits(self, stream: StreamId) -> bool {
        match self {
            Kind::Control => stream.is_control(),
            Kind::Part => true,
            _ => !stream.is_control(),
        }
    }
}

/// One frame, taken off a link or to be put on one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Whose it is.
    pub stream: StreamId,
    /// What it carries; not interpreted here.
    pub payload: Bytes,
}

impl Frame {
    /// Makes a frame whose payload fits.
    ///
    /// # Errors
    /// [`Error::PayloadTooLong`] above [`MAX_PAYLOAD`].
    pub fn new(kind: Kind, stream: StreamId, payload: Bytes) -> Result<Frame, Error> {
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::PayloadTooLong {
                len: payload.len(),
                max: MAX_PAYLOAD,
            });
        }
        Ok(Frame {
            kind,
            stream,
            payload,
        })
    }

    /// Length of the encoded frame.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    /// Appends the encoded frame to `out`.
    ///
    /// # Panics
    /// When the payload was made longer than [`MAX_PAYLOAD`] after
    /// [`Frame::new`] had checked it.
    pub fn encode(&self, out: &mut BytesMut) {
        put_frame(out, self.kind, self.stream, &[&self.payload]);
    }
}

/// Appends a frame whose payload is the concatenation of `parts`.
pub(crate) fn put_frame(out: &mut BytesMut, kind: Kind, stream: StreamId, parts: &[&[u8]]) {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    assert!(payload <= MAX_PAYLOAD, "payload of {payload} bytes");
    out.reserve(HEADER_LEN + payload);
    out.put_u32_le((COUNTED_HEADER + payload) as u32);
    out.put_u8(kind as u8);
    out.put_u32_le(stream.0);
    for part in parts {
        out.put_slice(part);
    }
}

/// Appends a message of any length: as many [`Kind::Part`] frames as it takes,
/// then the rest as a frame of `kind`.
pub(crate) fn put_message(out: &mut BytesMut, kind: Kind, stream: StreamId, mut message: &[u8]) {
    while message.len() > MAX_PAYLOAD {
        let (part, rest) = message.split_at(MAX_PAYLOAD);
        put_frame(out, Kind::Part, stream, &[part]);
        message = rest;
    }
    put_frame(out, kind, stream, &[message]);
}

/// Cuts a byte stream into frames.
///
/// Feed it with [`extend`](FrameDecoder::extend), then take frames with
/// [`next_frame`](FrameDecoder::next_frame) until it returns `None`. It holds
/// what was fed and not yet taken, never more: nothing is allocated because of
/// a length that the peer announced.
///
/// ```
/// use msb_guest_agent::wire::{Frame, FrameDecoder, Kind, StreamId};
///
/// let frame = Frame::new(Kind::Data, StreamId(7), vec![1, b'h', b'i'].into())?;
/// let mut bytes = bytes::BytesMut::new();
/// frame.encode(&mut bytes);
///
/// let mut decoder = FrameDecoder::new();
/// decoder.extend(&bytes);
/// assert_eq!(decoder.next_frame()?, Some(frame));
/// assert_eq!(decoder.next_frame()?, None);
/// # Ok::<(), msb_guest_agent::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
    failed: Option<Error>,
}

impl FrameDecoder {
    /// Makes a decoder at the start of a stream.
    pub fn new() -> FrameDecoder {
        FrameDecoder::default()
    }

    /// Adds bytes that were read from the link.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives the buffer to read into directly (bytes are to be appended only).
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Takes the next whole frame, if there is one.
    ///
    /// # Errors
    /// When the bytes are no frame: a length out of bounds, an unknown kind,
    /// a kind on the wrong stream. The stream cannot be followed after that:
    /// every later call returns the same error.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.decode().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = BytesMut::new();
        })
    }

    fn decode(&mut self) -> Result<Option<Frame>, Error> {
        let Some(header) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let counted = u32::from_le_bytes(*header) as usize;
        if !(COUNTED_HEADER..=COUNTED_HEADER + MAX_PAYLOAD).contains(&counted) {
            return Err(Error::FrameLength { len: counted });
        }
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [_, _, _, _, kind, stream @ ..] = *header;
        let stream = StreamId(u32::from_le_bytes(stream));
        let kind = Kind::from_wire(kind).ok_or(Error::FrameKind { kind })?;
        if !kind.fits(stream) {
            return Err(Error::FrameStream { kind, stream });
        }
        if self.buffer.len() < 4 + counted {
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        let payload = self.buffer.split_to(counted - COUNTED_HEADER).freeze();
        Ok(Some(Frame {
            kind,
            stream,
            payload,
        }))
    }

    /// Number of bytes fed and not yet taken.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (
            prop::sample::select(&Kind::ALL[..]),
            1..=u32::MAX,
            prop::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|(kind, stream, payload)| {
                let stream = if kind == Kind::Control { 0 } else { stream };
                Frame::new(kind, StreamId(stream), payload.into()).unwrap()
            });
        prop::collection::vec(frame, 0..20)
    }

    proptest! {
        #[test]
        fn frames_survive_any_segmentation(frames in frames(), cuts in prop::collection::vec(1usize..700, 1..50)) {
            let mut bytes = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut bytes);
            }
            let (mut decoder, mut seen) = (FrameDecoder::new(), Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            while !bytes.is_empty() {
                let n = cuts.next().unwrap().min(bytes.len());
                decoder.extend(&bytes.split_to(n));
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(decoder.buffered(), 0);
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_errors_stick(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = FrameDecoder::new();
            decoder.extend(&bytes);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => prop_assert!(frame.encoded_len() <= MAX_FRAME),
                    Ok(None) => break,
                    Err(error) => {
                        decoder.extend(&[0; 64]);
                        prop_assert_eq!(decoder.next_frame().unwrap_err(), error);
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn header_is_pinned() {
        let mut out = BytesMut::new();
        put_frame(&mut out, Kind::Data, StreamId(0x0403_0201), &[&[2], b"ab"]);
        assert_eq!(
            out[..],
            [8, 0, 0, 0, 0x13, 1, 2, 3, 4, 2, b'a', b'b'],
            "length, kind, stream, payload"
        );
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_body_arrives() {
        for len in [0, 4, (COUNTED_HEADER + MAX_PAYLOAD + 1) as u32, u32::MAX] {
            let mut decoder = FrameDecoder::new();
            decoder.extend(&len.to_le_bytes());
            let error = decoder.next_frame().unwrap_err();
            assert_eq!(error, Error::FrameLength { len: len as usize });
        }
    }

    #[test]
    fn kinds_on_the_wrong_stream_are_refused() {
        for kind in Kind::ALL {
            for stream in [StreamId::CONTROL, StreamId(9)] {
                let mut bytes = BytesMut::new();
                put_frame(&mut bytes, kind, stream, &[]);
                let mut decoder = FrameDecoder::new();
                decoder.extend(&bytes);
                assert_eq!(decoder.next_frame().is_ok(), kind.fits(stream));
            }
        }
    }

    #[test]
    fn long_messages_are_split_and_the_longest_payload_passes() {
        let message = vec![7; 2 * MAX_PAYLOAD + 1];
        let mut bytes = BytesMut::new();
        put_message(&mut bytes, Kind::Open, StreamId(3), &message);
        let mut decoder = FrameDecoder::new();
        decoder.extend(&bytes);
        let mut seen = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            seen.push((frame.kind, frame.payload.len()));
        }
        let part = (Kind::Part, MAX_PAYLOAD);
        assert_eq!(seen, [part, part, (Kind::Open, 1)]);
    }
}
