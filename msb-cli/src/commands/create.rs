//! `msb create`.

use crate::args::CreateArgs;
use crate::commands::run::detached;
use crate::{Failure, sandbox};

/// Makes a sandbox, starts it in the background and prints its name.
pub(crate) async fn run(args: CreateArgs) -> Result<u8, Failure> {
    let (file, name) = (args.sandbox.file.as_deref(), args.name.as_deref());
    let mut spec = sandbox::spec(file, name, args.image.as_deref())?;
    sandbox::name(&mut spec, &args.replace)?;
    let builder = sandbox::builder(spec, &args.sandbox, &args.network)?;
    sandbox::make_room(&builder, &args.sandbox, &args.replace).await?;
    detached(builder, args.sandbox.quiet).await
}
