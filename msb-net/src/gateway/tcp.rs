//! TCP flows: one small stack each.
//!
//! Read RFC 9293; the stack is smoltcp's. What is here is when it is made, fed,
//! and thrown away.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::{
    EthernetProtocol, Icmpv4DstUnreachable, Icmpv6DstUnreachable, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::event::{DropReason, Ended, Event};
use super::inspect::{Unjudged, Watched};
use super::packet::Packet;
use super::reminder::Reminder;
use super::stack::{ACK_DELAY, Spare, Stack};
use super::throttle::Places;
use super::{Action, Config, ConnectError, FlowId, FlowMap, Gateway, Limits, policy};
use crate::claim::{self, Line};
use crate::dns;

/// How long an upstream connection may take to open: what Linux waits, so that a
/// driver that forgets a flow does not leave it here for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(130);

/// How long a guest that owes an acknowledgement may be silent. The stack's own
/// timeout is not used: it would also end flows that are merely idle.
const SILENCE: Duration = Duration::from_secs(120);

/// How long a guest may take to answer a connection to a published port: long
/// enough for three repetitions, short enough for the client who waits.
const OPENING: Duration = Duration::from_secs(15);

/// The same for a guest that has just refused the connection at its other address: it is
/// there, and may have IPv6 switched off. Long enough for a stack that looks for a
/// neighbour once a second, and may have done so just before.
const OPENING_AGAIN: Duration = Duration::from_secs(3);

/// The smallest buffer of a flow, in bytes for each direction: what an examined
/// claim may need. With the default
/// limits all flows together so take at most twice [`Limits::tcp_memory`].
///
/// [`Limits::tcp_memory`]: super::Limits::tcp_memory
const MIN_BUFFER: usize = claim::MAX_EXAMINED;

/// A new flow gets at most this part of the memory that is left, in each direction.
const SHARE: usize = 64;

/// The guest's end and the far end of a flow.
type Ends = (SocketAddr, SocketAddr);

/// All TCP flows.
#[derive(Default)]
pub(super) struct TcpTable {
    flows: FlowMap<TcpFlow>,
    ids: HashMap<Ends, FlowId>,
    /// Flows that may have frames to send, each at most once.
    ready: VecDeque<FlowId>,
    /// The buffers of all open flows, in bytes.
    memory: usize,
    /// Of flows that are over.
    spare: Spare,
}

struct TcpFlow {
    ends: Ends,
    stage: Stage,
    opened: Duration,
    told: Told,
}

/// What the driver knows and what it is owed.
#[derive(Default)]
pub(super) struct Told {
    /// The flow is in [`TcpTable::ready`].
    ready: bool,
    /// [`Action::Readable`] was given and the guest's bytes were not all read.
    readable: bool,
    /// [`Action::Shutdown`] was given.
    shutdown: bool,
    /// The guest has ended its half.
    guest_ended: bool,
    /// [`Gateway::finish`] was called.
    finished: bool,
    /// The stack has nothing more to send, ever.
    settled: bool,
    /// [`Gateway::reset`] was called, or the guest fell silent.
    cut_off: bool,
    /// [`Action::Writable`] is owed when there is room.
    wants_room: bool,
    /// The guest's bytes are held back until its claim was judged.
    pub(super) unjudged: Option<Box<Unjudged>>,
    /// The guest's first line is looked at as it passes.
    pub(super) watched: Option<Box<Watched>>,
    /// The far end is the gateway's own resolver: there is no upstream.
    resolver: bool,
    /// Its claim was refused.
    pub(super) denied: bool,
    /// It is the guest that is being connected to, and it has not answered.
    opening: bool,
    /// Where it is in line for what the guest may move.
    places: Places,
    /// What the guest acknowledged while nothing but our end was outstanding.
    last_ack: Option<TcpSeqNumber>,
    /// The guest owes an acknowledgement, and was last heard of then.
    silent_since: Option<Duration>,
    sent: u64,
    pub(super) received: u64,
}

enum Stage {
    /// The upstream is being dialled; the guest's SYN waits.
    Connecting { syn: Box<[u8]> },
    /// The guest's handshake is under way or done.
    Open(Box<Stack>),
}

