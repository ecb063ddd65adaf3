//! The folder of snapshots.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, OFlags, ioctl_ficlone, linkat};
use rustix::process::{DumpableBehavior, Pid, dumpable_behavior};
use serde::{Deserialize, Serialize};

use super::held::{self, HeldMemory};
use super::{memory, overlay};
use crate::engine::qemu::Memory;
use crate::error::Error;
use crate::machine::{DiskFormat, base_of};
use crate::template::copy;
use crate::template::key::{FileState, digest};
use crate::template::store::{make_folder, open_lock, remove_folder, store_error, write_json};

/// The most snapshots kept. They are made on purpose and removed on purpose; what makes more
/// of them than this has forgotten to.
const MAX_SNAPSHOTS: usize = 256;

/// The longest name: with what is put around it, far below what file systems take.
const MAX_NAME: usize = 63;

/// The longest `meta.json`: some hundred bytes, and as many again for each disk.
const MAX_META: u64 = 64 << 10;

/// The longest text of a caller.
const MAX_ABOUT: u64 = 64 << 20;

const RAM: &str = "ram";
const STATE: &str = "state";
const ABOUT: &str = "about";
const META: &str = "meta.json";

/// A folder of snapshots, safe to use from any number of threads and processes at once.
#[derive(Clone, Debug)]
pub struct Snapshots {
    root: PathBuf,
}

/// What is noted about a file of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Noted {
    name: String,
    state: FileState,
    /// Of its content; a passing snapshot has none.
    digest: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    kind: String,
    files: Vec<Noted>,
}

/// A snapshot as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: SystemTime,
    /// What it takes of the disk, in bytes.
    pub bytes: u64,
}

