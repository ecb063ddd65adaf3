//! The setup phase: who the guest is to be and where its root comes from.

use serde::{Deserialize, Serialize};

use super::{ByteString, Errno, NetworkSpec};

/// The agent's side of the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// [`PROTOCOL_VERSION`](super::PROTOCOL_VERSION) of the agent.
    pub version: u32,
}

/// Everything that makes a booted or restored guest a particular one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Fresh random bytes, different for each start: the guest's generator is
    /// reseeded with them before anything else happens.
    pub entropy: Entropy,
    /// The time now, in nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
    /// At most 64 bytes, no NUL and no slash.
    pub hostname: String,
    /// What `/etc/machine-id` is to hold; never all zero.
    pub machine_id: [u8; 16],
    /// Where the root file system comes from.
    pub root: RootSpec,
    /// The image's environment, `NAME=value`.
    pub env: Vec<ByteString>,
    /// The image's user: `name|uid[:group|gid]`; root when `None`.
    pub user: Option<String>,
    /// The image's working directory; `/` when `None`. Made when missing.
    pub workdir: Option<ByteString>,
    /// The network card; none is up when `None`.
    pub network: Option<NetworkSpec>,
    /// Whom programs are to trust beside those that the image knows.
    pub trust: Option<TrustSpec>,
}

/// Whom the guest's programs are to trust. Both are certificates in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustSpec {
    /// The sandbox's own authority, for the flows that its network takes apart.
    pub authority: ByteString,
    /// What is trusted beside it where the image has no bundle: may be empty.
    pub fallback: ByteString,
}

impl TrustSpec {
    /// Most bytes of an authority that the agent accepts: a certificate has one to four
    /// thousand.
    pub const MAX_AUTHORITY: usize = 16 * 1024;
    /// Most bytes of the fallback: a host's whole store has 200 to 500 KiB.
    pub const MAX_FALLBACK: usize = 1024 * 1024;
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSpec {
    /// The disk with the read-only EROFS image.
    pub lower: DiskName,
    /// What takes the changes.
    pub upper: Upper,
}

/// What takes the changes that are made to the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// Guest memory.
    Tmpfs {
        /// Bound in bytes; half of the guest's memory when `None`.
        size: Option<u64>,
    },
    /// An ext4 disk. What an earlier start left there is taken up again.
    Disk(DiskName),
}

/// Names a disk of the guest: its virtio serial (at most 20 bytes), or the
/// kernel's name for it (`vda`). Serials do not depend on probing order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskName(pub String);

impl From<&str> for DiskName {
    fn from(name: &str) -> DiskName {
        DiskName(name.into())
    }
}

impl std::fmt::Display for DiskName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Random bytes for the guest's generator; not shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy(pub ByteString);

impl Entropy {
    /// Fewest bytes the agent accepts: the size of the kernel generator's key.
    pub const MIN: usize = 32;
    /// Most bytes the agent accepts; more would not make it more random.
    pub const MAX: usize = 512;
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entropy({} bytes)", self.0.0.len())
    }
}

/// What the guest became: the agent's confirmation, read back from the kernel
/// where the kernel can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// Bits of entropy credited before the generator was reseeded.
    pub entropy_bits: u32,
    /// The kernel's boot id, made after the reseed.
    pub boot_id: String,
    /// The guest's clock after setting, nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
    /// As the kernel tells it.
    pub hostname: String,
    /// As written to `/etc/machine-id`, or as it would have been in an image
    /// without `/etc`.
    pub machine_id: [u8; 16],
    /// Uid of the default user.
    pub uid: u32,
    /// Gid of the default user.
    pub gid: u32,
    /// Whether the upper held changes from an earlier start.
    pub resumed: bool,
    /// The address that the network card was given.
    pub mac: Option<[u8; 6]>,
}

/// Why a setup request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SetupFailure {
    /// Host and agent are of different builds.
    #[error("the host speaks protocol version {host}, the guest's agent version {agent}")]
    Version {
        /// What the host speaks.
        host: u32,
        /// What the agent speaks.
        agent: u32,
    },
    /// The agent could not make sense of the request.
    #[error("the agent did not accept the request: {0}")]
    Refused(String),
    /// A part of the configuration is not acceptable.
    #[error("{what} is not acceptable: {reason}")]
    Invalid {
        /// Name of the field.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A named disk is not attached.
    #[error("disk {disk} is not attached; the guest sees {seen:?}")]
    DiskMissing {
        /// The name asked for.
        disk: DiskName,
        /// Kernel names and serials of those that are.
        seen: Vec<String>,
    },
    /// A file system could not be mounted.
    #[error("cannot mount {what} on {target}: {errno}")]
    Mount {
        /// Device or file system type.
        what: String,
        /// Where it was to be.
        target: String,
        /// Why not.
        errno: Errno,
    },
    /// The user that commands run as by default is not known to the image.
    #[error("user {user:?}: {reason}")]
    User {
        /// As asked for.
        user: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another step failed.
    #[error("cannot {step}: {errno}")]
    Step {
        /// What was being done.
        step: String,
        /// Why it failed.
        errno: Errno,
    },
}

impl SetupFailure {
    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SetupFailure::Version { .. } => {
                Some("the guest bundle is of another build than this program: build it again")
            }
            SetupFailure::User { .. } => {
                Some("name a user of the image's /etc/passwd, or a numeric uid")
            }
            _ => None,
        }
    }
}