impl TcpTable {
    pub(super) fn contains(&self, id: FlowId) -> bool {
        self.flows.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// One of the flows, whichever.
    pub(super) fn any(&self) -> Option<FlowId> {
        self.flows.keys().next().copied()
    }

    /// Tells whether there is a flow between these ends.
    pub(super) fn is_used(&self, guest: SocketAddr, far: SocketAddr) -> bool {
        self.ids.contains_key(&(guest, far))
    }

    pub(super) fn mark_ready(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.told.ready
        {
            flow.told.ready = true;
            self.ready.push_back(id);
        }
    }

    /// Tells how a flow ended, once it did and the driver has all its bytes.
    ///
    /// The usual wait for stray segments is left out: the link has no detours,
    /// and thousands of connections that the far end closed would wait with it.
    fn over(&mut self, id: FlowId) -> Option<Ended> {
        let (socket, told) = self.open(id)?;
        let drained = socket.recv_queue() == 0;
        match socket.state() {
            State::Closed if told.denied => Some(Ended::Denied),
            State::Closed if told.opening => Some(Ended::NotConnected),
            State::Closed if told.cut_off || !told.guest_ended || !told.finished => {
                Some(Ended::Reset)
            }
            State::Closed | State::TimeWait => drained.then_some(Ended::Finished),
            _ => None,
        }
    }

    /// Tells whether the guest will send no more, and all it sent was read.
    pub(super) fn is_read_out(&mut self, id: FlowId) -> bool {
        let open = self.open(id);
        open.is_some_and(|(socket, told)| told.guest_ended && socket.recv_queue() == 0)
    }

    /// The open socket of a flow, beside what was told of it.
    pub(super) fn open(&mut self, id: FlowId) -> Option<(&mut Socket<'static>, &mut Told)> {
        let flow = self.flows.get_mut(&id)?;
        match &mut flow.stage {
            Stage::Open(stack) => Some((stack.socket(), &mut flow.told)),
            Stage::Connecting { .. } => None,
        }
    }
}

/// # Upstream: TCP
///
/// Calls for a flow that is gone do nothing: an action and a call may cross.
impl Gateway {
    /// The upstream connection of a flow is open.
    pub fn connected(&mut self, now: Duration, id: FlowId) {
        self.clock = now;
        let Some(flow) = self.tcp.flows.get_mut(&id) else {
            return self.server_connected(id);
        };
        let Stage::Connecting { syn } = &flow.stage else {
            return;
        };
        let seed = seed(&self.config, id);
        let limits = &self.config.limits;
        let buffer = buffer(limits, &mut self.tcp.memory, flow.told.resolver);
        let mut stack = Stack::new(
            now,
            flow.ends.1,
            buffer,
            seed,
            (&mut self.outbox, &mut self.tcp.spare),
        );
        stack.receive(now, syn, &mut self.outbox);
        flow.told.wants_room = true;
        flow.stage = Stage::Open(Box::new(stack));
        self.timers.set(id, None);
        self.tcp.mark_ready(id);
    }

    /// The upstream connection of a flow could not be opened: the guest hears so
    /// in the way in which it would have heard it from the network.
    pub fn connect_failed(&mut self, now: Duration, id: FlowId, error: ConnectError) {
        self.clock = now;
        let Some(flow) = self.tcp.flows.get(&id) else {
            return self.server_failed(now, id);
        };
        let Stage::Connecting { syn } = &flow.stage else {
            return;
        };
        let kind = match flow.ends.0 {
            SocketAddr::V4(_) => EthernetProtocol::Ipv4,
            SocketAddr::V6(_) => EthernetProtocol::Ipv6,
        };
        // It was parsed before it was kept.
        if let Ok(packet) = Packet::parse(kind, syn)
            && let Ok(segment) = TcpPacket::new_checked(packet.payload)
        {
            use {Icmpv4DstUnreachable as V4, Icmpv6DstUnreachable as V6};
            let out = &mut self.outbox;
            match error {
                ConnectError::Refused | ConnectError::Exhausted => out.reset(&packet, &segment),
                ConnectError::NetworkUnreachable => {
                    out.unreachable(&packet, V4::NetUnreachable, V6::NoRoute);
                }
                ConnectError::HostUnreachable => {
                    out.unreachable(&packet, V4::HostUnreachable, V6::AddrUnreachable);
                }
                ConnectError::TimedOut => {}
            }
        }
        let ended = match error {
            ConnectError::Exhausted => Ended::HostLimit,
            _ => Ended::NotConnected,
        };
        self.remove_tcp(now, id, ended);
    }

