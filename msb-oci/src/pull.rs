//! The first part of a pull: from a reference to what must be fetched.

use crate::fetch::{Plan, described};
use crate::manifest::{self, Document, MAX_CONFIG, MAX_MANIFEST, Manifest};
use crate::registry::Registry;
use crate::{Digest, Error, PullOptions, Reference, Result};

/// An index may list indexes, in theory.
const MAX_NESTING: usize = 3;

/// Resolves a reference and reads the image's documents.
pub(crate) fn plan(reference: &Reference, options: &PullOptions) -> Result<(Plan, Registry)> {
    let registry = Registry::new(reference, options)?;
    let name = reference.to_string();
    let (digest, content) = registry.manifest()?;
    let (digest, content, manifest) = resolve(&name, digest, content, options, |what, wanted| {
        registry.verified(what, "manifests", wanted, MAX_MANIFEST)
    })?;
    let what = format!("the configuration of {name}");
    let config = registry.verified(&what, "blobs", &manifest.config, MAX_CONFIG)?;
    let plan = Plan::new(
        &name,
        (digest, content),
        (manifest.config.digest, config),
        &described(&manifest.layers),
        options,
    )?;
    Ok((plan, registry))
}

/// Goes from an index to the manifest for the wanted platform. `get` brings
/// the document behind a descriptor, verified.
pub(crate) fn resolve(
    name: &str,
    mut digest: Digest,
    mut content: Vec<u8>,
    options: &PullOptions,
    get: impl Fn(&str, &manifest::Descriptor) -> Result<Vec<u8>>,
) -> Result<(Digest, Vec<u8>, Manifest)> {
    let mut what = format!("the manifest of {name}");
    for _ in 0..MAX_NESTING {
        match manifest::parse(&what, &content, options.limits.layers)? {
            Document::Manifest(manifest) => return Ok((digest, content, manifest)),
            Document::Index(variants) => {
                let variant = manifest::choose(name, &variants, &options.platform)?;
                what = format!("the {} manifest of {name}", options.platform);
                content = get(&what, &variant.descriptor)?;
                digest = variant.descriptor.digest;
            }
        }
    }
    Err(Error::BadImage {
        what,
        reason: "indexes are nested too deeply".to_owned(),
    })
}
