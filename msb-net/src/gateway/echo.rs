//! Echo requests of the guest, and what comes of them.
//!
//! Read RFC 792 and RFC 4443, 4. Those to the gateway are answered here, others
//! are judged like any flow and passed on by the driver. A flow is an identifier
//! and a destination.
//!
//! An echo request can carry anything, so that it is a favourite of those who
//! build tunnels. What is passed on is small ([`MAX_PAYLOAD`]) and rare
//! ([`RATE`]), and a reply reaches the guest only if it says what the request
//! said, as RFC 792 demands: nothing can be sent *to* a guest this way.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable,
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr,
};

use super::bucket::Bucket;
use super::event::{DropReason, Ended, Event};
use super::packet::Packet;
use super::{Action, FlowId, FlowMap, Gateway, MAX_ACTIONS, policy};
use crate::addr::Faces;

/// The largest payload that is passed on: what fits into an ordinary packet.
const MAX_PAYLOAD: usize = 1472;

/// Requests that are passed on each second, and after a rest: enough for several
/// `ping` and a `traceroute`, and at most 75 kB/s for a tunnel.
const RATE: u64 = 50;
const BURST: u64 = 100;

/// Flows: each has a socket of the host. One more ends the oldest.
const MAX_FLOWS: usize = 64;

/// How long a flow is kept after its last request.
const IDLE: Duration = Duration::from_secs(30);

/// Requests of a flow whose replies may still come.
const MAX_PENDING: usize = 64;

/// The guest's address, the destination, the identifier.
type Ends = (IpAddr, IpAddr, u16);

/// All echo flows.
pub(super) struct EchoTable {
    flows: FlowMap<EchoFlow>,
    ids: HashMap<Ends, FlowId>,
    bucket: Bucket,
    /// The host lets nobody send echo requests.
    pub(super) forbidden: bool,
}

struct EchoFlow {
    ends: Ends,
    opened: Duration,
    used: Duration,
    /// Sequence numbers and digests of what was asked.
    pending: VecDeque<(u16, u64)>,
    sent: u64,
    received: u64,
}

impl Default for EchoTable {
    fn default() -> Self {
        Self {
            flows: FlowMap::default(),
            ids: HashMap::new(),
            bucket: Bucket::new(RATE, BURST),
            forbidden: false,
        }
    }
}

impl EchoTable {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// One of the flows, whichever.
    pub(super) fn any(&self) -> Option<FlowId> {
        self.flows.keys().next().copied()
    }

    pub(super) fn contains(&self, id: FlowId) -> bool {
        self.flows.contains_key(&id)
    }

    /// The guest's address, the destination, and the identifier of a flow.
    pub(super) fn ends(&self, id: FlowId) -> Option<Ends> {
        self.flows.get(&id).map(|flow| flow.ends)
    }
}

/// A request, or a reply: both have the same parts.
#[derive(Clone, Copy)]
struct Echo<'a> {
    ident: u16,
    sequence: u16,
    data: &'a [u8],
}

/// What an ICMP message is to us.
enum Message<'a> {
    Request(Echo<'a>),
    /// Nobody in the guest receives what came to the first from the second.
    NobodyReceives(SocketAddr, SocketAddr),
    /// Something else the guest says about a packet of ours: nobody needs to know.
    Report,
    Other,
}

/// # Upstream: echo
impl Gateway {
    /// The reply to an echo request came. Does nothing when the flow is gone.
    pub fn echo_reply(&mut self, now: Duration, id: FlowId, sequence: u16, payload: &[u8]) {
        self.clock = now;
        let digest = self.digest(payload);
        let Some(flow) = self.echo.flows.get_mut(&id) else {
            return;
        };
        let expected = |pending: &(u16, u64)| *pending == (sequence, digest);
        let Some(index) = flow.pending.iter().position(expected) else {
            return self.events.dropped(DropReason::ForeignReply);
        };
        flow.pending.remove(index);
        flow.received += payload.len() as u64;
        let (guest, far, ident) = flow.ends;
        let echo = Echo {
            ident,
            sequence,
            data: payload,
        };
        self.reply(far, guest, echo);
    }

