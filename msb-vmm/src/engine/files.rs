//! The files of a machine: whether they are there, and what a VMM may do with them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::confine::Grants;
use crate::confine::cgroup::Limits;
use crate::error::Error;
use crate::machine::{Disk, DiskFormat, Machine};
use crate::snapshot::overlay;

/// The longest VMDK descriptor that is read: an image has at most some hundred layers.
const MAX_DESCRIPTOR: u64 = 1 << 20;

pub(super) fn check_files(machine: &Machine) -> Result<(), Error> {
    check_readable("kernel", &machine.kernel)?;
    check_readable("initramfs", &machine.initramfs)?;
    check_disks(machine)
}

pub(super) fn check_disks(machine: &Machine) -> Result<(), Error> {
    for disk in &machine.disks {
        check_readable("disk", &disk.path)?;
        if let Some(base) = disk.base() {
            check_readable("disk", &base)?;
        }
        if disk.path.to_str().is_none() {
            // Paths of disks travel in JSON.
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
            return Err(Error::Unreadable {
                what: "disk",
                path: disk.path.clone(),
                source,
            });
        }
    }
    Ok(())
}

pub(super) fn check_readable(what: &'static str, path: &Path) -> Result<(), Error> {
    File::open(path)
        .map(drop)
        .map_err(|source| Error::Unreadable {
            what,
            path: path.to_owned(),
            source,
        })
}

/// What the VMM of a machine is limited to.
pub(super) fn limits(machine: &Machine) -> Limits {
    Limits {
        vcpus: machine.vcpus.count().into(),
        memory: machine.memory.bytes(),
    }
}

/// Grants what a disk needs.
pub(super) fn grant_disk(grants: &mut Grants, disk: &Disk) {
    if disk.format == DiskFormat::Vmdk {
        grants.read.extend(extents(&disk.path));
    }
    if disk.read_only {
        grants.read.push(disk.path.clone());
    } else {
        let length = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
        let length = match disk.base() {
            Some(base) => overlay::largest(length(&base)),
            None => length(&disk.path),
        };
        grants.read.extend(disk.base());
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
