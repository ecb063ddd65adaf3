//! Which stream of which client is which stream of the agent.
//!
//! Clients number their streams without knowing of each other, so the agent sees other
//! numbers. A stream is over when both of its ends have closed it or given it up; its
//! numbers can be used again from then on.
//!
//! ```text
//! [unknown] --client opens--> [open] --one end closes--> [half] --the other--> [unknown]
//!     |
//!     +--no room--> [refused] --client closes--> [unknown]
//! ```
//!
//! A client may let go of a stream without closing it: it is *parked* then, until a client
//! takes it up again. So that the next one can, the table counts what credit is under way.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use msb_guest_agent::endpoint::INITIAL_WINDOW;
use msb_guest_agent::message::ResetCode;
use msb_guest_agent::wire::{Frame, Kind, StreamId};

use super::parked::{self, Parked};
use crate::session::{About, Listed, SessionId};

/// Streams of all clients together: what the agent has open at the most, so that it never
/// sees more of them than it takes for the work of a sane host.
const MAX_ROUTES: usize = msb_guest_agent::endpoint::MAX_STREAMS;

/// Streams that nobody listens to, of all clients together: each keeps some output. Of those
/// whose program has ended, the oldest go when others come.
const MAX_PARKED: usize = 32;

/// A process that talks to the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClientId(pub(super) u64);

/// What becomes of a client's frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// It goes to the agent, as this one.
    On(Frame),
    /// The client gets this answer.
    Back(Frame),
    /// It means nothing any more.
    Dropped,
}

/// Somebody used a stream in a way that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} {1}")]
pub(super) struct Misuse(StreamId, &'static str);

/// The table; see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// By the agent's number.
    routes: HashMap<StreamId, Route>,
    /// By client and the client's number.
    places: HashMap<(ClientId, StreamId), Place>,
    last: u32,
}

#[derive(Debug)]
struct Route {
    /// `None` when the client is gone.
    client: Option<ClientId>,
    /// As the client numbers it.
    stream: StreamId,
    client_done: bool,
    agent_done: bool,
    flow: Flow,
    /// Keeps what comes while there is no client.
    parked: Option<Box<Parked>>,
}

/// What is under way on a stream.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Of each output: bytes that the client has not given credit for again.
    outputs: [u32; 2],
    /// Bytes of input that the agent has not given credit for again.
    input: u32,
    input_ended: bool,
}

impl Flow {
    fn note(&mut self, frame: &Frame, from_client: bool) {
        let Some((channel, rest)) = frame.payload.split_first() else {
            return;
        };
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let granted = || <[u8; 4]>::try_from(rest).map_or(0, u32::from_le_bytes);
        let output = parked::output(*channel);
        match (frame.kind, output) {
            (Kind::Data, None) if from_client => self.input = self.input.saturating_add(len),
            (Kind::Eof, None) if from_client => self.input_ended = true,
            (Kind::Window, None) if !from_client => {
                self.input = self.input.saturating_sub(granted());
            }
            (Kind::Data, Some(output)) if !from_client => {
                self.outputs[output] = self.outputs[output].saturating_add(len);
            }
            (Kind::Window, Some(output)) if from_client => {
                self.outputs[output] = self.outputs[output].saturating_sub(granted());
            }
            _ => {}
        }
    }
}

/// A stream that is taken up again.
#[derive(Debug)]
pub(super) struct TakenUp {
    pub(super) about: About,
    /// Bytes of input that the agent takes.
    pub(super) credit: u32,
    pub(super) input: bool,
    /// What was kept of its output, with the numbers of channels.
    pub(super) pieces: VecDeque<(u8, BytesMut)>,
    /// What else has come, for the client.
    pub(super) frames: Vec<Frame>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// The agent's number.
    Open(StreamId),
    Refused,
}

fn closes(frame: &Frame) -> bool {
    matches!(frame.kind, Kind::Close | Kind::Reset)
}

fn reset(stream: StreamId, code: ResetCode) -> Frame {
    Frame {
        kind: Kind::Reset,
        stream,
        payload: Bytes::copy_from_slice(&[code as u8]),
    }
}

