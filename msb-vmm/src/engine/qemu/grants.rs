//! The files that a QEMU process needs.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::{Origin, Qemu};
use crate::confine::Grants;
use crate::engine::Isolation;
use crate::machine::{Disk, DiskFormat, Machine};

/// Where distributions keep the firmware: qboot.
const FIRMWARE: [&str; 3] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/qemu-firmware",
];

/// The longest VMDK descriptor that is read: an image has at most some hundred layers.
const MAX_DESCRIPTOR: u64 = 1 << 20;

/// The longest device state of a template.
const MAX_STATE: u64 = 16 << 20;

pub(super) fn of(qemu: &Qemu, machine: &Machine, origin: &Origin<'_>) -> Grants {
    let mut grants = Grants::default();
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
        // QEMU opens it for writing, although it maps it privately.
        Origin::Restore { ram, .. } => {
            grants.write.push(opened(ram));
            false
        }
    };
    if boots {
        grants.read.push(machine.kernel.clone());
        grants.read.push(machine.initramfs.clone());
    }
    if !matches!(origin, Origin::Template { .. }) {
        for disk in &machine.disks {
            grant_disk(&mut grants, disk);
        }
    }
    grants
}

fn grant_disk(grants: &mut Grants, disk: &Disk) {
    if disk.format == DiskFormat::Vmdk {
        grants.read.extend(extents(&disk.path));
    }
    if disk.read_only {
        grants.read.push(disk.path.clone());
    } else {
        let length = disk.path.metadata().map_or(0, |meta| meta.len());
        grants.largest_file = grants.largest_file.max(length);
        grants.write.push(disk.path.clone());
    }
}

/// The files that a descriptor joins. What cannot be read, QEMU complains about.
fn extents(descriptor: &Path) -> Vec<PathBuf> {
    let mut text = String::new();
    let opened = File::open(descriptor);
    let read = opened.and_then(|file| file.take(MAX_DESCRIPTOR).read_to_string(&mut text));
    let folder = descriptor.parent().unwrap_or(Path::new("/"));
    if read.is_err() {
        return Vec::new();
    }
    text.lines()
        .filter_map(extent)
        .map(|name| folder.join(name))
        .collect()
}

/// Reads a line such as `RW 2048 FLAT "name" 0`.
fn extent(line: &str) -> Option<&str> {
    let (head, rest) = line.split_once('"')?;
    let kind = head.split_whitespace().nth(2)?;
    matches!(kind, "FLAT")
        .then(|| rest.split_once('"'))?
        .map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_found_beside_their_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vmdk");
        let text = "# Disk DescriptorFile\nversion=1\ncreateType=\"twoGbMaxExtentFlat\"\n\n\
                    RW 8 FLAT \"metadata\" 0\nRW 16 FLAT \"../blobs/a b\" 0\nRW 1 ZERO\n";
        std::fs::write(&path, text).unwrap();
        let found = extents(&path);
        assert_eq!(
            found,
            [
                folder.path().join("metadata"),
                folder.path().join("../blobs/a b")
            ]
        );
        assert!(extents(Path::new("/nonexistent")).is_empty());
    }
}
