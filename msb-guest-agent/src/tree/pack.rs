//! A file or a folder with all that is in it, to records.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::BytesMut;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::{Place, Report, TreeError, kind, metadata};
use crate::message::{FileFault, FileKind};
use crate::record::{MAX_DEPTH, MAX_LINKED, MAX_PIECE, TreeRecord, put};

/// Records are passed on when they are this long: often enough to keep the other side busy.
const FULL: usize = 128 * 1024;

/// Packs one tree. `sink` takes records as they come, and says whether it wants more.
pub struct Packer<'a> {
    sink: &'a mut dyn FnMut(&[u8]) -> bool,
    out: BytesMut,
    piece: Vec<u8>,
    place: Place,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), u64>,
    report: Report,
}

/// A folder that is being packed.
struct Level {
    folder: OwnedFd,
    entries: Dir,
}

impl<'a> Packer<'a> {
    /// Gives the records to `sink`.
    pub fn new(sink: &'a mut dyn FnMut(&[u8]) -> bool) -> Packer<'a> {
        Packer {
            sink,
            out: BytesMut::new(),
            piece: vec![0; MAX_PIECE as usize],
            place: Place::default(),
            linked: HashMap::new(),
            report: Report::default(),
        }
    }

    /// Packs the entry `name` of `folder`, and says what that was.
    ///
    /// # Errors
    /// [`TreeError`]; nothing tells the other side so.
    pub fn pack(mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<Report, TreeError> {
        let mut levels: Vec<Level> = Vec::new();
        levels.extend(self.entry(folder, name, 0)?);
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else {
                self.pass_on(1)?;
                return Ok(self.report);
            };
            let entry = match level.entries.read() {
                Some(Ok(entry)) => entry,
                Some(Err(errno)) => return Err(self.place.fails(b"", errno)),
                None => {
                    put(&mut self.out, &TreeRecord::Leave);
                    self.place.leave();
                    levels.pop();
                    continue;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let entered = self.entry(level.folder.as_fd(), name, depth)?;
            levels.extend(entered);
        }
    }

    /// Packs one entry; a folder is entered.
    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> Result<Option<Level>, TreeError> {
        let bytes = name.to_bytes();
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It was removed meanwhile, as may happen in a folder that is in use.
            Err(Errno::NOENT) if depth > 0 => return Ok(None),
            Err(errno) => return Err(self.place.fails(bytes, errno)),
        };
        match kind(&stat) {
            FileKind::Folder if depth == MAX_DEPTH => {
                let fault = FileFault::TooDeep(MAX_DEPTH as u32);
                Err(self.place.fails(bytes, fault))
            }
            FileKind::Folder => self.enter(folder, name).map(Some),
            FileKind::File => self.file(folder, name).map(|()| None),
            FileKind::Symlink => {
                let target = rustix::fs::readlinkat(folder, name, Vec::new())
                    .map_err(|errno| self.place.fails(bytes, errno))?;
                self.record(&TreeRecord::Symlink {
                    name: bytes.into(),
                    metadata: metadata(&stat),
                    target: target.into_bytes().into(),
                })?;
                Ok(None)
            }
            kind => {
                let name = bytes.into();
                self.record(&TreeRecord::Special { name, kind })?;
                self.report.entries -= 1;
                self.report.skip(self.place.of(bytes), kind);
                Ok(None)
            }
        }
    }

    fn enter(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<Level, TreeError> {
        let bytes = name.to_bytes();
        let opened = open(folder, name, OFlags::DIRECTORY).and_then(|folder| {
            let entries = Dir::read_from(&folder)?;
            let stat = rustix::fs::fstat(&folder)?;
            Ok((folder, entries, stat))
        });
        let (folder, entries, stat) = opened.map_err(|errno| self.place.fails(bytes, errno))?;
        // The first entry's name is for who unpacks it to say; a folder that was opened as itself
        // has none.
        let called: &[u8] = if bytes == b"." { b"tree" } else { bytes };
        self.record(&TreeRecord::Enter {
            name: called.into(),
            metadata: metadata(&stat),
        })?;
        self.place.enter(bytes);
        Ok(Level { folder, entries })
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<(), TreeError> {
        let bytes = name.to_bytes();
        let opened = open(folder, name, OFlags::NONBLOCK);
        let file = opened.map_err(|errno| self.place.fails(bytes, errno))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| self.place.fails(bytes, errno))?;
        if kind(&stat) != FileKind::File {
            // Something took its place since it was looked at.
            return Err(self.place.fails(bytes, FileFault::NotAFile(kind(&stat))));
        }
        let id = match self.known(&stat) {
            Known::First(id) => Some(id),
            Known::Again(id) => {
                let name = bytes.into();
                return self.record(&TreeRecord::Link { name, id });
            }
            Known::Alone => None,
        };
        let metadata = metadata(&stat);
        self.record(&TreeRecord::File {
            name: bytes.into(),
            metadata,
            id,
        })?;
        self.content(&file, &stat, metadata.size, bytes)
    }

    fn known(&mut self, stat: &Stat) -> Known {
        if stat.st_nlink < 2 {
            return Known::Alone;
        }
        let next = self.linked.len() as u64;
        let full = self.linked.len() == MAX_LINKED;
        match self.linked.get(&(stat.st_dev, stat.st_ino)) {
            Some(id) => Known::Again(*id),
            None if full => Known::Alone,
            None => {
                self.linked.insert((stat.st_dev, stat.st_ino), next);
                Known::First(next)
            }
        }
    }

    /// Passes content on, as far as it was there when the file was opened, without holes.
    fn content(
        &mut self,
        file: &OwnedFd,
        stat: &Stat,
        size: u64,
        name: &[u8],
    ) -> Result<(), TreeError> {
        let dense = u64::try_from(stat.st_blocks).unwrap_or(0) * 512 >= size;
        let mut at = 0;
        while at < size {
            let (from, to) = if dense {
                (0, size)
            } else {
                match segment(file, at, size) {
                    Ok(Some(segment)) => segment,
                    Ok(None) => return Ok(()),
                    Err(errno) => return Err(self.place.fails(name, errno)),
                }
            };
            at = from;
            while at < to {
                let most = usize::try_from(to - at).unwrap_or(usize::MAX);
                let piece = most.min(self.piece.len());
                let read = rustix::io::pread(file, &mut self.piece[..piece], at);
                match read {
                    // It was cut meanwhile.
                    Ok(0) => return Ok(()),
                    Ok(len) => {
                        let (offset, len) = (at, len as u32);
                        put(&mut self.out, &TreeRecord::Data { offset, len });
                        self.out.extend_from_slice(&self.piece[..len as usize]);
                        at += u64::from(len);
                        self.report.bytes += u64::from(len);
                        self.pass_on(FULL)?;
                    }
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(self.place.fails(name, errno)),
                }
            }
        }
        Ok(())
    }

    /// Passes an entry on.
    fn record(&mut self, record: &TreeRecord) -> Result<(), TreeError> {
        self.report.entries += 1;
        put(&mut self.out, record);
        self.pass_on(FULL)
    }

    fn pass_on(&mut self, least: usize) -> Result<(), TreeError> {
        if self.out.len() < least {
            return Ok(());
        }
        let wanted = (self.sink)(&self.out);
        self.out.clear();
        if wanted {
            Ok(())
        } else {
            Err(TreeError::Stopped)
        }
    }
}

/// What is known of a file's other names.
enum Known {
    Alone,
    First(u64),
    Again(u64),
}

/// The next part of a file at or behind `at` that is no hole.
pub(crate) fn segment(file: &OwnedFd, at: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(from) => from,
        Err(Errno::NXIO) => return Ok(None),
        // A file system without holes to tell of.
        Err(Errno::INVAL) => return Ok(Some((at, size))),
        Err(errno) => return Err(errno),
    };
    let to = rustix::fs::seek(file, SeekFrom::Hole(from))?;
    Ok((from < size && to > from).then(|| (from, to.min(size))))
}

fn open(folder: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}