    /// Hands the guest's bytes to `take`, which says how many it took. Returns
    /// that number; call again until it is 0.
    pub fn read(&mut self, id: FlowId, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let Some((socket, told)) = self.tcp.open(id) else {
            return self.write_server(id, take);
        };
        if told.unjudged.is_some() || told.denied {
            return 0;
        }
        let (now, lane) = (self.clock, &mut self.throttle.up);
        let place = &mut told.places.up;
        let allowed = lane.left(now, place);
        if allowed == 0 && socket.can_recv() {
            told.readable = false;
            lane.hold(now, id, place);
            return 0;
        }
        let line = told.watched.as_ref().map(|watched| watched.line);
        let mut cut = false;
        let taken = socket.recv(|bytes| {
            let bytes = &bytes[..bytes.len().min(allowed)];
            cut = line.is_some_and(|line| line.read(bytes) == Line::Request);
            let taken = if bytes.is_empty() || cut {
                0
            } else {
                take(bytes)
            };
            let taken = taken.min(bytes.len());
            if let Some(line) = line {
                let line = line.read(&bytes[..taken]);
                told.watched = told.watched.take().filter(|_| line != Line::Other);
                told.watched.iter_mut().for_each(|own| own.line = line);
            }
            (taken, taken)
        });
        if cut {
            self.cut_request(id);
            return 0;
        }
        let taken = taken.unwrap_or(0);
        lane.spend(now, place, taken);
        told.sent += taken as u64;
        told.readable = socket.recv_queue() > 0;
        if taken > 0 {
            // The window opened; or the last byte before the end was read.
            self.tcp.mark_ready(id);
        }
        taken
    }

    /// Lets `fill` write bytes for the guest; it says how many it wrote. Returns
    /// that number; call again until it is 0, which is either `fill`'s answer or
    /// means that there is no room.
    pub fn write(&mut self, id: FlowId, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let Some((socket, told)) = self.tcp.open(id) else {
            return self.read_server(id, fill);
        };
        let (now, lane) = (self.clock, &mut self.throttle.down);
        let place = &mut told.places.down;
        let allowed = lane.left(now, place);
        if allowed == 0 && socket.can_send() {
            told.wants_room = true;
            lane.hold(now, id, place);
            return 0;
        }
        let written = if socket.can_send() {
            socket.send(|room| {
                let length = room.len().min(allowed);
                let written = fill(&mut room[..length]).min(length);
                (written, written)
            })
        } else {
            Ok(0)
        };
        let written = written.unwrap_or(0);
        lane.spend(now, place, written);
        told.received += written as u64;
        told.wants_room = !socket.can_send();
        if written > 0 {
            self.tcp.mark_ready(id);
        }
        written
    }

    /// The upstream will send no more.
    pub fn finish(&mut self, id: FlowId) {
        if let Some((socket, told)) = self.tcp.open(id) {
            told.finished = true;
            socket.close();
            self.tcp.mark_ready(id);
        } else if !self.tcp.contains(id) {
            self.server_failed(self.clock, id);
        }
    }

