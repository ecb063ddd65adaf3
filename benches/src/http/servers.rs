//! A server with TLS, whose authority only this benchmark trusts, and mitmproxy in
//! front of it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{HOST, LARGE};
use crate::net::{Lab, Namespace};
use crate::program;

/// How long something takes to listen at most: tries, 50 ms apart.
const MAX_TRIES: u32 = 600;

/// Where the server listens: a public address, so that every preset allows it.
const SERVER: &str = "1.1.1.1:443";

/// Where mitmproxy listens, on the host.
const PROXY: &str = "11.0.0.2:8443";

/// Which mitmproxy is measured: the last one for the Python of Debian 12.
const MITMPROXY: &str = "mitmproxy==11.0.2";

/// nginx in the world.
#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    /// Makes its certificate and starts it.
    ///
    /// # Errors
    /// When openssl or nginx do not do what they should.
    pub fn start(lab: &Lab, folder: &Path) -> Result<Self> {
        certificates(folder)?;
        let large = fs::File::create(folder.join("large"))?;
        large.set_len(LARGE)?;
        let shown = folder.display();
        let config = format!(
            "daemon off; master_process off; worker_processes 1; user root;\n\
             pid {shown}/nginx.pid; error_log {shown}/nginx.log;\n\
             events {{ worker_connections 1000; }}\n\
             http {{ access_log off; keepalive_requests 1000000000;\n\
             client_body_temp_path {shown}/b; proxy_temp_path {shown}/p;\n\
             fastcgi_temp_path {shown}/f; uwsgi_temp_path {shown}/u; scgi_temp_path {shown}/s;\n\
             server {{ listen {SERVER} ssl http2; root {shown};\n\
             ssl_certificate {shown}/leaf.pem; ssl_certificate_key {shown}/leaf.key;\n\
             location = / {{ return 200 \"hello, this is a small page\\n\"; }} }} }}\n"
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, config)?;
        let child = spawn(lab.world.command("nginx").arg("-c").arg(path))?;
        let server = Self {
            child,
            folder: folder.into(),
        };
        await_listener(&lab.world, Self::address())?;
        Ok(server)
    }

    /// Where it listens.
    ///
    /// # Panics
    /// Never: it is an address.
    #[must_use]
    pub fn address() -> SocketAddr {
        SERVER.parse().expect("an address")
    }

    /// The certificate of the authority that vouches for it.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// mitmproxy, on the host, as a reverse proxy: it needs no network of its own, which
/// spares it what ours does beside.
#[derive(Debug)]
pub struct Mitmproxy(Child);

impl Mitmproxy {
    /// Installs it, in `home`, from the Python package index, unless it is there.
    ///
    /// # Errors
    /// When python3 or pip do not do what they should.
    pub fn install(home: &Path) -> Result<PathBuf> {
        let (python, mitmdump) = (home.join("bin/python"), home.join("bin/mitmdump"));
        if !mitmdump.exists() {
            println!("installing {MITMPROXY} …");
            program::check(Command::new("python3").args(["-m", "venv"]).arg(home))?;
            let install = ["-m", "pip", "install", "--quiet", MITMPROXY];
            program::check(Command::new(python).args(install))?;
        }
        Ok(mitmdump)
    }

    /// Starts it in front of the server.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start(lab: &Lab, mitmdump: &Path, server: &Server) -> Result<Self> {
        let (host, port) = PROXY.split_once(':').context("an address")?;
        let mut command = lab.host.command(mitmdump);
        command.args(["--quiet", "--listen-host", host, "--listen-port", port]);
        command.args(["--mode", &format!("reverse:https://{SERVER}"), "--set"]);
        let authority = server.authority();
        command.arg(format!(
            "ssl_verify_upstream_trusted_ca={}",
            authority.display()
        ));
        // The address is a public one, whose clients it would turn away.
        command.args(["--set", "block_global=false"]);
        command.arg("--set").arg(format!(
            "confdir={}",
            server.folder.join("mitmproxy").display()
        ));
        let own = Self(spawn(&mut command)?);
        await_listener(&lab.host, Self::address())?;
        Ok(own)
    }

    /// Where it listens.
    ///
    /// # Panics
    /// Never: it is an address.
    #[must_use]
    pub fn address() -> SocketAddr {
        PROXY.parse().expect("an address")
    }
}

impl Drop for Mitmproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(Stdio::null()).spawn();
    child.map_err(|error| program::cannot_run(command, &error))
}

/// An authority, and what it signed for the host.
fn certificates(folder: &Path) -> Result<()> {
    let config = format!(
        "[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nCN=msb benchmark\n\
         [ca]\nbasicConstraints=critical,CA:TRUE\n\
         [leaf]\nsubjectAltName=DNS:{HOST},IP:1.1.1.1\n"
    );
    fs::write(folder.join("openssl.cnf"), config)?;
    let openssl = |own: &str, more: &[&str]| {
        let (key, pem) = (format!("{own}.key"), format!("{own}.pem"));
        let mut command = Command::new("openssl");
        command.current_dir(folder);
        command.args(["req", "-x509", "-config", "openssl.cnf", "-days", "2"]);
        command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command.args(["-nodes", "-extensions", own]);
        command.args(["-keyout", &key, "-out", &pem]).args(more);
        program::check(&mut command)
    };
    openssl("ca", &[])?;
    openssl(
        "leaf",
        &["-subj", "/CN=leaf", "-CA", "ca.pem", "-CAkey", "ca.key"],
    )
}

fn await_listener(space: &Namespace, at: SocketAddr) -> Result<()> {
    space.run(move || {
        for _ in 0..MAX_TRIES {
            if TcpStream::connect(at).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("nobody listens at {at}")
    })
}
