//! A running sandbox.

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use super::builder::SandboxBuilder;
use super::exec::ExecHandle;
use super::fs::Fs;
use super::{runtime, wait, waiting};
use crate::error::Error;
use crate::{
    ExecOptions, Home, Image, Metrics, NetworkEvent, Output, ProcessMetrics, PublishedPort,
    SandboxEvent, SandboxSpec, StartReport,
};

/// A guest that runs; see [`Sandbox`](crate::Sandbox). It ends when this is dropped.
#[derive(Debug)]
pub struct Sandbox {
    inner: crate::Sandbox,
}

impl From<crate::Sandbox> for Sandbox {
    fn from(inner: crate::Sandbox) -> Self {
        Self { inner }
    }
}

impl Sandbox {
    /// Describes a sandbox.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        crate::Sandbox::builder(name).into()
    }

    pub(super) fn inner(&self) -> &crate::Sandbox {
        &self.inner
    }

    /// Where its state lies.
    #[must_use]
    pub fn home(&self) -> &Home {
        self.inner.home()
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &SandboxSpec {
        self.inner.spec()
    }

    /// The image of its root.
    #[must_use]
    pub fn image(&self) -> &Image {
        self.inner.image()
    }

    /// How it was started.
    #[must_use]
    pub fn report(&self) -> &StartReport {
        self.inner.report()
    }

    /// Runs a program, waits for its end and collects its output.
    ///
    /// # Errors
    /// As [`Sandbox::exec`](crate::Sandbox::exec).
    pub fn exec<A: Into<OsString>>(
        &self,
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Output, Error> {
        wait(self.inner.exec(program, args))
    }

    /// Starts a program and returns a handle to it.
    ///
    /// # Errors
    /// As [`Sandbox::exec_with`](crate::Sandbox::exec_with).
    pub fn exec_with(&self, options: ExecOptions) -> Result<ExecHandle, Error> {
        wait(self.inner.exec_with(options)).map(ExecHandle::from)
    }

    /// Starts a script in the image's shell and returns a handle to it.
    ///
    /// # Errors
    /// As [`Sandbox::shell_stream`](crate::Sandbox::shell_stream).
    pub fn shell_stream(&self, script: impl Into<OsString>) -> Result<ExecHandle, Error> {
        wait(self.inner.shell_stream(script)).map(ExecHandle::from)
    }

    /// The command line of a script in the image's shell, to be given more options.
    #[must_use]
    pub fn shell_options(&self, script: impl Into<OsString>) -> ExecOptions {
        self.inner.shell_options(script)
    }

    waiting! {
        /// Runs a script in the image's shell.
        ///
        /// # Errors
        /// As [`Sandbox::shell`](crate::Sandbox::shell).
        shell(script: impl Into<OsString>) -> Output;
        /// Offers ports of the guest on this host.
        ///
        /// # Errors
        /// As [`Sandbox::publish`](crate::Sandbox::publish).
        publish(ports: impl AsRef<str>) -> Vec<PublishedPort>;
        /// Offers a port no longer.
        ///
        /// # Errors
        /// As [`Sandbox::unpublish`](crate::Sandbox::unpublish).
        unpublish(port: &PublishedPort) -> ();
        /// The ports that are published now.
        ///
        /// # Errors
        /// As [`Sandbox::ports`](crate::Sandbox::ports).
        ports() -> Vec<PublishedPort>;
        /// Holds the sandbox.
        ///
        /// # Errors
        /// As [`Sandbox::pause`](crate::Sandbox::pause).
        pause() -> ();
        /// Lets it go on.
        ///
        /// # Errors
        /// As [`Sandbox::resume`](crate::Sandbox::resume).
        resume() -> ();
        /// Saves it while it runs.
        ///
        /// # Errors
        /// As [`Sandbox::snapshot`](crate::Sandbox::snapshot).
        snapshot(name: impl Into<String>) -> ();
        /// What the sandbox uses now.
        ///
        /// # Errors
        /// As [`Sandbox::metrics`](crate::Sandbox::metrics).
        metrics() -> Metrics;
        /// The processes of the guest.
        ///
        /// # Errors
        /// As [`Sandbox::processes`](crate::Sandbox::processes).
        processes() -> Vec<ProcessMetrics>;
    }

    /// The sandbox's files.
    #[must_use]
    pub fn fs(&self) -> Fs {
        self.inner.fs().into()
    }

    /// Samples now and after each `interval`; see
    /// [`Sandbox::metrics_stream`](crate::Sandbox::metrics_stream).
    ///
    /// # Errors
    /// [`Error::Supervisor`] when no thread can be had to wait with.
    pub fn metrics_stream(&self, interval: Duration) -> Result<MetricsStream<'_>, Error> {
        let inner = wait(async { Ok(self.inner.metrics_stream(interval)) })?;
        Ok(MetricsStream { inner })
    }

    /// What happens to the sandbox and in it.
    #[must_use]
    pub fn events(&self) -> SandboxEvents {
        SandboxEvents {
            inner: self.inner.events(),
        }
    }

    /// What the network decides and does.
    #[must_use]
    pub fn network_events(&self) -> NetworkEvents {
        NetworkEvents {
            inner: self.inner.network_events(),
        }
    }

    /// The image's own command line.
    ///
    /// # Errors
    /// As [`Sandbox::image_command`](crate::Sandbox::image_command).
    pub fn image_command(&self) -> Result<ExecOptions, Error> {
        self.inner.image_command()
    }

    /// Shuts the guest down in order. Returns when nothing is left of it.
    ///
    /// # Errors
    /// As [`Sandbox::stop_and_wait`](crate::Sandbox::stop_and_wait).
    pub fn stop_and_wait(self) -> Result<(), Error> {
        wait(self.inner.stop_and_wait())
    }

    /// As [`Sandbox::stop_and_wait`]; programs have `grace` to end themselves.
    ///
    /// # Errors
    /// As [`Sandbox::stop_within`](crate::Sandbox::stop_within).
    pub fn stop_within(self, grace: Duration) -> Result<(), Error> {
        wait(self.inner.stop_within(grace))
    }

    /// Ends the guest at once. Returns when nothing is left of it.
    ///
    /// # Errors
    /// As [`Sandbox::kill`](crate::Sandbox::kill).
    pub fn kill(self) -> Result<(), Error> {
        wait(self.inner.kill())
    }

    /// Waits until the sandbox ends by itself; says why it did.
    ///
    /// # Errors
    /// [`Error::Supervisor`] when no thread can be had to wait with.
    pub fn wait(&self) -> Result<String, Error> {
        wait(async { Ok(self.inner.wait().await) })
    }
}

