//! `msb start`.

use msb_sdk::Sandbox;

use crate::args::StartArgs;
use crate::{Failure, secret, terminal};

/// Starts sandboxes and prints their names.
pub(crate) async fn run(args: StartArgs) -> Result<u8, Failure> {
    let values = secret::values(&args.secret)?;
    for name in &args.names {
        let values = values.iter().cloned();
        Sandbox::get(name).await?.start_with(values).await?;
        terminal::say(name)?;
    }
    Ok(0)
}
