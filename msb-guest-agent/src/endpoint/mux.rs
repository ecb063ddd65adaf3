//! What both ends share: streams, credit, the closing handshake.
//!
//! Typed messages pass through as bytes; [`super::host`] and [`super::guest`]
//! decode them and know which side may say what.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};

use super::stream::{Incoming, Side, Stream};
use super::{INITIAL_WINDOW, MAX_ASSEMBLING, MAX_STREAMS, MAX_WINDOW};
use crate::error::Error;
use crate::message::{MAX_MESSAGE, ResetCode};
use crate::wire::{Channel, Frame, FrameDecoder, Kind, MAX_DATA, StreamId, put_frame, put_message};

/// Credit is given back when this much has been consumed: rarely enough to
/// cost nothing, early enough that the sender does not run dry.
const GRANT_STEP: u32 = INITIAL_WINDOW / 4;

/// Streams that a peer may keep half closed or refused on top of the open ones
/// before it is taken for broken.
const MAX_ENTRIES: usize = 2 * MAX_STREAMS;

#[derive(Debug)]
pub(super) struct Mux {
    side: Side,
    decoder: FrameDecoder,
    out: BytesMut,
    streams: BTreeMap<StreamId, Stream>,
    control_parts: Vec<u8>,
    /// Bytes in all `parts`.
    assembling: usize,
    /// Streams that are not `local_done`.
    open: usize,
    next_id: u32,
    failed: Option<Error>,
}

impl Mux {
    pub(super) fn new(side: Side) -> Mux {
        Mux {
            side,
            decoder: FrameDecoder::new(),
            out: BytesMut::new(),
            streams: BTreeMap::new(),
            control_parts: Vec::new(),
            assembling: 0,
            open: 0,
            next_id: 1,
            failed: None,
        }
    }

    pub(super) fn decoder(&mut self) -> &mut FrameDecoder {
        &mut self.decoder
    }

    pub(super) fn output(&self) -> &[u8] {
        &self.out
    }

    pub(super) fn consume_output(&mut self, n: usize) {
        self.out.advance(n);
        // A burst must not pin its memory for the life of the link.
        if self.out.is_empty() && self.out.capacity() > 1024 * 1024 {
            self.out = BytesMut::new();
        }
    }

    pub(super) fn open_streams(&self) -> usize {
        self.open
    }

