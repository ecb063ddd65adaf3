//! Everybody who talks to the sandbox: its creator, and whoever connects to its socket.
//!
//! Each has an outbox, which bounds what waits for it. A client that does not read is let
//! go; it stops nobody else. What clients say to the agent goes through one short queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use msb_guest_agent::wire::{Frame, FrameDecoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, watch};

use super::relay::{CHUNK, End, asked};
use super::routes::{ClientId, Passed, Routes};
use crate::control::{self, ToSupervisor};
use crate::port::PortRequest;

/// Clients at once: each is a process that waits for something in one sandbox.
const MAX_CLIENTS: usize = 256;

/// What may wait for a client that does not read, in bytes. As much as some hundred of its
/// streams can have under way; whoever stops reading all of them is stopped or dead.
const MAX_OUTBOX: usize = 64 << 20;

/// Network events wait when as much waits for somebody who wants them, in bytes.
const MAX_BEFORE_EVENTS: usize = 1 << 20;

/// What clients want of others than the agent.
#[derive(Debug)]
pub(super) struct Asks {
    /// Ends the sandbox.
    pub(super) ends: mpsc::Sender<End>,
    /// Ends it in order; the grace in milliseconds.
    pub(super) stops: mpsc::Sender<u32>,
    /// Something about published ports.
    pub(super) ports: mpsc::Sender<(ClientId, PortRequest)>,
    /// Whether anybody wants network events.
    pub(super) watched: watch::Sender<bool>,
    /// Frames for the agent.
    pub(super) agent: mpsc::Sender<BytesMut>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Clients {
    state: Mutex<State>,
    asks: Asks,
    /// An outbox has become shorter, or a client is gone.
    shorter: Notify,
}

#[derive(Debug, Default)]
struct State {
    routes: Routes,
    clients: HashMap<ClientId, Client>,
    last: u64,
    /// The last word was said.
    closing: bool,
}

#[derive(Debug, Default)]
struct Client {
    outbox: BytesMut,
    filled: Arc<Notify>,
    /// Wants network events.
    watches: bool,
    /// Did not read.
    dropped: bool,
}

impl Clients {
    pub(super) fn new(asks: Asks) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            asks,
            shorter: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; if it did, the table is whole all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a client in the background, beginning with `greeting`. The sandbox ends with
    /// one that is its `owner`.
    pub(super) fn serve(self: &Arc<Self>, socket: UnixStream, owner: bool, greeting: &[u8]) {
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
                () = &mut talk => (asked("its creator ended"), false),
            };
            if owner {
                // At once: a guest that does not read may keep the rest from being done. A
                // full queue holds an end already.
                let _ = this.asks.ends.try_send(end);
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
        self.note_watchers();
        self.shorter.notify_waiters();
        if !resets.is_empty() {
            let mut out = BytesMut::new();
            resets.iter().for_each(|frame| frame.encode(&mut out));
            // If the machine is ending, they have ended.
            let _ = self.asks.agent.send(out).await;
        }
    }

    /// Tells the network whether anybody wants to know what it does.
    fn note_watchers(&self) {
        let watched = self.state().clients.values().any(|client| client.watches);
        self.asks
            .watched
            .send_if_modified(|known| std::mem::replace(known, watched) != watched);
    }

    /// Reads what a client says, until it goes or makes no sense.
    async fn listen(&self, id: ClientId, mut socket: OwnedReadHalf) -> End {
        let mut decoder = FrameDecoder::new();
        loop {
            decoder.buffer_mut().reserve(CHUNK);
            match socket.read_buf(decoder.buffer_mut()).await {
                Ok(0) | Err(_) => return asked("its creator ended"),
                Ok(_) => {}
            }
            // What is asked of the supervisor does not wait for the guest.
            let (requests, frames, whole) = sort(&mut decoder);
            for request in requests {
                tokio::select! {
                    () = self.request(id, request) => {}
                    () = hung_up(&socket) => return asked("its creator ended"),
                }
            }
            let passed = if frames.is_empty() {
                Ok(())
            } else {
                // Room first: a frame that was taken into the table must reach the agent.
                let room = tokio::select! {
                    room = self.asks.agent.reserve() => room,
                    () = hung_up(&socket) => return asked("its creator ended"),
                };
                let Ok(room) = room else {
                    // The machine is ending, and its exit says why.
                    hung_up(&socket).await;
                    return asked("its creator ended");
                };
                let mut out = BytesMut::new();
                let passed = self.pass(id, frames, &mut out);
                if !out.is_empty() {
                    room.send(out);
                }
                passed
            };
            if let Err(reason) = passed.and(whole) {
                return (format!("its creator {reason}"), false);
            }
        }
    }

    /// Passes frames of a client on, as far as they make sense.
    fn pass(&self, id: ClientId, frames: Vec<Frame>, out: &mut BytesMut) -> Result<(), String> {
        for frame in frames {
            let passed = self.state().routes.take_from_client(id, frame);
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
            ToSupervisor::Stop { grace_ms } => drop(self.asks.stops.send(grace_ms).await),
            ToSupervisor::Kill => drop(self.asks.ends.send(asked("killed")).await),
            ToSupervisor::Ports(request) => drop(self.asks.ports.send((id, request)).await),
            ToSupervisor::WatchNetwork => {
                if let Some(client) = self.state().clients.get_mut(&id) {
                    client.watches = true;
                }
                self.note_watchers();
            }
        }
    }

    /// Writes what waits for a client, until it was told everything or does not listen.
    async fn talk(&self, id: ClientId, filled: &Notify, mut socket: OwnedWriteHalf) {
        loop {
            let waiting = filled.notified();
            let out = {
                let mut state = self.state();
                let closing = state.closing;
                match state.clients.get_mut(&id) {
                    Some(client) if client.dropped => return,
                    Some(client) if client.outbox.is_empty() && closing => return,
                    Some(client) => client.outbox.split(),
                    None => return,
                }
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
                self.shorter.notify_waiters();
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
        let passed = self.state().routes.take_from_agent(frame);
        if let Some((client, frame)) = passed.map_err(|error| error.to_string())? {
            self.tell(client, |outbox| frame.encode(outbox));
        }
        Ok(())
    }

    /// Waits until whoever wants network events has room for more.
    pub(super) async fn room_for_events(&self) {
        loop {
            let shorter = self.shorter.notified();
            let full = |client: &Client| client.watches && client.outbox.len() > MAX_BEFORE_EVENTS;
            if !self.state().clients.values().any(full) {
                return;
            }
            shorter.await;
        }
    }

    /// Tells everybody who wants to know what the network does.
    pub(super) fn tell_watchers(&self, message: &[u8]) {
        self.tell_those(message, |client| client.watches);
    }

    /// Tells everybody the last there is to say; they are let go once they have read it.
    pub(super) fn close(&self, message: &[u8]) {
        self.state().closing = true;
        self.tell_those(message, |_| true);
    }

    fn tell_those(&self, message: &[u8], which: impl Fn(&Client) -> bool) {
        let mut state = self.state();
        for client in state.clients.values_mut().filter(|client| which(client)) {
            client.outbox.extend_from_slice(message);
            client.filled.notify_one();
        }
    }

    /// Waits until all of them are gone.
    pub(super) async fn gone(&self) {
        loop {
            let shorter = self.shorter.notified();
            if self.state().clients.is_empty() {
                return;
            }
            shorter.await;
        }
    }
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
