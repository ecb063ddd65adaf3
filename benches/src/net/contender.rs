//! The gateways that are compared, and one of them at work.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::bridge::{self, Bridge};
use super::lab::{KEEPER, await_keeper};
use super::{ECHO, Lab, Namespace, SERVER, server};
use crate::program;

/// How long a gateway may take until the first connection passes: tries, 50 ms apart.
const MAX_TRIES: u32 = 100;

/// Clock ticks in a second: `USER_HZ`, which Linux has fixed at this.
const TICKS: f64 = 100.0;

/// A program that is a guest's gateway to the host's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// `msb-net`, as its example `jail`, with the default policy.
    MsbNet,
    /// slirp4netns, over libslirp.
    Slirp4netns,
    /// passt, in its mode for namespaces.
    Pasta,
    /// `msb-net`, as its example `gateway`, with the default policy, behind a bridge.
    MsbNetBridged,
    /// passt, behind a bridge.
    Passt,
    /// gvisor-tap-vsock, behind a bridge.
    Gvproxy,
}

/// Those that are given a TAP device. Ours first.
pub const CONTENDERS: [Contender; 3] =
    [Contender::MsbNet, Contender::Slirp4netns, Contender::Pasta];

/// Those that speak the framing of QEMU's sockets, behind one and the same bridge, and
/// the one that speaks none of it. Ours first.
pub const BRIDGED: [Contender; 4] = [
    Contender::MsbNetBridged,
    Contender::Slirp4netns,
    Contender::Passt,
    Contender::Gvproxy,
];

/// Our programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The example `jail`.
    pub jail: PathBuf,
    /// The example `gateway`.
    pub gateway: PathBuf,
}

/// A gateway at work, and the guest behind it.
#[derive(Debug)]
pub struct Running {
    /// Where loads run.
    pub guest: Namespace,
    gateway: Child,
    /// It ends before its gateway does.
    bridge: Option<Bridge>,
}

/// A gateway that is held again when this is dropped.
#[must_use]
#[derive(Debug)]
pub struct LetGo<'a>(&'a Running);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        // One that has ended is told of where it is measured next.
        let _ = self.0.hold();
    }
}

impl Contender {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Contender::MsbNet => "msb-net",
            Contender::Slirp4netns => "slirp4netns",
            Contender::Pasta => "pasta",
            Contender::MsbNetBridged => "msb-net",
            Contender::Passt => "passt",
            Contender::Gvproxy => "gvproxy",
        }
    }

    /// Tells whether it can be measured here: only one of them is in no release of
    /// Debian before 13, and may be missing.
    #[must_use]
    pub fn is_there(self) -> bool {
        self != Contender::Gvproxy || program::is_there("gvproxy")
    }

    /// Starts it on the host of `lab`, with a guest whose interface has this MTU.
    /// The echo server must be running.
    ///
    /// # Errors
    /// When it does not start, or nothing passes through it.
    pub fn start(self, lab: &Lab, ours: &Programs, mtu: u16) -> Result<Running> {
        let number = mtu;
        let mtu = mtu.to_string();
        let running = match self {
            Contender::MsbNet => {
                let mut command = lab.host.command(&ours.jail);
                command.args(["--mtu", &mtu, "--resolver", &SERVER.to_string()]);
                command.args(["sh", "-c", KEEPER]);
                Running::around(&mut command)
            }
            Contender::Slirp4netns => {
                let guest = Namespace::new()?;
                let mut command = lab.host.command("slirp4netns");
                command.args(["--configure", "--disable-host-loopback", "--mtu", &mtu]);
                command.args([&guest.pid().to_string(), "tap0"]);
                command.stdin(Stdio::null()).stdout(Stdio::null());
                let gateway = command.stderr(Stdio::null()).spawn();
                let gateway = gateway.map_err(|error| program::cannot_run(&command, &error))?;
                Ok(Running {
                    guest,
                    gateway,
                    bridge: None,
                })
            }
            Contender::Pasta => {
                let mut command = lab.host.command("pasta");
                command.args(["--foreground", "--quiet", "--config-net", "--mtu", &mtu]);
                // No ports are forwarded: only the way out is measured.
                command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
                command.args(["--runas", "0", "--", "sh", "-c", KEEPER]);
                Running::around(&mut command)
            }
            Contender::MsbNetBridged => Running::behind_bridge(number, |socket| {
                let mut command = lab.host.command(&ours.gateway);
                command.arg("--listen").arg(socket);
                command.args(["--mtu", &mtu, "--resolver", &SERVER.to_string()]);
                command
            }),
            Contender::Passt => Running::behind_bridge(number, |socket| {
                let mut command = lab.host.command("passt");
                command.args(["--foreground", "--quiet", "--runas", "0", "--mtu", &mtu]);
                command.args(["--address", bridge::GUEST, "--netmask", "24"]);
                command.args(["--gateway", bridge::GATEWAY, "--socket"]);
                command.arg(socket);
                command
            }),
            Contender::Gvproxy => Running::behind_bridge(number, |socket| {
                let mut command = lab.host.command("gvproxy");
                command.args(["-mtu", &mtu, "-listen-qemu"]);
                command.arg(format!("unix://{}", socket.display()));
                command
            }),
        }
        .with_context(|| format!("{} did not start", self.name()))?;
        running
            .await_network()
            .with_context(|| format!("nothing passes through {}", self.name()))?;
        Ok(running)
    }
}

