//! The session phase: one loop that moves bytes between the link and the
//! commands, reaps, and answers control messages.
//!
//! Nothing is buffered without bound: commands are read only while there is
//! credit and the link takes what was read before, input is bounded by the
//! window. At rest the loop sits in `poll` without a timeout.

mod hold;
mod trouble;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};

use self::hold::Ahead;
use super::boot::Guest;
use super::dial::Dial;
use super::exec::Exec;
use super::file::Files;
use super::groups::Groups;
use super::kernel_log::KernelLog;
use super::link::Link;
use super::metrics;
use super::orphan::Orphan;
use super::pressure::Pressure;
use super::sys;
use super::world::World;
use crate::endpoint::{GuestEndpoint, GuestEvent};
use crate::message::{
    AgentMessage, ExitStatus, HostMessage, Request, ResetCode, Signal, StreamEvent,
};
use crate::wire::{Channel, StreamId};

/// Output that may wait for the link before commands are not read any more.
const MAX_OUTPUT: usize = 256 * 1024;

/// Output that may wait for the link before the host is not listened to any
/// more. Only answers to a host that asks and does not read can be this much.
const MAX_ANSWERS: usize = 4 * 1024 * 1024;

/// Syncs that may be asked for while one is running.
const MAX_SYNCS: usize = 1024;

/// How long processes may take to vanish after they were killed.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Largest piece read from a command or the link at once.
const BUFFER: usize = 64 * 1024;

/// Why the session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The host asked for it, and all processes are gone.
    Shutdown,
    /// The host is gone.
    HostGone,
}

/// A running session.
pub(super) struct Session {
    link: Link,
    endpoint: GuestEndpoint,
    world: World,
    execs: BTreeMap<StreamId, Exec>,
    by_pid: BTreeMap<i32, StreamId>,
    dials: BTreeMap<StreamId, Dial>,
    files: Files,
    /// Where commands run, in a guest.
    groups: Option<Groups>,
    kernel_log: Option<KernelLog>,
    pressure: Option<Pressure>,
    children: OwnedFd,
    syncs: Syncs,
    stopping: Option<Stopping>,
    /// Commands that a guest has started which this one once was.
    orphans: Vec<Orphan>,
    /// Everybody is to be held.
    freezing: bool,
    /// Who this guest is. With it, signals go to everybody, as only PID 1 may do.
    guest: Option<Guest>,
    /// What was found when everybody was held last. Is kept until the host asks for something:
    /// to close what it has open keeps a copy's programs waiting.
    ahead: Option<Ahead>,
}

/// `sync` can take seconds, so it runs on a thread of its own.
struct Syncs {
    done: OwnedFd,
    /// Who is told when the one that runs is done.
    running: Option<Vec<u64>>,
    waiting: Vec<u64>,
}

struct Stopping {
    deadline: Instant,
    killed: bool,
}

/// What a descriptor in the poll set stands for.
#[derive(Clone, Copy)]
enum Source {
    Link,
    Children,
    Synced,
    Files,
    KernelLog,
    Pressure,
    Input(StreamId),
    Output(StreamId, Channel),
    Dial(StreamId),
    /// An orphan, and which of its outputs.
    Orphan(usize, usize),
}

impl Session {
    pub(super) fn new(link: Link, world: World, guest: Option<Guest>) -> io::Result<Session> {
        let cgroups = guest.as_ref().and_then(|_| world.devices().cgroups());
        let groups = cgroups.and_then(Groups::open);
        // That of another kernel's log is not this guest's.
        let kernel_log = guest.as_ref().and_then(|_| KernelLog::open().ok());
        let pressure = groups.as_ref().map(|groups| Pressure::open(groups.all()));
        let pressure = pressure.and_then(io::Result::ok);
        Ok(Session {
            pressure,
            groups,
            kernel_log,
            link,
            endpoint: GuestEndpoint::new(),
            world,
            execs: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            dials: BTreeMap::new(),
            files: Files::new()?,
            children: sys::child_signals()?,
            syncs: Syncs {
                done: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
                running: None,
                waiting: Vec::new(),
            },
            stopping: None,
            orphans: Vec::new(),
            freezing: false,
            guest,
            ahead: None,
        })
    }

