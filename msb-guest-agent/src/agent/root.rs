//! The root file system: EROFS below, an overlay upper above, and the kernel's
//! file systems where container workloads expect them.
//!
//! Reading: the kernel's `Documentation/filesystems/overlayfs.rst`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_move, mount_remount};

use super::boot::step;
use super::disks::Disks;
use super::identity::{Identity, take_over};
use super::network::Files;
use super::stage::{DISK, LOWER, ROOT, UPPER, attach};
use crate::message::{GuestConfig, RootSpec, SetupFailure, Upper};

/// The mounted root and what is needed to unmount it.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) spec: RootSpec,
    /// The file system of the upper, which the new root does not show.
    upper: OwnedFd,
    /// Whether the upper held changes from an earlier start.
    pub(super) resumed: bool,
    /// Where it will be written whose root it is.
    identity: Identity,
}

impl Root {
    /// Puts the root together and makes it `/`. The stage is set. Nothing in it depends on
    /// who the guest is.
    pub(super) fn mount(spec: &RootSpec, disks: &Disks) -> Result<Root, SetupFailure> {
        let lower = disks.find(&spec.lower)?;
        attach(&lower, LOWER, "erofs", MountFlags::RDONLY, "")?;
        let upper = match &spec.upper {
            Upper::Tmpfs { size } => {
                if let Some(size) = size {
                    resize(*size)?;
                }
                UPPER
            }
            Upper::Disk(disk) => {
                attach(&disks.find(disk)?, DISK, "ext4", MountFlags::NOATIME, "")?;
                DISK
            }
        };
        let preparing = |error: io::Error| step("prepare the upper of the root", &error);
        let resumed = upper == DISK && take_up_disk().map_err(preparing)?;
        let identity = if resumed {
            Identity::default()
        } else {
            prepare_upper(upper).map_err(preparing)?
        };
        let options = format!("lowerdir={LOWER},upperdir={upper}/upper,workdir={upper}/work");
        attach("overlay", ROOT, "overlay", MountFlags::empty(), &options)?;
        let upper = rustix::fs::open(upper, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| step("open the upper of the root", &errno.into()))?;
        for path in ["/dev", "/proc", "/sys"] {
            transfer(path).map_err(|error| step(&format!("move {path}"), &error))?;
        }
        switch_root().map_err(|error| step("switch to the new root", &error))?;
        Ok(Root {
            spec: spec.clone(),
            upper,
            resumed,
            identity,
        })
    }

    /// Writes down whose root this is.
    pub(super) fn identify(&mut self, config: &GuestConfig, network: Files) {
        let identity = std::mem::take(&mut self.identity);
        // An image may have /etc read-only or as a file: its own affair.
        let _ = identity.write(config, network, self.resumed, Path::new("/"));
    }

    /// Flushes everything and makes the file systems read-only. The error is
    /// that of the last step; the data is on the disk if only that failed.
    pub(super) fn unmount(&self) -> io::Result<()> {
        rustix::fs::sync();
        mount_remount("/", MountFlags::RDONLY, c"")?;
        rustix::process::fchdir(&self.upper)?;
        let remounted = mount_remount(".", MountFlags::RDONLY, c"");
        rustix::process::chdir("/")?;
        Ok(remounted?)
    }
}

fn resize(size: u64) -> Result<(), SetupFailure> {
    let size = format!("size={size}\0");
    let size = std::ffi::CStr::from_bytes_with_nul(size.as_bytes()).unwrap_or_default();
    mount_remount(UPPER, MountFlags::empty(), size)
        .map_err(|errno| step("set the size of the upper", &errno.into()))
}

/// Makes the directories on a disk; tells whether they were there already.
fn take_up_disk() -> io::Result<bool> {
    let disk = Path::new(DISK);
    let resumed = disk.join("upper").exists();
    for name in ["upper", "work"] {
        match fs::create_dir(disk.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(resumed)
}

/// The root directory of an overlay is that of its upper, so a new one takes
/// over owner and mode from the image's.
fn prepare_upper(upper: &str) -> io::Result<Identity> {
    let (lower, upper) = (Path::new(LOWER), Path::new(upper).join("upper"));
    take_over(&upper, &fs::metadata(lower)?, 0o755)?;
    Identity::prepare(lower, &upper)
}

/// Moves a mount, with those below it, to the same place in the new root.
fn transfer(path: &str) -> io::Result<()> {
    let target = format!("{ROOT}{path}");
    match mount_move(path, &target) {
        Err(Errno::NOENT) => {
            fs::create_dir(&target)?;
            Ok(mount_move(path, &target)?)
        }
        other => Ok(other?),
    }
}

fn switch_root() -> io::Result<()> {
    rustix::process::chdir(ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}
