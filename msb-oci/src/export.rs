//! Images to files: one tar that is an OCI layout and what `docker save` writes.
//!
//! The store keeps layers as plain tars, so they are written as such: a layer's digest is its
//! diff-id, and the manifest is a new one. The configuration is the image's own, byte for
//! byte, and so is its digest, which docker calls the image's id.
//!
//! Read: OCI image specification, "image-layout.md" and "manifest.md"; docker's image
//! specification v1.2, "Combined Image JSON + Filesystem Changeset Format".

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::layer::BLOCK;
use crate::manifest::MAX_CONFIG;
use crate::store::{self, Layout};
use crate::{Digest, Error, Image, Lease, Reference, Result};

/// Read and written at a time.
const CHUNK: usize = 256 << 10;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image and what is written of it.
struct Part {
    reference: Reference,
    config: (Digest, Vec<u8>),
    manifest: (Digest, Vec<u8>),
    layers: Vec<Digest>,
    platform: Value,
    /// Nobody removes it meanwhile.
    _lease: Lease,
}

/// Writes images, each with the reference under which it is to be known.
pub(crate) fn write(
    layout: &Layout,
    images: &[(Reference, Image)],
    out: &mut dyn Write,
) -> Result<()> {
    let mut parts = Vec::with_capacity(images.len());
    let mut layers = Vec::new();
    for (reference, image) in images {
        let part = part(layout, reference, image, &mut layers)?;
        parts.push(part);
    }
    let mut tar = Tar { out };
    tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", &index(&parts))?;
    tar.file("manifest.json", &docker_manifest(&parts))?;
    for folder in ["blobs/", "blobs/sha256/"] {
        tar.header(folder, 0, b'5')?;
    }
    let mut written = BTreeSet::new();
    for part in &parts {
        for (digest, content) in [&part.config, &part.manifest] {
            if written.insert(*digest) {
                tar.file(&blob(*digest), content)?;
            }
        }
    }
    for (digest, size) in layers {
        if written.insert(digest) {
            tar.layer(layout, digest, size)?;
        }
    }
    tar.end()
}

fn blob(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads what is small of an image, and finds its layers.
fn part(
    layout: &Layout,
    reference: &Reference,
    image: &Image,
    layers: &mut Vec<(Digest, u64)>,
) -> Result<Part> {
    let lease = image.lease()?;
    let path = layout.blob(image.config_digest());
    let damaged = |reason: &str| Error::Damaged {
        path: path.clone(),
        reason: reason.to_owned(),
    };
    let config = store::read(&path, MAX_CONFIG)?.ok_or_else(|| damaged("it is missing"))?;
    if Digest::of(&config) != image.config_digest() {
        return Err(damaged("it is not what its digest says"));
    }
    let mut described = Vec::new();
    for &diff_id in image.layers() {
        let index = layout.layer(diff_id)?.ok_or_else(|| Error::Damaged {
            path: layout.blob(diff_id),
            reason: "the layer or its index is not whole".to_owned(),
        })?;
        let size = index.tar_bytes();
        described.push(json!({"mediaType": LAYER, "digest": diff_id, "size": size}));
        layers.push((diff_id, size));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": image.config_digest(), "size": config.len()},
        "layers": described,
    });
    let manifest = manifest.to_string().into_bytes();
    let platform = image.config().platform();
    Ok(Part {
        reference: reference.clone(),
        config: (image.config_digest(), config),
        manifest: (Digest::of(&manifest), manifest),
        layers: image.layers().to_vec(),
        platform: json!({"os": platform.os, "architecture": platform.architecture}),
        _lease: lease,
    })
}

fn index(parts: &[Part]) -> Vec<u8> {
    let manifests: Vec<Value> = parts
        .iter()
        .map(|part| {
            let name = part.reference.to_string();
            json!({
                "mediaType": MANIFEST,
                "digest": part.manifest.0,
                "size": part.manifest.1.len(),
                "platform": part.platform,
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name,
                },
            })
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    index.to_string().into_bytes()
}

fn docker_manifest(parts: &[Part]) -> Vec<u8> {
    let images: Vec<Value> = parts
        .iter()
        .map(|part| {
            // A name without a tag is none for docker.
            let tagged = part.reference.tag().is_some();
            let tags: Vec<String> = tagged
                .then(|| part.reference.to_string())
                .into_iter()
                .collect();
            let layers: Vec<String> = part.layers.iter().map(|layer| blob(*layer)).collect();
            json!({"Config": blob(part.config.0), "RepoTags": tags, "Layers": layers})
        })
        .collect();
    Value::Array(images).to_string().into_bytes()
}

/// A tar that is the same whenever and wherever it is written.
struct Tar<'a> {
    out: &'a mut dyn Write,
}

impl Tar<'_> {
    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.header(name, content.len() as u64, b'0')?;
        self.put(content)?;
        self.pad(content.len() as u64)
    }

    /// Copies a layer, and makes sure that it is what its digest says.
    fn layer(&mut self, layout: &Layout, digest: Digest, size: u64) -> Result<()> {
        let path = layout.blob(digest);
        let failed = |source| Error::store("read", &path, source);
        self.header(&blob(digest), size, b'0')?;
        let mut file = File::open(&path).map_err(failed)?.take(size);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            self.put(&buffer[..count])?;
        }
        if Digest::from_bytes(hash.finalize().into()) != digest {
            return Err(Error::Damaged {
                path,
                reason: "it is not what its digest says".to_owned(),
            });
        }
        self.pad(size)
    }

    fn header(&mut self, name: &str, size: u64, kind: u8) -> Result<()> {
        self.put(&header(name, size, kind))
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let missing = size.next_multiple_of(BLOCK) - size;
        self.put(&vec![0; usize::try_from(missing).unwrap_or(0)])
    }

    fn end(&mut self) -> Result<()> {
        self.put(&[0; 2 * BLOCK as usize])?;
        self.out.flush().map_err(written)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(written)
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn written(source: io::Error) -> Error {
    Error::store("write", Path::new("the archive"), source)
}

/// A ustar header; sizes that its eleven octal digits do not hold are written as GNU tar does.
fn header(name: &str, size: u64, kind: u8) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // All names here are far shorter than the hundred bytes that there are for them.
    put(0, name.as_bytes());
    let mode: &[u8] = if kind == b'5' {
        b"0000755\0"
    } else {
        b"0000644\0"
    };
    put(100, mode);
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_what_tar_reads() {
        let small = header("index.json", 0o17, b'0');
        assert_eq!(&small[124..136], b"00000000017\0");
        let sum: u32 = small
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => u32::from(b' '),
                _ => u32::from(*byte),
            })
            .sum();
        assert_eq!(&small[148..156], format!("{sum:06o}\0 ").as_bytes());
        let large = header("x", 1 << 40, b'0');
        assert_eq!(large[124], 0x80);
        assert_eq!(large[128..136], (1u64 << 40).to_be_bytes());
    }
}
