//! Flows from the world to published ports of the guest.
//!
//! The driver has accepted a connection, or got a datagram; the policy is asked
//! about who sent it. The guest sees the gateway's address as the origin: it could
//! not tell its own replies to anybody else from ordinary flows.
//!
//! ```text
//!             accepted, allowed       guest's SYN-ACK
//!   TCP   ────────────────────► Opening ─────────────► Open ──► gone
//!             │ denied: None        │ refused, or silent: Close
//! ```
//!
//! The guest is reached at its IPv4 address, whatever the client came by, and where it
//! refuses there at others: a connection at once at its IPv6 address, a datagram at its
//! IPv4 loopback address, if it takes such from its link, and then at its IPv6 address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::packet::Packet;
use super::{FlowId, Gateway};
use crate::policy::Transport;

/// The gateway's own ports, from which it reaches the guest: the usual ephemeral
/// ones.
const PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// Ports tried for one flow. Only flows to the same port of the guest take them.
const MAX_TRIES: u16 = 64;

/// Names one published port of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedId(pub u64);

/// # Published ports
impl Gateway {
    /// A client at `peer` connected to a port that is published as `port` of the
    /// guest. `None` when that is denied, or cannot be now: reset the client then.
    /// Otherwise the flow is like any other, but that [`Action::Writable`] is the
    /// first sign that the guest accepts, and [`Action::Close`] before it means that
    /// the guest refuses.
    ///
    /// [`Action::Writable`]: super::Action::Writable
    /// [`Action::Close`]: super::Action::Close
    pub fn accept(&mut self, now: Duration, peer: SocketAddr, port: u16) -> Option<FlowId> {
        let guest = SocketAddr::new(self.config.guest_v4.into(), port);
        let (id, far) = self.admit(now, Transport::Tcp(port), peer, |gateway| {
            let own = gateway.config.gateway_v4.into();
            gateway.own_end(own, |gateway, far| gateway.tcp.is_used(guest, far))
        })?;
        self.open_inbound(now, id, (guest, far));
        Some(id)
    }

    /// A datagram from `peer` came to `published`, which is `port` of the guest.
    /// Returns the flow it belongs to: what the guest answers is an
    /// [`Action::Send`](super::Action::Send) of that flow to that peer.
    pub fn datagram_from(
        &mut self,
        now: Duration,
        published: PublishedId,
        port: u16,
        peer: SocketAddr,
        payload: &[u8],
    ) -> Option<FlowId> {
        let origin = (published, peer);
        let id = match self.udp.by_origin(origin) {
            Some(id) => id,
            None => {
                let guest = SocketAddr::new(self.config.guest_v4.into(), port);
                let (id, far) = self.admit(now, Transport::Udp(port), peer, |gateway| {
                    let own = gateway.config.gateway_v4.into();
                    gateway.own_end(own, |gateway, far| gateway.udp.is_used(guest, far))
                })?;
                self.insert_udp(now, id, (guest, far), Some(origin));
                id
            }
        };
        self.udp.keep_unanswered(id, payload);
        self.datagram(now, id, payload);
        Some(id)
    }

    /// Where the datagrams of a flow from outside go next, when nobody receives them at
    /// `guest`; begins anew after the last.
    pub(super) fn next_address(&self, guest: IpAddr) -> IpAddr {
        let config = &self.config;
        match guest {
            IpAddr::V4(v4) if v4 == config.guest_v4 && config.guest_loopback => {
                Ipv4Addr::LOCALHOST.into()
            }
            IpAddr::V4(_) => config.guest_v6.into(),
            IpAddr::V6(_) => config.guest_v4.into(),
        }
    }

    /// Tells whether a packet comes from the guest's loopback address, and may: it answers
    /// what the gateway has sent there.
    pub(super) fn is_answer(&self, packet: &Packet<'_>) -> bool {
        let from_loopback = packet.source == IpAddr::from(Ipv4Addr::LOCALHOST);
        from_loopback && self.config.guest_loopback && self.is_of_client(packet)
    }

    /// A port of the gateway's address `own` that is not in use towards the same end of the guest.
    pub(super) fn own_end(
        &mut self,
        own: IpAddr,
        used: impl Fn(&Self, SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        for _ in 0..MAX_TRIES {
            let port = match self.last_port.checked_add(1) {
                Some(next) if PORTS.contains(&next) => next,
                _ => *PORTS.start(),
            };
            self.last_port = port;
            let far = SocketAddr::new(own, port);
            if !used(self, far) {
                return Some(far);
            }
        }
        None
    }
}
