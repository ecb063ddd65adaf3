//! Everybody who talks to the sandbox: its creator, and whoever connects to its socket.
//!
//! Each has an outbox, which bounds what waits for it. A client that does not read is let
//! go; it stops nobody else. What clients say to the agent goes through one short queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use msb_guest_agent::wire::{Frame, FrameDecoder, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use super::execs::Execs;
use super::journal::{Journal, Place};
use super::meter::Meter;
use super::relay::{CHUNK, End};
use super::routes::{ClientId, Passed, Routes, TakenUp};
use crate::control::{self, FromSupervisor, ToSupervisor};
use crate::event::{LifeEvent, TimedLife};
use crate::machine::MachineFailure;
use crate::machine::MachineRequest;
use crate::port::PortRequest;
use crate::session::{Session, SessionAnswer, SessionId, SessionRequest};

/// Clients at once: each is a process that waits for something in one sandbox.
const MAX_CLIENTS: usize = 256;

/// What may wait for a client that does not read, in bytes. As much as some hundred of its
/// streams can have under way; whoever stops reading all of them is stopped or dead.
const MAX_OUTBOX: usize = 64 << 20;

/// What clients want of others than the agent.
#[derive(Debug)]
pub(super) struct Asks {
    /// Ends the sandbox.
    pub(super) ends: mpsc::Sender<End>,
    /// Ends it in order.
    pub(super) stops: mpsc::Sender<Stop>,
    /// Something about published ports.
    pub(super) ports: mpsc::Sender<(ClientId, PortRequest)>,
    /// Something about the machine.
    pub(super) machine: mpsc::Sender<(ClientId, MachineRequest)>,
    /// Frames for the agent.
    pub(super) agent: mpsc::Sender<BytesMut>,
}

/// An end in order.
#[derive(Debug)]
pub(super) struct Stop {
    /// How long programs have to end themselves.
    pub(super) grace_ms: u32,
    pub(super) why: &'static str,
}

/// What a client's end is to the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tie {
    /// Nothing.
    Loose,
    /// Its end, too.
    Ends,
    /// Its end in order: what was written is kept.
    Stops,
}

/// Why a sandbox ended whose creator did.
const ORPHANED: &str = "its creator ended";

/// How long programs have to end themselves when whoever started them is gone: nobody waits
/// for them any more.
const ORPHAN_GRACE_MS: u32 = 2000;

/// All of them.
#[derive(Debug)]
pub(super) struct Clients {
    state: Mutex<State>,
    asks: Asks,
    /// Reads what the host sees of the sandbox.
    meter: Meter,
    /// A client is gone.
    left: Notify,
    /// Credit is to be given for output that nobody listens to.
    owing: Notify,
}

#[derive(Debug)]
struct State {
    routes: Routes,
    clients: HashMap<ClientId, Client>,
    journals: Journals,
    execs: Execs,
    last: u64,
    /// The last word was said.
    closing: bool,
}

/// What happened.
#[derive(Debug)]
struct Journals {
    network: Journal,
    life: Journal,
}

#[derive(Debug, Default)]
struct Client {
    outbox: BytesMut,
    filled: Arc<Notify>,
    /// How far it has read what the network does, if it wants to know.
    network: Option<Place>,
    /// How far it has read what becomes of the sandbox, likewise.
    life: Option<Place>,
    /// Did not read.
    dropped: bool,
}

