//! Spawning QEMU with its sockets, and waiting for it without hanging.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::args::{self, Descriptors};
use super::control::{Control, Memory};
use super::grants;
use super::qmp::Connection;
use super::{Origin, PROGRAM, Platform, Qemu};
use crate::confine;
use crate::engine::{EngineKind, Isolation, ends};
use crate::error::{ControlError, Error};
use crate::machine::{Hold, Machine};
use crate::vm::{Sockets, Vm, VmmProcess};

/// How long QEMU may take over anything. It takes milliseconds; a host under heavy
/// load may need seconds, and one where this passes is broken.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A QEMU process under control.
#[derive(Debug)]
pub(crate) struct Launched {
    process: VmmProcess,
    qmp: Connection,
    sockets: Sockets,
}

/// Spawns QEMU for `machine`.
pub(super) fn launch(
    qemu: &Qemu,
    machine: &Machine,
    platform: &Platform,
    origin: &Origin<'_>,
) -> Result<Launched, Error> {
    let os = |action: &'static str| move |source: io::Error| Error::Os { action, source };
    let (control, control_theirs) = UnixStream::pair().map_err(os("make a socket pair"))?;
    let (ours, theirs) = ends::make(machine)?;
    let (outputs, stderr, console) = ends::outputs()?;

    let fds = Descriptors {
        control: control_theirs.as_raw_fd(),
        ports: theirs.ports.iter().map(AsRawFd::as_raw_fd).collect(),
        network: theirs.network.as_ref().map(AsRawFd::as_raw_fd),
    };
    let files: &[&File] = match origin {
        Origin::Cold => &[],
        Origin::Template { ram } => &[ram],
        Origin::Restore { ram, state }
        | Origin::Fork { ram, state }
        | Origin::Variant { ram, state } => &[ram, state],
    };
    let mut inherit = fds.ports.clone();
    inherit.push(fds.control);
    inherit.extend(fds.network);
    inherit.extend(files.iter().map(|file| file.as_raw_fd()));
    inherit.extend(machine.hold.as_ref().map(Hold::fd));

    let mut command = Command::new(qemu.program());
    command.args(args::options(machine, platform, origin, &fds));
    command.stdin(Stdio::null()).stdout(console).stderr(stderr);
    let grants = grants::of(qemu, machine, origin);
    let mut child =
        confine::spawn(command, inherit, &grants).map_err(os("start qemu-system-x86_64"))?;
    let listener = child.listener.take();
    let mut process = VmmProcess::new(child, outputs)?;
    if let (Some(listener), Origin::Restore { ram, .. } | Origin::Fork { ram, .. }) =
        (listener, origin)
    {
        let handed = listener.hand_over(ram, Instant::now() + PATIENCE);
        handed.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => process.exited_early(PROGRAM),
            _ => os("hand over the guest's memory")(error),
        })?;
    }
    let qmp = Connection::new(control, Instant::now() + PATIENCE)
        .map_err(os("set up the control socket"))?;
    Ok(Launched {
        process,
        qmp,
        sockets: ours,
    })
}

impl Launched {
    /// Talks to QEMU. A connection that ends because QEMU does becomes an error with
    /// QEMU's own words.
    pub(super) fn control<T>(
        &mut self,
        talk: impl FnOnce(&mut Connection) -> Result<T, ControlError>,
    ) -> Result<T, Error> {
        talk(&mut self.qmp).map_err(|error| match error {
            ControlError::Closed { .. } => self.process.exited_early(PROGRAM),
            other => Error::Control(other),
        })
    }

    /// Returns the host's end of the first port.
    pub(crate) fn first_port(&self) -> Option<&UnixStream> {
        self.sockets.ports.first().map(|(_, stream)| stream)
    }

    /// Makes a machine of it, which `memory` says how to save.
    pub(super) fn into_vm(self, isolation: Isolation, memory: Option<Memory>) -> Vm {
        let control = Control::new(self.qmp, memory);
        let vm = Vm::new(self.process, self.sockets, EngineKind::Qemu, isolation);
        vm.controlled(control)
    }
}