impl Running {
    /// A gateway that makes the namespace itself, for the program it runs there.
    fn around(command: &mut Command) -> Result<Self> {
        let gateway = await_keeper(command)?;
        let pid = gateway.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let child = children.split_whitespace().next();
        let child = child.context("it runs no program")?.parse()?;
        let guest = Namespace::of(child);
        Ok(Self {
            guest,
            gateway,
            bridge: None,
        })
    }

    /// A gateway that listens on a socket, and a namespace whose TAP device a bridge joins
    /// to it.
    fn behind_bridge(mtu: u16, command: impl FnOnce(&Path) -> Command) -> Result<Self> {
        let guest = Namespace::new()?;
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("socket");
        let mut command = command(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let gateway = command.stderr(Stdio::null()).spawn();
        let gateway = gateway.map_err(|error| program::cannot_run(&command, &error))?;
        let mut running = Self {
            guest,
            gateway,
            bridge: None,
        };
        running.bridge = Some(Bridge::new(&running.guest, &socket, mtu)?);
        Ok(running)
    }

    fn await_network(&self) -> Result<()> {
        self.guest.run(|| {
            let mut failed = None;
            for _ in 0..MAX_TRIES {
                match TcpStream::connect_timeout(&server(ECHO).into(), Duration::from_secs(1)) {
                    Ok(_) => return Ok(()),
                    Err(error) => failed = Some(error),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            bail!("{failed:?}")
        })
    }

    /// Has the gateway do nothing until it is let go.
    ///
    /// # Errors
    /// When the gateway has ended.
    pub fn hold(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a gateway go on that is held, until what is returned is dropped.
    ///
    /// # Errors
    /// When the gateway has ended.
    pub fn let_go(&self) -> Result<LetGo<'_>> {
        self.signal(Signal::CONT)?;
        Ok(LetGo(self))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.gateway), signal).context("the gateway has ended")
    }

    /// Processor time that all threads of the gateway have used, in microseconds: as
    /// [`cpu`](Self::cpu), for what is too little to be seen there.
    ///
    /// # Errors
    /// When the gateway has ended.
    pub fn fine_cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/task", self.gateway.id());
        let threads = fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
        let mut nanos = 0.0;
        for thread in threads {
            // The first of three numbers is the time spent on a processor.
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().context("no schedstat")?;
            nanos += first.parse::<f64>()?;
        }
        Ok(nanos / 1e3)
    }

    /// Processor time that the gateway has used, in seconds. What the kernel does
    /// for it at the time is a part of that.
    ///
    /// # Errors
    /// When the gateway has ended.
    pub fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.gateway.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let (_, fields) = stat.rsplit_once(')').context("a process's name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // Fields 14 and 15 of proc(5); the first here is field 3.
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / TICKS)
    }

    /// The gateway's own resident memory, in MiB.
    ///
    /// # Errors
    /// When the gateway has ended.
    pub fn memory(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.gateway.id());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.context("no RssAnon")?.trim().trim_end_matches(" kB");
        Ok(kib.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.bridge = None;
        let _ = self.gateway.kill();
        let _ = self.gateway.wait();
    }
}
