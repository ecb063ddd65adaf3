//! UDP flows: a pair of ends that have exchanged datagrams lately.
//!
//! Read RFC 768, and RFC 4787 for what applications expect of a translator: one
//! host socket per flow, kept for two minutes (REQ-5) after the last datagram in
//! either direction.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::{IpProtocol, UdpPacket, UdpRepr};

use super::datagrams::Datagrams;
use super::dns::Via;
use super::event::{DropReason, Ended, Event};
use super::packet::Packet;
use super::{Action, FlowId, FlowMap, Gateway, Handling, MAX_ACTIONS, PublishedId, echo, policy};
use crate::dns;

/// How long a flow is kept after its last datagram.
const IDLE: Duration = Duration::from_secs(120);

/// How exactly the time of a flow's last datagram is known.
const GRAIN: Duration = Duration::from_millis(100);

/// The largest datagram that is kept until the guest answers, to be sent again to another
/// of its addresses: what a client asks that way is short.
const MAX_KEPT: usize = 2048;

type Ends = (SocketAddr, SocketAddr);

/// The published port a flow came to, and from where.
type Origin = (PublishedId, SocketAddr);

/// All UDP flows.
#[derive(Default)]
pub(super) struct UdpTable {
    flows: FlowMap<UdpFlow>,
    ids: HashMap<Ends, FlowId>,
    /// The flows that came from outside.
    origins: HashMap<Origin, FlowId>,
    /// When each flow was last used, to a [`GRAIN`].
    used: BTreeSet<(Duration, FlowId)>,
}

struct UdpFlow {
    ends: Ends,
    origin: Option<Origin>,
    opened: Duration,
    used: Duration,
    sent: u64,
    received: u64,
    /// The guest has given a packet a number, by which its pieces are known.
    numbered: bool,
    /// From outside: what came last, until the guest has sent something.
    unanswered: Option<Box<[u8]>>,
}

impl UdpTable {
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

    /// The guest's end and the far end of a flow that the guest began.
    pub(super) fn outgoing(&self, id: FlowId) -> Option<Ends> {
        let flow = self.flows.get(&id)?;
        flow.origin.is_none().then_some(flow.ends)
    }

    pub(super) fn by_origin(&self, origin: Origin) -> Option<FlowId> {
        self.origins.get(&origin).copied()
    }

    /// Keeps what came from outside as long as it is not known where the guest receives it.
    pub(super) fn keep_unanswered(&mut self, id: FlowId, payload: &[u8]) {
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.sent == 0
        {
            flow.unanswered = (payload.len() <= MAX_KEPT).then(|| payload.into());
        }
    }

    /// Notes that a flow is in use, if that was not noted lately.
    fn touch(&mut self, now: Duration, id: FlowId) -> Option<&mut UdpFlow> {
        let flow = self.flows.get_mut(&id)?;
        if now.saturating_sub(flow.used) >= GRAIN {
            self.used.remove(&(flow.used, id));
            self.used.insert((now, id));
            flow.used = now;
        }
        Some(flow)
    }
}

impl Gateway {
    /// A datagram came for a flow. Does nothing when the flow is gone.
    pub fn datagram(&mut self, now: Duration, id: FlowId, payload: &[u8]) {
        self.clock = now;
        let Some(flow) = self.udp.touch(now, id) else {
            return self.server_said(now, id, payload);
        };
        if !self.throttle.down.pass(now, payload.len()) {
            return self.events.dropped(DropReason::RateLimit);
        }
        flow.received += payload.len() as u64;
        let (guest, far) = flow.ends;
        if !self.outbox.datagram(far, guest, payload) {
            self.events.dropped(DropReason::TooBig);
        }
    }

    /// The socket of a flow was told that its datagrams do not arrive, or could
    /// not be opened.
    pub fn datagram_failed(&mut self, now: Duration, id: FlowId) {
        self.clock = now;
        self.server_failed(now, id);
    }

    pub(super) fn handle_udp(&mut self, now: Duration, packet: &Packet<'_>) {
        let (from, to) = (packet.source, packet.destination);
        let checks = packet.checks();
        let parsed = UdpPacket::new_checked(packet.payload).and_then(|datagram| {
            let repr = UdpRepr::parse(&datagram, &from.into(), &to.into(), &checks)?;
            Ok((repr, datagram))
        });
        let Ok((ports, datagram)) = parsed else {
            return self.events.dropped(DropReason::Malformed);
        };
        let ends = (
            SocketAddr::new(from, ports.src_port),
            SocketAddr::new(to, ports.dst_port),
        );
        if ends.1.port() == dns::PORT {
            return self.handle_query(now, Via::datagram(ends), datagram.payload());
        }
        let id = match self.udp.ids.get(&ends) {
            Some(id) => *id,
            None => match self.open_udp(now, ends) {
                Some(id) => id,
                None => return self.outbox.prohibited(packet),
            },
        };
        if self.actions.len() >= MAX_ACTIONS {
            return self.events.dropped(DropReason::Overload);
        }
        if !self.throttle.up.pass(now, datagram.payload().len()) {
            return self.events.dropped(DropReason::RateLimit);
        }
        let payload = datagram.payload();
        let mut peer = None;
        let mut numbered = false;
        if let Some(flow) = self.udp.touch(now, id) {
            flow.sent += payload.len() as u64;
            flow.unanswered = None;
            flow.numbered |= !packet.is_unnumbered();
            numbered = flow.numbered;
            peer = flow.origin.map(|(_, peer)| peer);
        }
        let to = peer.unwrap_or_else(|| self.dial(to, ports.dst_port));
        let handling = packet.handling(numbered);
        if !self.join_last((id, to), handling, payload) {
            self.actions.push_back(Action::Send {
                flow: id,
                to,
                handling,
                datagrams: Datagrams::one(payload.to_vec()),
            });
        }
    }

