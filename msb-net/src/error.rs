//! What can be wrong with what a caller hands in.

use crate::addr::Cidr;

/// Everything this crate refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A domain name is not one.
    #[error("{name:?} is not a domain name: {reason}")]
    Name {
        /// The text, cut to a length fit for showing.
        name: String,
        /// What is wrong with it.
        reason: InvalidName,
    },
    /// An address block is not one.
    #[error("{text:?} is not an address block: {reason}")]
    Cidr {
        /// The text, cut to a length fit for showing.
        text: String,
        /// What is wrong with it.
        reason: InvalidCidr,
    },
    /// A published port is not written as one.
    #[error("cannot publish {text:?}: {reason}")]
    Publish {
        /// The text, cut to a length fit for showing.
        text: String,
        /// What is wrong with it.
        reason: InvalidPublish,
    },
    /// A policy has a mistake at a known place.
    #[error(transparent)]
    Policy(#[from] SyntaxError),
    /// A policy has more rules than [`MAX_RULES`](crate::policy::MAX_RULES).
    #[error("a policy has at most {max} rules")]
    TooManyRules {
        /// The limit.
        max: usize,
    },
    /// A block list has more suffixes than [`MAX_BLOCKED`](crate::policy::MAX_BLOCKED).
    #[error("a policy blocks at most {max} suffixes")]
    TooManyBlocked {
        /// The limit.
        max: usize,
    },
    /// A secret, its value or its placeholder is not one. The value is never shown.
    #[error("the secret {name:?} cannot be used: {reason}")]
    Secret {
        /// Its name; empty where that is known to the caller only.
        name: String,
        /// What is wrong.
        reason: InvalidSecret,
    },
    /// A port of the host cannot be had.
    #[error("cannot publish port {} on {}: {reason}", address.port(), address.ip())]
    Port {
        /// Where the host was to listen.
        address: std::net::SocketAddr,
        /// Why it cannot.
        reason: PortRefusal,
    },
    /// A sandbox has more secrets than [`MAX_SECRETS`](crate::secret::MAX_SECRETS).
    #[error("a sandbox has at most {max} secrets")]
    TooManySecrets {
        /// The limit.
        max: usize,
    },
    /// The host's system refuses something that the driver needs.
    #[error("cannot {doing}: {reason}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system says.
        reason: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
    },
}

impl Error {
    /// A refusal of the system.
    #[cfg(feature = "shell")]
    pub(crate) fn system(doing: impl Into<String>, error: &std::io::Error) -> Self {
        use rustix::io::Errno;

        let errno = Errno::from_io_error(error);
        let many = matches!(errno, Some(Errno::MFILE | Errno::NFILE));
        Self::System {
            doing: doing.into(),
            reason: error.to_string(),
            hint: many.then(|| MORE_FILES.into()),
        }
    }

    /// Returns what to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Policy(error) => error.hint.clone(),
            Self::System { hint, .. } => hint.clone(),
            Self::Port { address, reason } => reason.hint(*address),
            Self::Cidr {
                reason: InvalidCidr::BitsBelowPrefix { meant },
                ..
            } => Some(format!("did you mean {meant}?")),
            Self::Publish { .. } => {
                Some("write [BIND:]HOST:GUEST[/udp], such as 8080:80 or 0.0.0.0:5353:53/udp".into())
            }
            Self::Secret { reason, .. } => reason.hint().map(Into::into),
            Self::TooManyRules { .. } => Some("use CIDR blocks, suffixes or `block`".into()),
            _ => None,
        }
    }
}

/// Why a secret cannot be used. Nothing that was written is repeated: people put a value where
/// it does not belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSecret {
    /// The name is none of an environment variable.
    #[error("a name has letters, digits and '_', and no digit in front")]
    Name,
    /// The value has too few bytes to be told from other text.
    #[error("its value is shorter than {min} bytes")]
    TooShort {
        /// The least.
        min: usize,
    },
    /// The value has too many bytes.
    #[error("its value is longer than {max} bytes")]
    TooLong {
        /// The limit.
        max: usize,
    },
    /// The placeholder's prefix would not survive in headers and URLs.
    #[error("a placeholder's prefix has at most {max} letters, digits, '-', '_' and '.'")]
    Prefix {
        /// The limit.
        max: usize,
    },
    /// A field that never gets a value, or no name of one.
    #[error("one of its header fields is none that a value is put into")]
    Header,
    /// No method, or one of requests that are refused.
    #[error("one of its methods is none of requests that may have a value")]
    Method,
    /// No path begins so once it is understood.
    #[error("no path begins as its own does")]
    Path,
    /// Its source has no value: no such variable or file, or the program failed.
    #[error("its source has no value")]
    NoValue,
}

