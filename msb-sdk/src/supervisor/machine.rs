//! The machine while it runs: held, let go on and saved as clients ask.
//!
//! A machine is saved while its guest stands still: the agent holds all processes and says
//! so, with nothing under way on the link, and nobody else talks to the agent until it has
//! been told to let them go on. What takes long is done on other threads, so that clients,
//! ports and the network are served meanwhile; of what was saved only the memory and the
//! disks have to be copied before the guest goes on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use msb_guest_agent::message::{self, AgentMessage, HostMessage};
use msb_guest_agent::wire::{Frame, Kind, StreamId};
use msb_vmm::{GiveUp, HeldMemory, SnapshotDraft, Snapshots, Vm};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::clients::Clients;
use super::network::Seats;
use super::relay::Note;
use super::routes::ClientId;
use crate::control::{self, FromSupervisor};
use crate::event::LifeEvent;
use crate::machine::{MachineAnswer, MachineFailure, MachineRequest, Source};
use crate::record::Phase;

/// How long the agent may take over an answer: as long as it waits for processes, and some.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Snapshots for a moment that are kept at once. Whoever asked for one removes it when the
/// forks have started; that of somebody who was killed goes when others have followed.
const MAX_PASSING: usize = 8;

/// Frames for the agent that are the supervisor's own.
#[derive(Debug)]
pub(super) struct Order {
    frame: BytesMut,
    /// Whether clients' frames wait from here on.
    hold: bool,
}

/// Writes the frames for the agent: its own, and those of clients while they are let.
pub(super) async fn write(
    mut chunks: mpsc::Receiver<BytesMut>,
    mut orders: mpsc::Receiver<Order>,
    mut agent: impl tokio::io::AsyncWrite + Unpin,
) {
    use tokio::io::AsyncWriteExt;
    let mut held = false;
    loop {
        let out = tokio::select! {
            biased;
            Some(order) = orders.recv() => {
                held = order.hold;
                order.frame
            }
            chunk = chunks.recv(), if !held => match chunk {
                Some(chunk) => chunk,
                None => return,
            },
            else => return,
        };
        if agent.write_all(&out).await.is_err() {
            // The machine is ending; the other direction says so.
            return;
        }
    }
}

/// What a machine is asked by whom, and what is told of it.
pub(super) struct Talk<'a> {
    pub(super) clients: &'a Clients,
    pub(super) requests: &'a mut mpsc::Receiver<(ClientId, MachineRequest)>,
    pub(super) orders: mpsc::Sender<Order>,
    /// What the agent says on the control stream.
    pub(super) answers: mpsc::Receiver<AgentMessage>,
    /// Set when the guest is asked to shut down.
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) note: &'a dyn Fn(Note<'_>),
    /// Whether the agent owes an answer that nobody waits for any more.
    pub(super) owed: bool,
}

/// A machine that runs; see the [module](self).
pub(super) struct Keeper {
    vm: Arc<Mutex<Vm>>,
    /// Its process, for whoever can't wait until nobody uses it.
    process: OwnedFd,
    control: Option<StdStream>,
    console: OwnedFd,
    snapshots: PathBuf,
    /// For snapshots that last a moment.
    passing: PathBuf,
    /// What is written beside a snapshot.
    about: String,
    seats: Seats,
    held: bool,
    last: u64,
    /// Memory of snapshots for a moment, by their names.
    memories: VecDeque<(String, HeldMemory)>,
    /// Of the last save.
    saving: Option<GiveUp>,
}

/// The folder, in a sandbox's, of what forks go on from until all of them have started.
pub(super) const PASSING: &str = "forks";