    /// The upstream cut the connection off.
    pub fn reset(&mut self, now: Duration, id: FlowId) {
        if let Some((socket, told)) = self.tcp.open(id) {
            socket.abort();
            told.cut_off = true;
            self.tcp.mark_ready(id);
        } else {
            self.connect_failed(now, id, ConnectError::Refused);
        }
    }
}

impl Gateway {
    pub(super) fn handle_tcp(&mut self, now: Duration, packet: &Packet<'_>) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else {
            return self.events.dropped(DropReason::Malformed);
        };
        let (from, to) = (packet.source, packet.destination);
        let checks = packet.checks();
        if TcpRepr::parse(&segment, &from.into(), &to.into(), &checks).is_err() {
            return self.events.dropped(DropReason::Malformed);
        }
        let ends = (
            SocketAddr::new(from, segment.src_port()),
            SocketAddr::new(to, segment.dst_port()),
        );
        let opens = segment.syn() && !segment.ack() && !segment.rst();
        let known = self.tcp.ids.get(&ends).copied();
        let known = known.filter(|id| !(opens && self.lingers(now, *id)));
        match known {
            Some(id) => self.feed(now, id, packet.bytes, &segment),
            None if opens => self.open_tcp(now, ends, packet, &segment),
            None => self.outbox.reset(packet, &segment),
        }
    }

    /// Makes way for a new flow if the old one between the same ends is over and
    /// only waits for stray segments (RFC 9293, 3.6.1).
    fn lingers(&mut self, now: Duration, id: FlowId) -> bool {
        let ended = self.tcp.over(id);
        if let Some(ended) = ended {
            self.remove_tcp(now, id, ended);
        }
        ended.is_some()
    }

    fn open_tcp(
        &mut self,
        now: Duration,
        ends: Ends,
        packet: &Packet<'_>,
        segment: &TcpPacket<&[u8]>,
    ) {
        let id = self.new_flow();
        let resolver = ends.1.port() == dns::PORT;
        let mut unjudged = None;
        if resolver {
            let full = self.tcp.len() >= self.config.limits.tcp_flows;
            if full || !self.has_room_for_stream(now) {
                self.events.dropped(DropReason::TooManyFlows);
                return self.outbox.reset(packet, segment);
            }
            if !self.throttle.may_open(now) {
                self.events.dropped(DropReason::RateLimit);
                return self.outbox.reset(packet, segment);
            }
        } else {
            let facts = self.facts(policy::Transport::Tcp(ends.1.port()), ends.1.ip());
            let Some(verdict) = self.judge(now, id, facts) else {
                return self.outbox.reset(packet, segment);
            };
            let inspect = verdict.inspect;
            unjudged = (inspect || self.may_intercept()).then(|| {
                let bound = self.dns.names(now, facts.address).to_vec();
                Box::new(Unjudged {
                    facts,
                    bound,
                    inspect,
                })
            });
        }
        let syn = packet.bytes.into();
        let flow = TcpFlow {
            ends,
            stage: Stage::Connecting { syn },
            opened: now,
            told: Told {
                unjudged,
                resolver,
                ..Told::default()
            },
        };
        self.tcp.flows.insert(id, flow);
        self.tcp.ids.insert(ends, id);
        if resolver {
            self.open_stream(id, ends);
            return self.connected(now, id);
        }
        self.timers.set(id, Some(now + CONNECT_TIMEOUT));
        let to = self.dial(ends.1.ip(), ends.1.port());
        self.actions.push_back(Action::Connect { flow: id, to });
    }

    /// Connects to the guest.
    pub(super) fn open_inbound(&mut self, now: Duration, id: FlowId, ends: Ends) {
        let seed = seed(&self.config, id);
        let buffer = buffer(&self.config.limits, &mut self.tcp.memory, false);
        let stack = Stack::connecting(
            now,
            ends,
            buffer,
            seed,
            (&mut self.outbox, &mut self.tcp.spare),
        );
        let flow = TcpFlow {
            ends,
            stage: Stage::Open(Box::new(stack)),
            opened: now,
            told: Told {
                wants_room: true,
                opening: true,
                ..Told::default()
            },
        };
        self.tcp.flows.insert(id, flow);
        self.tcp.ids.insert(ends, id);
        self.tcp.mark_ready(id);
    }

