//! The crate's error: what failed, with which name, why, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Digest, Platform};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be had.
///
/// Grouped by who is at fault: the caller, the registry, the image, this
/// machine. [`Error::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // The caller.
    /// The text is no image reference.
    #[error("`{reference}` is not an image reference: {reason}")]
    InvalidReference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The text is no digest.
    #[error("`{digest}` is not a digest (sha256: and 64 lower-case hexadecimal digits)")]
    InvalidDigest {
        /// What was given.
        digest: String,
    },
    /// The store has no such image and may not or could not fetch it.
    #[error("image {reference} is not in the store")]
    NotInStore {
        /// The image.
        reference: String,
    },
    /// The image is running somewhere.
    #[error("image {image} is in use by a running sandbox")]
    InUse {
        /// The image.
        image: String,
    },
    /// Somebody will need the image again.
    #[error("image {image} is needed by {}", by.join(", "))]
    Held {
        /// The image.
        image: String,
        /// Who does.
        by: Vec<String>,
    },
    /// The file is none of the archives that can be imported.
    #[error("{} is not an image archive: {reason}", path.display())]
    NotAnArchive {
        /// The file or directory.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// docker's `config.json` can't be used.
    #[error("credentials for {registry}: {reason}")]
    Credentials {
        /// The registry.
        registry: String,
        /// What is wrong.
        reason: String,
    },

    // The registry.
    /// Nothing answered.
    #[error("cannot reach registry {registry}: {reason}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// The operating system's word.
        reason: String,
    },
    /// The registry's certificate or handshake is bad.
    #[error("no secure connection to registry {registry}: {reason}")]
    Tls {
        /// Host and port.
        registry: String,
        /// What the TLS library says.
        reason: String,
    },
    /// The registry has no such image.
    #[error("registry {registry} has no image {reference}{}", said(message))]
    UnknownImage {
        /// The registry.
        registry: String,
        /// The image.
        reference: String,
        /// What the registry said, printable.
        message: String,
    },
    /// The registry wants to know us, or knows us and refuses.
    #[error("registry {registry} denies access to {reference}{}", said(message))]
    Denied {
        /// The registry.
        registry: String,
        /// The image.
        reference: String,
        /// What the registry said, printable.
        message: String,
        /// Whether credentials were sent.
        authenticated: bool,
    },
    /// The registry broke the protocol, or failed.
    #[error("registry {registry}: {reason}")]
    Registry {
        /// The registry.
        registry: String,
        /// What it did.
        reason: String,
    },
    /// The registry sent us to an address that it has no business with.
    #[error("registry {registry} redirects to {target}: {reason}")]
    Redirect {
        /// The registry.
        registry: String,
        /// Where to, without the query.
        target: String,
        /// Why that is refused.
        reason: String,
    },

    // The image.
    /// Content is not what its digest says.
    #[error("{what} has the wrong digest: expected {expected}, got {got}")]
    WrongDigest {
        /// What was checked, such as `layer 3 of 5`.
        what: String,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
    },
    /// Content has not the length that its descriptor says.
    #[error("{what} has the wrong size: expected {expected} bytes, got {got}")]
    WrongSize {
        /// What was checked.
        what: String,
        /// The promised size.
        expected: u64,
        /// The size of what came, or a bound it exceeded.
        got: u64,
    },
    /// The image is for other machines.
    #[error(
        "image {reference} has no {wanted} variant; it offers: {}",
        list(offered)
    )]
    NoSuchPlatform {
        /// The image.
        reference: String,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: Vec<String>,
    },
    /// A manifest, index or configuration is malformed or unsupported.
    #[error("{what}: {reason}")]
    BadImage {
        /// Which document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer's content is refused.
    #[error("{layer} is refused: {fault}")]
    Layer {
        /// Which layer.
        layer: String,
        /// The entry and the reason.
        fault: crate::layer::Fault,
    },
    /// A layer is compressed badly or in an unsupported way.
    #[error("{what} cannot be decompressed: {reason}")]
    Decompress {
        /// Which layer.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A bound of [`crate::Limits`] is exceeded.
    #[error("{what} exceeds the limit of {limit} {unit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },

    // This machine.
    /// The disk that holds the store is full.
    #[error("no space left for {} in the store", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A file of the store can't be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Store {
        /// What was tried: `create`, `read`, …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the store has content that this program did not write.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NotInStore { .. } => {
                "check the name against the list of images, or pull the image first".to_owned()
            }
            Error::InUse { .. } => "stop the sandboxes that run it, then try again".to_owned(),
            Error::NotAnArchive { .. } => {
                "an OCI layout (directory or tar) or the output of `docker save` is wanted".to_owned()
            }
            Error::Unreachable { registry, .. } => {
                format!("is the registry running at {registry}, and the name spelt right?")
            }
            Error::Held { .. } => "remove what needs it first, or force the removal".to_owned(),
            Error::Tls { .. } => {
                "plain HTTP is spoken to this machine's own addresses only; \
                 a private authority must be among the system's trusted certificates"
                    .to_owned()
            }
            Error::UnknownImage { .. } => "check the name and the tag".to_owned(),
            Error::Denied { registry, authenticated: false, .. } => {
                format!("log in first: docker login {registry}; or the name is wrong")
            }
            Error::Denied { .. } => "check the name, and that this account may read it".to_owned(),
            Error::WrongDigest { .. } | Error::WrongSize { .. } => {
                "the content was damaged or changed on its way; try again, or do not trust its source".to_owned()
            }
            Error::Redirect { .. } => {
                "the registry is set up badly or means harm; pull the image from another one".to_owned()
            }
            Error::Registry { .. } => {
                "try again later; if it goes on, ask whoever runs the registry".to_owned()
            }
            Error::NoSuchPlatform { wanted, .. } => {
                format!("choose an image that is built for {wanted}, or build this one for it")
            }
            Error::InvalidReference { .. } => {
                "write NAME, NAME:TAG, NAME@sha256:… or HOST:PORT/NAME:TAG".to_owned()
            }
            Error::BadImage { .. } | Error::Layer { .. } | Error::Decompress { .. } => {
                "the image is damaged or means harm; build it anew, or do not trust its source".to_owned()
            }
            Error::TooLarge { .. } => "raise the limit if the image is trusted".to_owned(),
            Error::DiskFull { .. } => "remove images that are not needed, or free space on the disk".to_owned(),
            Error::Store { source, path, .. } => return store_hint(source.kind(), path),
            Error::Damaged { path, .. } => {
                format!("remove {} and pull the image again", path.display())
            }
            _ => return None,
        })
    }

    /// Wraps a failure of the file system; a full disk gets its own variant.
    pub(crate) fn store(action: &'static str, path: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull {
                path: path.to_owned(),
            },
            _ => Error::Store {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }
}

