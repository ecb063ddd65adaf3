//! The root disk of an image: layers merged, metadata written, descriptor
//! and record beside it, and all of it put in place with one rename.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::layout::{self, Layout, METADATA, RECORD, ROOT_DISK};
use super::record::{self, ImageRecord};
use crate::erofs::{self, Device};
use crate::fetch::Plan;
use crate::ingest::{Budget, Layer};
use crate::layer::{BLOCK, LayerIndex};
use crate::tree::Tree;
use crate::vmdk::{self, VmdkExtent};
use crate::{Digest, Error, Result};

/// Makes the image of a plan whose layers are in the store. Its metadata count, too: many
/// images can share a layer of nothing but names.
pub(crate) fn assemble(
    layout: &Layout,
    plan: &Plan,
    indexes: &HashMap<Digest, LayerIndex>,
    budget: &Budget,
) -> Result<()> {
    let mut layers = Vec::with_capacity(plan.layers.len());
    for layer in &plan.layers {
        layers.push(indexes.get(&layer.diff_id).ok_or_else(|| Error::BadImage {
            what: layer.name(),
            reason: "it is not in the store".to_owned(),
        })?);
    }
    let tree = Tree::merge(layers.iter().copied()).map_err(|refused| Error::Layer {
        layer: plan
            .layers
            .get(refused.layer)
            .map_or_else(String::new, Layer::name),
        fault: refused.fault,
    })?;
    let devices: Vec<Device> = plan
        .layers
        .iter()
        .zip(&layers)
        .map(|(layer, index)| device(layer.diff_id, index))
        .collect();

    for (digest, content) in &plan.documents {
        layout.write_document(*digest, content)?;
    }
    let directory = layout.temp_dir()?;
    let path = directory.path();
    let metadata_path = path.join(METADATA);
    let (metadata, metadata_bytes) = write_metadata(&metadata_path, &tree, &devices, plan)?;
    budget
        .spend(metadata_bytes)
        .map_err(|reason| Error::BadImage {
            what: "the root file system".to_owned(),
            reason: reason.to_string(),
        })?;
    let mut extents = vec![VmdkExtent {
        path: METADATA.to_owned(),
        bytes: metadata_bytes,
    }];
    for (layer, device) in plan.layers.iter().zip(&devices) {
        let path = format!("../../blobs/sha256/{}", layer.diff_id.hex());
        extents.push(VmdkExtent {
            path,
            bytes: device.bytes,
        });
    }
    let disk = vmdk::descriptor(&extents).map_err(|error| Error::BadImage {
        what: "the root disk".to_owned(),
        reason: error.to_string(),
    })?;
    let (disk_path, record_path) = (path.join(ROOT_DISK), path.join(RECORD));
    let disk = write(&disk_path, disk.as_bytes())?;
    let ids = plan.layers.iter().map(|layer| layer.diff_id).collect();
    let mut record = ImageRecord::new(plan.manifest, plan.config_digest, ids, plan.config.clone());
    record.size = extents.iter().map(|extent| extent.bytes).sum();
    let json =
        serde_json::to_vec(&record).expect("a record of strings and numbers has a JSON form");
    let record = write(&record_path, &json)?;
    let blobs = layout.blobs();
    layout::sync(&[
        (&metadata_path, &metadata),
        (&disk_path, &disk),
        (&record_path, &record),
        (path, &layout::open_directory(path)?),
        (&blobs, &layout::open_directory(&blobs)?),
    ])?;
    put_in_place(layout, directory, plan.manifest)
}

fn device(diff_id: Digest, index: &LayerIndex) -> Device {
    let mut tag = [0; 64];
    tag.copy_from_slice(diff_id.hex().as_bytes());
    Device {
        bytes: index.tar_bytes().next_multiple_of(BLOCK),
        tag,
    }
}

fn write_metadata(
    path: &Path,
    tree: &Tree<'_>,
    devices: &[Device],
    plan: &Plan,
) -> Result<(File, u64)> {
    let failed = |source| Error::store("write", path, source);
    let file = File::create(path).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    let info = erofs::write(tree, devices, &mut out).map_err(|error| match error {
        erofs::WriteError::Io(source) => failed(source),
        error => Error::BadImage {
            what: error
                .layer()
                .and_then(|number| plan.layers.get(number as usize))
                .map_or("the root file system".to_owned(), Layer::name),
            reason: error.to_string(),
        },
    })?;
    out.flush().map_err(failed)?;
    drop(out);
    Ok((file, info.bytes))
}

fn write(path: &Path, content: &[u8]) -> Result<File> {
    let write = || -> std::io::Result<File> {
        let mut file = File::create(path)?;
        file.write_all(content)?;
        Ok(file)
    };
    write().map_err(|source| Error::store("write", path, source))
}

/// Renames the finished directory. Another process may have been faster: its
/// image is as good. What is there but is no image makes room.
fn put_in_place(layout: &Layout, directory: tempfile::TempDir, digest: Digest) -> Result<()> {
    let target = layout.image(digest);
    for _ in 0..3 {
        match fs::rename(directory.path(), &target) {
            Ok(()) => {
                // The name is gone: nothing is left for the guard to delete.
                let _ = directory.keep();
                // The name is synced before a reference comes to mean it.
                return Ok(());
            }
            Err(_) if target.exists() => {
                if layout.is_complete(digest)
                    && matches!(record::read_image(layout, digest), Ok(Some(_)))
                {
                    return Ok(());
                }
                let aside = layout.temp_dir()?;
                fs::rename(&target, aside.path().join("damaged"))
                    .map_err(|source| Error::store("replace", &target, source))?;
            }
            Err(source) => return Err(Error::store("create", &target, source)),
        }
    }
    Err(Error::Damaged {
        path: target,
        reason: "it can't be replaced".to_owned(),
    })
}
