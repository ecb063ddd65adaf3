//! A real registry (`docker-registry`) on a free loopback port, ended on drop.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::program;

/// How long a registry takes to listen at most: tries, 25 ms apart.
const MAX_TRIES: u32 = 400;

/// Blobs that are longer are layers.
const MAX_MANIFEST: u64 = 64 << 10;

/// How the layers of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As most images are.
    Gzip,
    /// As some newer ones are.
    Zstd,
}

impl Compression {
    /// `gzip` or `zstd`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// Starts a registry that keeps its blobs in `storage` and its own files in
    /// `scratch`.
    ///
    /// # Errors
    /// When it is not installed or does not listen.
    pub fn start(storage: &Path, scratch: &Path) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let config = scratch.join("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {storage:?}}}}}\n\
                 http: {{addr: \"127.0.0.1:{port}\"}}\n"
            ),
        )?;
        let log = scratch.join("registry.log");
        // It ends with this process, also when that is killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig=KILL", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?);
        let child = command
            .spawn()
            .map_err(|error| program::cannot_run(&command, &error))?;
        let mut registry = Self { child, port };
        for _ in 0..MAX_TRIES {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(registry);
            }
            if let Some(status) = registry.child.try_wait()? {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("docker-registry ended with {status}: {said}");
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("docker-registry does not listen on port {port}")
    }

    /// A reference to an image here.
    #[must_use]
    pub fn reference(&self, image: &str, compression: Compression) -> String {
        format!("localhost:{}/{image}:{}", self.port, compression.name())
    }

    /// Copies an image from its OCI layout, compressed as wanted.
    ///
    /// By way of a layout of its own in `scratch`, and kept to the byte from
    /// there on: skopeo remembers what it has pushed, and would rather refer
    /// to the same layer compressed in another way.
    ///
    /// # Errors
    /// When skopeo fails.
    pub fn push(
        &self,
        layout: &Path,
        image: &str,
        compression: Compression,
        scratch: &Path,
    ) -> Result<()> {
        let compressed = scratch.join("compressed");
        let between = format!("oci:{}:latest", compressed.display());
        let skopeo = || {
            let mut command = Command::new("skopeo");
            command.args(["copy", "--quiet", "--insecure-policy"]);
            command
        };
        program::check(
            skopeo()
                .args(["--dest-compress", "--dest-compress-format"])
                .arg(compression.name())
                .arg(format!("oci:{}:latest", layout.display()))
                .arg(&between),
        )?;
        program::check(
            skopeo()
                .args(["--dest-tls-verify=false", "--preserve-digests"])
                .arg(&between)
                .arg(format!("docker://{}", self.reference(image, compression))),
        )?;
        if !layers_are(compression, &compressed)? {
            bail!(
                "skopeo did not compress the layers of {image} with {}",
                compression.name()
            );
        }
        Ok(fs::remove_dir_all(&compressed)?)
    }
}

/// Whether the manifest in `layout` says so.
fn layers_are(compression: Compression, layout: &Path) -> Result<bool> {
    let layer = format!("layer.v1.tar+{}\"", compression.name());
    for blob in fs::read_dir(layout.join("blobs/sha256"))? {
        let blob = blob?;
        if blob.metadata()?.len() < MAX_MANIFEST {
            // A small layer is no text.
            let text = fs::read_to_string(blob.path()).unwrap_or_default();
            if text.contains(&layer) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
