//! `msb cp`: files between the host and a sandbox.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use msb_sdk::{CopyReport, Sandbox};

use crate::args::CpArgs;
use crate::{Failure, terminal};

/// One side of a copy.
enum Place {
    Host(PathBuf),
    Guest {
        name: String,
        path: PathBuf,
    },
    /// Standard input or output, with other tools.
    Archive,
}

impl Place {
    /// `NAME:PATH` is a sandbox's; a colon after a slash belongs to a host's path.
    fn of(word: &OsStr) -> Self {
        let bytes = word.as_bytes();
        let colon = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
        if bytes == b"-" {
            return Self::Archive;
        }
        match colon.map(|at| (&bytes[..at], bytes[at], &bytes[at + 1..])) {
            Some((name, b':', path)) if !name.is_empty() => Self::Guest {
                name: String::from_utf8_lossy(name).into_owned(),
                // Relative paths begin at the root, as with other container tools.
                path: Path::new("/").join(OsString::from_vec(path.to_vec())),
            },
            _ => Self::Host(word.into()),
        }
    }
}

/// Copies, and tells what was left out.
pub(crate) async fn run(args: CpArgs) -> Result<u8, Failure> {
    let report = match (Place::of(&args.from), Place::of(&args.to)) {
        (Place::Host(from), Place::Guest { name, path }) => {
            let sandbox = Sandbox::get(&name).await?.connect().await?;
            let fs = sandbox.fs();
            let there = fs.stat(&path).await.is_ok_and(|known| known.is_dir());
            fs.copy_in(&from, into(path, &from, there)?).await?
        }
        (Place::Guest { name, path }, Place::Host(to)) => {
            let sandbox = Sandbox::get(&name).await?.connect().await?;
            let there = to.is_dir();
            let to = into(to, &path, there)?;
            sandbox.fs().copy_out(&path, to).await?
        }
        (Place::Archive, _) | (_, Place::Archive) => {
            return Err(Failure::Usage {
                message: "archives are neither read nor written; the file of that name is ./-"
                    .into(),
                hint: Some(
                    "msb exec NAME -- tar c PATH | tar x, or tar c PATH | msb exec NAME -- tar x"
                        .into(),
                ),
            });
        }
        (
            Place::Guest { name, path },
            Place::Guest {
                name: other,
                path: to,
            },
        ) => {
            return Err(between(&name, &path, &other, &to));
        }
        _ => {
            return Err(Failure::Usage {
                message: "exactly one of the two places must be a sandbox's".into(),
                hint: Some("msb cp FILE NAME:/PATH, or msb cp NAME:/PATH FILE".into()),
            });
        }
    };
    if !args.quiet {
        tell(&report);
    }
    Ok(0)
}

/// What to type instead of a copy that does not touch this host.
fn between(name: &str, from: &Path, other: &str, to: &Path) -> Failure {
    let (from, to) = (from.display(), to.display());
    let hint = match name == other {
        true => format!("msb exec {name} -- cp -a {from} {to}"),
        false => format!("msb exec {name} -- tar -c {from} | msb exec {other} -- tar -x -C {to}"),
    };
    Failure::Usage {
        message: "one of the two places must be on this host".into(),
        hint: Some(hint),
    }
}

/// Where a copy of `from` goes: into a folder that is there, or to the name itself. What is in a
/// folder, `FOLDER/.`, goes to the name itself in either case.
fn into(to: PathBuf, from: &Path, there: bool) -> Result<PathBuf, Failure> {
    let bytes = from.as_os_str().as_bytes();
    if !there || bytes == b"." || bytes.ends_with(b"/.") {
        return Ok(to);
    }
    match from.file_name() {
        Some(name) => Ok(to.join(name)),
        None => Err(Failure::Usage {
            message: format!(
                "{} has no name of its own to give to its copy in {}",
                from.display(),
                to.display()
            ),
            hint: Some("name a place that does not exist yet".into()),
        }),
    }
}

/// Tells on standard error what was not copied. A guest chose the names.
fn tell(report: &CopyReport) {
    for entry in &report.skipped_entries {
        let path = entry.path.display().to_string();
        terminal::complain(&format!(
            "msb: left out, being neither file, folder nor symlink: {}",
            path.escape_debug()
        ));
    }
    let more = report
        .skipped
        .saturating_sub(report.skipped_entries.len() as u64);
    if more > 0 {
        terminal::complain(&format!("msb: {more} more were left out"));
    }
}
