//! Typed messages: what the payload of a control, open, event or command
//! frame says.
//!
//! Encoded with postcard, so the order of fields and variants *is* the wire
//! format: append variants at the end, and raise [`PROTOCOL_VERSION`] for any
//! other change. `message/tests.rs` pins the bytes of each message.
//! [`HostMessage::Hello`], [`AgentMessage::Hello`] and
//! [`SetupFailure::Version`] never change, so that any two versions can tell
//! each other apart.

mod exec;
mod file;
mod metrics;
mod network;
mod setup;
mod trouble;

pub use exec::{
    ExecError, ExecRequest, ExitStatus, InvalidSignal, Limit, Request, ResetCode, Resource, Signal,
    StreamCommand, StreamEvent, TtySize,
};
pub use file::{
    Entry, FileAnswer, FileError, FileFault, FileKind, FileOperation, FileRequest, MAX_PATH,
    Metadata, WriteMode,
};
pub use metrics::{GuestMetrics, ProcessMetrics};
pub use network::{Address, Host, NetworkSettings, NetworkSpec};
pub use setup::{
    AgentHello, Configured, DiskName, Entropy, GuestConfig, RootSpec, SetupFailure, TrustSpec,
    Upper,
};
pub use trouble::Trouble;

use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version of the protocol that this library speaks.
pub const PROTOCOL_VERSION: u32 = 4;

/// Longest encoded message, in bytes.
///
/// Linux refuses arguments and environment beyond a quarter of the stack
/// limit, 2 MiB at the usual 8 MiB; anything longer could not be executed.
pub const MAX_MESSAGE: usize = 2 * 1024 * 1024;

/// What the host says on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Opens the conversation; the agent answers [`AgentMessage::Hello`], or
    /// [`SetupFailure::Version`] when it does not speak this version.
    Hello {
        /// [`PROTOCOL_VERSION`] of the host.
        version: u32,
    },
    /// Set up what all copies of a template have in common and let go of all disks, so
    /// that it can be saved: answered with [`AgentMessage::Prepared`].
    Prepare {
        /// The network as far as copies share it: usually all but the card's address.
        network: Option<NetworkSpec>,
    },
    /// Make this guest somebody and bring up its root: answered with
    /// [`AgentMessage::Configured`]; ends the setup phase.
    Configure(Box<GuestConfig>),
    /// Answered with [`AgentMessage::Pong`]; a probe, not a heartbeat.
    Ping {
        /// Comes back in the answer.
        token: u64,
    },
    /// Write all file systems to their disks: answered with
    /// [`AgentMessage::Synced`]. Commands go on meanwhile.
    Sync {
        /// Comes back in the answer.
        token: u64,
    },
    /// End all processes, flush the disks, answer
    /// [`AgentMessage::ShutdownDone`], power off.
    Shutdown {
        /// How long processes may take to end after SIGTERM before they are
        /// killed, in milliseconds.
        grace_ms: u32,
    },
    /// Mount the root ahead of [`HostMessage::Configure`], so that copies of a template
    /// find it mounted: answered with [`AgentMessage::Prepared`]. Refused for an upper that
    /// is a disk, which no two guests can share.
    MountRoot {
        /// As it will be said to `Configure`.
        root: RootSpec,
        /// Files of the root that copies will soon read, with what cannot be read left out:
        /// their content is in the template's memory then.
        read_ahead: Vec<ByteString>,
    },
    /// Hold all processes so that the guest can be saved: answered with
    /// [`AgentMessage::Frozen`], behind which nothing is said until `Thaw` or `Become`.
    /// The host says nothing but those and `SetClock` meanwhile.
    Freeze,
    /// Let all processes go on: answered with [`AgentMessage::Thawed`].
    Thaw,
    /// This is another guest than the one that was frozen: become it, without a stream, and
    /// with all processes still held. Answered with [`AgentMessage::Configured`].
    Become(Box<GuestConfig>),
    /// Set the clock, which stood still while the guest was held: answered with
    /// [`AgentMessage::ClockSet`].
    SetClock {
        /// The time now, in nanoseconds since the Unix epoch.
        wall_clock_ns: u64,
    },
}

/// What the agent says on the control stream: answers, and [`AgentMessage::Trouble`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// The agent is there and speaks the host's version.
    Hello(AgentHello),
    /// The guest can be saved.
    Prepared,
    /// The guest is who the host said, its root is mounted, execs may be opened.
    Configured(Box<Configured>),
    /// A setup request was refused or failed.
    Failed(SetupFailure),
    /// Answer to [`HostMessage::Ping`].
    Pong {
        /// From the request.
        token: u64,
    },
    /// Answer to [`HostMessage::Sync`].
    Synced {
        /// From the request.
        token: u64,
    },
    /// Processes are gone and disks are flushed; the guest powers off next.
    ShutdownDone {
        /// Whether the writable root was flushed and made read-only without
        /// an error.
        clean: bool,
    },
    /// All processes are held, and nothing that was said before is under way.
    Frozen,
    /// All processes go on.
    Thawed,
    /// The clock is set.
    ClockSet,
    /// Not an answer: something ran out or broke in the guest.
    Trouble(Trouble),
}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Writing to a growing vector cannot fail, and no message holds a type
    // that postcard cannot write (a sequence of unknown length).
    postcard::to_allocvec(message).expect("every message can be encoded")
}

/// Decodes a message that fills `bytes` exactly.
///
/// Allocates no more than a small multiple of `bytes.len()`, plus what serde
/// reserves ahead for a sequence (at most 1 MiB).
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Some(message),
        _ => None,
    }
}

/// Bytes that are usually, but not necessarily, UTF-8: an argument, a
/// variable, a path.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteString(pub Vec<u8>);

impl ByteString {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for ByteString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl std::fmt::Debug for ByteString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> ByteString {
        ByteString(text.into())
    }
}

impl From<String> for ByteString {
    fn from(text: String) -> ByteString {
        ByteString(text.into())
    }
}

impl From<&[u8]> for ByteString {
    fn from(bytes: &[u8]) -> ByteString {
        ByteString(bytes.into())
    }
}

impl From<Vec<u8>> for ByteString {
    fn from(bytes: Vec<u8>) -> ByteString {
        ByteString(bytes)
    }
}

#[cfg(unix)]
impl From<std::ffi::OsString> for ByteString {
    fn from(text: std::ffi::OsString) -> ByteString {
        ByteString(std::os::unix::ffi::OsStringExt::into_vec(text))
    }
}

impl AsRef<[u8]> for ByteString {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteString, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = ByteString;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<ByteString, E> {
                Ok(ByteString(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// An `errno` of the guest, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errno(pub i32);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests;
