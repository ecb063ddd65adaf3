#![doc = include_str!("../README.md")]
//!
//! # Parts
//!
//! | type | what it is |
//! |---|---|
//! | [`Sandbox`] | a running guest, and its [`SandboxBuilder`] |
//! | [`SandboxHandle`] | a sandbox by its name, running or not |
//! | [`ExecOptions`], [`ExecHandle`], [`Output`] | a program in the guest |
//! | [`SandboxEvent`], [`SandboxEvents`], [`SandboxWatch`] | what happens to sandboxes |
//! | [`Metrics`], [`MetricsStream`] | what a sandbox uses |
//! | [`Fs`], [`FileReader`], [`FileWriter`], [`DirEntry`] | the guest's files |
//! | [`NetworkPolicy`], [`NetworkEvents`] | what a guest may reach, and what came of it |
//! | [`Secret`] | a value that a guest uses without having it |
//! | [`PublishedPort`] | a port of the guest that the host offers |
//! | [`SnapshotBuilder`], [`Snapshots`] | sandboxes that were saved while they ran |
//! | [`Patch`] | a change to the image's files that a sandbox begins with |
//! | [`policy`] | checking and explaining policies |
//! | [`Images`] | the images of this host |
//! | [`doctor`] | what works on this host |
//! | [`Home`], [`GuestBundle`] | where things lie |
//!
//! # Features
//!
//! - `blocking`: the module `blocking`, the same names for programs without a runtime.
//! - `krun`: links libkrun in, the engine for hosts with hardware virtualization.
#![forbid(unsafe_code)]

/// The examples of the guide to secrets.
#[cfg(doctest)]
#[doc = include_str!("../../docs/secrets.md")]
pub struct GuideToSecrets;

#[cfg(feature = "blocking")]
pub mod blocking;
mod builder;
mod control;
pub mod doctor;
mod error;
mod event;
mod exec;
mod fs;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod home;
mod image;
mod link;
mod logs;
mod machine;
mod metrics;
mod network;
mod patch;
pub mod policy;
mod port;
mod progress;
mod record;
mod sandbox;
mod secret;
mod session;
mod snapshot;
mod socket;
mod spec;
mod state;
mod supervisor;
mod trouble;
mod waiting;
mod watch;

pub use builder::SandboxBuilder;
pub use error::{Error, SecretProblem};
pub use event::{Activity, LifeEvent, SandboxEvent, SandboxEvents};
pub use exec::{ExecEvent, ExecHandle, ExecOptions, ExecStdin, Output};
pub use fs::{
    CopyOptions, CopyReport, DirEntries, DirEntry, FileFault, FileMetadata, FileReader, FileWriter,
    Fs, SkippedEntry, WriteOptions,
};
pub use handle::{ProgramStatus, SandboxHandle, SandboxStatus, Status, TroubleStatus};
pub use home::{GuestBundle, Home};
pub use image::{Images, UnusedImages};
pub use logs::Logs;
pub use metrics::{
    GuestMetrics, HostMetrics, Metrics, MetricsStream, NetworkMetrics, ProcessMetrics,
};
pub use msb_guest_agent::message::{
    ExecError, ExitStatus, FileKind, Resource, Signal, Trouble, TtySize,
};
pub use msb_oci::{Error as ImageError, Image, ImageConfig, PullEvent, PullPolicy, Reference};
pub use msb_vmm::{EngineKind, Isolation};
pub use network::{
    Decision, NetworkActivity, NetworkEvent, NetworkEvents, NetworkLimits, NetworkPolicy, Query,
    Request,
};
pub use patch::Patch;
pub use port::{PortProtocol, PublishedPort};
pub use progress::{Progress, VmStep};
pub use sandbox::{Sandbox, StartReport};
pub use secret::{Secret, SecretSource, SecretSpec};
pub use session::{SessionId, SessionInfo};
pub use snapshot::{SnapshotBuilder, SnapshotInfo, Snapshots};
pub use spec::{SandboxSpec, TlsSpec};
pub use supervisor::hook as supervisor_hook;
pub use watch::SandboxWatch;
