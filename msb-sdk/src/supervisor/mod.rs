//! The supervisor: the process that owns one sandbox.
//!
//! It is the embedding program started again, with three descriptors: 0 is the
//! socket to its creator, 1 the sandbox's lock, 2 a log. It starts the virtual
//! machine, passes the guest's streams on, and removes the sandbox when it
//! ends. The guest dies with the supervisor (the VMM has asked for that), and
//! the supervisor ends when its creator does: the socket closes.
//!
//! ```text
//! launch ──► [start: template, VM, hello, configure] ──► ready ──► [relay] ──► ended
//!                         └──────────► failed
//! ```

mod dial;
mod network;
mod patch;
mod relay;
mod start;
mod template;

pub(crate) use start::mke2fs;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::control::{self, FromSupervisor};
use crate::error::Error;
use crate::home::{self, Home};
use crate::state::SandboxDir;

/// `argv[0]` of a supervisor: tells the hook what it is started as, and shows
/// in process lists.
const ARGV0: &str = "msb-supervisor";

/// How long a creator may take over anything that it is told at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

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

/// Starts a supervisor for the sandbox in `dir`; returns the socket to it.
pub(crate) fn spawn(dir: &SandboxDir) -> Result<UnixStream, Error> {
    use std::os::unix::process::CommandExt;
    let program = if HOOKED.load(Ordering::Relaxed) {
        "/proc/self/exe".into()
    } else {
        home::installed_msb().ok_or(Error::NoSupervisor)?
    };
    let failed = |source: io::Error| Error::Supervisor { source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let log = File::create(dir.path().join("log")).map_err(failed)?;
    Command::new(program)
        .arg0(ARGV0)
        .stdin(OwnedFd::from(theirs))
        .stdout(dir.lock().map_err(failed)?)
        .stderr(log)
        // Ctrl-C in the terminal is for the guest, by way of the creator.
        .process_group(0)
        .current_dir("/")
        .spawn()
        .map(reap)
        .map_err(failed)?;
    Ok(ours)
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
    let Ok(launch) = control::receive_launch(&mut creator) else {
        return 1;
    };
    let Ok(home) = Home::at(&launch.home) else {
        return 1;
    };
    let dir = SandboxDir::inherited(&home, &launch.spec.name, lock);

    let mut tell = |message: &FromSupervisor| creator.write_all(&control::encode(message));
    let started = start::start(&launch, &home, &dir, &mut |step| {
        let _ = tell(&FromSupervisor::Progress(step));
    });
    let running = match started {
        Ok(running) => running,
        Err(failure) => {
            // The folder first: whoever reads the message may want the name again.
            let _ = dir.remove();
            let _ = tell(&FromSupervisor::Failed {
                reason: control::cut(failure.reason),
                hint: failure.hint,
            });
            return 1;
        }
    };
    if tell(&FromSupervisor::Ready(running.ready.clone())).is_err() {
        drop(running);
        let _ = dir.remove();
        return 0;
    }
    let (vm, lease, mut wire) = (running.vm, running.lease, running.wire);
    let ended = creator
        .try_clone()
        .and_then(|socket| relay::run(socket, running.agent, vm, &mut wire));
    drop(lease);
    let _ = dir.remove();
    let _ = creator.set_nonblocking(false);
    // A creator that does not listen does not keep its supervisor.
    let _ = creator.set_write_timeout(Some(LAST_WORDS));
    wire.finish(&creator);
    let (reason, asked) =
        ended.unwrap_or_else(|error| (format!("the supervisor failed: {error}"), false));
    let reason = control::cut(reason);
    let _ = creator.write_all(&control::encode(&FromSupervisor::Ended { reason, asked }));
    0
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