impl Snapshots {
    /// The snapshots in the folder `root`, which is made when the first one is.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Snapshots { root: root.into() }
    }

    /// Begins to make a snapshot. What is left of one whose maker was killed is removed.
    ///
    /// # Errors
    ///
    /// [`Error::SnapshotName`], [`Error::SnapshotTaken`], [`Error::TooManySnapshots`], and
    /// [`Error::Store`].
    pub fn draft(&self, name: &str) -> Result<SnapshotDraft, Error> {
        self.begin(name, false)
    }

    /// As [`draft`](Self::draft), of a snapshot for a moment. Its memory is not in the folder,
    /// where the host can do that.
    ///
    /// # Errors
    ///
    /// As [`draft`](Self::draft).
    pub fn draft_passing(&self, name: &str) -> Result<SnapshotDraft, Error> {
        self.begin(name, true)
    }

    fn begin(&self, name: &str, passing: bool) -> Result<SnapshotDraft, Error> {
        check_name(name)?;
        make_folder(&self.root)?;
        self.sweep();
        if self.names().len() >= MAX_SNAPSHOTS {
            return Err(Error::TooManySnapshots { max: MAX_SNAPSHOTS });
        }
        let taken = || Error::SnapshotTaken {
            name: name.to_owned(),
        };
        let lock = self.lock(name)?.ok_or_else(taken)?;
        let target = self.root.join(name);
        if target.exists() {
            return Err(taken());
        }
        let folder = self.root.join(format!(".{name}.draft"));
        remove_folder(&folder).map_err(store_error("remove", &folder))?;
        make_folder(&folder)?;
        Ok(SnapshotDraft {
            lock_path: self.lock_path(name),
            _lock: lock,
            name: name.to_owned(),
            folder,
            target,
            passing,
            given_up: Arc::default(),
            filled: Mutex::default(),
        })
    }

    /// Opens a snapshot and checks it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSnapshot`] when there is none of that name, [`Error::Snapshot`] when it is not
    /// as it was saved, [`Error::Store`] when that can't be found out.
    pub fn open(&self, name: &str) -> Result<Snapshot, Error> {
        self.open_with(name, None)
    }

    /// As [`open`](Self::open), for a snapshot for a moment whose memory is at `memory`.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(&self, name: &str, memory: Option<&Path>) -> Result<Snapshot, Error> {
        check_name(name)?;
        let folder = self.root.join(name);
        if !folder.exists() {
            return Err(Error::NoSnapshot {
                name: name.to_owned(),
            });
        }
        open(&folder, name, memory).map_err(|error| match error.kind() {
            // What was found to be wrong, or is not there.
            io::ErrorKind::Other
            | io::ErrorKind::NotFound
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof => Error::Snapshot {
                name: name.to_owned(),
                reason: error.to_string(),
            },
            _ => store_error("read", &folder)(error),
        })
    }

    /// Lists the snapshots by their names, damaged ones included.
    pub fn list(&self) -> Vec<Listed> {
        let describe = |name: String| {
            let folder = self.root.join(&name);
            let created = folder
                .join(META)
                .metadata()
                .and_then(|meta| meta.modified());
            let files = fs::read_dir(&folder).ok()?;
            let sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks() * 512));
            Some(Listed {
                created: created.unwrap_or(SystemTime::UNIX_EPOCH),
                bytes: sizes.sum(),
                name,
            })
        };
        self.names().into_iter().filter_map(describe).collect()
    }

    /// The text that a snapshot was [published](SnapshotDraft::publish) with, unchecked: what
    /// [`open`](Self::open) refuses may have one, too.
    pub fn peek(&self, name: &str) -> Option<String> {
        check_name(name).ok()?;
        let file = open_plain(&self.root.join(name).join(ABOUT)).ok()?;
        let mut text = String::new();
        file.take(MAX_ABOUT).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Removes a snapshot. Machines that run from it go on.
    ///
    /// # Errors
    ///
    /// [`Error::NoSnapshot`], [`Error::Store`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let folder = self.root.join(name);
        if !folder.exists() {
            return Err(Error::NoSnapshot {
                name: name.to_owned(),
            });
        }
        remove_folder(&folder).map_err(store_error("remove", &folder))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten();
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let mut names: Vec<String> = entries.filter_map(name).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.root.join(format!(".{name}.lock"))
    }

    /// Takes the right to make a snapshot, if nobody has it.
    fn lock(&self, name: &str) -> Result<Option<File>, Error> {
        let path = self.lock_path(name);
        let file = open_lock(&path).map_err(store_error("open", &path))?;
        if file.try_lock().is_err() {
            return Ok(None);
        }
        // Makers remove the file while they hold it.
        let current = File::open(&path).and_then(|current| FileState::of(&current));
        let ours = FileState::of(&file);
        let same = current.is_ok_and(|current| ours.is_ok_and(|ours| ours == current));
        Ok(same.then_some(file))
    }

    /// Removes what killed makers left. What fails is tried again by the next maker.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        let begun = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let inner = name.strip_prefix('.')?;
            let inner = inner.strip_suffix(".draft").or(inner.strip_suffix(".lock"));
            inner.map(str::to_owned)
        };
        let begun: BTreeSet<String> = entries.flatten().filter_map(begun).collect();
        for name in begun {
            let draft = self.root.join(format!(".{name}.draft"));
            if let Ok(Some(_lock)) = self.lock(&name)
                && remove_folder(&draft).is_ok()
            {
                let _ = fs::remove_file(self.lock_path(&name));
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with('.')
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(Error::SnapshotName {
        name: name.chars().take(64).collect(),
        max: MAX_NAME,
    })
}

/// A snapshot that is being made. What is left of it when it is dropped is removed.
#[derive(Debug)]
pub struct SnapshotDraft {
    name: String,
    folder: PathBuf,
    target: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    passing: bool,
    given_up: Arc<AtomicBool>,
    /// Set by [`fill`](Self::fill).
    filled: Mutex<Filled>,
}

#[derive(Debug, Default)]
struct Filled {
    kind: String,
    /// The memory, if it is not in the folder.
    held: Option<File>,
}

/// Gives up a snapshot that somebody makes: what is being copied for it is not wanted any
/// more.
#[derive(Clone, Debug)]
pub struct GiveUp(Arc<AtomicBool>);

impl GiveUp {
    /// Has the save end soon, with an error.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl SnapshotDraft {
    /// Makes the file for the device state.
    pub(crate) fn state(&self) -> Result<File, Error> {
        drop(self.create(STATE)?);
        let path = self.folder.join(STATE);
        let opened = OpenOptions::new().write(true).open(&path);
        opened.map_err(store_error("open", &path))
    }

    /// Writes down the memory and the disks of a machine that does not run.
    pub(crate) fn fill(&self, pid: Pid, memory: &Memory) -> Result<(), Error> {
        let failed = |source| Error::Os {
            action: "save the machine's memory",
            source,
        };
        let size = memory.base.metadata().map_err(failed)?.len();
        let held = if self.passing { hold(size) } else { None };
        let given_up = &*self.given_up;
        if let Some(ram) = &held {
            memory::save(pid, &memory.base, ram, given_up).map_err(failed)?;
            held::seal(ram).map_err(failed)?;
        } else {
            let ram = self.create(RAM)?;
            ram.set_len(size).map_err(failed)?;
            memory::save(pid, &memory.base, &ram, given_up).map_err(failed)?;
        }
        for (index, disk) in memory
            .disks
            .iter()
            .enumerate()
            .filter(|(_, disk)| !disk.read_only)
        {
            let name = disk_name(index);
            let to = self.create(&name)?;
            copy_disk(&disk.path, &to, given_up).map_err(|source| Error::Unreadable {
                what: "disk",
                path: disk.path.clone(),
                source,
            })?;
            if let Some(base) = disk.base() {
                let to = base_of(&self.folder.join(&name));
                fs::hard_link(base, &to).map_err(store_error("create", &to))?;
            }
        }
        *self.filled() = Filled {
            kind: memory.kind.clone(),
            held,
        };
        Ok(())
    }

    fn filled(&self) -> MutexGuard<'_, Filled> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what lets somebody else give up this snapshot.
    pub fn give_up(&self) -> GiveUp {
        GiveUp(Arc::clone(&self.given_up))
    }

    fn create(&self, name: &str) -> Result<File, Error> {
        let path = self.folder.join(name);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&path).map_err(store_error("create", &path))
    }

    /// Puts the snapshot in its place, with a text that [`Snapshot::about`] gives back. It is
    /// then on the disk, whatever happens, and its files have digests.
    ///
    /// # Errors
    ///
    /// [`Error::Store`]; [`Error::Snapshot`] when no machine was saved in it.
    ///
    /// One that was [begun](Snapshots::draft_passing) as not to be kept is not written out,
    /// and has no digests. Its memory is returned, if it is not in the folder.
    pub fn publish(self, about: &str) -> Result<Option<HeldMemory>, Error> {
        let keep = !self.passing;
        let Filled { kind, held } = std::mem::take(&mut *self.filled());
        if kind.is_empty() {
            return Err(Error::Snapshot {
                name: self.name.clone(),
                reason: "no machine was saved in it".into(),
            });
        }
        let here = |action| store_error(action, &self.folder);
        let written = self.create(ABOUT)?.write_all(about.as_bytes());
        written.map_err(here("write to"))?;
        let mut files = Vec::new();
        if let Some(ram) = &held {
            files.push(Noted {
                name: RAM.to_owned(),
                state: FileState::of(ram).map_err(here("inspect"))?,
                digest: None,
            });
        }
        for entry in fs::read_dir(&self.folder).map_err(here("list"))? {
            let entry = entry.map_err(here("list"))?;
            let file = File::open(entry.path()).map_err(here("read"))?;
            if keep {
                file.sync_all().map_err(here("write out"))?;
            }
            let digest = keep
                .then(|| digest(&file))
                .transpose()
                .map_err(here("read"))?;
            files.push(Noted {
                name: entry.file_name().to_string_lossy().into_owned(),
                state: FileState::of(&file).map_err(here("inspect"))?,
                digest,
            });
        }
        let meta = Meta { kind, files };
        if keep {
            write_json(&self.folder.join(META), &meta).map_err(here("write to"))?;
            let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
            synced.map_err(here("write out"))?;
        } else {
            let text = serde_json::to_vec(&meta).map_err(|error| here("write to")(error.into()))?;
            let written = self.create(META)?.write_all(&text);
            written.map_err(here("write to"))?;
        }
        fs::rename(&self.folder, &self.target).map_err(store_error("create", &self.target))?;
        if let Some(root) = self.target.parent().filter(|_| keep) {
            let synced = File::open(root).and_then(|root| root.sync_all());
            synced.map_err(store_error("write out", root))?;
        }
        Ok(held.map(HeldMemory::new))
    }
}

