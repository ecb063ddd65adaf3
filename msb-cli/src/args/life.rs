//! Arguments of the commands for sandboxes that live on.

use std::time::Duration;

use super::exec::parse_grace;
use super::{BoundsArgs, FormatArg, JsonArg, NetworkArgs, SandboxArgs, TerminalArgs};
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
    pub(crate) replace: ReplaceArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    /// Image reference; may be left out with --file
    #[arg(required_unless_present = "file")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// What becomes of a sandbox that has the name of a new one.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplaceArgs {
    /// Remove a sandbox that has this name already, with its files
    #[arg(long)]
    pub(crate) replace: bool,
    /// The same, once its programs have had this time to end, such as 30s; 0 is none
    #[arg(long, value_name = "TIME", value_parser = parse_grace)]
    pub(crate) replace_with_timeout: Option<Duration>,
}

impl ReplaceArgs {
    /// How long the programs of such a sandbox have to end; `None` if it stays.
    pub(crate) fn grace(&self) -> Option<Duration> {
        self.replace_with_timeout
            .or(self.replace.then_some(Duration::ZERO))
    }
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
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// Arguments of `msb exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: as for msb run.

Examples:
  msb exec app -- python3 -c \"print(1)\"
  msb exec app bash
  msb exec -u nobody -w /tmp -e MODE=test app -- env
  msb exec --timeout 30s --ulimit nofile=256 app -- make test")]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) terminal: TerminalArgs,
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
    /// Print nothing but the program's output and errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Name of the sandbox
    pub(crate) name: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, value_name = "CMD")]
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
    /// Do not tell what was left out
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
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
    #[arg(trailing_var_arg = true)]
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

/// Which sandboxes something is done with.
#[derive(Debug, clap::Args)]
pub(crate) struct NamesArgs {
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Names of sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  msb inspect app")]
pub(crate) struct InspectArgs {
    /// How to print it; there is only this
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub(crate) format: JsonArg,
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
    #[command(flatten)]
    pub(crate) end: EndArgs,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// How sandboxes are stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct EndArgs {
    /// How many seconds programs have to end themselves
    #[arg(
        short = 't',
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub(crate) time: u16,
    /// End them at once, as `msb kill` does; what was not flushed to a disk is lost
    #[arg(short = 'f', long, conflicts_with = "time")]
    pub(crate) force: bool,
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
    #[command(flatten)]
    pub(crate) end: EndArgs,
    /// Give the value of a secret: NAME=stdin, NAME=file:PATH or NAME=env:VARIABLE
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
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
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// Arguments of `msb ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Processes of a sandbox are listed by `msb top`.

Examples:
  msb ps -a
  msb ps app")]
pub(crate) struct PsArgs {
    /// Also list those that do not run, as `msb ls` does
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// List these only, whether they run or not
    #[arg(value_name = "NAME", conflicts_with = "all")]
    pub(crate) names: Vec<String>,
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
    /// List those that run, as `msb ps` does
    #[arg(long, conflicts_with_all = ["all", "stopped"])]
    pub(crate) running: bool,
    /// List those that are stopped
    #[arg(long, conflicts_with = "all")]
    pub(crate) stopped: bool,
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

Examples:
  msb logs -f app
  msb logs --tail 100 app")]
pub(crate) struct LogsArgs {
    /// Go on until the sandbox is stopped
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Begin with the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) tail: Option<usize>,
    /// Name of the sandbox
    pub(crate) name: String,
}
