//! The guest's files, through the agent: no program of the image is needed.

mod content;
mod copy;
mod fault;
mod folder;
mod stream;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use msb_guest_agent::message::{
    ByteString, FileAnswer, FileKind, FileOperation as Op, FileRequest, Metadata,
};

pub use content::{FileReader, FileWriter, WriteOptions};
pub use copy::{CopyOptions, CopyReport, SkippedEntry};
pub use fault::FileFault;
pub use folder::{DirEntries, DirEntry};

use self::stream::{FileStream, Next};
use crate::error::Error;
use crate::link::Link;

/// The most that [`Fs::read`] collects, in bytes. How long a file is the guest decides; more
/// is read as it comes, with [`Fs::open_read`].
const MAX_WHOLE: usize = 2 << 30;

/// The most entries that [`Fs::list`] collects; more are read as they come, with
/// [`Fs::open_list`].
const MAX_LISTED: usize = 1_000_000;

/// The files of a sandbox.
///
/// Paths are those of the guest, resolved as its programs resolve them; a relative one begins
/// at the sandbox's working folder. Operations have the rights of the guest's root, or of the
/// user that [`Fs::as_user`] names.
///
/// ```no_run
/// # async fn demo(sandbox: &msb_sdk::Sandbox) -> Result<(), msb_sdk::Error> {
/// use msb_sdk::{Error, FileFault};
///
/// let fs = sandbox.fs();
/// fs.mkdir_all("/srv/data").await?;
/// fs.write("/srv/data/input.txt", b"some data").await?;
/// assert_eq!(fs.read_to_string("/srv/data/input.txt").await?, "some data");
/// for entry in fs.list("/srv/data").await? {
///     println!("{} {}", entry.name.display(), entry.metadata.size);
/// }
/// match fs.read("/srv/data/missing").await {
///     Err(Error::File { fault: FileFault::NotFound, path, .. }) => println!("no {}", path.display()),
///     other => drop(other?),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Fs {
    link: Link,
    user: Option<String>,
}

impl Fs {
    pub(crate) fn new(link: Link) -> Self {
        Self { link, user: None }
    }

