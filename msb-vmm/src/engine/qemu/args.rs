//! A machine as QEMU options.
//!
//! Two machines whose [`layout`] is equal can be copies of one template.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use serde_json::{Value, json};

use super::detach::is_detachable;
use super::{Origin, Platform};
use crate::confine::can_return_memory;
use crate::engine::cmdline;
use crate::error::colons;
use crate::machine::{Card, Disk, DiskFormat, MAX_DISKS, Machine, TEMPLATE_MAC};

/// The processor that TCG emulates: every feature it has, but for fast string
/// instructions, which it runs byte by byte, on a model for which Linux does
/// not prefer them either (docs/boot.md).
const TCG_CPU: &str = "max,-erms,family=15,model=1,stepping=0";

/// TCG with 256 MiB for code that it has translated, which a VMM's limit on memory has room
/// for. By default it is a gigabyte.
const TCG: &str = "tcg,tb-size=256";

/// The descriptors a QEMU process inherits, by their numbers.
#[derive(Debug)]
pub(super) struct Descriptors {
    pub(super) control: RawFd,
    pub(super) ports: Vec<RawFd>,
    pub(super) network: Option<RawFd>,
}

/// Returns the options that fix what the guest sees, without names of files: the
/// device layout of a template.
pub(crate) fn layout(machine: &Machine, platform: &Platform) -> Vec<String> {
    let mut options = board(machine, platform);
    options.push(cmdline::of(machine, platform.tsc()));
    for (index, disk) in machine.disks.iter().enumerate() {
        options.push(disk_device(index));
        options.push(format!("read-only={}", disk.read_only));
    }
    options.push(console());
    options.extend(
        machine
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| port_device(index, port.as_str())),
    );
    // A copy starts with the template's address, whatever its own is.
    options.extend(machine.network.as_ref().map(|card| {
        let mac = TEMPLATE_MAC;
        network_device(&Card { mac, ..*card })
    }));
    options.extend(balloon());
    options
}

/// Returns all options for a process.
pub(super) fn options(
    machine: &Machine,
    platform: &Platform,
    origin: &Origin<'_>,
    fds: &Descriptors,
) -> Vec<OsString> {
    let mut args = Arguments::default();
    for option in board(machine, platform) {
        args.0.push(option.into());
    }
    args.add("-object", memory(machine, origin));
    let restored = !matches!(origin, Origin::Cold | Origin::Template { .. });
    // What is restored has its kernel in its memory.
    if !restored {
        args.path("-kernel", &machine.kernel);
        args.path("-initrd", &machine.initramfs);
        args.add("-append", cmdline::of(machine, platform.tsc()));
    }
    // The kernel's last words go to standard output; its input is empty.
    args.add("-chardev", "stdio,id=kernel,signal=off");
    args.add("-chardev", format!("socket,id=control,fd={}", fds.control));
    args.add("-mon", "chardev=control,mode=control");
    args.add("-device", console());
    for (index, (port, fd)) in machine.ports.iter().zip(&fds.ports).enumerate() {
        args.add("-chardev", format!("socket,id=port{index},fd={fd}"));
        args.add("-device", port_device(index, port.as_str()));
    }
    for (index, disk) in machine.disks.iter().enumerate() {
        let node = match origin {
            Origin::Template { .. } => placeholder_node(index, disk),
            Origin::Variant { .. } if !disk.read_only => placeholder_node(index, disk),
            Origin::Variant { .. } if is_detachable(disk) => detachable_node(index, disk),
            Origin::Cold
            | Origin::Restore { .. }
            | Origin::Fork { .. }
            | Origin::Variant { .. } => disk_node(index, disk),
        };
        args.add("-blockdev", node.to_string());
        args.add("-device", disk_device(index));
    }
    if let (Some(card), Some(fd)) = (&machine.network, fds.network) {
        let mac = match origin {
            Origin::Template { .. } | Origin::Variant { .. } => TEMPLATE_MAC,
            Origin::Cold | Origin::Restore { .. } | Origin::Fork { .. } => card.mac,
        };
        let backend = format!("stream,id=network,server=off,addr.type=fd,addr.str={fd}");
        args.add("-netdev", backend);
        args.add("-device", network_device(&Card { mac, ..*card }));
    }
    if let Some(balloon) = balloon() {
        args.add("-device", balloon);
    }
    if restored {
        args.add("-incoming", "defer");
    }
    if matches!(origin, Origin::Fork { .. }) {
        args.add("-global", "migration.send-configuration=off");
    }
    args.0
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    fn path(&mut self, option: &str, path: &Path) {
        self.add(option, path.as_os_str());
    }
}

