//! Runs between a configured guest and its end: passes frames between clients and the
//! agent, and does what clients ask for.
//!
//! What the agent says is put into its client's outbox at once, so that a client that does
//! not read stops nobody else; flow control of the streams, which is between the two ends,
//! bounds how much that can be. What clients say waits for the agent in a short queue,
//! which stops them. A guest that stops reading can't hold the sandbox: the creator's
//! socket is watched while its frames wait.
//!
//! Both sides are checked: the guest's control frames stop here, and bytes that are no
//! frames end the sandbox, or the client's connection.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use msb_guest_agent::message::{self, AgentMessage, HostMessage, Trouble};
use msb_guest_agent::wire::{Frame, FrameDecoder, Kind, StreamId};
use msb_vmm::Exit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::clients::{Asks, Clients, Stop, Tie};
use super::dial;
use super::machine::{self, Keeper, Order, Talk};
use super::meter::Meter;
use super::network::Wire;
use super::routes::ClientId;
use crate::control::{self, FromSupervisor};
use crate::event::LifeEvent;
use crate::machine::MachineRequest;
use crate::port::PortRequest;
use crate::record::Phase;

/// How much is read at once, and passed on at once.
pub(super) const CHUNK: usize = 128 * 1024;

/// Chunks of clients that may wait for the agent; their senders wait with more.
const MAX_CHUNKS: usize = 4;

/// Requests about ports that may wait for the network; their senders wait with more.
const MAX_REQUESTS: usize = 16;

/// What the agent says on the control stream waits for whoever asked it something: one answer
/// at a time. A guest that says more is not listened to.
const MAX_ANSWERS: usize = 4;

/// What an orderly shutdown may take beyond the programs' grace: flushing disks.
const FLUSH_TIME: Duration = Duration::from_secs(10);

/// How long clients may take over anything that they are told at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a sandbox ended that a client has killed.
const KILLED: &str = "killed";

/// Why the sandbox ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) reason: String,
    /// Whether that is what was asked for.
    pub(super) asked: bool,
}

impl End {
    pub(super) fn asked(why: &str) -> Self {
        let reason = why.to_owned();
        Self {
            reason,
            asked: true,
        }
    }

    pub(super) fn failure(reason: &str) -> Self {
        let reason = reason.to_owned();
        Self {
            reason,
            asked: false,
        }
    }

    /// That a client wants at once.
    pub(super) fn killed() -> Self {
        Self::asked(KILLED)
    }

    /// The last event of the sandbox's life.
    fn life(&self) -> LifeEvent {
        let reason = control::cut(self.reason.clone());
        match self.asked {
            true if reason == KILLED => LifeEvent::Killed,
            true => LifeEvent::Stopped { reason },
            false => LifeEvent::Failed { reason },
        }
    }
}

/// The sockets of a sandbox that runs.
pub(super) struct Sockets {
    /// Of whoever started it.
    pub(super) creator: StdStream,
    /// What the sandbox does when that one goes.
    pub(super) tie: Tie,
    /// Where others come from.
    pub(super) listener: StdListener,
    /// The guest's.
    pub(super) agent: StdStream,
}

/// What is written down of a sandbox that runs.
pub(super) enum Note<'a> {
    /// How far it is.
    Phase(Phase),
    /// Something ran out or broke.
    Trouble(&'a Trouble),
}

/// Programs that the supervisor itself runs in the guest.
pub(super) trait Resident {
    /// Begins its work, in a runtime. At the other end of the socket is the agent.
    fn start(self: Box<Self>, socket: StdStream);
}

/// See the [module](self).
pub(super) struct Relay {
    runtime: Runtime,
    clients: Arc<Clients>,
    asked: Asked,
}

/// The other ends of what clients ask.
struct Asked {
    ends: mpsc::Receiver<End>,
    stops: mpsc::Receiver<Stop>,
    ports: mpsc::Receiver<(ClientId, PortRequest)>,
    machine: mpsc::Receiver<(ClientId, MachineRequest)>,
    agent: Option<mpsc::Receiver<BytesMut>>,
    to_agent: mpsc::Sender<BytesMut>,
}

