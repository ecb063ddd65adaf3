//! `Configure`: a booted or restored guest becomes a particular one.
//!
//! The order matters. Entropy comes first, before anything is derived from the
//! kernel's generator; the boot id is read (which makes it) after that. The
//! clock is set before a file system writes a time stamp.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::boot::{Setup, step};
use super::root::Root;
use super::sys;
use super::trust;
use super::users::Database;
use super::world::World;
use crate::message::{Configured, Entropy, GuestConfig, SetupFailure, TrustSpec};

/// Longest host name the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// Does everything the message asks for.
pub(super) fn configure(
    config: &GuestConfig,
    setup: &mut Setup,
) -> Result<(Configured, World, Root), SetupFailure> {
    check(config)?;
    let entropy = config.entropy.0.as_bytes();
    let random = setup.stage.make()?.random.as_fd();
    sys::reseed(random, entropy).map_err(|error| step("reseed the random generator", &error))?;
    set_clock(config.wall_clock_ns).map_err(|error| step("set the clock", &error))?;
    rustix::system::sethostname(config.hostname.as_bytes())
        .map_err(|errno| step("set the host name", &errno.into()))?;
    setup.network.apply(config.network.as_ref())?;
    setup
        .disks
        .bind()
        .map_err(|error| step("take up the disks", &error))?;
    let mut root = match setup.root.take() {
        None => Root::mount(&config.root, &setup.disks)?,
        Some(root) if root.spec == config.root => root,
        Some(_) => return Err(invalid("root", "another one is mounted already")),
    };
    root.identify(config, setup.network.files());
    let trusting = match &config.trust {
        Some(spec) => trust::install(spec)?,
        None => Vec::new(),
    };
    let workdir = config
        .workdir
        .as_ref()
        .map_or(&b"/"[..], |dir| dir.as_bytes());
    make_workdir(workdir);

    let spec = config.user.as_deref().unwrap_or("");
    let user = Database::load()
        .find(spec)
        .map_err(|reason| SetupFailure::User {
            user: spec.into(),
            reason,
        })?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| step("read the boot id", &error))?;
    let answer = Configured {
        entropy_bits: entropy.len() as u32 * 8,
        boot_id: boot_id.trim_end().into(),
        wall_clock_ns: read_clock(),
        hostname: hostname(),
        machine_id: config.machine_id,
        uid: user.uid,
        gid: user.gid,
        resumed: root.resumed,
        mac: config.network.as_ref().map(|network| network.mac),
    };
    let devices = setup.stage.take_devices();
    let devices = devices.ok_or_else(|| SetupFailure::Refused("configured already".into()))?;
    Ok((answer, World::new(config, trusting, devices), root))
}

pub(super) fn check(config: &GuestConfig) -> Result<(), SetupFailure> {
    let entropy = config.entropy.0.0.len();
    if !(Entropy::MIN..=Entropy::MAX).contains(&entropy) {
        return Err(invalid("entropy", "it has to have 32 to 512 bytes"));
    }
    let name = &config.hostname;
    if name.is_empty()
        || name.len() > MAX_HOSTNAME
        || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    {
        return Err(invalid(
            "hostname",
            "1 to 64 printable characters, no slash",
        ));
    }
    if config.machine_id == [0; 16] {
        return Err(invalid("machine_id", "it is all zero"));
    }
    if let Some(trust) = &config.trust
        && (trust.authority.0.len() > TrustSpec::MAX_AUTHORITY
            || trust.fallback.0.len() > TrustSpec::MAX_FALLBACK)
    {
        return Err(invalid("trust", "the certificates are too long"));
    }
    if config.wall_clock_ns > i64::MAX as u64 {
        return Err(invalid(
            "wall_clock_ns",
            "it is later than the kernel can count",
        ));
    }
    Ok(())
}

/// The host name, as the kernel tells it.
pub(super) fn hostname() -> String {
    let uname = rustix::system::uname();
    String::from_utf8_lossy(uname.nodename().to_bytes()).into_owned()
}

fn invalid(what: &str, reason: &str) -> SetupFailure {
    SetupFailure::Invalid {
        what: what.into(),
        reason: reason.into(),
    }
}

pub(super) fn set_clock(ns: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: (ns / 1_000_000_000) as i64,
        tv_nsec: (ns % 1_000_000_000) as i64,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

pub(super) fn read_clock() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The image's working directory is made when missing, as Docker does. If that
/// is not possible, the first command that wants to be there says so.
fn make_workdir(path: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    if !path.is_dir() {
        let _ = fs::create_dir_all(path);
    }
}
