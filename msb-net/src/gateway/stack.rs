//! A TCP/IP stack with one address and one socket.
//!
//! It plays the far end of a flow towards the guest. It knows nothing of
//! upstreams, policy or the other flows.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::outbox::{Outbox, Wire};
use super::reminder::Memory;

/// A stack that has nothing to send and yet wants to be asked again is asked
/// after this long, not at once.
const BREATH: Duration = Duration::from_millis(1);

/// How long an acknowledgement waits for bytes to go with, unless there is more
/// than a segment to acknowledge: a server that answers at once saves a frame.
pub(super) const ACK_DELAY: Duration = Duration::from_millis(1);

/// Sockets kept for flows to come: what opens within a moment on a busy link.
const MAX_SPARE: usize = 64;

/// A flow that moved more than this either way has touched that much memory of
/// its buffers, which is then better given back.
const MAX_TOUCHED: u64 = 64 * 1024;

/// A TCP/IP stack for one flow.
pub(super) struct Stack {
    interface: Interface,
    socket: OneSocket,
    /// The buffer for each direction, in bytes.
    pub(super) buffer: usize,
    pub(super) memory: Memory,
}

/// A set of one socket, and what it is called there.
struct OneSocket(SocketSet<'static>, SocketHandle);

/// Sockets of flows that are over. Making one means to have its buffers zeroed,
/// page by page, of which a short flow needs the first alone.
#[derive(Default)]
pub(super) struct Spare(Vec<(usize, OneSocket)>);

impl Spare {
    /// Keeps the socket of a flow that ended well and moved so many bytes either
    /// way at most.
    pub(super) fn keep(&mut self, mut stack: Stack, moved: u64) {
        if self.0.len() < MAX_SPARE && moved <= MAX_TOUCHED {
            stack.socket().abort();
            self.0.push((stack.buffer, stack.socket));
        }
    }

    /// A closed socket with buffers of this size.
    fn socket(&mut self, buffer: usize) -> OneSocket {
        // Nearly always the last one will do.
        let found = self.0.iter().rposition(|(size, _)| *size == buffer);
        if let Some(index) = found {
            return self.0.swap_remove(index).1;
        }
        let bytes = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(bytes(), bytes());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY.into()));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        OneSocket(sockets, handle)
    }
}

impl Stack {
    /// A stack that is the far end, waiting for the guest to connect.
    pub(super) fn new(
        now: Duration,
        far: SocketAddr,
        buffer: usize,
        seed: u64,
        (outbox, spare): (&mut Outbox, &mut Spare),
    ) -> Self {
        let socket = spare.socket(buffer);
        let mut stack = Self::idle(now, far, buffer, seed, outbox, socket);
        let at = (IpAddress::from(far.ip()), far.port());
        let listening = stack.socket().listen(at);
        debug_assert!(
            listening.is_ok(),
            "a fresh socket listens on a port that is not 0"
        );
        stack
    }

    /// A stack that is the far end and connects to the guest.
    pub(super) fn connecting(
        now: Duration,
        (guest, far): (SocketAddr, SocketAddr),
        buffer: usize,
        seed: u64,
        (outbox, spare): (&mut Outbox, &mut Spare),
    ) -> Self {
        let socket = spare.socket(buffer);
        let mut stack = Self::idle(now, far, buffer, seed, outbox, socket);
        let to = (IpAddress::from(guest.ip()), guest.port());
        let from = (IpAddress::from(far.ip()), far.port());
        let context = stack.interface.context();
        let OneSocket(sockets, handle) = &mut stack.socket;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        let connecting = socket.connect(context, to, from);
        debug_assert!(
            connecting.is_ok(),
            "a fresh socket connects to a port that is not 0"
        );
        stack
    }

    fn idle(
        now: Duration,
        far: SocketAddr,
        buffer: usize,
        seed: u64,
        outbox: &mut Outbox,
        socket: OneSocket,
    ) -> Self {
        let mut wire = Wire {
            packet: None,
            outbox,
        };
        let mut config = InterfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(now));
        interface.update_ip_addrs(|addresses| {
            // Every address is on link: there is nobody else behind the guest.
            // The list has room for two.
            let _ = addresses.push(IpCidr::new(far.ip().into(), 0));
        });
        Self {
            interface,
            socket,
            buffer,
            memory: Memory::default(),
        }
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        let OneSocket(sockets, handle) = &mut self.socket;
        sockets.get_mut(*handle)
    }

    pub(super) fn receive(&mut self, now: Duration, packet: &[u8], outbox: &mut Outbox) {
        let mut wire = Wire {
            packet: Some(packet),
            outbox,
        };
        let OneSocket(sockets, _) = &mut self.socket;
        self.interface
            .poll_ingress_single(instant(now), &mut wire, sockets);
    }

    /// Makes at most one frame; false when there was none to make.
    pub(super) fn transmit(&mut self, now: Duration, outbox: &mut Outbox) -> bool {
        let before = outbox.len();
        let mut wire = Wire {
            packet: None,
            outbox,
        };
        let OneSocket(sockets, _) = &mut self.socket;
        self.interface.poll_egress(instant(now), &mut wire, sockets);
        outbox.len() > before
    }

    /// Tells whether the guest must acknowledge something.
    pub(super) fn owed(&mut self) -> bool {
        let socket = self.socket();
        let handshake = matches!(
            socket.state(),
            State::SynSent | State::SynReceived | State::FinWait1 | State::Closing | State::LastAck
        );
        handshake || socket.send_queue() > 0
    }

    /// Tells whether our end (FIN) is all that the guest did not acknowledge.
    pub(super) fn ending(&mut self) -> bool {
        let socket = self.socket();
        let state = socket.state();
        socket.send_queue() == 0
            && matches!(state, State::FinWait1 | State::Closing | State::LastAck)
    }

    pub(super) fn deadline(&mut self, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(instant(now), &self.socket.0)?;
        let at = Duration::from_micros(at.total_micros().try_into().unwrap_or(0));
        Some(at.max(now + BREATH))
    }
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}
