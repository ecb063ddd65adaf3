//! Events on their way to a file: one line of JSON each.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

/// Where events go.
#[derive(Clone)]
pub(crate) enum Journal {
    /// Nowhere.
    None,
    /// Standard error, because standard output belongs to the program.
    Stderr,
    /// Here. Several gateways may write to it: each line is one write.
    File(Arc<File>),
}

impl Journal {
    /// Opens what `--events` names; `-` is standard error.
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        Ok(match path {
            None => Self::None,
            Some(path) if path.as_os_str() == "-" => Self::Stderr,
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                let shown = path.display();
                Self::File(Arc::new(
                    file.with_context(|| format!("cannot write {shown}"))?,
                ))
            }
        })
    }

    /// Writes a line. One that cannot be written is lost: there is nobody to tell.
    pub(crate) fn write(&self, line: impl FnOnce() -> String) {
        let _ = match self {
            Self::None => Ok(()),
            Self::Stderr => io::stderr().write_all((line() + "\n").as_bytes()),
            Self::File(file) => (&**file).write_all((line() + "\n").as_bytes()),
        };
    }
}
