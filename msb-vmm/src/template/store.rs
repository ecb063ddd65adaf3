//! Templates on disk.
//!
//! ```text
//! templates/KEY/ram        guest memory, sparse
//! templates/KEY/state      device state
//! templates/KEY/meta.json  what the two must look like
//! templates/.KEY.draft/    a template being made, or what a killed maker left
//! templates/.KEY.lock      held by the maker
//! templates/.ids/          remembered digests of files
//! ```
//!
//! A folder KEY appears by a rename, complete and written out to the disk. Readers take
//! no lock: they check the files against `meta.json` and keep them open, so that a
//! template may be dropped from the store while it is being started.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::key::{FileState, Key, Remembered, digest};
use crate::clock::TscRate;
use crate::error::Error;

/// The most templates kept. Each takes 40 to 60 MB; a user has a few sizes of machine and
/// some images, and old ones are left behind when the kernel, the agent or the VMM change.
const MAX_TEMPLATES: usize = 16;

/// The most remembered digests kept: three files for each of a few installations.
const MAX_IDS: usize = 64;

/// The longest JSON file accepted. Ours have some hundred bytes.
const MAX_JSON: u64 = 16 << 10;

/// The largest device state accepted: some 60 KB without the firmware's memory.
const MAX_STATE: u64 = 16 << 20;

/// The files of a template, open.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) ram: File,
    pub(super) state: File,
    /// What `ram` looked like when it was saved.
    saved: FileState,
}

impl Files {
    /// Whether the memory is as it was saved, until now.
    pub(super) fn is_intact(&self) -> bool {
        FileState::of(&self.ram).is_ok_and(|now| now == self.saved)
    }

    /// Opens the state anew, with a position of its own. Its name may be gone by now.
    pub(super) fn fresh_state(&self) -> Result<File, Error> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.state.as_raw_fd()));
        File::open(&path).map_err(store_error("open", &path))
    }
}

/// What a template's files looked like when they were saved.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    key: String,
    ram: FileState,
    state: FileState,
    state_digest: String,
}

/// The rate of the host's time stamp counter, as measured in one boot of the host.
#[derive(Debug, Serialize, Deserialize)]
struct KnownRate {
    boot: String,
    rate: TscRate,
}

/// A folder of templates.
#[derive(Clone, Debug)]
pub(super) struct Store {
    root: PathBuf,
}

impl Store {
    pub(super) fn new(root: PathBuf) -> Self {
        Store { root }
    }

    /// Opens a template and checks it. `None` means that it has to be made.
    pub(super) fn open(&self, key: &Key) -> Option<Files> {
        let folder = self.folder(key);
        let meta: Meta = read_json(&folder.join("meta.json")).ok()?;
        let files = Files {
            ram: File::open(folder.join("ram")).ok()?,
            state: File::open(folder.join("state")).ok()?,
            saved: meta.ram,
        };
        let intact = meta.key == key.as_str()
            && files.is_intact()
            && FileState::of(&files.state).ok()? == meta.state
            && meta.state.size() <= MAX_STATE
            && digest(&files.state).ok()? == meta.state_digest;
        // The time of the last use, for pruning. Failing means that it is pruned earlier.
        let now = SystemTime::now();
        let _ = File::open(&folder).and_then(|folder| folder.set_modified(now));
        intact.then_some(files)
    }

    /// Takes the right to make a template; calls `waiting` when someone else has it.
    pub(super) fn lock(&self, key: &Key, mut waiting: impl FnMut()) -> Result<File, Error> {
        make_folder(&self.root)?;
        let path = self.root.join(format!(".{}.lock", key.as_str()));
        loop {
            let file = open_lock(&path).map_err(store_error("open", &path))?;
            if file.try_lock().is_err() {
                waiting();
                file.lock().map_err(store_error("lock", &path))?;
            }
            // The pruner removes lock files, while it holds them.
            let current = File::open(&path).and_then(|current| FileState::of(&current));
            if current.is_ok_and(|current| FileState::of(&file).is_ok_and(|ours| ours == current)) {
                return Ok(file);
            }
        }
    }

