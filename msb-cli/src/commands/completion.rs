//! `msb completion`: what shells and `man` know of the commands, from the same definitions.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Args, CompletionArgs, CompletionCommand};
use crate::{Failure, terminal};

/// Prints a completion script, or writes manual pages.
pub(crate) fn run(args: CompletionArgs) -> Result<u8, Failure> {
    let shell = match args.command {
        CompletionCommand::Bash => Shell::Bash,
        CompletionCommand::Zsh => Shell::Zsh,
        CompletionCommand::Fish => Shell::Fish,
        CompletionCommand::Elvish => Shell::Elvish,
        CompletionCommand::PowerShell => Shell::PowerShell,
        CompletionCommand::Man { folder } => return pages(&folder),
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "msb", &mut script);
    terminal::say(String::from_utf8_lossy(&script).trim_end())?;
    Ok(0)
}

fn pages(folder: &Path) -> Result<u8, Failure> {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Args::command(), folder))
        .map_err(|error| Failure::Usage {
            message: format!("cannot write manual pages to {}: {error}", folder.display()),
            hint: None,
        })?;
    Ok(0)
}
