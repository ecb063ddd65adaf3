//! The loop: one thread, one epoll set, one turn per wake-up.
//!
//! A turn marks what became ready, takes frames of the guest up to a budget, does
//! what the gateway says, lets each flow that can move bytes do so up to a budget,
//! and writes frames to the guest. Readiness is edge-triggered and remembered, so
//! a turn's work depends on what happened and not on how many flows there are.
//!
//! Nothing waits for anything but the system: a full link is not asked to take
//! more frames, so flows fill up, so their sockets are not read, so their peers
//! stop. The other way round a slow peer fills its own flow's buffer only, and
//! its guest's window closes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::datagram::Datagram;
use super::dial::{Dial, connect_error};
use super::failures;
use super::intercept::Interceptor;
use super::link::{MAX_FRAME, Port, Progress};
use super::ping::Ping;
use super::published::{Client, Fallback, Offers};
use super::stream::{Stream, Turn};
use super::{Command, Feed};
use crate::gateway::{Action, Datagrams, FlowId, FlowMap, Gateway, Handling, Intercepted};
use crate::journal::Entry;

/// Events taken from the system at once.
const MAX_READY: usize = 256;

/// Turns of flows before frames are taken again.
const MAX_TURNS: usize = 256;

/// Bytes that flows may move towards the guest before frames are made of them: of
/// more the first would have left the processor's cache by then.
const FLUSH: usize = 128 * 1024;

/// Flows whose sockets get as much room for what the guest has not taken yet as the
/// system thinks fit: megabytes each, which a thousand of them do not get without the
/// system being short of it, and then it drops what comes.
const MAX_TUNED: usize = 64;

/// The room, in bytes, that the system lets the other sockets have.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// Tokens of what is not a flow. Flows have their own numbers, which count up
/// from 1.
const LINK: Token = Token(usize::MAX);
pub(super) const WAKE: Token = Token(usize::MAX - 1);

/// A flow's socket.
enum Upstream {
    Stream(Stream),
    Datagram(Datagram),
    Ping(Ping),
}

/// What the driver reaches beyond the link, by means of the embedding program.
pub(super) struct Outside {
    pub(super) dialer: Box<dyn Dial>,
    pub(super) fallback: Option<Box<dyn Fallback>>,
    pub(super) interceptor: Option<Interceptor>,
}

pub(super) struct Driver {
    gateway: Gateway,
    port: Port,
    outside: Outside,
    offers: Offers,
    feed: Feed,
    commands: mpsc::Receiver<Command>,
    poll: Poll,
    started: Instant,
    flows: FlowMap<Upstream>,
    /// Flows that may move bytes, each at most once.
    work: VecDeque<FlowId>,
    /// For one frame, and for one datagram.
    frame: Vec<u8>,
    datagram: Vec<u8>,
}

/// Why the loop is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Somebody asked for it.
    Asked,
    /// The guest's end of the link is gone.
    LinkEnded,
}

impl Driver {
    pub(super) fn new(
        gateway: Gateway,
        port: Port,
        outside: Outside,
        feed: Feed,
        commands: mpsc::Receiver<Command>,
        poll: Poll,
    ) -> io::Result<Self> {
        let driver = Self {
            gateway,
            port,
            outside,
            offers: Offers::default(),
            feed,
            commands,
            poll,
            started: Instant::now(),
            flows: FlowMap::default(),
            work: VecDeque::new(),
            frame: Vec::new(),
            datagram: vec![0; MAX_FRAME],
        };
        driver.register(&driver.port, LINK)?;
        Ok(driver)
    }

    /// Runs until it is asked to stop or the link ends.
    pub(super) fn run(mut self) {
        let mut ready = mio::Events::with_capacity(MAX_READY);
        let mut busy = true;
        loop {
            let timeout = if busy {
                Some(Duration::ZERO)
            } else {
                self.idle()
            };
            match self.poll.poll(&mut ready, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Only a mistake of ours can make this fail.
                Err(_) => return,
            }
            for event in &ready {
                self.mark(event);
            }
            match self.turn() {
                Ok(more) => busy = more,
                Err(Stop::Asked | Stop::LinkEnded) => return self.finish(),
            }
        }
    }

    /// How long nothing has to be done. Without a deadline, until an event.
    fn idle(&self) -> Option<Duration> {
        let deadline = self.gateway.next_timeout()?;
        Some(deadline.saturating_sub(self.started.elapsed()))
    }