impl Routes {
    /// Takes a frame of a client.
    ///
    /// # Errors
    /// The stream is not open.
    pub(super) fn take_from_client(
        &mut self,
        client: ClientId,
        mut frame: Frame,
    ) -> Result<Passed, Misuse> {
        let key = (client, frame.stream);
        let place = self.places.get(&key).copied();
        let number = match place {
            None if !matches!(frame.kind, Kind::Open | Kind::Part) => {
                return Err(Misuse(frame.stream, "is not open"));
            }
            None if self.places.len() >= 2 * MAX_ROUTES => {
                return Err(Misuse(frame.stream, "is one of far too many"));
            }
            None if self.routes.len() >= MAX_ROUTES => {
                self.places.insert(key, Place::Refused);
                return Ok(Passed::Back(reset(frame.stream, ResetCode::Refused)));
            }
            None => self.add(client, frame.stream),
            Some(Place::Refused) => {
                if closes(&frame) {
                    self.places.remove(&key);
                }
                return Ok(Passed::Dropped);
            }
            Some(Place::Open(number)) => number,
        };
        let Entry::Occupied(mut entry) = self.routes.entry(number) else {
            return Err(Misuse(frame.stream, "is not open"));
        };
        let route = entry.get_mut();
        if route.client_done {
            return Err(Misuse(frame.stream, "was closed"));
        }
        route.flow.note(&frame, true);
        if closes(&frame) {
            route.client_done = true;
            if route.agent_done {
                entry.remove();
                self.places.remove(&key);
            }
        }
        frame.stream = number;
        Ok(Passed::On(frame))
    }

    /// Takes a frame of the agent; says whose it is, unless the client is gone.
    ///
    /// # Errors
    /// The stream is not open.
    pub(super) fn take_from_agent(
        &mut self,
        mut frame: Frame,
    ) -> Result<Option<(ClientId, Frame)>, Misuse> {
        let Entry::Occupied(mut entry) = self.routes.entry(frame.stream) else {
            return Err(Misuse(frame.stream, "is not open"));
        };
        let route = entry.get_mut();
        if route.agent_done {
            return Err(Misuse(frame.stream, "was closed"));
        }
        let (client, stream) = (route.client, route.stream);
        if let Some(parked) = &mut route.parked {
            route.agent_done = closes(&frame);
            if frame.kind == Kind::Window {
                route.flow.note(&frame, false);
            } else {
                parked.take(frame);
            }
            return Ok(None);
        }
        route.flow.note(&frame, false);
        if closes(&frame) {
            route.agent_done = true;
            if route.client_done {
                entry.remove();
                if let Some(client) = client {
                    self.places.remove(&(client, stream));
                }
            }
        }
        frame.stream = stream;
        Ok(client.map(|client| (client, frame)))
    }

