//! What runs in the world: servers, in this process and others.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{CLOSER, DOMAIN, ECHO, HTTP, HTTP2, IPERF, Lab, SERVER, server};
use crate::program;

/// How long a server takes to listen at most: tries, 25 ms apart.
const MAX_TRIES: u32 = 400;

/// One answer for every request: small, so that requests are counted and not bytes.
const PAGE: &str = "hello, this is a small page\\n";

/// The servers; those that are programs end when this is dropped.
#[derive(Debug)]
pub struct Servers(Vec<Child>);

impl Servers {
    /// Starts all of them in the world of `lab`.
    ///
    /// # Errors
    /// When one is not installed or does not listen.
    pub fn start(lab: &Lab, scratch: &Path) -> Result<Self> {
        let config = scratch.join("nginx.conf");
        fs::write(&config, nginx(scratch))?;
        let config = config.display().to_string();
        let mut servers = Self(Vec::new());
        servers.add(lab, &["nginx", "-c", &config])?;
        let answer = format!("--address=/{DOMAIN}/192.88.1.1");
        let listen = format!("--listen-address={SERVER}");
        servers.add(
            lab,
            &[
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file=",
                "--user=root",
                "--bind-interfaces",
                "--local-ttl=600",
                &listen,
                &answer,
            ],
        )?;
        lab.world.run(|| {
            serve(ECHO, |stream| {
                std::thread::spawn(move || echo(stream));
            })?;
            serve(CLOSER, drop)
        })?;
        for port in [HTTP, HTTP2] {
            lab.world.run(move || await_listener(port))?;
        }
        Ok(servers)
    }

    fn add(&mut self, lab: &Lab, words: &[&str]) -> Result<()> {
        self.0.push(start(lab, words)?);
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A server for bulk data, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Iperf(Child);

impl Iperf {
    /// Starts it in the world of `lab`, and waits until it listens.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let (address, port) = (SERVER.to_string(), IPERF.to_string());
        let words = ["iperf3", "--server", "--bind", &address, "--port", &port];
        let own = Self(start(lab, &words)?);
        own.await_socket()?;
        Ok(own)
    }

    /// Waits until it listens, without being its client: it serves one after the other.
    fn await_socket(&self) -> Result<()> {
        let path = format!("/proc/{}/net/tcp", self.0.id());
        // The fourth column of proc(5) is the state, 0A that of a socket that listens.
        let listens = format!(":{IPERF:04X} 00000000:0000 0A ");
        for _ in 0..MAX_TRIES {
            if fs::read_to_string(&path)?.contains(&listens) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("iperf3 does not listen")
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server in the world of `lab`.
fn start(lab: &Lab, words: &[&str]) -> Result<Child> {
    let mut command = lab.world.command(words[0]);
    command.args(&words[1..]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(Stdio::null()).spawn();
    child.map_err(|error| program::cannot_run(&command, &error))
}

/// One process, so that the kernel need not choose between several; HTTP/2 by
/// prior knowledge on a port of its own.
fn nginx(scratch: &Path) -> String {
    let folder = scratch.display();
    let location = format!("location / {{ return 200 \"{PAGE}\"; }}");
    format!(
        "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 12000;\n\
         pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
         events {{ worker_connections 11500; }}\n\
         http {{\n\
         access_log off; keepalive_requests 1000000000; keepalive_timeout 600;\n\
         client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n\
         fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n\
         server {{ listen {SERVER}:{HTTP} backlog=8192; {location} }}\n\
         server {{ listen {SERVER}:{HTTP2} http2 backlog=8192; {location} }}\n\
         }}\n"
    )
}

fn serve(port: u16, mut each: impl FnMut(TcpStream) + Send + 'static) -> Result<()> {
    let listener = TcpListener::bind(server(port)).context("a free port")?;
    // It ends with the process; threads stay in the namespace they began in.
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            each(stream);
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut bytes = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

fn await_listener(port: u16) -> Result<()> {
    for _ in 0..MAX_TRIES {
        if TcpStream::connect(server(port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    bail!("nobody listens on port {port}")
}
