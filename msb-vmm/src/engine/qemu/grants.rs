//! The files that a QEMU process needs.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::{Origin, Qemu};
use crate::confine::{Grants, GuestMemory, can_return_memory};
use crate::engine::{Isolation, files};
use crate::machine::Machine;

/// Where distributions keep the firmware: qboot.
const FIRMWARE: [&str; 3] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/qemu-firmware",
];

/// The longest device state of a template.
const MAX_STATE: u64 = 16 << 20;

pub(super) fn of(qemu: &Qemu, machine: &Machine, origin: &Origin<'_>) -> Grants {
    let mut grants = Grants {
        limits: Some(files::limits(machine)),
        small_pages: qemu.isolation() == Isolation::Emulated,
        ..Grants::default()
    };
    let program = qemu.program().canonicalize();
    let program = program.unwrap_or_else(|_| qemu.program().to_owned());
    grants.program(&program);
    if let Some(prefix) = program.parent().and_then(Path::parent) {
        grants.read.push(prefix.join("share/qemu"));
    }
    grants.read.extend(FIRMWARE.map(PathBuf::from));
    // Read before guest memory is mapped without a reservation.
    grants.read.push("/proc/sys/vm/overcommit_memory".into());
    if qemu.isolation() == Isolation::Hardware {
        grants.write.push("/dev/kvm".into());
    }
    let opened = |file: &File| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let boots = match origin {
        Origin::Cold => true,
        Origin::Template { ram } => {
            grants.write.push(opened(ram));
            grants.largest_file = machine.memory.bytes().max(MAX_STATE);
            true
        }
        Origin::Variant { ram, .. } => {
            grants.write.push(opened(ram));
            grants.largest_file = machine.memory.bytes().max(MAX_STATE);
            false
        }
        // It can be saved again.
        Origin::Restore { ram, .. } | Origin::Fork { ram, .. } => {
            // What is sealed has no place in the tree of files, which rules are about, and
            // nobody can write to it.
            grants.memory = Some(GuestMemory {
                path: opened(ram),
                number: ram.as_raw_fd(),
                returns: can_return_memory(),
            });
            grants.largest_file = MAX_STATE;
            false
        }
    };
    if boots {
        grants.read.push(machine.kernel.clone());
        grants.read.push(machine.initramfs.clone());
    }
    if !matches!(origin, Origin::Template { .. }) {
        for disk in &machine.disks {
            files::grant_disk(&mut grants, disk);
        }
    }
    grants
}