/// Makes a file in memory for `size` bytes of memory, where others can open it.
fn hold(size: u64) -> Option<File> {
    // Of a process that gives no dumps nobody but root can open descriptors.
    let open = matches!(dumpable_behavior(), Ok(DumpableBehavior::Dumpable))
        || rustix::process::geteuid().is_root();
    open.then(|| held::create(size).ok()).flatten()
}

impl Drop for SnapshotDraft {
    fn drop(&mut self) {
        // After publishing there is nothing left to remove but the lock.
        let _ = remove_folder(&self.folder);
        let _ = fs::remove_file(&self.lock_path);
    }
}

fn disk_name(index: usize) -> String {
    format!("disk{index}")
}

fn copy_disk(from: &Path, to: &File, given_up: &AtomicBool) -> io::Result<()> {
    let from = File::open(from)?;
    to.set_len(from.metadata()?.len())?;
    copy::sparse_unless(&from, to, given_up)
}

/// A snapshot that is open: it can be started even after it was removed.
#[derive(Debug)]
pub struct Snapshot {
    name: String,
    kind: String,
    about: String,
    ram: File,
    ram_noted: FileState,
    state: File,
    disks: Vec<(String, File)>,
}

impl Snapshot {
    /// The text that it was [published](SnapshotDraft::publish) with.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Makes a machine's own disk, in the new file `to`, of the disk with this place among
    /// those that were saved; says in which format. Its content is shared with the snapshot's
    /// file as the file system can: the blocks of it, or by an overlay, of which the shared
    /// file is the [base](crate::Disk::base). It is copied where neither can be.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] when the machine had no writable disk there, [`Error::Store`].
    pub fn copy_disk(&self, index: usize, to: &Path) -> Result<DiskFormat, Error> {
        let name = disk_name(index);
        let find = |name: &str| self.disks.iter().find(|(known, _)| known == name);
        let (_, disk) = find(&name).ok_or_else(|| Error::Snapshot {
            name: self.name.clone(),
            reason: format!("it has no {name}"),
        })?;
        let base = find(&format!("{name}.base")).map(|(_, base)| base);
        give_disk(disk, base, to).map_err(store_error("create", to))
    }

    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    pub(crate) fn ram(&self) -> &File {
        &self.ram
    }

