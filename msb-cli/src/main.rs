//! The `msb` command: every subcommand is a thin file over `msb-sdk`.
//!
//! This file maps errors to exit codes and nothing else. What the user typed is
//! parsed in `args`; terminals are handled in `terminal` and `progress`.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod detach;
mod installed;
mod meant;
mod network;
mod progress;
mod sandbox;
mod secret;
mod session;
mod size;
mod table;
mod terminal;
mod tree;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, ImageCommand};

/// The exit code of msb's own failures, as container tools have it.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    // A sandbox's supervisor is this program, started again; it never returns.
    msb_sdk::supervisor_hook();

    if let Some(tree) = tree::asked(std::env::args_os().skip(1)) {
        return finish(terminal::say(&tree).map(|()| 0));
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(mut error) => {
            meant::suggest(&mut error);
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { OWN_FAILURE } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::complain(&format!("msb: cannot start: {error}"));
            return ExitCode::from(OWN_FAILURE);
        }
    };
    let result = runtime.block_on(dispatch(args));
    // Standard input may still be waited for by a thread; it is not ours to end.
    runtime.shutdown_background();
    finish(result)
}

fn finish(result: Result<u8, Failure>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

async fn dispatch(args: Args) -> Result<u8, Failure> {
    match args.command {
        Command::Run(run) => commands::run::run(*run).await,
        Command::Create(create) => commands::create::run(*create).await,
        Command::Exec(exec) => commands::exec::run(exec).await,
        Command::Cp(cp) => commands::cp::run(cp).await,
        Command::Attach(attach) => commands::attach::run(attach).await,
        Command::Shell(shell) => commands::shell::run(shell).await,
        Command::Start(names) => commands::start::run(names).await,
        Command::Stop(stop) => commands::stop::run(stop).await,
        Command::Restart(stop) => commands::restart::run(stop).await,
        Command::Kill(names) => commands::kill::run(names).await,
        Command::Pause(names) => commands::pause::pause(names).await,
        Command::Resume(names) => commands::pause::resume(names).await,
        Command::Fork(fork) => commands::fork::run(fork).await,
        Command::Snapshot(snapshot) => commands::snapshot::run(snapshot).await,
        Command::Rm(rm) => commands::rm::run(rm).await,
        Command::Ls(ls) => commands::ls::run(ls).await,
        Command::Ps(ps) => commands::ls::ps(ps).await,
        Command::Metrics(metrics) => commands::metrics::run(metrics).await,
        Command::Events(events) => commands::events::run(events).await,
        Command::Top(top) => commands::metrics::top(top).await,
        Command::Inspect(inspect) => commands::inspect::run(inspect).await,
        Command::Logs(logs) => commands::logs::run(logs).await,
        Command::Pull(pull) => commands::pull::run(pull).await,
        Command::Image(image) => commands::image::run(image.command).await,
        Command::Images(ls) => commands::image::run(ImageCommand::Ls(ls)).await,
        Command::Rmi(rm) => commands::image::run(ImageCommand::Rm(rm)).await,
        Command::Policy(policy) => commands::policy::run(policy),
        Command::Doctor(doctor) => commands::doctor::run(doctor.format).await,
        Command::Install(install) => commands::install::run(&install),
        Command::Uninstall(names) => commands::uninstall::run(&names),
        Command::Schema => commands::schema::run(),
        Command::Completion(completion) => commands::completion::run(completion),
        Command::Own(own) => commands::own::run(own).await,
    }
}

/// Why a command could not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The SDK's word.
    Sandbox(msb_sdk::Error),
    /// This program's own: what failed and what to do about it.
    Usage {
        message: String,
        hint: Option<String>,
    },
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Sandbox(error) => error.exit_code(),
            Self::Usage { .. } => OWN_FAILURE,
        }
    }
}

impl From<msb_sdk::Error> for Failure {
    fn from(error: msb_sdk::Error) -> Self {
        Self::Sandbox(error)
    }
}

/// What can be done about an error of the SDK, by who types commands.
fn hint(error: &msb_sdk::Error) -> Option<String> {
    match error {
        msb_sdk::Error::Exec { program, .. } if program.starts_with('-') => {
            Some("behind `--` all is the program's; msb's own options go before `--`".into())
        }
        error => error.hint(),
    }
}

fn report(failure: &Failure) {
    let (message, hint) = match failure {
        Failure::Sandbox(error) => {
            let mut message = secret::quoted(error);
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                let text = cause.to_string();
                if !message.contains(&text) {
                    message.push_str(": ");
                    message.push_str(&text);
                }
                source = cause.source();
            }
            (message, hint(error))
        }
        Failure::Usage { message, hint } => (message.clone(), hint.clone()),
    };
    terminal::complain(&format!("msb: {message}"));
    if let Some(hint) = hint {
        terminal::complain(&format!("hint: {hint}"));
    }
}
