//! The listening socket: one that nobody serves any more is replaced, one that
//! somebody serves is not, and at the end it is removed.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::net::{UnixListener, UnixStream};

use crate::cli::Hinted;

pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Which file it is: another may have taken its name.
    inode: u64,
}

impl Socket {
    pub(crate) fn listen(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        remove_stale(path)?;
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {shown}"))?;
        let inode = std::fs::metadata(path)?.ino();
        Ok(Self {
            listener,
            path: path.into(),
            inode,
        })
    }

    pub(crate) async fn accept(&self) -> anyhow::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await.context("cannot accept")?;
        Ok(stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // If it cannot be removed, the next one to listen sees that it is stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes what a gateway that was killed left behind.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let Ok(file) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let taken = |message: String| Hinted {
        message,
        hint: "give another path to --listen".into(),
    };
    if !file.file_type().is_socket() {
        return Err(taken(format!("{shown} is there already, and is no socket")).into());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(taken(format!("somebody listens on {shown} already")).into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {shown}"))
        }
        Err(error) => Err(error).with_context(|| format!("cannot tell who listens on {shown}")),
    }
}
