//! Removing a folder with all that is in it, without following anything.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::place::Place;
use super::{Abandoned, Port};
use crate::message::FileFault;

/// How deep folders are followed: each costs the agent a descriptor while it is emptied.
/// A path of the kernel's longest names no deeper one.
const MAX_DEPTH: usize = 2048;

/// Why something was not removed.
pub(super) enum Stop {
    Fault(FileFault),
    Abandoned,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Fault(errno.into())
    }
}

impl From<Abandoned> for Stop {
    fn from(_: Abandoned) -> Stop {
        Stop::Abandoned
    }
}

/// A folder that is being emptied, and its name in the one above.
struct Level {
    folder: OwnedFd,
    entries: Dir,
    name: std::ffi::CString,
}

/// Removes what a place names. `recursive`: a folder need not be empty.
pub(super) fn remove(place: &Place, recursive: bool, port: &Port) -> Result<(), Stop> {
    match rustix::fs::unlinkat(&place.folder, &place.name, AtFlags::empty()) {
        // Linux says the former of folders, POSIX the latter.
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return Ok(other?),
    }
    match rustix::fs::unlinkat(&place.folder, &place.name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if recursive => empty(place, port),
        other => Ok(other?),
    }
}

fn empty(place: &Place, port: &Port) -> Result<(), Stop> {
    let mut levels = vec![enter(&place.folder, place.name.clone())?];
    while let Some(level) = levels.last_mut() {
        port.check()?;
        let Some(entry) = level.entries.read() else {
            let above = levels.len().checked_sub(2).map(|above| &levels[above]);
            let above = above.map_or(place.folder.as_fd(), |level| level.folder.as_fd());
            let name = &levels[levels.len() - 1].name;
            let removed = rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR);
            gone(removed)?;
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(&level.folder, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {}
                other => {
                    gone(other)?;
                    continue;
                }
            }
        }
        let below = match enter(&level.folder, name.to_owned()) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        if levels.len() == MAX_DEPTH {
            return Err(Stop::Fault(FileFault::TooDeep(MAX_DEPTH as u32)));
        }
        levels.push(below);
    }
    Ok(())
}

/// Somebody else may have removed it meanwhile.
fn gone(removed: Result<(), Errno>) -> Result<(), Errno> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn enter(above: impl AsFd, name: std::ffi::CString) -> Result<Level, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(above, &name, flags, Mode::empty())?;
    Ok(Level {
        entries: Dir::read_from(&folder)?,
        folder,
        name,
    })
}
