//! Holding all processes of the guest, by cgroups.
//!
//! Processes in the root cgroup, where commands are started, can't be held there: they are
//! moved to a group of ours, which is frozen before. Groups that the workload has made are
//! frozen where they are, so that it finds them as they were. It can thaw what it pleases, as
//! root, and gains nothing: what is held is the guest as a whole, to be saved.
//!
//! Reading: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, `cgroup.freeze`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Dir, Mode, OFlags, mkdirat, openat, readlinkat};
use rustix::io::Errno;

/// The group that processes are moved to.
const GROUP: &str = "msb.held";

/// How often it is looked whether somebody has got away by a fork or a new group. Each look
/// finds fewer, unless somebody means to get away.
const MAX_LOOKS: usize = 64;

/// How long processes may take to be held: one that waits for a disk is held when that has
/// answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest list of processes that is read: more than there are process ids.
const MAX_LIST: usize = 32 << 20;

/// Depth of groups that are looked into for processes.
pub(super) const MAX_DEPTH: usize = 32;

/// Everybody, held. Goes on when this is dropped.
#[derive(Debug)]
pub(super) struct Frozen {
    /// Those that were not frozen before.
    groups: Vec<Held>,
}

/// A group that is frozen.
#[derive(Debug)]
struct Held {
    name: String,
    group: OwnedFd,
    /// Its `cgroup.freeze`: kept, because a copy of the guest would have to find it again.
    switch: OwnedFd,
}

/// Holds all processes but this one. `cgroups` is the root of the hierarchy, `proc` that of
/// the processes.
pub(super) fn freeze(cgroups: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> io::Result<Frozen> {
    match mkdirat(cgroups, GROUP, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut frozen = Frozen { groups: Vec::new() };
    frozen.hold(GROUP.to_owned(), open_group(cgroups, GROUP)?)?;
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..MAX_LOOKS {
        let moved = gather(cgroups, proc)?;
        let held = frozen.hold_others(cgroups)?;
        frozen.wait(deadline)?;
        if !moved && !held {
            return Ok(frozen);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Adds the ids of the processes in a group and in those below it.
pub(super) fn collect(group: &OwnedFd, depth: usize, found: &mut Vec<i32>) -> io::Result<()> {
    // That of a group whose threads are apart can't be read; its processes are said above it.
    match read(group.as_fd(), "cgroup.procs") {
        Ok(text) => found.extend(ids(&text)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    if depth > 0 {
        for name in groups(group.as_fd())? {
            collect(&open_group(group.as_fd(), &name)?, depth - 1, found)?;
        }
    }
    Ok(())
}

impl Frozen {
    /// Freezes the groups that are not.
    fn hold_others(&mut self, cgroups: BorrowedFd<'_>) -> io::Result<bool> {
        let mut held = false;
        for name in groups(cgroups)? {
            if self.groups.iter().any(|held| held.name == name) {
                continue;
            }
            let group = open_group(cgroups, &name)?;
            // What the workload has frozen itself stays so.
            if read(group.as_fd(), "cgroup.freeze")?.trim_ascii() != b"1" {
                self.hold(name, group)?;
                held = true;
            }
        }
        Ok(held)
    }

    fn hold(&mut self, name: String, group: OwnedFd) -> io::Result<()> {
        let switch = open(group.as_fd(), "cgroup.freeze", OFlags::WRONLY)?;
        rustix::io::pwrite(&switch, b"1", 0)?;
        self.groups.push(Held {
            name,
            group,
            switch,
        });
        Ok(())
    }

    /// Waits until nobody in the groups runs.
    fn wait(&self, deadline: Instant) -> io::Result<()> {
        self.groups
            .iter()
            .try_for_each(|held| wait_for(&held.group, deadline))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for held in &self.groups {
            // One that is gone has nobody in it.
            let _ = rustix::io::pwrite(&held.switch, b"0", 0);
        }
    }
}

fn wait_for(group: &OwnedFd, deadline: Instant) -> io::Result<()> {
    let events = open(group.as_fd(), "cgroup.events", OFlags::RDONLY)?;
    loop {
        let mut text = [0; 256];
        let count = rustix::io::pread(&events, &mut text, 0)?;
        let mut lines = text[..count].split(|byte| *byte == b'\n');
        if lines.any(|line| line == b"frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Moves the processes of the root group to ours; tells whether there were any.
fn gather(cgroups: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> io::Result<bool> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let target = open_group(cgroups, GROUP)?;
    let target = open(target.as_fd(), "cgroup.procs", OFlags::WRONLY)?;
    let mut moved = false;
    let everybody = read(cgroups, "cgroup.procs")?;
    for pid in ids(&everybody).filter(|pid| *pid != own) {
        if is_kernels(proc, pid) {
            continue;
        }
        match rustix::io::write(&target, pid.to_string().as_bytes()) {
            Ok(_) => moved = true,
            // It has ended.
            Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(moved)
}

/// Whether a process has no program: it is the kernel's, or has all but ended.
fn is_kernels(proc: BorrowedFd<'_>, pid: i32) -> bool {
    matches!(
        readlinkat(proc, format!("{pid}/exe"), Vec::new()),
        Err(Errno::NOENT | Errno::SRCH)
    )
}

/// The names of the groups in one.
fn groups(parent: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(parent)? {
        let entry = entry?;
        let is_group = entry.file_type() == rustix::fs::FileType::Directory;
        // The kernel's own dots, and names that cannot be said: one that a workload chose so
        // would keep its processes running.
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name if is_group => match String::from_utf8(name.to_vec()) {
                Ok(name) => names.push(name),
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
            },
            _ => {}
        }
    }
    Ok(names)
}

fn open_group(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn open(parent: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(openat(
        parent,
        name,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn read(parent: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let file = open(parent, name, OFlags::RDONLY)?;
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while text.len() < MAX_LIST {
        match rustix::io::read(&file, &mut chunk) {
            Ok(0) => return Ok(text),
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The numbers in a list; 0 stands for those of another namespace, which there is none of.
fn ids(text: &[u8]) -> impl Iterator<Item = i32> + '_ {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| str::from_utf8(line).ok()?.parse().ok())
        .filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_is_a_number() {
        let all: Vec<i32> = ids(b"1\n23\n0\n\nx\n-4\n99999999999\n7").collect();
        assert_eq!(all, [1, 23, 7]);
    }

    #[test]
    fn where_there_are_no_groups_nobody_is_held() {
        let place = tempfile::tempdir().unwrap();
        let place = rustix::fs::open(place.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(freeze(place.as_fd(), place.as_fd()).is_err());
    }
}
