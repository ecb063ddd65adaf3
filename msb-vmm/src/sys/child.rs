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

/// The namespaces of a VMM, but for that of users.
const SPACES: libc::c_int = libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// What becomes of the VMM's process, in native byte order.
pub(crate) const REPORT_LEN: usize = 16;

/// What the child does to itself.
#[derive(Debug)]
pub(crate) struct ChildSetup {
    /// Descriptors that stay open across `exec`, under the same numbers.
    pub(crate) inherit: Vec<RawFd>,
    /// Where the [`Report`] goes.
    pub(crate) report: RawFd,
    /// The end of a pipe whose other end, here `parents_alive`, only the parent keeps: what
    /// reads as ended has outlived its parent.
    pub(crate) alive: RawFd,
    pub(crate) parents_alive: RawFd,
    /// Landlock rules, or -1.
    pub(crate) ruleset: RawFd,
    pub(crate) filters: [BpfProgram; 2],
    /// How many descriptors it may have.
    pub(crate) descriptors: u64,
    /// How long a file may get that it writes, in bytes.
    pub(crate) largest_file: u64,
    /// Whether it goes without huge pages.
    pub(crate) small_pages: bool,
    /// Lines for `uid_map` and `gid_map`: the child stays who it is.
    pub(crate) ids: [String; 2],
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
        let landlock = self.restrict();
        let filter = self.filter();
        self.send([pid, namespaces, landlock, filter])
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
    fn restrict(&self) -> i32 {
        if self.ruleset < 0 {
            return 0;
        }
        // SAFETY: takes integers only.
        match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.ruleset, 0u32) } {
            0 => 0,
            _ => last_error(),
        }
    }

    /// Takes on the filters of system calls; returns the error number.
    fn filter(&self) -> i32 {
        for program in &self.filters {
            let program = Program {
                len: program.len() as libc::c_ushort,
                filter: program.as_ptr(),
            };
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            // SAFETY: `program` describes memory of `self` that outlives the call; the
            // kernel checks the instructions.
            let taken = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0u32, &raw const program) };
            if taken != 0 {
                return last_error();
            }
        }
        0
    }

    fn send(&self, report: [i32; 4]) -> io::Result<()> {
        let bytes = size_of_val(&report);
        // SAFETY: the pointer is to `bytes` bytes that outlive the call.
        let written = unsafe { libc::write(self.report, report.as_ptr().cast(), bytes) };
        if written == bytes as isize {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
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