    /// Connects to the guest's IPv6 address, after it refused at the other one: the service
    /// may be there only. False if that was tried.
    fn open_again(&mut self, now: Duration, id: FlowId) -> bool {
        let Some(flow) = self.tcp.flows.get(&id) else {
            return false;
        };
        let (guest, opened) = (flow.ends.0, flow.opened);
        if guest.is_ipv6() || flow.told.cut_off {
            return false;
        }
        let guest = SocketAddr::new(self.config.guest_v6.into(), guest.port());
        let own = self.config.gateway_v6.into();
        let Some(far) = self.own_end(own, |gateway, far| gateway.tcp.is_used(guest, far)) else {
            return false;
        };
        if let Some(flow) = self.tcp.flows.remove(&id) {
            self.tcp.ids.remove(&flow.ends);
            if let Stage::Open(stack) = flow.stage {
                self.tcp.memory -= 2 * stack.buffer;
            }
        }
        self.open_inbound(now, id, (guest, far));
        if let Some(flow) = self.tcp.flows.get_mut(&id) {
            flow.opened = opened;
        }
        true
    }

    /// Gives a packet to the flow it belongs to.
    fn feed(&mut self, now: Duration, id: FlowId, packet: &[u8], segment: &TcpPacket<&[u8]>) {
        let Some(flow) = self.tcp.flows.get_mut(&id) else {
            return;
        };
        match &mut flow.stage {
            // A guest that gives up before the answer; it repeats its SYN otherwise.
            Stage::Connecting { .. } if segment.rst() => self.remove_tcp(now, id, Ended::Reset),
            Stage::Connecting { .. } => {}
            Stage::Open(stack) => {
                if is_duplicate(stack, segment, &mut flow.told.last_ack) {
                    return;
                }
                stack.memory.hear(segment);
                stack.receive(now, packet, &mut self.outbox);
                flow.told.silent_since = None;
                flow.told.settled = false;
                self.tcp.mark_ready(id);
                self.notice(now, id);
            }
        }
    }

    /// A flow's deadline has come.
    pub(super) fn tcp_due(&mut self, now: Duration, id: FlowId) {
        match self.tcp.flows.get(&id).map(|flow| &flow.stage) {
            Some(Stage::Connecting { .. }) => self.remove_tcp(now, id, Ended::NotConnected),
            Some(Stage::Open(_)) => self.tcp.mark_ready(id),
            None => {}
        }
    }

    /// Lets the next flow make a frame; false when no flow is left that might.
    pub(super) fn serve_tcp(&mut self, now: Duration) -> bool {
        let Some(id) = self.tcp.ready.pop_front() else {
            return false;
        };
        let Some(flow) = self.tcp.flows.get_mut(&id) else {
            return true;
        };
        flow.told.ready = false;
        let Stage::Open(stack) = &mut flow.stage else {
            return true;
        };
        if stack.owed() {
            let since = *flow.told.silent_since.get_or_insert(now);
            let patience = match flow.told.opening {
                true if flow.ends.0.is_ipv6() => OPENING_AGAIN,
                true => OPENING,
                false => SILENCE,
            };
            if now.saturating_sub(since) >= patience {
                stack.socket().abort();
                flow.told.cut_off = true;
            }
        } else {
            flow.told.silent_since = None;
        }
        // In this state the stack has at most one acknowledgement to send. It is
        // not asked again: it would throw away what the driver has not read.
        let waiting = stack.socket().state() == State::TimeWait;
        // Nor does it wait for bytes to go with.
        let at = if waiting { now + ACK_DELAY } else { now };
        if !flow.told.settled && stack.transmit(at, &mut self.outbox) {
            self.tcp.mark_ready(id);
        } else {
            flow.told.settled = waiting;
        }
        self.notice(now, id);
        let quiet = self.tcp.flows.get(&id).is_some_and(|flow| !flow.told.ready);
        if !quiet {
            return true;
        }
        if let Some(ended) = self.tcp.over(id) {
            if ended != Ended::NotConnected || !self.open_again(now, id) {
                self.remove_tcp(now, id, ended);
            }
        } else if let Some(flow) = self.tcp.flows.get_mut(&id)
            && let Stage::Open(stack) = &mut flow.stage
        {
            let settled = flow.told.settled;
            let reminder = match stack.remind(now, &mut self.outbox) {
                Reminder::Given => {
                    self.tcp.mark_ready(id);
                    return true;
                }
                Reminder::At(at) => Some(at),
                Reminder::Unneeded => None,
            };
            let deadline = if settled { None } else { stack.deadline(now) };
            let deadline = deadline.into_iter().chain(reminder).min();
            // Whatever the stack thinks, silence ends what the guest owes.
            let patience = flow.told.silent_since.map(|since| since + SILENCE);
            let deadline = deadline.or(patience.filter(|_| !settled));
            self.timers.set(id, deadline);
        }
        true
    }

