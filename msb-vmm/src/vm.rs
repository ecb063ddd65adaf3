//! A running virtual machine: its ports, its process, its end.

use std::fmt;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use crate::confine::cgroup::Group;
use crate::confine::{Confined, Confinement};
use crate::engine::qemu::Control;
use crate::engine::{EngineKind, Isolation};
use crate::error::Error;
use crate::machine::PortName;
use crate::snapshot::SnapshotDraft;

/// How much of what a VMM says on its standard error is kept for error messages.
/// The pipe holds 64 KiB and drops what does not fit; more helps nobody.
const MAX_STDERR: usize = 4 << 10;

/// How much of what a dying kernel says is kept: the registers and a trace.
const MAX_CONSOLE: usize = 8 << 10;

/// How much of its reason: the kernel's own has a line.
const MAX_REASON: usize = 256;

/// What engines and machines may not support.
const SNAPSHOTS: &str = "snapshots";
const NO_TEMPLATE: &str = "snapshots of a machine that was not started from a template";

/// How a virtual machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The guest powered off or rebooted.
    Guest,
    /// The guest's kernel gave up.
    Panicked {
        /// Why, in its words.
        reason: String,
        /// The last that it said, cut to a few KiB. A guest can make it say anything.
        said: String,
    },
    /// The VMM was killed by a signal, be it by [`Vm::kill`] or by someone else.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// The VMM gave up.
    Failed {
        /// Its exit code.
        code: i32,
        /// What it said, cut to a few KiB.
        stderr: String,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Guest => f.write_str("the guest shut down"),
            Exit::Panicked { reason, .. } => write!(f, "the guest's kernel panicked: {reason}"),
            Exit::Killed { signal } => write!(f, "the VMM was killed by signal {signal}"),
            Exit::Failed { code, stderr } if stderr.is_empty() => {
                write!(f, "the VMM failed with status {code}")
            }
            Exit::Failed { code, stderr } => {
                write!(f, "the VMM failed with status {code}: {stderr}")
            }
        }
    }
}

/// What a kernel says first when it gives up (`panic` in `kernel/panic.c`).
const PANIC: &str = "Kernel panic - not syncing: ";

/// Finds a panic in what a kernel has said on its console.
fn panicked(console: &str) -> Option<Exit> {
    // The last one: what was said before may be a guest's own.
    let at = console.rfind(PANIC)?;
    let line = console[at + PANIC.len()..].lines().next()?;
    // Where it came from, and the registers, stand around it.
    let from = console.len().saturating_sub(MAX_CONSOLE).min(at);
    let from = (0..=from)
        .rev()
        .find(|&from| console.is_char_boundary(from))?;
    let last = console[from..].lines().map(printable);
    let mut said = last.collect::<Vec<_>>().join("\n");
    said.truncate(said.floor_char_boundary(MAX_CONSOLE));
    let mut reason = printable(line);
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    Some(Exit::Panicked { reason, said })
}

/// Text in which nothing is left that a terminal obeys.
fn printable(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().map(printable).collect()
}

/// The pipes that a VMM writes to. They do not block, and drop what does not fit; but QEMU has
/// the guest wait until the console's has room again.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) stderr: PipeReader,
    /// The kernel's console, where it writes when it dies.
    pub(crate) console: PipeReader,
}

/// The process of a VMM. Killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct VmmProcess {
    pid: Pid,
    pidfd: OwnedFd,
    ended: Option<ExitStatus>,
    confinement: Confinement,
    outputs: Outputs,
    said: Vec<u8>,
    /// What the kernel has said last on its console.
    console: Vec<u8>,
    /// Goes after the process has ended.
    _group: Option<Group>,
}

