//! The creator's end of a running sandbox's socket: one task that owns the
//! agent protocol's state, and handles that talk to it.
//!
//! Output of a stream waits in its channel until the handle takes it, which
//! gives the guest new credit: a handle that nobody reads holds one window of
//! output, and stops nobody else.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream as StdStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use msb_guest_agent::endpoint::{HostEndpoint, HostEvent};
use msb_guest_agent::message::{Request, ResetCode, StreamCommand, StreamEvent};
use msb_guest_agent::wire::{Channel, Frame, FrameDecoder, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::control::{self, FromSupervisor, ToSupervisor};
use crate::error::Error;
use crate::event::LifeWatcher;
use crate::machine::{MachineAnswer, MachineRequest, Source};
use crate::metrics::HostMetrics;
use crate::network::{NetworkEvent, NetworkWatcher};
use crate::port::{PortAnswer, PortRequest, PublishedPort};
use crate::session::{About, Session, SessionAnswer, SessionId, SessionRequest};

/// How much is read from the socket at once.
const CHUNK: usize = 128 * 1024;

/// Why a sandbox ended whose supervisor did not say so.
pub(crate) const SUPERVISOR_KILLED: &str = "its supervisor was killed";

/// How a sandbox ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) reason: String,
    pub(crate) asked: bool,
}

/// What a stream's handle receives.
#[derive(Debug)]
pub(crate) enum Item {
    Data(Channel, Bytes),
    Event(StreamEvent),
    /// Output that was kept while nobody listened; it is not to be acknowledged.
    Kept(Channel, Bytes),
    /// Nothing more comes on the channel.
    Eof(Channel),
    /// The guest gave the stream up.
    Reset(ResetCode),
}

/// What the end of a stream that the guest gave up says of the sandbox.
pub(crate) fn given_up(code: ResetCode) -> &'static str {
    match code {
        ResetCode::ShuttingDown => "it is being stopped",
        ResetCode::Refused => "its guest has as much to do as it can",
        _ => "its guest gave this up",
    }
}

/// What handles ask of the task.
pub(crate) enum Ask {
    Open {
        request: Box<Request>,
        items: mpsc::UnboundedSender<Item>,
        reply: oneshot::Sender<Result<StreamId, Error>>,
    },
    /// Bytes for stdin; answered when the last of them is on its way.
    Send {
        stream: StreamId,
        data: Bytes,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Finish {
        stream: StreamId,
    },
    Consumed {
        stream: StreamId,
        channel: Channel,
        len: usize,
    },
    Command {
        stream: StreamId,
        command: StreamCommand,
    },
    Reset {
        stream: StreamId,
    },
    Supervisor(ToSupervisor),
    /// Something about published ports.
    Ports {
        request: PortRequest,
        reply: oneshot::Sender<PortAnswer>,
    },
    /// Something about the machine.
    Machine {
        request: MachineRequest,
        reply: oneshot::Sender<MachineAnswer>,
    },
    /// What the host sees of what the sandbox uses.
    Metrics {
        reply: oneshot::Sender<HostMetrics>,
    },
    /// Let the supervisor have a stream.
    Detach {
        stream: StreamId,
        about: About,
        reply: oneshot::Sender<SessionAnswer>,
    },
    /// Take a stream up that the supervisor has.
    Attach {
        id: SessionId,
        items: mpsc::UnboundedSender<Item>,
        reply: oneshot::Sender<Result<(StreamId, About), Error>>,
    },
    /// Which streams the supervisor has.
    Sessions {
        reply: oneshot::Sender<SessionAnswer>,
    },
    /// Somebody wants to know what the network does.
    WatchNetwork(NetworkWatcher),
    /// Somebody wants to know what becomes of the sandbox and its programs.
    WatchLife(LifeWatcher),
    /// Let go of the socket once all streams are over.
    Release {
        reply: oneshot::Sender<()>,
    },
    /// End the sandbox now.
    HangUp,
}

/// A handle of the task. The sandbox ends when the last one is dropped: its
/// socket closes.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    asks: mpsc::UnboundedSender<Ask>,
    end: watch::Receiver<Option<End>>,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

impl Link {
    /// Takes over a socket on which the supervisor has said that it is ready.
    pub(crate) fn start(socket: StdStream) -> Result<Self, Error> {
        let failed = |source| Error::Supervisor { source };
        Self::with(socket, HostEndpoint::new()).map_err(failed)
    }