impl Relay {
    pub(super) fn new(meter: Meter) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (ends, ends_asked) = mpsc::channel(MAX_REQUESTS);
        let (stops, stops_asked) = mpsc::channel(MAX_REQUESTS);
        let (ports, ports_asked) = mpsc::channel(MAX_REQUESTS);
        let (machine, machine_asked) = mpsc::channel(MAX_REQUESTS);
        let (to_agent, agent) = mpsc::channel(MAX_CHUNKS);
        let asks = Asks {
            ends,
            stops,
            ports,
            machine,
            agent: to_agent.clone(),
        };
        Ok(Self {
            runtime,
            clients: Clients::new(asks, meter),
            asked: Asked {
                ends: ends_asked,
                stops: stops_asked,
                ports: ports_asked,
                machine: machine_asked,
                agent: Some(agent),
                to_agent,
            },
        })
    }

    /// Relays until the creator goes, a client says so, or the machine ends. The machine
    /// is gone when this returns. Every client but the creator is greeted; `note` is told
    /// what becomes of the sandbox.
    pub(super) fn run(
        &mut self,
        sockets: Sockets,
        mut keeper: Keeper,
        wire: &mut Wire,
        greeting: &[u8],
        resident: Option<Box<dyn Resident>>,
        note: &dyn Fn(Note<'_>),
    ) -> io::Result<End> {
        let (clients, asked) = (&self.clients, &mut self.asked);
        let kept = &mut keeper;
        let end = self.runtime.block_on(async {
            let (from_agent, to_agent) = stream(sockets.agent)?.into_split();
            // Room for all that holding and letting go takes, also while the guest does not
            // read: none of it may be missing then.
            let (orders, ordered) = mpsc::channel::<Order>(8);
            if let Some(chunks) = asked.agent.take() {
                tokio::spawn(machine::write(chunks, ordered, to_agent));
            }
            let creator = stream(sockets.creator)?;
            clients.serve(creator, sockets.tie, &[]);
            let (dials, dialling) = StdStream::pair()?;
            clients.serve(stream(dials)?, Tie::Loose, &[]);
            let refused = wire.take_refused();
            if let Some(resident) = resident {
                let (theirs, ours) = StdStream::pair()?;
                clients.serve(stream(ours)?, Tie::Loose, &[]);
                resident.start(theirs);
            }
            sockets.listener.set_nonblocking(true)?;
            let listener = UnixListener::from_std(sockets.listener)?;
            // Set when the agent says that everything is flushed.
            let (done, shut_down) = watch::channel(false);
            let (stopping, stop_begun) = watch::channel(false);
            let (answers, answered) = mpsc::channel(MAX_ANSWERS);
            let stops = Stops {
                stops: &mut asked.stops,
                agent: &asked.to_agent,
                begun: stopping,
                done: shut_down,
            };
            let heard = Heard {
                answers,
                stopping: stop_begun.clone(),
                done,
                note,
            };
            let talk = Talk {
                clients,
                requests: &mut asked.machine,
                orders,
                answers: answered,
                stopping: stop_begun,
                note,
                owed: false,
            };
            io::Result::Ok(tokio::select! {
                Some(end) = asked.ends.recv() => end,
                end = stops.wait(note) => end,
                end = upwards(from_agent, clients, heard) => end,
                () = network(wire, clients, &mut asked.ports) => unreachable!(),
                () = accept(listener, clients, greeting) => unreachable!(),
                () = dial(dialling, refused) => unreachable!(),
                () = clients.give_credit() => unreachable!(),
                () = kept.serve(talk) => unreachable!(),
            })
        })?;
        Ok(end_machine(&keeper, end))
    }

    /// Everybody who is told what happens.
    pub(super) fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    /// Tells everybody the last there is to say, within bounds. A client that does not
    /// listen does not keep its supervisor.
    pub(super) fn farewell(self, events: Vec<BytesMut>, end: &End) {
        let asked = end.asked;
        let reason = control::cut(end.reason.clone());
        let last = control::encode(&FromSupervisor::Ended { reason, asked });
        for event in events {
            self.clients.add_event(event);
        }
        self.clients.add_life(end.life());
        self.clients.close(&last);
        let gone = async { tokio::time::timeout(LAST_WORDS, self.clients.gone()).await };
        let _ = self.runtime.block_on(gone);
        self.runtime.shutdown_background();
    }
}

fn stream(socket: StdStream) -> io::Result<UnixStream> {
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// Sees to it that the machine is gone; says why it ended.
fn end_machine(keeper: &Keeper, mut end: End) -> End {
    // A machine whose port has closed is on its way out, and its exit says why.
    // One that stays all the same is not waited for.
    if end.asked || !ends_soon(keeper.process()) {
        // Not by way of the machine: somebody may be saving it.
        let _ = pidfd_send_signal(keeper.process(), Signal::KILL);
    }
    keeper.give_up();
    // Once it is ending, nobody has it for long.
    let exit = keeper.vm().wait();
    if let Ok(Exit::Panicked { said, .. }) = &exit {
        // Into the sandbox's log, if the disk has room for it.
        let _ = writeln!(io::stderr(), "{said}");
    }
    let exit = exit.map(|exit| exit.to_string());
    if end.reason.is_empty() {
        end.reason = exit.unwrap_or_else(|error| error.to_string());
    }
    end
}

/// Waits a moment for the machine's process to end by itself.
fn ends_soon(process: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(process, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 2,
        tv_nsec: 0,
    };
    matches!(poll(&mut watched, Some(&limit)), Ok(1..))
}

/// Takes clients in.
async fn accept(listener: UnixListener, clients: &Arc<Clients>, greeting: &[u8]) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => clients.serve(socket, Tie::Loose, greeting),
            // No descriptors, most likely: another time.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Makes the connections to the guest's loopback address.
async fn dial(socket: StdStream, refused: Option<mpsc::Receiver<dial::Client>>) {
    if let Some(clients) = refused {
        dial::serve(socket, clients).await;
    }
    std::future::pending::<()>().await;
}

/// What an orderly end needs.
struct Stops<'a> {
    stops: &'a mut mpsc::Receiver<Stop>,
    agent: &'a mpsc::Sender<BytesMut>,
    /// Set when it begins.
    begun: watch::Sender<bool>,
    done: watch::Receiver<bool>,
}

