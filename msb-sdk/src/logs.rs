//! What the program of a detached sandbox wrote.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files, in the sandbox's folder.
pub(crate) const NEWER: &str = "output.log";
pub(crate) const OLDER: &str = "output.1.log";

/// The most that either holds, in bytes: some hundred thousand lines.
pub(crate) const MAX_LOG: u64 = 8 << 20;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// Reads the log from its beginning, also while it is written.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    file: Option<File>,
    /// The file that is next, once this one is read.
    next: Option<&'static str>,
}

impl Logs {
    pub(crate) fn open(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            file: None,
            next: Some(OLDER),
        }
    }

    /// Reads on; empty when there is nothing more by now.
    ///
    /// # Errors
    /// The host can't read the file.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(file) = &mut self.file {
                let mut chunk = vec![0; CHUNK];
                let count = file.read(&mut chunk)?;
                chunk.truncate(count);
                if count > 0 || !self.turned()? {
                    return Ok(chunk);
                }
            }
            let Some(name) = self.next.take() else {
                return Ok(Vec::new());
            };
            if name == OLDER {
                self.next = Some(NEWER);
            }
            self.file = File::open(self.dir.join(name)).ok();
            if self.file.is_none() && name == NEWER {
                self.next = Some(NEWER);
                return Ok(Vec::new());
            }
        }
    }

    /// Whether another file is next: there is one, or this one has become the older.
    fn turned(&mut self) -> io::Result<bool> {
        if self.next.is_some() {
            return Ok(true);
        }
        let (Some(file), Ok(newer)) = (&mut self.file, self.dir.join(NEWER).metadata()) else {
            return Ok(false);
        };
        let found = file.metadata()?;
        if (found.dev(), found.ino()) != (newer.dev(), newer.ino()) {
            self.next = Some(NEWER);
            return Ok(true);
        }
        if file.stream_position()? > newer.len() {
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_read_and_then_what_is_added() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut logs = Logs::open(dir.path());
        assert!(logs.read().expect("nothing").is_empty());
        std::fs::write(dir.path().join(NEWER), "one\n").expect("write");
        assert_eq!(logs.read().expect("read"), b"one\n");
        assert!(logs.read().expect("no more").is_empty());
        std::fs::rename(dir.path().join(NEWER), dir.path().join(OLDER)).expect("rename");
        std::fs::write(dir.path().join(NEWER), "two\n").expect("write");
        assert_eq!(logs.read().expect("read"), b"two\n");
        let mut again = Logs::open(dir.path());
        let both = [again.read().expect("read"), again.read().expect("read")].concat();
        assert_eq!(both, b"one\ntwo\n");
    }
}
