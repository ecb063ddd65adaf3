//! `msb exec`: a program in a sandbox that runs.

use msb_sdk::ExecOptions;

use crate::args::ExecArgs;
use crate::sandbox::variable;
use crate::session::{Session, forwarded_signals};
use crate::{Failure, sandbox};

/// Runs the program and returns its exit code.
pub(crate) async fn run(args: ExecArgs) -> Result<u8, Failure> {
    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::Usage {
            message: "no program is named".into(),
            hint: Some(format!("msb exec {} -- PROGRAM", args.name)),
        });
    };
    let mut options = ExecOptions::new(program, rest);
    for (key, value) in args.env.iter().filter_map(|entry| variable(entry)) {
        options = options.env(&key, &value);
    }
    if let Some(workdir) = args.workdir {
        options = options.cwd(workdir);
    }
    if let Some(user) = args.user {
        options = options.user(user);
    }
    options = args.bounds.apply(options);
    let session = Session::asked(&args.terminal)?.detached_by(args.detach_keys);
    let sandbox = sandbox::open(&args.name, args.file.as_deref(), args.quiet).await?;
    session.run(&sandbox, options, forwarded_signals()).await
}
