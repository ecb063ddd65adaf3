//! Two network namespaces, a host and the world, and threads and commands in them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::SERVER;
use crate::program;

/// Descriptors for the most connections a load opens, with room.
const DESCRIPTORS: u64 = 12_000;

/// What a namespace's keeper runs: it says when it is there and waits for its end.
pub(super) const KEEPER: &str = "echo ready; exec cat";

/// Host and world, joined by a pair of interfaces.
#[derive(Debug)]
pub struct Lab {
    /// Where gateways run.
    pub host: Namespace,
    /// Where servers run.
    pub world: Namespace,
}

/// A network namespace, which lives as long as a process in it.
#[derive(Debug)]
pub struct Namespace {
    pid: u32,
    keeper: Option<Child>,
}

impl Lab {
    /// Makes both namespaces, and lets this process and its children have as many
    /// descriptors as the loads need.
    ///
    /// # Errors
    /// When this process is not root, or the system refuses.
    pub fn new() -> Result<Self> {
        if !geteuid().is_root() {
            bail!("this benchmark makes network namespaces\nhint: run it as root");
        }
        let limit = getrlimit(Resource::Nofile);
        if limit.maximum.is_some_and(|most| most < DESCRIPTORS) {
            bail!("a process may have {limit:?} descriptors\nhint: ulimit -Hn {DESCRIPTORS}");
        }
        let wanted = Rlimit {
            current: limit.maximum,
            ..limit
        };
        setrlimit(Resource::Nofile, wanted).context("cannot raise the limit of descriptors")?;
        let lab = Self {
            host: Namespace::new()?,
            world: Namespace::new()?,
        };
        let (host, world) = (&lab.host, &lab.world);
        let peer = world.pid.to_string();
        host.ip(&format!(
            "link add up0 type veth peer name down0 netns {peer}"
        ))?;
        host.ip("link set up0 up")?;
        world.ip("link set down0 up")?;
        host.ip("addr add 11.0.0.2/24 dev up0")?;
        world.ip("addr add 11.0.0.1/24 dev down0")?;
        world.ip(&format!("addr add {SERVER}/32 dev lo"))?;
        host.ip("route add default via 11.0.0.1")?;
        // As a server with many clients has them.
        program::check(world.command("sysctl").args([
            "-qw",
            "net.core.somaxconn=8192",
            "net.ipv4.tcp_max_syn_backlog=8192",
        ]))?;
        // Ports of connections that have ended stay taken for a minute, and looking for one
        // that is not takes long when half of them are.
        program::check(
            host.command("sysctl")
                .args(["-qw", "net.ipv4.ip_local_port_range=1024 65535"]),
        )?;
        Ok(lab)
    }
}

impl Namespace {
    /// A namespace with nothing in it but a loopback interface.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", KEEPER]);
        let keeper = await_keeper(&mut command)?;
        let space = Self {
            pid: keeper.id(),
            keeper: Some(keeper),
        };
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// The namespace of a process, which somebody else keeps.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self { pid, keeper: None }
    }

    /// The process by which the namespace is found.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A command that runs here, and ends when the benchmark does.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid));
        command.args(["setpriv", "--pdeathsig=KILL"]).arg(program);
        command
    }

    /// Runs `ip` here.
    pub(super) fn ip(&self, arguments: &str) -> Result<()> {
        program::check(self.command("ip").args(arguments.split(' ')))
    }

    /// Runs `work` on a thread whose sockets are of this namespace.
    ///
    /// # Errors
    /// Those of `work`.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = format!("/proc/{}/ns/net", self.pid);
        let space = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let entered = std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter a namespace")?;
            work()
        });
        entered.join().expect("the work does not panic")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

/// Starts a command whose innermost part is [`KEEPER`], and waits for its word.
/// It ends when its standard input does: with this process, or when it is dropped.
pub(super) fn await_keeper(command: &mut Command) -> Result<Child> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| program::cannot_run(command, &error))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line != "ready\n" {
        let _ = child.kill();
        let status = child.wait()?;
        bail!("{command:?} did not start: {status}");
    }
    Ok(child)
}
