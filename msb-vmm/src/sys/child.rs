//! What a child process does to itself before it becomes the VMM: system calls between
//! `fork` and `exec`, nothing else.
//!
//! ```text
//! parent ── fork ──► middle: namespaces ── clone(CLONE_PARENT) ──► child ── exec ──► VMM
//!                      └─ ends                  confines itself ──┘
//! ```
//!
//! A process cannot move into a new PID namespace, only its children are born there. So the
//! process that `fork` made makes another, which has the same parent, and ends. Where the
//! host allows no namespaces there is no middle.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Pid;
use seccompiler::{BpfProgram, sock_filter};

use crate::confine::MemoryFilters;

/// The namespaces of a VMM, but for that of users.
const SPACES: libc::c_int = libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// What becomes of the VMM's process, in native byte order.
pub(crate) const REPORT_LEN: usize = 20;

/// What the child does to itself.
#[derive(Debug)]
pub(crate) struct ChildSetup {
    /// Descriptors that stay open across `exec`, under the same numbers.
    pub(crate) inherit: Vec<RawFd>,
    /// A socket to where the [`Report`] goes, with the listener if there is one.
    pub(crate) report: RawFd,
    /// The end of a pipe whose other end, here `parents_alive`, only the parent keeps: what
    /// reads as ended has outlived its parent.
    pub(crate) alive: RawFd,
    pub(crate) parents_alive: RawFd,
    /// Landlock rules, or -1.
    pub(crate) ruleset: RawFd,
    pub(crate) filters: [BpfProgram; 2],
    pub(crate) memory: Option<ChildMemory>,
    /// How many descriptors it may have.
    pub(crate) descriptors: u64,
    /// How long a file may get that it writes, in bytes.
    pub(crate) largest_file: u64,
    /// Whether it goes without huge pages.
    pub(crate) small_pages: bool,
    /// Lines for `uid_map` and `gid_map`: the child stays who it is.
    pub(crate) ids: [String; 2],
}

/// How the child comes to the guest's memory, where that is a file that others have mapped,
/// too: what it opens is handed over by its parent, and can only be read. On a host that
/// can't do that it opens the file.
#[derive(Debug)]
pub(crate) struct ChildMemory {
    pub(crate) filters: MemoryFilters,
    /// Whether its parent can do that.
    pub(crate) is_handed: bool,
    /// Landlock rules that allow it to open the file, or -1.
    pub(crate) ruleset: RawFd,
    /// Whether it gives back what the guest does not need, which the file must not notice.
    pub(crate) returns: bool,
}

/// What the child says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Its process id, as its parent sees it.
    pub(crate) pid: Pid,
    /// Error numbers, 0 for what was done.
    pub(crate) namespaces: i32,
    pub(crate) landlock: i32,
    pub(crate) filter: i32,
    pub(crate) memory: i32,
}

impl Report {
    pub(crate) fn decode(bytes: &[u8; REPORT_LEN]) -> Option<Report> {
        let mut words = bytes
            .chunks_exact(4)
            .map(|word| i32::from_ne_bytes(word.try_into().unwrap_or_default()));
        Some(Report {
            pid: Pid::from_raw(words.next()?)?,
            namespaces: words.next()?,
            landlock: words.next()?,
            filter: words.next()?,
            memory: words.next()?,
        })
    }
}

/// Returns the maps that keep this process's user and group what they are.
pub(crate) fn id_maps() -> [String; 2] {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    [format!("{uid} {uid} 1"), format!("{gid} {gid} 1")]
}

/// Returns the version of Landlock's interface; 0 when the kernel has none, or has it
/// switched off.
pub(crate) fn landlock_version() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no attributes and makes nothing.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Makes `command` apply `setup` in the child, between `fork` and `exec`.
pub(crate) fn before_exec(command: &mut Command, setup: ChildSetup) {
    let hook = move || setup.apply();
    // SAFETY: the hook makes system calls only: it neither allocates nor takes
    // locks, so it may run after `fork` in a process that had other threads.
    unsafe { command.pre_exec(hook) };
}

