//! Taking a disk's image away from under a guest that keeps the disk.
//!
//! QEMU does not save a machine that has a VMDK descriptor open. In a machine that is to
//! be saved with its read-only disks such a disk is two nodes, the image and a plain one
//! above it; before the save the plain one is put on nothing, of the same size, so that
//! the guest notices nothing. The guest's copies have the image again.

use serde_json::{Value, json};

use super::args::disk_node_name;
use super::qmp::Connection;
use crate::error::ControlError;
use crate::machine::{Disk, DiskFormat, Machine};

/// Whether a disk of a machine that is to be saved is made of two nodes.
pub(super) fn is_detachable(disk: &Disk) -> bool {
    disk.read_only && disk.format == DiskFormat::Vmdk
}

/// Takes away the images of all disks that are [detachable](is_detachable). The guest
/// does not read meanwhile.
pub(super) fn detach(qmp: &mut Connection, machine: &Machine) -> Result<(), ControlError> {
    for (index, _) in machine
        .disks
        .iter()
        .enumerate()
        .filter(|(_, disk)| is_detachable(disk))
    {
        let disk = disk_node_name(index);
        let nothing = format!("{disk}-nothing");
        let size = size_of(qmp, &disk)?;
        let node = json!({
            "driver": "null-co", "node-name": nothing, "size": size, "read-zeroes": true, "read-only": true,
        });
        qmp.execute("blockdev-add", &node)?;
        // The image was made with the disk, for it alone, and ends with its use.
        let changed =
            json!({ "driver": "raw", "node-name": disk, "read-only": true, "file": nothing });
        qmp.execute("blockdev-reopen", &json!({ "options": [changed] }))?;
    }
    Ok(())
}

fn size_of(qmp: &mut Connection, node: &str) -> Result<u64, ControlError> {
    let nodes = qmp.execute("query-named-block-nodes", &json!({ "flat": true }))?;
    let named = |value: &&Value| value.get("node-name").and_then(Value::as_str) == Some(node);
    let found = nodes.as_array().and_then(|nodes| nodes.iter().find(named));
    let size = found.and_then(|node| node.pointer("/image/virtual-size")?.as_u64());
    size.ok_or_else(|| ControlError::Malformed {
        reason: "a disk has no size".to_owned(),
    })
}
