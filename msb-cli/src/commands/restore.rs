//! `msb run --from-snapshot`: a sandbox that goes on from a snapshot.

use std::ffi::OsString;

use msb_sdk::{Error, ExecOptions, Sandbox, SnapshotBuilder};

use super::run::{tell_ports, unambiguous};
use crate::args::RunArgs;
use crate::network::NetLog;
use crate::session::{Session, forwarded_signals};
use crate::{Failure, sandbox, secret, terminal};

/// Starts it; runs a program in it and returns that one's exit code, or leaves it running.
pub(crate) async fn run(args: RunArgs, snapshot: &str) -> Result<u8, Failure> {
    unambiguous(std::env::args_os())?;
    let mut builder = describe(&args, snapshot);
    for (name, value) in secret::values(&args.network.secret)? {
        builder = builder.secret_value(name, value);
    }
    // There is no image to name: the first word is the program.
    let words = args.image.map(OsString::from).into_iter();
    let mut words = words.chain(args.command);
    let program = words.next().map(|program| {
        let options = ExecOptions::new(program, words);
        args.bounds.apply(options)
    });
    if args.detach {
        let sandbox = builder.create_detached().await?;
        if !args.sandbox.quiet {
            tell_ports(&sandbox);
        }
        if let Some(options) = program
            && let Err(error) = leave(&sandbox, options).await
        {
            // That it could not be ended is not what is told.
            let _ = sandbox.kill().await;
            return Err(error.into());
        }
        terminal::say(&sandbox.spec().name)?;
        return Ok(0);
    }
    let options = program.ok_or_else(|| Failure::Usage {
        message: "there is no program to run in the snapshot's sandbox".into(),
        hint: Some("give one after `--`, or leave it running with -d".into()),
    })?;
    let session = Session::asked(&args.terminal)?;
    let log = NetLog::open(&args.network)?;
    let mut signals = forwarded_signals();
    let sandbox = tokio::select! {
        sandbox = builder.create() => sandbox?,
        // The supervisor, if there is one already, ends with us.
        Some(number) = signals.recv() => return Ok(128 + number),
    };
    if !args.sandbox.quiet {
        tell_ports(&sandbox);
    }
    let log = log.map(|log| tokio::spawn(log.follow(sandbox.network_events())));
    let result = session.run(&sandbox, options, signals).await;
    let ended = sandbox.kill().await;
    if let Some(log) = log {
        // It ends with the sandbox; what it could not write, nobody wants.
        let _ = log.await;
    }
    let code = result?;
    ended?;
    Ok(code)
}

/// Starts a program that goes on when nobody listens.
async fn leave(sandbox: &Sandbox, options: ExecOptions) -> Result<(), Error> {
    let mut program = sandbox.exec_with(options).await?;
    match program.detach().await {
        // It has ended by itself.
        Ok(_) | Err(Error::Machine { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn describe(args: &RunArgs, snapshot: &str) -> SnapshotBuilder {
    let mut builder = Sandbox::from_snapshot(snapshot);
    if let Some(name) = &args.name {
        builder = builder.name(name);
    }
    for (key, value) in args
        .sandbox
        .env
        .iter()
        .filter_map(|entry| sandbox::variable(entry))
    {
        builder = builder.env(key, value);
    }
    for ports in &args.network.publish {
        builder = builder.publish(ports);
    }
    builder
}
