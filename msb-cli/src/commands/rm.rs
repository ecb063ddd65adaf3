//! `msb rm`.

use msb_sdk::{Error, Sandbox};

use super::each;
use crate::Failure;
use crate::args::RmArgs;

/// Removes sandboxes and prints their names.
pub(crate) async fn run(args: RmArgs) -> Result<u8, Failure> {
    each(&args.names, async |name: &str| {
        remove(name, args.force).await
    })
    .await
}

/// Removes a sandbox; with `force` it is ended first, and need not be there.
pub(crate) async fn remove(name: &str, force: bool) -> Result<(), Failure> {
    let sandbox = match Sandbox::get(name).await {
        Err(Error::NoSandbox { .. }) if force => return Ok(()),
        other => other?,
    };
    if force {
        match sandbox.kill().await {
            // One that is not kept is removed when it ends.
            Ok(()) | Err(Error::NotRunning { .. } | Error::NoSandbox { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match sandbox.remove().await {
        Ok(()) => Ok(()),
        Err(Error::NoSandbox { .. }) if force => Ok(()),
        Err(Error::NameTaken { name }) => Err(Failure::Usage {
            message: format!("the sandbox {name:?} is running"),
            hint: Some(format!(
                "stop it first, or remove it all the same: `msb rm -f {name}`"
            )),
        }),
        Err(error) => Err(error.into()),
    }
}
