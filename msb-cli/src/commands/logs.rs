//! `msb logs`.

use std::io::{self, Write};
use std::time::Duration;

use msb_sdk::{Logs, Sandbox};

use crate::Failure;
use crate::args::LogsArgs;

/// How often it is looked whether there is more.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
    print(&mut logs)?;
    Ok(0)
}

/// Prints what there is; `false` when nobody reads it.
fn print(logs: &mut Logs) -> Result<bool, Failure> {
    let failed = |error: io::Error| Failure::Usage {
        message: format!("cannot pass the log on: {error}"),
        hint: None,
    };
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
