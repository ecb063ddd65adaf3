//! What the network says about packets that did not arrive, on its way to the
//! guest.
//!
//! Read RFC 1122, 3.2.2, and RFC 4443, 3. The driver hears of it from its socket;
//! the guest gets the message that the network sent, from who sent it, about the
//! packet as the guest had sent it: its path discovery, and `traceroute`, work so.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::{
    Icmpv4DstUnreachable as V4, Icmpv4Repr, Icmpv4TimeExceeded, Icmpv6DstUnreachable as V6,
    Icmpv6Repr, Icmpv6TimeExceeded, IpProtocol, IpRepr,
};

use super::event::DropReason;
use super::outbox::QUOTED;
use super::packet::Packet;
use super::{FlowId, Gateway};

/// The hop limit below which a guest means it: what senders use otherwise is 64
/// and more, and a trace of a longer path than this does not get to its end.
const ORDINARY_HOPS: u8 = 64;

/// The largest packet of ordinary links. What is larger is so because the guest's own
/// link is that wide: its kernel marks whatever fits there, and on a link like that of
/// the host would have cut it without a word to the program. Such a mark counts only if
/// the sender shows that it is meant: by few hops, as traces have them, or by no number.
const ORDINARY_MTU: usize = 1500;

/// How much longer the header of IPv6 is than that of IPv4.
const HEADERS_DIFFER: u32 = 20;

/// What every link carries of IPv6 (RFC 8200, 5).
const MIN_MTU_V6: u32 = 1280;

/// How the guest wants a packet to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Handling {
    /// With this many hops, if not with the usual number.
    pub hops: Option<u8>,
    /// In one piece or not at all: where it does not fit, the guest wants to hear
    /// so ([`PathError::TooBig`]).
    pub whole: bool,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathError {
    /// Nobody listens there.
    PortUnreachable,
    /// The host does not answer to its neighbours.
    HostUnreachable,
    /// The network has no way there.
    NetworkUnreachable,
    /// Somebody on the way does not let it pass.
    Prohibited,
    /// It had used up its hops.
    TimeExceeded,
    /// This host lets the driver have no more descriptors, or memory.
    Exhausted,
    /// It is larger than what somebody on the way can pass on.
    TooBig {
        /// The largest packet that can.
        mtu: u32,
    },
}

impl Packet<'_> {
    /// How the packet is to be sent on. Hops count only if the guest sent it with
    /// few on purpose: the gateway is one. So does no number only if its sender
    /// has `numbered` none before: all numbers have their turn.
    pub(super) fn handling(&self, numbered: bool) -> Handling {
        let hops = self.header.hop_limit();
        let few = hops < ORDINARY_HOPS;
        let unnumbered = self.is_unnumbered() && !numbered;
        let meant = few || unnumbered || self.bytes.len() <= ORDINARY_MTU;
        Handling {
            hops: few.then(|| hops.saturating_sub(1).max(1)),
            whole: self.is_for_one_piece() && meant,
        }
    }

    /// Tells whether the gateway is where it ends.
    pub(super) fn is_used_up(&self) -> bool {
        self.header.hop_limit() <= 1
    }
}

/// # Upstream: errors
impl Gateway {
    /// A datagram, or an echo request, of a flow did not arrive. `from` says so, or
    /// this host does; `quoted` is the payload as far as it is known, for echo
    /// requests behind their sequence number in two bytes.
    pub fn path_failed(
        &mut self,
        now: Duration,
        id: FlowId,
        error: PathError,
        from: Option<IpAddr>,
        quoted: &[u8],
    ) {
        self.clock = now;
        if error == PathError::Exhausted {
            self.exhausted();
        }
        if let Some((guest, far)) = self.udp.outgoing(id) {
            let error = self.translated(error, far.ip());
            let header = udp_header(guest, far, quoted);
            self.explain(
                error,
                (guest.ip(), far.ip()),
                from,
                IpProtocol::Udp,
                &header,
            );
        } else if let Some((guest, far, ident)) = self.echo.ends(id) {
            let Some((sequence, payload)) = quoted.split_first_chunk() else {
                return;
            };
            let error = self.translated(error, far);
            let protocol = match guest {
                IpAddr::V4(_) => IpProtocol::Icmp,
                IpAddr::V6(_) => IpProtocol::Icmpv6,
            };
            let header = echo_header(guest, ident, *sequence, payload);
            self.explain(error, (guest, far), from, protocol, &header);
        } else {
            self.server_failed(now, id);
        }
    }

    /// The driver could not have a socket for somebody: tells of it.
    pub fn exhausted(&mut self) {
        self.events.dropped(DropReason::HostLimit);
    }

