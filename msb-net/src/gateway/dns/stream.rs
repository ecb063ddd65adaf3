//! Queries of the guest over TCP (RFC 7766): many in a connection, answered in
//! the order in which answers come.
//!
//! The far end of such a flow is the gateway itself: its bytes are taken and given
//! here, where other flows wait for the driver.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::super::{FlowId, Gateway};
use super::Via;

/// The longest query: a name, its type, and a few options. What claims to be
/// longer ends the connection.
const MAX_QUERY: usize = 4096;

/// Connections at once: a program has one. The oldest of those that wait for
/// nothing makes room.
const MAX_STREAMS: usize = 64;

/// Queries of one connection that may wait for a server. No more are read while
/// they do, so the guest's window closes.
const MAX_WAITING: usize = 16;

/// Bytes of answers that the guest has not taken; no more queries are read while
/// there are more. One answer may be added to it, and those that wait: with the
/// longest answers there are, all connections hold 70 MB.
const MAX_OUTPUT: usize = 16 * 1024;

/// All connections to the resolver, by age.
#[derive(Default)]
pub(super) struct Streams {
    streams: BTreeMap<FlowId, Stream>,
}

struct Stream {
    guest: SocketAddr,
    far: SocketAddr,
    input: Vec<u8>,
    output: Vec<u8>,
    waiting: usize,
    finished: bool,
}

/// What the bytes of a connection begin with.
enum Next {
    Query(Vec<u8>, Via),
    /// No query is complete, or it is not its turn yet.
    Later,
    TooLong,
}

impl Streams {
    /// Queues an answer; does nothing when the guest has hung up.
    pub(super) fn push(&mut self, flow: FlowId, reply: &[u8]) {
        let length = u16::try_from(reply.len());
        if let (Some(stream), Ok(length)) = (self.streams.get_mut(&flow), length) {
            stream.output.extend(length.to_be_bytes());
            stream.output.extend_from_slice(reply);
        }
    }

    /// Notes that a query waits for a server.
    pub(super) fn waits(&mut self, flow: FlowId) {
        if let Some(stream) = self.streams.get_mut(&flow) {
            stream.waiting += 1;
        }
    }

    /// Notes that one does no longer.
    pub(super) fn waits_no_more(&mut self, flow: FlowId) {
        if let Some(stream) = self.streams.get_mut(&flow) {
            stream.waiting = stream.waiting.saturating_sub(1);
        }
    }

    fn next(&mut self, flow: FlowId) -> Next {
        let Some(stream) = self.streams.get_mut(&flow) else {
            return Next::Later;
        };
        let Some((length, rest)) = stream.input.split_first_chunk() else {
            return Next::Later;
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_QUERY {
            return Next::TooLong;
        }
        if !stream.has_turn() {
            return Next::Later;
        }
        let Some(query) = rest.get(..length) else {
            return Next::Later;
        };
        let query = query.to_vec();
        stream.input.drain(..2 + length);
        let via = Via {
            guest: stream.guest,
            far: stream.far,
            stream: Some(flow),
        };
        Next::Query(query, via)
    }
}

impl Stream {
    fn has_turn(&self) -> bool {
        self.waiting < MAX_WAITING && self.output.len() < MAX_OUTPUT
    }
}

impl Gateway {
    /// Tells whether the guest may connect to a resolver once more.
    pub(in super::super) fn has_room_for_stream(&mut self, now: Duration) -> bool {
        let streams = &mut self.dns.streams.streams;
        if streams.len() < MAX_STREAMS {
            return true;
        }
        let idle = |stream: &Stream| stream.waiting == 0 && stream.output.is_empty();
        let oldest = streams.iter().find(|(_, stream)| idle(stream));
        let Some(id) = oldest.map(|(id, _)| *id) else {
            return false;
        };
        streams.remove(&id);
        self.reset(now, id);
        true
    }

    /// The guest connects to a resolver.
    pub(in super::super) fn open_stream(&mut self, id: FlowId, ends: (SocketAddr, SocketAddr)) {
        let (guest, far) = ends;
        let stream = Stream {
            guest,
            far,
            input: Vec::new(),
            output: Vec::new(),
            waiting: 0,
            finished: false,
        };
        self.dns.streams.streams.insert(id, stream);
    }

    /// Takes the guest's queries and hands it answers, as far as both go.
    pub(in super::super) fn serve_stream(&mut self, now: Duration, id: FlowId) {
        loop {
            self.take_input(id);
            match self.dns.streams.next(id) {
                Next::Query(query, via) => self.handle_query(now, via, &query),
                Next::Later => break,
                Next::TooLong => {
                    self.dns.close_stream(id);
                    return self.reset(now, id);
                }
            }
        }
        self.give_output(id);
        let read_out = self.tcp.is_read_out(id);
        let Some(stream) = self.dns.streams.streams.get_mut(&id) else {
            return;
        };
        if read_out && stream.waiting == 0 && stream.output.is_empty() && !stream.finished {
            stream.finished = true;
            self.finish(id);
        }
    }

    fn take_input(&mut self, id: FlowId) {
        let Some(stream) = self.dns.streams.streams.get_mut(&id) else {
            return;
        };
        if !stream.has_turn() {
            return;
        }
        let mut input = std::mem::take(&mut stream.input);
        while self.read(id, |bytes| {
            let room = (2 + MAX_QUERY).saturating_sub(input.len());
            let taken = bytes.len().min(room);
            input.extend_from_slice(&bytes[..taken]);
            taken
        }) > 0
        {}
        if let Some(stream) = self.dns.streams.streams.get_mut(&id) {
            stream.input = input;
        }
    }

    fn give_output(&mut self, id: FlowId) {
        let Some(stream) = self.dns.streams.streams.get_mut(&id) else {
            return;
        };
        let mut output = std::mem::take(&mut stream.output);
        let mut given = 0;
        while given < output.len() {
            let count = self.write(id, |room| {
                let rest = &output[given..];
                let count = rest.len().min(room.len());
                room[..count].copy_from_slice(&rest[..count]);
                count
            });
            if count == 0 {
                break;
            }
            given += count;
        }
        output.drain(..given);
        if let Some(stream) = self.dns.streams.streams.get_mut(&id) {
            stream.output = output;
        }
    }
}

impl super::Resolver {
    /// A connection is gone; answers to its queries will go nowhere.
    pub(in super::super) fn close_stream(&mut self, id: FlowId) {
        self.streams.streams.remove(&id);
    }
}