impl ChildSetup {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: closes a descriptor of this process that nothing else here uses.
        unsafe { libc::close(self.parents_alive) };
        let (pid, namespaces) = self.separate()?;
        self.follow_parent()?;
        limit(libc::RLIMIT_CORE, 0)?;
        limit(libc::RLIMIT_NOFILE, self.descriptors)?;
        limit(libc::RLIMIT_FSIZE, self.largest_file)?;
        // SAFETY: takes integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        if self.small_pages {
            // A kernel without huge pages refuses.
            // SAFETY: takes integers only.
            unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        }
        drop_capabilities()?;
        self.keep_descriptors()?;
        let (listener, memory) = self.listen();
        let landlock = self.restrict(listener < 0);
        let filter = self.filter();
        self.keep_holes_out(listener < 0)?;
        self.send([pid, namespaces, landlock, filter, memory], listener)
    }

    /// Makes what its parent hands the memory over by; returns the error number.
    fn listen(&self) -> (RawFd, i32) {
        let Some(memory) = &self.memory else {
            return (-1, 0);
        };
        if !memory.is_handed {
            return (-1, libc::EPERM);
        }
        match take_on(&memory.filters.ask, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER) {
            Ok(listener) => (listener, 0),
            Err(errno) => (-1, errno),
        }
    }

    /// Takes on the filter that keeps the file of the memory as it is.
    fn keep_holes_out(&self, opened: bool) -> io::Result<()> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let filters = &memory.filters;
        let filter = if opened {
            &filters.opened
        } else {
            &filters.handed
        };
        match take_on(filter, 0) {
            Err(errno) if memory.returns => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    /// Goes into namespaces of its own. Returns the process id that the parent sees, and
    /// the error number of what did not work.
    fn separate(&self) -> io::Result<(i32, i32)> {
        // SAFETY: these calls take integers only.
        unsafe {
            if libc::unshare(libc::CLONE_NEWUSER | SPACES) == 0 {
                // A host may allow the namespaces and nothing in them. Without names the
                // user and the group still are the same, and reach the same files.
                let _ = self.map_ids();
                return self.be_born();
            }
            let refused = last_error();
            // Root can do without a namespace of users where those are not allowed.
            if libc::unshare(SPACES) == 0 {
                return self.be_born();
            }
            Ok((libc::getpid(), refused))
        }
    }

    fn map_ids(&self) -> io::Result<()> {
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", self.ids[0].as_bytes())?;
        write_file(c"/proc/self/gid_map", self.ids[1].as_bytes())
    }

    /// Makes the process that is the first of its namespace, and ends in favour of it.
    fn be_born(&self) -> io::Result<(i32, i32)> {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for two descriptors. `clone` without a stack of its own
        // and without shared memory is `fork`; what follows in the child are system calls
        // on locals.
        unsafe {
            check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
            let flags = libc::CLONE_PARENT | libc::SIGCHLD;
            let child = libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize);
            let mut pid = (child as i32).to_ne_bytes();
            match child {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    // Or else the read does not end with the middle.
                    libc::close(ends[1]);
                    // Only the middle knows what the parent calls its child.
                    let read = libc::read(ends[0], pid.as_mut_ptr().cast(), pid.len());
                    if read != pid.len() as isize {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    libc::close(ends[0]);
                    Ok((i32::from_ne_bytes(pid), 0))
                }
                _ => {
                    let written = libc::write(ends[1], pid.as_ptr().cast(), pid.len());
                    libc::_exit(i32::from(written != pid.len() as isize))
                }
            }
        }
    }

    /// Dies with the parent, also if that has died before this.
    fn follow_parent(&self) -> io::Result<()> {
        // SAFETY: takes integers, and a pointer to a local that outlives the call.
        unsafe {
            check(libc::setpgid(0, 0))?;
            let kill = libc::SIGKILL as libc::c_ulong;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, kill, 0, 0, 0))?;
            let mut parent = libc::pollfd {
                fd: self.alive,
                events: libc::POLLIN,
                revents: 0,
            };
            check(libc::poll(&mut parent, 1, 0))?;
            if parent.revents & libc::POLLHUP != 0 {
                libc::_exit(127);
            }
        }
        Ok(())
    }

    /// Marks every descriptor for closing, instead of closing it: std's own pipe, which
    /// reports a failed `exec`, has to live until then.
    fn keep_descriptors(&self) -> io::Result<()> {
        let cloexec = libc::CLOSE_RANGE_CLOEXEC;
        // SAFETY: takes integers only.
        unsafe {
            let marked = libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, cloexec);
            check(marked as libc::c_int)?;
            for &fd in &self.inherit {
                check(libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
        }
        Ok(())
    }

    /// Takes on the Landlock rules; returns the error number.
    fn restrict(&self, opens_memory: bool) -> i32 {
        let ruleset = match &self.memory {
            Some(memory) if opens_memory => memory.ruleset,
            _ => self.ruleset,
        };
        if ruleset < 0 {
            return 0;
        }
        // SAFETY: takes integers only.
        match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0u32) } {
            0 => 0,
            _ => last_error(),
        }
    }

    /// Takes on the filters of system calls; returns the error number.
    fn filter(&self) -> i32 {
        let taken = self.filters.iter().map(|filter| take_on(filter, 0));
        taken.filter_map(Result::err).next().unwrap_or(0)
    }

    /// Sends the report, and the listener if there is one.
    fn send(&self, report: [i32; 5], listener: RawFd) -> io::Result<()> {
        let mut bytes = libc::iovec {
            iov_base: (&raw const report).cast_mut().cast(),
            iov_len: size_of_val(&report),
        };
        // More than one descriptor takes, and aligned.
        let mut control = [0u64; 8];
        // SAFETY: zeros are valid for these plain structures. The pointers are to locals that
        // outlive the call, and `control` is larger than one header with one descriptor.
        unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut bytes;
            message.msg_iovlen = 1;
            if listener >= 0 {
                let size = size_of::<RawFd>() as u32;
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(size) as usize;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
                libc::CMSG_DATA(header)
                    .cast::<RawFd>()
                    .write_unaligned(listener);
            }
            let sent = libc::sendmsg(self.report, &raw const message, libc::MSG_NOSIGNAL);
            if sent == size_of_val(&report) as isize {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        }
    }
}

