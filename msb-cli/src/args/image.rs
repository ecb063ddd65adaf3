//! Arguments of the commands for images.

use std::path::PathBuf;

use clap::Subcommand;

use super::{FormatArg, JsonArg};

/// Arguments of `msb pull`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  msb pull python:3.12
  msb pull --from ./image.tar localhost/app:1")]
pub(crate) struct PullArgs {
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Import from this OCI layout folder, OCI archive or docker archive instead
    #[arg(long, value_name = "PATH")]
    pub(crate) from: Option<PathBuf>,
    /// Image reference
    pub(crate) image: String,
}

/// Arguments of `msb image ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  msb image ls --format json")]
pub(crate) struct ImageLsArgs {
    /// Print references only
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// How to print the list
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: FormatArg,
}

/// Arguments of `msb image rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  msb image rm python:3.12")]
pub(crate) struct ImageRmArgs {
    /// Also those that sandboxes which are stopped were made from: they cannot be started then
    #[arg(short = 'f', long)]
    pub(crate) force: bool,
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
    /// Image references
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
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
    Ls(ImageLsArgs),
    /// Remove images, and what only they needed
    #[command(visible_alias = "remove")]
    Rm(ImageRmArgs),
    /// Tell everything about images, as JSON
    #[command(after_help = "\
Example:
  msb image inspect python:3.12")]
    Inspect {
        /// How to print it; there is only this
        #[arg(long, value_name = "FORMAT", default_value = "json")]
        format: JsonArg,
        /// Image references
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Remove the images that no sandbox needs, running or stopped
    ///
    /// Says which they are and what that frees, and asks first.
    #[command(after_help = "\
Examples:
  msb image prune --dry-run
  msb image prune -y")]
    Prune {
        /// Do not ask
        #[arg(short = 'y', long)]
        yes: bool,
        /// Say what would be removed, and remove nothing
        #[arg(short = 'n', long, conflicts_with = "yes")]
        dry_run: bool,
    },
    /// Take all images of an archive: an OCI layout or what docker save writes
    ///
    /// Archives may be compressed with gzip or zstd. One that gives its images no names is
    /// imported with `msb pull --from FILE NAME`.
    #[command(after_help = "\
Examples:
  msb image load images.tar
  docker save app:1 | msb image load
  msb image load -i images.tar.gz")]
    Load {
        /// Print nothing but errors
        #[arg(short = 'q', long)]
        quiet: bool,
        /// The archive, as docker has it
        #[arg(short = 'i', long, value_name = "FILE", conflicts_with = "file")]
        input: Option<PathBuf>,
        /// The archive; standard input when it is left out or "-"
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Write images as one archive: an OCI layout that docker, podman and skopeo load
    #[command(after_help = "\
Examples:
  msb image save -o images.tar python:3.12 nginx
  msb image save app:1 | docker load")]
    Save {
        /// File to write; standard output when it is left out
        #[arg(short = 'o', long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Image references
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}