impl Stops<'_> {
    /// Waits for the request, and does it.
    async fn wait(mut self, note: &dyn Fn(Note<'_>)) -> End {
        let Some(stop) = self.stops.recv().await else {
            return std::future::pending().await;
        };
        note(Note::Phase(Phase::Stopping));
        self.begun.send_replace(true);
        self.shut_down(stop.grace_ms).await;
        End::asked(stop.why)
    }

    /// Has the agent shut down and waits until it has, within bounds. Whoever asks again and
    /// gives less time is obeyed.
    async fn shut_down(&mut self, grace_ms: u32) {
        let limit =
            |grace_ms| Instant::now() + Duration::from_millis(u64::from(grace_ms)) + FLUSH_TIME;
        let mut done = self.done.clone();
        let mut end = limit(grace_ms);
        let mut ask = Some(grace_ms);
        loop {
            // A guest that does not read keeps nobody from being more impatient.
            let agent = self.agent;
            let asking = async {
                match ask {
                    Some(grace_ms) => ask_to_shut_down(agent, grace_ms).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = asking => ask = None,
                _ = done.wait_for(|done| *done) => return,
                () = tokio::time::sleep_until(end) => return,
                Some(again) = self.stops.recv() => {
                    let sooner = limit(again.grace_ms);
                    if sooner < end {
                        end = sooner;
                        ask = Some(again.grace_ms);
                    }
                }
            }
        }
    }
}

async fn ask_to_shut_down(agent: &mpsc::Sender<BytesMut>, grace_ms: u32) {
    let message = message::encode(&HostMessage::Shutdown { grace_ms });
    let Ok(frame) = Frame::new(Kind::Control, StreamId::CONTROL, message.into()) else {
        return;
    };
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    // A machine that is ending says so itself.
    let _ = agent.send(out).await;
}

/// Answers what is asked about ports, and tells what the network does.
async fn network(
    wire: &mut Wire,
    clients: &Clients,
    ports: &mut mpsc::Receiver<(ClientId, PortRequest)>,
) {
    loop {
        tokio::select! {
            Some((client, request)) = ports.recv() => {
                let answer = wire.handle(request);
                clients.tell(client, |outbox| outbox.extend_from_slice(&answer));
            }
            // Nothing is lost when it is given up.
            event = wire.message() => clients.add_event(event),
        }
    }
}

/// What becomes of what the agent says on the control stream.
struct Heard<'a> {
    answers: mpsc::Sender<AgentMessage>,
    /// Whether the guest is asked to shut down.
    stopping: watch::Receiver<bool>,
    /// Set when it says that everything is flushed.
    done: watch::Sender<bool>,
    note: &'a dyn Fn(Note<'_>),
}

impl Heard<'_> {
    fn hear(&self, message: Option<AgentMessage>) {
        match message {
            Some(AgentMessage::ShutdownDone { .. }) => {
                self.done.send_replace(true);
            }
            Some(AgentMessage::Trouble(trouble)) => (self.note)(Note::Trouble(&trouble)),
            // One that nobody waits for, or the guest's own.
            Some(answer) => drop(self.answers.try_send(answer)),
            None => {}
        }
    }

    /// Whether the end of the guest is the one that was asked for.
    fn expects_end(&self) -> bool {
        *self.stopping.borrow() && *self.done.borrow()
    }
}

/// From the agent to the clients.
async fn upwards(mut agent: OwnedReadHalf, clients: &Clients, heard: Heard<'_>) -> End {
    let mut decoder = FrameDecoder::new();
    loop {
        decoder.buffer_mut().reserve(CHUNK);
        match agent.read_buf(decoder.buffer_mut()).await {
            // Whoever asked for it says so.
            Ok(0) | Err(_) if heard.expects_end() => return std::future::pending().await,
            // The port closes when the machine ends; its process says how.
            Ok(0) | Err(_) => return End::failure(""),
            Ok(_) => {}
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) if frame.stream.is_control() => {
                    heard.hear(message::decode(&frame.payload));
                }
                Ok(Some(frame)) => {
                    if let Err(error) = clients.deliver(frame) {
                        return End::failure(&format!("the guest broke the protocol: {error}"));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    return End::failure(&format!("the guest broke the protocol: {error}"));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "relay/tests.rs"]
mod tests;
