//! The gateway: what a guest's frames come to.
//!
//! Owns the guest's link: Ethernet, ARP, neighbour discovery, IPv4, IPv6, and
//! every flow on top. It reads no socket and no clock. Whoever drives it does,
//! after each input, these three things until all are exhausted:
//!
//! 1. [`Gateway::poll_action`]: do what it says with host sockets;
//! 2. [`Gateway::poll_frame`]: hand the frame to the guest;
//! 3. [`Gateway::poll_event`]: log it, or not.
//!
//! Then it waits for a frame ([`Gateway::handle_frame`]), a host socket (the
//! methods in *Upstream* below) or the instant [`Gateway::next_timeout`] gives
//! ([`Gateway::handle_timeout`]), whichever comes first. Instants are durations
//! since any fixed moment and never go backwards.
//!
//! ```text
//!                     SYN, allowed            connected
//!   TCP   (unknown) ───────────────► Connecting ─────────► Open ──► gone
//!             │ denied: RST              │ connect_failed: RST, ICMP or silence
//!             ▼                          ▼
//! ```
//!
//! Where the policy must know the name that a client claims (its TLS server name
//! or HTTP host), an open flow's bytes from the guest are held back until the
//! claim was read and judged; bytes to the guest are not, so that no protocol in
//! which the server speaks first is delayed.
//!
//! A guest's `connect` so succeeds only when the upstream's did. Each TCP flow
//! has a TCP/IP stack of its own, with one address and one socket, and frames
//! find it by one table look-up: work per frame does not grow with the number of
//! flows. Frames are made only when asked for, so a slow guest holds up nothing
//! but itself, and a slow upstream closes only its own flow's window.

mod bucket;
mod datagrams;
mod dns;
mod echo;
mod event;
pub(crate) mod fragment;
mod ids;
mod inbound;
mod inspect;
mod judge;
mod link;
mod offload;
mod outbox;
mod packet;
mod path;
mod reminder;
#[cfg(test)]
mod sim;
mod stack;
mod tcp;
#[cfg(test)]
mod tests;
mod throttle;
mod timers;
mod udp;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol};

pub use self::datagrams::Datagrams;
use self::dns::Resolver;
use self::echo::EchoTable;
use self::event::Events;
pub use self::event::{DropReason, Ended, Event, Refusal};
use self::fragment::Fragments;
pub(crate) use self::ids::FlowMap;
pub use self::inbound::PublishedId;
pub use self::inspect::{Intercept, Intercepted};
#[cfg(feature = "shell")]
pub(crate) use self::inspect::{Kind, Way, way};
pub(crate) use self::offload::LENGTH as OFFLOAD_HEADER;
use self::outbox::Outbox;
use self::packet::{Packet, Unfit};
pub use self::path::{Handling, PathError};
use self::tcp::TcpTable;
use self::throttle::Throttle;
use self::timers::Timers;
use self::udp::UdpTable;
use crate::addr::{Faces, Group};
use crate::policy::{self, Policy};

/// Actions that may wait for the driver. Each flow has a handful at most; a
/// driver that falls behind this far gets no new frames worked on.
const MAX_ACTIONS: usize = 4096;

/// Servers that are tried for one query: the system's resolver takes three.
pub const MAX_RESOLVERS: usize = 4;

/// A hardware address.
pub type Mac = [u8; 6];

/// What a gateway needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the guest may reach.
    pub policy: Policy,
    /// The gateway's hardware address.
    pub mac: Mac,
    /// The guest's hardware address; without one, the first frame's sender.
    pub guest_mac: Option<Mac>,
    /// The gateway's address, which stands for the host.
    pub gateway_v4: Ipv4Addr,
    /// The only IPv4 address the guest may use.
    pub guest_v4: Ipv4Addr,
    /// The gateway's IPv6 address, which stands for the host.
    pub gateway_v6: Ipv6Addr,
    /// The only IPv6 address the guest may use, beside its link-local one.
    pub guest_v6: Ipv6Addr,
    /// The guest takes packets for 127.0.0.1 from its link as well (on Linux,
    /// `net.ipv4.conf.*.route_localnet`): datagrams of published ports go there where
    /// nobody receives them at its own address.
    pub guest_loopback: bool,
    /// Further addresses of the host, which policy must treat as the host: those
    /// of its network cards.
    pub host_addresses: Vec<IpAddr>,
    /// The servers that the guest's queries are passed on to, in the order in
    /// which they are tried; of more than [`MAX_RESOLVERS`] the first ones. They
    /// are dialled whatever the policy says. Without any, names cannot be resolved.
    pub resolvers: Vec<SocketAddr>,
    /// Whose flows the driver takes apart. Without it, flows whose requests a rule
    /// would have to judge are refused.
    pub intercept: Option<Intercept>,
    /// The largest IP packet on the link, from 1,280 to 65,520.
    pub mtu: u16,
    /// Each frame has a header in front, both ways, as Linux TAP devices have it
    /// with `IFF_VNET_HDR` (virtio 1.2, 5.1.6; ten bytes). The guest's kernel then
    /// leaves checksums of TCP and UDP out, sends TCP segments larger than the
    /// MTU, and takes such from us. The driver sets this to what its link has.
    pub offload: bool,
    /// How much the guest may use at once.
    pub limits: Limits,
    /// Where initial sequence numbers come from: must be unpredictable.
    pub seed: u64,
}

