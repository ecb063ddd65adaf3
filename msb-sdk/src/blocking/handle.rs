//! Sandboxes by their names, and those that were saved.

use std::io;
use std::time::Duration;

use super::sandbox::Sandbox;
use super::{runtime, wait, waiting};
use crate::error::Error;
use crate::{Home, NetworkPolicy, SandboxStatus};

impl Sandbox {
    /// Finds a sandbox by its name.
    ///
    /// # Errors
    /// As [`Sandbox::get`](crate::Sandbox::get).
    pub fn get(name: &str) -> Result<SandboxHandle, Error> {
        wait(crate::Sandbox::get(name)).map(SandboxHandle::from)
    }

    /// All sandboxes of this home.
    ///
    /// # Errors
    /// As [`Sandbox::list`](crate::Sandbox::list).
    pub fn list() -> Result<Vec<SandboxStatus>, Error> {
        wait(crate::Sandbox::list())
    }

    /// As [`Sandbox::list`], in a home of the caller's choice.
    ///
    /// # Errors
    /// As [`Sandbox::list`].
    pub fn list_in(home: &Home) -> Result<Vec<SandboxStatus>, Error> {
        wait(crate::Sandbox::list_in(home))
    }

    /// Describes a sandbox that goes on from a snapshot.
    pub fn from_snapshot(name: impl Into<String>) -> SnapshotBuilder {
        crate::Sandbox::from_snapshot(name).into()
    }

    /// Makes sandboxes that go on from where this one is; they end with what is returned.
    ///
    /// # Errors
    /// As [`Sandbox::fork`](crate::Sandbox::fork).
    pub fn fork(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        let forks = wait(self.inner().fork(count))?;
        Ok(forks.into_iter().map(Sandbox::from).collect())
    }

    /// As [`Sandbox::fork`], of sandboxes that live on.
    ///
    /// # Errors
    /// As [`Sandbox::fork`].
    pub fn fork_detached(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        let forks = wait(self.inner().fork_detached(count))?;
        Ok(forks.into_iter().map(Sandbox::from).collect())
    }

    /// As [`Sandbox::fork`], with the values of secrets.
    ///
    /// # Errors
    /// As [`Sandbox::fork`].
    pub fn fork_with<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        count: usize,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Vec<Sandbox>, Error> {
        let forks = wait(self.inner().fork_with(count, secrets))?;
        Ok(forks.into_iter().map(Sandbox::from).collect())
    }

    /// As [`Sandbox::fork_detached`], with the values of secrets.
    ///
    /// # Errors
    /// As [`Sandbox::fork`].
    pub fn fork_detached_with<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        count: usize,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Vec<Sandbox>, Error> {
        let forks = wait(self.inner().fork_detached_with(count, secrets))?;
        Ok(forks.into_iter().map(Sandbox::from).collect())
    }
}

/// A sandbox by its name; see [`SandboxHandle`](crate::SandboxHandle).
#[derive(Clone, Debug)]
pub struct SandboxHandle {
    inner: crate::SandboxHandle,
}

impl From<crate::SandboxHandle> for SandboxHandle {
    fn from(inner: crate::SandboxHandle) -> Self {
        Self { inner }
    }
}