impl VmmProcess {
    /// Takes over a child that writes to the other ends of `outputs`.
    pub(crate) fn new(child: Confined, outputs: Outputs) -> Result<Self, Error> {
        let Confined {
            pid,
            confinement,
            group,
            ..
        } = child;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(VmmProcess {
                pid,
                pidfd,
                ended: None,
                confinement,
                outputs,
                said: Vec::new(),
                console: Vec::new(),
                _group: group,
            }),
            Err(error) => {
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
                Err(Error::Os {
                    action: "watch the VMM's process",
                    source: error.into(),
                })
            }
        }
    }

    /// Returns what the VMM has said so far, cut and cleaned of control characters.
    pub(crate) fn stderr(&mut self) -> String {
        let room = MAX_STDERR - self.said.len();
        // Whatever stops the reading, what was read before is what there is to tell.
        let _ = Read::by_ref(&mut self.outputs.stderr)
            .take(room as u64)
            .read_to_end(&mut self.said);
        printable(&String::from_utf8_lossy(&self.said))
    }

    /// Says how a guest ended that ended by itself.
    fn guest_exit(&mut self) -> Exit {
        let mut rest = Vec::new();
        // As above; the pipe bounds it.
        let _ = self.outputs.console.read_to_end(&mut rest);
        self.keep_console(&rest);
        panicked(&String::from_utf8_lossy(&self.console)).unwrap_or(Exit::Guest)
    }

    fn keep_console(&mut self, said: &[u8]) {
        self.console.extend_from_slice(said);
        let over = self.console.len().saturating_sub(2 * MAX_CONSOLE);
        self.console.drain(..over);
    }

    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        let ended = self.reap(WaitOptions::empty())?;
        ended.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Returns how the process ended, once it has.
    fn reap(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        while self.ended.is_none() {
            match waitpid(Some(self.pid), options) {
                Ok(Some((_, status))) => self.ended = Some(ExitStatus::from_raw(status.as_raw())),
                Ok(None) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(self.ended)
    }

    fn kill(&self) -> rustix::io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other,
        }
    }

    /// Kills the VMM and describes its end, for a VMM that did not get going.
    pub(crate) fn exited_early(&mut self, program: &'static str) -> Error {
        match self.wait() {
            Ok(status) => Error::ExitedEarly {
                program,
                status: status.to_string(),
                stderr: self.stderr(),
            },
            Err(source) => Error::Os {
                action: "wait for the VMM",
                source,
            },
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        // Both fail only for a child that has been waited for, which is fine.
        let _ = self.kill();
        let _ = self.wait();
    }
}

impl AsFd for VmmProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A running virtual machine.
///
/// Dropping it kills the guest at once, as does the end of the process that started
/// it. A guest that should flush its disks is told so over one of its ports first.
///
/// [`AsFd`] gives a pidfd: it becomes readable when the VMM has ended.
#[derive(Debug)]
pub struct Vm {
    process: VmmProcess,
    sockets: Sockets,
    kind: EngineKind,
    isolation: Isolation,
    control: Option<Box<Control>>,
    exit: Option<Exit>,
}

/// The host's ends of a machine's sockets.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) ports: Vec<(PortName, UnixStream)>,
    pub(crate) network: Option<UnixStream>,
}

impl Vm {
    pub(crate) fn new(
        process: VmmProcess,
        sockets: Sockets,
        kind: EngineKind,
        isolation: Isolation,
    ) -> Self {
        Vm {
            process,
            sockets,
            kind,
            isolation,
            control: None,
            exit: None,
        }
    }

    pub(crate) fn controlled(mut self, control: Control) -> Self {
        self.control = Some(Box::new(control));
        self
    }

    /// Holds the guest: no instruction of it is executed until [`Vm::resume`]. Its clocks
    /// stand still.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] with krun, [`Error::Control`] when QEMU does not do it.
    pub fn pause(&mut self) -> Result<(), Error> {
        Ok(self.control("pausing")?.pause()?)
    }

    /// Lets a guest that was held go on. Its clock is behind by then, which is for the
    /// guest to set.
    ///
    /// # Errors
    ///
    /// As [`Vm::pause`].
    pub fn resume(&mut self) -> Result<(), Error> {
        Ok(self.control("pausing")?.resume()?)
    }

    /// Saves a guest that is [held](Vm::pause): devices, memory and writable disks. It can
    /// go on afterwards.
    ///
    /// # Errors
    ///
    /// As [`Vm::pause`], [`Error::Unsupported`] for a machine that was not started from a
    /// template, and those of writing files.
    pub fn save(&mut self, draft: &SnapshotDraft) -> Result<(), Error> {
        let pid = self.process.pid;
        let control = self.control(SNAPSHOTS)?;
        control.save_devices(&draft.state()?)?;
        let memory = control.memory().ok_or(Error::Unsupported {
            engine: EngineKind::Qemu,
            what: NO_TEMPLATE,
        })?;
        draft.fill(pid, memory)
    }

