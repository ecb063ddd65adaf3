//! An image in the store: its configuration, its root disk, and the lease
//! that keeps it there while somebody uses it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::{Digest, ImageConfig, Reference, Result, store, unpack};

/// An image whose layers are in the store, verified and indexed.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) store_root: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) root_disk: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) config_digest: Digest,
    pub(crate) references: Vec<Reference>,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Digest>,
    pub(crate) size: u64,
    pub(crate) pulled: SystemTime,
}

impl Image {
    /// Digest of the image's manifest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Digest of the image's configuration: docker's image id.
    pub fn config_digest(&self) -> Digest {
        self.config_digest
    }

    /// The references under which the store knows this image, sorted.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// What the image says about running it.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The VMDK descriptor that presents metadata and layers as one disk with
    /// an EROFS root. Its extents are relative paths to files in the store:
    /// whoever opens it needs read access to [`Image::files`].
    pub fn root_disk(&self) -> &Path {
        &self.root_disk
    }

    /// Every file that the root disk consists of, the descriptor first.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.root_disk.clone(), self.directory.join(store::METADATA)];
        files.extend(
            self.layers
                .iter()
                .map(|&layer| store::blob_path(&self.store_root, layer)),
        );
        files
    }

    /// The diff-ids of the layers, the base layer first.
    pub fn layers(&self) -> &[Digest] {
        &self.layers
    }

    /// What each layer takes on this disk, in bytes, the base layer first.
    pub fn layer_sizes(&self) -> Vec<u64> {
        let path = |layer: &Digest| store::blob_path(&self.store_root, *layer);
        let sizes = self.layers.iter().map(path);
        sizes.map(|path| store::allocated(&path)).collect()
    }

    /// Bytes of the layers, uncompressed, and of the metadata. Layers shared
    /// with other images are counted in each.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When this store got the image.
    pub fn pulled(&self) -> SystemTime {
        self.pulled
    }

    /// Opens the layers for [`crate::unpack::unpack`], the base layer first.
    ///
    /// # Errors
    /// A layer is missing or damaged.
    pub fn unpack_sources(&self) -> Result<Vec<unpack::Source>> {
        store::unpack_sources(self)
    }

    /// Keeps the image in the store until the lease is dropped.
    ///
    /// # Errors
    /// The image was removed since it was looked up.
    pub fn lease(&self) -> Result<Lease> {
        store::lease(self)
    }
}

/// A shared lock on an image: while any process holds one, the image's files
/// stay where they are. The lock ends with the process, however it ends.
///
/// The descriptor is close-on-exec: a child does not prolong the lease.
#[derive(Debug)]
pub struct Lease {
    pub(crate) _lock: File,
}
