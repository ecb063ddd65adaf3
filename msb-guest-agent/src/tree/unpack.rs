//! Records to a file or a folder with all that is in it.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::{Place, Report, TreeError};
use crate::message::{FileError, FileFault, Metadata};
use crate::record::{InvalidRecord, MAX_LINKED, TreeDecoder, TreeItem, TreeRecord};

/// What is made of a tree.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// Bits that permissions may have.
    pub permissions: u32,
    /// Who owns what is made; whoever makes it when `None`.
    pub owner: Option<(u32, u32)>,
    /// The tree is a folder, and nothing else is made.
    pub folder: bool,
    /// Most bytes of content.
    pub max_bytes: u64,
    /// Most entries.
    pub max_entries: u64,
}

/// Makes one tree of records, in whatever pieces they come.
#[derive(Debug)]
pub struct Unpacker {
    options: UnpackOptions,
    decoder: TreeDecoder,
    /// The folder that the tree's first entry is put into, and its name there.
    target: (OwnedFd, Vec<u8>),
    levels: Vec<Level>,
    file: Option<OpenFile>,
    /// Where files are that may have further names: folders below the target.
    linked: HashMap<u64, Vec<u8>>,
    place: Place,
    report: Report,
}

#[derive(Debug)]
struct Level {
    folder: OwnedFd,
    /// What it is to have when it is complete; nothing when it was there before.
    metadata: Option<Metadata>,
}

#[derive(Debug)]
struct OpenFile {
    file: OwnedFd,
    name: Vec<u8>,
    metadata: Metadata,
    /// Content was written up to here.
    end: u64,
}

impl Unpacker {
    /// Puts the tree into `folder`, its first entry as `name`, which has no slash.
    pub fn new(folder: OwnedFd, name: &[u8], options: UnpackOptions) -> Unpacker {
        Unpacker {
            options,
            decoder: TreeDecoder::default(),
            target: (folder, name.to_vec()),
            levels: Vec::new(),
            file: None,
            linked: HashMap::new(),
            place: Place::default(),
            report: Report::default(),
        }
    }

