//! Whether a flow may open: asks the policy, looks at the limits, and tells of it once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::event::{Event, Refusal};
use super::{FlowId, Gateway};
use crate::addr::{Faces, Group};
use crate::policy::{Action, Claim, Direction, Flow, Names, Transport, Verdict};

impl Gateway {
    /// Judges a flow that the guest opens, and tells of it.
    ///
    /// Some flows are refused whatever the policy says: see [`Refusal`].
    pub(super) fn judge(&mut self, now: Duration, id: FlowId, facts: Flow) -> Option<Verdict> {
        let bound = self.dns.names(now, facts.address);
        let claim = Claim::Pending;
        let verdict = self.config.policy.decide(&facts, &Names { bound, claim });
        let name = bound.last().cloned();
        let permitted = verdict.action == Action::Allow;
        let refusal = if permitted {
            self.refusal(now, &facts)
        } else {
            None
        };
        let allowed = permitted && refusal.is_none();
        self.events.push(Event::Decided {
            flow: allowed.then_some(id),
            facts,
            name,
            claim: None,
            verdict: verdict.clone(),
            refusal,
        });
        allowed.then_some(verdict)
    }

    /// Judges somebody who wants to reach the guest, and tells of it. Returns the flow and
    /// the gateway's end of it, which `own_end` finds.
    pub(super) fn admit(
        &mut self,
        now: Duration,
        transport: Transport,
        peer: SocketAddr,
        own_end: impl FnOnce(&mut Self) -> Option<SocketAddr>,
    ) -> Option<(FlowId, SocketAddr)> {
        let address = Faces::of(peer.ip()).canonical();
        let facts = Flow {
            direction: Direction::In,
            transport,
            address,
            is_host: self.is_host(address) || Group::of(address) == Group::Loopback,
        };
        let id = self.new_flow();
        let verdict = self.config.policy.decide(&facts, &Names::default());
        let (mut refusal, mut end) = (None, None);
        if verdict.action == Action::Allow {
            end = own_end(self);
            refusal = match end {
                Some(_) => self.excess(now, transport),
                None => Some(Refusal::TooManyFlows),
            };
        }
        let end = end.filter(|_| refusal.is_none());
        self.events.push(Event::Decided {
            flow: end.map(|_| id),
            facts,
            name: None,
            claim: None,
            verdict,
            refusal,
        });
        end.map(|end| (id, end))
    }

    /// Why a flow that the policy lets through does not open all the same.
    fn refusal(&mut self, now: Duration, facts: &Flow) -> Option<Refusal> {
        let nowhere = |face| Group::of(face) == Group::Loopback || face.is_unspecified();
        // Dialled, it would be the host's own loopback (RFC 1122, 3.2.1.3).
        if Faces::of(facts.address).any(nowhere) {
            return Some(Refusal::Loopback);
        }
        if facts.transport == Transport::Icmp && self.echo.forbidden {
            return Some(Refusal::Echo);
        }
        self.excess(now, facts.transport)
    }

    /// The limit that one more flow would exceed. Takes that it opens if there is none.
    fn excess(&mut self, now: Duration, transport: Transport) -> Option<Refusal> {
        let full = self.tcp.len() >= self.config.limits.tcp_flows;
        match transport {
            Transport::Tcp(_) if full => Some(Refusal::TooManyFlows),
            Transport::Tcp(_) | Transport::Udp(_) if !self.throttle.may_open(now) => {
                Some(Refusal::RateLimit)
            }
            _ => None,
        }
    }

    /// The facts of a flow of the guest to `destination`.
    pub(super) fn facts(&self, transport: Transport, destination: IpAddr) -> Flow {
        Flow {
            direction: Direction::Out,
            transport,
            address: destination,
            is_host: self.is_host(destination),
        }
    }

    /// Where a flow that was judged as one to `destination` must be dialled: at
    /// the address that was judged, not at a wrapper around it.
    pub(super) fn dial(&self, destination: IpAddr, port: u16) -> SocketAddr {
        let address = match destination {
            IpAddr::V4(_) if self.is_gateway(destination) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) if self.is_gateway(destination) => Ipv6Addr::LOCALHOST.into(),
            _ => Faces::of(destination).canonical(),
        };
        SocketAddr::new(address, port)
    }

    pub(super) fn is_host(&self, address: IpAddr) -> bool {
        let own = |face| self.config.host_addresses.contains(&face);
        self.is_gateway(address) || Faces::of(address).any(own)
    }

    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        match Faces::of(address).canonical() {
            IpAddr::V4(v4) => v4 == self.config.gateway_v4,
            IpAddr::V6(v6) => v6 == self.config.gateway_v6,
        }
    }
}
