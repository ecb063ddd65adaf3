//! One file per command.

pub(crate) mod attach;
pub(crate) mod completion;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod install;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod metrics;
pub(crate) mod own;
pub(crate) mod pause;
pub(crate) mod policy;
pub(crate) mod pull;
pub(crate) mod restart;
pub(crate) mod restore;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod shell;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod uninstall;

use crate::args::NamesArgs;
use crate::{Failure, report, terminal};

/// Does something for each name and prints it. As container tools do it, one that fails is
/// told of, and keeps none of the others from being done.
async fn each(
    args: &NamesArgs,
    work: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut code = 0;
    for name in &args.names {
        match work(name).await {
            Ok(()) if args.quiet => {}
            Ok(()) => terminal::say(name)?,
            Err(failure) => {
                report(&failure);
                code = failure.exit_code();
            }
        }
    }
    Ok(code)
}
