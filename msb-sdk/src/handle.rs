//! Sandboxes by their names, whether they run or not.

mod start;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use msb_oci::Image;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::builder::{Started, await_ready, blocking};
use crate::control::Ready;
use crate::error::Error;
use crate::home::Home;
use crate::link::Link;
use crate::logs::Logs;
use crate::port::PublishedPort;
use crate::record::{Phase, Record, State};
use crate::sandbox::{self, STOP_GRACE, STOP_LIMIT, Sandbox};
use crate::socket;
use crate::spec::SandboxSpec;
use crate::state::{self, Found, SandboxDir};

/// How often somebody who waits for an end looks whether it has come, where nobody tells.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long the lock of a supervisor that was killed may take to be free.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Finds a sandbox by its name, in the home of [`Home::from_env`].
    ///
    /// ```no_run
    /// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
    /// use msb_sdk::Sandbox;
    ///
    /// Sandbox::builder("worker").image("python:3.12").create_detached().await?;
    /// // In another process, or tomorrow:
    /// let worker = Sandbox::get("worker").await?;
    /// let sandbox = worker.connect().await?;
    /// sandbox.exec("touch", ["/root/was-here"]).await?;
    /// worker.stop().await?;
    /// worker.start().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSandbox`], and what keeps its state from being read.
    pub async fn get(name: &str) -> Result<SandboxHandle, Error> {
        SandboxHandle::find(&Home::from_env()?, name).await
    }

    /// All sandboxes of this home, by name: those that run, and those that are kept.
    ///
    /// # Errors
    /// [`Error::Home`] when the folder can't be read.
    pub async fn list() -> Result<Vec<SandboxStatus>, Error> {
        Self::list_in(&Home::from_env()?).await
    }

    /// As [`Sandbox::list`], in a home of the caller's choice.
    ///
    /// # Errors
    /// As [`Sandbox::list`].
    pub async fn list_in(home: &Home) -> Result<Vec<SandboxStatus>, Error> {
        let home = home.clone();
        blocking(move || {
            // What was given up before it was one is no sandbox, nor is its folder to stay.
            state::sweep(&home);
            let found = state::look(&home)?;
            let status = |found| SandboxStatus::of(&home, found);
            Ok(found.into_iter().map(status).collect())
        })
        .await
    }
}

/// Whether a sandbox runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It is being started.
    Starting,
    /// Programs can be run in it.
    Running,
    /// It is held: nothing is executed in it until it is resumed.
    Paused,
    /// It is being shut down.
    Stopping,
    /// It does not run.
    Stopped,
    /// Its files make no sense, or are those of a newer version.
    Unreadable,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Unreadable => "unreadable",
        })
    }
}

/// How the program of [`SandboxBuilder::command`](crate::SandboxBuilder::command) ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStatus {
    /// In words.
    pub reason: String,
    /// Its exit code, as a shell has it.
    pub code: Option<u8>,
    /// When.
    pub at: SystemTime,
}

/// What ran out or broke in a sandbox since it was started: of each kind how often, and the
/// last.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TroubleStatus {
    /// `out-of-memory`, `disk-full` or `disk-failed`.
    pub kind: String,
    /// The last one in words, with what to do about it.
    pub message: String,
    /// How often.
    pub count: u64,
    /// When the last one was.
    pub at: SystemTime,
}

/// What is known of a sandbox at some moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SandboxStatus {
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub status: Status,
    /// What it was made from; `None` if that can't be read.
    pub spec: Option<SandboxSpec>,
    /// Digest of the image's manifest.
    pub image_digest: Option<String>,
    /// Whether it stays when it is stopped.
    pub kept: bool,
    /// When it was made.
    pub created: Option<SystemTime>,
    /// When it was started last.
    pub started: Option<SystemTime>,
    /// The engine it runs on.
    pub engine: Option<String>,
    /// Process ids of its supervisor and its virtual machine, while it runs.
    pub pids: Option<(u32, u32)>,
    /// The ports that were published at its start, while it runs.
    pub ports: Vec<PublishedPort>,
    /// Why it does not run, or cannot be read.
    pub reason: Option<String>,
    /// Whether it ended otherwise than it was asked to.
    pub failed: bool,
    /// How its program ended, if it has one and that has ended.
    pub program: Option<ProgramStatus>,
    /// What ran out or broke in it since it was started.
    pub troubles: Vec<TroubleStatus>,
}

impl SandboxStatus {
    fn of(home: &Home, found: Found) -> Self {
        let dir = home.sandboxes().join(&found.name);
        let state = State::read(&dir);
        let mut status = Self {
            name: found.name,
            status: Status::Unreadable,
            spec: None,
            image_digest: None,
            kept: true,
            created: None,
            started: None,
            engine: None,
            pids: None,
            ports: Vec::new(),
            reason: None,
            failed: false,
            program: None,
            troubles: Vec::new(),
        };
        match (found.record, state) {
            (Ok(record), Ok(state)) => {
                status.take_record(record);
                status.take_state(found.in_use, state);
            }
            (Err(error), _) | (_, Err(error)) => status.reason = Some(error.to_string()),
        }
        status
    }