impl Clients {
    pub(super) fn new(asks: Asks, meter: Meter) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                routes: Routes::default(),
                clients: HashMap::new(),
                journals: Journals {
                    network: Journal::of_network(),
                    life: Journal::of_life(),
                },
                execs: Execs::default(),
                last: 0,
                closing: false,
            }),
            asks,
            meter,
            left: Notify::new(),
            owing: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; if it did, the table is whole all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a client in the background, beginning with `greeting`.
    pub(super) fn serve(self: &Arc<Self>, socket: UnixStream, tie: Tie, greeting: &[u8]) {
        let Some((id, filled)) = self.admit(greeting) else {
            return;
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let (read, write) = socket.into_split();
            let talk = this.talk(id, &filled, write);
            tokio::pin!(talk);
            let (end, talking) = tokio::select! {
                end = this.listen(id, read) => (end, true),
                () = &mut talk => (End::asked(ORPHANED), false),
            };
            if tie != Tie::Loose {
                // At once: a guest that does not read may keep the rest from being done. A
                // full queue holds an end already.
                if tie == Tie::Stops && end.asked {
                    let _ = this.asks.stops.try_send(Stop {
                        grace_ms: ORPHAN_GRACE_MS,
                        why: ORPHANED,
                    });
                } else {
                    let _ = this.asks.ends.try_send(end);
                }
                if talking {
                    // One that has hung up may still want to hear of the end.
                    talk.await;
                }
            }
            this.release(id).await;
        });
    }

    fn admit(&self, greeting: &[u8]) -> Option<(ClientId, Arc<Notify>)> {
        let mut state = self.state();
        if state.clients.len() >= MAX_CLIENTS || state.closing {
            return None;
        }
        state.last += 1;
        let id = ClientId(state.last);
        let client = Client {
            outbox: BytesMut::from(greeting),
            ..Client::default()
        };
        let filled = Arc::clone(&client.filled);
        state.clients.insert(id, client);
        Some((id, filled))
    }

    /// Forgets a client and gives up its streams.
    async fn release(&self, id: ClientId) {
        let resets = {
            let mut state = self.state();
            state.clients.remove(&id);
            state.routes.client_gone(id)
        };
        self.left.notify_waiters();
        if !resets.is_empty() {
            let mut out = BytesMut::new();
            resets.iter().for_each(|frame| frame.encode(&mut out));
            // If the machine is ending, they have ended.
            let _ = self.asks.agent.send(out).await;
        }
    }

    /// Reads what a client says, until it goes or makes no sense.
    async fn listen(&self, id: ClientId, mut socket: OwnedReadHalf) -> End {
        let mut decoder = FrameDecoder::new();
        loop {
            decoder.buffer_mut().reserve(CHUNK);
            match socket.read_buf(decoder.buffer_mut()).await {
                Ok(0) | Err(_) => return End::asked(ORPHANED),
                Ok(_) => {}
            }
            // What is asked of the supervisor does not wait for the guest.
            let (mut requests, frames, whole) = sort(&mut decoder);
            // What is asked about streams holds for what comes after.
            let about_streams =
                requests.extract_if(.., |request| matches!(request, ToSupervisor::Sessions(_)));
            let about_streams: Vec<_> = about_streams.collect();
            for request in requests {
                tokio::select! {
                    () = self.request(id, request) => {}
                    () = hung_up(&socket) => return End::asked(ORPHANED),
                }
            }
            let passed = if frames.is_empty() {
                Ok(())
            } else {
                // Room first: a frame that was taken into the table must reach the agent.
                let room = tokio::select! {
                    room = self.asks.agent.reserve() => room,
                    () = hung_up(&socket) => return End::asked(ORPHANED),
                };
                let Ok(room) = room else {
                    // The machine is ending, and its exit says why.
                    hung_up(&socket).await;
                    return End::asked(ORPHANED);
                };
                let mut out = BytesMut::new();
                let passed = self.pass(id, frames, &mut out);
                if !out.is_empty() {
                    room.send(out);
                }
                passed
            };
            for request in about_streams {
                tokio::select! {
                    () = self.request(id, request) => {}
                    () = hung_up(&socket) => return End::asked(ORPHANED),
                }
            }
            if let Err(reason) = passed.and(whole) {
                return End::failure(&format!("its creator {reason}"));
            }
        }
    }

    /// Passes frames of a client on, as far as they make sense.
    fn pass(&self, id: ClientId, frames: Vec<Frame>, out: &mut BytesMut) -> Result<(), String> {
        for frame in frames {
            let passed = {
                let mut state = self.state();
                let passed = state.routes.take_from_client(id, frame);
                if let Ok(Passed::On(frame)) = &passed {
                    state.execs.hear_client(frame);
                }
                passed
            };
            match passed.map_err(|error| format!("broke the protocol: {error}"))? {
                Passed::On(frame) => frame.encode(out),
                Passed::Back(frame) => self.tell(id, |outbox| frame.encode(outbox)),
                Passed::Dropped => {}
            }
        }
        Ok(())
    }

    async fn request(&self, id: ClientId, request: ToSupervisor) {
        // Whoever would do it is gone with the sandbox.
        match request {
            ToSupervisor::Stop { grace_ms } => {
                let why = "stopped";
                let _ = self.asks.stops.send(Stop { grace_ms, why }).await;
            }
            ToSupervisor::Kill => drop(self.asks.ends.send(End::killed()).await),
            ToSupervisor::Ports(request) => drop(self.asks.ports.send((id, request)).await),
            ToSupervisor::Machine(request) => {
                drop(self.asks.machine.send((id, request)).await);
            }
            ToSupervisor::Metrics => self.measure(id).await,
            ToSupervisor::Sessions(request) => self.session(id, request).await,
            ToSupervisor::WatchNetwork => {
                if let Some(client) = self.state().clients.get_mut(&id) {
                    client.network.get_or_insert_default();
                    client.filled.notify_one();
                }
            }
            ToSupervisor::WatchLife => {
                if let Some(client) = self.state().clients.get_mut(&id) {
                    client.life.get_or_insert_default();
                    client.filled.notify_one();
                }
            }
        }
    }

    /// Answers what the host sees. On another thread: the kernel looks at every page for it.
    async fn measure(&self, id: ClientId) {
        let meter = self.meter.clone();
        let read = tokio::task::spawn_blocking(move || meter.read()).await;
        let answer = FromSupervisor::Metrics(read.unwrap_or_default());
        let answer = control::encode(&answer);
        self.tell(id, |outbox| outbox.extend_from_slice(&answer));
    }

    async fn session(&self, id: ClientId, request: SessionRequest) {
        match request {
            SessionRequest::List => {
                let listed = self.state().routes.parked();
                self.answer(id, Ok(Session::List(listed)));
            }
            SessionRequest::Detach { stream, about } => {
                let closed = self.state().routes.make_room();
                if let Some(closed) = closed {
                    self.say(&[closed]).await;
                }
                let parked = self.state().routes.park(id, StreamId(stream), about);
                let failed = |reason| MachineFailure::new(reason, "");
                self.answer(id, parked.map(Session::Detached).map_err(failed));
                self.owing.notify_one();
            }
            SessionRequest::Attach {
                id: session,
                stream,
            } => {
                let grants = self.attach(id, session, StreamId(stream));
                if !grants.is_empty() {
                    self.say(&grants).await;
                }
            }
        }
    }

    /// Gives a stream that was let go of to a client; returns the credit that is still to be
    /// given for what came until now, which nobody would give any more.
    fn attach(&self, id: ClientId, session: SessionId, stream: StreamId) -> Vec<Frame> {
        // At once with what is kept: what comes next is to come behind it.
        let mut state = self.state();
        let grants = state.routes.grants();
        let taken = state.routes.take_up(id, session, stream);
        if let Some(client) = state.clients.get_mut(&id) {
            match taken {
                Some(taken) => put_taken_up(taken, stream, &mut client.outbox),
                None => {
                    let reason = format!("nothing was let go of as {session}");
                    let failure = MachineFailure::new(reason, "`msb attach --list NAME`");
                    let answer = FromSupervisor::Sessions(Err(failure));
                    client.outbox.extend_from_slice(&control::encode(&answer));
                }
            }
            client.filled.notify_one();
        }
        grants
    }

    fn answer(&self, id: ClientId, answer: SessionAnswer) {
        let message = control::encode(&FromSupervisor::Sessions(answer));
        self.tell(id, |outbox| outbox.extend_from_slice(&message));
    }

    /// Gives credit for output that nobody listens to, as it comes.
    pub(super) async fn give_credit(&self) {
        loop {
            let owing = self.owing.notified();
            let grants = self.state().routes.grants();
            if grants.is_empty() {
                owing.await;
            } else {
                self.say(&grants).await;
            }
        }
    }

    /// Says something to the agent, once it listens.
    async fn say(&self, frames: &[Frame]) {
        let mut out = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut out));
        // If the machine is ending, nobody needs to hear it.
        let _ = self.asks.agent.send(out).await;
    }

    /// Writes what waits for a client, until it was told everything or does not listen.
    async fn talk(&self, id: ClientId, filled: &Notify, mut socket: OwnedWriteHalf) {
        loop {
            let waiting = filled.notified();
            let out = {
                let mut state = self.state();
                let State {
                    clients,
                    journals,
                    closing,
                    ..
                } = &mut *state;
                let Some(client) = clients.get_mut(&id).filter(|client| !client.dropped) else {
                    return;
                };
                if client.outbox.is_empty() {
                    client.catch_up(journals);
                }
                if client.outbox.is_empty() && *closing {
                    return;
                }
                client.outbox.split()
            };
            if out.is_empty() {
                waiting.await;
            } else {
                let written = tokio::select! {
                    written = socket.write_all(&out) => written,
                    () = self.given_up(id, filled) => return,
                };
                if written.is_err() {
                    return;
                }
            }
        }
    }

    /// Waits until too much waits for a client.
    async fn given_up(&self, id: ClientId, filled: &Notify) {
        loop {
            let waiting = filled.notified();
            if self
                .state()
                .clients
                .get(&id)
                .is_none_or(|client| client.dropped)
            {
                return;
            }
            waiting.await;
        }
    }

    /// Puts something into a client's outbox.
    pub(super) fn tell(&self, id: ClientId, put: impl FnOnce(&mut BytesMut)) {
        if let Some(client) = self.state().clients.get_mut(&id) {
            put(&mut client.outbox);
            client.dropped |= client.outbox.len() > MAX_OUTBOX;
            client.filled.notify_one();
        }
    }

    /// Passes frames of the agent on.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn deliver(&self, frame: Frame) -> Result<(), String> {
        let (passed, owes) = {
            let mut state = self.state();
            let life = state.execs.hear_agent(&frame);
            let passed = state.routes.take_from_agent(frame);
            // What makes no sense ends the sandbox.
            if let (Some(event), Ok(_)) = (life, &passed) {
                state.tell_life(TimedLife::now(event));
            }
            (passed, state.routes.owes())
        };
        if let Some((client, frame)) = passed.map_err(|error| error.to_string())? {
            self.tell(client, |outbox| frame.encode(outbox));
        }
        if owes {
            self.owing.notify_one();
        }
        Ok(())
    }

    /// Tells everybody who wants to know what the network did.
    pub(super) fn add_event(&self, message: impl Into<Bytes>) {
        let mut state = self.state();
        state.journals.network.add(message);
        for client in state.clients.values().filter(|one| one.network.is_some()) {
            client.filled.notify_one();
        }
    }

    /// Tells everybody who wants to know what became of the sandbox.
    pub(super) fn add_life(&self, event: LifeEvent) {
        self.add_life_of(TimedLife::now(event));
    }

    /// As [`add_life`](Self::add_life), of a moment that has passed.
    pub(super) fn add_life_of(&self, event: TimedLife) {
        self.state().tell_life(event);
    }

    /// Tells everybody the last there is to say, behind what the network did; they are let go
    /// once they have read it.
    pub(super) fn close(&self, message: &[u8]) {
        let mut state = self.state();
        state.closing = true;
        let State {
            clients, journals, ..
        } = &mut *state;
        for client in clients.values_mut() {
            while client.catch_up(journals) {}
            client.outbox.extend_from_slice(message);
            client.filled.notify_one();
        }
    }

    /// Waits until all of them are gone.
    pub(super) async fn gone(&self) {
        loop {
            let left = self.left.notified();
            if self.state().clients.is_empty() {
                return;
            }
            left.await;
        }
    }
}

