//! `msb restart`.

use std::time::Duration;

use msb_sdk::Sandbox;

use super::each;
use super::stop::end;
use crate::args::RestartArgs;
use crate::{Failure, secret};

/// Stops sandboxes, if they run, starts them, and prints their names.
pub(crate) async fn run(args: RestartArgs) -> Result<u8, Failure> {
    let grace = Duration::from_secs(args.end.time.into());
    let values = secret::values(&args.secret)?;
    let restart = async |name: &str| {
        let sandbox = Sandbox::get(name).await?;
        // One that could not be started again goes on instead.
        sandbox.check_secrets(values.iter().cloned()).await?;
        end(&sandbox, grace, args.end.force).await?;
        sandbox.start_with(values.iter().cloned()).await?;
        Ok(())
    };
    each(&args.names, restart).await
}
