//! A sandbox's folder on the host, and the lock that says it is in use.
//!
//! The lock belongs to an open file that creator, supervisor and VMM share: it is
//! free when the last of them is gone, however it went. So a sandbox runs as long
//! as its lock is taken, whatever its files say: after a crash or a restart of the host
//! all of them are stopped. A VMM dies a moment after a supervisor that is killed; for that
//! moment nobody else gets its disk.
//!
//! A folder with a record of a sandbox that is kept stays until it is
//! removed. Any other whose lock is free is a leftover, and whoever comes next removes it.
//!
//! A lock that is being looked at seems taken. So those who take one share a lock on the
//! folder of all sandboxes, and whoever only looks has it alone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::error::Error;
use crate::home::{Home, unusable};
use crate::record::{self, Record, State};
use crate::spec::check_name;

const LOCK: &str = "lock";

/// How often a folder that vanishes under us is made again.
const MAX_TRIES: usize = 16;

/// How long a VMM may outlive a supervisor that was killed, before it is taken for one that
/// runs: the kernel kills it at once, and has its memory to free.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether it is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A sandbox's folder, locked.
#[derive(Debug)]
pub(crate) struct SandboxDir {
    path: PathBuf,
    lock: File,
}

impl SandboxDir {
    /// Makes the folder for a new sandbox, over the remains of an old one.
    pub(crate) fn create(home: &Home, name: &str) -> Result<Self, Error> {
        home.make_dir(&home.sandboxes())?;
        let dir = Self::lock_now(home, name, true)?;
        // What can't be read may be somebody's data.
        if record::is_kept(&dir.path)? {
            return Err(Error::NameKept {
                name: name.to_owned(),
            });
        }
        clear(&dir.path).map_err(|source| unusable(&dir.path, source))?;
        Ok(dir)
    }

    /// Locks the folder of a sandbox that is stopped.
    pub(crate) fn open(home: &Home, name: &str) -> Result<Self, Error> {
        check_name(name)?;
        Self::lock_now(home, name, false)
    }

    fn lock_now(home: &Home, name: &str, create: bool) -> Result<Self, Error> {
        let path = home.sandboxes().join(name);
        let missing = || Error::NoSandbox {
            name: name.to_owned(),
        };
        if !create && !path.exists() {
            return Err(missing());
        }
        let all = home.sandboxes();
        let begin = Instant::now();
        let mut tries = 0;
        while tries < MAX_TRIES {
            let no_look = File::open(&all)
                .and_then(|folder| folder.lock_shared().map(|()| folder))
                .map_err(|source| unusable(&all, source))?;
            match try_lock(&path, create).map_err(|source| unusable(&path, source))? {
                Locked::Mine(lock) => return Ok(Self { path, lock }),
                Locked::Others if is_dying(&path) && begin.elapsed() < DEATH_PATIENCE => {
                    drop(no_look);
                    std::thread::sleep(LOOK_AGAIN);
                }
                Locked::Others => break,
                Locked::Vanished if create => tries += 1,
                Locked::Vanished => return Err(missing()),
            }
        }
        Err(Error::NameTaken {
            name: name.to_owned(),
        })
    }

