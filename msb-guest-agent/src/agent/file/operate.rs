//! What a thread does: one operation, from its request to its answer.

use std::os::fd::{AsFd, OwnedFd};

use bytes::{Bytes, BytesMut};
use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, SeekFrom, Stat, Uid};
use rustix::io::Errno;

use super::place::Places;
use super::remove::{self, Stop};
use super::{Abandoned, Port};
use crate::agent::sys;
use crate::agent::users::User;
use crate::agent::world::change_of_identity;
use crate::message::{
    ByteString, Entry, FileAnswer, FileError, FileFault, FileKind, FileOperation as Op,
    StreamEvent, WriteMode,
};
use crate::record;
use crate::tree::{self, Packer, TreeError, UnpackOptions, Unpacker};

/// Largest piece that is read of a file at once.
const PIECE: usize = 64 * 1024;

/// Entries are passed on when their records are this long.
const FULL: usize = 32 * 1024;

/// Permissions of what is made where none are said.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// Folders that a path can have.
const MAX_PARENTS: usize = 2048;

/// A thread's tools.
pub(super) struct Worker {
    places: Places,
    port: Port,
}

/// Why there is no answer: something is wrong at one of the paths.
enum Failure {
    At(ByteString, FileFault),
    Abandoned,
}

type Outcome = Result<FileAnswer, Failure>;

impl From<Abandoned> for Failure {
    fn from(_: Abandoned) -> Failure {
        Failure::Abandoned
    }
}

/// Names the path that something is wrong at.
trait At<T> {
    fn at(self, path: &ByteString) -> Result<T, Failure>;
}

impl<T, E: Into<FileFault>> At<T> for Result<T, E> {
    fn at(self, path: &ByteString) -> Result<T, Failure> {
        self.map_err(|fault| Failure::At(path.clone(), fault.into()))
    }
}

impl Worker {
    pub(super) fn new(places: Places, port: Port) -> Worker {
        Worker { places, port }
    }

    /// Does it and reports what came of it.
    pub(super) fn run(self, user: Option<User>, operation: &Op) {
        let outcome = self
            .assume(user, operation.path())
            .and_then(|()| self.operate(operation));
        let event = match outcome {
            Ok(answer) => StreamEvent::FileDone(answer),
            Err(Failure::At(path, fault)) => StreamEvent::FileFailed(FileError { path, fault }),
            Err(Failure::Abandoned) => return,
        };
        self.port.end(event);
    }

    fn assume(&self, user: Option<User>, path: &ByteString) -> Result<(), Failure> {
        let Some(user) = user else { return Ok(()) };
        let Some(ids) = change_of_identity(&user) else {
            return Ok(());
        };
        sys::assume_file_identity(ids).map_err(|error| Failure::At(path.clone(), system(&error)))
    }

    fn operate(&self, operation: &Op) -> Outcome {
        match operation {
            Op::Read { path, offset, len } => self.read(path, *offset, *len),
            Op::Write {
                path,
                mode,
                permissions,
            } => self.write(path, *mode, *permissions),
            Op::List { path } => self.list(path),
            Op::Stat { path, follow } => {
                let found = self.places.find(path, *follow).at(path)?;
                let stat = rustix::fs::fstat(&found).at(path)?;
                Ok(FileAnswer::Metadata(tree::metadata(&stat)))
            }
            Op::MakeFolder {
                path,
                permissions,
                parents,
            } => self.make_folder(path, *permissions, *parents),
            Op::Remove { path, recursive } => self.remove(path, *recursive),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Copy { from, to } => self.copy(from, to),
            Op::Symlink { target, path } => {
                let place = self.places.parent(path).at(path)?;
                let made = rustix::fs::symlinkat(target.as_bytes(), &place.folder, &place.name);
                made.at(path)?;
                Ok(FileAnswer::Done)
            }
            Op::ReadLink { path } => {
                let found = self.places.find(path, false).at(path)?;
                let target = rustix::fs::readlinkat(&found, "", Vec::new()).at(path)?;
                Ok(FileAnswer::Target(target.into_bytes().into()))
            }
            Op::SetPermissions { path, permissions } => {
                let found = self.places.find(path, true).at(path)?;
                sys::set_permissions(found.as_fd(), permissions & 0o7777)
                    .map_err(|error| system(&error))
                    .at(path)?;
                Ok(FileAnswer::Done)
            }
            Op::SetOwner {
                path,
                uid,
                gid,
                follow,
            } => {
                let found = self.places.find(path, *follow).at(path)?;
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(&found, "", uid, gid, AtFlags::EMPTY_PATH).at(path)?;
                Ok(FileAnswer::Done)
            }
            Op::Truncate { path, size } => {
                let (file, _) = self.open_file(path, OFlags::WRONLY, 0)?;
                rustix::fs::ftruncate(&file, *size).at(path)?;
                Ok(FileAnswer::Done)
            }
            Op::Pack { path } => self.pack(path),
            Op::Unpack { path, owner } => self.unpack(path, *owner),
        }
    }