impl Config {
    /// A configuration with private addresses and the largest MTU.
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            mac: [0x02, 0x6d, 0x73, 0x62, 0, 1],
            guest_mac: None,
            gateway_v4: Ipv4Addr::new(192, 168, 127, 1),
            guest_v4: Ipv4Addr::new(192, 168, 127, 2),
            gateway_v6: Ipv6Addr::new(0xfd6d, 0x7362, 0, 0, 0, 0, 0, 1),
            guest_v6: Ipv6Addr::new(0xfd6d, 0x7362, 0, 0, 0, 0, 0, 2),
            guest_loopback: false,
            host_addresses: Vec::new(),
            resolvers: Vec::new(),
            intercept: None,
            mtu: 65_520,
            offload: false,
            limits: Limits::default(),
            seed,
        }
    }
}

/// How much a guest may use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP flows. One more is refused with a reset.
    pub tcp_flows: usize,
    /// UDP flows. One more ends the one that was idle longest.
    pub udp_flows: usize,
    /// Bytes of buffer in each direction of a TCP flow, as long as there are few.
    pub tcp_buffer: usize,
    /// Bytes of buffer of all TCP flows together; as it fills, new flows get
    /// smaller buffers, down to 16 KiB.
    pub tcp_memory: usize,
    /// Queries that wait for a server, each with a socket of its own. One more is
    /// answered with a failure.
    pub queries: usize,
    /// Bytes of answers that are kept to be given again.
    pub cache_memory: usize,
    /// Bytes from the guest that are passed on each second, payloads only; `None`
    /// is as many as can be. TCP flows wait, datagrams over it are lost.
    pub upload: Option<u64>,
    /// Bytes that are passed to the guest each second, in the same way.
    pub download: Option<u64>,
    /// TCP and UDP flows that may be opened each second, in either direction. One
    /// more is refused.
    pub opens: Option<u32>,
}

impl Default for Limits {
    /// Room for a busy build server: 16,384 flows of each kind, buffers of 1 MiB
    /// and 512 MiB in all. Untouched buffers are mostly not resident: idle flows that
    /// had carried a request were measured at 10 to 17 KiB each.
    fn default() -> Self {
        Self {
            tcp_flows: 16_384,
            udp_flows: 16_384,
            tcp_buffer: 1024 * 1024,
            tcp_memory: 512 * 1024 * 1024,
            queries: 256,
            cache_memory: 4 * 1024 * 1024,
            upload: None,
            download: None,
            opens: None,
        }
    }
}

/// Names one flow; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub(crate) u64);

