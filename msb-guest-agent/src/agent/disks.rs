//! virtio disks: letting go of them for a template, finding them by name.

use std::fs;
use std::io;
use std::path::Path;

use crate::message::{DiskName, SetupFailure};

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// The disks of the guest and whether the driver holds them.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// Devices that were let go of, to be taken up again.
    unbound: Vec<String>,
}

impl Disks {
    /// Takes the driver off all disks: what they are is read anew later.
    pub(super) fn unbind(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(DRIVER)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with("virtio")) else {
                continue;
            };
            fs::write(format!("{DRIVER}/unbind"), name)?;
            self.unbound.push(name.into());
        }
        // In the order of their numbers the kernel names them as it did before.
        self.unbound.sort_by_key(|name| (name.len(), name.clone()));
        Ok(())
    }

    /// Puts the driver back; the disks are there when this returns.
    pub(super) fn bind(&mut self) -> io::Result<()> {
        self.bind_while(|| true)
    }

    /// Puts the driver back on disks, in their order, until one of them is the kernel's
    /// `name`. The others are not touched.
    pub(super) fn bind_up_to(&mut self, name: &DiskName) -> io::Result<()> {
        let device = format!("/dev/{}", name.0);
        self.bind_while(|| !Path::new(&device).exists())
    }

    fn bind_while(&mut self, more: impl Fn() -> bool) -> io::Result<()> {
        while !self.unbound.is_empty() && more() {
            fs::write(format!("{DRIVER}/bind"), self.unbound.remove(0))?;
        }
        Ok(())
    }

    /// Finds the device file of a disk.
    pub(super) fn find(&self, disk: &DiskName) -> Result<String, SetupFailure> {
        // Asking a disk for its serial number is expensive.
        let device = format!("/dev/{}", disk.0);
        if disk.0.starts_with("vd") && !disk.0.contains('/') && Path::new(&device).exists() {
            return Ok(device);
        }
        let mut seen = Vec::new();
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with("vd")) else {
                continue;
            };
            let serial = entry.path().join("serial");
            let serial = read_serial(&serial).unwrap_or_default();
            if !serial.is_empty() && disk.0 == serial {
                return Ok(format!("/dev/{name}"));
            }
            seen.push(format!("{name} ({serial})"));
        }
        let disk = disk.clone();
        Err(SetupFailure::DiskMissing { disk, seen })
    }
}

fn read_serial(path: &Path) -> io::Result<String> {
    let serial = fs::read(path)?;
    let serial = String::from_utf8_lossy(&serial);
    Ok(serial.trim_end_matches(['\n', '\0']).to_owned())
}