    /// Opens the state anew, with a position of its own. Its name may be gone by now.
    pub(crate) fn fresh_state(&self) -> Result<File, Error> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.state.as_raw_fd()));
        File::open(&path).map_err(store_error("open", &path))
    }

    /// Whether the memory is as it was when it was opened.
    pub(crate) fn check_ram(&self) -> Result<(), Error> {
        // What is sealed can't be; its times change also when somebody only tries.
        let same = held::is_sealed(&self.ram)
            || FileState::of(&self.ram).is_ok_and(|now| now == self.ram_noted);
        same.then_some(()).ok_or_else(|| Error::Snapshot {
            name: self.name.clone(),
            reason: "its memory was changed meanwhile".into(),
        })
    }
}

fn give_disk(disk: &File, base: Option<&File>, path: &Path) -> io::Result<DiskFormat> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let to = options.open(path)?;
    let size = disk.metadata()?.len();
    let copy = || {
        to.set_len(size)?;
        copy::sparse(disk, &to)
    };
    if let Some(base) = base {
        link(base, &base_of(path))?;
        copy()?;
        return Ok(DiskFormat::Overlay);
    }
    if ioctl_ficlone(&to, disk).is_ok() {
        return Ok(DiskFormat::Raw);
    }
    // Nobody writes to a file that is saved: machines can't open it for that.
    if link(disk, &base_of(path)).is_ok() {
        overlay::create(&to, size)?;
        return Ok(DiskFormat::Overlay);
    }
    copy()?;
    Ok(DiskFormat::Raw)
}

