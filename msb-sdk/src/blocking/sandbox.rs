//! A running sandbox.

use std::ffi::OsString;

use super::builder::SandboxBuilder;
use super::exec::ExecHandle;
use super::fs::Fs;
use super::{runtime, wait, waiting};
use crate::error::Error;
use crate::{ExecOptions, Image, NetworkEvent, Output, PublishedPort, SandboxSpec, StartReport};

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
    }

    /// The sandbox's files.
    #[must_use]
    pub fn fs(&self) -> Fs {
        self.inner.fs().into()
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