    fn register(&self, fd: &impl AsFd, token: Token) -> io::Result<()> {
        register(&self.poll, fd, token)
    }

    /// Notes what became ready.
    fn mark(&mut self, event: &mio::event::Event) {
        let error = event.is_error();
        match event.token() {
            LINK => {
                self.port.readable |= event.is_readable() || event.is_read_closed() || error;
                self.port.writable |= event.is_writable();
            }
            WAKE => {}
            token if Offers::by_token(token).is_some() => {
                if let Some(id) = Offers::by_token(token) {
                    self.offers.mark(id);
                }
            }
            Token(number) => {
                let id = FlowId::from_number(number as u64);
                match self.flows.get_mut(&id) {
                    Some(Upstream::Stream(stream)) => {
                        stream.peer_ended |= event.is_read_closed() || error;
                        stream.readable |= event.is_readable() || stream.peer_ended;
                        stream.writable |= event.is_writable() || error;
                    }
                    Some(Upstream::Datagram(datagram)) => {
                        datagram.readable = true;
                        datagram.failed |= error;
                    }
                    Some(Upstream::Ping(_)) => {}
                    None => return,
                }
                self.wants_turn(id);
            }
        }
    }

    /// Puts a flow into the list of work.
    fn wants_turn(&mut self, id: FlowId) {
        let waiting = match self.flows.get_mut(&id) {
            Some(Upstream::Stream(stream)) => &mut stream.waiting,
            Some(Upstream::Datagram(datagram)) => &mut datagram.waiting,
            Some(Upstream::Ping(ping)) => &mut ping.waiting,
            None => return,
        };
        if !std::mem::replace(waiting, true) {
            self.work.push_back(id);
        }
    }

    /// Does what can be done now; true when there is more of it.
    fn turn(&mut self) -> Result<bool, Stop> {
        let now = self.started.elapsed();
        self.obey()?;
        self.receive(now)?;
        self.gateway.handle_timeout(now);
        self.admit(now);
        self.act(now);
        // One turn each: what they wrote is sent before they write more.
        let mut moved = 0;
        for _ in 0..self.work.len().min(MAX_TURNS) {
            let Some(id) = self.work.pop_front() else {
                break;
            };
            moved += self.serve(now, id);
            if moved >= FLUSH {
                moved = 0;
                self.send_frames(now)?;
                // A guest answers what it gets. Nobody else takes that meanwhile, a device
                // drops what it has no room for, and what came is announced later only.
                self.port.readable = true;
                self.receive(now)?;
                self.act(now);
            }
        }
        self.act(now);
        self.send_frames(now)?;
        self.act(now);
        self.report();
        let frames_left = self.port.writable && !self.port.is_empty();
        let waiting = !self.work.is_empty() || self.offers.has_work();
        let more = self.port.readable || frames_left || waiting;
        if !more {
            self.feed.rest();
        }
        Ok(more)
    }

    /// Takes frames of the guest, up to a budget.
    fn receive(&mut self, now: Duration) -> Result<(), Stop> {
        if self.port.readable {
            let (port, gateway, feed) = (&mut self.port, &mut self.gateway, &mut self.feed);
            let progress = port.receive(|frame| {
                feed.note(frame, true);
                gateway.handle_frame(now, frame);
            });
            if progress == Progress::Ended {
                return Err(Stop::LinkEnded);
            }
        }
        Ok(())
    }

