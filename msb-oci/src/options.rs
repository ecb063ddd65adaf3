//! What a caller can ask of a pull, and the bounds it keeps.

use std::path::PathBuf;
use std::time::Duration;

use crate::Platform;

/// How an image is pulled. `PullOptions::default()` suits public registries.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Which variant of a multi-platform image is wanted.
    pub platform: Platform,
    /// When the registry is asked at all.
    pub policy: PullPolicy,
    /// Who the registry is told we are.
    pub credentials: Credentials,
    /// What an image may cost.
    pub limits: Limits,
    /// How long a silent peer is waited for.
    pub timeouts: Timeouts,
}

/// When the registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only when the store has no image under the reference.
    #[default]
    Missing,
    /// Every time; layers that are in the store are still not transferred.
    Always,
    /// Never: an image that is not in the store is an error.
    Never,
}

/// Where user name and password for a registry come from.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A `config.json` as `docker login` writes it, with its credential
    /// helpers. A file that does not exist means anonymous.
    DockerConfig(PathBuf),
    /// This user at the registry of the reference.
    Basic {
        /// User name.
        user: String,
        /// Password or access token.
        password: String,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::DockerConfig(path) => f.debug_tuple("DockerConfig").field(path).finish(),
            Credentials::Basic { user, .. } => f
                .debug_struct("Basic")
                .field("user", user)
                .finish_non_exhaustive(),
        }
    }
}

/// What an image may cost at most. Exceeding one is an error, not a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Layers of one image. The kernel's EROFS takes 65,535 devices; real
    /// images stay below docker's own 127.
    pub layers: usize,
    /// Uncompressed bytes of all layers together, of an archive those of all its images. What
    /// stops a bomb.
    pub image_bytes: u64,
    /// Entries of one layer.
    pub layer_entries: u64,
    /// Layers that are transferred at the same time.
    pub parallel: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            layers: 256,
            image_bytes: 64 << 30,
            layer_entries: 4 << 20,
            parallel: 3,
        }
    }
}

/// How long a silent peer is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection (with TLS) stands.
    pub connect: Duration,
    /// Between two arrivals of data; also how long a transfer may bring less
    /// than a kilobyte per second.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(30),
        }
    }
}
