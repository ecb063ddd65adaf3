//! The crate's unsafe code: system calls that have no safe wrapper in rustix,
//! and the few that run between `fork` and `exec`.
//!
//! Each function here is safe to call; what makes it so is said at each block.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

mod kvm;

pub(crate) use kvm::probe_kvm;

/// What a child process does to itself before it becomes the VMM.
#[derive(Clone, Debug)]
pub(crate) struct ChildSetup {
    /// The process that the child must not outlive.
    pub(crate) parent: u32,
    /// Descriptors that stay open across `exec`, under the same numbers.
    pub(crate) inherit: Vec<RawFd>,
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
        // SAFETY: these calls take integers only, and pointers to locals that outlive them.
        unsafe {
            check(libc::setpgid(0, 0))?;
            check(libc::prctl(
                libc::PR_SET_PDEATHSIG,
                libc::SIGKILL as libc::c_ulong,
                0,
                0,
                0,
            ))?;
            // The signal is not sent for a parent that died before the line above.
            if libc::getppid() as u32 != self.parent {
                libc::_exit(127);
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            check(libc::setrlimit(libc::RLIMIT_CORE, &none))?;
            // Marks every descriptor for closing, instead of closing it: std's own
            // pipe, which reports a failed `exec`, has to live until then.
            let marked = libc::syscall(
                libc::SYS_close_range,
                3u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            check(marked as libc::c_int)?;
            for &fd in &self.inherit {
                check(libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
        }
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads the processor's time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux allows it to programs
    // that have not asked for it to be taken away.
    unsafe { std::arch::x86_64::_rdtsc() }
}
