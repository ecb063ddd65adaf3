//! Fuzz targets: each panics if a property does not hold.

use crate::erofs::roundtrip;
use crate::{ImageConfig, Limits, Reference, manifest, registry};

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

/// Challenges are read or refused.
pub fn auth_challenge(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = registry::parse_challenge(text);
    }
}
