//! The system calls that a VMM may make.
//!
//! A list of what is allowed; everything else fails with `EPERM`, so that a VMM of another
//! version, which tries something newer first, goes on with something older. What is not
//! there: sockets to anywhere, new processes, signals to others, tracing, mounting, keys,
//! `io_uring` (whose operations no list sees). The first program is executed under this list,
//! further ones are kept from it by Landlock and by QEMU's own filter.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// Calls that are allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Bytes, through descriptors there are.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_copy_file_range,
    // Files. Which, says Landlock.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_ioctl,
    libc::SYS_umask,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_membarrier,
    // Threads of its own.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_execve,
    // What it is, and what time it is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgrp,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
    libc::SYS_times,
    libc::SYS_time,
    libc::SYS_gettimeofday,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    // QEMU adds a filter of its own.
    libc::SYS_seccomp,
];

/// Compiles the list: filters to be taken on in this order.
pub(super) fn filters() -> [BpfProgram; 2] {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // `clone` makes threads only.
    rules.insert(libc::SYS_clone, vec![thread()]);
    // It does not get rid of the wish to die with its parent.
    let wish = libc::PR_SET_PDEATHSIG as u64;
    rules.insert(libc::SYS_prctl, vec![argument(0, SeccompCmpOp::Ne, wish)]);
    // Limits are asked for and set for itself only, not for others of the same user.
    rules.insert(libc::SYS_prlimit64, vec![argument(0, SeccompCmpOp::Eq, 0)]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let list = compile(rules, refused, SeccompAction::Allow);
    // The flags of `clone3` are in memory, where no filter sees them: C libraries take
    // `clone` where there is none. Of two refusals the later filter's is told.
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    [list, compile(clone3, SeccompAction::Allow, missing)]
}

/// The filters about the guest's memory, where that is a file that others have mapped, too.
#[derive(Debug)]
pub(crate) struct MemoryFilters {
    /// Asks the listener that it makes before a file is opened for reading and writing
    /// without closing it at `exec`: as QEMU opens the memory, and nothing else.
    pub(crate) ask: BpfProgram,
    /// Where the memory was handed over: what punches holes into it is told that it did.
    pub(crate) handed: BpfProgram,
    /// Where it was not: nothing punches holes.
    pub(crate) opened: BpfProgram,
}

/// Compiles them for a memory that has the descriptor `memory`.
///
/// QEMU gives back what a guest does not need by punching a hole into the file first and
/// dropping its own pages then. Only the second is wanted of a file that is mapped
/// copy-on-write.
pub(super) fn memory_filters(memory: RawFd) -> MemoryFilters {
    let refused = |rules, errno: i32| {
        let rules = BTreeMap::from([(libc::SYS_fallocate, rules)]);
        let action = SeccompAction::Errno(errno as u32);
        compile(rules, SeccompAction::Allow, action)
    };
    let of_memory = argument(0, SeccompCmpOp::Eq, memory as u64);
    MemoryFilters {
        ask: ask_about_opening(),
        handed: refused(vec![of_memory], 0),
        opened: refused(Vec::new(), libc::EOPNOTSUPP),
    }
}

/// `seccompiler` has no such action.
fn ask_about_opening() -> BpfProgram {
    const ARCH_X86_64: u32 = 0xc000_003e;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // Places in `struct seccomp_data`; of the third argument the lower half.
    const NUMBER: u32 = 0;
    const ARCH: u32 = 4;
    const FLAGS: u32 = 32;
    let step = |code: u32, skip_if_not: u8, k: u32| sock_filter {
        code: code as u16,
        jt: 0,
        jf: skip_if_not,
        k,
    };
    vec![
        step(LOAD, 0, ARCH),
        step(EQUAL, 6, ARCH_X86_64),
        step(LOAD, 0, NUMBER),
        step(EQUAL, 4, libc::SYS_openat as u32),
        step(LOAD, 0, FLAGS),
        step(AND, 0, (libc::O_ACCMODE | libc::O_CLOEXEC) as u32),
        step(EQUAL, 1, libc::O_RDWR as u32),
        step(RETURN, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> BpfProgram {
    SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .expect("the list is well-formed")
}

fn thread() -> SeccompRule {
    let flag = libc::CLONE_THREAD as u64;
    when(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(flag),
        flag,
    )
}

/// Where an argument is an `int`, of which the kernel takes the lower half.
fn argument(index: u8, is: SeccompCmpOp, value: u64) -> SeccompRule {
    when(index, SeccompCmpArgLen::Dword, is, value)
}

fn when(index: u8, length: SeccompCmpArgLen, is: SeccompCmpOp, value: u64) -> SeccompRule {
    let condition = SeccompCondition::new(index, length, is, value);
    SeccompRule::new(vec![condition.expect("the argument exists")])
        .expect("a rule with a condition is well-formed")
}
