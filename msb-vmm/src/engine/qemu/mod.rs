//! The QEMU engine: `qemu-system-x86_64 -M microvm`, with KVM where it is usable and
//! with TCG, QEMU's translator, elsewhere.
//!
//! [`args`] turns a machine into options, [`launch`] spawns the process with its
//! inherited sockets, [`qmp`] speaks the control protocol, [`control`] is what can be done
//! with a machine that runs.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::TscRate;
use crate::engine::Isolation;
use crate::engine::files::{check_disks, check_files, check_readable};
use crate::error::{ControlError, Error};
use crate::machine::Machine;
use crate::vm::Vm;

mod args;
mod control;
mod detach;
mod grants;
mod launch;
pub(crate) mod qmp;

pub(crate) use args::layout;
pub(crate) use control::{Control, Memory};
pub(crate) use launch::Launched;

use qmp::Connection;

/// The program's name, as messages and the search path have it.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// How often commands that came too early are repeated, a millisecond apart. QEMU makes its
/// devices in a few milliseconds; a loaded host gets a second.
const MAX_ATTEMPTS: u32 = 1000;

/// Where the program is looked for when `PATH` does not have it.
const FALLBACK_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How a machine gets its memory and its first instruction.
#[derive(Debug)]
pub(crate) enum Origin<'a> {
    /// Boots the kernel, in memory of its own.
    Cold,
    /// Boots the kernel, in memory that is a file; disks are placeholders.
    Template {
        /// The file, as large as the guest's memory.
        ram: &'a File,
    },
    /// Goes on where a template was saved.
    Restore {
        /// The template's memory, mapped copy-on-write.
        ram: &'a File,
        /// The template's device state.
        state: &'a File,
    },
    /// Goes on where a running machine was saved.
    Fork {
        /// The machine's memory, mapped copy-on-write.
        ram: &'a File,
        /// Its device state, without a header that says what else is in it.
        state: &'a File,
    },
    /// Goes on where a template was saved, to be saved again: what it changes of its
    /// memory is changed in the file. Writable disks are placeholders.
    Variant {
        /// A copy of the template's memory.
        ram: &'a File,
        /// The template's device state.
        state: &'a File,
    },
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Platform {
    /// The processor, through KVM. Its guests know their clocks' rates from KVM.
    Kvm,
    /// QEMU's translator. Its guests see the host's time stamp counter.
    Tcg {
        /// The counter's rate.
        tsc: TscRate,
    },
}

impl Platform {
    /// What its guests have to be told about their counter.
    fn tsc(&self) -> Option<TscRate> {
        match self {
            Platform::Kvm => None,
            Platform::Tcg { tsc } => Some(*tsc),
        }
    }
}

/// An installed QEMU and the accelerator to run it with.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
    isolation: Isolation,
}

impl Qemu {
    /// Looks for the program in `PATH` and the usual places.
    pub(crate) fn find(isolation: Isolation) -> Result<Self, Error> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = || {
            env::split_paths(&path)
                .chain(env::split_paths(FALLBACK_PATH))
                .filter(|dir| dir.is_absolute())
        };
        for folder in folders() {
            let program = folder.join(PROGRAM);
            if rustix::fs::access(&program, rustix::fs::Access::EXEC_OK).is_ok() {
                return Ok(Qemu { program, isolation });
            }
        }
        let searched: Vec<_> = folders().map(PathBuf::into_os_string).collect();
        let searched = searched
            .join(OsStr::new(":"))
            .to_string_lossy()
            .into_owned();
        Err(Error::EngineMissing {
            program: PROGRAM,
            searched,
        })
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Returns what executes guests, where the host's counter has the rate `tsc`.
    pub(crate) fn platform(&self, tsc: TscRate) -> Platform {
        match self.isolation {
            Isolation::Hardware => Platform::Kvm,
            Isolation::Emulated => Platform::Tcg { tsc },
        }
    }

    /// Boots a machine in memory of its own.
    pub(crate) fn boot(&self, machine: &Machine) -> Result<Vm, Error> {
        check_files(machine)?;
        let mut launched = launch::launch(
            self,
            machine,
            &self.platform(TscRate::measured()),
            &Origin::Cold,
        )?;
        launched.control(wait_until_running)?;
        Ok(launched.into_vm(self.isolation, None))
    }

    /// Boots a machine in the memory file `ram`, with placeholders for disks.
    pub(crate) fn boot_template(
        &self,
        machine: &Machine,
        platform: &Platform,
        ram: &File,
    ) -> Result<Launched, Error> {
        check_readable("kernel", &machine.kernel)?;
        check_readable("initramfs", &machine.initramfs)?;
        let mut launched = launch::launch(self, machine, platform, &Origin::Template { ram })?;
        launched.control(|qmp| {
            wait_until_running(qmp)?;
            qmp.execute("migrate-set-capabilities", &capabilities())
                .map(drop)
        })?;
        Ok(launched)
    }

