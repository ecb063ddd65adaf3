//! Programs that go on without anybody who listens: letting go of them, finding them, and
//! coming back.
//!
//! Whoever ran a program asks, and the supervisor takes its stream over: it takes what the
//! program writes, so that it is not held up, and keeps the last of it.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::machine::MachineFailure;

/// The number of a program that was let go of, in its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(u32);

impl SessionId {
    pub(crate) fn new(number: u32) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A program that was let go of; see [`ExecHandle::detach`](crate::ExecHandle::detach).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// By what number to come back to it.
    pub id: SessionId,
    /// Its command line, cut.
    pub command: String,
    /// Its process id in the guest.
    pub pid: u32,
    /// Since when nobody listens to it.
    pub since: SystemTime,
    /// Whether it has ended meanwhile. It can be come back to once, for its end.
    pub ended: bool,
}

/// What is known of a program whose stream is passed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) command: String,
    pub(crate) pid: u32,
}

/// What is asked of the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SessionRequest {
    /// Take over the asker's stream.
    Detach { stream: u32, about: About },
    /// Say which there are.
    List,
    /// Pass one on, as the asker's stream of this number.
    Attach { id: SessionId, stream: u32 },
}

/// What came of a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Session {
    Detached(SessionId),
    List(Vec<Listed>),
    /// What was kept of its output follows, then what else has come meanwhile.
    Attached {
        about: About,
        /// Bytes of input that it takes at once.
        credit: u32,
        /// Whether it takes input at all.
        input: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) id: SessionId,
    pub(crate) about: About,
    /// Milliseconds since the Unix epoch.
    pub(crate) since: u64,
    pub(crate) ended: bool,
}

pub(crate) type SessionAnswer = Result<Session, MachineFailure>;

impl Listed {
    pub(crate) fn into_info(self) -> SessionInfo {
        SessionInfo {
            id: self.id,
            command: self.about.command,
            pid: self.about.pid,
            since: crate::handle::time(self.since),
            ended: self.ended,
        }
    }
}