    /// Adds a datagram to those before it, if they go the same way.
    fn join_last(&mut self, way: (FlowId, SocketAddr), how: Handling, payload: &[u8]) -> bool {
        let Some(Action::Send {
            flow,
            to,
            handling,
            datagrams,
        }) = self.actions.back_mut()
        else {
            return false;
        };
        ((*flow, *to), *handling) == (way, how) && datagrams.push(payload)
    }

    /// Tells whether a packet belongs to a flow from outside: a datagram of it, or word
    /// that nobody receives one.
    pub(super) fn is_of_client(&self, packet: &Packet<'_>) -> bool {
        let ends = match packet.protocol {
            IpProtocol::Udp => UdpPacket::new_checked(packet.payload).ok().map(|datagram| {
                let from = SocketAddr::new(packet.source, datagram.src_port());
                (
                    from,
                    SocketAddr::new(packet.destination, datagram.dst_port()),
                )
            }),
            IpProtocol::Icmp => echo::nobody_receives(packet),
            _ => None,
        };
        let id = ends.and_then(|ends| self.udp.ids.get(&ends));
        id.is_some_and(|id| self.udp.outgoing(*id).is_none())
    }

    /// The guest says that nobody receives what came from `far` to its end `guest`. A flow
    /// from outside goes to another of its addresses from now on: the service may be
    /// there only.
    pub(super) fn nobody_receives(&mut self, guest: SocketAddr, far: SocketAddr) {
        let Some(&id) = self.udp.ids.get(&(guest, far)) else {
            return;
        };
        if self.udp.outgoing(id).is_some() {
            return;
        }
        let address = self.next_address(guest.ip());
        let own = self.own_address(address);
        let other = SocketAddr::new(address, guest.port());
        let Some(far) = self.own_end(own, |gateway, far| gateway.udp.is_used(other, far)) else {
            return;
        };
        if let Some(flow) = self.udp.flows.get_mut(&id) {
            self.udp.ids.remove(&flow.ends);
            flow.ends = (other, far);
            self.udp.ids.insert(flow.ends, id);
            // After the last address there is no other until the client tries again.
            let unanswered = flow.unanswered.take();
            if address != IpAddr::from(self.config.guest_v4)
                && let Some(payload) = unanswered
            {
                self.outbox.datagram(far, other, &payload);
                flow.unanswered = Some(payload);
            }
        }
    }

    fn open_udp(&mut self, now: Duration, ends: Ends) -> Option<FlowId> {
        let id = self.new_flow();
        let facts = self.facts(policy::Transport::Udp(ends.1.port()), ends.1.ip());
        self.judge(now, id, facts)?;
        self.insert_udp(now, id, ends, None);
        Some(id)
    }

    pub(super) fn insert_udp(
        &mut self,
        now: Duration,
        id: FlowId,
        ends: Ends,
        origin: Option<Origin>,
    ) {
        if self.udp.len() >= self.config.limits.udp_flows
            && let Some(&(_, idlest)) = self.udp.used.first()
        {
            self.remove_udp(now, idlest, Ended::Evicted);
        }
        let flow = UdpFlow {
            ends,
            origin,
            opened: now,
            used: now,
            sent: 0,
            received: 0,
            numbered: false,
            unanswered: None,
        };
        self.udp.flows.insert(id, flow);
        self.udp.ids.insert(ends, id);
        if let Some(origin) = origin {
            self.udp.origins.insert(origin, id);
        }
        self.udp.used.insert((now, id));
        self.timers.set(id, Some(now + IDLE));
    }

    /// A flow's deadline has come; it may have been used since it was set.
    pub(super) fn udp_due(&mut self, now: Duration, id: FlowId) {
        let Some(flow) = self.udp.flows.get(&id) else {
            return;
        };
        let deadline = flow.used + IDLE;
        if deadline <= now {
            self.remove_udp(now, id, Ended::Idle);
        } else {
            self.timers.set(id, Some(deadline));
        }
    }

    pub(super) fn remove_udp(&mut self, now: Duration, id: FlowId, ended: Ended) {
        let Some(flow) = self.udp.flows.remove(&id) else {
            return;
        };
        self.udp.ids.remove(&flow.ends);
        if let Some(origin) = flow.origin {
            self.udp.origins.remove(&origin);
        }
        self.udp.used.remove(&(flow.used, id));
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
}
