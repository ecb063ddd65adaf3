//! A guest, a bad link, the gateway and a world behind it, in virtual time.
//!
//! The guest is another smoltcp stack, on Ethernet and with address resolution,
//! so that the gateway meets a real peer. Everything random comes from one seed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::{Action, Config, ConnectError, Event, FlowId, Gateway, Handling};

pub(super) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A small generator (xorshift64*): good enough to lose packets with.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// What the link does to frames, in percent and milliseconds.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) delayed_up_to: u64,
}

/// Frames under way, by the time of their arrival.
#[derive(Default)]
struct Link {
    frames: BTreeMap<(Duration, u64), Vec<u8>>,
    count: u64,
}

impl Link {
    fn send(&mut self, now: Duration, frame: &[u8], faults: &Faults, dice: &mut Dice) {
        if dice.below(100) < faults.lost {
            return;
        }
        let copies = 1 + u64::from(dice.below(100) < faults.doubled);
        for _ in 0..copies {
            let delay = dice.below(faults.delayed_up_to + 1);
            self.count += 1;
            let key = (now + Duration::from_millis(delay), self.count);
            self.frames.insert(key, frame.to_vec());
        }
    }

    fn arrive(&mut self, now: Duration) -> Option<Vec<u8>> {
        let entry = self.frames.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    fn next(&self) -> Option<Duration> {
        self.frames.first_key_value().map(|((at, _), _)| *at)
    }
}

/// How an upstream connection behaves.
#[derive(Clone, Debug)]
pub(super) enum Behaviour {
    /// Sends back what comes.
    Echo,
    /// Sends this, and then ends its half.
    Serve(Vec<u8>),
    /// Takes nothing.
    Stall,
    /// Opens, and cuts the connection off when the first bytes come.
    CutOff,
    /// Does not open.
    Fail(ConnectError),
}

pub(super) struct Upstream {
    pub(super) to: SocketAddr,
    behaviour: Behaviour,
    pub(super) received: Vec<u8>,
    queue: VecDeque<u8>,
    pub(super) shut: bool,
    pub(super) closed: Option<bool>,
    finished: bool,
}

impl Upstream {
    fn new(to: SocketAddr, behaviour: Behaviour) -> Self {
        let queue = match &behaviour {
            Behaviour::Serve(bytes) => bytes.iter().copied().collect(),
            _ => VecDeque::new(),
        };
        Self {
            to,
            behaviour,
            received: Vec::new(),
            queue,
            shut: false,
            closed: None,
            finished: false,
        }
    }
}

/// The guest's network card.
#[derive(Default)]
struct Card {
    mtu: usize,
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

pub(super) struct Sim {
    pub(super) now: Duration,
    pub(super) gateway: Gateway,
    pub(super) faults: Faults,
    pub(super) upstreams: HashMap<FlowId, Upstream>,
    pub(super) datagrams: Vec<(FlowId, SocketAddr, Vec<u8>)>,
    /// How each of them was to be sent.
    pub(super) handlings: Vec<Handling>,
    /// Echo requests for the driver.
    pub(super) intercepted: Vec<crate::gateway::Intercepted>,
    pub(super) echoes: Vec<Action>,
    pub(super) events: Vec<Event>,
    /// Frames to the guest that its stack also got.
    pub(super) seen: Vec<Vec<u8>>,
    behaviours: HashMap<u16, Behaviour>,
    dice: Dice,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    up: Link,
    down: Link,
    ready: BTreeSet<FlowId>,
}

impl Sim {
    pub(super) fn new(config: Config, seed: u64) -> Self {
        let mut card = Card {
            mtu: usize::from(config.mtu) + 14,
            ..Card::default()
        };
        let mac = EthernetAddress(GUEST_MAC);
        let mut own = InterfaceConfig::new(mac.into());
        own.random_seed = seed;
        let mut interface = Interface::new(own, &mut card, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(config.guest_v4.into(), 24)).unwrap();
            list.push(IpCidr::new(config.guest_v6.into(), 64)).unwrap();
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(config.gateway_v4).unwrap();
        routes.add_default_ipv6_route(config.gateway_v6).unwrap();
        Self {
            now: Duration::ZERO,
            gateway: Gateway::new(config),
            faults: Faults::default(),
            upstreams: HashMap::new(),
            datagrams: Vec::new(),
            handlings: Vec::new(),
            intercepted: Vec::new(),
            echoes: Vec::new(),
            events: Vec::new(),
            seen: Vec::new(),
            behaviours: HashMap::new(),
            dice: Dice::new(seed),
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            up: Link::default(),
            down: Link::default(),
            ready: BTreeSet::new(),
        }
    }