impl FlowId {
    /// Returns the number that stands for the flow in logs.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The flow that [`number`](Self::number) stands for, for the driver's tables.
    #[cfg(feature = "shell")]
    pub(crate) const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// What the driver must do with host sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Open a TCP connection, then call [`Gateway::connected`] or
    /// [`Gateway::connect_failed`]. A loopback address means the host itself and
    /// was allowed as such.
    Connect {
        /// For this flow.
        flow: FlowId,
        /// To here: the address that was judged.
        to: SocketAddr,
    },
    /// The flow's requests must be read: put what does that between the flow and its
    /// connection. Comes before any byte of the guest is given out.
    Intercept(Box<Intercepted>),
    /// The guest sent bytes: call [`Gateway::read`] until it has none left. The
    /// action comes again when there are bytes after there were none.
    Readable(FlowId),
    /// There is room for bytes to the guest: call [`Gateway::write`] until there
    /// is none left. The action comes again when there is room after there was none.
    Writable(FlowId),
    /// The guest will send no more, and all it sent was read: shut down the
    /// sending half of the connection.
    Shutdown(FlowId),
    /// The TCP flow is over: close the connection.
    Close {
        /// The flow.
        flow: FlowId,
        /// Whether it was cut off, so that the upstream should be as well.
        reset: bool,
    },
    /// Send UDP datagrams, from a socket that belongs to this flow alone.
    Send {
        /// For this flow.
        flow: FlowId,
        /// To here.
        to: SocketAddr,
        /// In this way.
        handling: Handling,
        /// These, which came one right after the other.
        datagrams: Datagrams,
    },
    /// Send an echo request, from a socket that belongs to this flow alone. The
    /// identifier is the socket's; the reply is for [`Gateway::echo_reply`].
    Echo {
        /// For this flow.
        flow: FlowId,
        /// To here.
        to: IpAddr,
        /// In this way.
        handling: Handling,
        /// With this number.
        sequence: u16,
        /// And these bytes.
        payload: Vec<u8>,
    },
    /// The UDP or echo flow is over: close its socket.
    Forget(FlowId),
}

/// Why an upstream connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectError {
    /// The other side said no.
    Refused,
    /// The network has no way there.
    NetworkUnreachable,
    /// The host does not answer to its neighbours.
    HostUnreachable,
    /// Nobody answered.
    TimedOut,
    /// This host lets the driver have no more descriptors, or memory.
    Exhausted,
}

/// The gateway. See the [module](self) for how to drive it.
pub struct Gateway {
    config: Config,
    outbox: Outbox,
    tcp: TcpTable,
    udp: UdpTable,
    echo: EchoTable,
    fragments: Fragments,
    throttle: Throttle,
    dns: Resolver,
    timers: Timers,
    actions: VecDeque<Action>,
    events: Events,
    next_flow: u64,
    /// The latest instant heard of, for what is told without one.
    clock: Duration,
    /// The last port from which the guest was reached.
    last_port: u16,
}

impl Gateway {
    /// Makes a gateway. An MTU out of range is moved to the nearer end of it.
    pub fn new(mut config: Config) -> Self {
        config.mtu = config.mtu.clamp(1280, 65_520);
        Self {
            outbox: Outbox::new(config.mac, config.guest_mac, config.mtu)
                .with_offload(config.offload),
            tcp: TcpTable::default(),
            udp: UdpTable::default(),
            echo: EchoTable::default(),
            fragments: Fragments::default(),
            throttle: Throttle::new(&config.limits),
            dns: Resolver::new(&config),
            timers: Timers::default(),
            actions: VecDeque::new(),
            events: Events::default(),
            next_flow: 0,
            clock: Duration::ZERO,
            last_port: 0,
            config,
        }
    }

