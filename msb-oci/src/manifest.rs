//! Manifests and indexes: which blobs an image consists of.
//!
//! Read: OCI image specification "manifest.md", "image-index.md", and docker's
//! "Image Manifest Version 2, Schema 2". Only the fields that a pull needs are
//! read. A document that is both, or neither, is refused: two readers must not
//! see two images in it.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{Digest, Error, Platform, Result};

/// docker's registry accepts 4 MiB; so do we.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Histories make configurations long, but not this long.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;

/// The media types that a registry is asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// What a digest leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// One variant in an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) descriptor: Descriptor,
    /// `None`: the index does not say; the configuration will.
    pub(crate) platform: Option<Platform>,
    /// The reference an OCI layout or archive gives it; a word alone is a tag without a name.
    pub(crate) name: Option<String>,
}

/// What a manifest request can bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Variant>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    urls: Option<Vec<IgnoredAny>>,
    platform: Option<RawPlatform>,
    annotations: Option<RawAnnotations>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Deserialize)]
struct RawAnnotations {
    /// containerd's and docker's full reference.
    #[serde(rename = "io.containerd.image.name")]
    containerd_name: Option<String>,
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: Option<String>,
}

/// Reads a manifest or an index. `what` names it in errors.
pub(crate) fn parse(what: &str, json: &[u8], max_layers: usize) -> Result<Document> {
    let bad = |reason: String| Error::BadImage {
        what: what.to_owned(),
        reason,
    };
    if json.len() as u64 > MAX_MANIFEST {
        return Err(bad(format!("it is larger than {MAX_MANIFEST} bytes")));
    }
    let raw: RawDocument = serde_json::from_slice(json)
        .map_err(|error| bad(format!("it is not a manifest: {error}")))?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(bad(
            "it has docker's schema 1, which is obsolete; push the image again with a newer tool"
                .to_owned(),
        ));
    }
    if raw.schema_version.is_some_and(|version| version != 2) {
        return Err(bad("its schemaVersion is not 2".to_owned()));
    }
    let kind = raw.media_type.as_deref().unwrap_or_default();
    match (raw.config, raw.layers, raw.manifests) {
        (Some(config), Some(layers), None)
            if !kind.contains("index") && !kind.contains("manifest.list") =>
        {
            if layers.len() > max_layers {
                return Err(Error::TooLarge {
                    what: what.to_owned(),
                    limit: max_layers as u64,
                    unit: "layers",
                });
            }
            let config = descriptor(&config).map_err(bad)?;
            if config.size > MAX_CONFIG {
                return Err(bad(format!(
                    "its configuration is larger than {MAX_CONFIG} bytes"
                )));
            }
            let layers = layers
                .iter()
                .map(layer)
                .collect::<Result<_, String>>()
                .map_err(bad)?;
            Ok(Document::Manifest(Manifest { config, layers }))
        }
        (None, None, Some(manifests)) if !kind.contains("manifest.v") => {
            let variants = manifests
                .into_iter()
                .map(variant)
                .collect::<Result<_, String>>()
                .map_err(bad)?;
            Ok(Document::Index(variants))
        }
        _ => Err(bad(
            "it is neither an image manifest nor an index".to_owned()
        )),
    }
}

fn descriptor(raw: &RawDescriptor) -> Result<Descriptor, String> {
    let digest = raw
        .digest
        .parse()
        .map_err(|error: Error| error.to_string())?;
    Ok(Descriptor {
        digest,
        size: raw.size,
    })
}

fn layer(raw: &RawDescriptor) -> Result<Descriptor, String> {
    let kind = raw.media_type.as_deref().unwrap_or_default();
    let printable: String = kind
        .chars()
        .filter(|character| !character.is_control())
        .take(100)
        .collect();
    if kind.contains("nondistributable")
        || kind.contains("foreign")
        || raw.urls.as_ref().is_some_and(|urls| !urls.is_empty())
    {
        return Err(format!(
            "its layer {} is to be fetched from elsewhere ({printable}), which is not done",
            raw.digest
        ));
    }
    let known = matches!(
        kind,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
    );
    if !known {
        return Err(format!(
            "its layer {} is no file system layer but `{printable}`",
            raw.digest
        ));
    }
    descriptor(raw)
}