    /// Stops the machine and writes its device state to `state`. Its memory is then
    /// complete in the file it was started with.
    ///
    /// The stop is left to QEMU: a machine that was stopped before would be restored as
    /// a stopped one.
    pub(crate) fn save(&self, launched: &mut Launched, state: &File) -> Result<(), Error> {
        launched.control(|qmp| {
            qmp.send_fd("getfd", &json!({ "fdname": "state" }), state.as_fd())?;
            qmp.reply("getfd")?;
            qmp.execute("migrate", &json!({ "uri": "fd:state" }))?;
            let status = qmp.event("the end of saving", |name, data| {
                let status = data
                    .get("status")
                    .and_then(Value::as_str)
                    .filter(|_| name == "MIGRATION")?;
                matches!(status, "completed" | "failed" | "cancelled").then(|| status.to_owned())
            })?;
            if status == "completed" {
                return Ok(());
            }
            let details = qmp.execute("query-migrate", &Value::Null)?;
            let reason = details
                .get("error-desc")
                .and_then(Value::as_str)
                .unwrap_or(&status);
            Err(ControlError::Migration {
                reason: reason.chars().take(512).collect(),
            })
        })
    }

    /// Takes from a machine of [`resume_template`](Self::resume_template) what keeps it from
    /// being saved. Its guest is at rest.
    pub(crate) fn detach_images(
        &self,
        launched: &mut Launched,
        machine: &Machine,
    ) -> Result<(), Error> {
        launched.control(|qmp| detach::detach(qmp, machine))
    }

    /// Starts a copy of a saved machine with the disks of `machine`.
    ///
    /// That a machine whose state comes in starts by itself is QEMU's rule.
    pub(crate) fn restore(
        &self,
        machine: &Machine,
        platform: &Platform,
        origin: &Origin<'_>,
        kind: &str,
    ) -> Result<Vm, Error> {
        let (Origin::Restore { ram, state } | Origin::Fork { ram, state }) = origin else {
            return self.boot(machine);
        };
        let launched = self.resume(machine, platform, origin, state)?;
        let memory = Memory::new(ram, machine, kind)?;
        Ok(launched.into_vm(self.isolation, Some(memory)))
    }

    /// Starts a copy of a saved machine that changes the file `ram`, itself a copy of
    /// the saved memory, and can be saved in turn.
    pub(crate) fn resume_template(
        &self,
        machine: &Machine,
        platform: &Platform,
        ram: &File,
        state: &File,
    ) -> Result<Launched, Error> {
        let origin = Origin::Variant { ram, state };
        self.resume(machine, platform, &origin, state)
    }

    fn resume(
        &self,
        machine: &Machine,
        platform: &Platform,
        origin: &Origin<'_>,
        state: &File,
    ) -> Result<Launched, Error> {
        check_disks(machine)?;
        let mut launched = launch::launch(self, machine, platform, origin)?;
        launched.control(|qmp| {
            qmp.execute("qmp_capabilities", &Value::Null)?;
            load(qmp, &format!("fd:{}", state.as_raw_fd()))
        })?;
        Ok(launched)
    }
}

/// Loads a state into a machine that waits for one. Commands are sent ahead.
///
/// The monitor talks before QEMU has made its devices, and refuses what comes too early:
/// then it is said again, a little later.
fn load(qmp: &mut Connection, uri: &str) -> Result<(), ControlError> {
    let mut attempts = 0;
    loop {
        qmp.send("migrate-set-capabilities", &capabilities())?;
        // A copy has no place in a network that others would have to be told of.
        qmp.send("migrate-set-parameters", &json!({ "announce-rounds": 0 }))?;
        qmp.send("migrate-incoming", &json!({ "uri": uri }))?;
        let prepared = qmp.reply("migrate-set-capabilities");
        let prepared = prepared.and(qmp.reply("migrate-set-parameters"));
        match (prepared, qmp.reply("migrate-incoming")) {
            (Err(ControlError::Refused { .. }), Ok(_)) => {
                // Loading has begun without what it needs: it cannot end well.
                return Err(ControlError::Migration {
                    reason: "QEMU has no x-ignore-shared".to_owned(),
                });
            }
            (_, Err(ControlError::Refused { .. })) if attempts < MAX_ATTEMPTS => {
                attempts += 1;
                thread::sleep(Duration::from_millis(1));
            }
            (_, incoming) => {
                incoming?;
                break;
            }
        }
    }
    qmp.event("the guest to go on", |name, _| {
        (name == "RESUME").then_some(())
    })
}

/// Waits until the guest runs.
///
/// The monitor talks before QEMU has made its devices, so that an answer alone proves
/// nothing; what can be said that early is limited to what is said here. Events begin with
/// the first command: either the state asked for after it is the wanted one, or the event is
/// still to come.
fn wait_until_running(qmp: &mut Connection) -> Result<(), ControlError> {
    qmp.send("qmp_capabilities", &Value::Null)?;
    qmp.send("query-status", &Value::Null)?;
    qmp.reply("qmp_capabilities")?;
    let mut resumed = false;
    let status = qmp.reply_and("query-status", |event| resumed |= event == "RESUME")?;
    if resumed || status.get("running").and_then(Value::as_bool) == Some(true) {
        return Ok(());
    }
    qmp.event("the guest to run", |name, _| {
        (name == "RESUME").then_some(())
    })
}

/// The capabilities that saving needs: memory that is a file is left out of the state,
/// and progress comes as events.
fn capabilities() -> Value {
    json!({ "capabilities": [
        { "capability": "x-ignore-shared", "state": true },
        { "capability": "events", "state": true },
    ] })
}
