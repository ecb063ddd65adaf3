//! What keeps a VMM in its place, whichever engine it is.
//!
//! A VMM that its guest has taken over should find nothing to take over next. Before it
//! becomes the engine, the child process gets
//!
//! - an empty environment, no descriptor but those of its devices, no core dumps, a
//!   process group of its own, and the wish to die with the process that started it;
//! - `no_new_privs`, no capabilities, limits on descriptors and on the size of files;
//! - namespaces of its own, where the host lets it: users, processes, mounts, IPC, host
//!   name, control groups, and a network with nothing in it;
//! - the guest's memory, where that is a file that others have mapped, too, in a way that
//!   does not let it change the file;
//! - Landlock: the files of its [`Grants`], no TCP ports, no signals and no abstract
//!   sockets to the outside ([`files`]);
//! - a list of the system calls it may make ([`calls`]);
//! - limits on memory, threads and processor time ([`cgroup`]).
//!
//! Nothing of this needs root. What a host lacks is left out and told: [`Confinement`]
//! says what holds.

mod calls;
pub(crate) mod cgroup;
mod files;

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, WaitOptions, getrlimit, waitpid};

use crate::engine::launcher;
use crate::sys::{self, ChildMemory, ChildSetup, REPORT_LEN, Report};
pub(crate) use calls::MemoryFilters;
use cgroup::{Group, Limits};

/// Descriptors a VMM may have: devices, disks with an image's layers, event counters.
const MAX_DESCRIPTORS: u64 = 1024;

/// What a VMM may touch besides the descriptors it is given.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    /// Programs it is or is loaded by.
    pub(crate) execute: Vec<PathBuf>,
    /// Files, or folders with all that is in them, that it reads.
    pub(crate) read: Vec<PathBuf>,
    /// Files and devices that it reads and writes.
    pub(crate) write: Vec<PathBuf>,
    /// The file that it maps copy-on-write as its guest's memory.
    pub(crate) memory: Option<GuestMemory>,
    /// The longest file it may write, in bytes.
    pub(crate) largest_file: u64,
    /// No huge pages. QEMU asks for them for the code that its translator writes, of which a
    /// guest that does little needs a small part of each; all of it would be cleared, and is
    /// memory that nobody shares.
    pub(crate) small_pages: bool,
    /// What it is limited to as a whole, where the host lets it.
    pub(crate) limits: Option<Limits>,
}

/// A file that others have mapped, too.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    /// Where it is opened for reading and writing, where nobody hands it over.
    pub(crate) path: PathBuf,
    /// The descriptor under which it is handed over: one that the VMM inherits. For a higher one
    /// its table of descriptors would have to grow, and the kernel waits for all processors
    /// then: 5 to 9 of the 40 ms of a start.
    pub(crate) number: RawFd,
    /// Whether the VMM gives back what the guest does not need.
    pub(crate) returns: bool,
}

/// What a VMM waits for that is to be handed the guest's memory.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: CString,
    number: RawFd,
}

impl Listener {
    /// Hands `memory` over, for reading only, once the VMM wants to open it.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and `BrokenPipe` when the VMM has ended.
    pub(crate) fn hand_over(self, memory: &File, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
                Ok(_) if fds[0].revents().contains(PollFlags::IN) => {}
                Ok(_) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            match sys::hand_over(&self.socket, &self.path, memory.as_fd(), self.number) {
                Ok(true) => return Ok(()),
                // It has opened something else, or does not wait any more.
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether this process may read the memory of those that it has started, as it has to where
/// it says what they open: Yama's settings above 1 keep all but root from it, and those above
/// 2 root, too.
fn can_read_children() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let scope = scope.ok().and_then(|text| text.trim().parse::<u32>().ok());
    match scope.unwrap_or(0) {
        0 | 1 => true,
        2 => rustix::process::geteuid().is_root(),
        _ => false,
    }
}

/// Whether this host can keep the file of a guest's memory as it is, whatever the guest gives
/// back of its memory.
pub(crate) fn can_return_memory() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
        actions.is_ok_and(|actions| actions.split_ascii_whitespace().any(|it| it == "errno"))
    })
}

