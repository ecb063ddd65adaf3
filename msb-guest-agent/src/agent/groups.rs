//! Cgroups for commands: the bound on the memory of all of them, who was killed for it, and
//! their shares of processor time.
//!
//! ```text
//! /        the agent
//! └─ msb   memory.max, pids.max: all but the agent's reserve
//!    ├─ 1  a command and its descendants
//!    └─ 2  …
//! ```
//!
//! Without the bound a guest that runs out of memory can stand still with its agent: what the
//! agent needs is taken from it as from everybody. With it, whoever asks for too much waits or
//! is killed, and the agent goes on. The kernel counts those that it kills for each group
//! before it kills them, so that at the end of a command it is certain whether any was its
//! own.
//!
//! A group is not removed, but used again once nobody is in it: removing one leaves a shadow
//! in the kernel for as long as there are pages that were charged to it.
//!
//! Reading: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, "Memory".

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::freezer;
use crate::message::ByteString;

/// The group of all commands.
const ALL: &str = "msb";

/// Memory, threads, and processor time: the agent's turn comes however many processes there
/// are, and a command has as much of it as any other, with all of its descendants.
const CONTROLLERS: &str = "+memory +pids +cpu";

/// The part of what memory is available that commands can't have, and its bounds: enough for
/// an agent that passes on as much as it may hold, and for the kernel's own.
const RESERVED_PART: u64 = 32;
const MIN_RESERVE: u64 = 12 << 20;
const MAX_RESERVE: u64 = 32 << 20;

/// The part of the threads that the kernel can have which commands can't, for the agent's own
/// and the kernel's; and as large a part of the others that one command can't have, for those
/// that are to end it.
const RESERVED_THREADS: u64 = 8;

/// Groups that are made at the most: more commands than that do not run at once, but
/// descendants may stay behind in each.
const MAX_GROUPS: usize = 2048;

/// Groups in which somebody may have stayed that are looked at before another is made.
const MAX_LOOKS: usize = 8;

/// Makes the group of all commands. `available` is what memory nobody needs yet, in bytes, and
/// `threads` how many the kernel can have, 0 if nobody knows.
pub(super) fn make(cgroups: BorrowedFd<'_>, available: u64, threads: u64) -> io::Result<()> {
    write(cgroups, "cgroup.subtree_control", CONTROLLERS)?;
    make_dir(cgroups, ALL)?;
    let all = open_dir(cgroups, ALL)?;
    write(all.as_fd(), "cgroup.subtree_control", CONTROLLERS)?;
    let reserve = (available / RESERVED_PART).clamp(MIN_RESERVE, MAX_RESERVE);
    if available > 2 * reserve {
        let most = (available - reserve).to_string();
        write(all.as_fd(), "memory.max", &most)?;
    }
    if threads > 0 {
        let most = threads - threads / RESERVED_THREADS;
        write(all.as_fd(), "pids.max", &most.to_string())?;
    }
    Ok(())
}

/// The groups of commands.
#[derive(Debug)]
pub(super) struct Groups {
    all: OwnedFd,
    /// How many threads all of them can have, where that is bounded.
    threads: Option<u64>,
    /// Those whose command has ended.
    left: VecDeque<Group>,
    made: usize,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Group {
    processes: OwnedFd,
    events: OwnedFd,
    memory: OwnedFd,
    number: usize,
    /// How many were killed in it when its command began.
    killed: u64,
    /// How many the agent has killed since then.
    killed_here: u32,
}

impl Groups {
    /// `None` where the kernel has none.
    pub(super) fn open(cgroups: BorrowedFd<'_>) -> Option<Groups> {
        let all = open_dir(cgroups, ALL).ok()?;
        let threads = open(all.as_fd(), "pids.max", OFlags::RDONLY).ok();
        Some(Groups {
            threads: threads.and_then(|file| value(&file, b"")),
            all,
            left: VecDeque::new(),
            made: 0,
        })
    }

    /// One for a new command, in which nobody is; `None` when there is none to be had.
    pub(super) fn take(&mut self) -> Option<Group> {
        for _ in 0..self.left.len().min(MAX_LOOKS) {
            let mut group = self.left.pop_front()?;
            if group.is_empty() {
                group.killed = group.count();
                group.killed_here = 0;
                return Some(group);
            }
            self.left.push_back(group);
        }
        if self.made >= MAX_GROUPS {
            return None;
        }
        self.made += 1;
        Group::make(self.all.as_fd(), self.made, self.threads).ok()
    }

    /// The group of all commands.
    pub(super) fn all(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }

