//! The SDK for programs without a runtime: the same names, and calls that return when it is
//! done.
//!
//! Everything that waits is in here; what is only data is the crate's own. Sandboxes are
//! served by a thread that is started when it is first needed.
//!
//! ```no_run
//! use msb_sdk::blocking::Sandbox;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     msb_sdk::supervisor_hook();
//!     let sandbox = Sandbox::builder("demo").image("python:3.12").create()?;
//!     let output = sandbox.exec("python3", ["-c", "print(6 * 7)"])?;
//!     assert_eq!(output.stdout()?, "42\n");
//!     sandbox.fs().write("/tmp/input.txt", b"some data")?;
//!     sandbox.stop_and_wait()?;
//!     Ok(())
//! }
//! ```
//!
//! # Panics
//! A call of this module in an asynchronous task panics: it would keep the task's thread
//! from everything else. Use the crate's own types there.

mod builder;
mod exec;
mod fs;
mod handle;
mod image;
mod sandbox;

use std::future::Future;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Runtime};

pub use builder::SandboxBuilder;
pub use exec::{ExecHandle, ExecStdin};
pub use fs::{DirEntries, FileReader, FileWriter, Fs};
pub use handle::{Logs, SandboxHandle, SnapshotBuilder};
pub use image::Images;
pub use sandbox::{MetricsStream, NetworkEvents, Sandbox, SandboxEvents, SandboxWatch};

use crate::error::Error;

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// The runtime that serves everything, started if need be.
fn runtime() -> Result<&'static Runtime, Error> {
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let started = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("msb-blocking")
        .enable_all()
        .build()
        .map_err(|source: io::Error| Error::Supervisor { source })?;
    Ok(RUNTIME.get_or_init(|| started))
}

/// Does it on the runtime, and waits until it is done.
fn wait<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    runtime()?.block_on(work)
}

/// Methods that do what those of the wrapped value do, and wait.
macro_rules! waiting {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)+) => {
        $(
            $(#[$doc])*
            pub fn $name(&self $(, $arg: $kind)*) -> Result<$out, crate::Error> {
                crate::blocking::wait(self.inner.$name($($arg),*))
            }
        )+
    };
}
use waiting;

/// Methods of a builder that do what those of the wrapped one do.
macro_rules! settings {
    ($builder:ident: $($name:ident($($arg:ident: $kind:ty),+);)+) => {
        $(
            #[doc = concat!(
                "See [`", stringify!($builder), "::", stringify!($name), "`](crate::",
                stringify!($builder), "::", stringify!($name), ").",
            )]
            pub fn $name(self, $($arg: $kind),+) -> Self {
                self.inner.$name($($arg),+).into()
            }
        )+
    };
}
use settings;