/// What holds for a VMM beyond what holds on every host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Namespaces of its own, or why not.
    pub namespaces: Result<(), Lacking>,
    /// Files, ports and signals restricted by Landlock, with the version of its interface,
    /// or why not.
    pub landlock: Result<u32, Lacking>,
    /// System calls restricted to a list, or why not.
    pub system_calls: Result<(), Lacking>,
    /// Memory that it shares with others can't be written to, or why not.
    pub memory: Result<(), Lacking>,
    /// Memory, threads and processor time limited by a control group, or why not.
    pub limits: Result<(), Lacking>,
}

/// Why a measure is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking(Errno);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Errno::NOSYS => f.write_str("this kernel does not have it"),
            Errno::OPNOTSUPP => f.write_str("it is switched off on this host"),
            Errno::PERM | Errno::ACCESS => f.write_str("this host does not allow it"),
            Errno::NOSPC | Errno::USERS => f.write_str("this host allows no more of them"),
            errno => write!(f, "{}", io::Error::from(errno)),
        }
    }
}

/// A confined process that was started.
#[derive(Debug)]
pub(crate) struct Confined {
    pub(crate) pid: Pid,
    pub(crate) confinement: Confinement,
    /// Its control group, to be kept for as long as it lives.
    pub(crate) group: Option<Group>,
    /// Waits to be asked for the guest's memory.
    pub(crate) listener: Option<Listener>,
}

/// Starts `command` as a VMM that keeps exactly the descriptors `inherit`, besides its
/// standard ones.
///
/// # Errors
///
/// The process cannot be made, or the program cannot be executed.
pub(crate) fn spawn(
    command: Command,
    inherit: Vec<RawFd>,
    grants: &Grants,
) -> io::Result<Confined> {
    spawn_as(command, inherit, grants, sys::id_maps())
}

fn spawn_as(
    mut command: Command,
    inherit: Vec<RawFd>,
    grants: &Grants,
    ids: [String; 2],
) -> io::Result<Confined> {
    command.env_clear();
    let (report, report_theirs) = UnixStream::pair()?;
    let (alive_theirs, alive) = pipe_with(PipeFlags::CLOEXEC)?;
    let ruleset = files::ruleset(grants, &[]);
    let opening = grants.memory.as_ref();
    let opening = opening.map(|memory| files::ruleset(grants, std::slice::from_ref(&memory.path)));
    let descriptors = descriptors();
    let raw = |ruleset: &Result<OwnedFd, Errno>| ruleset.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let path = grants.memory.as_ref().map(|memory| &memory.path);
    let path = path.map(|path| CString::new(path.as_os_str().as_bytes()));
    let path = path.transpose()?;
    let memory = grants.memory.as_ref().zip(opening.as_ref());
    let memory = memory.map(|(memory, opening)| ChildMemory {
        filters: calls::memory_filters(memory.number),
        is_handed: can_read_children(),
        ruleset: raw(opening),
        returns: memory.returns,
    });
    let setup = ChildSetup {
        inherit,
        report: report_theirs.as_raw_fd(),
        alive: alive_theirs.as_raw_fd(),
        parents_alive: alive.as_raw_fd(),
        ruleset: raw(&ruleset),
        filters: calls::filters(),
        memory,
        descriptors,
        largest_file: grants.largest_file,
        small_pages: grants.small_pages,
        ids,
    };
    sys::before_exec(&mut command, setup);
    let spawned = launcher::spawn(command);
    drop(report_theirs);
    let report = read_report(&report);
    match (spawned, report) {
        (Ok(mut child), Some((report, listener))) => {
            // What was forked is the VMM, or has made it and ended.
            if Pid::from_child(&child) != report.pid {
                let _ = child.wait();
            }
            let landlock = match ruleset {
                Ok(_) => check(report.landlock).map(|()| files::version()),
                Err(errno) => Err(Lacking(errno)),
            };
            let group = grants
                .limits
                .map(|limits| cgroup::place(report.pid, limits));
            let (group, limits) = match group {
                Some(Ok(group)) => (Some(group), Ok(())),
                Some(Err(errno)) => (None, Err(Lacking(errno))),
                None => (None, cgroup::available().map_err(Lacking)),
            };
            Ok(Confined {
                pid: report.pid,
                confinement: Confinement {
                    namespaces: check(report.namespaces),
                    landlock,
                    system_calls: check(report.filter),
                    memory: check(report.memory),
                    limits,
                },
                group,
                listener: listener.zip(path).zip(grants.memory.as_ref()).map(
                    |((socket, path), memory)| Listener {
                        socket,
                        path,
                        number: memory.number,
                    },
                ),
            })
        }
        (Err(error), report) => {
            // It has failed to become the program and ends by itself.
            if let Some((report, _)) = report {
                let _ = waitpid(Some(report.pid), WaitOptions::empty());
            }
            Err(error)
        }
        (Ok(mut child), None) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(io::Error::other("the VMM's process did not report"))
        }
    }
}

