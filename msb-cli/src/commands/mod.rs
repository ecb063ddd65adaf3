//! One file per command.

pub(crate) mod doctor;
pub(crate) mod image;
pub(crate) mod policy;
pub(crate) mod pull;
pub(crate) mod run;
