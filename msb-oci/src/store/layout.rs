//! Where things are in the store, and how they get there: temp file, sync,
//! rename, so that a name never stands for half a file.
//!
//! ```text
//! blobs/lock                    shared: adding content; exclusive: collecting
//! blobs/collect                 exists while a collection is due
//! blobs/locks/HEX               exclusive: one process fetches this layer
//! blobs/tmp/                    unfinished files; emptied when nobody adds
//! blobs/sha256/HEX              layers (uncompressed, padded), manifests, configs
//! blobs/sha256/HEX.index        what the layer HEX holds
//! images/HEX/                   the root disk of the image with manifest HEX
//! images/references/HEX.json    a reference, named by its digest
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::{Digest, Error, Reference, Result};

/// File name of the EROFS metadata image inside an image's directory.
pub(crate) const METADATA: &str = "metadata.erofs";
/// File name of the root disk's descriptor.
pub(crate) const ROOT_DISK: &str = "root.vmdk";
/// File name of the image's record, which leases lock.
pub(crate) const RECORD: &str = "image.json";

/// Paths below the store's root.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn directories(&self) -> [PathBuf; 5] {
        [
            self.root.join("blobs/sha256"),
            self.root.join("blobs/locks"),
            self.root.join("blobs/tmp"),
            self.root.join("images"),
            self.root.join("images/references"),
        ]
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("blobs/lock")
    }

    pub(crate) fn collection_due(&self) -> PathBuf {
        self.root.join("blobs/collect")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn index(&self, digest: Digest) -> PathBuf {
        self.blobs().join(format!("{}.index", digest.hex()))
    }

    pub(crate) fn blob_locks(&self) -> PathBuf {
        self.root.join("blobs/locks")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("blobs/tmp")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn image(&self, digest: Digest) -> PathBuf {
        self.images().join(digest.hex())
    }

    pub(crate) fn references(&self) -> PathBuf {
        self.root.join("images/references")
    }

    pub(crate) fn reference(&self, reference: &Reference) -> PathBuf {
        let name = Digest::of(reference.to_string().as_bytes()).hex();
        self.references().join(format!("{name}.json"))
    }

    /// A file that vanishes unless it is [`rename`]d.
    pub(crate) fn temp_file(&self) -> Result<NamedTempFile> {
        let directory = self.tmp();
        NamedTempFile::new_in(&directory)
            .map_err(|source| Error::store("create a file in", &directory, source))
    }

    /// A directory that vanishes unless it is renamed.
    pub(crate) fn temp_dir(&self) -> Result<TempDir> {
        let directory = self.tmp();
        TempDir::new_in(&directory)
            .map_err(|source| Error::store("create a directory in", &directory, source))
    }

    /// Keeps a document under its digest. It is not synced: a reader can tell
    /// by the name whether it is whole.
    pub(crate) fn write_document(&self, digest: Digest, content: &[u8]) -> Result<()> {
        let path = self.blob(digest);
        let file = self.temp_file_with(&path, content)?;
        rename(file, &path)
    }

    /// A temp file that is to become `path`.
    pub(crate) fn temp_file_with(&self, path: &Path, content: &[u8]) -> Result<NamedTempFile> {
        let mut file = self.temp_file()?;
        file.write_all(content)
            .map_err(|source| Error::store("write", path, source))?;
        Ok(file)
    }
}

/// Gives a finished temp file its name. Its content is to be synced before,
/// or the name may stand for half a file after a crash of the machine.
pub(crate) fn rename(file: NamedTempFile, path: &Path) -> Result<()> {
    let failed = |error: tempfile::PersistError| Error::store("write", path, error.error);
    file.persist(path).map_err(failed)?;
    Ok(())
}

/// Makes the content of files, or the names in directories, survive a crash of
/// the machine. All at the same time: flushing a disk takes milliseconds
/// however little there is to flush, and one flush can do for all.
pub(crate) fn sync(files: &[(&Path, &File)]) -> Result<()> {
    let one = |(path, file): &(&Path, &File)| {
        file.sync_all()
            .map_err(|source| Error::store("sync", path, source))
    };
    let Some((first, others)) = files.split_first() else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = others
            .iter()
            .map(|other| scope.spawn(move || one(other)))
            .collect();
        let result = one(first);
        others.into_iter().fold(result, |result, other| {
            let other = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.and(other)
        })
    })
}

/// Opens a directory for [`sync`].
pub(crate) fn open_directory(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::store("open", path, source))
}

/// Reads a small file; `None` if there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::store("read", path, source)),
    };
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(|source| Error::store("read", path, source))?;
    if content.len() as u64 > limit {
        return Err(Error::Damaged {
            path: path.to_owned(),
            reason: format!("it is larger than {limit} bytes"),
        });
    }
    Ok(Some(content))
}

/// The bytes of disk that a file takes.
pub(crate) fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |found| found.blocks() * 512)
}

/// Deletes a file or a whole directory; one that is gone already is fine.
/// Returns the bytes of disk that came free.
pub(crate) fn delete(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(0);
    };
    let mut freed = metadata.blocks() * 512;
    let result = if metadata.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            freed += entry
                .metadata()
                .map_or(0, |metadata| metadata.blocks() * 512);
        }
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::store("delete", path, source))
        }
        _ => Ok(freed),
    }
}
