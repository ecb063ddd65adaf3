//! Copying whole trees between the host and the guest.
//!
//! Reading and writing the host's files blocks, so it is done on a thread; the stream is
//! served meanwhile. Between the two are a few pieces at the most.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use msb_guest_agent::message::{FileKind, FileOperation as Op};
use msb_guest_agent::tree::{Packer, Report, TreeError, UnpackOptions, Unpacker};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fault::FileFault;
use super::stream::{FileStream, Next};
use super::{Fs, bytes};
use crate::error::Error;

/// Pieces that may wait between the thread and the stream.
const WAITING: usize = 4;

/// Bounds on a copy out of the guest, where none are given: a guest can send for ever.
const MAX_BYTES: u64 = 64 << 30;
const MAX_ENTRIES: u64 = 10_000_000;

/// How trees are copied.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    owner: Option<(u32, u32)>,
    max_bytes: u64,
    max_entries: u64,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            owner: None,
            max_bytes: MAX_BYTES,
            max_entries: MAX_ENTRIES,
        }
    }
}

impl CopyOptions {
    /// Into the guest: who owns what is made; root, or the user of [`Fs::as_user`], otherwise.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// Out of the guest: the most bytes of content; 64 GiB when not set.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Out of the guest: the most files and folders; ten million when not set.
    #[must_use]
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = entries;
        self
    }
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyReport {
    /// Files, folders and symlinks.
    pub entries: u64,
    /// Bytes of content; holes do not count.
    pub bytes: u64,
    /// How many entries were left out: devices, sockets and named pipes.
    pub skipped: u64,
    /// The first hundred of these.
    pub skipped_entries: Vec<SkippedEntry>,
}

/// Something that was not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedEntry {
    /// Where in the tree that was copied.
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
}

impl From<Report> for CopyReport {
    fn from(report: Report) -> Self {
        let skipped = report.skipped_named.into_iter();
        Self {
            entries: report.entries,
            bytes: report.bytes,
            skipped: report.skipped,
            skipped_entries: skipped
                .map(|one| SkippedEntry {
                    path: path(one.path.0),
                    kind: one.kind,
                })
                .collect(),
        }
    }
}