    /// An error as it is where the guest is: to what it sees as an IPv6 address, but
    /// which is dialled as the IPv4 one inside, packets become shorter on the way
    /// (RFC 7915, 4.2).
    fn translated(&self, error: PathError, far: IpAddr) -> PathError {
        let shortened = far.is_ipv6() && self.dial(far, 0).is_ipv4();
        match error {
            PathError::TooBig { mtu } if shortened => PathError::TooBig {
                mtu: mtu.saturating_add(HEADERS_DIFFER).max(MIN_MTU_V6),
            },
            other => other,
        }
    }

    /// Says that a packet of the guest ends at the gateway.
    pub(super) fn used_up(&mut self, packet: &Packet<'_>) {
        let data = &packet.payload[..packet.payload.len().min(QUOTED)];
        let gateway = self.own_address(packet.source);
        self.say(
            gateway,
            packet.source,
            &packet.header,
            data,
            PathError::TimeExceeded,
        );
    }

    fn explain(
        &mut self,
        error: PathError,
        (guest, far): (IpAddr, IpAddr),
        from: Option<IpAddr>,
        protocol: IpProtocol,
        data: &[u8],
    ) {
        let same = |from: &IpAddr| from.is_ipv4() == guest.is_ipv4();
        // The destination's own word is as good as any: it is the only peer the
        // guest knows. What this host says, the gateway says.
        let from = match (from.filter(same), error) {
            (Some(from), _) => from,
            (None, PathError::PortUnreachable) => far,
            (None, _) => self.own_address(guest),
        };
        let header = IpRepr::new(guest.into(), far.into(), protocol, data.len(), 1);
        let data = &data[..data.len().min(QUOTED)];
        self.say(from, guest, &header, data, error);
    }

    pub(super) fn own_address(&self, guest: IpAddr) -> IpAddr {
        match guest {
            IpAddr::V4(_) => self.config.gateway_v4.into(),
            IpAddr::V6(_) => self.config.gateway_v6.into(),
        }
    }

    fn say(&mut self, from: IpAddr, to: IpAddr, header: &IpRepr, data: &[u8], error: PathError) {
        match *header {
            IpRepr::Ipv4(header) => {
                let unreachable = |reason| Icmpv4Repr::DstUnreachable {
                    reason,
                    header,
                    data,
                };
                let message = match error {
                    PathError::PortUnreachable => unreachable(V4::PortUnreachable),
                    PathError::HostUnreachable => unreachable(V4::HostUnreachable),
                    PathError::NetworkUnreachable => unreachable(V4::NetUnreachable),
                    PathError::Prohibited | PathError::Exhausted => unreachable(V4::CommProhibited),
                    PathError::TimeExceeded => Icmpv4Repr::TimeExceeded {
                        reason: Icmpv4TimeExceeded::TtlExpired,
                        header,
                        data,
                    },
                    PathError::TooBig { mtu } => {
                        let message = unreachable(V4::FragRequired);
                        return self.outbox.too_big_v4(from, to, &message, mtu);
                    }
                };
                self.outbox.icmpv4(from, to, &message);
            }
            IpRepr::Ipv6(header) => {
                let unreachable = |reason| Icmpv6Repr::DstUnreachable {
                    reason,
                    header,
                    data,
                };
                let message = match error {
                    PathError::PortUnreachable => unreachable(V6::PortUnreachable),
                    PathError::HostUnreachable => unreachable(V6::AddrUnreachable),
                    PathError::NetworkUnreachable => unreachable(V6::NoRoute),
                    PathError::Prohibited | PathError::Exhausted => unreachable(V6::AdminProhibit),
                    PathError::TimeExceeded => Icmpv6Repr::TimeExceeded {
                        reason: Icmpv6TimeExceeded::HopLimitExceeded,
                        header,
                        data,
                    },
                    PathError::TooBig { mtu } => Icmpv6Repr::PktTooBig { mtu, header, data },
                };
                self.outbox.icmpv6(from, to, &message);
            }
        }
    }
}

/// The datagram as the guest sent it; its checksum is not known any more.
fn udp_header(guest: SocketAddr, far: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    for part in [guest.port(), far.port(), length, 0] {
        bytes.extend_from_slice(&part.to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// The echo request as the guest sent it, but for its checksum.
fn echo_header(guest: IpAddr, ident: u16, sequence: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let kind = if guest.is_ipv4() { 8 } else { 128 };
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend_from_slice(&ident.to_be_bytes());
    bytes.extend_from_slice(&sequence);
    bytes.extend_from_slice(payload);
    bytes
}
