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

    /// A file that vanishes unless it is [`publish`]ed.
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

    /// Writes a small file so that it is there whole or not at all.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        let mut file = self.temp_file()?;
        file.write_all(content)
            .map_err(|source| Error::store("write", path, source))?;
        publish(file, path)
    }
}

/// Syncs a finished temp file and gives it its name.
pub(crate) fn publish(file: NamedTempFile, path: &Path) -> Result<()> {
    let failed = |source| Error::store("write", path, source);
    file.as_file().sync_data().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Makes the names in a directory survive a crash of the machine.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| Error::store("sync", path, source))
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