impl Fs {
    /// Copies a file, or a folder with all that is in it, from the host into the guest, where
    /// it is called `to`. The folder above must be there.
    ///
    /// Devices, sockets and named pipes are left out and reported. Permissions, times, symlinks, hard links and holes are kept; owners are not: it
    /// belongs to root, or to the user of [`Fs::as_user`]. A folder that is there stays
    /// and keeps what the copy does not have; a file is replaced. A symlink is copied as one;
    /// `LINK/.` is the folder that it leads to.
    ///
    /// # Errors
    /// [`Error::File`] for the guest's side, [`Error::HostFile`] for the host's.
    pub async fn copy_in(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> Result<CopyReport, Error> {
        self.copy_in_with(from, to, CopyOptions::default()).await
    }

    /// Copies into the guest, with options.
    ///
    /// # Errors
    /// As [`Fs::copy_in`].
    pub async fn copy_in_with(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<CopyReport, Error> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (folder, name) = host_tree(from)?;
        let operation = Op::Unpack {
            path: bytes(to),
            owner: options.owner,
        };
        let mut stream = self.open("copy to", to, operation).await?;
        stream.opened().await?;
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(WAITING);
        let packing = tokio::task::spawn_blocking(move || {
            let mut sink =
                |piece: &[u8]| pieces.blocking_send(Bytes::copy_from_slice(piece)).is_ok();
            Packer::new(&mut sink).pack(folder.as_fd(), &name)
        });
        while let Some(piece) = waiting.recv().await {
            // The thread ends when nobody takes its pieces.
            stream.send(piece).await?;
        }
        match joined(packing).await? {
            Ok(report) => {
                stream.finish().await?;
                Ok(report.into())
            }
            Err(error) => Err(host_fault(from, error)),
        }
    }

    /// Copies a file, or a folder with all that is in it, from the guest to the host, where
    /// it is called `to`. The folder above must be there.
    ///
    /// The guest's tree is not trusted. Nothing is written outside of `to`, whatever symlinks
    /// the tree has or finds there; devices, sockets and named pipes are left out and
    /// reported; set-user-id, set-group-id and sticky bits are dropped; everything belongs to
    /// the caller. What is asked for as `FOLDER/.` is a folder, or the copy fails. Symlinks are copied as they are: whoever follows one afterwards goes where
    /// it says. When the copy fails, what it has made is removed, unless `to` was there
    /// before.
    ///
    /// # Errors
    /// [`Error::File`] for the guest's side, [`Error::HostFile`] for the host's.
    pub async fn copy_out(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> Result<CopyReport, Error> {
        self.copy_out_with(from, to, CopyOptions::default()).await
    }

    /// Copies out of the guest, with options.
    ///
    /// # Errors
    /// As [`Fs::copy_out`].
    pub async fn copy_out_with(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<CopyReport, Error> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (folder, name) = host_entry(to)?;
        let operation = Op::Pack { path: bytes(from) };
        let mut stream = self.open("copy", from, operation).await?;
        stream.opened().await?;
        let options = UnpackOptions {
            permissions: 0o777,
            owner: None,
            folder: is_content(from),
            max_bytes: options.max_bytes,
            max_entries: options.max_entries,
        };
        let (pieces, waiting) = mpsc::channel(WAITING);
        let target = to.to_owned();
        let unpacking =
            tokio::task::spawn_blocking(move || unpack(waiting, folder, &name, options, &target));
        let sent = pass_on(&mut stream, pieces).await;
        let unpacked = joined(unpacking).await?;
        match (sent, unpacked) {
            // What the host could not do is why the rest was not sent.
            (_, Err(Some(error))) => Err(host_fault(to, error)),
            (Err(error), _) => Err(error),
            (Ok(()), Ok(report)) => Ok(report.into()),
            (Ok(()), Err(None)) => Err(Error::gone("the copy was given up")),
        }
    }
}

/// Passes the guest's records to the thread, and the end once all of them came.
async fn pass_on(
    stream: &mut FileStream,
    pieces: mpsc::Sender<Option<Bytes>>,
) -> Result<(), Error> {
    loop {
        let piece = match stream.next().await? {
            Next::Data(bytes) => Some(bytes),
            Next::Done(_) => None,
            Next::Opened(_) => continue,
        };
        let last = piece.is_none();
        if pieces.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
}

/// Makes what the records say; `None` as error: they ended in the middle.
fn unpack(
    mut pieces: mpsc::Receiver<Option<Bytes>>,
    folder: OwnedFd,
    name: &CString,
    options: UnpackOptions,
    target: &Path,
) -> Result<Report, Option<TreeError>> {
    let new = fs::symlink_metadata(target).is_err();
    let mut unpacker = Unpacker::new(folder, name.as_bytes(), options);
    let unpacked = loop {
        match pieces.blocking_recv() {
            Some(Some(piece)) => {
                if let Err(error) = unpacker.feed(&piece) {
                    break Err(Some(error));
                }
            }
            Some(None) => break unpacker.finish().map_err(Some),
            None => break Err(None),
        }
    };
    if unpacked.is_err() && new {
        clear(target);
    }
    unpacked
}

/// Removes what a failed copy has made. What cannot be removed stays.
fn clear(target: &Path) {
    let is_folder = fs::symlink_metadata(target).is_ok_and(|metadata| metadata.is_dir());
    let _ = if is_folder {
        fs::remove_dir_all(target)
    } else {
        fs::remove_file(target)
    };
}

/// Whether a path means what is in a folder, and nothing else.
fn is_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

/// Where a tree of the host begins, as [`host_entry`].
fn host_tree(path: &Path) -> Result<(OwnedFd, CString), Error> {
    if !is_content(path) {
        return host_entry(path);
    }
    let folder = File::open(path).map_err(|error| Error::HostFile {
        path: path.to_owned(),
        fault: FileFault::from(&error),
    })?;
    Ok((folder.into(), c".".into()))
}

/// The folder that a path of the host is in, and its last name.
fn host_entry(path: &Path) -> Result<(OwnedFd, CString), Error> {
    let fails = |fault| Error::HostFile {
        path: path.to_owned(),
        fault,
    };
    let whole = std::path::absolute(path).map_err(|error| fails(FileFault::from(&error)))?;
    // A path that ends in `..` has no name of its own, but what it leads to does.
    let whole = match whole.file_name() {
        Some(_) => whole,
        None => fs::canonicalize(&whole).map_err(|error| fails(FileFault::from(&error)))?,
    };
    let (folder, name) = match (whole.parent(), whole.file_name()) {
        (Some(folder), Some(name)) => (folder, name),
        _ => (Path::new("/"), std::ffi::OsStr::new(".")),
    };
    let folder = File::open(folder).map_err(|error| fails(FileFault::from(&error)))?;
    let name = CString::new(name.as_bytes())
        .map_err(|_| fails(FileFault::InvalidPath("a NUL byte is in it".into())))?;
    Ok((folder.into(), name))
}

/// A failure inside a tree of the host whose first entry is at `root`.
fn host_fault(root: &Path, error: TreeError) -> Error {
    match error {
        TreeError::File(error) => {
            let inside = path(error.path.0);
            let below = inside.components().skip(1);
            let whole = below.fold(root.to_owned(), |whole, name| whole.join(name));
            Error::HostFile {
                path: whole,
                fault: error.fault.into(),
            }
        }
        TreeError::Stopped => Error::gone("the guest takes no more of the copy"),
    }
}

async fn joined<T>(task: JoinHandle<T>) -> Result<T, Error> {
    task.await.map_err(|error| Error::Supervisor {
        source: io::Error::other(error),
    })
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}