fn store_hint(kind: io::ErrorKind, path: &Path) -> Option<String> {
    let path = path.display();
    Some(match kind {
        io::ErrorKind::PermissionDenied => {
            format!("make {path} readable and writable for this user, or choose another directory")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("make the file system of {path} writable, or choose another directory")
        }
        io::ErrorKind::NotFound => format!("check that {path} is spelt right, and is there"),
        io::ErrorKind::NotADirectory => {
            "a file is where a directory should be; remove it or choose another directory"
                .to_owned()
        }
        _ => return None,
    })
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn list(offered: &[String]) -> String {
    if offered.is_empty() {
        "nothing".to_owned()
    } else {
        offered.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::Error;
    use std::io::{self, ErrorKind};
    use std::path::Path;

    #[test]
    fn a_store_in_a_bad_place_has_a_remedy() {
        for (kind, part) in [
            (ErrorKind::PermissionDenied, "writable for this user"),
            (ErrorKind::ReadOnlyFilesystem, "file system of /s writable"),
            (ErrorKind::NotADirectory, "a file is where a directory"),
            (ErrorKind::StorageFull, "free space"),
        ] {
            let error = Error::store("open", Path::new("/s"), io::Error::from(kind));
            assert!(error.hint().unwrap().contains(part), "{kind}");
        }
    }
}