/// Samples of a sandbox; see [`MetricsStream`](crate::MetricsStream).
#[derive(Debug)]
pub struct MetricsStream<'a> {
    inner: crate::MetricsStream<'a>,
}

impl MetricsStream<'_> {
    /// Waits for the next sample.
    ///
    /// # Errors
    /// As [`MetricsStream::next`](crate::MetricsStream::next).
    // Not that of an iterator: it ends with an error.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Metrics, Error> {
        wait(self.inner.next())
    }
}

/// What a sandbox's network does; see [`NetworkEvents`](crate::NetworkEvents).
#[derive(Debug)]
pub struct NetworkEvents {
    inner: crate::NetworkEvents,
}

/// Ends with the sandbox.
impl Iterator for NetworkEvents {
    type Item = NetworkEvent;

    fn next(&mut self) -> Option<NetworkEvent> {
        runtime().ok()?.block_on(self.inner.recv())
    }
}

/// What happens to a sandbox; see [`SandboxEvents`](crate::SandboxEvents).
#[derive(Debug)]
pub struct SandboxEvents {
    inner: crate::SandboxEvents,
}

/// Ends with the sandbox.
impl Iterator for SandboxEvents {
    type Item = SandboxEvent;

    fn next(&mut self) -> Option<SandboxEvent> {
        runtime().ok()?.block_on(self.inner.recv())
    }
}

/// What happens to all sandboxes; see [`SandboxWatch`](crate::SandboxWatch).
#[derive(Debug)]
pub struct SandboxWatch {
    inner: crate::SandboxWatch,
}

impl Sandbox {
    /// What happens from now on to all sandboxes.
    ///
    /// # Errors
    /// As [`Sandbox::watch`](crate::Sandbox::watch).
    pub fn watch() -> Result<SandboxWatch, Error> {
        wait(crate::Sandbox::watch()).map(|inner| SandboxWatch { inner })
    }

    /// As [`Sandbox::watch`], in a home of the caller's choice, and since then.
    ///
    /// # Errors
    /// As [`Sandbox::watch_in`](crate::Sandbox::watch_in).
    pub fn watch_in(home: &Home, since: SystemTime) -> Result<SandboxWatch, Error> {
        wait(crate::Sandbox::watch_in(home, since)).map(|inner| SandboxWatch { inner })
    }
}

impl Iterator for SandboxWatch {
    type Item = SandboxEvent;

    fn next(&mut self) -> Option<SandboxEvent> {
        runtime().ok()?.block_on(self.inner.recv())
    }
}
