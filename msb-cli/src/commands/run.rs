//! `msb run`: a new sandbox with one program, and its exit code.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory};
use msb_sdk::{ExecOptions, Sandbox, SandboxBuilder, SandboxSpec};

use super::restore;
use crate::args::{Args, RunArgs};
use crate::network::NetLog;
use crate::progress::Display;
use crate::session::{Session, forwarded_signals};
use crate::{Failure, sandbox, terminal, tree};

/// Runs the program and returns its exit code.
pub(crate) async fn run(mut args: RunArgs) -> Result<u8, Failure> {
    if let Some(snapshot) = args.from_snapshot.take() {
        return restore::run(args, &snapshot).await;
    }
    let mut spec = spec(&mut args)?;
    let keep = !spec.name.is_empty() && !args.rm;
    sandbox::name(&mut spec, &args.replace)?;
    let image = spec.image.clone();
    let mut command = spec.command.take().unwrap_or_default();
    let builder = sandbox::builder(spec, &args.sandbox, &args.network)?;
    // What can't be run is no reason to remove anything.
    let session = match args.detach {
        true => None,
        false => Some(Session::asked(&args.terminal)?),
    };
    if args.detach && !args.command.is_empty() {
        command = words(&args.command)?;
    }
    let log = NetLog::open(&args.network)?;
    sandbox::make_room(&builder, &args.sandbox, &args.replace).await?;
    let Some(session) = session else {
        let builder = builder.keep(!args.rm).command(command);
        return detached(builder, args.sandbox.quiet).await;
    };
    if args.command.is_empty() {
        args.command = command.into_iter().map(Into::into).collect();
    }
    let mut signals = forwarded_signals();
    let display = Display::new(&image, args.sandbox.quiet);
    let shown = display.clone();
    let builder = builder
        .keep(keep)
        .on_progress(move |step| shown.show(&step));
    let sandbox = tokio::select! {
        sandbox = builder.create() => sandbox,
        Some(number) = signals.recv() => {
            display.finish();
            // The supervisor, if there is one already, ends with us.
            return Ok(128 + number);
        }
    };
    display.finish();
    let sandbox = sandbox?;
    if !args.sandbox.quiet {
        tell_ports(&sandbox);
    }

    let log = log.map(|log| tokio::spawn(log.follow(sandbox.network_events())));
    let options = match args.command.split_first() {
        Some((program, rest)) => Ok(ExecOptions::new(program, rest)),
        None => sandbox.image_command(),
    };
    let result = match options {
        Ok(options) => {
            let options = args.bounds.apply(options);
            session.run(&sandbox, options, signals).await
        }
        Err(error) => Err(error.into()),
    };
    // Nothing of a sandbox that is not kept needs to be flushed.
    let ended = if keep {
        sandbox.stop_and_wait().await
    } else {
        sandbox.kill().await
    };
    if let Some(log) = log {
        // It ends with the sandbox; what it could not write, nobody wants.
        let _ = log.await;
    }
    match (result, ended) {
        (Ok(code), Ok(())) => Ok(code),
        (Err(failure), _) => Err(failure),
        (Ok(_), Err(error)) => Err(error.into()),
    }
}

/// What the sandbox is made from. With a file, all words are the program's.
fn spec(args: &mut RunArgs) -> Result<SandboxSpec, Failure> {
    let file = args.sandbox.file.as_deref();
    let mut image = args.image.take();
    if file.is_some() {
        unambiguous(std::env::args_os())?;
        args.command.splice(0..0, image.take().map(OsString::from));
        image = args.other_image.take();
    }
    sandbox::spec(file, args.name.as_deref(), image.as_deref())
}

/// With a file or a snapshot no image is named, and options behind the program's name would be
/// msb's: whoever types them means the program's.
pub(super) fn unambiguous(words: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let mut command = Args::command();
    // They were understood once already.
    let parsed = command.try_get_matches_from_mut(words).ok();
    let run = parsed
        .as_ref()
        .and_then(|all| all.subcommand_matches("run"));
    let program = run.and_then(|run| Some((run, run.get_one::<String>("image")?)));
    let (Some((run, program)), Some(command)) = (program, command.find_subcommand("run")) else {
        return Ok(());
    };
    let Some(option) = command.get_arguments().find(|arg| behind(run, arg)) else {
        return Ok(());
    };
    let option = tree::usage(option);
    Err(Failure::Usage {
        message: format!("{option} behind {program} may be msb's option or the program's"),
        hint: Some("give the program and its options after `--`".into()),
    })
}

/// Whether an option was typed behind the first word that is none.
fn behind(run: &ArgMatches, option: &Arg) -> bool {
    let id = option.get_id().as_str();
    let typed = run.value_source(id) == Some(ValueSource::CommandLine);
    let last = run.indices_of(id).and_then(Iterator::max);
    typed && !option.is_positional() && last > run.index_of("image")
}

/// Starts a sandbox in the background and prints its name.
pub(crate) async fn detached(builder: SandboxBuilder, quiet: bool) -> Result<u8, Failure> {
    let display = Display::new(&builder.spec().image, quiet);
    let shown = display.clone();
    let builder = builder.on_progress(move |step| shown.show(&step));
    let mut signals = forwarded_signals();
    let sandbox = tokio::select! {
        sandbox = builder.create_detached() => sandbox,
        Some(number) = signals.recv() => {
            display.finish();
            // Its supervisor waits for word that somebody knows of it, and gets none.
            return Ok(128 + number);
        }
    };
    display.finish();
    let sandbox = sandbox?;
    if !quiet {
        tell_ports(&sandbox);
    }
    terminal::say(&sandbox.spec().name)?;
    Ok(0)
}

pub(super) fn tell_ports(sandbox: &Sandbox) {
    for port in &sandbox.report().ports {
        let (host, guest) = (port.host, port.guest);
        terminal::complain(&format!("port {guest} of the guest is at {host}"));
    }
}

/// The words of a command that is kept in a file.
fn words(command: &[OsString]) -> Result<Vec<String>, Failure> {
    let word = |word: &OsString| {
        word.to_str()
            .map(str::to_owned)
            .ok_or_else(|| Failure::Usage {
                message: format!("the argument {} is not UTF-8", word.display()),
                hint: Some("start the sandbox without it, and use `msb exec`".into()),
            })
    };
    command.iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_behind_a_program_have_to_be_clearly_its_own() {
        for (line, clear) in [
            ("run -f a.yaml grep -n word", false),
            ("run -f a.yaml grep -q word", false),
            ("run -f a.yaml grep word file", true),
            ("run -f a.yaml -- grep -n word", true),
            ("run -m 1G -f a.yaml grep", true),
            ("run --name grep -f a.yaml -- grep", true),
            ("run -q -f a.yaml -- run -n word", true),
            ("run --from-snapshot warm ls -d /tmp", false),
            ("run --from-snapshot warm -q -- ls -d /tmp", true),
        ] {
            let words = ["msb"].into_iter().chain(line.split(' '));
            let said = unambiguous(words.map(OsString::from));
            assert_eq!(said.is_ok(), clear, "{line}: {said:?}");
        }
    }
}
