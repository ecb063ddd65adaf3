#![doc = include_str!("../README.md")]
//!
//! # Features
//!
//! - `shell`: `shell::Network`, the driver that does with host sockets what the
//!   gateway says, and the frame sources it takes. Off by default: the core needs
//!   neither sockets nor threads.
#![forbid(unsafe_code)]

pub mod addr;
pub mod claim;
pub mod dns;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
pub mod http;
pub mod journal;
mod name;
pub mod policy;
pub mod publish;
pub mod secret;
#[cfg(feature = "shell")]
pub mod shell;

pub use error::Error;
pub use name::{MAX_NAME, Name};
