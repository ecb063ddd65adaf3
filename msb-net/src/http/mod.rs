//! HTTP as the gateway reads it.

pub mod path;
