//! Whether the host's KVM runs guest code: decided by running some.
//!
//! A device node that opens proves little. Paravirtual hosts and broken nested
//! virtualization create a virtual machine and then interpret it, instruction by
//! instruction, until one comes that their interpreter lacks. The guest used here
//! consists of such instructions.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::engine::Isolation;
use crate::sys;

/// The longest file of remembered verdicts accepted. Ours has some hundred bytes.
const MAX_CACHE: u64 = 4 << 10;

/// What is known about the host's KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kvm {
    /// Guest code runs on the processor.
    Usable,
    /// It does not.
    Unusable(KvmFault),
}

/// Why KVM can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvmFault {
    /// There is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` may not be opened by this user.
    Denied,
    /// A system call failed with this error number.
    Failed {
        /// What was tried.
        action: &'static str,
        /// The error number.
        errno: i32,
    },
    /// The guest stopped where it should have gone on.
    NotExecuting {
        /// The exit reason that KVM gave (`KVM_EXIT_*`).
        exit: u32,
    },
    /// The guest ran for longer than its few instructions can take.
    TooSlow,
}

impl Kvm {
    /// Returns what separates guests from the host when this KVM is used where it can be.
    pub fn isolation(self) -> Isolation {
        match self {
            Kvm::Usable => Isolation::Hardware,
            Kvm::Unusable(_) => Isolation::Emulated,
        }
    }
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kvm::Usable => f.write_str("KVM is usable"),
            Kvm::Unusable(fault) => fault.fmt(f),
        }
    }
}

impl fmt::Display for KvmFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            KvmFault::Missing => f.write_str(
                "/dev/kvm is missing: no hardware virtualization, or the kvm module is not loaded",
            ),
            KvmFault::Denied => {
                f.write_str("/dev/kvm: permission denied: add the user to the group kvm")
            }
            KvmFault::Failed { action, errno } => {
                write!(
                    f,
                    "/dev/kvm opens, but cannot {action}: {}",
                    std::io::Error::from_raw_os_error(errno)
                )
            }
            KvmFault::NotExecuting { exit } => {
                write!(
                    f,
                    "/dev/kvm opens, but guest code does not run on the processor ({}): ",
                    exit_name(exit)
                )?;
                f.write_str("a paravirtual or nested host without hardware virtualization")
            }
            KvmFault::TooSlow => {
                f.write_str("/dev/kvm opens, but a guest of a few instructions did not finish")
            }
        }
    }
}

/// Names the exits that are of interest, after the kernel's constants.
fn exit_name(exit: u32) -> String {
    match exit {
        8 => "KVM_EXIT_SHUTDOWN".to_owned(),
        9 => "KVM_EXIT_FAIL_ENTRY".to_owned(),
        17 => "KVM_EXIT_INTERNAL_ERROR, instruction emulation failed".to_owned(),
        other => format!("KVM exit {other}"),
    }
}

/// Runs a small guest and says how it went.
pub(crate) fn kvm() -> Kvm {
    match sys::probe_kvm() {
        Ok(()) => Kvm::Usable,
        Err(fault) => Kvm::Unusable(fault),
    }
}

/// A verdict that took running a guest to find, and what it holds for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Remembered {
    /// Identifies one boot of the host.
    boot: String,
    /// Device number, mode and change time of `/dev/kvm`.
    node: (u64, u32, i64, i64),
    /// The exit at which the guest stopped, or `None` where it ran.
    stopped: Option<u32>,
}

/// As [`kvm`], but asks the file `cache` first. Only whether guest code runs is
/// remembered: that the device is missing or denied is seen as quickly as a file is read.
pub(crate) fn kvm_remembered(cache: &Path) -> Kvm {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .and_then(|node| node.metadata());
    let (Ok(meta), Ok(boot)) = (
        opened,
        fs::read_to_string("/proc/sys/kernel/random/boot_id"),
    ) else {
        return kvm();
    };
    let node = (meta.rdev(), meta.mode(), meta.ctime(), meta.ctime_nsec());
    if let Some(known) = read(cache).filter(|known| known.boot == boot && known.node == node) {
        return known.stopped.map_or(Kvm::Usable, |exit| {
            Kvm::Unusable(KvmFault::NotExecuting { exit })
        });
    }
    let kvm = kvm();
    let stopped = match kvm {
        Kvm::Usable => None,
        Kvm::Unusable(KvmFault::NotExecuting { exit }) => Some(exit),
        Kvm::Unusable(_) => return kvm,
    };
    write(
        cache,
        &Remembered {
            boot,
            node,
            stopped,
        },
    );
    kvm
}

fn read(cache: &Path) -> Option<Remembered> {
    let mut text = String::new();
    File::open(cache)
        .ok()?
        .take(MAX_CACHE)
        .read_to_string(&mut text)
        .ok()?;
    serde_json::from_str(&text).ok()
}

/// Replaces the file at once, so that nobody reads half of it. Where that fails, the next
/// caller finds out again.
fn write(cache: &Path, known: &Remembered) {
    let temporary = cache.with_extension(format!("{}.new", std::process::id()));
    let written = serde_json::to_vec(known)
        .map_err(Into::into)
        .and_then(|text| fs::write(&temporary, text));
    if written
        .and_then(|()| fs::rename(&temporary, cache))
        .is_err()
    {
        let _ = fs::remove_file(&temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_verdict_is_that_of_the_probe() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("kvm.json");
        let first = kvm_remembered(&cache);
        assert_eq!(first, kvm());
        assert_eq!(kvm_remembered(&cache), first);
        fs::write(&cache, "{").unwrap();
        assert_eq!(kvm_remembered(&cache), first);
        assert_eq!(kvm_remembered(Path::new("/nonexistent/kvm.json")), first);
    }

    #[test]
    fn what_is_remembered_of_another_boot_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("kvm.json");
        let verdict = kvm();
        let stopped = Some(12345);
        write(
            &cache,
            &Remembered {
                boot: "another".into(),
                node: (0, 0, 0, 0),
                stopped,
            },
        );
        assert_eq!(kvm_remembered(&cache), verdict);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "temporary files are left");
    }

    #[test]
    fn each_reason_is_one_line() {
        for fault in [
            KvmFault::Missing,
            KvmFault::Denied,
            KvmFault::Failed {
                action: "run guest code",
                errno: 14,
            },
            KvmFault::NotExecuting { exit: 17 },
            KvmFault::TooSlow,
        ] {
            let text = Kvm::Unusable(fault).to_string();
            assert!(!text.contains('\n') && text.contains("/dev/kvm"), "{text}");
        }
    }
}
