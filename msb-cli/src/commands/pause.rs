//! `msb pause` and `msb resume`.

use msb_sdk::Sandbox;

use super::each;
use crate::Failure;
use crate::args::NamesArgs;

/// Holds sandboxes and prints their names.
pub(crate) async fn pause(args: NamesArgs) -> Result<u8, Failure> {
    let pause = async |name: &str| Ok(Sandbox::get(name).await?.connect().await?.pause().await?);
    each(&args, pause).await
}

/// Lets sandboxes go on and prints their names.
pub(crate) async fn resume(args: NamesArgs) -> Result<u8, Failure> {
    let resume = async |name: &str| Ok(Sandbox::get(name).await?.connect().await?.resume().await?);
    each(&args, resume).await
}