    /// Tells the driver what became possible.
    fn notice(&mut self, now: Duration, id: FlowId) {
        self.examine(id);
        let Some((socket, told)) = self.tcp.open(id) else {
            return;
        };
        told.guest_ended |= matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if told.resolver {
            return self.serve_stream(now, id);
        }
        told.opening &= matches!(socket.state(), State::SynSent | State::Closed);
        let held_back = told.unjudged.is_some() || told.denied;
        let actions = &mut self.actions;
        if socket.can_recv() && !told.readable && !held_back && !told.places.up.held {
            told.readable = true;
            actions.push_back(Action::Readable(id));
        }
        if told.guest_ended && socket.recv_queue() == 0 && !told.shutdown && !told.denied {
            told.shutdown = true;
            actions.push_back(Action::Shutdown(id));
        }
        if told.wants_room && socket.can_send() && !told.places.down.held {
            told.wants_room = false;
            actions.push_back(Action::Writable(id));
        }
    }

    /// Takes a flow out of the line it waited in.
    pub(super) fn let_on(&mut self, now: Duration, id: FlowId, change: impl FnOnce(&mut Places)) {
        if let Some((_, told)) = self.tcp.open(id) {
            change(&mut told.places);
            self.notice(now, id);
        }
    }

    pub(super) fn remove_tcp(&mut self, now: Duration, id: FlowId, ended: Ended) {
        let Some(flow) = self.tcp.flows.remove(&id) else {
            return;
        };
        self.tcp.ids.remove(&flow.ends);
        if let Stage::Open(stack) = flow.stage {
            self.tcp.memory -= 2 * stack.buffer;
            if ended == Ended::Finished {
                let moved = flow.told.sent.max(flow.told.received);
                self.tcp.spare.keep(*stack, moved);
            }
        }
        self.timers.set(id, None);
        if flow.told.resolver {
            return self.dns.close_stream(id);
        }
        let reset = ended != Ended::Finished;
        self.actions.push_back(Action::Close { flow: id, reset });
        self.events.push(Event::Closed {
            flow: id,
            ended,
            sent: flow.told.sent,
            received: flow.told.received,
            duration: now.saturating_sub(flow.opened),
        });
    }
}

/// Tells whether a segment says again what the guest had acknowledged, while only
/// our end (FIN) is outstanding. The stack must not see such: after the third it
/// prepares a fast retransmission, finds no data for it, and forgets its timer and
/// with it the end, which a guest that lost it then never sees.
fn is_duplicate(
    stack: &mut Stack,
    segment: &TcpPacket<&[u8]>,
    last_ack: &mut Option<TcpSeqNumber>,
) -> bool {
    let bare = segment.ack() && segment.segment_len() == 0 && !segment.rst();
    if !bare || !stack.ending() {
        return false;
    }
    last_ack.replace(segment.ack_number()) == Some(segment.ack_number())
}

/// Every stack gets a seed of its own: sequence numbers of one flow say nothing
/// about those of the next.
fn seed(config: &Config, id: FlowId) -> u64 {
    mix(config.seed ^ mix(id.0))
}

/// Takes the memory for a flow's buffers, if it is a short one as little as there
/// may be; returns the size of one.
fn buffer(limits: &Limits, taken: &mut usize, short: bool) -> usize {
    let left = limits.tcp_memory.saturating_sub(*taken);
    let share = if short { 0 } else { left / SHARE };
    let buffer = limits.tcp_buffer.min(share).max(MIN_BUFFER);
    *taken += 2 * buffer;
    buffer
}

/// Spreads a number over 64 bits (the finalizer of splitmix64).
pub(super) fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
