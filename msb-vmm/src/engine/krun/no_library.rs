//! In place of libkrun, where the program is built without the feature `krun` or for a
//! platform that the engine does not run on.

use super::protocol::{Fault, RunnerConfig};

/// See `library`.
pub(crate) const VERSION: Option<&str> = None;

/// See `library`. There is never one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Prepared {}

/// See `library`.
pub(super) fn prepare(_: &RunnerConfig) -> Result<Prepared, Fault> {
    Err(Fault::NoLibrary)
}

/// See `library`.
pub(super) fn enter(prepared: Prepared) -> Fault {
    match prepared {}
}
