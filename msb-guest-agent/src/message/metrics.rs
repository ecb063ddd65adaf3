//! Streams: what a guest says of what it uses.
//!
//! All of it is the guest's word: whoever has root there can make it anything. What the host
//! can see for itself is not here.

use serde::{Deserialize, Serialize};

use super::ByteString;

/// What is used in the guest at some moment. Counters run since the guest's kernel was booted,
/// also where that was the boot of a template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMetrics {
    /// Processors that are online.
    pub cpus: u32,
    /// How long they did something, all together, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that the kernel has, in bytes.
    pub memory_total: u64,
    /// What of it programs could still get.
    pub memory_available: u64,
    /// Size of the root file system, in bytes.
    pub root_total: u64,
    /// What of it is taken.
    pub root_used: u64,
    /// Bytes that were read from disks.
    pub disk_read: u64,
    /// Bytes that were written to disks.
    pub disk_written: u64,
    /// Processes, without the kernel's and the agent.
    pub processes: u32,
    /// If they were asked for: those that have used the most processor time, by their ids.
    pub top: Vec<ProcessMetrics>,
}

impl GuestMetrics {
    /// Most processes that are told of.
    pub const MAX_TOP: usize = 256;
    /// Most bytes of a command line that are told: what a terminal shows of it.
    pub const MAX_COMMAND: usize = 128;
}

/// What a process uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMetrics {
    /// Its id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its user's.
    pub uid: u32,
    /// The kernel's letter for what it does: `R` runs, `S` sleeps, `Z` has ended.
    pub state: u8,
    /// Its threads.
    pub threads: u32,
    /// Processor time that it used, in milliseconds.
    pub cpu_ms: u64,
    /// Its resident memory, in bytes.
    pub memory: u64,
    /// Its command line, cut; its name where it has none.
    pub command: ByteString,
}
