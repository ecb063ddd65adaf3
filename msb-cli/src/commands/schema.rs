//! `msb schema`.

use msb_sdk::SandboxSpec;

use crate::{Failure, terminal};

/// Prints the JSON Schema of sandbox files.
pub(crate) fn run() -> Result<u8, Failure> {
    terminal::say(&format!("{:#}", SandboxSpec::schema()))?;
    Ok(0)
}
