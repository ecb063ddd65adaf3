//! Engines: the programs that run a machine, and the choice among them.
//!
//! An engine turns a [`Machine`] into a [`Vm`]. There is one so far, QEMU; a second,
//! libkrun, takes its seat as a further variant of [`EngineKind`] with a module of
//! its own beside [`qemu`]. Nothing outside this folder knows an engine's options.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::machine::Machine;
use crate::probe::{self, Kvm};
use crate::template::Templates;
use crate::vm::Vm;

pub(crate) mod launcher;
pub(crate) mod qemu;

use qemu::Qemu;

/// What separates the guest from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// A software processor: guest code never runs on the real one, but the
    /// translator is large and not made as a security boundary.
    Emulated,
    /// The processor's own virtualization.
    Hardware,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Emulated => "emulated",
            Isolation::Hardware => "hardware",
        })
    }
}

/// The program that runs machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// `qemu-system-x86_64 -M microvm`.
    Qemu,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Qemu => "qemu",
        })
    }
}

/// What a caller demands of the engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineOptions {
    /// The weakest isolation to accept.
    pub min_isolation: Isolation,
    /// What is known about the host's KVM; `None` lets the engine find out.
    pub kvm: Option<Kvm>,
    /// A file that remembers what was found out, until the host reboots or `/dev/kvm`
    /// changes. Its folder must exist. `None` finds out each time, in some milliseconds.
    pub kvm_cache: Option<PathBuf>,
}

impl Default for EngineOptions {
    /// Accepts any isolation, prefers the strongest.
    fn default() -> Self {
        EngineOptions {
            min_isolation: Isolation::Emulated,
            kvm: None,
            kvm_cache: None,
        }
    }
}

/// An engine that this host can run, chosen by [`Engine::choose`].
#[derive(Clone, Debug)]
pub struct Engine {
    qemu: Qemu,
    kvm: Kvm,
}

impl Engine {
    /// Finds out whether this host's KVM runs guest code, by running some.
    ///
    /// Takes some milliseconds. The answer holds until the machine reboots or its
    /// permissions change.
    pub fn probe() -> Kvm {
        probe::kvm()
    }

    /// Chooses the strongest engine that this host can run.
    ///
    /// # Errors
    ///
    /// [`Error::Isolation`] when the strongest is weaker than
    /// [`EngineOptions::min_isolation`], [`Error::EngineMissing`] when the program is
    /// not installed.
    pub fn choose(options: EngineOptions) -> Result<Engine, Error> {
        let EngineOptions {
            min_isolation,
            kvm,
            kvm_cache,
        } = options;
        let find_out = || {
            kvm_cache
                .as_deref()
                .map_or_else(probe::kvm, probe::kvm_remembered)
        };
        let kvm = kvm.unwrap_or_else(find_out);
        let available = kvm.isolation();
        if available < min_isolation {
            let reason = kvm.to_string();
            return Err(Error::Isolation {
                required: min_isolation,
                available,
                reason,
            });
        }
        Ok(Engine {
            qemu: Qemu::find(available)?,
            kvm,
        })
    }

    /// Returns the program's kind.
    pub fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    /// Returns the path of the program.
    pub fn program(&self) -> &Path {
        self.qemu.program()
    }

    /// Returns what separates guests from the host.
    pub fn isolation(&self) -> Isolation {
        self.qemu.isolation()
    }

    /// Returns what is known about the host's KVM.
    pub fn kvm(&self) -> Kvm {
        self.kvm
    }

    /// Boots `machine` from its kernel.
    ///
    /// Returns when the VMM has accepted the machine and the guest runs; the guest
    /// says through a port when it is ready. A start from a [`Templates`] store is faster.
    ///
    /// # Errors
    ///
    /// What is wrong with the machine, its files, or the VMM.
    pub fn boot(&self, machine: &Machine) -> Result<Vm, Error> {
        machine.validate()?;
        self.qemu.boot(machine)
    }

    /// Opens the store of templates in the folder `root`, which is made when the
    /// first template is.
    pub fn templates(&self, root: impl Into<PathBuf>) -> Templates {
        Templates::new(self.qemu.clone(), root.into())
    }
}
