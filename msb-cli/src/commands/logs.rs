//! `msb logs`.

use msb_sdk::{Logs, Sandbox};
use std::io::{self, Write};

use crate::Failure;
use crate::args::LogsArgs;

/// Prints the log; with `-f` until the sandbox is stopped or nobody reads any more.
pub(crate) async fn run(args: LogsArgs) -> Result<u8, Failure> {
    let sandbox = Sandbox::get(&args.name).await?;
    let mut logs = sandbox.logs();
    if args.follow {
        let end = sandbox.wait();
        tokio::pin!(end);
        loop {
            if !print(&mut logs)? {
                return Ok(0);
            }
            tokio::select! {
                _ = &mut end => break,
                changed = logs.changed() => changed.map_err(failed)?,
            }
        }
    }
    print(&mut logs)?;
    Ok(0)
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn failed(error: io::Error) -> Failure {
    Failure::Usage {
        message: format!("cannot pass the log on: {error}"),
        hint: None,
    }
}

/// Prints what there is; `false` when nobody reads it.
fn print(logs: &mut Logs) -> Result<bool, Failure> {
    loop {
        let chunk = logs.read().map_err(failed)?;
        if chunk.is_empty() {
            return Ok(true);
        }
        let mut out = io::stdout().lock();
        match out.write_all(&chunk).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            other => other.map_err(failed)?,
        }
    }
}