impl Keeper {
    pub(super) fn new(
        vm: Vm,
        snapshots: PathBuf,
        passing: PathBuf,
        about: String,
        seats: Seats,
    ) -> io::Result<Self> {
        let control = vm.control_socket().map(StdStream::try_clone).transpose()?;
        // Those of an earlier start.
        let _ = std::fs::remove_dir_all(&passing);
        Ok(Self {
            process: vm.as_fd().try_clone_to_owned()?,
            console: vm.console().try_clone_to_owned()?,
            vm: Arc::new(Mutex::new(vm)),
            control,
            snapshots,
            passing,
            about,
            seats,
            held: false,
            last: 0,
            memories: VecDeque::new(),
            saving: None,
        })
    }

    /// The machine ends: nobody wants what is being saved of it.
    pub(super) fn give_up(&self) {
        if let Some(saving) = &self.saving {
            saving.now();
        }
    }

    /// The machine's process.
    pub(super) fn process(&self) -> &OwnedFd {
        &self.process
    }

    /// The machine, once nobody else uses it.
    pub(super) fn vm(&self) -> MutexGuard<'_, Vm> {
        locked(&self.vm)
    }

    /// Does what is asked, until this is given up.
    pub(super) async fn serve(&mut self, mut talk: Talk<'_>) {
        let control = self.control.take().map(UnixStream::from_std);
        let mut control = control.and_then(Result::ok);
        let console = self.console.try_clone();
        let mut console = console.and_then(pipe::Receiver::from_owned_fd).ok();
        let mut stopped = talk.stopping.clone();
        loop {
            tokio::select! {
                Some((client, request)) = talk.requests.recv() => {
                    let answer = self.answer(request, &mut talk).await;
                    let message = control::encode(&FromSupervisor::Machine(answer));
                    talk.clients.tell(client, |outbox| outbox.extend_from_slice(&message));
                }
                // Nobody else has the machine between two requests.
                talks = readable(control.as_ref()) => {
                    if !talks || !self.vm().drain_control() {
                        control = None;
                    }
                }
                piece = said(console.as_ref()) => match piece {
                    Some(piece) => self.vm().keep_console(&piece),
                    None => console = None,
                },
                Ok(_) = stopped.wait_for(|stopping| *stopping), if self.held => {
                    // Who is held can't end itself.
                    let _ = self.resume(&mut talk).await;
                }
            }
        }
    }

    async fn answer(&mut self, request: MachineRequest, talk: &mut Talk<'_>) -> MachineAnswer {
        if *talk.stopping.borrow() {
            return Err(MachineFailure::new("the sandbox is being stopped", ""));
        }
        match request {
            MachineRequest::Pause => {
                self.with_vm(|vm| Ok(vm.pause()?)).await?;
                self.held = true;
                (talk.note)(Note::Phase(Phase::Paused));
                Ok(None)
            }
            MachineRequest::Resume => {
                self.resume(talk).await?;
                (talk.note)(Note::Phase(Phase::Running));
                Ok(None)
            }
            MachineRequest::Snapshot { name } => {
                let snapshots = Snapshots::new(&self.snapshots);
                let snapshot = name.clone();
                let place = (snapshots.clone(), name.clone());
                let draft = background(move || Ok(snapshots.draft(&name)?)).await?;
                self.save(place, draft, talk).await?;
                talk.clients.add_life(LifeEvent::Snapshotted { snapshot });
                Ok(None)
            }
            MachineRequest::Fork { count } => {
                self.last += 1;
                let (root, name) = (self.passing.clone(), self.last.to_string());
                if self.last > MAX_PASSING as u64 {
                    self.forget((self.last - MAX_PASSING as u64).to_string())
                        .await;
                }
                let (snapshots, begun) = (Snapshots::new(&root), name.clone());
                let place = (snapshots.clone(), name.clone());
                let draft = background(move || Ok(snapshots.draft_passing(&begun)?)).await?;
                let held = self.save(place, draft, talk).await?;
                talk.clients.add_life(LifeEvent::Forked);
                let memory = held.as_ref().map(HeldMemory::path);
                self.memories.extend(held.map(|held| (name.clone(), held)));
                let seats = self.seats.take(count);
                Ok(Some(Source {
                    root,
                    name,
                    memory,
                    seats,
                }))
            }
            MachineRequest::Forked { name } => {
                self.forget(name).await;
                Ok(None)
            }
        }
    }

    /// Removes a snapshot for a moment.
    async fn forget(&mut self, name: String) {
        self.memories.retain(|(known, _)| *known != name);
        let snapshots = Snapshots::new(&self.passing);
        // What is left goes with the sandbox.
        let _ = background(move || Ok(snapshots.remove(&name)?)).await;
    }

    /// Works with the machine on another thread.
    async fn with_vm<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Vm) -> Result<T, MachineFailure> + Send + 'static,
    ) -> Result<T, MachineFailure> {
        let vm = Arc::clone(&self.vm);
        background(move || work(&mut locked(&vm))).await
    }

    async fn resume(&mut self, talk: &mut Talk<'_>) -> Result<(), MachineFailure> {
        self.with_vm(|vm| Ok(vm.resume()?)).await?;
        if std::mem::take(&mut self.held) {
            talk.exchange(&set_clock(), false, |answer| {
                matches!(answer, AgentMessage::ClockSet)
            })
            .await?;
        }
        Ok(())
    }

    /// Saves the machine, which goes on whatever comes of it.
    async fn save(
        &mut self,
        (snapshots, name): (Snapshots, String),
        draft: SnapshotDraft,
        talk: &mut Talk<'_>,
    ) -> Result<Option<HeldMemory>, MachineFailure> {
        if self.held {
            let hint = "let it go on first: its programs are to be held in order";
            return Err(MachineFailure::new("the sandbox is paused", hint));
        }
        self.saving = Some(draft.give_up());
        // What can't be saved is not held for nothing.
        self.with_vm(|vm| Ok(vm.check_saving()?)).await?;
        let frozen = |answer: &AgentMessage| matches!(answer, AgentMessage::Frozen);
        let held = talk.exchange(&HostMessage::Freeze, true, frozen).await;
        let saved = match held {
            Ok(()) => {
                let work = move |vm: &mut Vm| {
                    let held = Resumed(vm);
                    held.0.pause()?;
                    held.0.save(&draft)?;
                    // That this fails is told.
                    held.0.resume()?;
                    Ok(draft)
                };
                self.with_vm(work).await
            }
            Err(failure) => Err(failure),
        };
        // The guest goes on while what was saved is put in its place.
        let about = self.about.clone();
        let publish = async {
            let draft = saved?;
            background(move || Ok(draft.publish(&about)?)).await
        };
        let (published, went_on) = tokio::join!(publish, go_on(talk));
        match (published, went_on) {
            (Ok(held), Ok(())) => Ok(held),
            (Ok(_), Err(failure)) => {
                // Who is told that it failed wants the name again.
                let _ = background(move || Ok(snapshots.remove(&name)?)).await;
                Err(failure)
            }
            (Err(failure), _) => Err(failure),
        }
    }
}

