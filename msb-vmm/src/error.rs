//! The one error type of the crate, grouped by who is at fault.

use std::io;
use std::path::PathBuf;

use crate::engine::{EngineKind, Isolation};

/// Why a machine could not be described, started, saved or kept running.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // The caller asked for something that cannot be.
    /// A number of processors out of bounds.
    #[error("{value} vcpus: a machine has 1 to {max}")]
    Vcpus {
        /// What was asked for.
        value: u32,
        /// The most there can be.
        max: u8,
    },
    /// An amount of memory out of bounds.
    #[error("{mib} MiB of memory: a machine has {min} MiB to {max} MiB")]
    Memory {
        /// What was asked for, in MiB.
        mib: u64,
        /// The least there can be, in MiB.
        min: u64,
        /// The most there can be, in MiB.
        max: u64,
    },
    /// A console port's name has other characters than it may, or too many.
    #[error("console port name {name:?}: 1 to {max} letters, digits, '.', '-' or '_'")]
    PortName {
        /// The name, cut after 64 characters.
        name: String,
        /// The longest name, in bytes.
        max: usize,
    },
    /// Two console ports have one name.
    #[error("console port {name:?} is given twice")]
    DuplicatePort {
        /// The name.
        name: String,
    },
    /// More devices of a kind than a machine has room for.
    #[error("{count} {what}: a machine has at most {max}")]
    TooMany {
        /// The kind of device.
        what: &'static str,
        /// How many were asked for.
        count: usize,
        /// The most there can be.
        max: usize,
    },
    /// A word of the kernel command line is empty or has blanks or unprintable characters.
    #[error("kernel command line word {word:?}: must be printable ASCII without blanks")]
    Cmdline {
        /// The word, cut after 64 characters.
        word: String,
    },
    /// A network card's address is no card's.
    #[error(
        "network card address {}: it must be that of one receiver",
        colons(mac)
    )]
    Mac {
        /// The address.
        mac: [u8; 6],
    },
    /// A network card's largest packet is out of bounds.
    #[error("an MTU of {mtu}: a network card has {min} to {max}")]
    Mtu {
        /// What was asked for.
        mtu: u16,
        /// The least there can be.
        min: u16,
        /// The most there can be.
        max: u16,
    },
    /// A template needs a port through which the guest says that it is ready.
    #[error("a template needs a machine with a console port")]
    NoPort,
    /// A template is started as a machine it was not made from.
    #[error("the machine differs from the one the template was made of: {what}")]
    OtherMachine {
        /// The part that differs.
        what: &'static str,
    },
    /// There is no snapshot of that name.
    #[error("there is no snapshot {name:?}")]
    NoSnapshot {
        /// The name, cut after 64 characters.
        name: String,
    },
    /// A snapshot of that name exists or is being made.
    #[error("a snapshot {name:?} exists already")]
    SnapshotTaken {
        /// The name.
        name: String,
    },
    /// A name that no snapshot can have.
    #[error("{name:?} is not a name for a snapshot: 1 to {max} letters, digits, '.', '-' or '_'")]
    SnapshotName {
        /// The name, cut after 64 characters.
        name: String,
        /// The longest name, in bytes.
        max: usize,
    },
    /// There are as many snapshots as there may be.
    #[error("there are {max} snapshots already")]
    TooManySnapshots {
        /// The most there can be.
        max: usize,
    },

    /// There is no engine of that name.
    #[error("there is no engine {name:?}: there are krun and qemu")]
    NoSuchEngine {
        /// The name, cut after 64 characters.
        name: String,
    },
    /// The engine cannot do that.
    #[error("the engine {engine} does not support {what}")]
    Unsupported {
        /// The engine.
        engine: EngineKind,
        /// What was asked of it.
        what: &'static str,
    },

    // The host lacks something.
    /// A snapshot is not as it was saved.
    #[error("the snapshot {name:?} is damaged: {reason}")]
    Snapshot {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The engine asked for cannot run here.
    #[error("the engine {engine} cannot run here: {reason}")]
    EngineUnavailable {
        /// The engine.
        engine: EngineKind,
        /// Why.
        reason: String,
    },
    /// Another machine writes to a disk.
    #[error("the disk {} is locked: another machine uses it", path.display())]
    DiskInUse {
        /// The disk's file.
        path: PathBuf,
    },
    /// The engine's program is not installed.
    #[error("{program} is not installed (looked in {searched})")]
    EngineMissing {
        /// The program.
        program: &'static str,
        /// The folders searched.
        searched: String,
    },
    /// No engine reaches the isolation asked for.
    #[error("{required} isolation was asked for, but this host offers {available}: {reason}")]
    Isolation {
        /// What was asked for.
        required: Isolation,
        /// What there is.
        available: Isolation,
        /// Why there is no more.
        reason: String,
    },
    /// A file of the machine cannot be opened.
    #[error("cannot open {what} {}: {source}", path.display())]
    Unreadable {
        /// What the file is: kernel, initramfs, disk.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the template store cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Store {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused something a machine needs.
    #[error("cannot {action}: {source}")]
    Os {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },

    // The VMM misbehaves.
    /// The library that runs the machine refused something.
    #[error("libkrun does not take {call}: {source}")]
    Library {
        /// What it refused.
        call: String,
        /// Why.
        source: io::Error,
    },
    /// The VMM ended before the guest ran.
    #[error("{program} ended early ({status}): {}", if stderr.is_empty() { "it said nothing" } else { stderr.as_str() })]
    ExitedEarly {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// What it said, cut to a few KiB.
        stderr: String,
    },
    /// The VMM's control protocol was not kept.
    #[error("control of the virtual machine failed: {0}")]
    Control(#[from] ControlError),

    // The guest, or the caller's own code, failed.
    /// The guest that was to become a template never got ready.
    #[error("the guest did not get ready to be saved: {source}")]
    NotReady {
        /// What the caller's callback returned.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A breach of QEMU's control protocol (QMP).
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection broke.
    #[error("connection lost while waiting for {waiting_for}")]
    Closed {
        /// What was awaited.
        waiting_for: &'static str,
    },
    /// The VMM did not answer in time.
    #[error("no answer in time while waiting for {waiting_for}")]
    TimedOut {
        /// What was awaited.
        waiting_for: &'static str,
    },
    /// A message is longer than any this crate asks for.
    #[error("a message is longer than {max} bytes")]
    TooLong {
        /// The bound.
        max: usize,
    },
    /// A message is not a JSON object of a known form.
    #[error("a message is malformed: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// A command was refused.
    #[error("{command} was refused: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The VMM's words.
        reason: String,
    },
    /// Saving the machine failed.
    #[error("the machine's state could not be saved: {reason}")]
    Migration {
        /// The VMM's words.
        reason: String,
    },
}

impl Error {
    /// Returns what the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::EngineMissing { .. } => {
                Some("install it: apt-get install --no-install-recommends qemu-system-x86")
            }
            Error::Unreadable {
                what: "kernel" | "initramfs",
                ..
            } => Some("build the guest bundle with `cargo xtask guest`, or point MSB_GUEST at one"),
            Error::Isolation { .. } => {
                Some("use a host with working hardware virtualization, or ask for less isolation")
            }
            Error::EngineUnavailable { .. } => {
                Some("leave the choice of the engine out, or ask for qemu")
            }
            Error::Unreadable { what: "device", .. } => {
                Some("add the user to the group kvm, or ask for the engine qemu")
            }
            Error::Snapshot { .. } => Some("remove it, and make it again"),
            Error::NoSnapshot { .. } => Some("list those that there are: msb snapshot ls"),
            Error::SnapshotTaken { .. } => Some("choose another name, or remove that one first"),
            Error::TooManySnapshots { .. } => Some("remove some: msb snapshot rm"),
            Error::Vcpus { .. } | Error::Memory { .. } => Some("choose a value within the bounds"),
            _ => None,
        }
    }
}

/// A hardware address as it is usually written, and as QEMU takes it.
pub(crate) fn colons(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