/// Gives an open file one more name.
fn link(file: &File, to: &Path) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, from, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
}

/// Opens a file of a snapshot: a link or a pipe that somebody put there is none.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let other = || {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        io::Error::other(format!("{name} is no file"))
    };
    match opened {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(other()),
        // A link; or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            Err(other())
        }
        Err(error) => Err(error),
    }
}

/// Opens memory that is not in the folder.
fn open_held(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if held::is_sealed(&file) {
        return Ok(file);
    }
    Err(io::Error::other("its memory is not sealed"))
}

fn open(folder: &Path, name: &str, memory: Option<&Path>) -> io::Result<Snapshot> {
    let mut text = Vec::new();
    let meta = open_plain(&folder.join(META))?;
    meta.take(MAX_META).read_to_end(&mut text)?;
    let meta: Meta = serde_json::from_slice(&text)?;
    let mut files = Vec::new();
    let mut ram_noted = None;
    for noted in &meta.files {
        let known = [RAM, STATE, ABOUT].contains(&noted.name.as_str());
        let is_disk = noted.name.strip_prefix("disk").is_some_and(|name| {
            let index = name.strip_suffix(".base").unwrap_or(name);
            !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit())
        });
        if !known && !is_disk {
            return Err(io::Error::other("it has files that no snapshot has"));
        }
        let file = match memory {
            Some(memory) if noted.name == RAM => open_held(memory)?,
            _ => open_plain(&folder.join(&noted.name))?,
        };
        let state = FileState::of(&file)?;
        let is_held = memory.is_some() && noted.name == RAM;
        if is_held && !state.is_same_file(&noted.state) {
            return Err(io::Error::other("its memory is another one's"));
        }
        // A disk gets more names with those who share it, which changes when it was changed.
        let is_linked = is_disk && state.has_content_of(&noted.state);
        if !is_held && !is_linked && state != noted.state {
            // A file that was written to where it lies is not taken back, whatever it holds
            // now: whoever wrote once may do so again after it was read.
            if state.is_same_file(&noted.state) {
                return Err(io::Error::other(format!(
                    "its file {} was changed after it was saved",
                    noted.name
                )));
            }
            compare(&file, noted)?;
        }
        if noted.name == RAM {
            ram_noted = Some(state);
        }
        files.push((noted.name.clone(), file));
    }
    let mut take = |wanted: &str| {
        let place = files.iter().position(|(name, _)| name == wanted);
        let missing = || io::Error::other(format!("it has no {wanted}"));
        place
            .map(|place| files.swap_remove(place).1)
            .ok_or_else(missing)
    };
    let (ram, state, about) = (take(RAM)?, take(STATE)?, take(ABOUT)?);
    let mut text = String::new();
    about.take(MAX_ABOUT).read_to_string(&mut text)?;
    Ok(Snapshot {
        name: name.to_owned(),
        kind: meta.kind,
        about: text,
        // As it was before it was compared.
        ram_noted: ram_noted.map_or_else(|| FileState::of(&ram), Ok)?,
        ram,
        state,
        disks: files,
    })
}

/// Compares a file that is not the one noted with what is noted of its content.
fn compare(file: &File, noted: &Noted) -> io::Result<()> {
    let same = file.metadata()?.len() == noted.state.size()
        && noted.digest.is_some()
        && noted.digest == Some(digest(&file.try_clone()?)?);
    if !same {
        let name = &noted.name;
        return Err(io::Error::other(format!(
            "its file {name} is not what was saved"
        )));
    }
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))?;
    Ok(())
}
