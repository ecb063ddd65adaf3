//! The crate's unsafe code: system calls that have no safe wrapper in rustix,
//! and the few that run between `fork` and `exec`.
//!
//! Each function here is safe to call; what makes it so is said at each block.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod child;
mod kvm;
mod memory;

pub(crate) use child::{
    ChildMemory, ChildSetup, REPORT_LEN, Report, before_exec, id_maps, landlock_version,
};
pub(crate) use kvm::probe_kvm;
pub(crate) use memory::{hand_over, read_memory};

/// Locks all of a file for writing, against everybody who locks any part of it, until the
/// last copy of this descriptor is closed. Returns whether nobody else had.
///
/// QEMU locks parts of its disks in the same way, so that engines keep out of each other's.
pub(crate) fn lock_whole(file: &File) -> io::Result<bool> {
    // SAFETY: the structure is plain integers, for which zeros are valid: from the start to
    // any end, of no process.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open, and the pointer is to a local that outlives the call.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if status == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Reads the processor's time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux allows it to programs
    // that have not asked for it to be taken away.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Makes a system call that takes numbers only, or pointers that are null; for tests of what
/// is refused.
#[cfg(test)]
pub(crate) fn attempt(call: libc::c_long, arguments: [libc::c_long; 5]) -> io::Result<()> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: without pointers the kernel touches no memory of this process; tests make no
    // call that maps or unmaps any.
    match unsafe { libc::syscall(call, a, b, c, d, e) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