    /// Takes some of the records.
    ///
    /// # Errors
    /// [`TreeError`]: what was made before stays.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.decoder.extend(bytes);
        loop {
            match self.decoder.next_item() {
                Ok(Some(TreeItem::Record(record))) => self.record(record)?,
                Ok(Some(TreeItem::Data { offset, bytes })) => self.data(offset, &bytes)?,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.bad(error)),
            }
        }
    }

    /// Says what was made, when the records have ended.
    ///
    /// # Errors
    /// When they ended in the middle of something.
    pub fn finish(mut self) -> Result<Report, TreeError> {
        self.close_file()?;
        if !self.decoder.is_complete() {
            let fault = FileFault::BadTree("its end is missing".into());
            return Err(self.place.fails(b"", fault));
        }
        Ok(self.report)
    }

    fn record(&mut self, record: TreeRecord) -> Result<(), TreeError> {
        self.close_file()?;
        if record == TreeRecord::Leave {
            return self.leave();
        }
        self.report.entries += 1;
        if self.report.entries > self.options.max_entries {
            let most = format!("more than {} entries", self.options.max_entries);
            return Err(self.place.fails(b"", FileFault::TooMuch(most)));
        }
        let is_folder = matches!(record, TreeRecord::Enter { .. });
        if self.options.folder && self.levels.is_empty() && !is_folder {
            return Err(self.place.fails(b"", Errno::NOTDIR));
        }
        match record {
            TreeRecord::Enter { name, metadata } => {
                let name = self.called(&name.0);
                let made = self.enter(&name);
                let (folder, new) = made.map_err(|errno| self.place.fails(&name, errno))?;
                self.place.enter(&name);
                let metadata = new.then_some(metadata);
                self.levels.push(Level { folder, metadata });
            }
            TreeRecord::File { name, metadata, id } => {
                let name = self.called(&name.0);
                let made = create(self.folder(), &c_string(&name));
                let file = made.map_err(|errno| self.place.fails(&name, errno))?;
                if let Some(id) = id {
                    self.remember(id, &name)?;
                }
                self.file = Some(OpenFile {
                    file,
                    name,
                    metadata,
                    end: 0,
                });
            }
            TreeRecord::Symlink {
                name,
                metadata,
                target,
            } => {
                let name = self.called(&name.0);
                let made = self.symlink(&name, &target.0, &metadata);
                made.map_err(|errno| self.place.fails(&name, errno))?;
            }
            TreeRecord::Link { name, id } => {
                let name = self.called(&name.0);
                let made = self.link(&name, id)?;
                made.map_err(|errno| self.place.fails(&name, errno))?;
            }
            TreeRecord::Special { name, kind } => {
                self.report.entries -= 1;
                let path = self.place.of(&name.0);
                self.report.skip(path, kind);
            }
            TreeRecord::Leave | TreeRecord::Data { .. } => {}
        }
        Ok(())
    }

    /// What an entry is called here: the first one has the target's name.
    fn called(&self, name: &[u8]) -> Vec<u8> {
        match self.levels.is_empty() {
            true => self.target.1.clone(),
            false => name.to_vec(),
        }
    }

    fn folder(&self) -> BorrowedFd<'_> {
        match self.levels.last() {
            Some(level) => level.folder.as_fd(),
            None => self.target.0.as_fd(),
        }
    }

    /// Makes a folder, or takes one that is there, but none that a symlink leads to. Tells
    /// whether it is new.
    fn enter(&self, name: &[u8]) -> Result<(OwnedFd, bool), Errno> {
        let name = c_string(name);
        let new = match rustix::fs::mkdirat(self.folder(), &name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(self.folder(), &name, flags, Mode::empty())?;
        Ok((folder, new))
    }

    /// Completes a folder. Its permissions come last: they may not allow to fill it.
    fn leave(&mut self) -> Result<(), TreeError> {
        self.place.leave();
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        let Some(metadata) = &level.metadata else {
            return Ok(());
        };
        let done = self.complete(&level.folder, metadata);
        done.map_err(|errno| self.place.fails(b"", errno))
    }

    fn symlink(&self, name: &[u8], target: &[u8], metadata: &Metadata) -> Result<(), Errno> {
        let (name, target) = (c_string(name), c_string(target));
        replacing(self.folder(), &name, || {
            rustix::fs::symlinkat(&target, self.folder(), &name)
        })?;
        if let Some((uid, gid)) = self.options.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(self.folder(), &name, Some(uid), Some(gid), flags)?;
        }
        // What only looks better is not worth failing for.
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let _ = rustix::fs::utimensat(self.folder(), &name, &times(metadata), flags);
        Ok(())
    }

    fn remember(&mut self, id: u64, name: &[u8]) -> Result<(), TreeError> {
        if self.linked.len() == MAX_LINKED {
            let fault = FileFault::BadTree("too many files with several names".into());
            return Err(self.place.fails(name, fault));
        }
        let path = self.place.of(name);
        self.linked.insert(id, path.0);
        Ok(())
    }

    fn link(&self, name: &[u8], id: u64) -> Result<Result<(), Errno>, TreeError> {
        let Some(path) = self.linked.get(&id) else {
            return Err(self.bad_text(name, "a further name of no file"));
        };
        let (folder, first) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b"."[..], &path[..]),
        };
        let (first, name) = (c_string(first), c_string(name));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let folder = c_string(folder);
        Ok(
            rustix::fs::openat2(&self.target.0, &folder, flags, Mode::empty(), resolve).and_then(
                |folder| {
                    replacing(self.folder(), &name, || {
                        let flags = AtFlags::empty();
                        rustix::fs::linkat(&folder, &first, self.folder(), &name, flags)
                    })
                },
            ),
        )
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TreeError> {
        self.report.bytes += bytes.len() as u64;
        let Some(open) = &mut self.file else {
            return Err(self.bad_text(b"", "content of no file"));
        };
        if self.report.bytes > self.options.max_bytes {
            let most = format!("more than {} bytes", self.options.max_bytes);
            return Err(self.place.fails(&open.name, FileFault::TooMuch(most)));
        }
        let mut written = 0;
        while written < bytes.len() {
            let at = offset + written as u64;
            match rustix::io::pwrite(&open.file, &bytes[written..], at) {
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.place.fails(&open.name, errno)),
            }
        }
        open.end = offset + bytes.len() as u64;
        Ok(())
    }

    fn close_file(&mut self) -> Result<(), TreeError> {
        let Some(open) = self.file.take() else {
            return Ok(());
        };
        let size = open.metadata.size;
        let sized = if open.end == size {
            Ok(())
        } else {
            rustix::fs::ftruncate(&open.file, size)
        };
        sized
            .and_then(|()| self.complete(&open.file, &open.metadata))
            .map_err(|errno| self.place.fails(&open.name, errno))
    }

    /// Sets what is set last: owner before permissions, which a change of owner cuts down.
    fn complete(&self, file: &OwnedFd, metadata: &Metadata) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.options.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        let permissions = metadata.permissions & self.options.permissions;
        rustix::fs::fchmod(file, Mode::from_raw_mode(permissions))?;
        // What only looks better is not worth failing for.
        let _ = rustix::fs::futimens(file, &times(metadata));
        Ok(())
    }

    fn bad(&self, error: InvalidRecord) -> TreeError {
        self.bad_text(b"", &error.to_string())
    }

    fn bad_text(&self, name: &[u8], reason: &str) -> TreeError {
        TreeError::File(FileError {
            path: self.place.of(name),
            fault: FileFault::BadTree(reason.into()),
        })
    }
}

/// Makes a file, in the place of one that is there.
fn create(folder: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    replacing(folder, name, || {
        rustix::fs::openat(folder, name, flags, mode)
    })
}

/// Makes something, in the place of what is there and no folder. It is removed, not written
/// to: it may have other names elsewhere.
fn replacing<T>(
    folder: BorrowedFd<'_>,
    name: &CString,
    mut make: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
            make()
        }
        other => other,
    }
}

/// Names and targets were checked when they were read.
fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

fn times(metadata: &Metadata) -> Timestamps {
    let time = Timespec {
        tv_sec: metadata.modified,
        tv_nsec: metadata.modified_nanos.min(999_999_999).into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
