//! `msb create`.

use crate::args::CreateArgs;
use crate::commands::run::detached;
use crate::{Failure, sandbox};

/// Makes a sandbox, starts it in the background and prints its name.
pub(crate) async fn run(args: CreateArgs) -> Result<u8, Failure> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => sandbox::unique_name()?,
    };
    let builder = sandbox::builder(&name, &args.image, &args.sandbox, &args.network)?;
    detached(builder, &args.image, args.sandbox.quiet).await
}
