//! Applies layers to a directory of the host.
//!
//! The product never does this (a guest's root is never unpacked); it is for
//! looking into images and for comparing with other unpackers.
//!
//! What it guarantees: all layers are read, checked and merged before the
//! first write, so a refused layer changes nothing; and nothing outside of
//! the destination is read or written, whatever the layers hold and whatever
//! symlinks are in the destination already: each directory is opened with
//! `openat2` and `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//! RESOLVE_NO_MAGICLINKS`, and each object is then made by its bare name.
//!
//! What was in the destination counts as the lowest layer: whiteouts delete
//! from it, hard links may point into it, and its symlinks inside of paths are
//! resolved within the destination.
//!
//! Without privileges, as with `umoci unpack --rootless`: files belong to the
//! caller, a device becomes an empty file, xattrs that can't be set are left
//! out; besides, files whose owner could not be set lose their set-id bits.
//! [`Summary`] counts each.

mod apply;
mod error;
mod object;
mod root;
mod scan;
mod source;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use error::UnpackError;
pub use source::Source;

use crate::tree::Tree;

/// What was done, and what could not be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Files, directories and others made or updated.
    pub written: u64,
    /// Objects of the destination that were deleted or replaced.
    pub removed: u64,
    /// Owners that could not be set.
    pub owners_lost: u64,
    /// Extended attributes that could not be set.
    pub xattrs_lost: u64,
    /// Devices for which an empty file stands.
    pub devices_lost: u64,
}

impl Summary {
    /// Whether everything the layers say could be kept.
    pub fn is_complete(&self) -> bool {
        self.owners_lost + self.xattrs_lost + self.devices_lost == 0
    }
}

/// Applies `layers`, the lowest first, to the directory `destination`, which
/// is made if it does not exist.
///
/// # Errors
/// [`UnpackError::Refused`] if a layer is refused: then nothing was written.
/// Otherwise the destination failed, and may hold a part.
pub fn unpack(destination: &Path, layers: &[Source]) -> Result<Summary, UnpackError> {
    let indexes = || layers.iter().map(Source::index);
    let refused = |fault: crate::tree::MergeFault| UnpackError::Refused {
        layer: layers
            .get(fault.layer)
            .map_or_else(String::new, |source| source.name().to_owned()),
        fault: fault.fault,
    };
    match root::Root::open_existing(destination)? {
        None => {
            let tree = Tree::merge(indexes()).map_err(refused)?;
            apply::apply(&root::Root::create(destination)?, &tree, layers)
        }
        Some(root) => {
            let base = scan::scan(&root)?;
            let tree = Tree::merge_onto(&base, indexes()).map_err(refused)?;
            apply::apply(&root, &tree, layers)
        }
    }
}
