//! The thread from which all VMMs are spawned.
//!
//! A VMM asks the kernel to be killed when its parent dies, and the kernel takes
//! "parent" to be the thread that forked. A machine started from a worker thread
//! would die when the pool retires that thread; one started from here dies with
//! the process.

use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// Spawns `command` from the launcher thread and waits for the outcome.
///
/// # Errors
///
/// What `fork` or `exec` failed with, or the reason the thread can't be made.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    let (reply, outcome) = sync_channel(1);
    let job: Job = Box::new(move || {
        // The caller waits for the reply, so sending it cannot fail.
        let _ = reply.send(command.spawn());
    });
    let gone = || io::Error::other("the launcher thread is gone");
    jobs()?.send(job).map_err(|_| gone())?;
    outcome.recv().map_err(|_| gone())?
}

fn jobs() -> io::Result<&'static Sender<Job>> {
    static JOBS: OnceLock<Result<Sender<Job>, io::ErrorKind>> = OnceLock::new();
    JOBS.get_or_init(|| {
        let (sender, receiver) = channel::<Job>();
        thread::Builder::new()
            .name("msb-launcher".to_owned())
            .stack_size(128 << 10)
            .spawn(move || receiver.iter().for_each(|job| job()))
            .map(|_| sender)
            .map_err(|error| error.kind())
    })
    .as_ref()
    .map_err(|&kind| io::Error::from(kind))
}
