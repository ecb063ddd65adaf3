//! Arguments of the commands about msb's place on this host.

use std::path::PathBuf;

use clap::Subcommand;

use super::{FormatArg, NetworkArgs, SandboxArgs};

/// Arguments of `msb install`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command is a small script in $MSB_BIN, or in ~/.local/bin. The sandbox is made when it is first used, with the
settings given here, and has the command's name. Without arguments it opens a shell, else it runs them.

Examples:
  msb install ubuntu
  msb install --name py --tmp -m 1G python:3.12
  msb install --list")]
pub(crate) struct InstallArgs {
    /// Name of the command and its sandbox, instead of the image's
    #[arg(short = 'n', long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Make a new sandbox each time, and remove it at the end
    #[arg(long)]
    pub(crate) tmp: bool,
    /// List the commands that there are
    #[arg(short = 'l', long, conflicts_with_all = ["name", "tmp", "image", "file"])]
    pub(crate) list: bool,
    /// How to print the list
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        requires = "list"
    )]
    pub(crate) format: FormatArg,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    /// Image reference; may be left out with --file
    #[arg(required_unless_present_any = ["list", "file"])]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Arguments of `msb uninstall`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The sandbox of the command stays; `msb rm` removes it.

Example:
  msb uninstall ubuntu")]
pub(crate) struct UninstallArgs {
    /// Names of commands
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb completion`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionArgs {
    #[command(subcommand)]
    pub(crate) command: CompletionCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CompletionCommand {
    /// For bash
    #[command(after_help = "\
Example:
  msb completion bash > ~/.local/share/bash-completion/completions/msb")]
    Bash,
    /// For zsh; the folder of the example must be in fpath
    #[command(after_help = "\
Example:
  msb completion zsh > ~/.zfunc/_msb")]
    Zsh,
    /// For fish
    #[command(after_help = "\
Example:
  msb completion fish > ~/.config/fish/completions/msb.fish")]
    Fish,
    /// For elvish
    #[command(after_help = "\
Example:
  msb completion elvish > ~/.config/elvish/completions/msb.elv")]
    Elvish,
    /// For PowerShell
    #[command(
        name = "powershell",
        after_help = "\
Example:
  msb completion powershell > msb.ps1"
    )]
    PowerShell,
    /// Write manual pages of all commands into a folder
    #[command(after_help = "\
Example:
  msb completion man ~/.local/share/man/man1")]
    Man {
        /// The folder, which is made if it is missing
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

/// Arguments of `msb doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  msb doctor")]
pub(crate) struct DoctorArgs {
    /// How to print it
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: FormatArg,
}

/// Arguments of `msb self`.
#[derive(Debug, clap::Args)]
pub(crate) struct SelfArgs {
    #[command(subcommand)]
    pub(crate) command: SelfCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SelfCommand {
    /// Say what works on this host, what does not, and why: `msb doctor`
    #[command(visible_alias = "check")]
    Doctor(DoctorArgs),
    /// Remove msb with all sandboxes, images and commands that it made
    ///
    /// Says what it removes and asks first.
    #[command(after_help = "\
Example:
  msb self uninstall")]
    Uninstall {
        /// Do not ask
        #[arg(short = 'y', long)]
        yes: bool,
    },
}
