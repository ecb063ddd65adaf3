//! Arguments of the commands that tell what sandboxes do and use.

use std::time::Duration;

use super::FormatArg;
use super::exec::parse_time;

/// Arguments of `msb metrics`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CPU % (of one processor of the host), HOST MEM (its share of pages that sandboxes have in common) and
what crossed the network are measured on the host. The rest is what the guest says of itself.

Examples:
  msb metrics
  msb metrics -w app
  msb metrics --format json app db")]
pub(crate) struct MetricsArgs {
    /// Go on until interrupted; as JSON one line for each sample
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
    /// How often to sample with --watch
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    pub(crate) interval: Duration,
    /// How to print them
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: FormatArg,
    /// Names of sandboxes; all that run when none is given
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `msb events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each sandbox remembers the last few thousand events since it was started, and forgets them when it ends.

Examples:
  msb events
  msb events --since 10m --type life app
  msb events --since 1h --for 1s
  msb events --format json --type network")]
pub(crate) struct EventsArgs {
    /// Begin with what has happened in this time, such as 10m, as far as it is remembered
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) since: Option<Duration>,
    /// End after this time, such as 10s, instead of going on until interrupted
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    pub(crate) time: Option<Duration>,
    /// Tell only of these; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kinds: Vec<EventKindArg>,
    /// How to print them: lines for people, or lines of JSON
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: FormatArg,
    /// Names of sandboxes; all when none is given
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum EventKindArg {
    /// Sandboxes are made, started, paused, saved, stopped, removed
    Life,
    /// Programs are started, and end
    Exec,
    /// What the network decides, and uses of secrets
    Network,
}

/// Arguments of `msb top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Of more than 256 processes those that have used the most processor time.

Example:
  msb top app")]
pub(crate) struct TopArgs {
    /// How to print the list
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: FormatArg,
    /// Name of the sandbox
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}
