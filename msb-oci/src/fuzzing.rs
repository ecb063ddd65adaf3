//! Fuzz targets: each panics if a property does not hold.

use std::io::{self, Read};
use std::sync::Arc;

use crate::erofs::roundtrip;
use crate::import::Archive;
use crate::ingest::Source;
use crate::store::Layout;
use crate::{ImageConfig, Limits, PullOptions, Reference, manifest, registry};

/// Indexing a layer does not depend on how its bytes arrive.
pub fn layer_tar(data: &[u8]) {
    roundtrip::layer_tar(data);
}

/// A root written from a layer reads back equal.
pub fn erofs_roundtrip(data: &[u8]) {
    roundtrip::erofs_roundtrip(data);
}

/// A reference that parses prints as text that parses to the same.
pub fn image_reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = text.parse::<Reference>() {
        let reparse = |text: String| {
            text.parse::<Reference>()
                .expect("a printed reference parses")
        };
        assert_eq!(reparse(reference.to_string()), reference);
        assert_eq!(reparse(reference.familiar()), reference);
    }
}

/// Manifests and indexes are read or refused, within the limits.
pub fn manifest_json(data: &[u8]) {
    let limits = Limits::default();
    if let Ok(manifest::Document::Manifest(manifest)) = manifest::parse("fuzz", data, limits.layers)
    {
        assert!(manifest.layers.len() <= limits.layers);
        assert!(manifest.config.size <= manifest::MAX_CONFIG);
    }
}

/// A configuration that is read has an environment that can be set.
pub fn image_config_json(data: &[u8]) {
    if let Ok((config, _)) = ImageConfig::parse(data) {
        assert!(
            config
                .env
                .iter()
                .all(|entry| entry.find('=').is_some_and(|at| at > 0))
        );
    }
}

/// What claims to be an archive of images is read or refused, within the limits.
pub fn image_archive(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = Layout {
        root: folder.path().to_owned(),
    };
    std::fs::create_dir_all(layout.tmp()).expect("a folder");
    let path = folder.path().join("archive");
    std::fs::write(&path, data).expect("a file");
    let options = PullOptions::default();
    let Ok(archive) = Archive::open(&layout, &path, &options) else {
        return;
    };
    let archive = Arc::new(archive);
    let names = archive.names(&options).unwrap_or_default();
    assert!(names.whole.len().max(names.nameless.len()) <= 256);
    for name in names.whole.iter().take(4).map(Some).chain([None]) {
        let Ok((plan, opened, reference)) = archive.plan(name, &options) else {
            continue;
        };
        assert!(name.is_none_or(|name| *name == reference));
        assert!(plan.layers.len() <= options.limits.layers);
        for layer in &plan.layers {
            if let Ok(content) = opened.open(layer, 0) {
                let _ = io::copy(&mut content.take(1 << 20), &mut io::sink());
            }
        }
    }
}

/// Challenges are read or refused.
pub fn auth_challenge(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = registry::parse_challenge(text);
    }
}
