//! What a guest does while it is measured, and what that comes to.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::servers::Iperf;
use super::{CLOSER, DOMAIN, ECHO, HTTP, HTTP2, IPERF, Lab, Namespace, SERVER, server};
use crate::program;

/// How long any single wait may last: a gateway that loses something fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Threads that connect at the same time.
const CONNECTORS: u32 = 8;

/// Bytes of a datagram: what fits into every MTU.
const DATAGRAM: u32 = 1400;

/// Names that are asked for.
const NAMES: u32 = 100;

/// Which way bulk data flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the guest.
    Up,
    /// To the guest.
    Down,
}

/// One kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Bulk data over so many connections, in Gbit/s.
    Tcp(Way, u32),
    /// Datagrams without pause, in Gbit/s of what arrived.
    Udp(Way),
    /// Connections that the server closes at once, per second.
    Connects,
    /// Requests over so many connections that stay, per second.
    KeepAlive(u32),
    /// Requests over a connection each, per second.
    NewConnections,
    /// HTTP/2 requests, 32 at a time on each of 8 connections, per second.
    Http2,
    /// Queries for a hundred names, per second. Ours answers them itself, from its
    /// cache; others pass them on to the server.
    Dns,
    /// A byte there and back, in microseconds.
    PingPong,
}

impl Load {
    /// Puts the load on the gateway of `guest`, from and to servers in the world of `lab`,
    /// for about this long.
    ///
    /// # Errors
    /// When a tool fails, or a request does.
    pub fn run(self, lab: &Lab, guest: &Namespace, time: Duration) -> Result<f64> {
        match self {
            Load::Tcp(way, flows) => tcp(lab, guest, time, way, flows),
            Load::Udp(way) => udp(lab, guest, time, way),
            Load::Connects => guest.run(move || connects(time)),
            Load::KeepAlive(connections) => wrk(guest, time, connections, &[]),
            Load::NewConnections => wrk(guest, time, 64, &["--header", "Connection: close"]),
            Load::Http2 => h2load(guest, time),
            Load::Dns => dnsperf(guest, time),
            Load::PingPong => guest.run(move || ping_pong(time)),
        }
    }
}

fn tcp(lab: &Lab, guest: &Namespace, time: Duration, way: Way, flows: u32) -> Result<f64> {
    let report = iperf3(lab, guest, time, way, &["--parallel", &flows.to_string()])?;
    let bits = report.pointer("/end/sum_received/bits_per_second");
    Ok(bits.and_then(Value::as_f64).context("no sum")? / 1e9)
}

fn udp(lab: &Lab, guest: &Namespace, time: Duration, way: Way) -> Result<f64> {
    let length = DATAGRAM.to_string();
    let report = iperf3(
        lab,
        guest,
        time,
        way,
        &["--udp", "-b0", "--length", &length],
    )?;
    let number = |name: &str| {
        let value = report.pointer(&format!("/end/sum/{name}"));
        value.and_then(Value::as_f64).context("no sum")
    };
    let arrived = number("packets")? - number("lost_packets")?;
    Ok(arrived * f64::from(DATAGRAM) * 8.0 / number("seconds")? / 1e9)
}

/// Each run has a server of its own: one that waits for the end of an earlier run, which
/// is stuck in a gateway, would turn the next one away.
fn iperf3(
    lab: &Lab,
    guest: &Namespace,
    time: Duration,
    way: Way,
    arguments: &[&str],
) -> Result<Value> {
    let _server = Iperf::start(lab)?;
    let mut command = guest.command("timeout");
    // It waits for the server's word, which may be stuck in a gateway, without end.
    command.arg((time + PATIENCE).as_secs().to_string());
    command.args(["iperf3", "--json", "--client", &SERVER.to_string()]);
    command.args(["--port", &IPERF.to_string()]);
    command.args(["--time", &time.as_secs().max(1).to_string()]);
    if way == Way::Down {
        command.arg("--reverse");
    }
    command.args(arguments);
    let text = output(&mut command)?;
    let report: Value = serde_json::from_str(&text).context("iperf3 printed no JSON")?;
    if let Some(error) = report.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    Ok(report)
}