    /// Takes the next meaningful frame. The first error is final.
    pub(super) fn poll(&mut self) -> Result<Option<Incoming>, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.poll_frames();
        if let Err(error) = &result {
            self.fail(error.clone());
        }
        result
    }

    pub(super) fn fail(&mut self, error: Error) -> Error {
        self.streams = BTreeMap::new();
        self.open = 0;
        self.failed = Some(error.clone());
        error
    }

    fn poll_frames(&mut self) -> Result<Option<Incoming>, Error> {
        while let Some(frame) = self.decoder.next_frame()? {
            if let Some(incoming) = self.handle(frame)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    fn handle(&mut self, frame: Frame) -> Result<Option<Incoming>, Error> {
        let Frame {
            kind,
            stream,
            payload,
        } = frame;
        if stream.is_control() {
            return self.handle_control(kind, payload);
        }
        if !self.streams.contains_key(&stream) {
            self.admit(kind, stream)?;
        }
        self.check_order(kind, stream)?;
        match kind {
            Kind::Part => self.handle_part(stream, &payload).map(|()| None),
            Kind::Open | Kind::Event | Kind::Command => self.handle_message(kind, stream, payload),
            Kind::Data => self.handle_data(stream, payload),
            Kind::Eof => self.handle_eof(stream, &payload),
            Kind::Window => self.handle_window(stream, &payload),
            Kind::Close | Kind::Reset => self.handle_close(kind, stream, &payload),
            Kind::Control => unreachable!("the decoder refuses control frames on streams"),
        }
    }

    fn handle_control(&mut self, kind: Kind, payload: Bytes) -> Result<Option<Incoming>, Error> {
        let parts = &mut self.control_parts;
        if parts.len() + payload.len() > MAX_MESSAGE {
            return Err(too_long(StreamId::CONTROL));
        }
        if kind == Kind::Part {
            parts.extend_from_slice(&payload);
            return Ok(None);
        }
        let message = join(std::mem::take(parts), payload);
        Ok(Some(Incoming::Message(StreamId::CONTROL, kind, message)))
    }

    /// Makes the entry for a stream that the peer opens with this frame.
    fn admit(&mut self, kind: Kind, stream: StreamId) -> Result<(), Error> {
        let opens = matches!(kind, Kind::Open | Kind::Part);
        if self.side == Side::Host || !opens {
            return Err(unexpected(kind, stream, "the stream is not open"));
        }
        if self.streams.len() >= MAX_ENTRIES {
            return Err(unexpected(kind, stream, "too many streams"));
        }
        self.streams.insert(stream, Stream::new(true));
        self.open += 1;
        if self.open > MAX_STREAMS {
            self.reset(stream, ResetCode::Refused);
        }
        Ok(())
    }

    /// Refuses kinds that this side does not receive, or not now.
    fn check_order(&self, kind: Kind, stream: StreamId) -> Result<(), Error> {
        let state = &self.streams[&stream];
        let to_guest = self.side == Side::Guest;
        let reason = match kind {
            Kind::Open if !to_guest => "only the host opens streams",
            Kind::Open if !state.opening => "the stream is open",
            Kind::Command if !to_guest => "only the host sends commands",
            Kind::Event if to_guest => "only the guest sends events",
            Kind::Part if to_guest && !state.opening => "commands have no parts",
            Kind::Data | Kind::Eof | Kind::Window | Kind::Command if state.opening => {
                "the request is incomplete"
            }
            Kind::Data | Kind::Eof | Kind::Window if !state.parts.is_empty() => {
                "a message is incomplete"
            }
            Kind::Part | Kind::Event | Kind::Data | Kind::Eof if !to_guest && state.ended => {
                "the last event was sent"
            }
            Kind::Data if !to_guest && !state.started => "nothing was started",
            _ => return Ok(()),
        };
        Err(unexpected(kind, stream, reason))
    }

    fn handle_part(&mut self, stream: StreamId, payload: &[u8]) -> Result<(), Error> {
        if payload.is_empty() {
            return Err(malformed(Kind::Part, stream));
        }
        let state = self.streams.get_mut(&stream).expect("checked");
        if state.parts.len() + payload.len() > MAX_MESSAGE {
            return Err(too_long(stream));
        }
        if state.local_done {
            return Ok(());
        }
        self.assembling += payload.len();
        if self.assembling > MAX_ASSEMBLING {
            return Err(unexpected(
                Kind::Part,
                stream,
                "too many unfinished messages",
            ));
        }
        state.parts.extend_from_slice(payload);
        Ok(())
    }

    fn handle_message(
        &mut self,
        kind: Kind,
        stream: StreamId,
        payload: Bytes,
    ) -> Result<Option<Incoming>, Error> {
        let state = self.streams.get_mut(&stream).expect("checked");
        state.opening = false;
        let parts = std::mem::take(&mut state.parts);
        self.assembling -= parts.len();
        if parts.len() + payload.len() > MAX_MESSAGE {
            return Err(too_long(stream));
        }
        if state.local_done && self.side == Side::Guest {
            return Ok(None);
        }
        // The host's end sees events of streams it has given up, too: only so
        // can it check that their order is right. It does not deliver them.
        let message = join(parts, payload);
        Ok(Some(Incoming::Message(stream, kind, message)))
    }

    fn handle_data(
        &mut self,
        stream: StreamId,
        mut payload: Bytes,
    ) -> Result<Option<Incoming>, Error> {
        if payload.len() < 2 {
            return Err(malformed(Kind::Data, stream));
        }
        let channel = self.received_channel(Kind::Data, stream, payload.get_u8())?;
        let state = self.streams.get_mut(&stream).expect("checked");
        let flow = &mut state.flows[channel.index()];
        if flow.eof {
            return Err(unexpected(Kind::Data, stream, "the channel has ended"));
        }
        let len = payload.len();
        if len > flow.credit as usize {
            return Err(Error::CreditExceeded {
                stream,
                channel,
                len,
                credit: flow.credit,
            });
        }
        flow.credit -= len as u32;
        flow.delivered += len as u32;
        if state.local_done {
            return Ok(None);
        }
        Ok(Some(Incoming::Data(stream, channel, payload)))
    }

    fn handle_eof(&mut self, stream: StreamId, payload: &[u8]) -> Result<Option<Incoming>, Error> {
        let [channel] = payload else {
            return Err(malformed(Kind::Eof, stream));
        };
        let channel = self.received_channel(Kind::Eof, stream, *channel)?;
        let state = self.streams.get_mut(&stream).expect("checked");
        let flow = &mut state.flows[channel.index()];
        if std::mem::replace(&mut flow.eof, true) {
            return Err(unexpected(Kind::Eof, stream, "the channel has ended"));
        }
        if state.local_done {
            return Ok(None);
        }
        Ok(Some(Incoming::Eof(stream, channel)))
    }

    fn handle_window(
        &mut self,
        stream: StreamId,
        payload: &[u8],
    ) -> Result<Option<Incoming>, Error> {
        let [channel, grant @ ..] = payload else {
            return Err(malformed(Kind::Window, stream));
        };
        let grant = <[u8; 4]>::try_from(grant).map_err(|_| malformed(Kind::Window, stream))?;
        let grant = u32::from_le_bytes(grant);
        let channel = Channel::from_wire(*channel)
            .filter(|channel| grant > 0 && self.side.sends(*channel))
            .ok_or_else(|| malformed(Kind::Window, stream))?;
        let state = self.streams.get_mut(&stream).expect("checked");
        let flow = &mut state.flows[channel.index()];
        flow.credit = flow
            .credit
            .checked_add(grant)
            .filter(|credit| *credit <= MAX_WINDOW)
            .ok_or(Error::WindowOverflow { stream, channel })?;
        let woken = std::mem::take(&mut flow.starved);
        if state.local_done || flow.eof || !woken {
            return Ok(None);
        }
        Ok(Some(Incoming::Writable(stream, channel)))
    }

    fn handle_close(
        &mut self,
        kind: Kind,
        stream: StreamId,
        payload: &[u8],
    ) -> Result<Option<Incoming>, Error> {
        let reset = match (kind, payload) {
            (Kind::Close, []) => None,
            (Kind::Reset, [code]) => Some(ResetCode::from_wire(*code)),
            _ => return Err(malformed(kind, stream)),
        };
        let state = self.streams.get(&stream).expect("checked");
        let known = !state.local_done;
        if known && reset.is_none() && self.side == Side::Host && !state.ended {
            return Err(unexpected(kind, stream, "nothing was reported"));
        }
        // A request that was given up in the middle was never seen by anyone.
        let seen = !state.opening;
        self.close(stream);
        if let Some(state) = self.streams.remove(&stream) {
            self.assembling -= state.parts.len();
        }
        Ok((known && seen).then_some(Incoming::Closed(stream, reset)))
    }

    fn received_channel(&self, kind: Kind, stream: StreamId, byte: u8) -> Result<Channel, Error> {
        Channel::from_wire(byte)
            .filter(|channel| !self.side.sends(*channel))
            .ok_or_else(|| malformed(kind, stream))
    }

    /// Host: notes an event, checking that it may come now. `false`: the
    /// stream was given up, nobody wants to know.
    pub(super) fn note_event(&mut self, stream: StreamId, last: bool) -> Result<bool, Error> {
        let Some(state) = self.streams.get_mut(&stream) else {
            return Ok(false);
        };
        if !last && std::mem::replace(&mut state.started, true) {
            return Err(unexpected(Kind::Event, stream, "it was started before"));
        }
        state.ended |= last;
        Ok(!state.local_done)
    }

    /// Host: takes a free id and sends the request.
    pub(super) fn open(&mut self, request: &[u8]) -> Result<StreamId, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if request.len() > MAX_MESSAGE {
            return Err(Error::RequestTooLong {
                len: request.len(),
                max: MAX_MESSAGE,
            });
        }
        let stream = self.insert(Stream::new(false))?;
        put_message(&mut self.out, Kind::Open, stream, request);
        Ok(stream)
    }

    fn insert(&mut self, state: Stream) -> Result<StreamId, Error> {
        // Given-up streams count: the guest has not let go of them yet.
        if self.streams.len() >= MAX_STREAMS {
            return Err(Error::TooManyStreams { max: MAX_STREAMS });
        }
        while self.streams.contains_key(&StreamId(self.next_id)) {
            self.next_id = following(self.next_id);
        }
        let stream = StreamId(self.next_id);
        self.next_id = following(self.next_id);
        self.streams.insert(stream, state);
        self.open += 1;
        Ok(stream)
    }

    /// Host: takes a free id for a stream that was opened on another link.
    pub(super) fn adopt(&mut self) -> Result<StreamId, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut stream = Stream::new(false);
        stream.started = true;
        self.insert(stream)
    }

    /// Host: says what is left of the input of an adopted stream.
    pub(super) fn resume_input(&mut self, stream: StreamId, credit: u32, open: bool) {
        if let Some(state) = self.streams.get_mut(&stream) {
            let flow = &mut state.flows[Channel::Stdin.index()];
            flow.credit = credit.min(INITIAL_WINDOW);
            flow.eof = !open;
        }
    }

    /// Host: forgets a stream that somebody else goes on with.
    pub(super) fn hand_over(&mut self, stream: StreamId) {
        self.let_go(stream);
        if let Some(state) = self.streams.remove(&stream) {
            self.assembling -= state.parts.len();
        }
    }

    pub(super) fn control(&mut self, message: &[u8]) {
        put_message(&mut self.out, Kind::Control, StreamId::CONTROL, message);
    }

    /// Sends an event or a command.
    pub(super) fn message(
        &mut self,
        kind: Kind,
        stream: StreamId,
        message: &[u8],
    ) -> Result<(), Error> {
        self.live(stream)?;
        put_message(&mut self.out, kind, stream, message);
        Ok(())
    }

    /// Sends what credit allows of `data`; `Writable` comes when there is
    /// credit again if that was not all.
    pub(super) fn send(
        &mut self,
        stream: StreamId,
        channel: Channel,
        data: &[u8],
    ) -> Result<usize, Error> {
        debug_assert!(self.side.sends(channel));
        let state = self.live(stream)?;
        let flow = &mut state.flows[channel.index()];
        if flow.eof {
            return Err(Error::NotOpen { stream });
        }
        let accepted = data.len().min(flow.credit as usize);
        flow.credit -= accepted as u32;
        flow.starved = accepted < data.len();
        for chunk in data[..accepted].chunks(MAX_DATA) {
            put_frame(
                &mut self.out,
                Kind::Data,
                stream,
                &[&[channel as u8], chunk],
            );
        }
        Ok(accepted)
    }

    /// Bytes that [`send`](Mux::send) would take now; when there are none,
    /// `Writable` comes once there are.
    pub(super) fn capacity(&mut self, stream: StreamId, channel: Channel) -> usize {
        let Ok(state) = self.live(stream) else {
            return 0;
        };
        let flow = &mut state.flows[channel.index()];
        flow.starved |= flow.credit == 0;
        if flow.eof { 0 } else { flow.credit as usize }
    }

    pub(super) fn finish(&mut self, stream: StreamId, channel: Channel) -> Result<(), Error> {
        debug_assert!(self.side.sends(channel));
        let state = self.live(stream)?;
        if !std::mem::replace(&mut state.flows[channel.index()].eof, true) {
            put_frame(&mut self.out, Kind::Eof, stream, &[&[channel as u8]]);
        }
        Ok(())
    }

    pub(super) fn consumed(&mut self, stream: StreamId, channel: Channel, n: usize) {
        debug_assert!(!self.side.sends(channel));
        let Ok(state) = self.live(stream) else {
            return;
        };
        let flow = &mut state.flows[channel.index()];
        let n = n.min(flow.delivered as usize) as u32;
        flow.delivered -= n;
        flow.owed += n;
        if flow.owed >= GRANT_STEP && !flow.eof {
            let grant = std::mem::take(&mut flow.owed);
            flow.credit += grant;
            let grant = grant.to_le_bytes();
            put_frame(
                &mut self.out,
                Kind::Window,
                stream,
                &[&[channel as u8], &grant],
            );
        }
    }

    pub(super) fn close(&mut self, stream: StreamId) {
        if self.let_go(stream) {
            put_frame(&mut self.out, Kind::Close, stream, &[]);
        }
    }

    pub(super) fn reset(&mut self, stream: StreamId, code: ResetCode) {
        if self.let_go(stream) {
            put_frame(&mut self.out, Kind::Reset, stream, &[&[code as u8]]);
        }
    }

    fn let_go(&mut self, stream: StreamId) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else {
            return false;
        };
        let was_open = !std::mem::replace(&mut state.local_done, true);
        if was_open {
            self.open -= 1;
        }
        was_open
    }

    fn live(&mut self, stream: StreamId) -> Result<&mut Stream, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.streams
            .get_mut(&stream)
            .filter(|state| !state.local_done && !state.opening)
            .ok_or(Error::NotOpen { stream })
    }
}

/// The number after `id`; that of the control stream is left out.
fn following(id: u32) -> u32 {
    id.checked_add(1).unwrap_or(1)
}

fn join(mut parts: Vec<u8>, payload: Bytes) -> Bytes {
    if parts.is_empty() {
        return payload;
    }
    parts.extend_from_slice(&payload);
    parts.into()
}

fn unexpected(kind: Kind, stream: StreamId, reason: &'static str) -> Error {
    Error::Unexpected {
        kind,
        stream,
        reason,
    }
}

fn malformed(kind: Kind, stream: StreamId) -> Error {
    Error::Payload { kind, stream }
}

fn too_long(stream: StreamId) -> Error {
    Error::MessageTooLong {
        stream,
        max: MAX_MESSAGE,
    }
}