fn variant(raw: RawDescriptor) -> Result<Variant, String> {
    let descriptor = descriptor(&raw)?;
    let platform = raw.platform.map(|platform| Platform {
        os: platform.os,
        architecture: platform.architecture,
    });
    let name = raw.annotations.and_then(|annotations| {
        let whole = annotations.containerd_name.map(|name| {
            // As everywhere: a word alone is a repository, and its tag is `latest`.
            let bare = !name.contains(['/', ':']);
            if bare { format!("{name}:latest") } else { name }
        });
        whole.or(annotations.name)
    });
    Ok(Variant {
        descriptor,
        platform,
        name,
    })
}

/// Chooses the variant for a platform: the first that is for it, else a lone
/// one that does not say. The error lists what there is.
pub(crate) fn choose<'v>(
    reference: &str,
    variants: &'v [Variant],
    wanted: &Platform,
) -> Result<&'v Variant> {
    let is_wanted = |variant: &&Variant| variant.platform.as_ref() == Some(wanted);
    if let Some(variant) = variants.iter().find(is_wanted) {
        return Ok(variant);
    }
    if let [only] = variants
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut offered: Vec<String> = variants
        .iter()
        .filter_map(|variant| variant.platform.as_ref())
        // Attestations stand in indexes as images for nobody.
        .filter(|platform| platform.os != "unknown")
        .map(|platform| {
            platform
                .to_string()
                .chars()
                .filter(|character| !character.is_control())
                .take(60)
                .collect()
        })
        .take(64)
        .collect();
    offered.sort();
    offered.dedup();
    Err(Error::NoSuchPlatform {
        reference: reference.to_owned(),
        wanted: wanted.clone(),
        offered,
    })
}

#[cfg(test)]
mod tests {
    use super::{Document, choose, parse};
    use crate::Platform;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(layer_type: &str, extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{DIGEST}","size":1}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{DIGEST}","size":2{extra}}}]}}"#
        )
    }

    fn reads(json: &str) -> bool {
        parse("it", json.as_bytes(), 4).is_ok()
    }

    #[test]
    fn reads_manifests() {
        let json = manifest("application/vnd.oci.image.layer.v1.tar+gzip", "");
        let Document::Manifest(manifest) = parse("it", json.as_bytes(), 4).unwrap() else {
            panic!("an index")
        };
        assert_eq!((manifest.config.size, manifest.layers[0].size), (1, 2));
    }

    #[test]
    fn refuses_what_it_should_not_fetch() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert!(reads(&manifest(gzip, "")));
        assert!(!reads(&manifest(gzip, r#","urls":["http://127.0.0.1/"]"#)));
        assert!(!reads(&manifest(
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            ""
        )));
        assert!(!reads(&manifest(
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            ""
        )));
        assert!(!reads(
            &manifest(gzip, "").replace("\"size\":2", "\"size\":-2")
        ));
        assert!(!reads(
            &manifest(gzip, "").replace("\"schemaVersion\":2", "\"schemaVersion\":1")
        ));
        assert!(!reads(
            &manifest(gzip, "").replace("\"layers\"", "\"manifests\":[],\"layers\"")
        ));
        assert!(!reads(r#"{"schemaVersion":2}"#));
        assert!(!reads(&"[".repeat(100_000)));
    }

    #[test]
    fn chooses_by_platform_and_lists_the_rest() {
        let entry =
            |platform: &str| format!(r#"{{"digest":"{DIGEST}","size":1,"platform":{platform}}}"#);
        let arm = entry(r#"{"os":"linux","architecture":"arm64"}"#);
        let unknown = entry(r#"{"os":"unknown","architecture":"unknown"}"#);
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{arm},{unknown}]}}"#);
        let Document::Index(variants) = parse("it", json.as_bytes(), 4).unwrap() else {
            panic!("a manifest")
        };
        let error = choose("a:b", &variants, &Platform::linux_amd64()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "image a:b has no linux/amd64 variant; it offers: linux/arm64"
        );
        let arm = Platform {
            os: "linux".to_owned(),
            architecture: "arm64".to_owned(),
        };
        assert!(choose("a:b", &variants, &arm).is_ok());
    }
}
