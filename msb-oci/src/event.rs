//! What a pull tells its caller while it runs.

use crate::Digest;

/// One step of a pull or an import.
///
/// Events of different layers interleave; they come from several threads.
/// `layer` counts from zero, the base layer first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullEvent {
    /// The manifest is known.
    Resolved {
        /// Digest of the manifest for the chosen platform.
        digest: Digest,
        /// Number of layers.
        layers: usize,
        /// Bytes of all layers as they are transferred.
        bytes: u64,
    },
    /// The layer is in the store already; nothing is transferred.
    LayerExists {
        /// Number of the layer.
        layer: usize,
    },
    /// Another process is fetching this layer; its work is awaited and shared.
    LayerWaiting {
        /// Number of the layer.
        layer: usize,
    },
    /// The transfer of a layer began.
    LayerStarted {
        /// Number of the layer.
        layer: usize,
        /// Its digest as transferred.
        digest: Digest,
        /// Bytes to transfer.
        total: u64,
    },
    /// More of a layer has arrived. Sent at most once per mebibyte.
    LayerProgress {
        /// Number of the layer.
        layer: usize,
        /// Bytes transferred so far.
        done: u64,
        /// Bytes to transfer.
        total: u64,
    },
    /// A transfer broke off and is being resumed.
    LayerRetry {
        /// Number of the layer.
        layer: usize,
        /// Which attempt starts now, from 2.
        attempt: u32,
        /// Why the one before failed.
        reason: String,
    },
    /// The layer is verified and stored.
    LayerDone {
        /// Number of the layer.
        layer: usize,
    },
    /// An image of an archive has no name of its own, and is not taken.
    LeftOut {
        /// Digest of its manifest or index.
        digest: Digest,
        /// The tag that the archive gives it, which is no name of an image.
        tag: Option<String>,
    },
    /// All layers are there; the root file system is being put together.
    Indexing,
    /// The image is ready.
    Done {
        /// Digest of its manifest.
        digest: Digest,
        /// Whether anything had to be transferred.
        fetched: bool,
    },
}
