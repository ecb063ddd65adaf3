//! Writes a merged tree as an EROFS image whose file data stays in the
//! layers' tars.
//!
//! The image is metadata: superblock, device table, inodes, directories,
//! symlinks, xattrs. Each regular file is a chunk-based inode that points into
//! a *device*, the blob of the layer it is from. The guest sees the image and
//! the blobs, in device-table order, as one disk ([`crate::vmdk`]) and mounts
//! it without options; the kernel then adds each device's `mapped_blkaddr`.
//!
//! Block size is 512 bytes, which is where tar puts file data. Needs Linux
//! 5.19 or later; nothing is compressed. The output is a function of the tree
//! and the devices alone.
//!
//! Read first: `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`
//! of Linux.

mod crc32c;
mod directory;
mod inode;
mod layout;
pub(crate) mod reader;
pub(crate) mod roundtrip;
#[cfg(test)]
mod tests;
mod write;
mod xattr;

use std::io::{self, Write};

use crate::layer::BLOCK;
use crate::tree::Tree;

pub(crate) use crc32c::crc32c;

/// The disk is put together in units of this many bytes: the metadata image
/// is padded to it so that layers start on a page of the guest.
const PAGE: u64 = 4096;

/// Chunk pointers of all files together, 8 bytes each. A file without holes
/// needs one; sparse files need one per run of their finest alignment.
const MAX_CHUNKS: u64 = 1 << 23;

/// A layer's blob as part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Bytes of the blob; a multiple of 512, which the store pads it to.
    pub bytes: u64,
    /// A name for the device table, for people: the diff-id's 64 digits.
    pub tag: [u8; 64],
}

impl Device {
    /// A device for a blob of `bytes` bytes, rounded up to whole blocks.
    pub fn new(bytes: u64) -> Device {
        Device {
            bytes: bytes.next_multiple_of(BLOCK),
            tag: [0; 64],
        }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErofsInfo {
    /// Bytes of the metadata image; a multiple of 4,096.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Why a tree can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output failed.
    #[error("writing the root's metadata")]
    Io(#[from] io::Error),
    /// Metadata and layers together are over 2 TiB.
    #[error("metadata and layers exceed the 2 TiB that a root disk can address")]
    TooLarge,
    /// A sparse file's runs are too many or too finely aligned.
    #[error("the sparse file \"{path}\" needs too many chunks")]
    TooSparse {
        /// The number of its layer.
        layer: u32,
        /// Its path.
        path: String,
    },
    /// An inode's xattrs are over 256 KiB.
    #[error("the extended attributes of \"{path}\" exceed 256 KiB")]
    XattrsTooLarge {
        /// The number of its layer.
        layer: u32,
        /// Its path.
        path: String,
    },
    /// A node is from a layer that has no device, or lies beyond its end.
    #[error("the data of \"{path}\" lies outside of its layer")]
    NoDevice {
        /// The number of its layer.
        layer: u32,
        /// Its path.
        path: String,
    },
}

impl WriteError {
    /// The number of the layer whose content can't be written, if it is one's.
    pub fn layer(&self) -> Option<u32> {
        match *self {
            WriteError::TooSparse { layer, .. }
            | WriteError::XattrsTooLarge { layer, .. }
            | WriteError::NoDevice { layer, .. } => Some(layer),
            WriteError::Io(_) | WriteError::TooLarge => None,
        }
    }
}

/// Writes the metadata image of `tree` to `out`, from start to end.
///
/// `devices[n]` is the blob of layer `n`. The disk is the image followed by
/// the devices in this order.
///
/// # Errors
/// `out` fails, or the tree exceeds what the format can say.
pub fn write(
    tree: &Tree<'_>,
    devices: &[Device],
    out: &mut impl Write,
) -> Result<ErofsInfo, WriteError> {
    let layout = layout::Layout::new(tree, devices)?;
    write::write(&layout, devices, out)?;
    Ok(ErofsInfo {
        bytes: layout.image_bytes(),
        inodes: layout.inodes.len() as u64,
    })
}
