//! A real registry (`docker-registry`) on a free loopback port, ended on drop.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A running registry.
pub(crate) struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// Starts a registry that keeps its blobs in `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let config = dir.join("config.yml");
        let storage = dir.join("storage");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {storage:?}}}}}\n\
                 http: {{addr: \"127.0.0.1:{port}\"}}\n"
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("log"))?)
            .spawn()
            .context("cannot start docker-registry")?;
        let mut registry = Self { child, port };
        registry.wait_ready(dir)?;
        Ok(registry)
    }

    /// `localhost:PORT`, as image references name it.
    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    fn wait_ready(&mut self, dir: &Path) -> Result<()> {
        for _ in 0..200 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
                bail!("docker-registry ended with {status}: {log}");
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!(
            "docker-registry did not listen on port {} within 5 s",
            self.port
        );
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
