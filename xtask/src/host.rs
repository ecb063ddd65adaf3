//! The system packages that the tasks need, and their installation.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::kernel::{PACKAGE, named_tarball};
use crate::run::{capture, check, is_root, step};

/// Packages installed for one purpose.
pub(crate) struct Packages {
    purpose: &'static str,
    names: &'static [&'static str],
}

const KERNEL: Packages = Packages {
    purpose: "build the guest kernel",
    names: &[
        "gcc",
        "make",
        "flex",
        "bison",
        "bc",
        "patch",
        "libelf-dev",
        "xz-utils",
        PACKAGE,
    ],
};
const RUN: Packages = Packages {
    purpose: "run virtual machines",
    names: &["qemu-system-x86", "e2fsprogs"],
};
const DEMO: Packages = Packages {
    purpose: "make images and serve them from a registry",
    names: &[
        "busybox-static",
        "mmdebstrap",
        "umoci",
        "skopeo",
        "docker-registry",
    ],
};
const TEST: Packages = Packages {
    purpose: "compare with other tools in tests",
    names: &[
        "attr",
        "buildah",
        "cpio",
        "curl",
        "erofs-utils",
        "iproute2",
        "iputils-ping",
        "libcap2-bin",
        "tmux",
        "traceroute",
        "zstd",
    ],
};
const BENCH: Packages = Packages {
    purpose: "measure",
    names: &[
        "dnsmasq-base",
        "dnsperf",
        "hyperfine",
        "iperf3",
        "iproute2",
        "nghttp2-client",
        "nginx-light",
        "passt",
        "procps",
        "slirp4netns",
        "time",
        "wrk",
    ],
};

const CLIENTS: Packages = Packages {
    purpose: "make an image of clients",
    names: &["npm", "python3-pip"],
};

/// Packages whose programs often come from elsewhere, and the programs.
const PROGRAMS: &[(&str, &str)] = &[("npm", "npm"), ("python3-pip", "pip3")];

/// What `cargo xtask demo` needs.
pub(crate) const FOR_DEMO: &[Packages] = &[KERNEL, RUN, DEMO];
/// What the guest bundle needs.
pub(crate) const FOR_GUEST: &[Packages] = &[KERNEL, RUN];
/// What the tests need.
pub(crate) const FOR_TEST: &[Packages] = &[KERNEL, RUN, DEMO, TEST];
/// What the image of clients needs.
pub(crate) const FOR_CLIENTS: &[Packages] = &[DEMO, CLIENTS];
/// Everything, benchmarks included.
pub(crate) const ALL: &[Packages] = &[KERNEL, RUN, DEMO, TEST, CLIENTS, BENCH];

/// Installs what is missing and names it; does nothing when nothing is.
pub(crate) fn install(groups: &[Packages]) -> Result<()> {
    let mut missing = Vec::new();
    for group in groups {
        let absent: Vec<&str> = group
            .names
            .iter()
            .copied()
            .filter(|name| !installed(name))
            .filter(|name| *name != PACKAGE || named_tarball().is_none())
            .collect();
        if !absent.is_empty() {
            eprintln!("to {}: {}", group.purpose, absent.join(" "));
        }
        missing.extend(absent);
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !available("apt-get") {
        bail!(
            "this task installs packages with apt-get (Debian 12, Ubuntu), which this system lacks\n\
             hint: install the equivalents of these by hand: {}",
            missing.join(" ")
        );
    }
    step(
        &format!("install {} system packages", missing.len()),
        || {
            check(apt()?.args(["update", "-qq"]))?;
            check(
            apt()?
                .args(["install", "-y", "-qq", "--no-install-recommends"])
                .args(&missing),
        )
        .context("a package could not be installed; linux-source-6.12 is in Debian 12; where a release lacks it, set MSB_KERNEL_TARBALL to the path of a tarball of Linux 6.12")
        },
    )
}

/// Whether a program can be found.
pub(crate) fn available(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn installed(package: &str) -> bool {
    let program = PROGRAMS.iter().find(|(own, _)| *own == package);
    if program.is_some_and(|(_, program)| available(program)) {
        return true;
    }
    capture(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]))
        .is_ok_and(|status| status.ends_with("ok installed"))
}

fn apt() -> Result<Command> {
    let mut command = if is_root()? {
        Command::new("env")
    } else if available("sudo") {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    } else {
        bail!(
            "packages must be installed as root\nhint: install sudo, or run `cargo xtask setup` once as root"
        );
    };
    // RUNLEVEL=1 keeps the packages from starting services of their own.
    command.args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}
