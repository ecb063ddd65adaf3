//! The inside: makes the namespaces ready and becomes the program.
//!
//! The outside starts this program again under another name, with the line as
//! standard input; the real standard input comes over the line.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::{Context as _, anyhow, bail};
use rustix::mount::{self, MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

use crate::cli::Hinted;
use crate::line::Line;
use crate::{kernel, netlink::Netlink};

/// The name under which this program runs inside.
pub(crate) const NAME: &str = "jail-inside";

/// The interface of the program.
const INTERFACE: &str = "net0";

/// Where local services of the system answer name queries past any network.
const NAME_SERVICES: &[&str] = &["/run/systemd/resolve", "/run/nscd", "/run/dbus"];

/// What the inside is told.
pub(crate) struct Plan {
    pub(crate) mtu: u16,
    pub(crate) guest_v4: Ipv4Addr,
    pub(crate) gateway_v4: Ipv4Addr,
    pub(crate) guest_v6: Ipv6Addr,
    pub(crate) gateway_v6: Ipv6Addr,
    /// The groups that may send echo requests.
    pub(crate) ping_groups: (u32, u32),
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (first, last) = self.ping_groups;
        write!(
            f,
            "{} {} {} {} {} {first} {last}",
            self.mtu, self.guest_v4, self.gateway_v4, self.guest_v6, self.gateway_v6
        )
    }
}

impl FromStr for Plan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [mtu, guest_v4, gateway_v4, guest_v6, gateway_v6, first, last] = words[..] else {
            bail!("not a plan: {text:?}");
        };
        Ok(Self {
            mtu: mtu.parse()?,
            guest_v4: guest_v4.parse()?,
            gateway_v4: gateway_v4.parse()?,
            guest_v6: guest_v6.parse()?,
            gateway_v6: gateway_v6.parse()?,
            ping_groups: (first.parse()?, last.parse()?),
        })
    }
}

/// Tells whether this process is to be the inside.
pub(crate) fn was_asked_for() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// Becomes the program; returns only if that failed.
pub(crate) fn run() -> ExitCode {
    let line = match Line::from_stdin() {
        Ok(line) => line,
        Err(error) => {
            eprintln!("error: {NAME} is started by the jail only: {error}");
            return ExitCode::from(125);
        }
    };
    if let Err(error) = prepare(&line) {
        let hint = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Hinted>())
            .map_or("", |hinted| &hinted.hint);
        // If nobody is there to hear it, nobody is there to show it either.
        let _ = line.send(&format!("error\n{error:#}\n{hint}"), None);
        return ExitCode::from(125);
    }
    drop(line);
    become_program()
}

fn prepare(line: &Line) -> anyhow::Result<()> {
    let first = expect(line, "")?;
    let plan: Plan = first.text.parse()?;
    let stdin = first.descriptor.context("no standard input came")?;
    rustix::stdio::dup2_stdin(&stdin)?;
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    kernel::unshare(flags).map_err(|error| refused(&error))?;
    line.send("map", None)?;
    expect(line, "mapped")?;
    // Without the gateway there is no network, and with the jail gone nobody
    // would hear of the program any more.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    mounts(&plan).context("cannot mount the inside's resolv.conf")?;
    settings(&plan)?;
    let tap = kernel::tap(INTERFACE).map_err(|error| no_tap(&error))?;
    interfaces(&plan).context("cannot set up the inside's network")?;
    line.send("tap", Some(tap.as_fd()))?;
    drop(tap);
    expect(line, "go")?;
    Ok(())
}

fn expect(line: &Line, text: &str) -> anyhow::Result<crate::line::Message> {
    let message = line.receive()?.ok_or_else(|| anyhow!("the jail is gone"))?;
    if !text.is_empty() && message.text != text {
        bail!("{:?} came in place of {text:?}", message.text);
    }
    Ok(message)
}