    /// Takes a stream from its client.
    ///
    /// # Errors
    /// Why it can't be.
    pub(super) fn park(
        &mut self,
        client: ClientId,
        stream: StreamId,
        about: About,
    ) -> Result<SessionId, &'static str> {
        const OVER: &str = "the program has ended";
        let Some(Place::Open(number)) = self.places.get(&(client, stream)).copied() else {
            return Err(OVER);
        };
        if self
            .routes
            .values()
            .filter(|one| one.parked.is_some())
            .count()
            >= MAX_PARKED
        {
            return Err("too many programs were let go of");
        }
        let route = self.routes.get_mut(&number).ok_or(OVER)?;
        if route.client_done || route.agent_done {
            return Err(OVER);
        }
        let owed = std::mem::take(&mut route.flow.outputs);
        route.parked = Some(Box::new(Parked::new(about, owed)));
        route.client = None;
        self.places.remove(&(client, stream));
        Ok(SessionId::new(number.0))
    }

    /// Makes room for another parked stream, if need be by giving up the oldest whose program
    /// has ended; returns what is to be said to the agent.
    pub(super) fn make_room(&mut self) -> Option<Frame> {
        let parked = self.parked();
        if parked.len() < MAX_PARKED {
            return None;
        }
        let ended = parked.into_iter().filter(|one| one.ended);
        let oldest = ended.min_by_key(|one| one.since)?;
        let stream = StreamId(oldest.id.number());
        self.routes.remove(&stream);
        Some(Frame {
            kind: Kind::Close,
            stream,
            payload: Bytes::new(),
        })
    }

    /// The streams that are parked, by number.
    pub(super) fn parked(&self) -> Vec<Listed> {
        let parked = self.routes.iter().filter_map(|(number, route)| {
            let parked = route.parked.as_ref()?;
            Some(Listed {
                id: SessionId::new(number.0),
                about: parked.about.clone(),
                since: parked.since,
                ended: route.agent_done,
            })
        });
        let mut parked: Vec<Listed> = parked.collect();
        parked.sort_by_key(|one| one.id);
        parked
    }

    /// Gives a parked stream to a client, as its stream of this number. `None` when there is
    /// no such stream, or the client has one of that number.
    pub(super) fn take_up(
        &mut self,
        client: ClientId,
        id: SessionId,
        stream: StreamId,
    ) -> Option<TakenUp> {
        let number = StreamId(id.number());
        if stream.is_control() || self.places.contains_key(&(client, stream)) {
            return None;
        }
        let route = self.routes.get_mut(&number)?;
        let (about, pieces, mut frames) = route.parked.take()?.unpack();
        route.client = Some(client);
        route.stream = stream;
        self.places.insert((client, stream), Place::Open(number));
        for frame in &mut frames {
            frame.stream = stream;
        }
        Some(TakenUp {
            about,
            credit: INITIAL_WINDOW.saturating_sub(route.flow.input),
            input: !route.flow.input_ended,
            pieces,
            frames,
        })
    }

    /// Whether credit is to be given for what nobody listens to.
    pub(super) fn owes(&self) -> bool {
        let mut parked = self.routes.values().filter_map(|one| one.parked.as_ref());
        parked.any(|parked| parked.owes())
    }

    /// The credit that is to be given now.
    pub(super) fn grants(&mut self) -> Vec<Frame> {
        let parked = self.routes.iter_mut().filter_map(|(number, route)| {
            let parked = route.parked.as_mut().filter(|_| !route.agent_done)?;
            Some((*number, parked.grants()))
        });
        let frame = |stream, payload| Frame {
            kind: Kind::Window,
            stream,
            payload,
        };
        parked
            .flat_map(|(stream, grants)| grants.map(move |payload| frame(stream, payload)))
            .collect()
    }

    /// Forgets a client; returns what ends its streams.
    pub(super) fn client_gone(&mut self, client: ClientId) -> Vec<Frame> {
        self.places.retain(|(owner, _), _| *owner != client);
        let mut resets = Vec::new();
        self.routes.retain(|number, route| {
            if route.client != Some(client) {
                return true;
            }
            route.client = None;
            if !std::mem::replace(&mut route.client_done, true) {
                resets.push(reset(*number, ResetCode::Cancelled));
            }
            !route.agent_done
        });
        resets
    }

    fn add(&mut self, client: ClientId, stream: StreamId) -> StreamId {
        // There are a thousand routes at the most, and four billion numbers.
        loop {
            self.last = self.last.wrapping_add(1);
            let number = StreamId(self.last);
            if !number.is_control() && !self.routes.contains_key(&number) {
                let route = Route {
                    client: Some(client),
                    stream,
                    client_done: false,
                    agent_done: false,
                    flow: Flow::default(),
                    parked: None,
                };
                self.routes.insert(number, route);
                self.places.insert((client, stream), Place::Open(number));
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn frame(kind: Kind, stream: u32) -> Frame {
        Frame::new(kind, StreamId(stream), Bytes::new()).expect("frame")
    }

    fn on(routes: &mut Routes, client: ClientId, kind: Kind, stream: u32) -> StreamId {
        match routes.take_from_client(client, frame(kind, stream)) {
            Ok(Passed::On(passed)) => {
                assert_eq!(passed.kind, kind);
                passed.stream
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clients_with_the_same_numbers_do_not_meet() {
        let mut routes = Routes::default();
        let first = on(&mut routes, A, Kind::Open, 1);
        let second = on(&mut routes, B, Kind::Open, 1);
        assert_ne!(first, second);
        for (client, number) in [(B, second), (A, first)] {
            let passed = routes.take_from_agent(frame(Kind::Data, number.0));
            assert_eq!(passed, Ok(Some((client, frame(Kind::Data, 1)))));
        }
    }

    #[test]
    fn a_number_is_free_once_both_ends_are_done() {
        for agent_first in [true, false] {
            let mut routes = Routes::default();
            let number = on(&mut routes, A, Kind::Open, 1);
            if agent_first {
                routes
                    .take_from_agent(frame(Kind::Close, number.0))
                    .expect("it is open");
                on(&mut routes, A, Kind::Close, 1);
            } else {
                on(&mut routes, A, Kind::Reset, 1);
                let late = routes.take_from_agent(frame(Kind::Data, number.0));
                assert_eq!(late, Ok(Some((A, frame(Kind::Data, 1)))));
                routes
                    .take_from_agent(frame(Kind::Close, number.0))
                    .expect("it is open");
            }
            assert!(routes.routes.is_empty() && routes.places.is_empty());
            assert!(routes.take_from_agent(frame(Kind::Data, number.0)).is_err());
            assert!(routes.take_from_client(A, frame(Kind::Data, 1)).is_err());
            on(&mut routes, A, Kind::Open, 1);
        }
    }

    #[test]
    fn streams_of_a_client_that_is_gone_are_given_up() {
        let mut routes = Routes::default();
        let gone = on(&mut routes, A, Kind::Part, 1);
        let other = on(&mut routes, B, Kind::Open, 1);
        assert_eq!(routes.client_gone(A), [reset(gone, ResetCode::Cancelled)]);
        assert_eq!(routes.client_gone(A), []);
        // What the agent still says to it is for nobody; the other is not concerned.
        assert_eq!(routes.take_from_agent(frame(Kind::Data, gone.0)), Ok(None));
        assert_eq!(routes.take_from_agent(frame(Kind::Close, gone.0)), Ok(None));
        assert_eq!(routes.routes.len(), 1);
        assert!(
            routes
                .take_from_agent(frame(Kind::Data, other.0))
                .is_ok_and(|to| to.is_some())
        );
    }

    #[test]
    fn more_streams_than_the_agent_takes_are_refused() {
        let mut routes = Routes::default();
        for stream in 0..MAX_ROUTES as u32 {
            on(&mut routes, A, Kind::Open, stream + 1);
        }
        let refused = routes.take_from_client(B, frame(Kind::Open, 1));
        let answer = reset(StreamId(1), ResetCode::Refused);
        assert_eq!(refused, Ok(Passed::Back(answer)));
        // The client may not know yet.
        let late = routes.take_from_client(B, frame(Kind::Data, 1));
        assert_eq!(late, Ok(Passed::Dropped));
        assert_eq!(
            routes.take_from_client(B, frame(Kind::Close, 1)),
            Ok(Passed::Dropped)
        );
        routes.client_gone(A);
        let numbers: Vec<StreamId> = routes.routes.keys().copied().collect();
        for number in numbers {
            routes
                .take_from_agent(frame(Kind::Close, number.0))
                .expect("it is open");
        }
        on(&mut routes, B, Kind::Open, 1);
    }

    #[test]
    fn clients_that_make_no_sense_are_told_apart() {
        let mut routes = Routes::default();
        assert!(routes.take_from_client(A, frame(Kind::Data, 1)).is_err());
        on(&mut routes, A, Kind::Open, 1);
        assert!(routes.take_from_client(B, frame(Kind::Data, 1)).is_err());
        on(&mut routes, A, Kind::Close, 1);
        assert!(routes.take_from_client(A, frame(Kind::Data, 1)).is_err());
    }
}
