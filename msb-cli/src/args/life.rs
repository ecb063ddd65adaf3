//! Arguments of the commands for sandboxes that live on.

use super::{BoundsArgs, FormatArg, NetworkArgs, SandboxArgs};
use crate::detach::{self, DetachKeys};

/// Arguments of `msb create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing runs in it until `msb exec` or `msb shell` starts something, unless a file has a command.

Examples:
  msb create --name dev python:3.12
  msb create -f sandbox.yaml
  msb shell dev")]
pub(crate) struct CreateArgs {
    /// Name of the sandbox; one is made up when it is left out
    #[arg(short = 'n', long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    /// Image reference; may be left out with --file
    #[arg(required_unless_present = "file")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Arguments of `msb start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Secrets are read again from where they came from. One that came from standard input is given again.

Examples:
  msb start app
  msb start --secret TOKEN=stdin app < token")]
pub(crate) struct StartArgs {
    /// Give the value of a secret: NAME=stdin, NAME=file:PATH or NAME=env:VARIABLE
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// Names of sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: as for msb run.

Examples:
  msb exec app -- python3 -c \"print(1)\"
  msb exec -it app bash
  msb exec -u nobody -w /tmp -e MODE=test app -- env
  msb exec --timeout 30s --ulimit nofile=256 app -- make test")]
pub(crate) struct ExecArgs {
    /// Pass standard input on even when it is a terminal
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// Set an environment variable; KEY alone takes the value from here
    #[arg(short = 'e', long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working folder in the guest
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User in the guest: a name or id, optionally with :GROUP
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,
    #[command(flatten)]
    pub(crate) bounds: BoundsArgs,
    /// Start the sandbox if it does not run, and make it from this file if there is none
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<std::path::PathBuf>,
    /// Keys that let go of a program at a terminal, which goes on; none if empty
    #[arg(long, value_name = "KEYS", default_value = detach::DEFAULT)]
    pub(crate) detach_keys: DetachKeys,
    /// Name of the sandbox
    pub(crate) name: String,
    /// Program and arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Arguments of `msb cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Into a folder that exists the copy goes under its own name; what is in FOLDER/. goes there itself. Permissions, times, symlinks and holes are
kept. What a guest made is not trusted: devices and set-user-id bits do not get out.

Examples:
  msb cp ./project app:/srv
  msb cp app:/var/log/app.log .")]
pub(crate) struct CpArgs {
    /// File or folder: PATH on this host, or NAME:PATH in a sandbox that runs
    #[arg(value_name = "FROM")]
    pub(crate) from: std::ffi::OsString,
    /// Where its copy goes
    #[arg(value_name = "TO")]
    pub(crate) to: std::ffi::OsString,
}

/// Arguments of `msb shell`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  msb shell app
  msb shell app -- 'cd /app && make'")]
pub(crate) struct ShellArgs {
    /// User in the guest: a name or id, optionally with :GROUP
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Start the sandbox if it does not run, and make it from this file if there is none
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<std::path::PathBuf>,
    /// Keys that let go of the shell, which goes on; none if empty
    #[arg(long, value_name = "KEYS", default_value = detach::DEFAULT)]
    pub(crate) detach_keys: DetachKeys,
    /// Name of the sandbox
    pub(crate) name: String,
    /// Script to run in the image's shell instead of opening one
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) script: Vec<String>,
}

/// Arguments of `msb attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: as for msb run; 0 when it is let go of again.

Examples:
  msb attach app
  msb attach --list app
  msb attach app 3")]
pub(crate) struct AttachArgs {
    /// List the programs that were let go of
    #[arg(short = 'l', long, conflicts_with = "session")]
    pub(crate) list: bool,
    /// How to print the list
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        requires = "list"
    )]
    pub(crate) format: FormatArg,
    /// Keys that let go of it again; none if empty
    #[arg(long, value_name = "KEYS", default_value = detach::DEFAULT)]
    pub(crate) detach_keys: DetachKeys,
    /// Name of the sandbox
    pub(crate) name: String,
    /// Number of the program, as it was told; may be left out where there is one only
    #[arg(value_name = "ID")]
    pub(crate) session: Option<msb_sdk::SessionId>,
}

/// Arguments of commands that take nothing but names.
#[derive(Debug, clap::Args)]
pub(crate) struct NamesArgs {
    /// Names of sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Programs are asked to end, then killed; disks are flushed.

Example:
  msb stop -t 30 app")]
pub(crate) struct StopArgs {
    /// How many seconds programs have to end themselves
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u16,
    /// Names of sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb restart`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Programs are asked to end, then killed; disks are flushed. Secrets are read again from where they came from. One
that came from standard input is given again.

Examples:
  msb restart -t 30 app
  msb restart --secret TOKEN=stdin app < token")]
pub(crate) struct RestartArgs {
    /// How many seconds programs have to end themselves
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u16,
    /// Give the value of a secret: NAME=stdin, NAME=file:PATH or NAME=env:VARIABLE
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// Names of sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  msb rm -f app")]
pub(crate) struct RmArgs {
    /// Stop them first if they run; names that there are not are no error
    #[arg(short = 'f', long)]
    pub(crate) force: bool,
    /// Names of sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Processes of a sandbox are listed by `msb top`.

Example:
  msb ps -a")]
pub(crate) struct PsArgs {
    /// Also list those that do not run, as `msb ls` does
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

/// Arguments of `msb ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  msb ls --format json")]
pub(crate) struct LsArgs {
    /// As without it; container tools list only what runs when it is missing
    #[arg(short = 'a', long, hide = true)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

/// How sandboxes are listed.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Print names only
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// How to print the list
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: FormatArg,
}

/// Arguments of `msb logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The log is that of the program which `msb run -d` starts. The last 8 to 16 MiB are kept.

Example:
  msb logs -f app")]
pub(crate) struct LogsArgs {
    /// Go on until the sandbox is stopped
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Name of the sandbox
    pub(crate) name: String,
}