    /// Starts to make a template. The caller holds its lock.
    pub(super) fn draft(&self, key: &Key, memory: u64) -> Result<Draft, Error> {
        let folder = self.root.join(format!(".{}.draft", key.as_str()));
        remove_folder(&folder).map_err(store_error("remove", &folder))?;
        make_folder(&folder)?;
        let create = |name: &str| {
            let path = folder.join(name);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            file.map_err(store_error("create", &path))
        };
        let (ram, state) = (create("ram")?, create("state")?);
        ram.set_len(memory)
            .map_err(store_error("resize", &folder.join("ram")))?;
        Ok(Draft {
            key: key.clone(),
            target: self.folder(key),
            folder,
            ram,
            state,
        })
    }

    /// Drops a template that proved to be of no use. Whoever has it open keeps it.
    pub(super) fn discard(&self, key: &Key) {
        // What can't be removed is found and reported by the next maker.
        let _ = remove_folder(&self.folder(key));
    }

    /// Drops what exceeds [`MAX_TEMPLATES`], the longest unused first, and what killed
    /// makers left. A template that is being made is left alone, as are those in `keep`.
    pub(super) fn prune(&self, keep: &[&Key]) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        let mut finished = Vec::new();
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(key) = name
                .strip_prefix('.')
                .and_then(|name| name.strip_suffix(".draft"))
            {
                self.prune_one(key, keep, &entry.path());
            } else if !name.starts_with('.')
                && let Ok(used) = entry.metadata().and_then(|meta| meta.modified())
            {
                finished.push((used, name));
            }
        }
        finished.sort();
        let excess = finished.len().saturating_sub(MAX_TEMPLATES);
        for (_, key) in finished.iter().take(excess) {
            self.prune_one(key, keep, &self.root.join(key));
        }
        prune_ids(&self.root.join(".ids"));
    }

    /// Removes one folder. What fails here is tried again by the next maker.
    fn prune_one(&self, key: &str, keep: &[&Key], folder: &Path) {
        if keep.iter().any(|kept| kept.as_str() == key) {
            return;
        }
        let lock = self.root.join(format!(".{key}.lock"));
        let Ok(file) = open_lock(&lock) else { return };
        if file.try_lock().is_ok() && remove_folder(folder).is_ok() {
            let _ = fs::remove_file(&lock);
        }
    }

    /// Returns a remembered digest.
    pub(super) fn recall(&self, name: &str) -> Option<Remembered> {
        read_json(&self.root.join(".ids").join(name)).ok()
    }

    /// Remembers a digest. Failing costs time later, nothing else.
    pub(super) fn remember(&self, name: &str, known: &Remembered) {
        self.remember_as(name, known);
    }

    fn remember_as(&self, name: &str, known: &impl Serialize) {
        let folder = self.root.join(".ids");
        if make_folder(&folder).is_ok() {
            let temporary = folder.join(format!(".{name}.{}", unique()));
            if write_json(&temporary, known).is_err()
                || fs::rename(&temporary, folder.join(name)).is_err()
            {
                let _ = fs::remove_file(&temporary);
            }
        }
    }

    /// Returns the rate of the host's time stamp counter. It is part of the guest's command
    /// line and so of the key: all users of a store have to agree on it.
    ///
    /// It is measured once for each boot of the host. A new measurement that hardly differs
    /// from the last is taken to be of the same counter.
    pub(super) fn tsc_rate(&self) -> TscRate {
        let folder = self.root.join(".ids");
        let path = folder.join("tsc");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let known = || read_json::<KnownRate>(&path).ok();
        if let Some(known) = known().filter(|known| known.boot == boot) {
            return known.rate;
        }
        // Without a lock, as where nothing can be written, the measurement is used all the same.
        let lock = make_folder(&folder)
            .ok()
            .and_then(|()| open_lock(&folder.join(".lock")).ok());
        let _held = lock.as_ref().map(File::lock);
        let known = known();
        if let Some(known) = known.as_ref().filter(|known| known.boot == boot) {
            return known.rate;
        }
        let measured = TscRate::measured();
        let rate = known
            .map(|known| known.rate)
            .filter(|rate| rate.is_close_to(measured))
            .unwrap_or(measured);
        self.remember_as("tsc", &KnownRate { boot, rate });
        rate
    }

    fn folder(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }
}

