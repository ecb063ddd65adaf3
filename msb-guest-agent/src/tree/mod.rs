//! Packing folders into [records](crate::record) and making folders of them: what the agent
//! and its host both do when trees are copied.
//!
//! Neither side trusts the other's tree. Whoever packs opens each entry relative to the
//! folder that it was found in and never follows a symlink; whoever unpacks does the same
//! with what is there, so that no tree, and no earlier tree in the same place, leads outside.

mod pack;
mod unpack;

use rustix::fs::{FileType, Stat};

pub use pack::Packer;
#[cfg(feature = "agent")]
pub(crate) use pack::segment;
pub use unpack::{UnpackOptions, Unpacker};

use crate::message::{ByteString, Errno, FileError, FileFault, FileKind, Metadata};

/// Why a tree was not copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Something is wrong with a file. Paths begin inside the tree.
    #[error(transparent)]
    File(#[from] FileError),
    /// Whoever takes the records does not want more.
    #[error("nobody wants the rest")]
    Stopped,
}

/// What a file is.
pub fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => FileKind::Folder,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        _ => FileKind::File,
    }
}

/// What is known about a file, as it travels.
pub fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        kind: kind(stat),
        permissions: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: stat.st_mtime,
        modified_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
    }
}

/// Entries that cannot be copied, of which a report names no more.
const MAX_NAMED: usize = 100;

/// What was packed, or made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries, folders included.
    pub entries: u64,
    /// Bytes of content; holes do not count.
    pub bytes: u64,
    /// How many entries cannot be copied: devices, sockets, named pipes.
    pub skipped: u64,
    /// The first of these.
    pub skipped_named: Vec<Skipped>,
}

/// Something that was not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where in the tree.
    pub path: ByteString,
    /// What it is.
    pub kind: FileKind,
}

impl Report {
    fn skip(&mut self, path: ByteString, kind: FileKind) {
        self.skipped += 1;
        if self.skipped_named.len() < MAX_NAMED {
            self.skipped_named.push(Skipped { path, kind });
        }
    }
}

/// Where in a tree something is, for messages.
#[derive(Debug, Default)]
struct Place(Vec<u8>);

impl Place {
    fn enter(&mut self, name: &[u8]) {
        self.0.push(b'/');
        self.0.extend_from_slice(name);
    }

    fn leave(&mut self) {
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.0.truncate(end);
    }

    /// The path of an entry of the folder that it is in.
    fn of(&self, name: &[u8]) -> ByteString {
        let path = [&self.0[..], b"/", name].concat();
        ByteString(path[1..].to_vec())
    }

    fn fails(&self, name: &[u8], fault: impl Into<FileFault>) -> TreeError {
        TreeError::File(FileError {
            path: self.of(name),
            fault: fault.into(),
        })
    }
}

impl From<rustix::io::Errno> for FileFault {
    fn from(errno: rustix::io::Errno) -> FileFault {
        FileFault::System(Errno(errno.raw_os_error()))
    }
}

#[cfg(test)]
mod tests;
