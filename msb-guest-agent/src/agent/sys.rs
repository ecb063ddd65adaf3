//! The system calls that rustix does not wrap safely: the only unsafe code of
//! the crate.
//!
//! Processes are made with `clone(CLONE_VM | CLONE_VFORK)`: the child borrows
//! the agent's memory until it executes, so starting one does not copy page
//! tables (under software emulation that is most of the cost of `fork`), and
//! it reports failure by writing to that memory.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::message::{Limit, Resource};

/// Room for [`child`] and the few functions it calls.
const CHILD_STACK: usize = 64 * 1024;

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of `include/uapi/linux/random.h`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// A process to be started, all decisions made.
pub(super) struct Launch<'a> {
    /// Tried in this order; the first that executes wins.
    pub(super) programs: &'a [CString],
    pub(super) argv: &'a [CString],
    pub(super) env: &'a [CString],
    pub(super) cwd: &'a CString,
    /// Become descriptors 0, 1 and 2.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// Make descriptor 0 the controlling terminal.
    pub(super) terminal: bool,
    /// To become; `None` when the agent runs as that user already.
    pub(super) ids: Option<Ids<'a>>,
    /// Bounds on resources.
    pub(super) limits: &'a [Limit],
    /// The list of processes of the cgroup to join.
    pub(super) group: Option<BorrowedFd<'a>>,
}

/// Whom a process runs as.
#[derive(Clone, Copy)]
pub(super) struct Ids<'a> {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: &'a [u32],
}

/// What a started process could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Clone,
    Session,
    Terminal,
    Descriptors,
    Workdir,
    Limits,
    Identity,
    Execute,
}

/// The parts of [`Launch`] as the child uses them: no allocation, no library
/// call that could take a lock.
struct ChildPlan {
    programs: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: *const c_char,
    stdio: [RawFd; 3],
    terminal: bool,
    ids: Option<(u32, u32, *const u32, usize)>,
    limits: Vec<(libc::__rlimit_resource_t, libc::rlimit)>,
    group: Option<RawFd>,
    failure: Option<(Step, i32)>,
}

/// Starts a process, returning once it executes.
///
/// It leads its own session, has default signal dispositions and an empty
/// signal mask.
pub(super) fn launch(launch: &Launch<'_>) -> Result<i32, (Step, i32)> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        let strings = strings.iter().map(|string| string.as_ptr());
        strings.chain([ptr::null()]).collect()
    };
    let mut plan = ChildPlan {
        programs: launch.programs.iter().map(|path| path.as_ptr()).collect(),
        argv: pointers(launch.argv),
        env: pointers(launch.env),
        cwd: launch.cwd.as_ptr(),
        stdio: launch.stdio.map(|fd| fd.as_raw_fd()),
        terminal: launch.terminal,
        ids: launch
            .ids
            .map(|ids| (ids.uid, ids.gid, ids.groups.as_ptr(), ids.groups.len())),
        limits: launch.limits.iter().map(limit).collect(),
        group: launch.group.map(|group| group.as_raw_fd()),
        failure: None,
    };
    // u128 for the 16-byte alignment that the ABI asks of a stack.
    let mut stack = vec![0u128; CHILD_STACK / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack grows down from its one-past-the-end address and is as
    // large as `child` needs; `plan` and everything it points to outlive the
    // call, because CLONE_VFORK suspends this thread until the child has
    // executed or exited. The child touches nothing but `plan`.
    let pid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            (&raw mut plan).cast(),
        )
    };
    if pid < 0 {
        return Err((Step::Clone, last_errno()));
    }
    // SAFETY: the child wrote it, if at all, before this thread went on; the
    // volatile read keeps the compiler from assuming it still is `None`.
    match unsafe { ptr::read_volatile(&raw const plan.failure) } {
        None => Ok(pid),
        Some(failure) => {
            // It has exited; nobody else is to hear of it.
            let mut status = 0;
            // SAFETY: `status` is a valid place for the result.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            Err(failure)
        }
    }
}

extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `launch` passes a pointer to its plan and is suspended, so this
    // is the only reference.
    let plan = unsafe { &mut *plan.cast::<ChildPlan>() };
    // SAFETY: all pointers of the plan are valid as `launch` says.
    let failure = unsafe { become_program(plan) };
    plan.failure = Some(failure);
    // SAFETY: ends this process only and runs no handlers.
    unsafe { libc::_exit(127) }
}

/// Does what is to be done between clone and exec; returns only on failure.
///
/// # Safety
/// Only in a fresh child, with valid pointers in `plan`.
unsafe fn become_program(plan: &ChildPlan) -> (Step, i32) {
    macro_rules! attempt {
        ($step:expr, $call:expr) => {
            if $call < 0 {
                return ($step, last_errno());
            }
        };
    }
    // SAFETY: plain system calls on this process. The raw calls for the ids
    // are deliberate: glibc's would change the ids of the agent's threads.
    unsafe {
        if let Some(group) = plan.group {
            // One that can't join is only less well looked after.
            libc::write(group, c"0".as_ptr().cast(), 1);
        }
        attempt!(Step::Session, libc::setsid());
        for (number, fd) in plan.stdio.into_iter().enumerate() {
            attempt!(Step::Descriptors, libc::dup2(fd, number as c_int));
        }
        if plan.terminal {
            attempt!(Step::Terminal, libc::ioctl(0, libc::TIOCSCTTY, 0));
        }
        attempt!(Step::Workdir, libc::chdir(plan.cwd));
        for (resource, limit) in &plan.limits {
            attempt!(Step::Limits, libc::setrlimit(*resource, limit));
        }
        if let Some((uid, gid, groups, count)) = plan.ids {
            let id = |call, id: u32| libc::syscall(call, id, id, id);
            attempt!(
                Step::Identity,
                libc::syscall(libc::SYS_setgroups, count, groups)
            );
            attempt!(Step::Identity, id(libc::SYS_setresgid, gid));
            attempt!(Step::Identity, id(libc::SYS_setresuid, uid));
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGPIPE, &raw const default, ptr::null_mut());

        let mut denied = false;
        for program in &plan.programs {
            libc::execve(*program, plan.argv.as_ptr(), plan.env.as_ptr());
            match last_errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                errno => return (Step::Execute, errno),
            }
        }
        let errno = if denied { libc::EACCES } else { libc::ENOENT };
        (Step::Execute, errno)
    }
}

/// A bound as the kernel takes it.
fn limit(limit: &Limit) -> (libc::__rlimit_resource_t, libc::rlimit) {
    let resource = match limit.resource {
        Resource::CpuTime => libc::RLIMIT_CPU,
        Resource::AddressSpace => libc::RLIMIT_AS,
        Resource::CoreFile => libc::RLIMIT_CORE,
        Resource::FileSize => libc::RLIMIT_FSIZE,
        Resource::Descriptors => libc::RLIMIT_NOFILE,
        Resource::Processes => libc::RLIMIT_NPROC,
        Resource::Stack => libc::RLIMIT_STACK,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
    };
    let value = |bound: Option<u64>| bound.unwrap_or(libc::RLIM_INFINITY);
    let limit = libc::rlimit {
        rlim_cur: value(limit.soft),
        rlim_max: value(limit.hard),
    };
    (resource, limit)
}

/// Gives this thread the file rights of a user, and of nobody else, for the rest of its life.
pub(super) fn assume_file_identity(ids: Ids<'_>) -> io::Result<()> {
    // SAFETY: the pointer is valid for as many groups as are said. The raw call is
    // deliberate: the C library's would change the groups of all threads. The other two
    // change this thread only, in the library, too; they say what was before, and that is
    // how it is seen whether they did.
    unsafe {
        let (count, groups) = (ids.groups.len(), ids.groups.as_ptr());
        if libc::syscall(libc::SYS_setgroups, count, groups) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::setfsgid(ids.gid);
        libc::setfsuid(ids.uid);
        let now = (libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX));
        if (now.0 as u32, now.1 as u32) != (ids.gid, ids.uid) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    Ok(())
}