    /// The host does not let this process send echo requests: those of the guest
    /// are refused from now on, and told of.
    pub fn echo_forbidden(&mut self, now: Duration, id: FlowId) {
        self.clock = now;
        self.echo.forbidden = true;
        if let Some(flow) = self.echo.flows.get(&id) {
            let far = flow.ends.1;
            self.remove_echo(now, id, Ended::NotConnected);
            // Told as it will be from now on.
            let facts = self.facts(policy::Transport::Icmp, far);
            let id = self.new_flow();
            self.judge(now, id, facts);
        }
    }
}

impl Gateway {
    /// Takes an ICMP message that is not about neighbours.
    pub(super) fn handle_echo(&mut self, now: Duration, packet: &Packet<'_>) {
        match message(packet) {
            Some(Message::Request(echo)) if self.is_gateway(packet.destination) => {
                self.reply(packet.destination, packet.source, echo);
            }
            Some(Message::Request(echo)) => self.pass_on(now, packet, echo),
            Some(Message::NobodyReceives(guest, far)) => self.nobody_receives(guest, far),
            Some(Message::Report) => {}
            Some(Message::Other) => self.events.dropped(DropReason::UnknownProtocol),
            None => self.events.dropped(DropReason::Malformed),
        }
    }

    fn pass_on(&mut self, now: Duration, packet: &Packet<'_>, echo: Echo<'_>) {
        let ends = (packet.source, packet.destination, echo.ident);
        let id = match self.echo.ids.get(&ends) {
            Some(id) => *id,
            None => match self.open_echo(now, ends) {
                Some(id) => id,
                None => return self.outbox.prohibited(packet),
            },
        };
        if echo.data.len() > MAX_PAYLOAD {
            self.events.dropped(DropReason::TooBig);
            return self.outbox.prohibited(packet);
        }
        if !self.echo.bucket.take(now, 1) {
            return self.events.dropped(DropReason::RateLimit);
        }
        if self.actions.len() >= MAX_ACTIONS {
            return self.events.dropped(DropReason::Overload);
        }
        let digest = self.digest(echo.data);
        if let Some(flow) = self.echo.flows.get_mut(&id) {
            flow.used = now;
            flow.sent += echo.data.len() as u64;
            if flow.pending.len() >= MAX_PENDING {
                flow.pending.pop_front();
            }
            flow.pending.push_back((echo.sequence, digest));
        }
        self.actions.push_back(Action::Echo {
            flow: id,
            to: Faces::of(packet.destination).canonical(),
            handling: packet.handling(false),
            sequence: echo.sequence,
            payload: echo.data.to_vec(),
        });
    }

    fn open_echo(&mut self, now: Duration, ends: Ends) -> Option<FlowId> {
        let id = self.new_flow();
        let facts = self.facts(policy::Transport::Icmp, ends.1);
        self.judge(now, id, facts)?;
        if self.echo.len() >= MAX_FLOWS {
            let oldest = self
                .echo
                .flows
                .iter()
                .min_by_key(|(id, flow)| (flow.used, **id));
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.remove_echo(now, oldest, Ended::Evicted);
            }
        }
        let flow = EchoFlow {
            ends,
            opened: now,
            used: now,
            pending: VecDeque::new(),
            sent: 0,
            received: 0,
        };
        self.echo.flows.insert(id, flow);
        self.echo.ids.insert(ends, id);
        self.timers.set(id, Some(now + IDLE));
        Some(id)
    }

    /// A flow's deadline has come; it may have been used since it was set.
    pub(super) fn echo_due(&mut self, now: Duration, id: FlowId) {
        let Some(flow) = self.echo.flows.get(&id) else {
            return;
        };
        let deadline = flow.used + IDLE;
        if deadline <= now {
            self.remove_echo(now, id, Ended::Idle);
        } else {
            self.timers.set(id, Some(deadline));
        }
    }

    pub(super) fn remove_echo(&mut self, now: Duration, id: FlowId, ended: Ended) {
        let Some(flow) = self.echo.flows.remove(&id) else {
            return;
        };
        self.echo.ids.remove(&flow.ends);
        self.timers.set(id, None);
        self.actions.push_back(Action::Forget(id));
        self.events.push(Event::Closed {
            flow: id,
            ended,
            sent: flow.sent,
            received: flow.received,
            duration: now.saturating_sub(flow.opened),
        });
    }

    /// Stands for a payload. Nobody outside can find two with the same digest, as
    /// the seed is not known there.
    fn digest(&self, payload: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.config.seed.hash(&mut hasher);
        payload.hash(&mut hasher);
        hasher.finish()
    }

    fn reply(&mut self, from: IpAddr, to: IpAddr, echo: Echo<'_>) {
        let Echo {
            ident,
            sequence: seq_no,
            data,
        } = echo;
        if from.is_ipv4() {
            let reply = Icmpv4Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            self.outbox.icmpv4(from, to, &reply);
        } else {
            let reply = Icmpv6Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            self.outbox.icmpv6(from, to, &reply);
        }
    }
}

