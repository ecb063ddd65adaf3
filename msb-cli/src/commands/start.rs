//! `msb start`.

use msb_sdk::{Error, Sandbox};

use super::each;
use crate::args::StartArgs;
use crate::{Failure, secret};

/// Starts sandboxes and prints their names. As with other tools, one that runs is fine.
pub(crate) async fn run(args: StartArgs) -> Result<u8, Failure> {
    let values = secret::values(&args.secret)?;
    let start = async |name: &str| {
        let sandbox = Sandbox::get(name).await?;
        match sandbox.start_with(values.iter().cloned()).await {
            // Whoever starts it at the same time is waited for.
            Err(Error::NameTaken { .. }) => drop(sandbox.connect().await?),
            other => drop(other?),
        }
        Ok(())
    };
    each(&args.names, start).await
}