    /// The same files with the rights of a user of the guest: `name|uid[:group|gid]`. What is
    /// made belongs to it.
    #[must_use]
    pub fn as_user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`Error::File`], also for a file that is longer than 2 GiB; [`Error::Gone`] when the
    /// sandbox has ended, as all of these.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let mut reader = self.open_read(path).await?;
        let expected = usize::try_from(reader.metadata().size).unwrap_or(MAX_WHOLE);
        // What the guest says about the size is believed only as far as it costs nothing.
        let mut content = Vec::with_capacity(expected.min(1 << 20));
        while let Some(bytes) = reader.next().await? {
            if content.len() + bytes.len() > MAX_WHOLE {
                return Err(reader.fails(FileFault::TooLong { max: MAX_WHOLE }));
            }
            content.extend_from_slice(&bytes);
        }
        Ok(content)
    }

    /// Reads a whole file that is UTF-8.
    ///
    /// # Errors
    /// As [`Fs::read`], and [`FileFault::NotUtf8`].
    pub async fn read_to_string(&self, path: impl AsRef<Path>) -> Result<String, Error> {
        let path = path.as_ref();
        String::from_utf8(self.read(path).await?).map_err(|_| Error::File {
            operation: "read",
            path: path.to_owned(),
            fault: FileFault::NotUtf8,
        })
    }

    /// Writes a whole file, which is made when it is missing. Its folder must be there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn write(
        &self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        let mut writer = self.open_write(path).await?;
        writer.write(content).await?;
        writer.finish().await
    }

    /// Opens a file for reading from its beginning.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn open_read(&self, path: impl AsRef<Path>) -> Result<FileReader, Error> {
        self.open_read_at(path, 0, None).await
    }

    /// Opens a part of a file for reading: from `offset` on, `len` bytes at the most.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn open_read_at(
        &self,
        path: impl AsRef<Path>,
        offset: u64,
        len: Option<u64>,
    ) -> Result<FileReader, Error> {
        let path = path.as_ref();
        let operation = Op::Read {
            path: bytes(path),
            offset,
            len,
        };
        let mut stream = self.open("read", path, operation).await?;
        let metadata = stream.opened().await?;
        Ok(FileReader::new(stream, metadata.into()))
    }

    /// Opens a file for writing, which makes it or replaces its content.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn open_write(&self, path: impl AsRef<Path>) -> Result<FileWriter, Error> {
        self.open_write_with(path, WriteOptions::default()).await
    }

    /// Opens a file for writing, with options.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn open_write_with(
        &self,
        path: impl AsRef<Path>,
        options: WriteOptions,
    ) -> Result<FileWriter, Error> {
        let path = path.as_ref();
        let operation = Op::Write {
            path: bytes(path),
            mode: options.mode,
            permissions: options.permissions,
        };
        let mut stream = self.open("write", path, operation).await?;
        stream.opened().await?;
        Ok(FileWriter::new(stream))
    }

    /// The entries of a folder, without `.` and `..`, in the order that the guest has them.
    ///
    /// # Errors
    /// [`Error::File`], also for a folder of more than a million entries.
    pub async fn list(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, Error> {
        let mut entries = self.open_list(path).await?;
        let mut list = Vec::new();
        while let Some(entry) = entries.next().await? {
            if list.len() == MAX_LISTED {
                return Err(entries.fails(FileFault::TooManyEntries { max: MAX_LISTED }));
            }
            list.push(entry);
        }
        Ok(list)
    }

    /// Reads the entries of a folder as they come.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn open_list(&self, path: impl AsRef<Path>) -> Result<DirEntries, Error> {
        let path = path.as_ref();
        let operation = Op::List { path: bytes(path) };
        let mut stream = self.open("list", path, operation).await?;
        stream.opened().await?;
        Ok(DirEntries::new(stream))
    }

    /// What is known about a file; a symlink is followed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileMetadata, Error> {
        self.metadata(path.as_ref(), true).await
    }

    /// What is known about a file, or about a symlink itself.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn lstat(&self, path: impl AsRef<Path>) -> Result<FileMetadata, Error> {
        self.metadata(path.as_ref(), false).await
    }

    async fn metadata(&self, path: &Path, follow: bool) -> Result<FileMetadata, Error> {
        let operation = Op::Stat {
            path: bytes(path),
            follow,
        };
        match self.ask("look at", path, operation).await? {
            FileAnswer::Metadata(metadata) => Ok(metadata.into()),
            _ => Err(Error::gone("the guest's answer makes no sense")),
        }
    }

    /// Tells whether something is there; a symlink is followed.
    ///
    /// # Errors
    /// [`Error::File`] for anything but its absence.
    pub async fn exists(&self, path: impl AsRef<Path>) -> Result<bool, Error> {
        found(self.stat(path).await)
    }

    /// Tells whether something is there, be it a symlink to nothing.
    ///
    /// # Errors
    /// As [`Fs::exists`].
    pub async fn lexists(&self, path: impl AsRef<Path>) -> Result<bool, Error> {
        found(self.lstat(path).await)
    }

    /// Makes a folder. The one above must be there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn mkdir(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.make_folder(path.as_ref(), None, false).await
    }

    /// Makes a folder and those above it, as far as they are missing.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn mkdir_all(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.make_folder(path.as_ref(), None, true).await
    }

    pub(crate) async fn make_folder(
        &self,
        path: &Path,
        permissions: Option<u32>,
        parents: bool,
    ) -> Result<(), Error> {
        let operation = Op::MakeFolder {
            path: bytes(path),
            permissions,
            parents,
        };
        self.done("make the folder", path, operation).await
    }

    /// Removes a file, a symlink, or an empty folder.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn remove(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.remove_entry(path.as_ref(), false).await
    }

    /// Removes whatever is there, a folder with all that is in it. Symlinks in it are removed,
    /// not followed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn remove_all(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.remove_entry(path.as_ref(), true).await
    }

    async fn remove_entry(&self, path: &Path, recursive: bool) -> Result<(), Error> {
        let operation = Op::Remove {
            path: bytes(path),
            recursive,
        };
        self.done("remove", path, operation).await
    }

    /// Renames a file or a folder. A file that has the new name is replaced.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let operation = Op::Rename {
            from: bytes(from.as_ref()),
            to: bytes(to.as_ref()),
        };
        self.done("rename", from.as_ref(), operation).await
    }

    /// Copies a file inside the guest, with its permissions and its holes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn copy(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let operation = Op::Copy {
            from: bytes(from.as_ref()),
            to: bytes(to.as_ref()),
        };
        self.done("copy", from.as_ref(), operation).await
    }

    /// Makes a symlink at `path` that says `target`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn symlink(
        &self,
        target: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> Result<(), Error> {
        let operation = Op::Symlink {
            target: bytes(target.as_ref()),
            path: bytes(path.as_ref()),
        };
        self.done("make the symlink", path.as_ref(), operation)
            .await
    }

    /// What a symlink says.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, Error> {
        let path = path.as_ref();
        let operation = Op::ReadLink { path: bytes(path) };
        match self.ask("read the symlink", path, operation).await? {
            FileAnswer::Target(target) => Ok(OsString::from_vec(target.0).into()),
            _ => Err(Error::gone("the guest's answer makes no sense")),
        }
    }

    /// Changes permissions, such as `0o755`. A symlink is followed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn chmod(&self, path: impl AsRef<Path>, permissions: u32) -> Result<(), Error> {
        let path = path.as_ref();
        let operation = Op::SetPermissions {
            path: bytes(path),
            permissions,
        };
        self.done("change the permissions of", path, operation)
            .await
    }

    /// Changes owner and group; `None` leaves one as it is. A symlink is followed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn chown(
        &self,
        path: impl AsRef<Path>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Error> {
        self.set_owner(path.as_ref(), uid, gid, true).await
    }

    /// Changes owner and group of a file, or of a symlink itself.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn lchown(
        &self,
        path: impl AsRef<Path>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Error> {
        self.set_owner(path.as_ref(), uid, gid, false).await
    }

    async fn set_owner(
        &self,
        path: &Path,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    ) -> Result<(), Error> {
        let operation = Op::SetOwner {
            path: bytes(path),
            uid,
            gid,
            follow,
        };
        self.done("change the owner of", path, operation).await
    }

    /// Cuts a file to a size, or fills it up to it with zeros.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn truncate(&self, path: impl AsRef<Path>, size: u64) -> Result<(), Error> {
        let path = path.as_ref();
        let path_bytes = bytes(path);
        let operation = Op::Truncate {
            path: path_bytes,
            size,
        };
        self.done("cut", path, operation).await
    }

    async fn open(
        &self,
        operation: &'static str,
        path: &Path,
        request: Op,
    ) -> Result<FileStream, Error> {
        let request = FileRequest {
            operation: request,
            user: self.user.clone(),
        };
        FileStream::open(&self.link, request, operation, path).await
    }

    /// Does something that has an answer and no bytes.
    async fn ask(
        &self,
        operation: &'static str,
        path: &Path,
        request: Op,
    ) -> Result<FileAnswer, Error> {
        let mut stream = self.open(operation, path, request).await?;
        loop {
            if let Next::Done(answer) = stream.next().await? {
                return Ok(answer);
            }
        }
    }

    async fn done(&self, operation: &'static str, path: &Path, request: Op) -> Result<(), Error> {
        self.ask(operation, path, request).await.map(drop)
    }
}

