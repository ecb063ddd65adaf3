//! Fuzz targets: each panics when a property does not hold.

use bytes::BytesMut;

use crate::endpoint::{GuestEndpoint, HostEndpoint};
use crate::message::{self, AgentMessage, HostMessage, Request, StreamCommand, StreamEvent};
use crate::wire::{FrameDecoder, Kind, MAX_FRAME};

/// Frames: decoding never panics, encodes back to the same bytes, and does not
/// depend on how the bytes were cut. Messages: decode, encode, decode is equal.
pub fn agent_frames(data: &[u8]) {
    let (mut whole, mut pieces) = (FrameDecoder::new(), FrameDecoder::new());
    let mut encoded = BytesMut::new();
    whole.extend(data);
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = whole.next_frame() {
        assert!(frame.encoded_len() <= MAX_FRAME);
        frame.encode(&mut encoded);
        round_trip_messages(frame.kind, &frame.payload);
        frames.push(frame);
    }
    assert_eq!(encoded[..], data[..encoded.len()]);

    let mut seen = 0;
    for piece in data.chunks(3) {
        pieces.extend(piece);
        while let Ok(Some(frame)) = pieces.next_frame() {
            assert_eq!(frame, frames[seen]);
            seen += 1;
        }
    }
    assert_eq!(seen, frames.len());
}

fn round_trip_messages(kind: Kind, payload: &[u8]) {
    match kind {
        Kind::Control => {
            round_trip::<HostMessage>(payload);
            round_trip::<AgentMessage>(payload);
        }
        Kind::Open => round_trip::<Request>(payload),
        Kind::Event => round_trip::<StreamEvent>(payload),
        Kind::Command => round_trip::<StreamCommand>(payload),
        _ => {}
    }
}

/// Not the bytes but the values are compared: a varint has several encodings.
fn round_trip<T>(payload: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    if let Some(value) = message::decode::<T>(payload) {
        let again = message::decode(&message::encode(&value));
        assert_eq!(again.as_ref(), Some(&value));
    }
}

/// Endpoints: a hostile peer on either side causes events or an error that
/// stays, never a panic and never unbounded output.
pub fn agent_endpoint(data: &[u8]) {
    let mut guest = GuestEndpoint::new();
    let mut host = HostEndpoint::new();
    let request = Request::Exec(crate::message::ExecRequest::default());
    for _ in 0..3 {
        host.open(&request).expect("a fresh endpoint has room");
    }
    let sent = host.output().len();
    for piece in data.chunks(37) {
        guest.handle_input(piece);
        drain(|| guest.poll_event().map(|event| event.is_some()));
        host.handle_input(piece);
        drain(|| host.poll_event().map(|event| event.is_some()));
    }
    // Only closing answers are sent unasked: each frame of input is at least
    // as long as its answer, a header and one byte at most.
    assert!(guest.output().len() <= 2 * data.len());
    assert!(host.output().len() - sent <= 2 * data.len());
}

fn drain(mut poll: impl FnMut() -> Result<bool, crate::Error>) {
    loop {
        match poll() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                assert_eq!(poll(), Err(error), "the first error is final");
                return;
            }
        }
    }
}