    /// The process in them that has the most memory to itself, and the number of its group.
    pub(super) fn largest(&self, proc: BorrowedFd<'_>) -> Option<(i32, usize)> {
        let mut largest = None;
        for number in 1..=self.made {
            let mut processes = Vec::new();
            let Ok(dir) = open_dir(self.all.as_fd(), &number.to_string()) else {
                continue;
            };
            let _ = freezer::collect(&dir, freezer::MAX_DEPTH, &mut processes);
            for pid in processes {
                largest = largest.max(Some((own_pages(proc, pid), pid, number)));
            }
        }
        largest.map(|(_, pid, number)| (pid, number))
    }

    /// Takes one back.
    pub(super) fn put(&mut self, group: Group) {
        self.left.push_front(group);
    }
}

impl Group {
    fn make(all: BorrowedFd<'_>, number: usize, threads: Option<u64>) -> io::Result<Group> {
        let name = number.to_string();
        make_dir(all, &name)?;
        let dir = open_dir(all, &name)?;
        if let Some(threads) = threads {
            let most = threads - threads / RESERVED_THREADS;
            write(dir.as_fd(), "pids.max", &most.to_string())?;
        }
        let open = |name, flags| open(dir.as_fd(), name, flags);
        Ok(Group {
            processes: open("cgroup.procs", OFlags::WRONLY)?,
            events: open("cgroup.events", OFlags::RDONLY)?,
            memory: open("memory.events", OFlags::RDONLY)?,
            number,
            killed: 0,
            killed_here: 0,
        })
    }

    /// What processes write to that join it.
    pub(super) fn processes(&self) -> BorrowedFd<'_> {
        self.processes.as_fd()
    }

    /// How many of the command's processes were killed because memory ran out.
    pub(super) fn killed(&self) -> u32 {
        let killed = self.count().saturating_sub(self.killed);
        let killed = u32::try_from(killed).unwrap_or(u32::MAX);
        killed.saturating_add(self.killed_here)
    }

    /// Its number.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Notes that the agent has killed one of its processes because memory ran out.
    pub(super) fn note_killed(&mut self) {
        self.killed_here = self.killed_here.saturating_add(1);
    }

    fn is_empty(&self) -> bool {
        value(&self.events, b"populated ") == Some(0)
    }

    fn count(&self) -> u64 {
        value(&self.memory, b"oom_kill ").unwrap_or(0)
    }
}

/// Pages in memory that a process has and no file: 0 if it has ended.
fn own_pages(proc: BorrowedFd<'_>, pid: i32) -> u64 {
    let Ok(file) = open(proc, &format!("{pid}/statm"), OFlags::RDONLY) else {
        return 0;
    };
    let mut text = [0; 128];
    let count = rustix::io::pread(&file, &mut text, 0).unwrap_or(0);
    let text = str::from_utf8(&text[..count]).unwrap_or("");
    let mut numbers = text.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (numbers.nth(1).unwrap_or(0), numbers.next().unwrap_or(0));
    resident.saturating_sub(shared)
}

/// The name of a process's program.
pub(super) fn program(proc: BorrowedFd<'_>, pid: i32) -> Option<ByteString> {
    let file = open(proc, &format!("{pid}/comm"), OFlags::RDONLY).ok()?;
    let mut text = [0; 64];
    let count = rustix::io::pread(&file, &mut text, 0).ok()?;
    Some(ByteString::from(text[..count].trim_ascii()))
}

/// The number behind a word in a file of a few lines.
pub(super) fn value(file: &OwnedFd, key: &[u8]) -> Option<u64> {
    let mut text = [0; 512];
    let count = rustix::io::pread(file, &mut text, 0).ok()?;
    let mut lines = text[..count].split(|byte| *byte == b'\n');
    let number = lines.find_map(|line| line.strip_prefix(key))?;
    str::from_utf8(number).ok()?.trim().parse().ok()
}

fn make_dir(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

pub(super) fn open(parent: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn write(parent: BorrowedFd<'_>, name: &str, text: &str) -> io::Result<()> {
    let file = open(parent, name, OFlags::WRONLY)?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn numbers_are_found_behind_their_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        fs::write(
            &path,
            "low 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 9\n",
        )
        .unwrap();
        let file: OwnedFd = fs::File::open(&path).unwrap().into();
        assert_eq!(value(&file, b"oom_kill "), Some(2));
        assert_eq!(value(&file, b"oom "), Some(3));
        assert_eq!(value(&file, b"high "), None);
        fs::write(&path, "oom_kill x\n").unwrap();
        assert_eq!(value(&file, b"oom_kill "), None);
    }

    #[test]
    fn where_there_are_no_groups_commands_go_without() {
        let place = tempfile::tempdir().unwrap();
        let place = rustix::fs::open(place.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(make(place.as_fd(), 1 << 30, 4096).is_err());
        assert!(Groups::open(place.as_fd()).is_none());
    }
}