    /// Checks that a machine is one that can be [saved](Self::save).
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`].
    pub fn check_saving(&self) -> Result<(), Error> {
        let (engine, control) = (self.kind, self.control.as_deref());
        let what = match control {
            Some(control) if control.memory().is_some() => return Ok(()),
            Some(_) => NO_TEMPLATE,
            None => SNAPSHOTS,
        };
        Err(Error::Unsupported { engine, what })
    }

    fn control(&mut self, what: &'static str) -> Result<&mut Control, Error> {
        let engine = self.kind;
        let control = self.control.as_deref_mut();
        control.ok_or(Error::Unsupported { engine, what })
    }

    /// Returns what becomes readable when there is something for [`Vm::drain_control`].
    pub fn control_socket(&self) -> Option<&UnixStream> {
        self.control.as_ref().map(|control| control.socket())
    }

    /// Drops what the VMM has told of by itself: a guest can make it tell things, and what
    /// nobody takes fills its memory. `false` when no more will come.
    pub fn drain_control(&mut self) -> bool {
        let control = self.control.as_mut();
        control.is_some_and(|control| control.drain().is_ok())
    }

    /// Returns the pipe to which the guest's kernel writes when it dies, which does not block.
    ///
    /// Whoever reads it says with [`Vm::keep_console`] what it was. While nobody does and
    /// 64 KiB are in it, a guest that says more, as one that panics, waits with each letter.
    pub fn console(&self) -> BorrowedFd<'_> {
        self.process.outputs.console.as_fd()
    }

    /// Keeps the last of what was read from the [console](Self::console), for
    /// [`Exit::Panicked`].
    pub fn keep_console(&mut self, said: &[u8]) {
        self.process.keep_console(said);
    }

    /// Takes the host's end of a console port; `None` when there is no such port or
    /// it has been taken.
    pub fn take_port(&mut self, name: &str) -> Option<UnixStream> {
        let ports = &mut self.sockets.ports;
        let index = ports.iter().position(|(port, _)| port.as_str() == name)?;
        Some(ports.swap_remove(index).1)
    }

    /// Takes the host's end of the network card; `None` when there is no card or it
    /// has been taken.
    ///
    /// A stream of Ethernet frames in both directions, each behind its length as a
    /// 32-bit big-endian number. While it is not read, the guest's frames wait.
    pub fn take_network(&mut self) -> Option<UnixStream> {
        self.sockets.network.take()
    }

    /// Kills the VMM. The guest gets no chance to flush anything.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the kernel refuses; a machine that has ended is fine.
    pub fn kill(&mut self) -> Result<(), Error> {
        if self.exit.is_some() {
            return Ok(());
        }
        self.process.kill().map_err(|error| Error::Os {
            action: "kill the VMM",
            source: error.into(),
        })
    }

    /// Waits until the machine ends and says how. Later calls return the same.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the process can't be waited for.
    pub fn wait(&mut self) -> Result<Exit, Error> {
        if let Some(exit) = &self.exit {
            return Ok(exit.clone());
        }
        let status = self.process.wait().map_err(|source| Error::Os {
            action: "wait for the VMM",
            source,
        })?;
        let exit = match (status.code(), status.signal()) {
            (Some(0), _) => self.process.guest_exit(),
            (Some(code), _) => Exit::Failed {
                code,
                stderr: self.process.stderr(),
            },
            (None, signal) => Exit::Killed {
                signal: signal.unwrap_or(0),
            },
        };
        self.exit = Some(exit.clone());
        Ok(exit)
    }

    /// Says how the machine ended, or `None` while it runs.
    ///
    /// # Errors
    ///
    /// Those of [`Vm::wait`].
    pub fn try_wait(&mut self) -> Result<Option<Exit>, Error> {
        let waited = self.process.reap(WaitOptions::NOHANG);
        match waited.map_err(|source| Error::Os {
            action: "wait for the VMM",
            source,
        })? {
            Some(_) => self.wait().map(Some),
            None => Ok(None),
        }
    }

    /// Returns the process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.process.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Returns what keeps the VMM in its place.
    pub fn confinement(&self) -> &Confinement {
        &self.process.confinement
    }

    /// Returns the kind of engine that runs the machine.
    pub fn engine(&self) -> EngineKind {
        self.kind
    }

    /// Returns what separates the guest from the host.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_what_the_kernel_said() {
        let console = "[    1.2] BUG: something\r\n\
            [    1.3] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n\
            [    1.3] CPU: 0 \x1b[31mred\r\n";
        let Some(Exit::Panicked { reason, said }) = panicked(console) else {
            panic!("it is one");
        };
        assert_eq!(reason, "Attempted to kill init! exitcode=0x0000000b");
        assert!(said.starts_with("[    1.2] BUG"), "{said}");
        assert!(said.ends_with("CPU: 0  [31mred"), "{said}");
        for none in ["", "Kernel panic", "[ 1.2] all is well\n"] {
            assert_eq!(panicked(none), None);
        }
    }

    #[test]
    fn what_a_hostile_kernel_says_is_bounded() {
        for filler in ["x", "ü", "\n"] {
            let noise = filler.repeat(20_000);
            let text = format!("{noise}{PANIC}{noise}\nlast");
            let Some(Exit::Panicked { reason, said }) = panicked(&text) else {
                panic!("it is one");
            };
            assert!(reason.len() <= MAX_REASON && said.len() <= MAX_CONSOLE);
        }
    }
}
