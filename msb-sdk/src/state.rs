//! A sandbox's folder on the host, and the lock that says it is in use.
//!
//! The lock belongs to an open file that creator and supervisor share: it is
//! free when the last of them is gone, however it went. A folder whose lock is
//! free is a leftover, and whoever comes next removes it.
//!
//! A lock that is being looked at seems taken. So creators share a lock on the
//! folder of all sandboxes, and whoever looks for leftovers has it alone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::Error;
use crate::home::{Home, unusable};

const LOCK: &str = "lock";

/// How often a folder that vanishes under us is made again.
const MAX_TRIES: usize = 16;

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
        let path = home.sandboxes().join(name);
        let all = home.sandboxes();
        let _no_sweep = File::open(&all)
            .and_then(|folder| folder.lock_shared().map(|()| folder))
            .map_err(|source| unusable(&all, source))?;
        for _ in 0..MAX_TRIES {
            match try_lock(&path).map_err(|source| unusable(&path, source))? {
                Locked::Mine(lock) => {
                    clear(&path).map_err(|source| unusable(&path, source))?;
                    return Ok(Self { path, lock });
                }
                Locked::Others => {
                    return Err(Error::NameTaken {
                        name: name.to_owned(),
                    });
                }
                Locked::Vanished => {}
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
        fs::remove_dir_all(&self.path)
    }
}

/// Removes the folders of sandboxes that nobody runs any more: their processes
/// were killed before they could clean up.
pub(crate) fn sweep(home: &Home) {
    let alone = File::open(home.sandboxes()).and_then(|folder| folder.lock().map(|()| folder));
    // Where nothing can be locked, nothing is known to be left over.
    let Ok(_alone) = alone else {
        return;
    };
    let Ok(entries) = fs::read_dir(home.sandboxes()) else {
        return;
    };
    for entry in entries.flatten() {
        if let Ok(Locked::Mine(_lock)) = try_lock(&entry.path()) {
            // Whoever can't remove it leaves it to the next.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

enum Locked {
    Mine(File),
    Others,
    /// Somebody removed the folder meanwhile.
    Vanished,
}

fn try_lock(dir: &Path) -> io::Result<Locked> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = dir.join(LOCK);
    let lock = match OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
    {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Locked::Vanished),
        Err(error) => return Err(error),
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Locked::Others),
        Err(error) => return Err(error.into()),
    }
    // The file we locked may have been removed between opening and locking.
    let mine = lock.metadata()?;
    match fs::metadata(&path) {
        Ok(found) if (found.dev(), found.ino()) == (mine.dev(), mine.ino()) => {
            Ok(Locked::Mine(lock))
        }
        _ => Ok(Locked::Vanished),
    }
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