    /// Leaves the guest with IPv4 alone.
    pub(super) fn forget_ipv6(&mut self) {
        self.interface
            .update_ip_addrs(|list| list.retain(|address| matches!(address, IpCidr::Ipv4(_))));
    }

    /// Says how upstream connections to a port behave; others refuse.
    pub(super) fn serve(&mut self, port: u16, behaviour: Behaviour) {
        self.behaviours.insert(port, behaviour);
    }

    /// Opens a connection of the guest.
    pub(super) fn connect(&mut self, to: &str, from: u16) -> SocketHandle {
        let to: SocketAddr = to.parse().unwrap();
        let bytes = || SocketBuffer::new(vec![0; 100_000]);
        let mut socket = Socket::new(bytes(), bytes());
        socket.set_nagle_enabled(false);
        let far = (smoltcp::wire::IpAddress::from(to.ip()), to.port());
        socket
            .connect(self.interface.context(), far, from)
            .expect("the guest can connect");
        self.sockets.add(socket)
    }

    /// Lets the guest wait for one connection.
    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let bytes = || SocketBuffer::new(vec![0; 100_000]);
        let mut socket = Socket::new(bytes(), bytes());
        socket.listen(port).expect("the guest can listen");
        self.sockets.add(socket)
    }

    /// Lets a client come to a published port; what it does is what an upstream does.
    pub(super) fn client(&mut self, peer: &str, port: u16, behaviour: Behaviour) -> Option<FlowId> {
        let to: SocketAddr = peer.parse().unwrap();
        let flow = self.gateway.accept(self.now, to, port)?;
        self.upstreams.insert(flow, Upstream::new(to, behaviour));
        self.attend();
        Some(flow)
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Puts a frame into the gateway as if the guest had sent it.
    pub(super) fn inject(&mut self, frame: &[u8]) {
        self.gateway.handle_frame(self.now, frame);
        self.attend();
    }

    /// Lets everything happen that happens without the guest's program, up to a
    /// moment, or until nothing will happen any more.
    pub(super) fn run_until(&mut self, end: Duration) {
        loop {
            while self.step() {}
            let guest = self
                .interface
                .poll_at(
                    Instant::from_micros(self.now.as_micros() as i64),
                    &self.sockets,
                )
                .map(|at| Duration::from_micros(at.total_micros().max(0) as u64));
            let gateway = self.gateway.next_timeout();
            let next = [guest, gateway, self.up.next(), self.down.next()];
            match next.into_iter().flatten().min() {
                Some(at) if at <= end => self.now = at.max(self.now + Duration::from_micros(1)),
                _ => break,
            }
        }
        self.now = self.now.max(end);
    }

    /// Lets a second pass.
    pub(super) fn run(&mut self) {
        self.run_until(self.now + Duration::from_secs(1));
    }

    /// Runs with the guest sending `data` and closing its half, until the far end
    /// has ended its own. Returns what the guest got.
    pub(super) fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let (mut sent, mut got) = (0, Vec::new());
        let limit = self.now + Duration::from_secs(3600);
        let mut closed = false;
        while self.now < limit {
            let tick = 1 + self.dice.below(20);
            let socket = self.socket(handle);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            if sent == data.len() && socket.may_send() && !closed {
                closed = true;
                socket.close();
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        got.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            if closed && !socket.may_recv() {
                break;
            }
            if !socket.is_active() && !socket.may_recv() {
                break;
            }
            self.run_until(self.now + Duration::from_millis(tick));
        }
        got
    }

    /// Does what can be done now; false when that is nothing.
    fn step(&mut self) -> bool {
        let at = Instant::from_micros(self.now.as_micros() as i64);
        self.interface.poll(at, &mut self.card, &mut self.sockets);
        let mut busy = false;
        while let Some(frame) = self.card.sent.pop_front() {
            self.up.send(self.now, &frame, &self.faults, &mut self.dice);
            busy = true;
        }
        while let Some(frame) = self.up.arrive(self.now) {
            self.gateway.handle_frame(self.now, &frame);
            self.attend();
            busy = true;
        }
        self.gateway.handle_timeout(self.now);
        self.attend();
        while let Some(frame) = self.down.arrive(self.now) {
            self.card.received.push_back(frame);
            busy = true;
        }
        busy
    }

    /// Drives the gateway as a shell would.
    fn attend(&mut self) {
        loop {
            while let Some(action) = self.gateway.poll_action() {
                self.act(action);
            }
            for id in std::mem::take(&mut self.ready) {
                self.pump(id);
            }
            let mut frame = Vec::new();
            let mut quiet = true;
            while self.gateway.poll_frame(self.now, &mut frame) {
                self.seen.push(frame.clone());
                self.down
                    .send(self.now, &frame, &self.faults, &mut self.dice);
                quiet = false;
            }
            while let Some(event) = self.gateway.poll_event() {
                self.events.push(event);
            }
            match self.gateway.poll_action() {
                Some(action) => self.act(action),
                None if quiet => break,
                None => {}
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { flow, to } => {
                let refuse = Behaviour::Fail(ConnectError::Refused);
                let behaviour = self.behaviours.get(&to.port()).cloned().unwrap_or(refuse);
                if let Behaviour::Fail(error) = behaviour {
                    return self.gateway.connect_failed(self.now, flow, error);
                }
                self.upstreams.insert(flow, Upstream::new(to, behaviour));
                self.gateway.connected(self.now, flow);
            }
            Action::Readable(flow) | Action::Writable(flow) => {
                self.ready.insert(flow);
            }
            Action::Shutdown(flow) => {
                self.upstreams.get_mut(&flow).unwrap().shut = true;
                self.ready.insert(flow);
            }
            Action::Close { flow, reset } => {
                // A flow that never opened has no upstream.
                if let Some(upstream) = self.upstreams.get_mut(&flow) {
                    assert_eq!(upstream.closed.replace(reset), None, "closed twice");
                }
            }
            Action::Send {
                flow,
                to,
                handling,
                datagrams,
            } => {
                for payload in datagrams.iter() {
                    self.handlings.push(handling);
                    self.datagrams.push((flow, to, payload.to_vec()));
                }
            }
            action @ Action::Echo { .. } => self.echoes.push(action),
            Action::Intercept(own) => self.intercepted.push(*own),
            Action::Forget(_) => {}
        }
    }

    /// Moves bytes between the gateway and one upstream.
    fn pump(&mut self, id: FlowId) {
        let upstream = self.upstreams.get_mut(&id).unwrap();
        if !matches!(upstream.behaviour, Behaviour::Stall) {
            while self.gateway.read(id, |bytes| {
                upstream.received.extend_from_slice(bytes);
                if matches!(upstream.behaviour, Behaviour::Echo) {
                    upstream.queue.extend(bytes);
                }
                bytes.len()
            }) > 0
            {}
        }
        if matches!(upstream.behaviour, Behaviour::CutOff) && !upstream.received.is_empty() {
            return self.gateway.reset(self.now, id);
        }
        while self.gateway.write(id, |room| {
            let (bytes, _) = upstream.queue.as_slices();
            let count = bytes.len().min(room.len());
            room[..count].copy_from_slice(&bytes[..count]);
            upstream.queue.drain(..count);
            count
        }) > 0
        {}
        let done = match upstream.behaviour {
            Behaviour::Serve(_) => true,
            _ => upstream.shut,
        };
        if done && upstream.queue.is_empty() && !upstream.finished {
            upstream.finished = true;
            self.gateway.finish(id);
        }
    }

    /// The only upstream there is.
    pub(super) fn upstream(&self) -> &Upstream {
        assert_eq!(self.upstreams.len(), 1);
        self.upstreams.values().next().unwrap()
    }

    /// What all upstreams got.
    pub(super) fn upstream_bytes(&self) -> usize {
        let received = |upstream: &Upstream| upstream.received.len();
        self.upstreams.values().map(received).sum()
    }

    pub(super) fn guest_address(&self) -> IpAddr {
        self.interface.ipv4_addr().unwrap().into()
    }
}

impl Device for Card {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Incoming(frame), Outgoing(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

struct Incoming(Vec<u8>);

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}
