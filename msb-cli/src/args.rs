//! What the user typed, as typed. Plans are made in `commands`.

use clap::{Parser, Subcommand, ValueEnum};

use crate::size::parse_mebibytes;

/// Run container images in microVMs: no server, no daemon, no root.
#[derive(Debug, Parser)]
#[command(
    name = "msb",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program from an image in a new microVM
    ///
    /// Without CMD the image's own entrypoint and command run. The guest has
    /// no network yet, only loopback.
    Run(RunArgs),
    /// Fetch an image from a registry, or import it from an archive
    Pull(PullArgs),
    /// List or remove images
    Image(ImageArgs),
    /// Say what works on this host, what does not, and why
    Doctor,
}

/// Arguments of `msb run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: the program's own; 125 msb failed, 126 not executable, 127 not found, 128+N ended by signal N.

Examples:
  msb run python:3.12 -- python3 -c \"print('hello')\"
  msb run -it debian -- bash
  echo data | msb run busybox -- wc -c
  msb run -m 1G -c 2 -e MODE=test -w /app myimage")]
pub(crate) struct RunArgs {
    /// Virtual CPUs
    #[arg(short = 'c', long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u8,
    /// Memory, with unit
    #[arg(short = 'm', long, value_name = "SIZE", default_value = "512M", value_parser = parse_mebibytes)]
    pub(crate) memory: u32,
    /// Set an environment variable; KEY alone takes the value from here
    #[arg(short = 'e', long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working folder in the guest
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User in the guest: a name or id, optionally with :GROUP
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Pass standard input on even when it is a terminal
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// Keep what the guest writes on a disk of this size instead of in its memory
    #[arg(long, value_name = "SIZE", value_parser = parse_mebibytes)]
    pub(crate) disk: Option<u32>,
    /// When to ask the registry
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(crate) pull: PullArg,
    /// Refuse to start with weaker isolation than this
    #[arg(long, value_name = "LEVEL")]
    pub(crate) min_isolation: Option<IsolationArg>,
    /// Print nothing but the program's output and errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Image reference, such as python:3.12 or localhost:5000/app@sha256:…
    pub(crate) image: String,
    /// Program and arguments to run instead of the image's own
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PullArg {
    /// Only when the image is not here
    Missing,
    /// Always look for a newer one
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum IsolationArg {
    /// A hypervisor on virtualization hardware
    Hardware,
    /// A processor emulated in software will do
    Emulated,
}

/// Arguments of `msb pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Import from this OCI layout folder, OCI archive or docker archive instead
    #[arg(long, value_name = "PATH")]
    pub(crate) from: Option<std::path::PathBuf>,
    /// Image reference
    pub(crate) image: String,
}

/// Arguments of `msb image`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// How to print the list
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: FormatArg,
    },
    /// Remove images, and what only they needed
    #[command(visible_alias = "remove")]
    Rm {
        /// Image references
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FormatArg {
    /// Columns for people
    Table,
    /// One JSON array for programs
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn help_says_that_the_guest_has_no_network() {
        let mut command = super::Args::command();
        let help = command
            .find_subcommand_mut("run")
            .expect("run")
            .render_long_help()
            .to_string();
        assert!(help.replace('\n', " ").contains("no network yet"), "{help}");
    }
}