    /// Takes over a socket at whose other end the agent is. Must be called in a runtime.
    pub(crate) fn with(socket: StdStream, endpoint: HostEndpoint) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(socket)?.into_split();
        let (asks, inbox) = mpsc::unbounded_channel();
        let (end_sender, end) = watch::channel(None);
        tokio::spawn(async move {
            let task = Task {
                endpoint,
                out: BytesMut::new(),
                hang_up: false,
                release: None,
                streams: HashMap::new(),
                watchers: Vec::new(),
                life_watchers: Vec::new(),
                askers: VecDeque::new(),
                machine_askers: VecDeque::new(),
                metrics_askers: VecDeque::new(),
                session_askers: VecDeque::new(),
            };
            let how = task.run(read, write, inbox).await;
            end_sender.send_replace(Some(how));
        });
        Ok(Self { asks, end })
    }

    /// Asks for something; when the sandbox has ended, nothing happens.
    pub(crate) fn ask(&self, ask: Ask) {
        let _ = self.asks.send(ask);
    }

    /// Opens a stream.
    pub(crate) async fn open(
        &self,
        request: Request,
    ) -> Result<(StreamId, mpsc::UnboundedReceiver<Item>), Error> {
        let (items, inbox) = mpsc::unbounded_channel();
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Open {
            request: Box::new(request),
            items,
            reply,
        });
        match answer.await {
            Ok(stream) => Ok((stream?, inbox)),
            Err(_) => Err(self.gone().await),
        }
    }

    /// Asks the supervisor something about published ports.
    pub(crate) async fn ports(&self, request: PortRequest) -> Result<Vec<PublishedPort>, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Ports { request, reply });
        match answer.await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(self.gone().await),
        }
    }

    /// Takes a stream up that the supervisor has.
    pub(crate) async fn attach(
        &self,
        id: SessionId,
    ) -> Result<(StreamId, About, mpsc::UnboundedReceiver<Item>), Error> {
        let (items, inbox) = mpsc::unbounded_channel();
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Attach { id, items, reply });
        match answer.await {
            Ok(attached) => attached.map(|(stream, about)| (stream, about, inbox)),
            Err(_) => Err(self.gone().await),
        }
    }

    /// Asks the supervisor to do something with the machine.
    pub(crate) async fn machine(&self, request: MachineRequest) -> Result<Option<Source>, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Machine { request, reply });
        match answer.await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(self.gone().await),
        }
    }

    /// Asks the supervisor what the host sees of what the sandbox uses.
    pub(crate) async fn host_metrics(&self) -> Result<HostMetrics, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Metrics { reply });
        match answer.await {
            Ok(metrics) => Ok(metrics),
            Err(_) => Err(self.gone().await),
        }
    }

    /// Lets go of the socket, for somebody else to talk on it, once all streams are over.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let (reply, released) = oneshot::channel();
        self.ask(Ask::Release { reply });
        match released.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.gone().await),
        }
    }

    /// Tells of the end, without being a handle.
    pub(crate) fn end(&self) -> watch::Receiver<Option<End>> {
        self.end.clone()
    }

    /// Waits until the sandbox has ended.
    pub(crate) async fn ended(&self) -> End {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone(),
            Err(_) => None,
        }
        .unwrap_or(End {
            reason: "its connection was given up".into(),
            asked: false,
        })
    }

    /// The error for whoever still wanted something.
    pub(crate) async fn gone(&self) -> Error {
        Error::gone(self.ended().await.reason)
    }
}

struct Stream {
    items: mpsc::UnboundedSender<Item>,
    /// Stdin that has no credit yet.
    waiting: Option<(Bytes, oneshot::Sender<Result<(), Error>>)>,
    finish: bool,
    /// What was read while the supervisor is asked to take the stream over: nothing is said
    /// on it meanwhile.
    leaving: Option<Vec<(Channel, usize)>>,
}

impl Stream {
    fn new(items: mpsc::UnboundedSender<Item>) -> Self {
        Self {
            items,
            waiting: None,
            finish: false,
            leaving: None,
        }
    }
}