/// Lets everybody in the guest go on. Also an agent that did not answer in time may do so
/// yet, and hold everybody.
async fn go_on(talk: &mut Talk<'_>) -> Result<(), MachineFailure> {
    let clock = |answer: &AgentMessage| matches!(answer, AgentMessage::ClockSet);
    let thawed = |answer: &AgentMessage| matches!(answer, AgentMessage::Thawed);
    let set = talk.exchange(&set_clock(), true, clock).await;
    let thawed = talk.exchange(&HostMessage::Thaw, false, thawed).await;
    set.and(thawed)
}

/// A machine that goes on when this is dropped, whatever has happened: also after a request
/// that was not answered, or a panic.
struct Resumed<'a>(&'a mut Vm);

impl Drop for Resumed<'_> {
    fn drop(&mut self) {
        // It is told of where it is done in order.
        let _ = self.0.resume();
    }
}

/// Does what blocks on another thread.
async fn background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MachineFailure> + Send + 'static,
) -> Result<T, MachineFailure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| MachineFailure::new(error.to_string(), ""))?
}

impl Talk<'_> {
    /// Asks the agent for something and waits for the answer. Clients' frames wait for it,
    /// and after it if they are to be held. Whatever comes of it, the request is on its way.
    async fn exchange(
        &mut self,
        request: &HostMessage,
        hold: bool,
        wanted: impl Fn(&AgentMessage) -> bool,
    ) -> Result<(), MachineFailure> {
        match self.ask(request, hold).await? {
            Some(answer) if wanted(&answer) => Ok(()),
            Some(AgentMessage::Failed(failure)) => Err(MachineFailure {
                hint: failure.hint().map(Into::into),
                reason: control::cut(format!("the guest did not do it: {failure}")),
            }),
            Some(_) => Err(MachineFailure::new("the guest said something else", "")),
            None => Err(MachineFailure::new("the guest has ended", "")),
        }
    }

    /// Says something to the agent, and returns its answer; `None` when the guest has ended.
    async fn ask(
        &mut self,
        request: &HostMessage,
        hold: bool,
    ) -> Result<Option<AgentMessage>, MachineFailure> {
        // What nobody waited for any more.
        while self.answers.try_recv().is_ok() {}
        let mut frame = BytesMut::new();
        // The agent answers in order: what it says before this is what it owed, and would be
        // taken for the answer.
        let token = self.owed.then(unheard);
        if let Some(token) = token {
            put(&HostMessage::Ping { token }, &mut frame)?;
        }
        put(request, &mut frame)?;
        let answer = tokio::time::timeout(ANSWER_TIME, async {
            // Whoever would write it is gone with the machine.
            let _ = self.orders.send(Order { frame, hold }).await;
            if let Some(token) = token {
                let pong = AgentMessage::Pong { token };
                while self.answers.recv().await? != pong {}
            }
            self.answers.recv().await
        });
        let answer = answer.await;
        self.owed = answer.is_err();
        answer.map_err(|_| MachineFailure::new("the guest did not answer in time", ""))
    }
}