    /// Opens a regular file; anything else may block or never end.
    fn open_file(
        &self,
        path: &ByteString,
        flags: OFlags,
        mode: u32,
    ) -> Result<(OwnedFd, Stat), Failure> {
        let flags = flags | OFlags::NONBLOCK;
        let file = self.places.open(path, flags, mode).at(path)?;
        let stat = rustix::fs::fstat(&file).at(path)?;
        match tree::kind(&stat) {
            FileKind::File => Ok((file, stat)),
            FileKind::Folder => Err(Errno::ISDIR).at(path),
            kind => Err(FileFault::NotAFile(kind)).at(path),
        }
    }

    fn read(&self, path: &ByteString, offset: u64, len: Option<u64>) -> Outcome {
        let (file, stat) = self.open_file(path, OFlags::RDONLY, 0)?;
        self.port.opened(tree::metadata(&stat));
        let (mut at, mut left) = (offset, len.unwrap_or(u64::MAX));
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let mut piece = vec![0; most];
            match rustix::io::pread(&file, &mut piece, at) {
                Ok(0) => break,
                Ok(n) => {
                    piece.truncate(n);
                    at += n as u64;
                    left -= n as u64;
                    self.port.send(piece.into())?;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).at(path),
            }
        }
        Ok(FileAnswer::Done)
    }

    fn write(&self, path: &ByteString, mode: WriteMode, permissions: Option<u32>) -> Outcome {
        let flags = OFlags::WRONLY
            | match mode {
                WriteMode::CreateNew => OFlags::CREATE | OFlags::EXCL,
                WriteMode::Append => OFlags::CREATE | OFlags::APPEND,
                WriteMode::Replace | WriteMode::At(_) => OFlags::CREATE,
            };
        let made = permissions.unwrap_or(FILE_MODE);
        let (file, stat) = self.open_file(path, flags, made)?;
        // What is said counts, whatever the mask, and also for a file that is there.
        if let Some(permissions) = permissions {
            let permissions = Mode::from_raw_mode(permissions & 0o7777);
            rustix::fs::fchmod(&file, permissions).at(path)?;
        }
        match mode {
            WriteMode::Replace if stat.st_size > 0 => rustix::fs::ftruncate(&file, 0).at(path)?,
            WriteMode::At(offset) => {
                rustix::fs::seek(&file, SeekFrom::Start(offset)).at(path)?;
            }
            _ => {}
        }
        self.port.opened(tree::metadata(&stat));
        while let Some(data) = self.port.receive()? {
            write_all(&file, &data).at(path)?;
            self.port.took(data.len());
        }
        Ok(FileAnswer::Done)
    }

    fn list(&self, path: &ByteString) -> Outcome {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let folder = self.places.open(path, flags, 0).at(path)?;
        let stat = rustix::fs::fstat(&folder).at(path)?;
        let mut entries = Dir::read_from(&folder).at(path)?;
        self.port.opened(tree::metadata(&stat));
        let mut out = BytesMut::new();
        while let Some(entry) = entries.read() {
            let entry = entry.at(path)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed meanwhile.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).at(path),
            };
            let entry = Entry {
                name: name.to_bytes().into(),
                metadata: tree::metadata(&stat),
            };
            record::put(&mut out, &entry);
            if out.len() >= FULL {
                self.port.send(out.split().freeze())?;
            }
        }
        if !out.is_empty() {
            self.port.send(out.freeze())?;
        }
        Ok(FileAnswer::Done)
    }

    fn make_folder(&self, path: &ByteString, permissions: Option<u32>, parents: bool) -> Outcome {
        if parents {
            self.make_parents(path)?;
        }
        let made = self.make_one(path);
        match made {
            Err(Failure::At(_, FileFault::System(errno))) if parents && errno.0 == libc::EEXIST => {
                // Something else than a folder, or than a symlink to one, is in the way.
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                self.places.open(path, flags, 0).at(path)?;
            }
            other => other?,
        }
        if let Some(permissions) = permissions {
            let found = self.places.find(path, true).at(path)?;
            sys::set_permissions(found.as_fd(), permissions & 0o7777)
                .map_err(|error| system(&error))
                .at(path)?;
        }
        Ok(FileAnswer::Done)
    }

    fn make_one(&self, path: &ByteString) -> Result<(), Failure> {
        let place = self.places.parent(path).at(path)?;
        let mode = Mode::from_raw_mode(FOLDER_MODE);
        rustix::fs::mkdirat(&place.folder, &place.name, mode).at(path)
    }

    /// Makes what is missing above a path, from the top.
    fn make_parents(&self, path: &ByteString) -> Result<(), Failure> {
        let bytes = path.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').unwrap_or(0);
        let slashes = (1..end).filter(|at| bytes[*at] == b'/' && bytes[at - 1] != b'/');
        for end in slashes.take(MAX_PARENTS) {
            self.port.check()?;
            let above = ByteString::from(&bytes[..end]);
            if above.0.ends_with(b"/..") || above.0.ends_with(b"/.") || above.0 == b".." {
                continue;
            }
            match self.make_one(&above) {
                Err(Failure::At(_, FileFault::System(errno))) if errno.0 == libc::EEXIST => {}
                Err(Failure::At(_, FileFault::BadPath(_))) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn remove(&self, path: &ByteString, recursive: bool) -> Outcome {
        let place = self.places.parent(path).at(path)?;
        match remove::remove(&place, recursive, &self.port) {
            Ok(()) => Ok(FileAnswer::Done),
            Err(Stop::Fault(fault)) => Err(fault).at(path),
            Err(Stop::Abandoned) => Err(Failure::Abandoned),
        }
    }

    fn rename(&self, from: &ByteString, to: &ByteString) -> Outcome {
        let source = self.places.parent(from).at(from)?;
        let target = self.places.parent(to).at(to)?;
        source.stat().at(from)?;
        rustix::fs::renameat(&source.folder, &source.name, &target.folder, &target.name).at(to)?;
        Ok(FileAnswer::Done)
    }

    fn copy(&self, from: &ByteString, to: &ByteString) -> Outcome {
        let (source, stat) = self.open_file(from, OFlags::RDONLY, 0)?;
        let permissions = stat.st_mode & 0o777;
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let (target, there) = self.open_file(to, flags, permissions | 0o200)?;
        if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
            return Err(FileFault::BadPath("both are the same file".into())).at(to);
        }
        rustix::fs::ftruncate(&target, 0).at(to)?;
        let size = tree::metadata(&stat).size;
        let mut at = 0;
        while let Some((start, end)) = tree::segment(&source, at, size).at(from)? {
            at = start;
            while at < end {
                self.port.check()?;
                let n = copy_piece(&source, &target, at, end).at(to)?;
                if n == 0 {
                    break;
                }
                at += n;
            }
            if at < end {
                break;
            }
        }
        rustix::fs::ftruncate(&target, size).at(to)?;
        rustix::fs::fchmod(&target, Mode::from_raw_mode(permissions)).at(to)?;
        Ok(FileAnswer::Done)
    }

    fn pack(&self, path: &ByteString) -> Outcome {
        let (folder, name) = self.tree_at(path)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&folder, &name, flags).at(path)?;
        self.port.opened(tree::metadata(&stat));
        let mut sink = |bytes: &[u8]| self.port.send(Bytes::copy_from_slice(bytes)).is_ok();
        let packed = Packer::new(&mut sink).pack(folder.as_fd(), &name);
        packed.map_err(|error| inside(path, error))?;
        Ok(FileAnswer::Done)
    }

    /// Where a tree begins: the root of all is an entry of itself.
    fn tree_at(&self, path: &ByteString) -> Result<(OwnedFd, std::ffi::CString), Failure> {
        match self.places.parent(path) {
            Ok(place) => Ok((place.folder, place.name)),
            Err(FileFault::BadPath(_)) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let folder = self.places.open(path, flags, 0).at(path)?;
                Ok((folder, c".".into()))
            }
            Err(fault) => Err(fault).at(path),
        }
    }

    fn unpack(&self, path: &ByteString, owner: Option<(u32, u32)>) -> Outcome {
        let (folder, name) = self.tree_at(path)?;
        let stat = rustix::fs::fstat(&folder).at(path)?;
        self.port.opened(tree::metadata(&stat));
        let options = UnpackOptions {
            permissions: 0o7777,
            owner,
            folder: false,
            // It is the guest's own disk that gets full.
            max_bytes: u64::MAX,
            max_entries: u64::MAX,
        };
        let mut unpacker = Unpacker::new(folder, name.to_bytes(), options);
        while let Some(data) = self.port.receive()? {
            let fed = unpacker.feed(&data);
            fed.map_err(|error| inside(path, error))?;
            self.port.took(data.len());
        }
        let finished = unpacker.finish();
        finished.map_err(|error| inside(path, error))?;
        Ok(FileAnswer::Done)
    }
}

/// A failure in a tree whose paths begin with the last name of `path`.
fn inside(path: &ByteString, error: TreeError) -> Failure {
    let TreeError::File(error) = error else {
        return Failure::Abandoned;
    };
    let below = error.path.0.iter().position(|byte| *byte == b'/');
    let below = below.map_or(&b""[..], |slash| &error.path.0[slash..]);
    Failure::At([&path.0[..], below].concat().into(), error.fault)
}

fn write_all(file: &OwnedFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(file, data) {
            Ok(n) => data = &data[n..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Copies some bytes at the same place of both files, in the kernel where it does that.
fn copy_piece(source: &OwnedFd, target: &OwnedFd, at: u64, end: u64) -> Result<u64, Errno> {
    let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 20);
    let (mut from, mut to) = (at, at);
    match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), most) {
        Ok(n) => return Ok(n as u64),
        Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno),
    }
    let mut piece = vec![0; most.min(PIECE)];
    let n = rustix::io::pread(source, &mut piece, at)?;
    let mut written = 0;
    while written < n {
        written += rustix::io::pwrite(target, &piece[written..n], at + written as u64)?;
    }
    Ok(n as u64)
}

fn system(error: &std::io::Error) -> FileFault {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    errno.into()
}