    /// Takes one Ethernet frame from the guest.
    ///
    /// Never fails: what is wrong with a frame is an [`Event`].
    pub fn handle_frame(&mut self, now: Duration, frame: &[u8]) {
        self.clock = now;
        if self.actions.len() >= MAX_ACTIONS {
            return self.events.dropped(DropReason::Overload);
        }
        let split = if self.config.offload {
            offload::split(frame)
        } else {
            Some((false, frame))
        };
        let Some((unsummed, frame)) = split else {
            return self.events.dropped(DropReason::Malformed);
        };
        let Ok(frame) = EthernetFrame::new_checked(frame) else {
            return self.events.dropped(DropReason::Malformed);
        };
        let EthernetAddress(source) = frame.src_addr();
        let guest = *self.outbox.guest_mac.get_or_insert(source);
        if source != guest || !frame.src_addr().is_unicast() {
            return self.events.dropped(DropReason::SpoofedMac);
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => self.handle_arp(frame.payload()),
            EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6 => {
                match Packet::parse(frame.ethertype(), frame.payload()) {
                    Ok(packet) => {
                        let packet = Packet { unsummed, ..packet };
                        self.handle_packet(now, &packet);
                    }
                    Err(Unfit::NotPlain) => {
                        self.handle_piece(now, frame.ethertype(), frame.payload());
                    }
                    Err(Unfit::Drop(reason)) => self.events.dropped(reason),
                }
            }
            _ => self.events.dropped(DropReason::UnknownProtocol),
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.clock = now;
        let given_up = self.fragments.expire(now);
        if given_up > 0 {
            self.events.dropped_many(DropReason::Incomplete, given_up);
        }
        self.release_held(now);
        while let Some(flow) = self.timers.pop(now) {
            if self.tcp.contains(flow) {
                self.tcp_due(now, flow);
            } else if self.dns.asks(flow) {
                self.server_due(now, flow);
            } else if self.echo.contains(flow) {
                self.echo_due(now, flow);
            } else {
                self.udp_due(now, flow);
            }
        }
    }

    /// Takes out the next frame for the guest: `frame` is overwritten, and its
    /// old memory is used again. Returns false when there is none.
    pub fn poll_frame(&mut self, now: Duration, frame: &mut Vec<u8>) -> bool {
        loop {
            if self.outbox.pop(frame) {
                return true;
            }
            if !self.serve_tcp(now) {
                return false;
            }
        }
    }

    /// Takes out the next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes out the next event. Events that nobody takes are lost, the oldest
    /// first, and [`Event::Lost`] says how many.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) must be called.
    /// `None` when nothing but an input can change anything.
    pub fn next_timeout(&self) -> Option<Duration> {
        let pieces = self.fragments.next_timeout();
        let held = self.throttle.next_timeout();
        let flows = self.timers.next();
        flows.into_iter().chain(pieces).chain(held).min()
    }

    /// Ends one of the flows that are open, and tells of it; false when there is none.
    ///
    /// For a driver that stops: so what each of them moved is told of, too. It takes the
    /// event before it calls again.
    pub fn shut_down(&mut self, now: Duration) -> bool {
        self.clock = now;
        self.actions.clear();
        if let Some(id) = self.tcp.any() {
            self.remove_tcp(now, id, Ended::Stopped);
        } else if let Some(id) = self.udp.any() {
            self.remove_udp(now, id, Ended::Stopped);
        } else if let Some(id) = self.echo.any() {
            self.remove_echo(now, id, Ended::Stopped);
        } else {
            return false;
        }
        true
    }

    /// Returns how many TCP and UDP flows there are.
    pub fn flows(&self) -> (usize, usize) {
        (self.tcp.len(), self.udp.len())
    }

    /// Takes what is no plain packet; makes one of it, sooner or later.
    fn handle_piece(&mut self, now: Duration, kind: EthernetProtocol, bytes: &[u8]) {
        let config = &self.config;
        let own = |source| is_guest(config, source);
        let whole = match self.fragments.take(now, kind, bytes, own) {
            Ok(None) => return,
            Ok(Some(whole)) => whole,
            Err(reason) => return self.events.dropped(reason),
        };
        match Packet::parse(kind, &whole) {
            Ok(packet) => {
                let mended = true;
                self.handle_packet(now, &Packet { mended, ..packet });
            }
            Err(Unfit::Drop(reason)) => self.events.dropped(reason),
            Err(Unfit::NotPlain) => self.events.dropped(DropReason::Malformed),
        }
    }

    fn handle_packet(&mut self, now: Duration, packet: &Packet<'_>) {
        let own = is_guest(&self.config, packet.source) || self.is_answer(packet);
        if packet.protocol == IpProtocol::Icmpv6 && self.handle_neighbor(packet) {
            return;
        }
        if !own {
            return self.events.dropped(DropReason::SpoofedAddress);
        }
        let faces = Faces::of(packet.destination);
        if faces.any(|face| Group::of(face) == Group::Multicast) {
            return self.events.dropped(DropReason::Multicast);
        }
        if packet.is_used_up() && !self.is_gateway(packet.destination) {
            return self.used_up(packet);
        }
        match packet.protocol {
            IpProtocol::Tcp => self.handle_tcp(now, packet),
            IpProtocol::Udp => self.handle_udp(now, packet),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.handle_echo(now, packet),
            _ => {
                self.events.dropped(DropReason::UnknownProtocol);
                self.outbox.prohibited(packet);
            }
        }
    }

    fn new_flow(&mut self) -> FlowId {
        self.next_flow += 1;
        FlowId(self.next_flow)
    }
}

/// Tells whether an address is the guest's.
fn is_guest(config: &Config, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4 == config.guest_v4,
        IpAddr::V6(v6) => v6 == config.guest_v6,
    }
}