    /// Runs until the session ends.
    ///
    /// # Errors
    /// When the host breaks the protocol or the kernel refuses the loop.
    pub(super) fn run(&mut self) -> io::Result<End> {
        let mut buffer = vec![0; BUFFER];
        loop {
            while std::mem::take(&mut self.freezing) {
                if !self.hold(&mut buffer)? {
                    return Ok(End::HostGone);
                }
                // What came behind the word that ended it.
                self.handle_events()?;
            }
            self.files.turn(&mut self.endpoint, MAX_OUTPUT);
            self.relieve();
            if !self.flush()? {
                return Ok(End::HostGone);
            }
            if self.stopped() {
                return Ok(End::Shutdown);
            }
            for source in self.wait()? {
                match source {
                    Source::Link => {
                        if !self.read_link(&mut buffer)? {
                            return Ok(End::HostGone);
                        }
                    }
                    Source::Children => self.reap(&mut buffer)?,
                    Source::Synced => self.synced(),
                    // The loop looks at them anyway.
                    Source::Files => self.files.woken(),
                    Source::KernelLog => self.read_kernel_log(),
                    Source::Pressure => {
                        if let Some(pressure) = &mut self.pressure {
                            pressure.begin(Instant::now());
                        }
                    }
                    Source::Input(stream) => {
                        if let Some(exec) = self.execs.get_mut(&stream) {
                            exec.pump_input(&mut self.endpoint);
                        }
                    }
                    Source::Output(stream, channel) => self.pump(stream, channel, &mut buffer),
                    Source::Dial(stream) => self.turn(stream, &mut buffer),
                    Source::Orphan(place, output) => {
                        self.orphans[place].drain(output, &mut buffer);
                    }
                }
            }
            self.orphans.retain(|orphan| !orphan.is_over());
        }
    }

    /// The link and what is still to be said on it, when the loop has ended.
    pub(super) fn farewell(mut self, message: &AgentMessage) -> io::Result<()> {
        self.endpoint.control(message);
        self.link.set_blocking()?;
        self.link.write_all(self.endpoint.output())
    }

