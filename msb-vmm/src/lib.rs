#![doc = include_str!("../README.md")]
//!
//! # Features
//!
//! - `krun`: links libkrun into the program, so that the krun engine can run. Takes effect
//!   on Linux on x86-64; elsewhere nothing changes.

mod clock;
mod confine;
mod engine;
mod error;
mod machine;
mod probe;
mod snapshot;
mod sys;
mod template;
mod vm;

#[doc(hidden)]
pub mod fuzzing;

pub use confine::{Confinement, Lacking, examine as examine_confinement};
pub use engine::krun::runner_hook;
pub use engine::{Engine, EngineKind, EngineOptions, Isolation};
pub use error::{ControlError, Error};
pub use machine::{
    Card, Disk, DiskFormat, Hold, MAX_DISKS, MAX_MEMORY_MIB, MAX_MTU, MAX_PORT_NAME, MAX_PORTS,
    MAX_VCPUS, MIN_MEMORY_MIB, MIN_MTU, Machine, MemorySize, PortName, TEMPLATE_MAC, Vcpus,
};
pub use probe::{Kvm, KvmFault};
pub use snapshot::{GiveUp, HeldMemory, Listed, Snapshot, SnapshotDraft, Snapshots};
pub use template::{Step, Template, Templates};
pub use vm::{Exit, Vm};

/// The rate of this host's time stamp counter in kHz, for tools that run QEMU themselves.
#[doc(hidden)]
pub fn host_tsc_khz() -> u32 {
    clock::TscRate::measured().khz()
}