/// Takes on a filter of system calls; returns what the kernel does, or the error number.
fn take_on(program: &BpfProgram, flags: libc::c_ulong) -> Result<RawFd, i32> {
    let program = Program {
        len: program.len() as libc::c_ushort,
        filter: program.as_ptr(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: `program` describes memory of the caller's that outlives the call; the kernel
    // checks the instructions.
    let taken = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    if taken < 0 {
        Err(last_error())
    } else {
        Ok(taken as RawFd)
    }
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const sock_filter,
}

/// Sets a limit, unless there is a lower one: only root could raise that.
fn limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: the pointers are to a local that outlives the calls.
    unsafe {
        check(libc::getrlimit(resource, &raw mut limit))?;
        limit.rlim_max = limit.rlim_max.min(most);
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(resource, &raw const limit))
    }
}

/// Gives up all capabilities, and what would give them back to root at `exec`.
fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const NO_ROOT: libc::c_ulong = 0x3; // SECBIT_NOROOT and its lock
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: both pointers are to locals of the sizes that version 3 asks for.
    unsafe {
        // Without this right there are no capabilities to give up.
        let _ = libc::prctl(libc::PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0);
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) as libc::c_int)
    }
}

fn write_file(path: &std::ffi::CStr, content: &[u8]) -> io::Result<()> {
    // SAFETY: pointers are to memory that outlives the calls.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(file)?;
        let written = libc::write(file, content.as_ptr().cast(), content.len());
        libc::close(file);
        if written == content.len() as isize {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn last_error() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who lets a user have little also lets the user's VMMs have little, and no less.
    #[test]
    fn a_limit_that_is_lower_already_stays() {
        limit(libc::RLIMIT_CORE, 0).unwrap();
        limit(libc::RLIMIT_CORE, 4096).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    }
}
