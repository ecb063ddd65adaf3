//! Arguments of the commands that save sandboxes and go on from them.

use std::time::Duration;

use clap::Subcommand;

use super::FormatArg;
use super::exec::parse_time;

/// Arguments of `msb snapshot`.
#[derive(Debug, clap::Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save a sandbox while it runs, with everything that runs in it
    #[command(after_help = "\
Example:
  msb snapshot create app warm
  msb run --from-snapshot warm -- ps")]
    Create {
        /// Name of the sandbox
        #[arg(value_name = "SANDBOX")]
        sandbox: String,
        /// Name of the snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
    /// List snapshots
    #[command(
        visible_alias = "list",
        after_help = "\
Example:
  msb snapshot ls --format json"
    )]
    Ls {
        /// How to print the list
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: FormatArg,
    },
    /// Remove snapshots; sandboxes that go on from them are not touched
    #[command(
        visible_alias = "remove",
        after_help = "\
Example:
  msb snapshot rm warm"
    )]
    Rm {
        /// Names of snapshots
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
    /// Remove snapshots that are damaged, and with --older-than those that are old
    ///
    /// Says which they are and what that frees, and asks first.
    #[command(after_help = "\
Examples:
  msb snapshot prune --dry-run
  msb snapshot prune --older-than 30d -y")]
    Prune {
        /// Also those that were made so long ago
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        older_than: Option<Duration>,
        /// Do not ask
        #[arg(short = 'y', long)]
        yes: bool,
        /// Say what would be removed, and remove nothing
        #[arg(short = 'n', long, conflicts_with = "yes")]
        dry_run: bool,
    },
}

/// Arguments of `msb fork`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each fork has all that runs in the sandbox, and a host name, addresses and random numbers of its own. The
sandbox goes on.

Secrets are read again from where they came from. One that came from standard input is given again.

Examples:
  msb fork app 3
  msb fork --secret TOKEN=stdin app < token")]
pub(crate) struct ForkArgs {
    /// Give the value of a secret: NAME=stdin, NAME=file:PATH or NAME=env:VARIABLE
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// Name of the sandbox, which runs
    pub(crate) name: String,
    /// How many forks to make
    #[arg(value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) count: u16,
}
