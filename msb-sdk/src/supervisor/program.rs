//! The program that the supervisor runs in the guest at each start, and its log.
//!
//! A detached sandbox has nobody who reads what its program writes. It goes to two files,
//! the older of which is given up when the newer is full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msb_guest_agent::endpoint::HostEndpoint;

use super::relay::Resident;
use crate::exec::{ExecEvent, ExecHandle, ExecOptions};
use crate::link::Link;
use crate::logs::{MAX_LOG, NEWER, OLDER};
use crate::record::{Phase, ProgramEnd, State, now};
use crate::spec::SandboxSpec;
use crate::trouble::explain;

/// See the [module](self).
pub(super) struct Program {
    argv: Vec<String>,
    spec: SandboxSpec,
    dir: PathBuf,
    state: Arc<Mutex<State>>,
}

/// The state, which no panic leaves half written.
pub(super) fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state at the end of the sandbox. From here on a [`Program`] writes none: the folder
/// may be somebody else's.
pub(super) fn end(state: &Mutex<State>) -> State {
    let mut state = locked(state);
    let last = state.clone();
    state.phase = Phase::Stopped;
    last
}

impl Program {
    pub(super) fn new(
        argv: Vec<String>,
        spec: &SandboxSpec,
        dir: &Path,
        state: Arc<Mutex<State>>,
    ) -> Self {
        let (spec, dir) = (spec.clone(), dir.to_owned());
        Self {
            argv,
            spec,
            dir,
            state,
        }
    }

    async fn run(self, link: Link) {
        let mut log = Log::open(&self.dir);
        let (program, args) = self.argv.split_first().expect("a command has words");
        let started = ExecHandle::start(&link, ExecOptions::new(program, args)).await;
        let end = match started {
            Ok(handle) => self.follow(handle, &mut log).await,
            Err(error) => {
                log.write(format!("msb: {error}\n").as_bytes());
                ended(error.to_string(), Some(error.exit_code()))
            }
        };
        let mut state = locked(&self.state);
        if state.phase == Phase::Stopped {
            return;
        }
        state.program = Some(end);
        // It is for others to see.
        let _ = state.write(&self.dir);
    }

    async fn follow(&self, mut handle: ExecHandle, log: &mut Log) -> ProgramEnd {
        let mut end = ended("its end was not reported".into(), None);
        let mut troubles = String::new();
        while let Some(event) = handle.recv().await {
            match event {
                ExecEvent::Stdout(data) | ExecEvent::Stderr(data) => log.write(&data),
                ExecEvent::Trouble(trouble) => {
                    troubles.push_str("; ");
                    troubles.push_str(&explain(&trouble, &self.spec, &self.dir));
                }
                ExecEvent::Exited(status) => {
                    end = ended(format!("{status}{troubles}"), Some(status.code()));
                }
                ExecEvent::Lost { reason } => end = ended(reason, None),
                ExecEvent::TimedOut { .. } => {}
            }
        }
        end
    }
}

impl Resident for Program {
    fn start(self: Box<Self>, socket: UnixStream) {
        if let Ok(link) = Link::with(socket, HostEndpoint::new()) {
            tokio::spawn(self.run(link));
        }
    }
}

fn ended(reason: String, code: Option<u8>) -> ProgramEnd {
    let at = now();
    ProgramEnd { reason, code, at }
}

/// The two files.
struct Log {
    dir: PathBuf,
    /// `None` when the host does not let it be written: the program goes on.
    file: Option<File>,
    len: u64,
}

impl Log {
    fn open(dir: &Path) -> Self {
        let mut log = Self {
            dir: dir.to_owned(),
            file: None,
            len: 0,
        };
        let path = dir.join(NEWER);
        log.file = OpenOptions::new().create(true).append(true).open(path).ok();
        log.len = log
            .file
            .as_ref()
            .map_or(0, |file| file.metadata().map_or(0, |found| found.len()));
        log
    }

    fn write(&mut self, data: &[u8]) {
        if self.len + data.len() as u64 > MAX_LOG && self.turn().is_err() {
            self.file = None;
        }
        if let Some(file) = &mut self.file
            && file.write_all(data).is_ok()
        {
            self.len += data.len() as u64;
        }
    }

    /// Makes the newer file the older one.
    fn turn(&mut self) -> io::Result<()> {
        fs::rename(self.dir.join(NEWER), self.dir.join(OLDER))?;
        self.file = Some(File::create(self.dir.join(NEWER))?);
        self.len = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_ends_with_what_was_written_last() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut log = Log::open(dir.path());
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..3 * (MAX_LOG >> 20) {
            log.write(&chunk);
        }
        drop(log);
        let mut log = Log::open(dir.path());
        log.write(b"last\n");
        let len = |name| fs::metadata(dir.path().join(name)).expect(name).len();
        assert!(len(NEWER) <= MAX_LOG && len(OLDER) <= MAX_LOG);
        let newer = fs::read(dir.path().join(NEWER)).expect("read");
        assert!(newer.ends_with(b"last\n"));
    }
}