fn put(message: &HostMessage, frames: &mut BytesMut) -> Result<(), MachineFailure> {
    let payload = message::encode(message).into();
    Frame::new(Kind::Control, StreamId::CONTROL, payload)
        .map_err(|error| MachineFailure::new(error.to_string(), ""))?
        .encode(frames);
    Ok(())
}

/// A number that the guest can't have said before it was asked.
fn unheard() -> u64 {
    let mut bytes = [0; 8];
    // Without random bytes it is another number all the same, if not one to be surprised by.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes) ^ wall_clock_ns()
}

fn locked(vm: &Mutex<Vm>) -> MutexGuard<'_, Vm> {
    // A machine in whose use something panicked is still a machine.
    vm.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_clock() -> HostMessage {
    HostMessage::SetClock {
        wall_clock_ns: wall_clock_ns(),
    }
}

/// The time now, in nanoseconds since the Unix epoch.
pub(super) fn wall_clock_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(0))
}

/// Waits until the VMM has said something; `false` when that can't be known.
async fn readable(control: Option<&UnixStream>) -> bool {
    let Some(control) = control else {
        return std::future::pending().await;
    };
    let ready = control.readable().await.is_ok();
    // It is read by way of the machine: here it only has to be seen again.
    let taken = || Err::<(), io::Error>(io::ErrorKind::WouldBlock.into());
    let _ = control.try_io(Interest::READABLE, taken);
    ready
}