impl State {
    fn tell_life(&mut self, event: TimedLife) {
        let message = control::encode(&FromSupervisor::Life(event));
        self.journals.life.add(message);
        for client in self.clients.values().filter(|one| one.life.is_some()) {
            client.filled.notify_one();
        }
    }
}

impl Client {
    /// Takes a piece of what it has not read of each journal that it reads; tells whether
    /// there was any.
    fn catch_up(&mut self, journals: &Journals) -> bool {
        let Self {
            outbox,
            network,
            life,
            ..
        } = self;
        let mut more = false;
        for (journal, place) in [(&journals.network, network), (&journals.life, life)] {
            if let Some(place) = place.as_mut().filter(|place| journal.has_more(**place)) {
                journal.read(place, outbox);
                more = true;
            }
        }
        more
    }
}

/// Output that was kept, in pieces that fit into a message.
const MAX_PIECE: usize = 16 * 1024;

/// Tells a client of a stream that is its own from now on, and what was kept of it.
fn put_taken_up(taken: TakenUp, stream: StreamId, outbox: &mut BytesMut) {
    let TakenUp {
        about,
        credit,
        input,
        pieces,
        frames,
    } = taken;
    let answer = Session::Attached {
        about,
        credit,
        input,
    };
    let answer = FromSupervisor::Sessions(Ok(answer));
    outbox.extend_from_slice(&control::encode(&answer));
    for (channel, piece) in pieces {
        for data in piece.chunks(MAX_PIECE) {
            let kept = FromSupervisor::Kept {
                stream: stream.0,
                channel,
                data: BASE64.encode(data),
            };
            outbox.extend_from_slice(&control::encode(&kept));
        }
    }
    frames.iter().for_each(|frame| frame.encode(outbox));
}

/// Takes the whole frames that there are: what is asked of the supervisor, what is for the
/// agent, and whether all of it made sense.
fn sort(decoder: &mut FrameDecoder) -> (Vec<ToSupervisor>, Vec<Frame>, Result<(), String>) {
    let (mut requests, mut frames) = (Vec::new(), Vec::new());
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) if frame.stream.is_control() => match control::decode(&frame) {
                Some(request) => requests.push(request),
                None => {
                    return (
                        requests,
                        frames,
                        Err("sent something else than a request".into()),
                    );
                }
            },
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (requests, frames, Ok(())),
            Err(error) => {
                return (
                    requests,
                    frames,
                    Err(format!("broke the protocol: {error}")),
                );
            }
        }
    }
}

/// Waits until a client has closed its end, whatever is still to be read from it.
async fn hung_up(client: &OwnedReadHalf) {
    // Nobody sends urgent data here: what is left to wait for is the end.
    while let Ok(ready) = client.ready(Interest::PRIORITY).await {
        if ready.is_read_closed() {
            return;
        }
    }
}
