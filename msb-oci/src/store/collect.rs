//! Deletes what no reference leads to and nobody holds: images, then blobs.
//!
//! A collection needs the store's lock exclusively, so it never meets a pull.
//! If somebody is adding content, the collection stays due and a later command
//! does it. Images under a lease stay, with their blobs.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::Holders;
use super::layout::{self, Layout, RECORD};
use super::{lock, record};
use crate::{Digest, Error, Result};

/// Collects now if possible, else leaves a note. Returns the bytes freed.
pub(super) fn collect(layout: &Layout, holders: &Holders) -> Result<u64> {
    let due = layout.collection_due();
    // On a full disk the note may fail, but the collection makes room.
    let noted = fs::write(&due, b"").map_err(|source| Error::store("create", &due, source));
    match lock::try_exclusive(&layout.lock())? {
        Some(_held) => collect_locked(layout, holders),
        None => noted.map(|()| 0),
    }
}

/// What opening a store repairs: leftovers of killed processes, and a
/// collection that was due.
pub(super) fn repair(layout: &Layout, holders: &Holders) -> Result<()> {
    let due = layout.collection_due().exists();
    if !due && is_empty(&layout.tmp()) {
        return Ok(());
    }
    let Some(_held) = lock::try_exclusive(&layout.lock())? else {
        return Ok(());
    };
    // What can't be deleted now must not stand in the way of everything else.
    let _ = if due {
        collect_locked(layout, holders)
    } else {
        empty(&layout.tmp())
    };
    Ok(())
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn empty(directory: &Path) -> Result<u64> {
    let mut freed = 0;
    let entries =
        fs::read_dir(directory).map_err(|source| Error::store("read", directory, source))?;
    for entry in entries.flatten() {
        freed += layout::delete(&entry.path())?;
    }
    Ok(freed)
}

fn collect_locked(layout: &Layout, holders: &Holders) -> Result<u64> {
    let mut freed = empty(&layout.tmp())? + empty(&layout.blob_locks())?;
    let mut wanted = holders.digests();
    let references = record::all_references(layout)?.into_iter();
    wanted.extend(references.map(|(_, digest)| digest));
    let mut live = HashSet::new();
    let mut complete = true;
    for digest in image_directories(layout)? {
        if !wanted.contains(&digest) {
            // Whatever else is odd about an image that nobody refers to, it may go.
            let unused = lock::try_exclusive_existing(&layout.image(digest).join(RECORD));
            if !matches!(unused, Ok(None)) {
                freed += remove_image(layout, digest)?;
                continue;
            }
            complete = false;
        }
        if let Some(record) = record::read_image(layout, digest)? {
            live.extend([record.manifest, record.config_digest]);
            live.extend(record.layers);
        }
    }
    freed += remove_blobs(layout, &live)?;
    if complete {
        layout::delete(&layout.collection_due())?;
    }
    Ok(freed)
}

fn image_directories(layout: &Layout) -> Result<Vec<Digest>> {
    let directory = layout.images();
    let entries =
        fs::read_dir(&directory).map_err(|source| Error::store("read", &directory, source))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| digest_of(&entry.file_name()))
        .collect())
}

fn digest_of(name: &OsStr) -> Option<Digest> {
    name.to_str().and_then(Digest::from_hex)
}

/// Renames first: a directory that is half deleted must not look like an image.
fn remove_image(layout: &Layout, digest: Digest) -> Result<u64> {
    let path = layout.image(digest);
    let doomed = layout.tmp().join(digest.hex());
    fs::rename(&path, &doomed).map_err(|source| Error::store("delete", &path, source))?;
    layout::delete(&doomed)
}

fn remove_blobs(layout: &Layout, live: &HashSet<Digest>) -> Result<u64> {
    let directory = layout.blobs();
    let entries =
        fs::read_dir(&directory).map_err(|source| Error::store("read", &directory, source))?;
    let mut freed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let stem = Path::new(&name).file_stem().and_then(digest_of);
        if !stem.is_some_and(|digest| live.contains(&digest)) {
            freed += layout::delete(&entry.path())?;
        }
    }
    Ok(freed)
}
