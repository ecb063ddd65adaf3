#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! | module | what it owns |
//! |---|---|
//! | [`wire`] | frames: cutting the byte stream into bounded pieces |
//! | [`message`] | the typed messages inside frames |
//! | [`endpoint`] | streams and flow control at the two ends, without I/O |
//! | [`record`] | what entries of folders and trees look like in the bytes of a stream |
//! | [`setup`] | the host's side of the setup phase, over blocking I/O |
//! | [`initramfs`] | the archive that the guest's kernel starts the agent from |
//!
//! # Features
//!
//! - `tree`: packing and unpacking of folders (`tree` module), for both sides; Unix only.
//! - `agent`: the agent itself (`agent` module and the binary); Linux only.
//!   Hosts do not want it.

#[cfg(feature = "agent")]
pub mod agent;
pub mod endpoint;
pub mod error;
pub mod initramfs;
pub mod message;
pub mod record;
pub mod setup;
#[cfg(feature = "tree")]
pub mod tree;
pub mod wire;

#[doc(hidden)]
pub mod fuzzing;

pub use error::Error;
