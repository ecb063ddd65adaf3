//! The krun engine: libkrun, linked into the program, with KVM.
//!
//! A machine runs in a process of its own, the [`runner`]: this program, executed again,
//! or another one that has the hook. It is confined like every VMM, gets what to run in
//! one message ([`protocol`]), and calls the library ([`library`]), which does not return.
//!
//! What the library has no way to tell the guest is left to the guest's agent: the largest
//! packet of the network card.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::confine::{self, Grants};
use crate::engine::ends::{self, Theirs};
use crate::engine::{EngineKind, Isolation, cmdline, files};
use crate::error::Error;
use crate::machine::{DiskFormat, Hold, Machine};
use crate::vm::{Sockets, Vm, VmmProcess};

#[cfg(all(feature = "krun", target_os = "linux", target_arch = "x86_64"))]
mod library;
#[cfg(not(all(feature = "krun", target_os = "linux", target_arch = "x86_64")))]
#[path = "no_library.rs"]
mod library;
pub(crate) mod protocol;
mod runner;

pub(crate) use library::VERSION;
pub use runner::runner_hook;

use protocol::{Fault, MAX_CMDLINE, Part, Reply, RunnerConfig};

/// What messages call the runner.
const PROGRAM: &str = "libkrun";

/// How long a runner may take to check its files. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Set by the hook: this program can be a runner.
static HOOKED: AtomicBool = AtomicBool::new(false);

fn hooked() {
    HOOKED.store(true, Ordering::Relaxed);
}

/// A program that can be executed as a runner.
#[derive(Clone, Debug)]
pub(crate) struct Krun {
    program: PathBuf,
}

impl Krun {
    /// Decides on a runner: `program` if there is one, else this program.
    ///
    /// # Errors
    ///
    /// Why there is none, in words.
    pub(crate) fn find(program: Option<PathBuf>) -> Result<Self, &'static str> {
        if let Some(program) = program {
            return Ok(Krun { program });
        }
        if VERSION.is_none() {
            return Err("this program was built without libkrun");
        }
        if !HOOKED.load(Ordering::Relaxed) {
            return Err("this program does not call msb_vmm::runner_hook first");
        }
        let program = "/proc/self/exe".into();
        Ok(Krun { program })
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Boots a machine.
    pub(crate) fn boot(&self, machine: &Machine) -> Result<Vm, Error> {
        files::check_files(machine)?;
        let (ours, theirs) = ends::make(machine)?;
        let config = config(machine, &theirs)?;
        let (process, control) = self.spawn(machine, &theirs)?;
        drop(theirs);
        start(process, &control, &config, ours)
    }

    /// Executes a runner, which then waits for its configuration.
    fn spawn(&self, machine: &Machine, theirs: &Theirs) -> Result<(VmmProcess, UnixStream), Error> {
        let os = |action: &'static str| move |source: io::Error| Error::Os { action, source };
        let (control, control_theirs) = UnixStream::pair().map_err(os("make a socket pair"))?;
        control
            .set_read_timeout(Some(PATIENCE))
            .map_err(os("set up the control socket"))?;
        let (outputs, stderr, console) = ends::outputs()?;
        let sockets = theirs.ports.iter().chain(&theirs.network);
        let sockets = sockets.map(AsRawFd::as_raw_fd);
        let inherit = sockets.chain(machine.hold.as_ref().map(Hold::fd)).collect();
        let mut command = Command::new(&self.program);
        command
            .arg0(runner::ARGV0)
            .stdin(OwnedFd::from(control_theirs))
            .stdout(console)
            .stderr(stderr);
        let child = confine::spawn(command, inherit, &self.grants(machine))
            .map_err(os("start the runner of libkrun"))?;
        Ok((VmmProcess::new(child, outputs)?, control))
    }

    fn grants(&self, machine: &Machine) -> Grants {
        let mut grants = Grants {
            limits: Some(files::limits(machine)),
            ..Grants::default()
        };
        grants.program(&self.program);
        grants.write.push("/dev/kvm".into());
        grants.read.push(machine.kernel.clone());
        grants.read.push(machine.initramfs.clone());
        for disk in &machine.disks {
            files::grant_disk(&mut grants, disk);
        }
        grants
    }
}