/// Makes the network's names those of the gateway.
fn mounts(plan: &Plan) -> anyhow::Result<()> {
    const RESOLVER: &str = "/etc/resolv.conf";
    const SCRATCH: &str = "/tmp";
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change("/", private).context("cannot make mounts private")?;
    let target = fs::canonicalize(RESOLVER).unwrap_or_else(|_| RESOLVER.into());
    for service in NAME_SERVICES.iter().filter(|path| Path::new(path).is_dir()) {
        mount::mount("tmpfs", *service, "tmpfs", quiet, None)
            .with_context(|| format!("cannot hide {service}"))?;
    }
    if !target.exists() {
        // It was in a folder that is hidden now, or it was never there.
        fs::write(&target, "").with_context(|| format!("cannot write {}", target.display()))?;
    }
    // A place for the file for a moment: what is mounted keeps it.
    mount::mount("tmpfs", SCRATCH, "tmpfs", quiet, None).context("cannot mount a tmpfs")?;
    let source = Path::new(SCRATCH).join("resolv.conf");
    let mut text = String::from("# The gateway of the jail answers.\n");
    let _ = writeln!(text, "nameserver {}", plan.gateway_v4);
    fs::write(&source, text)?;
    mount::mount_bind(&source, &target)
        .with_context(|| format!("cannot mount over {}", target.display()))?;
    mount::unmount(SCRATCH, UnmountFlags::DETACH)?;
    Ok(())
}

/// Settings of the network namespace.
fn settings(plan: &Plan) -> anyhow::Result<()> {
    let (first, last) = plan.ping_groups;
    let settings = [
        ("ipv4/ping_group_range", format!("{first} {last}")),
        // Published ports reach services on loopback, too.
        ("ipv4/conf/all/route_localnet", "1".into()),
        // Addresses and routes are given, not asked for.
        ("ipv6/conf/all/disable_ipv6", "0".into()),
        ("ipv6/conf/default/disable_ipv6", "0".into()),
        ("ipv6/conf/default/accept_ra", "0".into()),
        ("ipv6/conf/default/router_solicitations", "0".into()),
    ];
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        // A kernel without IPv6 lacks its settings; containers have them read-only.
        match fs::write(&path, value) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::ReadOnlyFilesystem
                ) => {}
            Err(error) => return Err(error).context(format!("cannot write {path}")),
        }
    }
    Ok(())
}

fn interfaces(plan: &Plan) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let loopback = netlink.index("lo")?;
    netlink.up(loopback, None)?;
    let interface = netlink.index(INTERFACE)?;
    netlink.up(interface, Some(plan.mtu.into()))?;
    netlink.address(interface, plan.guest_v4.into())?;
    netlink.gateway(interface, plan.gateway_v4.into())?;
    if Path::new("/proc/sys/net/ipv6").exists() {
        netlink.address(interface, plan.guest_v6.into())?;
        netlink.gateway(interface, plan.gateway_v6.into())?;
    }
    Ok(())
}

fn become_program() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        return ExitCode::from(125);
    };
    let error = Command::new(&program).args(words).exec();
    let shown = program.to_string_lossy();
    eprintln!("error: cannot execute {shown}: {error}");
    match error.kind() {
        io::ErrorKind::NotFound => {
            if !shown.contains('/') {
                eprintln!("hint: no folder of $PATH has a program of this name");
            }
            ExitCode::from(127)
        }
        _ => ExitCode::from(126),
    }
}

/// Why there are no namespaces: usually a setting of the system.
fn refused(error: &io::Error) -> anyhow::Error {
    let setting = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name));
    let is = |name: &str, value: &str| setting(name).is_ok_and(|text| text.trim() == value);
    let hint = if is("user/max_user_namespaces", "0") {
        "raise the limit: sysctl user.max_user_namespaces=10000"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "allow them: sysctl kernel.unprivileged_userns_clone=1"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "allow them: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this program"
    } else if error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(1) {
        "a container's seccomp profile forbids them, or this program runs in a chroot; run it outside"
    } else if error.raw_os_error() == Some(28) {
        "too many namespaces, or nested too deep: see sysctl user.max_user_namespaces, user.max_net_namespaces"
    } else {
        "the kernel needs CONFIG_USER_NS and CONFIG_NET_NS"
    };
    Hinted {
        message: format!("cannot make user, network and mount namespaces: {error}"),
        hint: hint.into(),
    }
    .into()
}

fn no_tap(error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "load the kernel module: modprobe tun",
        io::ErrorKind::PermissionDenied => {
            "allow it to everybody, as distributions do: chmod 666 /dev/net/tun"
        }
        _ => "the kernel needs CONFIG_TUN",
    };
    Hinted {
        message: format!("cannot make a TAP device with /dev/net/tun: {error}"),
        hint: hint.into(),
    }
    .into()
}
