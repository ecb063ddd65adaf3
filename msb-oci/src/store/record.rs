//! The JSON records of the store: what a reference means, what an image is.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::layout::{self, Layout, RECORD, ROOT_DISK};
use crate::{Digest, Error, Image, ImageConfig, Reference, Result};

/// A record holds a configuration, whose own bound is 8 MiB.
const MAX_RECORD: u64 = 16 << 20;

/// The form of records this program reads and writes.
const VERSION: u32 = 1;

/// What a reference means: `images/references/*.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReferenceRecord {
    pub(super) reference: String,
    pub(super) digest: Digest,
}

/// An image: `images/HEX/image.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    pub(crate) manifest: Digest,
    pub(crate) config_digest: Digest,
    pub(crate) layers: Vec<Digest>,
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) pulled: u64,
    pub(crate) config: ImageConfig,
}

impl ImageRecord {
    pub(crate) fn new(
        manifest: Digest,
        config_digest: Digest,
        layers: Vec<Digest>,
        config: ImageConfig,
    ) -> ImageRecord {
        let pulled = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        ImageRecord {
            version: VERSION,
            manifest,
            config_digest,
            layers,
            size: 0,
            pulled,
            config,
        }
    }

    pub(super) fn into_image(self, layout: &Layout, references: Vec<Reference>) -> Image {
        let directory = layout.image(self.manifest);
        Image {
            root_disk: directory.join(ROOT_DISK),
            store_root: layout.root.clone(),
            directory,
            digest: self.manifest,
            config_digest: self.config_digest,
            references,
            config: self.config,
            layers: self.layers,
            size: self.size,
            pulled: UNIX_EPOCH + Duration::from_secs(self.pulled),
        }
    }
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(content) = layout::read(path, MAX_RECORD)? else {
        return Ok(None);
    };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|error| Error::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

/// What the record of a reference says, if there is one.
pub(super) fn read_reference(path: &Path) -> Result<Option<(Reference, Digest)>> {
    let Some(record) = parse::<ReferenceRecord>(path)? else {
        return Ok(None);
    };
    let reference = record
        .reference
        .parse()
        .map_err(|error: Error| Error::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    Ok(Some((reference, record.digest)))
}

/// The record of an image, if there is one.
pub(super) fn read_image(layout: &Layout, digest: Digest) -> Result<Option<ImageRecord>> {
    let path = layout.image(digest).join(RECORD);
    let Some(record) = parse::<ImageRecord>(&path)? else {
        return Ok(None);
    };
    let damaged = |reason: String| {
        Err(Error::Damaged {
            path: path.clone(),
            reason,
        })
    };
    if record.version != VERSION {
        return damaged(format!(
            "it is of version {}, this program knows {VERSION}",
            record.version
        ));
    }
    if record.manifest != digest {
        return damaged(format!("it describes {}", record.manifest));
    }
    Ok(Some(record))
}

/// All references of the store, sorted.
pub(super) fn all_references(layout: &Layout) -> Result<Vec<(Reference, Digest)>> {
    let directory = layout.references();
    let failed = |source| Error::store("read", &directory, source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            found.extend(read_reference(&path)?);
        }
    }
    found.sort();
    Ok(found)
}

/// Makes `reference` mean the image `digest`; returns what it meant before.
pub(super) fn write_reference(
    layout: &Layout,
    reference: &Reference,
    digest: Digest,
) -> Result<Option<Digest>> {
    let path = layout.reference(reference);
    let before = read_reference(&path)
        .ok()
        .flatten()
        .map(|(_, digest)| digest);
    if before != Some(digest) {
        let record = ReferenceRecord {
            reference: reference.to_string(),
            digest,
        };
        let json = serde_json::to_vec(&record).expect("a record of strings has a JSON form");
        let file = layout.temp_file_with(&path, &json)?;
        let (images, references) = (layout.images(), layout.references());
        layout::sync(&[
            (&path, file.as_file()),
            (&images, &layout::open_directory(&images)?),
        ])?;
        layout::rename(file, &path)?;
        layout::sync(&[(&references, &layout::open_directory(&references)?)])?;
    }
    Ok(before.filter(|before| *before != digest))
}