/// The guest's end and the far end of the datagram that nobody received, if the packet
/// says so of one.
pub(super) fn nobody_receives(packet: &Packet<'_>) -> Option<(SocketAddr, SocketAddr)> {
    match message(packet)? {
        Message::NobodyReceives(guest, far) => Some((guest, far)),
        _ => None,
    }
}

/// Reads what the guest says of a packet that is quoted: at least the ports are.
fn report(header: &IpRepr, quoted: &[u8]) -> Message<'static> {
    let ports = quoted.first_chunk::<4>();
    match (header.next_header(), ports) {
        (IpProtocol::Udp, Some(&[from_high, from_low, to_high, to_low])) => {
            let end = |address: IpAddress, port| SocketAddr::new(address.into(), port);
            Message::NobodyReceives(
                end(header.dst_addr(), u16::from_be_bytes([to_high, to_low])),
                end(header.src_addr(), u16::from_be_bytes([from_high, from_low])),
            )
        }
        _ => Message::Report,
    }
}

/// Reads an ICMP message; `None` when it is not what it says it is.
fn message<'a>(packet: &Packet<'a>) -> Option<Message<'a>> {
    let checks = ChecksumCapabilities::default();
    match (packet.source, packet.destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let message = Icmpv4Packet::new_checked(packet.payload).ok()?;
            match message.msg_type() {
                Icmpv4Message::EchoRequest => {}
                Icmpv4Message::DstUnreachable | Icmpv4Message::TimeExceeded => {
                    return Some(match Icmpv4Repr::parse(&message, &checks) {
                        Ok(Icmpv4Repr::DstUnreachable {
                            reason: Icmpv4DstUnreachable::PortUnreachable,
                            header,
                            data,
                        }) => report(&IpRepr::Ipv4(header), data),
                        _ => Message::Report,
                    });
                }
                _ => return Some(Message::Other),
            }
            match Icmpv4Repr::parse(&message, &checks).ok()? {
                Icmpv4Repr::EchoRequest {
                    ident,
                    seq_no: sequence,
                    data,
                } => Some(Message::Request(Echo {
                    ident,
                    sequence,
                    data,
                })),
                _ => None,
            }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
            match message.msg_type() {
                Icmpv6Message::EchoRequest => {}
                Icmpv6Message::DstUnreachable | Icmpv6Message::TimeExceeded => {
                    let parsed = Icmpv6Repr::parse(&source, &destination, &message, &checks);
                    return Some(match parsed {
                        Ok(Icmpv6Repr::DstUnreachable {
                            reason: Icmpv6DstUnreachable::PortUnreachable,
                            header,
                            data,
                        }) => report(&IpRepr::Ipv6(header), data),
                        _ => Message::Report,
                    });
                }
                _ => return Some(Message::Other),
            }
            match Icmpv6Repr::parse(&source, &destination, &message, &checks).ok()? {
                Icmpv6Repr::EchoRequest {
                    ident,
                    seq_no: sequence,
                    data,
                } => Some(Message::Request(Echo {
                    ident,
                    sequence,
                    data,
                })),
                _ => None,
            }
        }
        _ => None,
    }
}
