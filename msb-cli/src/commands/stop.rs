//! `msb stop`.

use std::time::Duration;

use msb_sdk::{Error, Sandbox};

use super::each;
use crate::Failure;
use crate::args::StopArgs;

/// Stops sandboxes and prints their names. As with other tools, one that does not run is fine.
pub(crate) async fn run(args: StopArgs) -> Result<u8, Failure> {
    let grace = Duration::from_secs(args.time.into());
    let stop = async |name: &str| match Sandbox::get(name).await?.stop_within(grace).await {
        Ok(()) | Err(Error::NotRunning { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    };
    each(&args.names, stop).await
}
