//! Streams: one operation on the guest's files each.
//!
//! ```text
//! Open(File) ──► [Stdin: what to write]          Event(FileOpened)  (operations with bytes)
//!                [Stdout: content, entries, a tree]
//!                                                Event(FileDone | FileFailed)
//! ```
//!
//! Entries and trees are [records](crate::record); content is plain bytes.

use serde::{Deserialize, Serialize};

use super::{ByteString, Errno};

/// Longest path that is taken, in bytes: the kernel's own bound.
pub const MAX_PATH: usize = 4096;

/// An operation on files.
///
/// Paths are bytes, resolved inside the root of the workload as that resolves them,
/// symlinks included; a relative one begins at the working folder of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// What is to be done.
    pub operation: FileOperation,
    /// With whose rights: `name|uid[:group|gid]`; root's when `None`.
    pub user: Option<String>,
}

/// What can be done to files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileOperation {
    /// Content of a file, on [`Stdout`](crate::wire::Channel::Stdout).
    Read {
        /// Of a regular file.
        path: ByteString,
        /// Where to begin.
        offset: u64,
        /// How much at the most; to the end when `None`.
        len: Option<u64>,
    },
    /// Content for a file, from [`Stdin`](crate::wire::Channel::Stdin) until that ends.
    Write {
        /// The file; made when it is missing.
        path: ByteString,
        /// What happens to what is there.
        mode: WriteMode,
        /// Permissions of a file that is made; 0644 when `None`.
        permissions: Option<u32>,
    },
    /// The entries of a folder, as [`Entry`] records.
    List {
        /// The folder.
        path: ByteString,
    },
    /// Answered with [`FileAnswer::Metadata`].
    Stat {
        /// Of what.
        path: ByteString,
        /// Whether a symlink at the end is followed.
        follow: bool,
    },
    /// Makes a folder.
    MakeFolder {
        /// Where.
        path: ByteString,
        /// Its permissions, also where it is there already; 0755 when `None` and it is
        /// made.
        permissions: Option<u32>,
        /// Makes what is missing above it, and does not mind that it is there.
        parents: bool,
    },
    /// Removes an entry; a symlink itself, not what it names.
    Remove {
        /// Which.
        path: ByteString,
        /// A folder with all that is in it.
        recursive: bool,
    },
    /// Renames, replacing a file that is there.
    Rename {
        /// From here.
        from: ByteString,
        /// To there.
        to: ByteString,
    },
    /// Copies content and permissions of a regular file.
    Copy {
        /// From here.
        from: ByteString,
        /// To there, replacing a file's content.
        to: ByteString,
    },
    /// Makes a symlink.
    Symlink {
        /// What it says.
        target: ByteString,
        /// Where it is.
        path: ByteString,
    },
    /// Answered with [`FileAnswer::Target`].
    ReadLink {
        /// Of which symlink.
        path: ByteString,
    },
    /// Changes permissions.
    SetPermissions {
        /// Of what; symlinks are followed.
        path: ByteString,
        /// To these, below 0o10000.
        permissions: u32,
    },
    /// Changes owners.
    SetOwner {
        /// Of what.
        path: ByteString,
        /// To this user; as it is when `None`.
        uid: Option<u32>,
        /// To this group; as it is when `None`.
        gid: Option<u32>,
        /// Whether a symlink at the end is followed.
        follow: bool,
    },
    /// Cuts a file, or fills it up with zeros.
    Truncate {
        /// Which.
        path: ByteString,
        /// Its new size.
        size: u64,
    },
    /// A file or a folder with all that is in it, as [`TreeRecord`](crate::record::TreeRecord)s.
    Pack {
        /// Which; a symlink at the end is packed itself.
        path: ByteString,
    },
    /// Makes what [`TreeRecord`](crate::record::TreeRecord)s say, from
    /// [`Stdin`](crate::wire::Channel::Stdin).
    Unpack {
        /// What the tree's first entry will be called. Its folder must be there.
        path: ByteString,
        /// User and group that own what is made; those whose rights are used when `None`.
        owner: Option<(u32, u32)>,
    },
}

impl FileOperation {
    /// The path that the operation is about, the first of two.
    pub fn path(&self) -> &ByteString {
        match self {
            FileOperation::Read { path, .. }
            | FileOperation::Write { path, .. }
            | FileOperation::List { path }
            | FileOperation::Stat { path, .. }
            | FileOperation::MakeFolder { path, .. }
            | FileOperation::Remove { path, .. }
            | FileOperation::Rename { from: path, .. }
            | FileOperation::Copy { from: path, .. }
            | FileOperation::Symlink { path, .. }
            | FileOperation::ReadLink { path }
            | FileOperation::SetPermissions { path, .. }
            | FileOperation::SetOwner { path, .. }
            | FileOperation::Truncate { path, .. }
            | FileOperation::Pack { path }
            | FileOperation::Unpack { path, .. } => path,
        }
    }
}

/// What happens to the content that a file has when it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteMode {
    /// It goes first.
    #[default]
    Replace,
    /// There may be no file.
    CreateNew,
    /// It stays in front.
    Append,
    /// It stays, but for the bytes written from this offset on.
    At(u64),
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FileKind::File => "file",
            FileKind::Folder => "folder",
            FileKind::Symlink => "symlink",
            FileKind::Fifo => "fifo",
            FileKind::Socket => "socket",
            FileKind::CharDevice => "character device",
            FileKind::BlockDevice => "block device",
        })
    }
}

/// What is known about a file beside its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Permissions with set-user-id, set-group-id and sticky bit, below 0o10000.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content: seconds since 1970.
    pub modified: i64,
    /// And nanoseconds.
    pub modified_nanos: u32,
    /// How many names it has.
    pub links: u32,
}

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name, any bytes but `/` and NUL.
    pub name: ByteString,
    /// What it is; a symlink is not followed.
    pub metadata: Metadata,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileAnswer {
    /// It is done.
    Done,
    /// What was asked for.
    Metadata(Metadata),
    /// What a symlink says.
    Target(ByteString),
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct FileError {
    /// At which path.
    pub path: ByteString,
    /// What is wrong there.
    pub fault: FileFault,
}

/// What can be wrong with a file, or with a request for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// The kernel says no.
    #[error("{0}")]
    System(Errno),
    /// It is not a regular file.
    #[error("it is a {0}, not a file")]
    NotAFile(FileKind),
    /// No path can be so.
    #[error("no path can be so: {0}")]
    BadPath(String),
    /// The user or group is not known to the image.
    #[error("{0}")]
    BadUser(String),
    /// Folders are nested deeper than is followed.
    #[error("folders are nested deeper than {0}")]
    TooDeep(u32),
    /// The tree that was sent makes no sense.
    #[error("the tree makes no sense: {0}")]
    BadTree(String),
    /// There is more than whoever takes it has agreed to.
    #[error("it is more than was agreed to: {0}")]
    TooMuch(String),
}

impl From<Errno> for FileFault {
    fn from(errno: Errno) -> FileFault {
        FileFault::System(errno)
    }
}