/// Who asked about programs that nobody listens to.
enum SessionAsker {
    List(oneshot::Sender<SessionAnswer>),
    Detach(StreamId, oneshot::Sender<SessionAnswer>),
    Attach(StreamId, oneshot::Sender<Result<(StreamId, About), Error>>),
}

struct Task {
    endpoint: HostEndpoint,
    /// What is being written: whole frames of the endpoint and of the supervisor's,
    /// so that none gets into the middle of another.
    out: BytesMut,
    /// The sandbox is to end now: nothing more is written.
    hang_up: bool,
    /// Somebody else is to have the socket.
    release: Option<oneshot::Sender<()>>,
    streams: HashMap<StreamId, Stream>,
    watchers: Vec<NetworkWatcher>,
    life_watchers: Vec<LifeWatcher>,
    /// Who asked about ports: they are answered in this order.
    askers: VecDeque<oneshot::Sender<PortAnswer>>,
    /// Who asked about the machine, likewise.
    machine_askers: VecDeque<oneshot::Sender<MachineAnswer>>,
    /// Who asked for metrics, likewise.
    metrics_askers: VecDeque<oneshot::Sender<HostMetrics>>,
    /// Who asked about programs that nobody listens to, likewise.
    session_askers: VecDeque<SessionAsker>,
}

impl Task {
    async fn run(
        mut self,
        mut read: OwnedReadHalf,
        mut write: OwnedWriteHalf,
        mut inbox: mpsc::UnboundedReceiver<Ask>,
    ) -> End {
        let mut decoder = FrameDecoder::new();
        let mut frames = BytesMut::new();
        loop {
            decoder.buffer_mut().reserve(CHUNK);
            if self.hang_up {
                // Whatever is in the way of a message, the end of the connection is seen.
                self.hang_up = false;
                let _ = write.shutdown().await;
            }
            self.collect();
            if self.out.is_empty()
                && self.streams.is_empty()
                && let Some(reply) = self.release.take()
            {
                // Its end would be that of the whole socket otherwise.
                write.forget();
                let _ = reply.send(());
                return lost("its socket was handed over");
            }
            let writing = !self.out.is_empty();
            tokio::select! {
                count = read.read_buf(decoder.buffer_mut()) => {
                    if !matches!(count, Ok(1..)) {
                        return lost(SUPERVISOR_KILLED);
                    }
                    while let Some(frame) = match decoder.next_frame() {
                        Ok(frame) => frame,
                        Err(error) => return lost(&error.to_string()),
                    } {
                        if !frame.stream.is_control() {
                            frame.encode(&mut frames);
                            continue;
                        }
                        // What it says of a stream holds for what comes after.
                        if let Err(error) = self.hear(&mut frames) {
                            return lost(&format!("the guest broke the protocol: {error}"));
                        }
                        if let Some(end) = self.control(&frame) {
                            return end;
                        }
                    }
                    if let Err(error) = self.hear(&mut frames) {
                        return lost(&format!("the guest broke the protocol: {error}"));
                    }
                }
                written = write.write_buf(&mut self.out), if writing => {
                    if !matches!(written, Ok(1..)) {
                        // The reading side learns why.
                        self.out.clear();
                    }
                }
                ask = inbox.recv() => match ask {
                    Some(ask) => self.ask(ask),
                    None => return lost("its last handle was dropped"),
                }
            }
        }
    }

    /// Takes what the guest says.
    fn hear(&mut self, frames: &mut BytesMut) -> Result<(), msb_guest_agent::Error> {
        self.endpoint.handle_input(frames);
        frames.clear();
        self.events()
    }

