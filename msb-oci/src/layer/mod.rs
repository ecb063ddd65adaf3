//! Reads one layer: an uncompressed tar stream becomes a [`LayerIndex`].
//!
//! The index holds what the tar says about each entry and *where* its data
//! lies; the data itself stays in the tar, which the store keeps as the
//! layer's blob. [`crate::tree`] merges indexes, [`crate::erofs`] makes them
//! mountable.
//!
//! Owns: the tar dialects (v7, ustar, star, GNU, PAX, the four sparse
//! encodings) and every check that one layer allows by itself. Deliberately
//! absent: decompression, digests, files; and whatever needs the layers below
//! (symlinks in paths, hard-link targets, duplicates), which is the merge's.
//!
//! Read first: POSIX `pax` ("pax Interchange Format", "ustar Interchange
//! Format"), the GNU tar manual's "Tar Internals", and `layer.md` of the OCI
//! image specification.

mod codec;
mod fault;
mod header;
mod index;
mod indexer;
mod name;
mod pax;
mod sparse;
#[cfg(test)]
pub(crate) mod tar_writer;
#[cfg(test)]
mod tests;

pub use codec::CorruptIndex;
pub use fault::{Fault, Reason};
pub use index::{Entry, Extent, Kind, LayerIndex, Xattr};
pub use indexer::Indexer;

pub(crate) use fault::printable;
pub(crate) use index::{Builder, Draft};

/// The unit of a tar stream and of the root disk built from it. A layer's
/// blob is stored zero-padded to a multiple of this many bytes.
pub const BLOCK: u64 = 512;

/// Longest name of a path component: `NAME_MAX` of Linux and of EROFS.
pub const MAX_NAME: usize = 255;

/// Longest path and longest symlink target: `PATH_MAX` of Linux without its
/// final NUL. A longer one could be stored but never opened.
pub const MAX_PATH: usize = 4095;

/// Deepest nesting of directories. Real trees stay under a hundred; this
/// keeps whoever walks the tree recursively inside the guest alive.
pub const MAX_DEPTH: usize = 1024;

/// Bytes of one extended header. Go's archive/tar has the same bound; what
/// needs more is 64 KiB of xattr value per attribute away from real use.
pub const MAX_EXTENDED_HEADER: u64 = 1 << 20;

/// Bytes of all names, link targets and xattrs of a layer: what an index may
/// take in memory. Four million entries with common names fit.
pub const MAX_METADATA: usize = 512 << 20;

/// Extents of one sparse file. An extent costs 24 bytes here and 8 bytes or
/// more in the root disk; GNU tar writes one per data run.
pub const MAX_SPARSE_EXTENTS: usize = 1 << 18;

/// Apparent size of one file. EROFS addresses 2^32 blocks of 512 bytes in one
/// disk; a sparse file may claim more than it stores, but not without end.
pub const MAX_FILE_SIZE: u64 = 1 << 44;

/// Longest xattr name after its namespace, and longest value: the widths of
/// the EROFS fields. Linux allows 255 and 65,536.
pub const MAX_XATTR_VALUE: usize = 65_535;

/// What one layer may hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries, whiteouts and extended headers included.
    pub entries: u64,
    /// Bytes of the uncompressed stream.
    pub bytes: u64,
}

impl Default for Limits {
    /// Four million entries and 64 GiB: ten times the largest images in use.
    fn default() -> Limits {
        Limits {
            entries: 4 << 20,
            bytes: 64 << 30,
        }
    }
}