/// How many descriptors a VMM may have here.
fn descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile).maximum;
    limit.map_or(MAX_DESCRIPTORS, |limit| limit.min(MAX_DESCRIPTORS))
}

/// Reads what the child says, and what comes along.
fn read_report(report: &UnixStream) -> Option<(Report, Option<OwnedFd>)> {
    let mut bytes = [0; REPORT_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut into = [IoSliceMut::new(&mut bytes)];
        match recvmsg(report, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received.ok()?,
        }
    };
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let listener = descriptors.next().and_then(|mut it| it.next());
    // It is sent, and so received, as a whole.
    let report = (received.bytes == REPORT_LEN).then(|| Report::decode(&bytes))??;
    Some((report, listener))
}

fn check(errno: i32) -> Result<(), Lacking> {
    match errno {
        0 => Ok(()),
        errno => Err(Lacking(Errno::from_raw_os_error(errno))),
    }
}

/// Finds out what holds on this host, by confining a process that does nothing.
///
/// # Errors
///
/// Not even that process can be made.
pub fn examine() -> io::Result<Confinement> {
    let program = ["/bin/true", "/usr/bin/true"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())
        .ok_or(io::ErrorKind::NotFound)?;
    let mut grants = Grants {
        memory: Some(GuestMemory {
            path: program.to_owned(),
            // It wants none.
            number: 0,
            returns: false,
        }),
        ..Grants::default()
    };
    grants.program(program);
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null());
    let confined = spawn(command, Vec::new(), &grants)?;
    waitpid(Some(confined.pid), WaitOptions::empty())?;
    Ok(confined.confinement)
}

impl Grants {
    /// Grants what a program of the system needs to be loaded: itself, the loader and the
    /// folders of libraries.
    pub(crate) fn program(&mut self, program: &Path) {
        const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];
        const LIBRARIES: [&str; 6] = [
            "/lib",
            "/lib64",
            "/usr/lib",
            "/usr/lib64",
            "/etc/ld.so.cache",
            "/etc/ld.so.preload",
        ];
        self.execute.push(program.to_owned());
        self.execute.extend(LOADERS.map(PathBuf::from));
        self.read.extend(LIBRARIES.map(PathBuf::from));
        // A program that was installed elsewhere has its libraries beside it.
        if let Some(prefix) = program.parent().and_then(Path::parent) {
            self.read
                .extend(["lib", "lib64"].map(|name| prefix.join(name)));
        }
        self.write.push("/dev/null".into());
    }
}

#[cfg(test)]
mod tests;