/// Tells a runner what to run and waits until it does.
fn start(
    mut process: VmmProcess,
    control: &UnixStream,
    config: &RunnerConfig,
    ours: Sockets,
) -> Result<Vm, Error> {
    let reply = protocol::send(control, config).and_then(|()| protocol::receive(control));
    match reply {
        Ok(Reply::Running) => Ok(Vm::new(
            process,
            ours,
            EngineKind::Krun,
            Isolation::Hardware,
        )),
        Ok(Reply::Failed(fault)) => Err(failed(fault, config)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Os {
            action: "wait for the runner of libkrun",
            source: io::ErrorKind::TimedOut.into(),
        }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Error::Os {
            action: "understand the runner of libkrun",
            source: error,
        }),
        // It is gone: its end says why.
        Err(_) => Err(process.exited_early(PROGRAM)),
    }
}

fn config(machine: &Machine, theirs: &Theirs) -> Result<RunnerConfig, Error> {
    let cmdline = cmdline::of(machine, None);
    if cmdline.len() > MAX_CMDLINE {
        return Err(Error::TooMany {
            what: "bytes of kernel command line",
            count: cmdline.len(),
            max: MAX_CMDLINE,
        });
    }
    let mut disks = machine.disks.clone();
    for disk in &mut disks {
        if disk.format == DiskFormat::Vmdk && !disk.read_only {
            return Err(Error::Unsupported {
                engine: EngineKind::Krun,
                what: "writing to a disk of several files",
            });
        }
        if disk.format == DiskFormat::Overlay {
            return Err(Error::Unsupported {
                engine: EngineKind::Krun,
                what: "disks of forks",
            });
        }
        disk.path = absolute("disk", &disk.path)?;
    }
    let fds = theirs.ports.iter().map(AsRawFd::as_raw_fd);
    let card = machine.network.as_ref().zip(theirs.network.as_ref());
    Ok(RunnerConfig {
        vcpus: machine.vcpus,
        memory: machine.memory,
        kernel: absolute("kernel", &machine.kernel)?,
        initramfs: absolute("initramfs", &machine.initramfs)?,
        cmdline,
        disks,
        ports: machine.ports.iter().cloned().zip(fds).collect(),
        network: card.map(|(card, socket)| (card.mac, socket.as_raw_fd())),
    })
}

/// The runner's folder need not be ours, and paths travel as text.
fn absolute(what: &'static str, path: &Path) -> Result<PathBuf, Error> {
    let unreadable = |source| Error::Unreadable {
        what,
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    if absolute.to_str().is_none() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
        return Err(unreadable(source));
    }
    Ok(absolute)
}

fn failed(fault: Fault, config: &RunnerConfig) -> Error {
    let file = |what: &'static str, path: &Path, errno| Error::Unreadable {
        what,
        path: path.to_owned(),
        source: io::Error::from_raw_os_error(errno),
    };
    let disk = |index: usize| match config.disks.get(index) {
        Some(disk) => disk.path.clone(),
        None => PathBuf::from(OsString::from(format!("disk {index}"))),
    };
    let library = |call: String, source| Error::Library { call, source };
    match fault {
        Fault::File { part, errno } => match part {
            Part::Kvm => file("device", Path::new("/dev/kvm"), errno),
            Part::Kernel => file("kernel", &config.kernel, errno),
            Part::Initramfs => file("initramfs", &config.initramfs, errno),
            Part::Disk(index) => file("disk", &disk(index), errno),
        },
        Fault::InUse { disk: index } => Error::DiskInUse { path: disk(index) },
        Fault::Library { call, errno } => library(call, io::Error::from_raw_os_error(errno)),
        Fault::Configuration { reason } => library(
            "the configuration".to_owned(),
            io::Error::new(io::ErrorKind::InvalidInput, reason),
        ),
        Fault::NoLibrary => Error::EngineUnavailable {
            engine: EngineKind::Krun,
            reason: "the runner was built without libkrun".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests;