impl InvalidSecret {
    fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::Header => "name one that can carry a credential, such as authorization",
            Self::Method => "name one such as POST",
            Self::Path => "write how paths begin, such as /v1, without '?' and '..'",
            _ => return None,
        })
    }
}

/// Why a text is not an address block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCidr {
    /// What stands before the slash is no address.
    #[error("not an IPv4 or IPv6 address")]
    NotAnAddress,
    /// What stands behind the slash is no number of bits.
    #[error("the prefix length is not a number")]
    NotALength,
    /// The prefix is longer than the address.
    #[error("a prefix of {length} bits is longer than the address ({width} bits)")]
    TooLong {
        /// The length asked for.
        length: u8,
        /// The width of the address family.
        width: u8,
    },
    /// Bits are set below the prefix.
    #[error("the address has bits set below the prefix")]
    BitsBelowPrefix {
        /// The block that has this length and holds the address.
        meant: Cidr,
    },
}

/// Why a text is not a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPublish {
    /// There is only one part.
    #[error("the guest's port is missing")]
    NoGuestPort,
    /// A port is no number from 1 to 65535.
    #[error("a port is a number from 1 to 65535")]
    NotAPort,
    /// What stands behind the slash is no protocol.
    #[error("the protocol is tcp or udp")]
    NotAProtocol,
    /// What stands in front is no address.
    #[error(
        "what stands in front of the host's port is not an IPv4 address or an IPv6 address in brackets"
    )]
    NotAnAddress,
    /// A range ends before it begins.
    #[error("a range of ports ends before it begins")]
    EmptyRange,
    /// The host's range and the guest's are not equally long.
    #[error("the host's range of ports and the guest's are not equally long")]
    UnequalRanges,
    /// A range is too long.
    #[error("a range has at most {max} ports")]
    TooMany {
        /// The limit.
        max: u16,
    },
}

/// Why a port of the host cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortRefusal {
    /// Somebody listens there.
    #[error("something on this host uses it")]
    InUse,
    /// It takes privileges to listen there.
    #[error("it needs privileges")]
    NotPermitted,
    /// The address is none of the host's.
    #[error("this host has no such address")]
    NoSuchAddress,
    /// This process has as many descriptors as it may have.
    #[error("too many files are open")]
    TooManyFiles,
    /// Something else, in the system's words.
    #[error("{0}")]
    System(String),
}

impl PortRefusal {
    /// What the system's refusal means.
    #[cfg(feature = "shell")]
    pub(crate) fn of(error: &std::io::Error) -> Self {
        use rustix::io::Errno;

        match Errno::from_io_error(error) {
            Some(Errno::ADDRINUSE) => Self::InUse,
            Some(Errno::ACCESS | Errno::PERM) => Self::NotPermitted,
            Some(Errno::ADDRNOTAVAIL) => Self::NoSuchAddress,
            Some(Errno::MFILE | Errno::NFILE) => Self::TooManyFiles,
            _ => Self::System(error.to_string()),
        }
    }

    fn hint(&self, address: std::net::SocketAddr) -> Option<String> {
        let port = address.port();
        Some(match self {
            Self::InUse => {
                format!("name another port than {port}, or 0 for any that is free")
            }
            Self::NotPermitted => format!(
                "port {port} needs privileges; name one from 1024, or lower sysctl net.ipv4.ip_unprivileged_port_start"
            ),
            Self::NoSuchAddress => format!("{} must be an address of this host", address.ip()),
            Self::TooManyFiles => MORE_FILES.into(),
            Self::System(_) => return None,
        })
    }
}

/// Why a text is not a domain name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// More than 253 characters.
    #[error("it is longer than 253 characters")]
    TooLong,
    /// Two dots in a row, or one in front.
    #[error("it has an empty label")]
    EmptyLabel,
    /// A label of more than 63 characters.
    #[error("a label is longer than 63 characters")]
    LabelTooLong,
    /// A character that is not a letter, a digit, `-` or `_`.
    #[error("it holds {0:?}; only letters, digits, '-' and '_' may be in a label")]
    Character(char),
    /// A label begins or ends with a hyphen.
    #[error("a label begins or ends with '-'")]
    Hyphen,
    /// The last label is a number, so that the whole could be read as an address.
    #[error("it reads like an address")]
    Address,
}

/// A mistake in policy text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead, where that can be guessed.
    pub hint: Option<String>,
}

/// What helps where descriptors are few.
const MORE_FILES: &str = "raise the limit of open files (ulimit -n)";

/// Cuts a text taken from a caller to a length fit for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    /// Enough for any legal name or address to be recognised.
    const MAX_SHOWN: usize = 64;
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