    fn take_record(&mut self, record: Record) {
        self.kept = record.keep;
        self.created = Some(time(record.created));
        self.image_digest = Some(record.image);
        self.spec = Some(record.spec);
    }

    fn take_state(&mut self, in_use: bool, state: Option<State>) {
        self.status = match &state {
            _ if !in_use => Status::Stopped,
            // One that is started again has not said so yet.
            None => Status::Starting,
            Some(state) => match state.phase {
                Phase::Starting | Phase::Stopped => Status::Starting,
                Phase::Running => Status::Running,
                Phase::Paused => Status::Paused,
                Phase::Stopping => Status::Stopping,
            },
        };
        let Some(state) = state else {
            return;
        };
        self.started = Some(time(state.started));
        self.program = state.program.map(|end| ProgramStatus {
            reason: end.reason,
            code: end.code,
            at: time(end.at),
        });
        let troubles = state.troubles.into_iter();
        self.troubles = troubles
            .map(|note| TroubleStatus {
                kind: note.kind,
                message: note.message,
                count: note.count,
                at: time(note.at),
            })
            .collect();
        if in_use {
            if let (Phase::Running | Phase::Paused | Phase::Stopping, Some(ready)) =
                (state.phase, state.ready)
            {
                self.pids = Some((state.pid, ready.vmm_pid));
                self.engine = Some(ready.engine);
                self.ports = ready.ports;
            }
        } else if let Some(end) = state.end {
            self.failed = !end.asked;
            self.reason = Some(end.reason);
        } else {
            self.failed = true;
            let reason = "its supervisor was killed, or the host was restarted";
            self.reason = Some(reason.to_owned());
        }
    }
}

pub(crate) fn time(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis)
}

/// A connection to a sandbox that runs, and what is known of it.
struct Reached {
    record: Record,
    socket: UnixStream,
    ready: Ready,
}

/// A sandbox by its name. Having one keeps nothing alive.
#[derive(Clone, Debug)]
pub struct SandboxHandle {
    home: Home,
    name: String,
}

impl SandboxHandle {
    /// Finds a sandbox in a home of the caller's choice; see [`Sandbox::get`].
    ///
    /// # Errors
    /// As [`Sandbox::get`].
    pub async fn find(home: &Home, name: &str) -> Result<Self, Error> {
        let handle = Self {
            home: home.clone(),
            name: name.to_owned(),
        };
        handle.look().await?;
        Ok(handle)
    }

