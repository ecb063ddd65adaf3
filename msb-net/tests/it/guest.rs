//! A guest on a stream socket: smoltcp's stack, in real time.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant as Clock};

use msb_net::gateway::Config;
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::socket::{AnySocket, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, IpListenEndpoint, Ipv4Packet};

/// How long a guest waits before the test has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The guest's card: frames behind their lengths.
struct Card {
    stream: UnixStream,
    input: Vec<u8>,
    mtu: usize,
    /// Packets of IPv4 leave in pieces of this many bytes.
    pieces: Option<usize>,
}

pub(crate) struct Guest {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Guest {
    pub(crate) fn new(config: &Config, stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("a socket takes a timeout");
        let mut card = Card {
            stream,
            input: Vec::new(),
            mtu: usize::from(config.mtu) + 14,
            pieces: None,
        };
        let own = InterfaceConfig::new(EthernetAddress([2, 0, 0, 0, 0, 9]).into());
        let mut interface = Interface::new(own, &mut card, Instant::now());
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(config.guest_v4.into(), 24)).unwrap();
            list.push(IpCidr::new(config.guest_v6.into(), 64)).unwrap();
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(config.gateway_v4).unwrap();
        routes.add_default_ipv6_route(config.gateway_v6).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self {
            card,
            interface,
            sockets,
        }
    }

    /// Sends a frame as it is.
    pub(crate) fn inject(&mut self, frame: &[u8]) {
        send(&mut self.card.stream, frame);
    }

    /// Lets packets of IPv4 leave in pieces of this many bytes, a multiple of eight.
    pub(crate) fn cut(&mut self, size: usize) {
        self.card.pieces = Some(size);
    }

    pub(crate) fn connect(&mut self, to: std::net::SocketAddr, from: u16) -> SocketHandle {
        let bytes = || SocketBuffer::new(vec![0; 300_000]);
        let mut socket = Socket::new(bytes(), bytes());
        // Nobody runs the guest any more once it has what it waited for.
        socket.set_ack_delay(None);
        let far = (smoltcp::wire::IpAddress::from(to.ip()), to.port());
        socket
            .connect(self.interface.context(), far, from)
            .expect("the guest can connect");
        self.sockets.add(socket)
    }

    /// Waits for one connection.
    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        self.listen_at(port.into())
    }

    /// Waits for one connection to an address.
    pub(crate) fn listen_at(&mut self, at: IpListenEndpoint) -> SocketHandle {
        let bytes = || SocketBuffer::new(vec![0; 300_000]);
        let mut socket = Socket::new(bytes(), bytes());
        socket.set_ack_delay(None);
        socket.listen(at).expect("the guest can listen");
        self.sockets.add(socket)
    }

    /// Waits for datagrams.
    pub(crate) fn receive(&mut self, port: u16) -> SocketHandle {
        self.receive_at(port.into())
    }

    /// Waits for datagrams to an address.
    pub(crate) fn receive_at(&mut self, at: IpListenEndpoint) -> SocketHandle {
        let packets =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 100_000]);
        let mut socket = udp::Socket::new(packets(), packets());
        socket.bind(at).expect("the guest can bind");
        self.sockets.add(socket)
    }

    /// Runs the guest until its connection says so.
    pub(crate) fn until<T>(
        &mut self,
        handle: SocketHandle,
        ready: impl FnMut(&mut Socket<'static>) -> Option<T>,
    ) -> T {
        self.until_socket(handle, ready)
    }

    /// As [`until`](Self::until), for any socket.
    pub(crate) fn until_socket<S: AnySocket<'static>, T>(
        &mut self,
        handle: SocketHandle,
        mut ready: impl FnMut(&mut S) -> Option<T>,
    ) -> T {
        let end = Clock::now() + PATIENCE;
        loop {
            self.interface
                .poll(Instant::now(), &mut self.card, &mut self.sockets);
            if let Some(result) = ready(self.sockets.get_mut(handle)) {
                self.interface
                    .poll(Instant::now(), &mut self.card, &mut self.sockets);
                return result;
            }
            assert!(Clock::now() < end, "the guest waited too long");
            self.card.fill();
        }
    }
}

impl Card {
    fn fill(&mut self) {
        let mut buffer = [0; 65_536];
        match self.stream.read(&mut buffer) {
            Ok(length) => self.input.extend_from_slice(&buffer[..length]),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                "{error}"
            ),
        }
    }
}

struct Frame(Vec<u8>);

struct Sender<'a>(&'a mut UnixStream, Option<usize>);

impl Device for Card {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Sender<'_>)> {
        let (length, rest) = self.input.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let frame = rest.get(..length)?.to_vec();
        self.input.drain(..4 + length);
        Some((Frame(frame), Sender(&mut self.stream, self.pieces)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.stream, self.pieces))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        match self.1 {
            Some(size) if frame[12..14] == [8, 0] => {
                for piece in pieces(&frame, size) {
                    send(self.0, &piece);
                }
            }
            _ => send(self.0, &frame),
        }
        result
    }
}

fn send(stream: &mut UnixStream, frame: &[u8]) {
    let length = (frame.len() as u32).to_be_bytes();
    stream
        .write_all(&[&length, frame].concat())
        .expect("the gateway takes the frame");
}

/// Cuts a frame with an IPv4 packet to pieces.
pub(crate) fn pieces(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (headers, payload) = frame.split_at(14 + 20);
    let count = payload.len().div_ceil(size);
    let piece = |(index, payload): (usize, &[u8])| {
        let mut piece = [headers, payload].concat();
        let length = (piece.len() - 14) as u16;
        let mut packet = Ipv4Packet::new_unchecked(&mut piece[14..]);
        packet.set_total_len(length);
        packet.set_dont_frag(false);
        packet.set_more_frags(index + 1 < count);
        packet.set_frag_offset((index * size) as u16);
        packet.fill_checksum();
        piece
    };
    payload.chunks(size).enumerate().map(piece).collect()
}
