#![doc = include_str!("../README.md")]
//!
//! The crate is blocking: it uses threads inside for parallel layers, and no
//! async runtime. It never reads the home directory or the terminal, and of the
//! environment only `SSL_CERT_FILE`, `SSL_CERT_DIR` and, for docker's
//! credential helpers, `PATH`: everything else it needs is an argument.

#![forbid(unsafe_code)]

pub mod erofs;
#[doc(hidden)]
pub mod fuzzing;
pub mod layer;
pub mod tree;
pub mod unpack;
pub mod vmdk;

mod config;
mod decompress;
mod digest;
mod error;
mod event;
mod export;
mod fetch;
mod image;
mod import;
mod ingest;
mod manifest;
mod options;
mod platform;
mod pull;
mod reference;
mod registry;
mod store;

pub use config::ImageConfig;
pub use digest::Digest;
pub use error::{Error, Result};
pub use event::PullEvent;
pub use image::{Image, Lease};
pub use options::{Credentials, Limits, PullOptions, PullPolicy, Timeouts};
pub use platform::Platform;
pub use reference::Reference;
pub use store::{Holder, Holders, Removed, Store, Unused};
