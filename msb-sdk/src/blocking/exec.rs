//! A running program.

use bytes::Bytes;

use super::{runtime, wait, waiting};
use crate::error::Error;
use crate::{ExecEvent, ExitStatus, Output, Signal, TtySize};

/// A program that runs in a sandbox; see [`ExecHandle`](crate::ExecHandle). Dropping it kills
/// the program.
#[derive(Debug)]
pub struct ExecHandle {
    inner: crate::ExecHandle,
}

impl From<crate::ExecHandle> for ExecHandle {
    fn from(inner: crate::ExecHandle) -> Self {
        Self { inner }
    }
}

impl ExecHandle {
    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.pid()
    }

    /// Waits for the next event; `None` after the last one.
    pub fn recv(&mut self) -> Option<ExecEvent> {
        // It was started on the runtime, which is there since.
        runtime().ok()?.block_on(self.inner.recv())
    }

    /// Waits for the end and passes over output.
    ///
    /// # Errors
    /// As [`ExecHandle::wait`](crate::ExecHandle::wait).
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        wait(self.inner.wait())
    }

    /// Waits for the end and collects output.
    ///
    /// # Errors
    /// As [`ExecHandle::output`](crate::ExecHandle::output).
    pub fn output(self) -> Result<Output, Error> {
        wait(self.inner.output())
    }

    /// The program's standard input; may be used in another thread.
    #[must_use]
    pub fn stdin(&self) -> ExecStdin {
        ExecStdin {
            inner: self.inner.stdin(),
        }
    }

    /// Sends a signal to the program's process group.
    pub fn signal(&self, signal: Signal) {
        self.inner.signal(signal);
    }

    /// Ends the program's process group at once.
    pub fn kill(&self) {
        self.inner.kill();
    }

    /// Tells the program's terminal its new size.
    pub fn resize(&self, size: TtySize) {
        self.inner.resize(size);
    }
}

/// The events, to the last one.
impl Iterator for ExecHandle {
    type Item = ExecEvent;

    fn next(&mut self) -> Option<ExecEvent> {
        self.recv()
    }
}

/// The writing end of a program's standard input; see [`ExecStdin`](crate::ExecStdin).
#[derive(Debug)]
pub struct ExecStdin {
    inner: crate::ExecStdin,
}

impl ExecStdin {
    waiting! {
        /// Writes all of `data`; returns when the last of it is on its way.
        ///
        /// # Errors
        /// As [`ExecStdin::write`](crate::ExecStdin::write).
        write(data: impl Into<Bytes>) -> ();
    }

    /// Ends the input: the program reads end-of-file.
    pub fn close(self) {
        self.inner.close();
    }
}
