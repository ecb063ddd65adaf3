//! What every guest has, whoever it becomes: the kernel's file systems, the
//! loopback interface, limits.
//!
//! All of it is made at the latest by `Configure`, but before a template is
//! saved if there is one: after a restore every instruction is translated
//! anew, so what is done here costs the restored guests nothing. Nothing here
//! may depend on the image, the identity or the clock, and no secret may be
//! drawn: restored guests have all of it in common, down to the ids of the file
//! systems.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::boot::step;
use super::{groups, sys};
use crate::message::{Errno, SetupFailure};

/// Where the root is put together, inside the initramfs.
pub(super) const LOWER: &str = "/mnt/lower";
pub(super) const UPPER: &str = "/mnt/upper";
pub(super) const DISK: &str = "/mnt/disk";
pub(super) const ROOT: &str = "/mnt/root";

/// Descriptors a process may have, as Docker's default.
const DESCRIPTORS: u64 = 1_048_576;

/// What was made.
#[derive(Debug, Default)]
pub(super) struct Stage {
    devices: Option<Devices>,
}

/// Descriptors of the kernel's own files: an image or a workload can put others in their
/// places.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) random: OwnedFd,
    pub(super) null: OwnedFd,
    /// The directory that `ptmx` is opened in.
    pub(super) pts: OwnedFd,
    /// The root of the cgroups, where there is one.
    cgroups: Option<OwnedFd>,
    proc: Option<OwnedFd>,
}

impl Devices {
    pub(super) fn open() -> io::Result<Devices> {
        let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        Ok(Devices {
            random: open("/dev/random", OFlags::WRONLY)?,
            null: open("/dev/null", OFlags::RDWR)?,
            pts: open("/dev/pts", OFlags::PATH | OFlags::DIRECTORY)?,
            cgroups: open("/sys/fs/cgroup", OFlags::RDONLY | OFlags::DIRECTORY).ok(),
            proc: open("/proc", OFlags::PATH | OFlags::DIRECTORY).ok(),
        })
    }

    pub(super) fn random(&self) -> BorrowedFd<'_> {
        self.random.as_fd()
    }

    pub(super) fn cgroups(&self) -> Option<BorrowedFd<'_>> {
        self.cgroups.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn proc(&self) -> Option<BorrowedFd<'_>> {
        self.proc.as_ref().map(AsFd::as_fd)
    }
}

impl Stage {
    /// Makes it, unless it was made.
    pub(super) fn make(&mut self) -> Result<&Devices, SetupFailure> {
        match &mut self.devices {
            Some(devices) => Ok(devices),
            none => Ok(none.insert(make()?)),
        }
    }

    /// Takes the descriptors, of which there is one set.
    pub(super) fn take_devices(&mut self) -> Option<Devices> {
        self.devices.take()
    }
}

fn make() -> Result<Devices, SetupFailure> {
    for path in [LOWER, UPPER, DISK, ROOT] {
        fs::create_dir(path).map_err(|error| step(&format!("make {path}"), &error))?;
    }
    mount_kernel_file_systems()?;
    let options = format!("mode=0755,nr_inodes={}", upper_files());
    attach("tmpfs", UPPER, "tmpfs", MountFlags::empty(), &options)?;
    for name in ["upper", "work"] {
        let path = format!("{UPPER}/{name}");
        fs::create_dir(path).map_err(|error| step("prepare the upper of the root", &error))?;
    }
    sys::loopback_up().map_err(|error| step("bring up loopback", &error))?;
    set_limits().map_err(|error| step("set resource limits", &error))?;
    open_to_all();
    rest();
    let devices = Devices::open().map_err(|error| step("open /dev", &error))?;
    // A kernel without them has commands all the same.
    let _ = devices
        .cgroups()
        .map(|cgroups| groups::make(cgroups, available_memory(), possible_threads()));
    Ok(devices)
}

/// Mounts what is needed to find the link.
pub(super) fn mount_early() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755")?;
    mount("sysfs", "/sys", "sysfs", flags | MountFlags::NODEV, None)?;
    Ok(())
}

/// Completes `/dev`, `/proc` and `/sys`, which move into the root later with
/// all that is mounted below them.
fn mount_kernel_file_systems() -> Result<(), SetupFailure> {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    attach("proc", "/proc", "proc", plain, "")?;
    attach("cgroup2", "/sys/fs/cgroup", "cgroup2", plain, "nsdelegate")?;
    for path in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir(path).map_err(|error| step(&format!("make {path}"), &error))?;
    }
    let no_exec = MountFlags::NOSUID | MountFlags::NOEXEC;
    let pts = "mode=0620,gid=5,ptmxmode=0666";
    attach("devpts", "/dev/pts", "devpts", no_exec, pts)?;
    attach("shm", "/dev/shm", "tmpfs", plain, "mode=1777")?;
    attach("mqueue", "/dev/mqueue", "mqueue", plain, "")?;
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("/proc/kcore", "/dev/core"),
    ];
    for (target, link) in links {
        symlink(target, link).map_err(|error| step(&format!("make {link}"), &error))?;
    }
    Ok(())
}

/// How many files an upper in memory can have: the kernel's own bound, one for every other
/// page, is less than what a package manager or a test of a hundred thousand files makes in
/// an ordinary guest. Each takes up to two KiB with what the overlay keeps of it.
fn upper_files() -> u64 {
    let info = rustix::system::sysinfo();
    let memory = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    memory / 2048
}

/// Memory in bytes that programs could have now, as the kernel estimates it.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let lines = text.lines();
    let line = lines.filter_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.filter_map(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.max().unwrap_or(0) << 10
}

/// How many threads the kernel can have at once; 0 where it does not say.
fn possible_threads() -> u64 {
    let number = |name| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let most = number("threads-max").into_iter().chain(number("pid_max"));
    most.min().unwrap_or(0)
}

fn set_limits() -> io::Result<()> {
    let limit = |value| Rlimit {
        current: value,
        maximum: value,
    };
    setrlimit(Resource::Nofile, limit(Some(DESCRIPTORS)))?;
    setrlimit(Resource::Nproc, limit(None))?;
    let core = Rlimit {
        current: Some(0),
        maximum: None,
    };
    setrlimit(Resource::Core, core)?;
    Ok(())
}

/// Lets every user ping and serve low ports, as in Docker: the guest has one
/// owner. Not worth failing for where the kernel has no such setting.
fn open_to_all() {
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

/// Stops the kernel from looking twice a second whether memory should be compacted ahead
/// of need: nothing else wakes a guest at rest as often. Compaction on demand is as
/// before. Not worth failing for where the kernel has no such setting.
fn rest() {
    let _ = fs::write("/proc/sys/vm/compaction_proactiveness", "0");
}

/// Mounts a file system.
pub(super) fn attach(
    what: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), SetupFailure> {
    let data = CString::new(options).expect("options are made here, without NUL");
    mount(what, target, kind, flags, data.as_c_str()).map_err(|errno| SetupFailure::Mount {
        what: what.into(),
        target: target.into(),
        errno: Errno(errno.raw_os_error()),
    })
}
