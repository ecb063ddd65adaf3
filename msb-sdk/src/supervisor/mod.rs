//! The supervisor: the process that owns one sandbox.
//!
//! It is the embedding program started again, with three descriptors: 0 is the
//! socket to its creator, 1 the sandbox's lock, 2 a log. It starts the virtual
//! machine, passes the guest's streams on, and removes the sandbox when it
//! ends, unless it is kept. The guest dies with the supervisor (the VMM has asked for
//! that), and holds the lock until it has. That of an attached sandbox ends when its creator
//! does: the socket closes. That of a detached one is a session of its own and is found by its
//! socket, from when its creator has taken notice.
//!
//! ```text
//! launch ──► [start: template, VM, hello, configure] ──► ready ──► adopted ──► [relay] ──► ended
//!                         └──────────► failed ◄────────────┘
//! ```

mod clients;
mod dial;
mod execs;
mod journal;
mod machine;
mod meter;
mod network;
mod parked;
mod patch;
mod program;
mod relay;
mod restore;
mod routes;
mod start;
mod template;
mod trust;

pub(crate) use start::mke2fs;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use self::clients::Tie;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::program::Program;
use self::relay::{End, Note, Relay, Resident, Sockets};
use self::start::{Failure, Running};
use crate::control::{self, FromSupervisor, Launch};
use crate::error::Error;
use crate::event::{LifeEvent, TimedLife};
use crate::home::{self, Home};
use crate::record::{Phase, State};
use crate::secret::Values;
use crate::socket;
use crate::state::SandboxDir;
use crate::trouble;

/// `argv[0]` of a supervisor: tells the hook what it is started as, and shows
/// in process lists.
const ARGV0: &str = "msb-supervisor";

/// How the C library's memory is to be had: what is this large is given back to the host when
/// it is not needed any more. Left to itself the library keeps it, once it has seen it come
/// and go, and clears it for the next who asks: after a hundred connections, whose buffers are
/// hardly used, 100 MB are resident for ever.
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072");

/// Set by the hook: this program can supervise sandboxes.
static HOOKED: AtomicBool = AtomicBool::new(false);

/// Makes this program able to supervise its sandboxes. To be called first in
/// `main`, before anything is printed and any thread is started.
///
/// In an ordinary process it returns at once. In one that was started as a
/// supervisor, or by one as a virtual machine, it does that work and ends the process.
///
/// ```
/// // first thing in main:
/// msb_sdk::supervisor_hook();
/// ```
pub fn hook() {
    msb_vmm::runner_hook();
    if std::env::args_os()
        .next()
        .is_some_and(|argv0| argv0 == ARGV0)
    {
        let code = supervise();
        std::process::exit(code);
    }
    HOOKED.store(true, Ordering::Relaxed);
}

