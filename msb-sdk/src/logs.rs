//! What the program of a detached sandbox wrote.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;

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
    /// Once somebody has waited.
    news: Option<News>,
}

impl Logs {
    pub(crate) fn open(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            file: None,
            next: Some(OLDER),
            news: None,
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

    /// Waits until there may be more to read. Must be called in a tokio runtime; nothing is
    /// lost when it is given up.
    ///
    /// # Errors
    /// The host does not tell of changes.
    pub async fn changed(&mut self) -> io::Result<()> {
        if self.news.is_none() {
            self.news = Some(News::of(&self.dir)?);
            // What was written before counts as news.
            return Ok(());
        }
        match &mut self.news {
            Some(news) => news.wait(&self.dir).await,
            None => Ok(()),
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

/// Tells of changes, as long as nobody asks for more than that there are some.
///
/// The folder is watched for files that come, and the newer file for what is written to it:
/// watching the folder for all changes would tell of each that the guest makes to its disk.
#[derive(Debug)]
struct News(Receiver);

impl News {
    fn of(dir: &Path) -> io::Result<Self> {
        let notify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let comes = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(&notify, dir, comes)?;
        watch_newer(&notify, dir);
        // It is read like a pipe, though it is none.
        Ok(Self(Receiver::from_owned_fd_unchecked(notify)?))
    }

    async fn wait(&mut self, dir: &Path) -> io::Result<()> {
        self.0.readable().await?;
        // What it says does not matter, and is only taken so that it is not said again.
        let mut events = [0; 4096];
        while self.0.try_read(&mut events).is_ok() {}
        // It may be another file by now.
        watch_newer(&self.0, dir);
        Ok(())
    }
}

fn watch_newer(notify: impl AsFd, dir: &Path) {
    // Where there is none yet, the folder tells when it comes.
    let _ = inotify::add_watch(notify, dir.join(NEWER), WatchFlags::MODIFY);
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

    #[tokio::test]
    async fn whoever_follows_is_told_of_what_is_added_and_of_a_new_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut logs = Logs::open(dir.path());
        // The writer goes on once the reader has what came before, and waits.
        let (told, mut seen) = tokio::sync::watch::channel(0);
        let reader = async {
            let mut all = Vec::new();
            while !all.ends_with(b"three\n") {
                logs.changed().await.expect("news");
                loop {
                    let chunk = logs.read().expect("read");
                    if chunk.is_empty() {
                        break;
                    }
                    all.extend(chunk);
                    told.send_replace(all.len());
                }
            }
            all
        };
        let writer = async {
            let path = dir.path().join(NEWER);
            std::fs::write(&path, "one\n").expect("write");
            seen.wait_for(|seen| *seen == 4).await.expect("a reader");
            let mut file = File::options().append(true).open(&path).expect("open");
            io::Write::write_all(&mut file, b"two\n").expect("write");
            seen.wait_for(|seen| *seen == 8).await.expect("a reader");
            std::fs::rename(&path, dir.path().join(OLDER)).expect("rename");
            std::fs::write(&path, "three\n").expect("write");
        };
        let (all, ()) = tokio::join!(reader, writer);
        assert_eq!(all, b"one\ntwo\nthree\n");
    }
}
