//! Engines: the programs that run a machine, and the choice among them.
//!
//! An engine turns a [`Machine`] into a [`Vm`]. There are two: [`krun`], where the processor
//! virtualizes, and [`qemu`] everywhere else. Each is a variant of [`EngineKind`] with a
//! module of its own. Nothing outside this folder knows an engine's options.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;
use crate::machine::Machine;
use crate::probe::{self, Kvm};
use crate::template::Templates;
use crate::vm::Vm;

mod cmdline;
mod ends;
mod files;
pub(crate) mod krun;
pub(crate) mod launcher;
pub(crate) mod qemu;

use krun::Krun;
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
    /// libkrun, in a process that this program starts of itself. Needs usable KVM.
    Krun,
    /// `qemu-system-x86_64 -M microvm`, with KVM or without. The engine of templates.
    Qemu,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Krun => "krun",
            EngineKind::Qemu => "qemu",
        })
    }
}

impl FromStr for EngineKind {
    type Err = Error;

    /// Reads a name, as [`EngineKind`] is displayed.
    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "krun" => Ok(EngineKind::Krun),
            "qemu" => Ok(EngineKind::Qemu),
            _ => Err(Error::NoSuchEngine {
                name: name.chars().take(64).collect(),
            }),
        }
    }
}

/// What a caller demands of the engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineOptions {
    /// The engine to take; `None` takes krun where it can run, and QEMU elsewhere.
    pub kind: Option<EngineKind>,
    /// The program to execute as krun's runner. `None` executes this program again, which
    /// must then call [`runner_hook`](crate::runner_hook) at the top of `main`.
    pub runner: Option<PathBuf>,
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
            kind: None,
            runner: None,
            min_isolation: Isolation::Emulated,
            kvm: None,
            kvm_cache: None,
        }
    }
}

/// An engine that this host can run, chosen by [`Engine::choose`].
#[derive(Clone, Debug)]
pub struct Engine {
    seat: Seat,
    kvm: Kvm,
}

#[derive(Clone, Debug)]
enum Seat {
    Krun(Krun),
    Qemu(Qemu),
}

impl Engine {
    /// Finds out whether this host's KVM runs guest code, by running some.
    ///
    /// Takes some milliseconds. The answer holds until the machine reboots or its
    /// permissions change.
    pub fn probe() -> Kvm {
        probe::kvm()
    }

    /// Chooses the strongest engine that this host can run, or the one asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Isolation`] when the strongest is weaker than
    /// [`EngineOptions::min_isolation`], [`Error::EngineMissing`] when the program is
    /// not installed, [`Error::EngineUnavailable`] when krun is asked for where it can't run.
    pub fn choose(options: EngineOptions) -> Result<Engine, Error> {
        let EngineOptions {
            kind,
            runner,
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
        let krun = || match kvm {
            Kvm::Usable => Krun::find(runner).map_err(str::to_owned),
            Kvm::Unusable(_) => Err(kvm.to_string()),
        };
        let qemu = || Qemu::find(available).map(Seat::Qemu);
        let seat = match kind {
            Some(EngineKind::Qemu) => qemu()?,
            Some(EngineKind::Krun) => {
                krun()
                    .map(Seat::Krun)
                    .map_err(|reason| Error::EngineUnavailable {
                        engine: EngineKind::Krun,
                        reason,
                    })?
            }
            None => match krun() {
                Ok(krun) => Seat::Krun(krun),
                Err(_) => qemu()?,
            },
        };
        Ok(Engine { seat, kvm })
    }

    /// Returns the engine's kind.
    pub fn kind(&self) -> EngineKind {
        match self.seat {
            Seat::Krun(_) => EngineKind::Krun,
            Seat::Qemu(_) => EngineKind::Qemu,
        }
    }

    /// Returns the path of the program that runs machines; for krun, that of its runner.
    pub fn program(&self) -> &Path {
        match &self.seat {
            Seat::Krun(krun) => krun.program(),
            Seat::Qemu(qemu) => qemu.program(),
        }
    }

    /// Returns the version of libkrun that this program has in it, if it has.
    pub fn krun_version() -> Option<&'static str> {
        krun::VERSION
    }

    /// Returns what separates guests from the host.
    pub fn isolation(&self) -> Isolation {
        match &self.seat {
            Seat::Krun(_) => Isolation::Hardware,
            Seat::Qemu(qemu) => qemu.isolation(),
        }
    }

    /// Returns what is known about the host's KVM.
    pub fn kvm(&self) -> Kvm {
        self.kvm
    }

    /// Boots `machine` from its kernel.
    ///
    /// Returns when the VMM has accepted the machine and the guest runs or, with krun, is
    /// about to; the guest says through a port when it is ready. A start from a
    /// [`Templates`] store is faster under emulation.
    ///
    /// # Errors
    ///
    /// What is wrong with the machine, its files, or the VMM.
    pub fn boot(&self, machine: &Machine) -> Result<Vm, Error> {
        machine.validate()?;
        match &self.seat {
            Seat::Krun(krun) => krun.boot(machine),
            Seat::Qemu(qemu) => qemu.boot(machine),
        }
    }

    /// Opens the store of templates in the folder `root`, which is made when the
    /// first template is.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] with krun, which cannot save machines.
    pub fn templates(&self, root: impl Into<PathBuf>) -> Result<Templates, Error> {
        match &self.seat {
            Seat::Krun(_) => Err(Error::Unsupported {
                engine: EngineKind::Krun,
                what: "templates",
            }),
            Seat::Qemu(qemu) => Ok(Templates::new(qemu.clone(), root.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::KvmFault;

    #[test]
    fn engines_are_read_as_they_are_written() {
        for kind in [EngineKind::Krun, EngineKind::Qemu] {
            assert_eq!(kind.to_string().parse::<EngineKind>().unwrap(), kind);
        }
        let error = "xen".parse::<EngineKind>().unwrap_err();
        assert!(error.to_string().contains("xen"), "{error}");
    }

    #[test]
    fn krun_is_taken_where_kvm_runs_guests_and_nowhere_else() {
        let with = |kvm, kind| EngineOptions {
            kvm: Some(kvm),
            kind,
            runner: Some("/nonexistent/runner".into()),
            ..EngineOptions::default()
        };
        let chosen = Engine::choose(with(Kvm::Usable, None)).unwrap();
        assert_eq!(chosen.kind(), EngineKind::Krun);
        assert_eq!(chosen.isolation(), Isolation::Hardware);
        assert_eq!(chosen.program(), Path::new("/nonexistent/runner"));
        let refused = chosen.templates("/nonexistent").unwrap_err();
        assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");

        let unusable = Kvm::Unusable(KvmFault::Denied);
        let refused = Engine::choose(with(unusable, Some(EngineKind::Krun))).unwrap_err();
        assert!(refused.to_string().contains("/dev/kvm"), "{refused}");
        match Engine::choose(with(unusable, None)) {
            Ok(engine) => assert_eq!(engine.kind(), EngineKind::Qemu),
            Err(error) => assert!(matches!(error, Error::EngineMissing { .. }), "{error}"),
        }
    }

    #[test]
    fn a_program_without_the_hook_is_no_runner() {
        let options = EngineOptions {
            kvm: Some(Kvm::Usable),
            kind: Some(EngineKind::Krun),
            ..EngineOptions::default()
        };
        let refused = Engine::choose(options).unwrap_err();
        assert!(
            matches!(refused, Error::EngineUnavailable { .. }),
            "{refused}"
        );
    }
}
