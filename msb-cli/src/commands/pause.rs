//! `msb pause` and `msb resume`.

use msb_sdk::Sandbox;

use crate::args::NamesArgs;
use crate::{Failure, terminal};

/// Holds sandboxes and prints their names.
pub(crate) async fn pause(args: NamesArgs) -> Result<u8, Failure> {
    for name in &args.names {
        Sandbox::get(name).await?.connect().await?.pause().await?;
        terminal::say(name)?;
    }
    Ok(0)
}

/// Lets sandboxes go on and prints their names.
pub(crate) async fn resume(args: NamesArgs) -> Result<u8, Failure> {
    for name in &args.names {
        Sandbox::get(name).await?.connect().await?.resume().await?;
        terminal::say(name)?;
    }
    Ok(0)
}
