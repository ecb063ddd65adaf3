//! The socket in a sandbox's folder, at which its supervisor is found.
//!
//! The path of a socket has 108 bytes at the most, and that of a home may be longer. So it
//! is named through a descriptor of the folder.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Its name in the folder.
pub(crate) const NAME: &str = "control";

fn short(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()))
}

/// Listens in a folder that nobody else may look into.
pub(crate) fn listen(dir: &Path) -> io::Result<UnixListener> {
    // That of a supervisor which was killed.
    remove(dir);
    UnixListener::bind(short(&File::open(dir)?))
}

/// Connects to whoever listens in the folder.
pub(crate) fn connect(dir: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(short(&File::open(dir)?))
}

/// Removes the socket, if there is one.
pub(crate) fn remove(dir: &Path) {
    let _ = fs::remove_file(dir.join(NAME));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_long_name_will_do() {
        let home = tempfile::tempdir().expect("tempdir");
        let dir = home.path().join("x".repeat(200));
        fs::create_dir(&dir).expect("mkdir");
        let first = listen(&dir).expect("listen");
        drop(first); // its file stays, as after a kill
        assert!(connect(&dir).is_err());
        let _second = listen(&dir).expect("listen");
        connect(&dir).expect("connect");
    }
}