impl SandboxHandle {
    /// Finds a sandbox in a home of the caller's choice.
    ///
    /// # Errors
    /// As [`SandboxHandle::find`](crate::SandboxHandle::find).
    pub fn find(home: &Home, name: &str) -> Result<Self, Error> {
        wait(crate::SandboxHandle::find(home, name)).map(Self::from)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// Connects to it, to run programs in it.
    ///
    /// # Errors
    /// As [`SandboxHandle::connect`](crate::SandboxHandle::connect).
    pub fn connect(&self) -> Result<Sandbox, Error> {
        wait(self.inner.connect()).map(Sandbox::from)
    }

    /// Starts it again.
    ///
    /// # Errors
    /// As [`SandboxHandle::start`](crate::SandboxHandle::start).
    pub fn start(&self) -> Result<Sandbox, Error> {
        wait(self.inner.start()).map(Sandbox::from)
    }

    /// As [`SandboxHandle::start`], with the values of secrets.
    ///
    /// # Errors
    /// As [`SandboxHandle::start_with`](crate::SandboxHandle::start_with).
    pub fn start_with<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Sandbox, Error> {
        wait(self.inner.start_with(secrets)).map(Sandbox::from)
    }

    /// Tells whether a start would find the values of its secrets, when these are given.
    ///
    /// # Errors
    /// As [`SandboxHandle::check_secrets`](crate::SandboxHandle::check_secrets).
    pub fn check_secrets<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<(), Error> {
        wait(self.inner.check_secrets(secrets))
    }

    waiting! {
        /// What is known of it now.
        ///
        /// # Errors
        /// As [`SandboxHandle::status`](crate::SandboxHandle::status).
        status() -> SandboxStatus;
        /// Stops it in order.
        ///
        /// # Errors
        /// As [`SandboxHandle::stop`](crate::SandboxHandle::stop).
        stop() -> ();
        /// Stops it in order; programs have `grace` to end themselves.
        ///
        /// # Errors
        /// As [`SandboxHandle::stop`](crate::SandboxHandle::stop).
        stop_within(grace: Duration) -> ();
        /// Ends it at once.
        ///
        /// # Errors
        /// As [`SandboxHandle::kill`](crate::SandboxHandle::kill).
        kill() -> ();
        /// Removes it with its disk.
        ///
        /// # Errors
        /// As [`SandboxHandle::remove`](crate::SandboxHandle::remove).
        remove() -> ();
    }

    /// Waits until it does not run; says why, as far as it is known.
    ///
    /// # Errors
    /// [`Error::Supervisor`] when no thread can be had to wait with.
    pub fn wait(&self) -> Result<String, Error> {
        wait(async { Ok(self.inner.wait().await) })
    }

    /// What its program wrote.
    #[must_use]
    pub fn logs(&self) -> Logs {
        Logs {
            inner: self.inner.logs(),
        }
    }
}

/// Reads the log of a program; see [`Logs`](crate::Logs).
#[derive(Debug)]
pub struct Logs {
    inner: crate::Logs,
}

impl Logs {
    /// Reads on; empty when there is nothing more by now.
    ///
    /// # Errors
    /// The host can't read the file.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        self.inner.read()
    }

    /// Waits until there may be more to read.
    ///
    /// # Errors
    /// The host does not tell of changes.
    pub fn changed(&mut self) -> io::Result<()> {
        let runtime = runtime().map_err(io::Error::other)?;
        runtime.block_on(self.inner.changed())
    }
}

/// Describes a sandbox that goes on from a snapshot; see
/// [`SnapshotBuilder`](crate::SnapshotBuilder).
#[derive(Debug)]
#[must_use = "a builder does nothing until create is called"]
pub struct SnapshotBuilder {
    inner: crate::SnapshotBuilder,
}

impl From<crate::SnapshotBuilder> for SnapshotBuilder {
    fn from(inner: crate::SnapshotBuilder) -> Self {
        Self { inner }
    }
}

impl SnapshotBuilder {
    super::settings! {
        SnapshotBuilder:
        name(name: impl Into<String>);
        home(home: Home);
        network(policy: NetworkPolicy);
        env(key: impl Into<String>, value: impl Into<String>);
        secret_value(name: impl Into<String>, value: impl AsRef<[u8]>);
        publish(ports: impl Into<String>);
    }

    /// Starts it; it ends with what is returned.
    ///
    /// # Errors
    /// As [`SnapshotBuilder::create`](crate::SnapshotBuilder::create).
    pub fn create(self) -> Result<Sandbox, Error> {
        wait(self.inner.create()).map(Sandbox::from)
    }

    /// Starts it; it lives on.
    ///
    /// # Errors
    /// As [`SnapshotBuilder::create`](crate::SnapshotBuilder::create).
    pub fn create_detached(self) -> Result<Sandbox, Error> {
        wait(self.inner.create_detached()).map(Sandbox::from)
    }
}