    /// Does what the handle asked for.
    fn obey(&mut self) -> Result<(), Stop> {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    return Err(Stop::Asked);
                }
                Err(mpsc::TryRecvError::Empty) => return Ok(()),
                Ok(Command::Publish(offers)) => {
                    for offer in offers {
                        // Out of memory: the port is not offered, and closed.
                        if self.register(&offer, Offers::token(offer.id)).is_ok() {
                            self.offers.insert(offer);
                        }
                    }
                }
                Ok(Command::Unpublish(ids, done)) => {
                    for id in ids {
                        self.offers.remove(id);
                    }
                    // Who asked may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    /// Takes clients of published ports.
    fn admit(&mut self, now: Duration) {
        let clients = self.offers.turn(now, &mut self.gateway, &mut self.datagram);
        for client in clients {
            let Client { flow, socket, port } = client;
            if self.register(&socket, token(flow)).is_err() {
                self.gateway.reset(now, flow);
                continue;
            }
            let stream = Upstream::Stream(Stream::accepted(socket, port));
            self.flows.insert(flow, stream);
        }
    }

    /// Closes a stream, or hands over a client whom the guest refused.
    fn close(&mut self, stream: Stream, reset: bool) {
        let refused = stream.unanswered.filter(|_| reset);
        match (refused, &mut self.outside.fallback) {
            (Some(port), Some(fallback)) => {
                let client = stream.into_descriptor();
                let fd = client.as_raw_fd();
                // Its events would come here as long as it is open anywhere.
                let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
                fallback.take(client, port);
            }
            _ => stream.close(reset),
        }
    }

    /// Writes frames to the guest until it takes no more or there are none.
    fn send_frames(&mut self, now: Duration) -> Result<(), Stop> {
        loop {
            let mut more = true;
            while more && self.port.has_room() {
                more = self.gateway.poll_frame(now, &mut self.frame);
                if more {
                    self.feed.note(&self.frame, false);
                    self.port.push(&mut self.frame);
                }
            }
            if self.port.flush() == Progress::Ended {
                return Err(Stop::LinkEnded);
            }
            if !more || !self.port.has_room() {
                return Ok(());
            }
        }
    }

    /// Does what the gateway says.
    fn act(&mut self, now: Duration) {
        while let Some(action) = self.gateway.poll_action() {
            match action {
                Action::Connect { flow, to } => self.connect(now, flow, to),
                Action::Intercept(own) => self.intercept(now, *own),
                Action::Readable(flow) => self.with_stream(flow, |s| s.guest_bytes = true),
                Action::Writable(flow) => self.with_stream(flow, Stream::has_room),
                Action::Shutdown(flow) => self.with_stream(flow, Stream::shutdown),
                Action::Close { flow, reset } => {
                    if let Some(Upstream::Stream(stream)) = self.flows.remove(&flow) {
                        self.close(stream, reset);
                    }
                }
                Action::Send {
                    flow,
                    to,
                    handling,
                    datagrams,
                } => self.send(now, (flow, to), handling, &datagrams),
                Action::Echo {
                    flow,
                    to,
                    handling,
                    sequence,
                    payload,
                } => {
                    if self.open_ping(now, flow, to, sequence)
                        && let Some(Upstream::Ping(ping)) = self.flows.get_mut(&flow)
                    {
                        ping.send(handling, sequence, &payload);
                    }
                }
                Action::Forget(flow) => {
                    self.flows.remove(&flow);
                    self.offers.forget(flow);
                }
            }
        }
    }

    /// Puts whoever reads requests between a flow and its connection.
    fn intercept(&mut self, now: Duration, own: Intercepted) {
        let id = own.flow;
        let Some(Upstream::Stream(stream)) = self.flows.get_mut(&id) else {
            return;
        };
        let swapped = match &mut self.outside.interceptor {
            Some(interceptor) => UnixStream::pair().and_then(|(ours, theirs)| {
                ours.set_nonblocking(true)?;
                theirs.set_nonblocking(true)?;
                let server = stream.replace(ours.into());
                let fd = server.as_raw_fd();
                self.poll.registry().deregister(&mut SourceFd(&fd))?;
                interceptor.take(own, theirs, server)?;
                let fd = stream.descriptor();
                register(&self.poll, &fd, token(id))
            }),
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        if swapped.is_err() {
            self.flows.remove(&id);
            self.gateway.reset(now, id);
        }
    }

    fn with_stream(&mut self, id: FlowId, change: impl FnOnce(&mut Stream)) {
        if let Some(Upstream::Stream(stream)) = self.flows.get_mut(&id) {
            change(stream);
            self.wants_turn(id);
        }
    }

    fn connect(&mut self, now: Duration, id: FlowId, to: std::net::SocketAddr) {
        let opened = self
            .outside
            .dialer
            .stream(id, to)
            .and_then(|fd| self.register(&fd, token(id)).map(|()| fd));
        match opened {
            Ok(fd) => {
                if self.flows.len() >= MAX_TUNED {
                    // Sockets of other kinds, or none of it: as it was.
                    let _ = sockopt::set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER);
                }
                let stream = Upstream::Stream(Stream::new(fd));
                self.flows.insert(id, stream);
            }
            Err(error) => {
                let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                self.gateway.connect_failed(now, id, connect_error(error));
            }
        }
    }

    fn send(
        &mut self,
        now: Duration,
        (id, to): (FlowId, std::net::SocketAddr),
        handling: Handling,
        datagrams: &Datagrams,
    ) {
        if self.offers.send(id, datagrams) {
            return;
        }
        if !self.flows.contains_key(&id) {
            let opened = self
                .outside
                .dialer
                .datagram(id, to)
                .and_then(|fd| self.register(&fd, token(id)).map(|()| fd));
            match opened {
                Ok(fd) => {
                    let datagram = Upstream::Datagram(Datagram::new(fd));
                    self.flows.insert(id, datagram);
                }
                Err(error) => {
                    for datagram in datagrams.iter() {
                        self.failed(now, id, &error, datagram);
                    }
                    return;
                }
            }
        }
        if let Some(Upstream::Datagram(datagram)) = self.flows.get_mut(&id)
            && datagram.send(handling, datagrams).is_err()
        {
            // What it was is in the socket's queue.
            datagram.failed = true;
            self.wants_turn(id);
            self.gateway.datagram_failed(now, id);
        }
    }

    /// Opens the socket of an echo flow, if it is not open; false if it cannot be.
    fn open_ping(
        &mut self,
        now: Duration,
        id: FlowId,
        to: std::net::IpAddr,
        sequence: u16,
    ) -> bool {
        if self.flows.contains_key(&id) {
            return true;
        }
        let opened = self
            .outside
            .dialer
            .echo(id, to)
            .and_then(|fd| self.register(&fd, token(id)).map(|()| fd));
        match opened {
            Ok(fd) => {
                let ping = Upstream::Ping(Ping::new(fd, to));
                self.flows.insert(id, ping);
                true
            }
            Err(error) => {
                self.failed(now, id, &error, &sequence.to_be_bytes());
                if error.kind() == io::ErrorKind::PermissionDenied {
                    self.gateway.echo_forbidden(now, id);
                }
                false
            }
        }
    }

    /// A datagram could not be sent at all.
    fn failed(&mut self, now: Duration, id: FlowId, error: &io::Error, quoted: &[u8]) {
        let error = Errno::from_io_error(error).unwrap_or(Errno::IO);
        let error = failures::of(error);
        self.gateway.path_failed(now, id, error, None, quoted);
    }

    /// Gives a flow its turn. Returns how many bytes a stream moved to the guest.
    fn serve(&mut self, now: Duration, id: FlowId) -> usize {
        let mut moved = 0;
        let turn = match self.flows.get_mut(&id) {
            Some(Upstream::Stream(stream)) => {
                stream.waiting = false;
                let turn = stream.turn(now, id, &mut self.gateway);
                moved = stream.moved;
                turn
            }
            Some(Upstream::Datagram(datagram)) => {
                datagram.waiting = false;
                let buffer = &mut self.datagram;
                datagram.turn(now, id, &mut self.gateway, buffer)
            }
            Some(Upstream::Ping(ping)) => {
                ping.waiting = false;
                let buffer = &mut self.datagram;
                ping.turn(now, id, &mut self.gateway, buffer)
            }
            None => return 0,
        };
        match turn {
            Turn::Idle => {}
            Turn::Again => self.wants_turn(id),
            Turn::Gone => {
                self.flows.remove(&id);
            }
        }
        moved
    }

    /// Tells of the flows that are open, and of all that was not told yet: it is no more
    /// than there are flows. Their sockets are closed with the driver.
    fn finish(&mut self) {
        let now = self.started.elapsed();
        loop {
            while let Some(event) = self.gateway.poll_event() {
                let at = SystemTime::now();
                self.feed.push(Entry { at, event });
            }
            if !self.gateway.shut_down(now) {
                return;
            }
        }
    }

    /// Hands on the gateway's events as far as somebody takes them.
    fn report(&mut self) {
        while self.feed.has_room() {
            let Some(event) = self.gateway.poll_event() else {
                return;
            };
            let at = SystemTime::now();
            self.feed.push(Entry { at, event });
        }
    }
}

fn register(poll: &Poll, fd: &impl AsFd, token: Token) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    let interest = Interest::READABLE | Interest::WRITABLE;
    poll.registry()
        .register(&mut SourceFd(&fd), token, interest)
}

fn token(id: FlowId) -> Token {
    Token(id.number() as usize)
}
