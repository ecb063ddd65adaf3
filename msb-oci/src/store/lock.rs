//! Advisory locks: `flock` on files of the store. They end with the process.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{Error, Result};

/// Opens a lock file, making it if needed.
fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| Error::store("open", path, source))
}

fn lock(file: &File, path: &Path, operation: FlockOperation) -> Result<bool> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::store("lock", path, errno.into())),
        }
    }
}

/// Waits for a shared lock.
pub(crate) fn shared(path: &Path) -> Result<File> {
    let file = open(path)?;
    lock(&file, path, FlockOperation::LockShared)?;
    Ok(file)
}

/// Takes an exclusive lock if nobody else has one.
pub(crate) fn try_exclusive(path: &Path) -> Result<Option<File>> {
    let file = open(path)?;
    Ok(lock(&file, path, FlockOperation::NonBlockingLockExclusive)?.then_some(file))
}

/// Takes an exclusive lock; `waiting` is called if somebody else has it.
pub(crate) fn exclusive(path: &Path, waiting: impl FnOnce()) -> Result<File> {
    let file = open(path)?;
    if !lock(&file, path, FlockOperation::NonBlockingLockExclusive)? {
        waiting();
        lock(&file, path, FlockOperation::LockExclusive)?;
    }
    Ok(file)
}

/// Takes a shared lock on a file that must exist, and checks that the path
/// still means that file afterwards: it may have been deleted meanwhile.
pub(crate) fn shared_existing(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::store("open", path, source)),
    };
    lock(&file, path, FlockOperation::LockShared)?;
    let held = file
        .metadata()
        .map_err(|source| Error::store("read", path, source))?;
    let named = std::fs::metadata(path).ok();
    Ok(named
        .filter(|named| (named.dev(), named.ino()) == (held.dev(), held.ino()))
        .map(|_| file))
}

/// Takes an exclusive lock on a file that must exist, without waiting.
pub(crate) fn try_exclusive_existing(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => {
            Ok(lock(&file, path, FlockOperation::NonBlockingLockExclusive)?.then_some(file))
        }
        Err(source) => Err(Error::store("open", path, source)),
    }
}
