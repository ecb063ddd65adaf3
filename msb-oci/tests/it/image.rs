//! Small images, made in memory.

use std::collections::HashMap;
use std::io::Write;

use msb_oci::Digest;

use crate::fake::{Reply, Request};

/// A tar of regular files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let mut put =
            |at: usize, text: String| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(100, "0000644\0".to_owned());
        put(108, "0000000\0".to_owned());
        put(116, "0000000\0".to_owned());
        put(124, format!("{:011o}\0", content.len()));
        put(136, "00000000000\0".to_owned());
        put(148, "        ".to_owned());
        put(156, "0".to_owned());
        put(257, "ustar\x0000".to_owned());
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(*content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// An image as a registry holds it.
#[derive(Clone, Debug)]
pub(crate) struct TestImage {
    pub(crate) manifest: String,
    pub(crate) config: String,
    /// Blobs by digest, the configuration among them.
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) layers: Vec<String>,
}

impl TestImage {
    /// From pairs of compressed and uncompressed layers.
    pub(crate) fn new(layers: &[(Vec<u8>, Vec<u8>)]) -> TestImage {
        TestImage::for_platform("linux", "amd64", layers)
    }

    pub(crate) fn for_platform(
        os: &str,
        architecture: &str,
        layers: &[(Vec<u8>, Vec<u8>)],
    ) -> TestImage {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|(_, plain)| format!("\"{}\"", Digest::of(plain)))
            .collect();
        let config = format!(
            r#"{{"os":"{os}","architecture":"{architecture}","config":{{"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let mut blobs = HashMap::from([(digest(config.as_bytes()), config.clone().into_bytes())]);
        let mut descriptors = Vec::new();
        let mut names = Vec::new();
        for (packed, _) in layers {
            let name = digest(packed);
            descriptors.push(format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{name}","size":{}}}"#,
                packed.len()
            ));
            blobs.insert(name.clone(), packed.clone());
            names.push(name);
        }
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{}]}}"#,
            digest(config.as_bytes()),
            config.len(),
            descriptors.join(",")
        );
        TestImage {
            manifest,
            config,
            blobs,
            layers: names,
        }
    }

    /// One gzip layer with these files.
    pub(crate) fn of(files: &[(&str, &[u8])]) -> TestImage {
        let plain = tar(files);
        TestImage::new(&[(gzip(&plain), plain)])
    }

    /// What an honest registry answers.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        if request.path.contains("/manifests/") {
            return Reply::ok(self.manifest.clone());
        }
        let name = request.path.rsplit('/').next().unwrap_or_default();
        match self.blobs.get(name) {
            Some(blob) => Reply::ok(blob.clone()),
            None => Reply::new(
                404,
                r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#,
            ),
        }
    }
}

pub(crate) fn digest(content: &[u8]) -> String {
    Digest::of(content).to_string()
}