    /// One that may not be there.
    pub(crate) fn named(home: &Home, name: &str) -> Self {
        Self {
            home: home.clone(),
            name: name.to_owned(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn dir(&self) -> PathBuf {
        self.home.sandboxes().join(&self.name)
    }

    async fn look(&self) -> Result<Found, Error> {
        let (home, name) = (self.home.clone(), self.name.clone());
        blocking(move || state::look_at(&home, &name)).await
    }

    /// What is known of it now.
    ///
    /// # Errors
    /// [`Error::NoSandbox`] when it was removed.
    pub async fn status(&self) -> Result<SandboxStatus, Error> {
        Ok(SandboxStatus::of(&self.home, self.look().await?))
    }

    /// Connects to it, to run programs in it. Waits for one that is being started.
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Busy`] while it is being stopped.
    pub async fn connect(&self) -> Result<Sandbox, Error> {
        let this = self.clone();
        let started = move || {
            let reached = this.reach()?;
            Ok(Started {
                home: this.home.clone(),
                image: this.image(&reached.record)?,
                spec: reached.record.spec,
                socket: reached.socket,
                ready: reached.ready,
                new: false,
                fleeting: false,
            })
        };
        blocking(started).await?.sandbox()
    }

    /// A connection, for what does not need the image: it may be gone.
    pub(crate) async fn link(&self) -> Result<Link, Error> {
        let this = self.clone();
        Link::start(blocking(move || this.reach()).await?.socket)
    }

    fn reach(&self) -> Result<Reached, Error> {
        let found = state::look_at(&self.home, &self.name)?;
        let record = found.record?;
        if !found.in_use {
            return Err(Error::NotRunning {
                name: self.name.clone(),
            });
        }
        let busy = || Error::Busy {
            name: self.name.clone(),
        };
        let mut socket = socket::connect(&self.dir()).map_err(|_| busy())?;
        let ready = await_ready(&mut socket, &|_| {}).map_err(|_| busy())?;
        Ok(Reached {
            record,
            socket,
            ready,
        })
    }

    fn image(&self, record: &Record) -> Result<Image, Error> {
        let image = self.home.store()?.get_digest(record.image.parse()?)?;
        image.ok_or_else(|| Error::ImageGone {
            image: record.spec.image.clone(),
        })
    }

    /// Stops it in order: programs have ten seconds to end themselves, disks are flushed.
    ///
    /// # Errors
    /// [`Error::NotRunning`], and those of [`Sandbox::stop_and_wait`].
    pub async fn stop(&self) -> Result<(), Error> {
        self.stop_within(STOP_GRACE).await
    }

    /// As [`SandboxHandle::stop`]; programs have `grace` to end themselves.
    ///
    /// # Errors
    /// As [`SandboxHandle::stop`].
    pub async fn stop_within(&self, grace: Duration) -> Result<(), Error> {
        match self.link().await {
            Ok(link) => {
                let limit = grace.saturating_add(STOP_LIMIT + KILL_PATIENCE);
                let stopped = sandbox::stop(&link, grace, false);
                match tokio::time::timeout(limit, stopped).await {
                    Ok(stopped) => stopped,
                    Err(_) => self.kill().await,
                }
            }
            // Somebody else stops it, or it is in no state to be stopped in order.
            Err(Error::Busy { .. }) => self.wait_within(grace).await,
            Err(error) => Err(error),
        }
    }

    async fn wait_within(&self, grace: Duration) -> Result<(), Error> {
        let limit = grace + KILL_PATIENCE;
        match tokio::time::timeout(limit, self.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => self.kill().await,
        }
    }

    /// Ends it at once, whatever it does. What was not flushed is lost.
    ///
    /// # Errors
    /// [`Error::NotRunning`], and [`Error::Busy`] when it does not end all the same.
    pub async fn kill(&self) -> Result<(), Error> {
        if !self.look().await?.in_use {
            return Err(Error::NotRunning {
                name: self.name.clone(),
            });
        }
        let running = tokio::time::timeout(Duration::from_secs(1), self.link()).await;
        if let Ok(Ok(link)) = running
            && let Ok(Ok(())) =
                tokio::time::timeout(KILL_PATIENCE, sandbox::kill(&link, false)).await
        {
            return Ok(());
        }
        self.kill_supervisor()?;
        match tokio::time::timeout(KILL_PATIENCE, self.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Busy {
                name: self.name.clone(),
            }),
        }
    }

    /// Kills a supervisor that does not answer. The guest ends with it.
    fn kill_supervisor(&self) -> Result<(), Error> {
        let now = || State::read(&self.dir());
        let state = now()?.filter(|state| state.phase != Phase::Stopped);
        let Some(state) = state else {
            return Ok(());
        };
        let pid = i32::try_from(state.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Ok(());
        };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        // A state that is there while the lock is taken is that of who has it: whoever starts
        // a sandbox removes the old one first. Now it cannot be another process any more.
        let in_use = state::look_at(&self.home, &self.name).is_ok_and(|found| found.in_use);
        if in_use && now()?.is_some_and(|again| again.pid == state.pid) {
            pidfd_send_signal(&process, Signal::KILL).map_err(|error| Error::Supervisor {
                source: io::Error::from(error),
            })?;
        }
        Ok(())
    }

    /// Removes it with its disk.
    ///
    /// # Errors
    /// [`Error::NameTaken`] while it runs, [`Error::NewerState`] for one that only a newer
    /// version knows how to remove.
    pub async fn remove(&self) -> Result<(), Error> {
        let this = self.clone();
        blocking(move || {
            let dir = SandboxDir::open(&this.home, &this.name)?;
            let path = dir.path().to_owned();
            // It may have more than this folder. One that is only damaged is removed.
            let newer = [Record::read(&path).err(), State::read(&path).err()];
            let is_newer = |error: &Error| matches!(error, Error::NewerState { .. });
            if let Some(error) = newer.into_iter().flatten().find(is_newer) {
                return Err(error);
            }
            dir.remove()
                .map_err(|source| Error::Home { path, source })?;
            // Its image may have been kept for it alone. What can't be freed now is freed by
            // a later command.
            let _ = this.home.store().and_then(|store| store.collect());
            Ok(())
        })
        .await
    }

    /// Waits until it does not run; says why, as far as it is known.
    pub async fn wait(&self) -> String {
        if let Ok(Ok(link)) = tokio::time::timeout(Duration::from_secs(1), self.link()).await {
            let reason = link.ended().await.reason;
            self.until_free().await;
            return reason;
        }
        self.until_free().await;
        let status = self.status().await;
        status
            .ok()
            .and_then(|status| status.reason)
            .unwrap_or_else(|| "it was removed".into())
    }

    /// Waits until nobody has the lock.
    async fn until_free(&self) {
        while self.look().await.is_ok_and(|found| found.in_use) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What its program wrote; see [`SandboxBuilder::command`](crate::SandboxBuilder::command).
    #[must_use]
    pub fn logs(&self) -> Logs {
        Logs::open(&self.dir())
    }
}
