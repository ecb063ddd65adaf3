//! `msb start`.

use msb_sdk::Sandbox;

use crate::args::NamesArgs;
use crate::{Failure, terminal};

/// Starts sandboxes and prints their names.
pub(crate) async fn run(args: NamesArgs) -> Result<u8, Failure> {
    for name in &args.names {
        Sandbox::get(name).await?.start().await?;
        terminal::say(name)?;
    }
    Ok(0)
}
