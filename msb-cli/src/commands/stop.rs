//! `msb stop`.

use std::time::Duration;

use msb_sdk::Sandbox;

use crate::args::StopArgs;
use crate::{Failure, terminal};

/// Stops sandboxes and prints their names.
pub(crate) async fn run(args: StopArgs) -> Result<u8, Failure> {
    let grace = Duration::from_secs(args.time.into());
    for name in &args.names {
        Sandbox::get(name).await?.stop_within(grace).await?;
        terminal::say(name)?;
    }
    Ok(0)
}
