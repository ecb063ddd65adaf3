//! Where a path leads, inside the root of the workload.
//!
//! Reading: `openat2(2)`. `RESOLVE_IN_ROOT` takes absolute symlinks and `..` as the workload
//! does, and no magic link of `/proc` leads to what only the agent has open.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::message::{ByteString, FileFault, MAX_PATH};

/// How often a path is tried that somebody renames meanwhile.
const MAX_TRIES: u32 = 16;

/// The root and where relative paths begin.
pub(super) struct Places {
    root: OwnedFd,
    workdir: Vec<u8>,
}

/// A path whose last name need not exist.
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    pub(super) name: CString,
}

impl Places {
    pub(super) fn new(workdir: &ByteString) -> Result<Places, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Places {
            root: rustix::fs::open("/", flags, Mode::empty())?,
            workdir: workdir.0.clone(),
        })
    }

    /// Opens what is there, or makes a file.
    pub(super) fn open(
        &self,
        path: &ByteString,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd, FileFault> {
        let path = self.complete(path.as_bytes())?;
        self.open_complete(&path, flags, mode)
    }

    /// What is there, without opening it; a symlink itself, unless it is followed.
    pub(super) fn find(&self, path: &ByteString, follow: bool) -> Result<OwnedFd, FileFault> {
        let mut flags = OFlags::PATH;
        flags.set(OFlags::NOFOLLOW, !follow);
        self.open(path, flags, 0)
    }

    /// Finds the folder that the last name of a path is in.
    pub(super) fn parent(&self, path: &ByteString) -> Result<Place, FileFault> {
        let path = self.complete(path.as_bytes())?;
        let bytes = path.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/');
        let bytes = &bytes[..end.map_or(0, |end| end + 1)];
        let slash = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (folder, name) = bytes.split_at(slash.min(bytes.len()));
        let name = name.strip_prefix(b"/").unwrap_or(name);
        if matches!(name, b"" | b"." | b"..") {
            return Err(bad("it ends in no name"));
        }
        let folder = c_string([folder, b"/"].concat())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok(Place {
            folder: self.open_complete(&folder, flags, 0)?,
            name: c_string(name.to_vec())?,
        })
    }

    fn complete(&self, path: &[u8]) -> Result<CString, FileFault> {
        if path.is_empty() {
            return Err(bad("it is empty"));
        }
        if path.len() >= MAX_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
        if path[0] == b'/' {
            c_string(path.to_vec())
        } else {
            c_string([&self.workdir[..], b"/", path].concat())
        }
    }

    fn open_complete(
        &self,
        path: &CString,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd, FileFault> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut flags = flags | OFlags::CLOEXEC;
        // The kernel takes no flag and no mode that means nothing: not this one with O_PATH,
        // no mode without O_CREAT.
        flags.set(OFlags::NOCTTY, !flags.contains(OFlags::PATH));
        let mode = if flags.contains(OFlags::CREATE) {
            Mode::from_raw_mode(mode & 0o7777)
        } else {
            Mode::empty()
        };
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < MAX_TRIES => tries += 1,
                other => return Ok(other?),
            }
        }
    }
}

impl Place {
    /// What is there; a symlink itself.
    pub(super) fn stat(&self) -> Result<Stat, Errno> {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statat(&self.folder, &self.name, flags)
    }
}

fn c_string(bytes: Vec<u8>) -> Result<CString, FileFault> {
    CString::new(bytes).map_err(|_| bad("a NUL byte is in it"))
}

fn bad(reason: &str) -> FileFault {
    FileFault::BadPath(reason.into())
}
