//! Which machines share a template: those whose key is equal.
//!
//! A key is a digest of all that the saved state depends on. Files count by their
//! content, not by their path, so that an unchanged rebuild keeps its template. Hashing
//! 20 MiB on every start would cost more than the start; the store remembers digests by
//! the files' identity and change time.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::store::Store;
use crate::engine::Isolation;
use crate::engine::qemu::Qemu;
use crate::error::Error;
use crate::machine::Machine;

/// Part of each key. To be raised when the files of a template, or the way a guest is
/// saved, change their meaning.
const FORMAT: &str = "msb template 1";

/// How old a file's last change must be for its digest to be remembered: a file may
/// change twice within one tick of the file system's clock.
const SETTLED: Duration = Duration::from_secs(1);

/// How much of `/proc/cpuinfo` counts: it describes the first processor.
const MAX_CPUINFO: u64 = 4 << 10;

/// The name of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    /// Computes the key of a machine that is run by `qemu`.
    pub(super) fn of(
        qemu: &Qemu,
        machine: &Machine,
        layout: &[String],
        store: &Store,
    ) -> Result<Key, Error> {
        let parts = [
            FORMAT.to_owned(),
            content_id("kernel", &machine.kernel, store)?,
            content_id("initramfs", &machine.initramfs, store)?,
            content_id("the VMM", qemu.program(), store)?,
            processor(qemu.isolation())?,
        ];
        Ok(Key::digest(parts.iter().chain(layout)))
    }

    /// Computes what machines have in common that can go on from one another's saved state:
    /// their kernel is in their memory, and counts no more.
    pub(super) fn kind(qemu: &Qemu, layout: &[String], store: &Store) -> Result<Key, Error> {
        let parts = [
            "msb snapshot 1".to_owned(),
            content_id("the VMM", qemu.program(), store)?,
            processor(qemu.isolation())?,
        ];
        Ok(Key::digest(parts.iter().chain(layout)))
    }

    /// Computes the key of what `variant` makes of this template.
    pub(super) fn variant(&self, variant: &str) -> Key {
        Key::digest([FORMAT, &self.0, variant])
    }

    fn digest(parts: impl IntoIterator<Item = impl AsRef<str>>) -> Key {
        let mut hash = Sha256::new();
        for part in parts {
            let part = part.as_ref();
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut key = hex(&hash.finalize());
        key.truncate(32);
        Key(key)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the guest's processor depends on: nothing of the host's when it is emulated.
fn processor(isolation: Isolation) -> Result<String, Error> {
    if isolation == Isolation::Emulated {
        return Ok(String::new());
    }
    let path = Path::new("/proc/cpuinfo");
    let mut text = String::new();
    let opened = File::open(path).and_then(|file| file.take(MAX_CPUINFO).read_to_string(&mut text));
    opened.map_err(|source| Error::Unreadable {
        what: "the processor's description",
        path: path.to_owned(),
        source,
    })?;
    let stable = |line: &&str| {
        [
            "vendor_id",
            "cpu family",
            "model",
            "stepping",
            "microcode",
            "flags",
        ]
        .iter()
        .any(|field| line.starts_with(field))
    };
    Ok(text.lines().filter(stable).collect::<Vec<_>>().join("\n"))
}

/// What identifies one state of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileState {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileState {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(FileState {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Returns the file's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether both are of one file, which was changed between them or not.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// Whether both are of one file whose content was not changed between them; it may have
    /// got other names.
    pub(crate) fn has_content_of(&self, other: &Self) -> bool {
        let ctime = other.ctime;
        FileState { ctime, ..*self } == *other
    }

    /// Whether a change after now could not be mistaken for this state.
    fn settled(&self) -> bool {
        let seconds = u64::try_from(self.ctime.0).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds + 1);
        changed.elapsed().is_ok_and(|age| age >= SETTLED)
    }
}

/// A digest that is remembered, with the file state it is of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    state: FileState,
    digest: String,
}

fn content_id(what: &'static str, path: &Path, store: &Store) -> Result<String, Error> {
    let unreadable = |source| Error::Unreadable {
        what,
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let state = FileState::of(&file).map_err(unreadable)?;
    let name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()));
    if let Some(known) = store.recall(&name).filter(|known| known.state == state) {
        return Ok(known.digest);
    }
    let digest = digest(&file).map_err(unreadable)?;
    let unchanged = FileState::of(&file).map_err(unreadable)? == state;
    if unchanged && state.settled() {
        store.remember(
            &name,
            &Remembered {
                state,
                digest: digest.clone(),
            },
        );
    }
    Ok(digest)
}

/// Digests a file that is read from its current position to its end.
pub(crate) fn digest(mut file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 128 << 10];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => hash.update(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("templates"));
        let path = folder.path().join("kernel");
        std::fs::write(&path, "one").unwrap();
        let first = content_id("kernel", &path, &store).unwrap();
        assert_eq!(
            first,
            "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
        );
        // Too young to be remembered.
        let name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()));
        assert!(store.recall(&name).is_none());
        let state = FileState::of(&File::open(&path).unwrap()).unwrap();
        store.remember(
            &name,
            &Remembered {
                state,
                digest: "remembered".into(),
            },
        );
        assert_eq!(content_id("kernel", &path, &store).unwrap(), "remembered");
        std::fs::write(&path, "three").unwrap();
        assert_ne!(content_id("kernel", &path, &store).unwrap(), "remembered");
    }

    #[test]
    fn a_missing_file_is_named() {
        let store = Store::new("/nonexistent/templates".into());
        let error = content_id("kernel", Path::new("/nonexistent/vmlinux"), &store).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/vmlinux"),
            "{error}"
        );
        assert!(error.hint().is_some());
    }
}