fn board(machine: &Machine, platform: &Platform) -> Vec<String> {
    // Without PIT and PIC a TCG guest has nothing to measure its clocks by, and
    // need not: the command line says the rates.
    let (accelerator, cpu) = match platform {
        Platform::Kvm => ("kvm", "host"),
        Platform::Tcg { .. } => (TCG, TCG_CPU),
    };
    let board = "microvm,acpi=off,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off,\
                 auto-kernel-cmdline=on,memory-backend=ram";
    let words = [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "chardev:kernel",
        "-monitor",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-M",
        board,
        "-accel",
        accelerator,
        "-cpu",
        cpu,
    ];
    let mut options: Vec<String> = words.map(str::to_owned).into();
    options.extend(["-smp".to_owned(), machine.vcpus.to_string()]);
    options.extend(["-m".to_owned(), format!("{}M", machine.memory.mib())]);
    options
}

fn memory(machine: &Machine, origin: &Origin<'_>) -> String {
    let size = machine.memory.mib();
    match origin {
        Origin::Cold => format!("memory-backend-ram,id=ram,size={size}M,reserve=off"),
        Origin::Template { ram } | Origin::Variant { ram, .. } => {
            format!(
                "memory-backend-file,id=ram,size={size}M,share=on,mem-path=/proc/self/fd/{}",
                ram.as_raw_fd()
            )
        }
        Origin::Restore { ram, .. } | Origin::Fork { ram, .. } => {
            let fd = ram.as_raw_fd();
            format!(
                "memory-backend-file,id=ram,size={size}M,share=off,reserve=off,merge=off,mem-path=/proc/self/fd/{fd}"
            )
        }
    }
}

/// The last slot of the board. Devices are given their slots by name, from the last on:
/// that is the order in which the board tells the guest about them.
const LAST_SLOT: usize = 7;

fn console() -> String {
    format!("virtio-serial-device,id=console,bus=virtio-mmio-bus.{LAST_SLOT}")
}

fn port_device(index: usize, name: &str) -> String {
    format!(
        "virtserialport,bus=console.0,nr={},chardev=port{index},name={name}",
        LAST_SLOT - 1 - index
    )
}

fn disk_device(index: usize) -> String {
    debug_assert!(index < MAX_DISKS);
    // The guest gets an error where the host's disk is full; by default QEMU would halt it.
    format!(
        "virtio-blk-device,drive=disk{index},werror=report,rerror=report,bus=virtio-mmio-bus.{}",
        LAST_SLOT - 1 - index
    )
}

/// A card without announcements: a copy has no place in a network to take over, and
/// its guest would have to run for them.
fn network_device(card: &Card) -> String {
    let (mac, mtu) = (colons(&card.mac), card.mtu);
    let slot = LAST_SLOT - 1 - MAX_DISKS;
    format!(
        "virtio-net-device,netdev=network,mac={mac},host_mtu={mtu},guest_announce=off,\
         bus=virtio-mmio-bus.{slot}"
    )
}

/// What the guest tells of memory that it has freed, where the host can take it back.
fn balloon() -> Option<String> {
    let slot = LAST_SLOT - 2 - MAX_DISKS;
    can_return_memory()
        .then(|| format!("virtio-balloon-device,free-page-reporting=on,bus=virtio-mmio-bus.{slot}"))
}

/// The name of the node that is a disk to the guest.
pub(super) fn disk_node_name(index: usize) -> String {
    format!("disk{index}")
}

fn disk_node(index: usize, disk: &Disk) -> Value {
    format_node(&disk_node_name(index), disk)
}

fn detachable_node(index: usize, disk: &Disk) -> Value {
    json!({
        "driver": "raw", "node-name": disk_node_name(index), "read-only": true,
        "file": format_node(&format!("image{index}"), disk),
    })
}

fn format_node(name: &str, disk: &Disk) -> Value {
    let driver = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Vmdk => "vmdk",
        DiskFormat::Overlay => "qcow2",
    };
    let path = disk.path.to_string_lossy();
    if let Some(base) = disk.base() {
        let base = base.to_string_lossy();
        // The file names no base: a guest that had written to it could name any.
        json!({
            "driver": driver, "node-name": name, "discard": "unmap", "read-only": disk.read_only,
            "file": { "driver": "file", "filename": path, "discard": "unmap", "locking": "on" },
            "backing": {
                "driver": "raw", "read-only": true, "force-share": true,
                "file": { "driver": "file", "filename": base, "locking": "off" },
            },
        })
    } else if disk.read_only {
        // Locks are for writers. `force-share` is inherited by a descriptor's extents.
        json!({
            "driver": driver, "node-name": name, "read-only": true, "force-share": true,
            "file": { "driver": "file", "filename": path, "locking": "off" },
        })
    } else {
        json!({
            "driver": driver, "node-name": name, "discard": "unmap",
            "file": { "driver": "file", "filename": path, "discard": "unmap", "locking": "on" },
        })
    }
}

/// A disk that reads as zeros, of a size that no guest takes for a real one.
fn placeholder_node(index: usize, disk: &Disk) -> Value {
    json!({
        "driver": "null-co", "node-name": disk_node_name(index), "size": 4096, "read-zeroes": true,
        "read-only": disk.read_only,
    })
}
