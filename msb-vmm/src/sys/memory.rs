//! The guest's memory in a VMM: handing it over in place of a file that is opened, and reading
//! it.
//!
//! QEMU insists on opening the file of a memory for writing, although it maps it privately. A
//! filter of system calls holds it there, and it gets a descriptor that can only be read: so
//! a VMM that was taken over can't change what others have mapped.
//!
//! Read: `seccomp_unotify(2)`, `process_vm_readv(2)`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Answers the one who waits at `listener`: who wants to open `path` gets a copy of `file`
/// under the number `as_number`, and `true` is returned; who wants another goes on.
///
/// # Errors
///
/// Whatever the kernel refuses with; `NotFound` where the one who waited does so no more.
pub(crate) fn hand_over(
    listener: &OwnedFd,
    path: &CStr,
    file: BorrowedFd<'_>,
    as_number: RawFd,
) -> io::Result<bool> {
    let listener = listener.as_raw_fd();
    // SAFETY: plain integers, for which zeros are valid.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let receive = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the pointer is to a local of the size that is part of the request's number.
    check(unsafe { libc::ioctl(listener, receive, &raw mut asked) })?;
    let mut answer = libc::seccomp_notif_resp {
        id: asked.id,
        val: as_number.into(),
        error: 0,
        flags: 0,
    };
    let is_wanted = names(&asked, path);
    if is_wanted {
        let given = libc::seccomp_notif_addfd {
            id: asked.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: file.as_raw_fd() as u32,
            newfd: as_number as u32,
            newfd_flags: libc::O_CLOEXEC as u32,
        };
        let add = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
        // SAFETY: as above; the descriptors are open.
        check(unsafe { libc::ioctl(listener, add, &raw const given) })?;
    } else {
        answer.val = 0;
        answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    }
    let send = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(listener, send, &raw const answer) })?;
    Ok(is_wanted)
}

/// Whether `path` is what is to be opened.
fn names(asked: &libc::seccomp_notif, path: &CStr) -> bool {
    let mut bytes = vec![0; path.to_bytes_with_nul().len()];
    let pid = i32::try_from(asked.pid).ok().and_then(Pid::from_raw);
    // What can't be read is not it: it then is not opened either.
    pid.is_some_and(|pid| read_memory(pid, asked.data.args[1], &mut bytes).is_ok())
        && bytes == path.to_bytes_with_nul()
}

/// Fills `buffer` with what the process `pid` has at `address`. Half the work that reading
/// `/proc/PID/mem` is.
///
/// # Errors
///
/// What the kernel refuses with, and `UnexpectedEof` where the process has less.
pub(crate) fn read_memory(pid: Pid, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut read = 0;
    while read < buffer.len() {
        let rest = &mut buffer[read..];
        let here = libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        let there = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(address as usize + read),
            iov_len: rest.len(),
        };
        let pid = pid.as_raw_nonzero().get();
        // SAFETY: `here` is memory that is this function's to write to; `there` is an address
        // in another process, which the kernel checks.
        let count =
            unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => read += count,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
