//! The destination as a root: directories are opened beneath it only.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::UnpackError;
use crate::layer::MAX_DEPTH;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// An open destination directory.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
}

pub(super) fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> UnpackError {
    let path = if path.is_empty() {
        PathBuf::from(".")
    } else {
        PathBuf::from(OsStr::from_bytes(path))
    };
    move |errno| UnpackError::Destination {
        action,
        path,
        reason: errno.into(),
    }
}

impl Root {
    /// Opens the destination if it exists. The caller named it, so symlinks
    /// on the way to it are followed.
    pub(super) fn open_existing(path: &Path) -> Result<Option<Root>, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Root { fd })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed("open", path.as_os_str().as_bytes())(errno)),
        }
    }

    pub(super) fn create(path: &Path) -> Result<Root, UnpackError> {
        std::fs::create_dir_all(path).map_err(|reason| UnpackError::Destination {
            action: "create",
            path: path.to_owned(),
            reason,
        })?;
        let missing = || failed("open", path.as_os_str().as_bytes())(Errno::NOENT);
        Root::open_existing(path)?.ok_or_else(missing)
    }

    /// Opens the directory at `path`, which is relative; empty is the root.
    pub(super) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        open_beneath(self.fd.as_fd(), if path.is_empty() { b"." } else { path })
    }
}

/// Opens a directory below another, through no symlink and no `..`.
pub(super) fn open_beneath(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(directory, path, DIRECTORY, Mode::empty(), BENEATH) {
            // The kernel saw a rename elsewhere in the tree and could not be
            // sure; it asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The names in a directory, without the two dots.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Deletes what is at a name, with its content; `false` if nothing was.
pub(super) fn remove(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    remove_nested(directory, name, 0)
}

fn remove_nested(directory: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let inner = open_beneath(directory, name)?;
    for child in names(&inner)? {
        remove_nested(inner.as_fd(), &child, depth + 1)?;
    }
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}