fn wrk(guest: &Namespace, time: Duration, connections: u32, arguments: &[&str]) -> Result<f64> {
    let mut command = guest.command("wrk");
    command.args(["--threads=1", "--timeout=10s"]);
    command.arg(format!("--connections={connections}"));
    command.arg(format!("--duration={}", time.as_secs().max(1)));
    command.args(arguments);
    let text = output(command.arg(format!("http://{SERVER}:{HTTP}/")))?;
    if let Some(errors) = text.lines().find(|line| line.contains("Socket errors")) {
        let failed = |kind: &str| {
            let count = errors.split(kind).nth(1)?;
            let count: u64 = count.trim().split(',').next()?.parse().ok()?;
            (count > 0).then_some(())
        };
        // It takes a connection that ends for a read error.
        if ["connect", "write", "timeout"]
            .into_iter()
            .any(|kind| failed(kind).is_some())
        {
            bail!("wrk:{errors}");
        }
    }
    number_after(&text, "Requests/sec:")
}

fn h2load(guest: &Namespace, time: Duration) -> Result<f64> {
    let mut command = guest.command("h2load");
    command.args(["--clients=8", "--max-concurrent-streams=32"]);
    command.arg(format!("--duration={}", time.as_secs().max(1)));
    let text = output(command.arg(format!("http://{SERVER}:{HTTP2}/")))?;
    if !text.contains(" 0 failed, 0 errored, 0 timeout") {
        bail!("h2load: {text}");
    }
    let line = text.lines().find(|line| line.starts_with("finished in"));
    number_after(line.context("h2load did not finish")?, "s,")
}

fn dnsperf(guest: &Namespace, time: Duration) -> Result<f64> {
    let mut queries = tempfile::NamedTempFile::new()?;
    for number in 0..NAMES {
        writeln!(queries, "host{number}.{DOMAIN} A")?;
    }
    let mut command = guest.command("dnsperf");
    command.args(["-s", &SERVER.to_string(), "-l"]);
    command.arg(time.as_secs().max(1).to_string());
    let text = output(command.arg("-d").arg(queries.path()))?;
    let all = text
        .lines()
        .filter(|line| line.contains("Response codes:"))
        .all(|line| line.contains("NOERROR") && line.contains("(100.00%)"));
    if !all {
        bail!("dnsperf: {text}");
    }
    number_after(&text, "Queries per second:")
}

/// The number that follows some words.
fn number_after(text: &str, words: &str) -> Result<f64> {
    let number = text
        .split_once(words)
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok());
    number.ok_or_else(|| anyhow!("no number after {words:?} in {text}"))
}

/// What a command that succeeds prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| program::cannot_run(command, &error))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {said}{text}", output.status);
    }
    Ok(text)
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server(port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connects(time: Duration) -> Result<f64> {
    let begin = Instant::now();
    let connectors: Vec<_> = (0..CONNECTORS)
        .map(|_| {
            std::thread::spawn(move || {
                let mut count = 0_u32;
                while begin.elapsed() < time {
                    let ended = connect(CLOSER)?.read(&mut [0]);
                    if ended.context("a connection did not end")? != 0 {
                        bail!("the server sent a byte");
                    }
                    count += 1;
                }
                Ok(count)
            })
        })
        .collect();
    let mut count = 0;
    for connector in connectors {
        count += connector.join().expect("it does not panic")?;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

fn ping_pong(time: Duration) -> Result<f64> {
    let mut stream = connect(ECHO)?;
    let begin = Instant::now();
    let mut count = 0_u32;
    while begin.elapsed() < time {
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
        count += 1;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}

/// Connections of a guest that have carried one request, and do nothing.
#[derive(Debug)]
pub struct Idle<'a> {
    guest: &'a Namespace,
    connections: Vec<TcpStream>,
}

impl<'a> Idle<'a> {
    /// None yet.
    #[must_use]
    pub fn new(guest: &'a Namespace) -> Self {
        let connections = Vec::new();
        Self { guest, connections }
    }

    /// Opens connections until there are so many.
    ///
    /// # Errors
    /// When one can't be opened, or its request is not answered.
    pub fn grow(&mut self, count: usize) -> Result<()> {
        let more = count.saturating_sub(self.connections.len());
        let opened = self.guest.run(move || {
            let mut opened = Vec::new();
            for number in 0..more {
                let ready = ask().with_context(|| format!("connection {number} of {more}"));
                opened.push(ready?);
            }
            Ok(opened)
        })?;
        self.connections.extend(opened);
        Ok(())
    }
}

/// A connection with an answer behind it.
fn ask() -> Result<TcpStream> {
    let mut stream = connect(HTTP)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench.example\r\n\r\n")?;
    // The answer is small: it comes in one piece.
    let length = stream.read(&mut [0; 1024])?;
    ensure!(length > 0, "the server has ended it");
    Ok(stream)
}
