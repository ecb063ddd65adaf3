#![doc = include_str!("../README.md")]

mod clock;
mod confine;
mod engine;
mod error;
mod machine;
mod probe;
mod sys;
mod template;
mod vm;

#[doc(hidden)]
pub mod fuzzing;

pub use confine::{Confinement, Lacking, examine as examine_confinement};
pub use engine::{Engine, EngineKind, EngineOptions, Isolation};
pub use error::{ControlError, Error};
pub use machine::{
    Card, Disk, DiskFormat, MAX_DISKS, MAX_MEMORY_MIB, MAX_MTU, MAX_PORT_NAME, MAX_PORTS,
    MAX_VCPUS, MIN_MEMORY_MIB, MIN_MTU, Machine, MemorySize, PortName, TEMPLATE_MAC, Vcpus,
};
pub use probe::{Kvm, KvmFault};
pub use template::{Step, Template, Templates};
pub use vm::{Exit, Vm};