/// Starts a supervisor for the sandbox in `dir`, without the variables that are `hidden`;
/// returns the socket to it.
pub(crate) fn spawn(
    dir: &SandboxDir,
    attached: bool,
    hidden: Vec<OsString>,
) -> Result<UnixStream, Error> {
    use std::os::unix::process::CommandExt;
    let program = if HOOKED.load(Ordering::Relaxed) {
        "/proc/self/exe".into()
    } else {
        home::installed_msb().ok_or(Error::NoSupervisor)?
    };
    let failed = |source: io::Error| Error::Supervisor { source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let log = File::create(dir.path().join("log")).map_err(failed)?;
    let mut command = Command::new(program);
    command
        .arg0(ARGV0)
        .stdin(OwnedFd::from(theirs))
        .stdout(dir.lock().map_err(failed)?)
        .stderr(log)
        .current_dir("/");
    command.env(TUNABLES.0, tunables());
    for variable in hidden {
        command.env_remove(variable);
    }
    if attached {
        // Ctrl-C in the terminal is for the guest, by way of the creator. One that is
        // detached makes a session of its own, which a leader of a group can't.
        command.process_group(0);
    }
    command.spawn().map(reap).map_err(failed)?;
    Ok(ours)
}

/// Ours, and what the user wants of the library, which counts.
fn tunables() -> OsString {
    let mut all = OsString::from(TUNABLES.1);
    if let Some(own) = std::env::var_os(TUNABLES.0) {
        all.push(":");
        all.push(own);
    }
    all
}

/// Waits for the supervisor in the background, so that it leaves no zombie in
/// a program that lives on.
fn reap(mut child: std::process::Child) {
    // Without a thread the zombie stays until this program ends: no harm.
    let _ = std::thread::Builder::new()
        .name("msb-reap".into())
        .stack_size(64 * 1024)
        .spawn(move || child.wait());
}

/// The supervisor's whole life; returns its exit code.
fn supervise() -> i32 {
    let Ok((mut creator, lock)) = take_descriptors() else {
        return 1;
    };
    leave_no_dump();
    raise_descriptors();
    let Ok((launch, values)) = control::receive_launch(&mut creator) else {
        return 1;
    };
    let Ok(home) = Home::at(&launch.home) else {
        return 1;
    };
    if !launch.attached {
        // Away from the terminal, whose end is not ours. Fails for a leader of a group,
        // which an embedding program may have made of us: then it is as it wants.
        let _ = rustix::process::setsid();
    }
    let dir = SandboxDir::inherited(&home, &launch.spec.name, lock);
    let mut state = State::starting();
    let begun = begin((&launch, values), &home, &dir, &creator, &mut state);
    let adopted = begun.and_then(|begun| begun.adopted(&launch, &mut creator));
    match adopted {
        Ok(begun) => oversee(&launch, dir, state, creator, begun),
        Err(failure) => {
            let reason = control::cut(failure.reason);
            // The folder first: whoever reads the message may want the name again.
            settle(
                &launch,
                dir,
                &mut state,
                &End::failure(&reason),
                launch.fresh,
            );
            let hint = failure.hint;
            let message = control::encode(&FromSupervisor::Failed { reason, hint });
            let _ = creator.write_all(&message);
            1
        }
    }
}

/// A sandbox that has started.
struct Begun {
    running: Running,
    listener: UnixListener,
    relay: Relay,
}

impl Begun {
    /// Tells the creator, and waits until it takes a sandbox that is to live on. One whose
    /// creator was interrupted first is nobody's: it ends.
    fn adopted(self, launch: &Launch, creator: &mut UnixStream) -> Result<Self, Failure> {
        let ready = self.running.ready.clone();
        // A creator that is gone is seen by the relay.
        let _ = creator.write_all(&control::encode(&FromSupervisor::Ready(ready)));
        if launch.attached || control::is_adopted(creator) {
            return Ok(self);
        }
        Err(Failure {
            reason: "its creator ended while it was being started".into(),
            hint: None,
        })
    }
}

/// Starts the guest, and opens the socket at which it is found.
fn begin(
    launch: (&Launch, Values),
    home: &Home,
    dir: &SandboxDir,
    mut creator: &UnixStream,
    state: &mut State,
) -> Result<Begun, Failure> {
    let host = |error: Error| Failure::bug(&error.to_string());
    state.write(dir.path()).map_err(host)?;
    let created = launch.0.fresh.then(|| {
        let image = launch.0.spec.image.clone();
        TimedLife::now(LifeEvent::Created { image })
    });
    let listener = socket::listen(dir.path()).map_err(Failure::io)?;
    let running = start::start(launch, home, dir, &mut |step| {
        let _ = creator.write_all(&control::encode(&FromSupervisor::Progress(step)));
    })?;
    state.phase = Phase::Running;
    state.ready = Some(running.ready.clone());
    state.write(dir.path()).map_err(host)?;
    let relay = Relay::new(running.meter(dir)).map_err(Failure::io)?;
    if let Some(created) = created {
        relay.clients().add_life_of(created);
    }
    let engine = running.ready.engine.clone();
    relay.clients().add_life(LifeEvent::Started { engine });
    Ok(Begun {
        running,
        listener,
        relay,
    })
}

/// Runs a sandbox that has started to its end.
fn oversee(
    launch: &Launch,
    dir: SandboxDir,
    state: State,
    creator: UnixStream,
    begun: Begun,
) -> i32 {
    let Begun {
        running,
        listener,
        mut relay,
    } = begun;
    let Running {
        keeper,
        agent,
        ready,
        mut wire,
        lease,
        command,
    } = running;
    let greeting = control::encode(&FromSupervisor::Ready(ready));
    let state = Arc::new(Mutex::new(state));
    let resident = command.map(|argv| -> Box<dyn Resident> {
        let spec = &launch.spec;
        Box::new(Program::new(argv, spec, dir.path(), Arc::clone(&state)))
    });
    let sockets = Sockets {
        creator,
        tie: match (launch.attached, launch.keep) {
            (false, _) => Tie::Loose,
            (true, false) => Tie::Ends,
            (true, true) => Tie::Stops,
        },
        listener,
        agent,
    };
    let clients = Arc::clone(relay.clients());
    let note = |note: Note<'_>| {
        let mut state = program::locked(&state);
        match note {
            Note::Phase(phase) => {
                match phase {
                    Phase::Running => clients.add_life(LifeEvent::Resumed),
                    Phase::Paused => clients.add_life(LifeEvent::Paused),
                    Phase::Stopping => clients.add_life(LifeEvent::Stopping),
                    Phase::Starting | Phase::Stopped => {}
                }
                state.phase = phase;
            }
            Note::Trouble(trouble) => {
                let message = trouble::explain(trouble, &launch.spec, dir.path());
                clients.add_life(LifeEvent::Trouble {
                    trouble: trouble::kind(trouble).to_owned(),
                    reason: message.clone(),
                });
                if !trouble::note(&mut state.troubles, trouble, message) {
                    return;
                }
            }
        }
        // It is for others to see, and the end comes all the same.
        let _ = state.write(dir.path());
    };
    let ended = relay.run(sockets, keeper, &mut wire, &greeting, resident, &note);
    let mut end =
        ended.unwrap_or_else(|error| End::failure(&format!("the supervisor failed: {error}")));
    if !end.asked && trouble::is_full(dir.path()) {
        end.reason.push_str("; this host's disk is full");
    }
    drop(lease);
    // Ports are free before the lock is: whoever starts it again wants them.
    let events = wire.finish();
    let mut last = program::end(&state);
    settle(launch, dir, &mut last, &end, !launch.keep);
    relay.farewell(events, &end);
    0
}

/// Leaves the folder as it is to be found: removed, or with a note of the end. The lock is
/// free afterwards.
fn settle(launch: &Launch, dir: SandboxDir, state: &mut State, end: &End, remove: bool) {
    if remove || !launch.keep {
        let _ = dir.remove();
        return;
    }
    socket::remove(dir.path());
    // What forks that nobody came for would have gone on from.
    let _ = std::fs::remove_dir_all(dir.path().join(machine::PASSING));
    state.ended(&end.reason, end.asked);
    // Without the note the free lock says that it has ended, though not how.
    let _ = state.write(dir.path());
}

/// A dump of this process would hold the values of secrets. One byte, because none at all
/// does not keep a program that takes dumps from getting one.
fn leave_no_dump() {
    let limit = Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    // The limit can always be lowered.
    let _ = setrlimit(Resource::Core, limit);
}

/// Each flow of the guest has a socket here, and systems begin with a limit of few. The VMM
/// gets one of its own.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // What it was will do for most guests; the network tells where it does not.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Takes the descriptors that [`spawn`] has placed, and leaves harmless ones.
fn take_descriptors() -> io::Result<(UnixStream, File)> {
    let creator = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let lock = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok((UnixStream::from(creator), File::from(lock)))
}
