//! Applies layers to a directory: `unpack DEST TAR…`.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use msb_oci::layer::Limits;
use msb_oci::unpack::{Source, Summary, UnpackError, unpack};

const HELP: &str = "\
Applies container image layers to a directory.

Usage: unpack DEST TAR...

  DEST    directory to unpack into; made if it does not exist
  TAR     layers, the lowest first: tar files, plain or compressed with gzip
          or zstd (told apart by content)

All layers are checked before anything is written: a layer that is damaged or
hostile is refused with its name and the entry's, and DEST stays as it was.
What DEST holds already counts as the lowest layer; whiteouts delete from it.
Nothing outside of DEST is read or written, whatever its symlinks say.

Owners, devices and some attributes need root. Without it files belong to the
caller and a device becomes an empty file; a warning says how many.

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if arguments
        .iter()
        .any(|argument| matches!(argument.to_str(), Some("-h" | "--help")))
    {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let mut arguments = arguments
        .into_iter()
        .filter(|argument| argument.as_os_str() != "--");
    let (Some(destination), tars) = (arguments.next(), arguments.collect::<Vec<_>>()) else {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    };
    if tars.is_empty() {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    }
    match run(&destination, &tars) {
        Ok(summary) => {
            warn(&summary);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(destination: &Path, tars: &[PathBuf]) -> Result<Summary, UnpackError> {
    let scratch = scratch_beside(destination);
    let layers = tars
        .iter()
        .map(|tar| Source::open(tar, &scratch, Limits::default()));
    unpack(destination, &layers.collect::<Result<Vec<_>, _>>()?)
}

/// The nearest directory above the destination that exists: on the same file
/// system there is room for what is about to be written.
fn scratch_beside(destination: &Path) -> PathBuf {
    let absolute = std::path::absolute(destination).unwrap_or_else(|_| destination.to_owned());
    let beside = absolute
        .ancestors()
        .skip(1)
        .find(|ancestor| ancestor.is_dir());
    beside.map_or_else(std::env::temp_dir, Path::to_owned)
}

fn warn(summary: &Summary) {
    if !summary.is_complete() {
        eprintln!(
            "warning: without privileges {} owners, {} extended attributes and {} devices were not kept",
            summary.owners_lost, summary.xattrs_lost, summary.devices_lost
        );
    }
}
