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
            Err(Error::NameTaken { .. }) if values.is_empty() => drop(sandbox.connect().await?),
            Err(Error::NameTaken { .. }) => {
                return Err(Failure::Usage {
                    message: format!("{name} runs already, with the secrets it was started with"),
                    hint: Some(format!("msb restart --secret … {name}")),
                });
            }
            other => drop(other?),
        }
        Ok(())
    };
    each(&args.names, start).await
}