/// Waits until the guest's kernel has said something; `None` when no more will come.
async fn said(console: Option<&pipe::Receiver>) -> Option<Vec<u8>> {
    let Some(console) = console else {
        return std::future::pending().await;
    };
    let mut piece = vec![0; 4096];
    loop {
        console.readable().await.ok()?;
        match console.try_read(&mut piece) {
            Ok(0) => return None,
            Ok(count) => {
                piece.truncate(count);
                return Some(piece);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// What a client says while the guest is held would be in the middle of what was saved.
    #[tokio::test]
    async fn frames_of_clients_wait_while_the_guest_is_held() {
        let (chunks, from_clients) = mpsc::channel(4);
        let (orders, ordered) = mpsc::channel(4);
        let (agent, mut guest) = tokio::io::duplex(64);
        let order = |text: &[u8], hold| Order {
            frame: text.into(),
            hold,
        };
        orders.send(order(b"freeze ", true)).await.expect("open");
        chunks
            .send(b"client ".as_slice().into())
            .await
            .expect("open");
        let writer = tokio::spawn(write(from_clients, ordered, agent));
        let mut got = [0; 7];
        guest.read_exact(&mut got).await.expect("an order");
        assert_eq!(&got, b"freeze ");
        // An order that is given later overtakes what waits.
        orders.send(order(b"clock ", true)).await.expect("open");
        orders.send(order(b"thaw ", false)).await.expect("open");
        let mut got = [0; 18];
        guest.read_exact(&mut got).await.expect("the rest");
        assert_eq!(&got, b"clock thaw client ");
        drop((chunks, orders));
        writer.await.expect("it ends with those who talk");
    }

    #[tokio::test]
    async fn an_agent_that_says_something_else_is_no_answer() {
        let (orders, mut ordered) = mpsc::channel(4);
        let (answers, answered) = mpsc::channel(4);
        let (_, stopping) = watch::channel(false);
        let (_, mut requests) = mpsc::channel(1);
        let relay = super::super::relay::Relay::new(super::super::meter::Meter::default())
            .expect("a relay");
        let clients = relay.clients();
        let mut talk = Talk {
            clients,
            requests: &mut requests,
            orders,
            answers: answered,
            stopping,
            note: &|_| {},
            owed: false,
        };
        // One that nobody asked for is not taken for the answer.
        answers.send(AgentMessage::Thawed).await.expect("open");
        let asked = talk.exchange(&HostMessage::Freeze, true, |answer| {
            matches!(answer, AgentMessage::Frozen)
        });
        let agent = async {
            let order = ordered.recv().await.expect("an order");
            assert!(order.hold);
            let failure = msb_guest_agent::message::SetupFailure::Refused("no".into());
            answers
                .send(AgentMessage::Failed(failure))
                .await
                .expect("open");
        };
        let (answer, ()) = tokio::join!(asked, agent);
        assert!(answer.expect_err("it failed").reason.contains("no"));
        // Nor is one that it owed when it is asked anew.
        talk.owed = true;
        let asked = talk.exchange(&HostMessage::Thaw, true, |answer| {
            matches!(answer, AgentMessage::Thawed)
        });
        let agent = async {
            let order = ordered.recv().await.expect("an order");
            let mut decoder = msb_guest_agent::wire::FrameDecoder::new();
            decoder.extend(&order.frame);
            let mut next = || {
                let frame = decoder.next_frame().expect("whole").expect("one");
                message::decode(&frame.payload).expect("a message")
            };
            let HostMessage::Ping { token } = next() else {
                panic!("it does not know what is owed");
            };
            // What is asked for does not wait for it.
            assert_eq!(next(), HostMessage::Thaw);
            let late = AgentMessage::Pong { token: !token };
            for owed in [AgentMessage::Frozen, late, AgentMessage::Pong { token }] {
                answers.send(owed).await.expect("open");
            }
            answers.send(AgentMessage::Thawed).await.expect("open");
        };
        let (answer, ()) = tokio::join!(asked, agent);
        answer.expect("it is the right one");
        assert!(!talk.owed);
        drop(answers);
        let gone = talk.exchange(&HostMessage::Thaw, false, |_| true).await;
        assert!(gone.expect_err("it is gone").reason.contains("ended"));
        std::thread::spawn(move || drop(relay))
            .join()
            .expect("it ends");
    }
}
