//! `msb kill`.

use msb_sdk::Sandbox;

use super::each;
use crate::Failure;
use crate::args::NamesArgs;

/// Ends sandboxes at once and prints their names.
pub(crate) async fn run(args: NamesArgs) -> Result<u8, Failure> {
    let kill = async |name: &str| Ok(Sandbox::get(name).await?.kill().await?);
    each(&args, kill).await
}