    /// Takes what the supervisor says; its last word ends the sandbox.
    fn control(&mut self, frame: &Frame) -> Option<End> {
        match control::decode(frame)? {
            FromSupervisor::Ended { reason, asked } => return Some(End { reason, asked }),
            FromSupervisor::Network { line } => {
                if let Some(event) = NetworkEvent::parse(line) {
                    self.watchers.retain(|watcher| watcher.tell(event.clone()));
                }
            }
            FromSupervisor::Life(event) => {
                self.life_watchers
                    .retain(|watcher| watcher.tell(event.clone()));
            }
            FromSupervisor::Ports(answer) => {
                if let Some(asker) = self.askers.pop_front() {
                    // Whoever gave up asking does not want to know.
                    let _ = asker.send(answer);
                }
            }
            FromSupervisor::Machine(answer) => {
                if let Some(asker) = self.machine_askers.pop_front() {
                    let _ = asker.send(answer);
                }
            }
            FromSupervisor::Metrics(metrics) => {
                if let Some(asker) = self.metrics_askers.pop_front() {
                    let _ = asker.send(metrics);
                }
            }
            FromSupervisor::Sessions(answer) => self.session_answered(answer),
            FromSupervisor::Kept {
                stream,
                channel,
                data,
            } => {
                if let (Some(channel), Ok(data)) =
                    (Channel::from_wire(channel), BASE64.decode(data))
                {
                    self.pass(StreamId(stream), Item::Kept(channel, data.into()));
                }
            }
            _ => {}
        }
        None
    }

    fn session_answered(&mut self, answer: SessionAnswer) {
        match self.session_askers.pop_front() {
            Some(SessionAsker::List(reply)) => drop(reply.send(answer)),
            Some(SessionAsker::Detach(stream, reply)) => {
                if answer.is_ok() {
                    self.endpoint.hand_over(stream);
                    self.streams.remove(&stream);
                } else if let Some(state) = self.streams.get_mut(&stream) {
                    for (channel, len) in state.leaving.take().unwrap_or_default() {
                        self.endpoint.consumed(stream, channel, len);
                    }
                }
                let _ = reply.send(answer);
            }
            Some(SessionAsker::Attach(stream, reply)) => {
                let attached = match answer {
                    Ok(Session::Attached {
                        about,
                        credit,
                        input,
                    }) => {
                        self.endpoint.resume_input(stream, credit, input);
                        Ok((stream, about))
                    }
                    other => {
                        self.endpoint.hand_over(stream);
                        self.streams.remove(&stream);
                        Err(match other {
                            Err(failure) => failure.into(),
                            Ok(_) => Error::gone("its supervisor said something else"),
                        })
                    }
                };
                // Whoever gave up asking does not want it: its handle's end would say so.
                if reply.send(attached).is_err() {
                    self.ask(Ask::Reset { stream });
                }
            }
            None => {}
        }
    }

    fn events(&mut self) -> Result<(), msb_guest_agent::Error> {
        while let Some(event) = self.endpoint.poll_event()? {
            match event {
                HostEvent::Data {
                    stream,
                    channel,
                    data,
                } => self.pass(stream, Item::Data(channel, data)),
                HostEvent::Stream { stream, event } => self.pass(stream, Item::Event(event)),
                HostEvent::Closed { stream, reset } => {
                    if let Some(code) = reset {
                        self.pass(stream, Item::Reset(code));
                    }
                    self.streams.remove(&stream);
                }
                HostEvent::Writable { stream } => self.feed(stream),
                HostEvent::Eof { stream, channel } => self.pass(stream, Item::Eof(channel)),
                // Control is the supervisor's.
                HostEvent::Control(_) => {}
            }
        }
        Ok(())
    }

    fn pass(&mut self, id: StreamId, item: Item) {
        if let Some(stream) = self.streams.get(&id) {
            // A handle that is gone has asked for a reset.
            let _ = stream.items.send(item);
        }
    }

    fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Open {
                request,
                items,
                reply,
            } => {
                let opened = self.endpoint.open(&request);
                if let Ok(id) = opened {
                    self.streams.insert(id, Stream::new(items));
                }
                let _ = reply.send(opened.map_err(|error| Error::gone(error.to_string())));
            }
            Ask::Send {
                stream,
                data,
                reply,
            } => match self.streams.get_mut(&stream) {
                Some(state) => {
                    state.waiting = Some((data, reply));
                    self.feed(stream);
                }
                None => drop(reply.send(Err(Error::gone("the program has ended")))),
            },
            Ask::Finish { stream } => {
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.finish = true;
                    self.feed(stream);
                }
            }
            Ask::Consumed {
                stream,
                channel,
                len,
            } => match self.streams.get_mut(&stream) {
                Some(Stream {
                    leaving: Some(read),
                    ..
                }) => read.push((channel, len)),
                _ => self.endpoint.consumed(stream, channel, len),
            },
            // A stream that is over needs no command.
            Ask::Command { stream, command } => {
                if !self.is_leaving(stream) {
                    drop(self.endpoint.command(stream, &command));
                }
            }
            Ask::Reset { stream } => {
                if self.streams.remove(&stream).is_some() {
                    self.endpoint.reset(stream, ResetCode::Cancelled);
                }
            }
            Ask::Release { reply } => self.release = Some(reply),
            Ask::HangUp => self.hang_up = true,
            Ask::Supervisor(message) => self.tell(&message),
            Ask::Ports { request, reply } => {
                self.askers.push_back(reply);
                self.tell(&ToSupervisor::Ports(request));
            }
            Ask::Machine { request, reply } => {
                self.machine_askers.push_back(reply);
                self.tell(&ToSupervisor::Machine(request));
            }
            Ask::Metrics { reply } => {
                self.metrics_askers.push_back(reply);
                self.tell(&ToSupervisor::Metrics);
            }
            Ask::WatchLife(watcher) => {
                self.life_watchers.push(watcher);
                self.tell(&ToSupervisor::WatchLife);
            }
            Ask::Detach {
                stream,
                about,
                reply,
            } => {
                if let Some(state) = self.streams.get_mut(&stream) {
                    // Input that waits for credit stays behind.
                    state.waiting = None;
                    state.finish = false;
                    state.leaving = Some(Vec::new());
                }
                self.session_askers
                    .push_back(SessionAsker::Detach(stream, reply));
                let stream = stream.0;
                let request = SessionRequest::Detach { stream, about };
                self.tell(&ToSupervisor::Sessions(request));
            }
            Ask::Attach { id, items, reply } => match self.endpoint.adopt() {
                Ok(stream) => {
                    self.streams.insert(stream, Stream::new(items));
                    self.session_askers
                        .push_back(SessionAsker::Attach(stream, reply));
                    let stream = stream.0;
                    let request = SessionRequest::Attach { id, stream };
                    self.tell(&ToSupervisor::Sessions(request));
                }
                Err(error) => drop(reply.send(Err(Error::gone(error.to_string())))),
            },
            Ask::Sessions { reply } => {
                self.session_askers.push_back(SessionAsker::List(reply));
                self.tell(&ToSupervisor::Sessions(SessionRequest::List));
            }
            Ask::WatchNetwork(watcher) => {
                self.watchers.push(watcher);
                self.tell(&ToSupervisor::WatchNetwork);
            }
        }
    }

    fn is_leaving(&self, stream: StreamId) -> bool {
        let stream = self.streams.get(&stream);
        stream.is_some_and(|stream| stream.leaving.is_some())
    }

    /// Says something to the supervisor, behind all that is on its way to the guest.
    fn tell(&mut self, message: &ToSupervisor) {
        let before = self.endpoint.output();
        let len = before.len();
        self.out.extend_from_slice(before);
        self.endpoint.consume_output(len);
        self.out.extend_from_slice(&control::encode(message));
    }

    /// Takes the endpoint's output, once what was taken before is written.
    fn collect(&mut self) {
        if self.out.is_empty() {
            self.out.extend_from_slice(self.endpoint.output());
            self.endpoint.consume_output(self.out.len());
        }
    }

    /// Sends the stdin that waits, as far as there is credit for it.
    fn feed(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.leaving.is_some() {
            stream.waiting = None;
            return;
        }
        if let Some((mut data, reply)) = stream.waiting.take() {
            match self.endpoint.send(id, &data) {
                Ok(sent) if sent < data.len() => {
                    let _ = data.split_to(sent);
                    stream.waiting = Some((data, reply));
                    return;
                }
                Ok(_) => drop(reply.send(Ok(()))),
                Err(error) => drop(reply.send(Err(Error::gone(error.to_string())))),
            }
        }
        if stream.finish {
            // A stream that is over has no stdin to end.
            let _ = self.endpoint.finish(id);
        }
    }
}

fn lost(reason: &str) -> End {
    End {
        reason: reason.to_owned(),
        asked: false,
    }
}
