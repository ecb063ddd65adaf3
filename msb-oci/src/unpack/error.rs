//! Why unpacking failed.

use std::io;
use std::path::PathBuf;

use crate::layer::Fault;

/// A failure to unpack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// A layer is malformed or hostile. Nothing was written.
    #[error("layer {layer} refused: {fault}")]
    Refused {
        /// The layer, as its [`super::Source`] is called.
        layer: String,
        /// Entry and reason.
        #[source]
        fault: Fault,
    },
    /// A layer can't be read or decompressed. Nothing was written.
    #[error("layer {layer} can't be read: {reason}")]
    Unreadable {
        /// The layer, as its [`super::Source`] is called.
        layer: String,
        /// What happened.
        reason: io::Error,
    },
    /// The destination or something in it failed.
    #[error("can't {action} {path}: {reason}", path = path.display())]
    Destination {
        /// What was tried.
        action: &'static str,
        /// The path; inside the destination it is relative to it.
        path: PathBuf,
        /// What happened.
        reason: io::Error,
    },
}
