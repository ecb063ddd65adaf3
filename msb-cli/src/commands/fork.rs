//! `msb fork`.

use msb_sdk::Sandbox;

use crate::args::ForkArgs;
use crate::{Failure, secret, terminal};

/// Forks a sandbox and prints the names of the forks.
pub(crate) async fn run(args: ForkArgs) -> Result<u8, Failure> {
    let sandbox = Sandbox::get(&args.name).await?.connect().await?;
    let values = secret::values(&args.secret)?;
    for fork in sandbox
        .fork_detached_with(args.count.into(), values)
        .await?
    {
        terminal::say(&fork.spec().name)?;
    }
    Ok(0)
}