/// A template being made. What is left of it when its maker fails is removed.
#[derive(Debug)]
pub(super) struct Draft {
    key: Key,
    folder: PathBuf,
    target: PathBuf,
    ram: File,
    state: File,
}

impl Draft {
    /// Returns the file for the guest's memory.
    pub(super) fn ram(&self) -> &File {
        &self.ram
    }

    /// Returns the file for the device state.
    pub(super) fn state(&self) -> &File {
        &self.state
    }

    /// Writes everything out to the disk. Nobody may use the files any more.
    pub(super) fn seal(self) -> Result<Sealed, Error> {
        let in_folder = |action| store_error(action, &self.folder);
        self.ram.sync_all().map_err(in_folder("write out"))?;
        self.state.sync_all().map_err(in_folder("write out"))?;
        let state = File::open(self.folder.join("state")).map_err(in_folder("read"))?;
        let meta = Meta {
            key: self.key.as_str().to_owned(),
            ram: FileState::of(&self.ram).map_err(in_folder("inspect"))?,
            state: FileState::of(&self.state).map_err(in_folder("inspect"))?,
            state_digest: digest(&state).map_err(in_folder("read"))?,
        };
        write_json(&self.folder.join("meta.json"), &meta).map_err(in_folder("write to"))?;
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(in_folder("write out"))?;
        Ok(Sealed(self))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After publishing there is nothing left to remove.
        let _ = remove_folder(&self.folder);
    }
}

/// A template that is complete, but not yet in its place.
#[derive(Debug)]
pub(super) struct Sealed(Draft);

impl Sealed {
    /// Puts the template in its place, instead of a damaged one.
    pub(super) fn publish(self) -> Result<Files, Error> {
        let draft = &self.0;
        let open = |name: &str| {
            let path = draft.folder.join(name);
            File::open(&path).map_err(store_error("open", &path))
        };
        let ram = open("ram")?;
        let files = Files {
            saved: FileState::of(&ram).map_err(store_error("inspect", &draft.folder))?,
            ram,
            state: open("state")?,
        };
        remove_folder(&draft.target).map_err(store_error("replace", &draft.target))?;
        fs::rename(&draft.folder, &draft.target).map_err(store_error("create", &draft.target))?;
        if let Some(root) = draft.target.parent() {
            let synced = File::open(root).and_then(|root| root.sync_all());
            synced.map_err(store_error("write out", root))?;
        }
        Ok(files)
    }
}

pub(crate) fn store_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Store {
        action,
        path,
        source,
    }
}

pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Makes a folder for the owner only: guest memory is nobody else's business.
pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(store_error("create", path))
}

/// Removes a folder so that what is left when that stops half-way has no `meta.json`.
pub(crate) fn remove_folder(path: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(path.join("meta.json")))?;
    gone(fs::remove_dir_all(path))
}

fn prune_ids(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let age = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
    let mut files: Vec<_> = entries.filter_map(Result::ok).filter_map(age).collect();
    files.sort();
    let excess = files.len().saturating_sub(MAX_IDS);
    for (_, path) in files.iter().take(excess) {
        let _ = fs::remove_file(path);
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_JSON).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()
}

/// Returns a name part that no other process or thread uses at the same time.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_changed_after_it_was_opened_is_noticed() {
        let ram = tempfile::tempfile().unwrap();
        let files = Files {
            saved: FileState::of(&ram).unwrap(),
            state: tempfile::tempfile().unwrap(),
            ram: ram.try_clone().unwrap(),
        };
        assert!(files.is_intact());
        ram.set_len(1).unwrap();
        assert!(!files.is_intact());
    }
}
