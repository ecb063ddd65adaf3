//! `msb stop`.

use std::time::Duration;

use msb_sdk::{Error, Sandbox, SandboxHandle};

use super::each;
use crate::Failure;
use crate::args::StopArgs;

/// Stops sandboxes and prints their names. As with other tools, one that does not run is fine.
pub(crate) async fn run(args: StopArgs) -> Result<u8, Failure> {
    let grace = Duration::from_secs(args.end.time.into());
    let stop = async |name: &str| end(&Sandbox::get(name).await?, grace, args.end.force).await;
    each(&args.names, stop).await
}

/// Ends a sandbox, in order or at once.
pub(crate) async fn end(
    sandbox: &SandboxHandle,
    grace: Duration,
    force: bool,
) -> Result<(), Failure> {
    let ended = match force {
        true => sandbox.kill().await,
        false => sandbox.stop_within(grace).await,
    };
    match ended {
        Ok(()) | Err(Error::NotRunning { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
