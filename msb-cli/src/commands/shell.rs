//! `msb shell`.

use msb_sdk::ExecOptions;

use crate::args::ShellArgs;
use crate::session::{Session, forwarded_signals};
use crate::{Failure, sandbox, terminal};

/// The most comfortable shell that the image has.
pub(crate) const BEST: &str =
    "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi";

/// Opens a shell, or runs a script in one; returns its exit code.
pub(crate) async fn run(args: ShellArgs) -> Result<u8, Failure> {
    let terminal = terminal::stdin_is_terminal();
    let script = args.script.join(" ");
    let session =
        Session::new(terminal, terminal && script.is_empty())?.detached_by(args.detach_keys);
    let sandbox = sandbox::open(&args.name, args.file.as_deref(), false).await?;
    let mut options = if script.is_empty() {
        ExecOptions::new("/bin/sh", ["-c", BEST])
    } else {
        sandbox.shell_options(script)
    };
    if let Some(user) = args.user {
        options = options.user(user);
    }
    session.run(&sandbox, options, forwarded_signals()).await
}