    /// Writes what the link takes. `false`: the host is gone.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.endpoint.output().is_empty() {
            match self.link.write(self.endpoint.output()) {
                Ok(0) => break,
                Ok(n) => self.endpoint.consume_output(n),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Waits for something to do and says what.
    fn wait(&mut self) -> io::Result<Vec<Source>> {
        let timeout = self.timeout();
        let pending = self.endpoint.output().len();
        let mut link = PollFlags::empty();
        link.set(PollFlags::IN, pending < MAX_ANSWERS);
        link.set(PollFlags::OUT, pending > 0);
        // Children last: what they wrote is seen first.
        let mut sources = vec![Source::Link, Source::Synced, Source::Files];
        let mut fds = vec![
            PollFd::new(&self.link, link),
            PollFd::new(&self.syncs.done, PollFlags::IN),
            PollFd::new(self.files.wake(), PollFlags::IN),
        ];
        if let Some(log) = self.kernel_log.as_ref().filter(|_| pending < MAX_OUTPUT) {
            sources.push(Source::KernelLog);
            fds.push(PollFd::from_borrowed_fd(log.source(), PollFlags::IN));
        }
        if let Some(fd) = self.pressure.as_ref().and_then(Pressure::source) {
            sources.push(Source::Pressure);
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::PRI));
        }
        for (stream, exec) in &self.execs {
            if let Some(fd) = exec.input_waiting() {
                sources.push(Source::Input(*stream));
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            }
            for (channel, fd) in exec.outputs() {
                if pending < MAX_OUTPUT && self.endpoint.capacity(*stream, channel) > 0 {
                    sources.push(Source::Output(*stream, channel));
                    fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                }
            }
        }
        for (stream, dial) in &self.dials {
            let output =
                pending < MAX_OUTPUT && self.endpoint.capacity(*stream, Channel::Stdout) > 0;
            if let Some((fd, flags)) = dial.waiting(output) {
                sources.push(Source::Dial(*stream));
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        for (place, orphan) in self.orphans.iter().enumerate() {
            for (output, fd) in orphan.outputs() {
                sources.push(Source::Orphan(place, output));
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
        }
        sources.push(Source::Children);
        fds.push(PollFd::new(&self.children, PollFlags::IN));

        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        let ready =
            |(source, fd): (Source, &PollFd<'_>)| (!fd.revents().is_empty()).then_some(source);
        Ok(sources.into_iter().zip(&fds).filter_map(ready).collect())
    }

    fn read_link(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(bytes) = self.link.read(buffer)? else {
            return Ok(false);
        };
        self.endpoint.handle_input(bytes);
        self.handle_events()?;
        Ok(true)
    }

    /// Does what the host has said, up to its wish that everybody be held: what follows is
    /// said to those who are.
    fn handle_events(&mut self) -> io::Result<()> {
        while !self.freezing
            && let Some(event) = self.next_event()?
        {
            self.handle(event);
        }
        Ok(())
    }

    fn next_event(&mut self) -> io::Result<Option<GuestEvent>> {
        let event = self.endpoint.poll_event();
        event.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn handle(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Control(message) => self.control(&message),
            GuestEvent::Opened { stream, request } => {
                self.ahead = None;
                self.open(stream, &request);
            }
            GuestEvent::Command { stream, command } => {
                if let Some(exec) = self.execs.get(&stream) {
                    exec.command(command);
                }
            }
            GuestEvent::Data { stream, data } => {
                if let Some(exec) = self.execs.get_mut(&stream) {
                    exec.take_input(data, &mut self.endpoint);
                } else if let Some(dial) = self.dials.get_mut(&stream) {
                    dial.take_input(data, &mut self.endpoint);
                } else if self.files.has(stream) {
                    self.files.take_input(stream, data);
                } else {
                    self.endpoint.consumed(stream, data.len());
                }
            }
            GuestEvent::Eof { stream } => {
                if let Some(exec) = self.execs.get_mut(&stream) {
                    exec.end_input(&mut self.endpoint);
                } else if let Some(dial) = self.dials.get_mut(&stream) {
                    dial.end_input();
                    // Without bytes that wait for the socket nothing would tell it so.
                    self.turn(stream, &mut []);
                } else {
                    self.files.end_input(stream);
                }
            }
            GuestEvent::Closed { stream, .. } => {
                if let Some(mut exec) = self.execs.remove(&stream) {
                    exec.signal(Signal::KILL, true);
                    self.by_pid.remove(&exec.pid());
                    self.leave_group(&mut exec);
                }
                if let Some(dial) = self.dials.remove(&stream) {
                    dial.abandon();
                }
                self.files.abandon(stream);
            }
            // The loop looks for credit itself.
            GuestEvent::Writable { .. } => {}
        }
    }

    fn open(&mut self, stream: StreamId, request: &Request) {
        if self.stopping.is_some() {
            self.endpoint.reset(stream, ResetCode::ShuttingDown);
            return;
        }
        let event = match request {
            Request::Exec(request) => match self.start(stream, request) {
                Ok(exec) => {
                    let pid = exec.pid();
                    self.by_pid.insert(pid, stream);
                    self.execs.insert(stream, exec);
                    StreamEvent::Started { pid: pid as u32 }
                }
                Err(error) => StreamEvent::Failed(error),
            },
            Request::Dial { port } => match Dial::start(stream, *port) {
                Ok(dial) => {
                    self.dials.insert(stream, dial);
                    return;
                }
                Err(event) => event,
            },
            Request::File(request) => match self.files.start(stream, request, &self.world) {
                Ok(()) => return,
                Err(event) => event,
            },
            Request::Metrics { processes } => self.metrics(*processes),
        };
        // It was opened by this very event, so it is open.
        let _ = self.endpoint.event(stream, &event);
    }

    fn metrics(&self, processes: bool) -> StreamEvent {
        let proc = self.world.devices().proc();
        let metrics = proc.map(|proc| metrics::read(proc, processes));
        StreamEvent::Metrics(Box::new(metrics.unwrap_or_default()))
    }

    fn control(&mut self, message: &HostMessage) {
        let answer = match *message {
            HostMessage::Ping { token } => AgentMessage::Pong { token },
            HostMessage::Sync { token } => return self.sync(token),
            HostMessage::SetClock { wall_clock_ns } => hold::set_clock(wall_clock_ns),
            HostMessage::Freeze => {
                self.freezing = true;
                return;
            }
            // Nobody is held, which is what is asked for.
            HostMessage::Thaw => AgentMessage::Thawed,
            HostMessage::Shutdown { grace_ms } => {
                return self.shut_down(Duration::from_millis(grace_ms.into()));
            }
            _ => AgentMessage::Failed(crate::message::SetupFailure::Refused(
                "the guest is configured already".into(),
            )),
        };
        self.endpoint.control(&answer);
    }

    fn pump(&mut self, stream: StreamId, channel: Channel, buffer: &mut [u8]) {
        if let Some(exec) = self.execs.get_mut(&stream) {
            exec.pump_output(channel, buffer, &mut self.endpoint);
            self.settle(stream);
        }
    }

    /// Moves bytes of a connection.
    fn turn(&mut self, stream: StreamId, buffer: &mut [u8]) {
        let dial = self.dials.get_mut(&stream);
        if dial.is_some_and(|dial| !dial.turn(buffer, &mut self.endpoint)) {
            self.dials.remove(&stream);
        }
    }

    /// Reports the end of a command once all before it is reported.
    fn settle(&mut self, stream: StreamId) {
        let Some(status) = self.execs.get(&stream).and_then(Exec::end) else {
            return;
        };
        if let Some(mut exec) = self.execs.remove(&stream) {
            let event = self.last_event(&exec, status);
            let _ = self.endpoint.event(stream, &event);
            self.leave_group(&mut exec);
        }
    }

    /// Takes note of every process that has ended: commands, and orphans that
    /// have become children of PID 1.
    fn reap(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        // Says only that there is something; how much is for `wait` to say.
        let mut info = [0; 128];
        while rustix::io::read(&self.children, &mut info).is_ok() {}
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let stream = self.by_pid.remove(&pid.as_raw_nonzero().get());
            let Some(stream) = stream else { continue };
            if let Some(exec) = self.execs.get_mut(&stream) {
                exec.ended(exit_status(status), buffer, &mut self.endpoint);
                self.settle(stream);
            }
        }
    }

    fn sync(&mut self, token: u64) {
        if self.syncs.waiting.len() < MAX_SYNCS {
            self.syncs.waiting.push(token);
        }
        self.start_sync();
    }

    fn start_sync(&mut self) {
        let syncs = &mut self.syncs;
        if syncs.running.is_some() || syncs.waiting.is_empty() {
            return;
        }
        let Ok(done) = syncs.done.try_clone() else {
            return;
        };
        let work = move || {
            rustix::fs::sync();
            let _ = rustix::io::write(&done, &1u64.to_ne_bytes());
        };
        if std::thread::Builder::new()
            .stack_size(BUFFER)
            .spawn(work)
            .is_ok()
        {
            syncs.running = Some(std::mem::take(&mut syncs.waiting));
        } else {
            rustix::fs::sync();
            for token in std::mem::take(&mut syncs.waiting) {
                self.endpoint.control(&AgentMessage::Synced { token });
            }
        }
    }

    fn synced(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.syncs.done, &mut count);
        for token in self.syncs.running.take().unwrap_or_default() {
            self.endpoint.control(&AgentMessage::Synced { token });
        }
        self.start_sync();
    }

    /// Unmounts the guest's root.
    pub(super) fn unmount(&mut self) -> io::Result<()> {
        // A file that is open for writing keeps its file system writable.
        self.ahead = None;
        self.guest
            .as_ref()
            .map_or(Ok(()), |guest| guest.root.unmount())
    }

    /// Asks all processes to end. Said again, it can only make less of their time.
    pub(super) fn shut_down(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        if let Some(stopping) = &mut self.stopping {
            stopping.deadline = stopping.deadline.min(deadline);
            return;
        }
        self.stopping = Some(Stopping {
            deadline,
            killed: false,
        });
        self.signal_all(Signal::TERM);
        self.files.shut_down(&mut self.endpoint);
    }

    /// Ends all processes without listening to the host.
    pub(super) fn abandon(&mut self, grace: Duration) {
        self.shut_down(grace);
        let mut buffer = vec![0; BUFFER];
        while !self.stopped() {
            let timeout = self.timeout();
            let mut fds = [
                PollFd::new(&self.children, PollFlags::IN),
                PollFd::new(self.files.wake(), PollFlags::IN),
            ];
            let _ = poll(&mut fds, timeout.as_ref());
            self.files.woken();
            let _ = self.reap(&mut buffer);
        }
    }

    /// Tells whether all processes are gone after [`shut_down`](Self::shut_down),
    /// killing them when their time is up.
    fn stopped(&mut self) -> bool {
        let Some(stopping) = &mut self.stopping else {
            return false;
        };
        if !has_children() && self.files.idle() {
            return true;
        }
        if Instant::now() < stopping.deadline {
            return false;
        }
        if stopping.killed {
            return true;
        }
        stopping.killed = true;
        stopping.deadline = Instant::now() + KILL_PATIENCE;
        self.signal_all(Signal::KILL);
        false
    }

    fn signal_all(&self, signal: Signal) {
        if self.guest.is_some() {
            let _ = sys::kill(-1, i32::from(signal.number()));
        } else {
            for exec in self.execs.values() {
                exec.signal(signal, true);
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let stopping = self.stopping.as_ref().map(|stopping| stopping.deadline);
        let pressure = self.pressure.as_ref().and_then(Pressure::deadline);
        let next = [stopping, pressure].into_iter().flatten().min()?;
        let left = next.saturating_duration_since(Instant::now());
        Some(Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        })
    }
}

/// Tells whether there is any child, without reaping one.
fn has_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signal {
            signal: signal as u8,
            core_dumped: status.as_raw() & 0x80 != 0,
        },
        None => ExitStatus::Code(status.exit_status().unwrap_or(0) as u8),
    }
}
