//! The crate's unsafe code: system calls that have no safe wrapper in rustix,
//! and the few that run between `fork` and `exec`.
//!
//! Each function here is safe to call; what makes it so is said at each block.

#![allow(unsafe_code)]

mod child;
mod kvm;

pub(crate) use child::{ChildSetup, REPORT_LEN, Report, before_exec, id_maps, landlock_version};
pub(crate) use kvm::probe_kvm;

/// Reads the processor's time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux allows it to programs
    // that have not asked for it to be taken away.
    unsafe { std::arch::x86_64::_rdtsc() }
}
