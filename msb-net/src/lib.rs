#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod addr;
pub mod claim;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
mod name;
pub mod policy;

pub use error::Error;
pub use name::{MAX_NAME, Name};