/// Changes the permissions of what a descriptor that was opened with `O_PATH` stands for.
pub(super) fn set_permissions(file: BorrowedFd<'_>, permissions: u32) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is a string with its end, and the call takes no other pointer.
    let result = unsafe {
        let path = c"".as_ptr();
        libc::syscall(
            libc::SYS_fchmodat2,
            file.as_raw_fd(),
            path,
            permissions,
            flags,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Blocks `SIGCHLD` for this thread and makes a descriptor that becomes
/// readable when a child ends.
pub(super) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before use; the descriptor
    // is new and owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &raw const set,
            ptr::null_mut(),
        ))?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        Ok(OwnedFd::from_raw_fd(check(fd)?))
    }
}

/// Gives every signal its default disposition, but for `SIGPIPE`, which this
/// program ignores: what a parent ignored, commands would ignore, too.
pub(super) fn default_signals() {
    // The kernel's `struct sigaction`: all zero is the default action. Not
    // through the C library, which does not let go of the first real-time
    // signals.
    let default = [0u64; 4];
    for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: `default` is as large as the kernel's structure. Failure
        // (SIGKILL, SIGSTOP) changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                8,
            )
        };
    }
}

/// Sends a signal of any number to a process, or to a group when `pid` is
/// negative.
pub(super) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Mixes `bytes` into the kernel's entropy pool, credits them in full and
/// reseeds the generator from the pool at once.
pub(super) fn reseed(random: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // struct rand_pool_info { int entropy_count; int buf_size; u32 buf[]; }
    let mut info = vec![0u32; 2 + bytes.len().div_ceil(4)];
    info[0] = bytes.len() as u32 * 8;
    info[1] = bytes.len() as u32;
    for (word, chunk) in info[2..].iter_mut().zip(bytes.chunks(4)) {
        let mut four = [0; 4];
        four[..chunk.len()].copy_from_slice(chunk);
        *word = u32::from_ne_bytes(four);
    }
    // SAFETY: `info` is laid out as the kernel expects and holds `buf_size`
    // bytes of data; the second call takes no argument.
    unsafe {
        check(libc::ioctl(
            random.as_raw_fd(),
            RNDADDENTROPY,
            info.as_ptr(),
        ))?;
        check(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG))?;
    }
    info.fill(0);
    Ok(())
}

/// Gives a network card another address. Any socket will do.
pub(super) fn set_hardware_address(
    socket: BorrowedFd<'_>,
    card: &str,
    mac: [u8; 6],
) -> io::Result<()> {
    // SAFETY: all zero is an ifreq. Its name stays NUL-terminated, because the last
    // byte is not written; the call reads it and an address of six bytes.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        let room = request.ifr_name.len() - 1;
        for (place, byte) in request.ifr_name[..room].iter_mut().zip(card.bytes()) {
            *place = byte as c_char;
        }
        let mut address: libc::sockaddr = std::mem::zeroed();
        address.sa_family = libc::ARPHRD_ETHER;
        for (place, byte) in address.sa_data.iter_mut().zip(mac) {
            *place = byte as c_char;
        }
        request.ifr_ifru.ifru_hwaddr = address;
        let result = libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request);
        check(result).map(drop)
    }
}

/// Brings the loopback interface up; the kernel gives it its addresses.
pub(super) fn loopback_up() -> io::Result<()> {
    // SAFETY: the socket is new and owned here; `request` is a zeroed ifreq
    // whose name is NUL-terminated and whose flags are set.
    unsafe {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, kind, 0))?);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as c_char;
        request.ifr_name[1] = b'o' as c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        let result = libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request);
        check(result).map(drop)
    }
}
