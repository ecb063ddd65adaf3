//! What can be done with the machine of a sandbox that runs: hold it, save it, fork it.
//!
//! Whoever has the sandbox asks, its supervisor has the machine. Requests are done one after
//! the other, and answered in the order in which they were made.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What is asked of the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum MachineRequest {
    /// Hold it: it executes nothing.
    Pause,
    /// Let it go on.
    Resume,
    /// Save it under a name; it goes on.
    Snapshot { name: String },
    /// Save it for a moment, for so many others to go on from; it goes on.
    Fork { count: usize },
    /// Forget what was saved for a moment under this name: the others have started.
    Forked { name: String },
}

/// What came of a request: the snapshot that was made for a moment, if that was asked for.
pub(crate) type MachineAnswer = Result<Option<Source>, MachineFailure>;

/// Where a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// The folder of snapshots.
    pub(crate) root: PathBuf,
    /// Its name there.
    pub(crate) name: String,
    /// Where its memory is, if it is not in its folder.
    pub(crate) memory: Option<PathBuf>,
    /// The last bytes of the IPv4 addresses of those that go on from it, in order. One that has
    /// none makes it up.
    #[serde(default)]
    pub(crate) seats: Vec<u8>,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineFailure {
    pub(crate) reason: String,
    pub(crate) hint: Option<String>,
}

impl From<MachineFailure> for Error {
    fn from(failure: MachineFailure) -> Self {
        let MachineFailure { reason, hint } = failure;
        Self::Machine { reason, hint }
    }
}

impl From<msb_vmm::Error> for MachineFailure {
    fn from(error: msb_vmm::Error) -> Self {
        Self {
            hint: error.hint().map(Into::into),
            reason: crate::error::chain(&error),
        }
    }
}

impl MachineFailure {
    pub(crate) fn new(reason: impl Into<String>, hint: &str) -> Self {
        Self {
            reason: reason.into(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }
}