/// What is known about a file of the guest beside its content.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileMetadata {
    /// What it is.
    pub kind: FileKind,
    /// Permissions with set-user-id, set-group-id and sticky bit, such as `0o755`.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// When the content was changed last.
    pub modified: SystemTime,
    /// How many names it has.
    pub links: u32,
}

impl FileMetadata {
    /// Tells whether it is a folder.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Folder
    }

    /// Tells whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind == FileKind::File
    }
}

impl From<Metadata> for FileMetadata {
    fn from(metadata: Metadata) -> Self {
        Self {
            kind: metadata.kind,
            permissions: metadata.permissions,
            uid: metadata.uid,
            gid: metadata.gid,
            size: metadata.size,
            modified: time(metadata.modified, metadata.modified_nanos),
            links: metadata.links,
        }
    }
}

/// Whether something was found; that it was not is no failure.
fn found(outcome: Result<FileMetadata, Error>) -> Result<bool, Error> {
    match outcome {
        Ok(_) => Ok(true),
        Err(Error::File {
            fault: FileFault::NotFound | FileFault::NotAFolder,
            ..
        }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A time of the guest; one that the host cannot say is the epoch.
fn time(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    let part = Duration::from_nanos(u64::from(nanos.min(999_999_999)));
    second
        .and_then(|second| second.checked_add(part))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn bytes(path: &Path) -> ByteString {
    path.as_os_str().as_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_hostile_guest_are_times() {
        assert_eq!(time(0, 0), SystemTime::UNIX_EPOCH);
        // As far as the host can say them; nothing overflows.
        let late = time(i64::MAX, u32::MAX);
        assert!(late >= SystemTime::UNIX_EPOCH);
        let early = time(i64::MIN, u32::MAX);
        assert!(early <= SystemTime::UNIX_EPOCH);
        let before = SystemTime::UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!(time(-1, 500_000_000), before);
    }
}