    /// The folder of a sandbox whose lock this process has inherited.
    pub(crate) fn inherited(home: &Home, name: &str, lock: File) -> Self {
        Self {
            path: home.sandboxes().join(name),
            lock,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The lock, for a child to inherit.
    pub(crate) fn lock(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// Removes the folder; the lock is held until it is gone.
    pub(crate) fn remove(self) -> io::Result<()> {
        remove(&self.path)
    }

    /// Removes the folder, unless somebody has removed it and perhaps made it again.
    pub(crate) fn remove_own(self) {
        if is_at(&self.lock, &self.path.join(LOCK)) {
            let _ = self.remove();
        }
    }
}

/// Whether the supervisor of a sandbox that is in use is gone: its VMM has the lock, and will
/// not have it for long.
fn is_dying(path: &Path) -> bool {
    let Ok(Some(state)) = State::read(path) else {
        return false;
    };
    let pid = i32::try_from(state.pid).ok().and_then(Pid::from_raw);
    // A number that is another process's by now makes the name taken for a moment, no more.
    pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// Removes a folder, so that what is left is a leftover at any moment. It loses its name
/// first: nobody makes another in it while it is emptied.
fn remove(path: &Path) -> io::Result<()> {
    record::forget(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for again in 0..MAX_TRIES {
        // No sandbox has a name that begins with a dot.
        let other = path.with_file_name(format!(".{name}.{}.{again}", std::process::id()));
        match fs::rename(path, &other) {
            Ok(()) => return fs::remove_dir_all(&other),
            // A leftover of a process that had our id.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::DirectoryNotEmpty.into())
}

/// Removes the folders of sandboxes that nobody runs any more and nobody keeps: their
/// processes were killed before they could clean up.
pub(crate) fn sweep(home: &Home) {
    let Some(_alone) = alone(home) else {
        // Where nothing can be locked, nothing is known to be left over.
        return;
    };
    let Ok(entries) = fs::read_dir(home.sandboxes()) else {
        return;
    };
    for entry in entries.flatten() {
        if let Ok(Locked::Mine(_lock)) = try_lock(&entry.path(), true)
            && matches!(record::is_kept(&entry.path()), Ok(false))
        {
            // Whoever can't remove it leaves it to the next.
            let _ = remove(&entry.path());
        }
    }
}

/// The lock that only those who look take.
fn alone(home: &Home) -> Option<File> {
    let folder = File::open(home.sandboxes()).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

/// What is known of a sandbox that was looked at.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// Whether a process has its lock.
    pub(crate) in_use: bool,
    pub(crate) record: Result<Record, Error>,
}

/// Looks at all sandboxes, by name. Leftovers are not among them.
pub(crate) fn look(home: &Home) -> Result<Vec<Found>, Error> {
    let all = home.sandboxes();
    let Some(_alone) = alone(home) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(&all).map_err(|source| unusable(&all, source))? {
        let entry = entry.map_err(|source| unusable(&all, source))?;
        // Whatever is no name was not made here.
        if let Some(name) = entry.file_name().to_str()
            && check_name(name).is_ok()
        {
            found.extend(look_into(&entry.path(), name));
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Looks at one sandbox.
pub(crate) fn look_at(home: &Home, name: &str) -> Result<Found, Error> {
    check_name(name)?;
    let found = alone(home).and_then(|_alone| look_into(&home.sandboxes().join(name), name));
    found.ok_or_else(|| Error::NoSandbox {
        name: name.to_owned(),
    })
}

fn look_into(path: &Path, name: &str) -> Option<Found> {
    let in_use = match try_lock(path, false) {
        Ok(Locked::Mine(_)) => false,
        Ok(Locked::Others) => true,
        Ok(Locked::Vanished) => return None,
        Err(error) => {
            return Some(Found {
                name: name.to_owned(),
                in_use: false,
                record: Err(unusable(path, error)),
            });
        }
    };
    let record = match Record::read(path) {
        Ok(Some(record)) if record.keep || in_use => Ok(record),
        // A leftover, or a sandbox that nobody has described yet.
        Ok(_) => return None,
        Err(error) => Err(error),
    };
    Some(Found {
        name: name.to_owned(),
        in_use,
        record,
    })
}

enum Locked {
    Mine(File),
    Others,
    /// Somebody removed the folder meanwhile.
    Vanished,
}

fn try_lock(dir: &Path, create: bool) -> io::Result<Locked> {
    use std::os::unix::fs::DirBuilderExt;
    if create {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let path = dir.join(LOCK);
    // Not for writing: a VMM holds this very file, too.
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC;
    flags.set(OFlags::CREATE, create);
    let lock = match open(&path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(lock) => File::from(lock),
        Err(Errno::NOENT) => return Ok(Locked::Vanished),
        Err(error) => return Err(error.into()),
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Locked::Others),
        Err(error) => return Err(error.into()),
    }
    // The file we locked may have been removed between opening and locking.
    Ok(if is_at(&lock, &path) {
        Locked::Mine(lock)
    } else {
        Locked::Vanished
    })
}

/// Whether this very file is found there.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    let mine = file.metadata().map(place);
    matches!((mine, fs::metadata(path).map(place)), (Ok(mine), Ok(found)) if mine == found)
}

fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path()).expect("home");
        (dir, home)
    }

    #[test]
    fn a_name_in_use_is_taken_and_free_again_afterwards() {
        let (_dir, home) = home();
        let first = SandboxDir::create(&home, "one").expect("create");
        let error = SandboxDir::create(&home, "one").expect_err("taken");
        assert!(matches!(error, Error::NameTaken { name } if name == "one"));
        first.remove().expect("remove");
        SandboxDir::create(&home, "one").expect("free again");
    }

    #[test]
    fn leftovers_are_swept_and_the_living_are_not() {
        let (_dir, home) = home();
        let alive = SandboxDir::create(&home, "alive").expect("create");
        let dead = SandboxDir::create(&home, "dead").expect("create");
        fs::write(dead.path().join("disk"), "data").expect("write");
        drop(dead); // as a killed process would: the folder stays, the lock goes
        fs::create_dir(home.sandboxes().join("no-lock-yet")).expect("mkdir");
        sweep(&home);
        let names: Vec<_> = fs::read_dir(home.sandboxes())
            .expect("read")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        assert_eq!(names, ["alive"]);
        drop(alive);
    }

    #[test]
    fn an_old_sandbox_leaves_nothing_to_a_new_one_of_its_name() {
        let (_dir, home) = home();
        let old = SandboxDir::create(&home, "one").expect("create");
        fs::write(old.path().join("disk"), "data").expect("write");
        fs::create_dir(old.path().join("folder")).expect("mkdir");
        drop(old);
        let new = SandboxDir::create(&home, "one").expect("create");
        assert!(!new.path().join("disk").exists());
        assert!(!new.path().join("folder").exists());
    }

    #[test]
    fn sweeping_takes_no_name_from_a_creator() {
        let (_dir, home) = home();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let home = &home;
                scope.spawn(move || {
                    for round in 0..200 {
                        sweep(home);
                        let dir = SandboxDir::create(home, &format!("s{thread}-{round}"));
                        let _ = dir.expect("nobody else has this name").remove();
                    }
                });
            }
        });
    }

    fn keep(dir: &SandboxDir, name: &str) {
        let spec = crate::spec::SandboxSpec::new(name.into());
        let record = Record::new(spec, "sha256:0".into(), true);
        record.begin(dir.path()).expect("begin");
        record::keep(dir.path()).expect("keep");
    }

    #[test]
    fn a_kept_sandbox_stays_until_it_is_removed() {
        let (_dir, home) = home();
        let dir = SandboxDir::create(&home, "kept").expect("create");
        keep(&dir, "kept");
        fs::write(dir.path().join("disk"), "data").expect("write");
        assert!(look_at(&home, "kept").expect("it is there").in_use);
        assert!(matches!(
            SandboxDir::open(&home, "kept"),
            Err(Error::NameTaken { .. })
        ));
        drop(dir); // as a killed process would
        sweep(&home);
        let found = look(&home).expect("look");
        assert_eq!((found.len(), found[0].in_use), (1, false));
        let error = SandboxDir::create(&home, "kept").expect_err("it is kept");
        assert!(matches!(error, Error::NameKept { name } if name == "kept"));
        let dir = SandboxDir::open(&home, "kept").expect("it is stopped");
        assert!(dir.path().join("disk").exists());
        dir.remove().expect("remove");
        assert!(matches!(
            look_at(&home, "kept"),
            Err(Error::NoSandbox { .. })
        ));
        assert!(matches!(
            SandboxDir::open(&home, "kept"),
            Err(Error::NoSandbox { .. })
        ));
    }

    #[test]
    fn state_of_a_newer_version_is_not_touched() {
        let (_dir, home) = home();
        let dir = SandboxDir::create(&home, "new").expect("create");
        let record = r#"{"version": 999, "whatever": [1]}"#;
        fs::write(dir.path().join("sandbox.json"), record).expect("write");
        let path = dir.path().to_owned();
        drop(dir);
        sweep(&home);
        let newer = |error: &Error| matches!(error, Error::NewerState { version: 999, .. });
        assert!(newer(
            &SandboxDir::create(&home, "new").expect_err("not ours")
        ));
        let found = look_at(&home, "new").expect("it is there");
        assert!(newer(&found.record.expect_err("not ours")));
        let kept = fs::read_to_string(path.join("sandbox.json")).expect("read");
        assert_eq!(kept, record);
    }

    /// The state of a supervisor that is gone while something of its sandbox is not.
    #[test]
    fn what_is_dying_is_waited_for() {
        let (_dir, home) = home();
        let dir = SandboxDir::create(&home, "one").expect("create");
        keep(&dir, "one");
        let gone = std::process::Command::new("true").spawn().expect("spawn");
        let pid = gone.id();
        gone.wait_with_output().expect("wait");
        let mut state = State::starting();
        state.pid = pid;
        state.write(dir.path()).expect("write");
        std::thread::scope(|scope| {
            let next = scope.spawn(|| SandboxDir::open(&home, "one").map(drop));
            // However long this takes to come: it is waited for, or free already.
            drop(dir);
            next.join().expect("no panic").expect("it is free");
        });
    }

    #[test]
    fn a_lock_passed_on_outlives_its_creator() {
        let (_dir, home) = home();
        let creator = SandboxDir::create(&home, "one").expect("create");
        let inherited = creator.lock().expect("lock");
        drop(creator);
        assert!(SandboxDir::create(&home, "one").is_err());
        drop(inherited);
        assert!(SandboxDir::create(&home, "one").is_ok());
    }
}
