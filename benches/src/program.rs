//! Running other programs: to the end, or measured.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// Programs that are not msb's, and the Debian packages they come in.
const PACKAGES: &[(&str, &str)] = &[
    ("dnsmasq", "dnsmasq-base"),
    ("dnsperf", "dnsperf"),
    ("docker-registry", "docker-registry"),
    ("gvproxy", "gvproxy"),
    ("h2load", "nghttp2-client"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nginx", "nginx-light"),
    ("nsenter", "util-linux"),
    ("passt", "passt"),
    ("pasta", "passt"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("skopeo", "skopeo"),
    ("slirp4netns", "slirp4netns"),
    ("sync", "coreutils"),
    ("sysctl", "procps"),
    ("time", "time"),
    ("umoci", "umoci"),
    ("unshare", "util-linux"),
    ("wrk", "wrk"),
];

/// What a run of a program took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// From start to end.
    pub wall: Duration,
    /// The most memory one of its processes had resident, in MiB.
    pub peak_mib: f64,
}

/// Tells whether a program is installed.
#[must_use]
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Fails when one of these programs is not installed, naming its package.
///
/// # Errors
/// Then.
pub fn require(programs: &[&str]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| !is_there(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|program| package(program)).collect();
    bail!(
        "{missing:?} not found\nhint: apt-get install {}",
        packages.join(" ")
    )
}

/// Runs a program; shows what it wrote only when it fails.
///
/// # Errors
/// When it is not there or ends without success.
pub fn check(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| cannot_run(command, &error))?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}:\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Runs a program like [`check`] and measures it with GNU time, which adds
/// about a millisecond. Environment and folder of `command` are kept.
///
/// # Errors
/// As [`check`].
pub fn measure(command: &Command, scratch: &Path) -> Result<Cost> {
    let report = scratch.join("time");
    let mut timed = Command::new("time");
    timed
        .args(["--quiet", "--format=%M", "--output"])
        .arg(&report);
    timed.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    let begin = Instant::now();
    check(&mut timed)?;
    let wall = begin.elapsed();
    let text = fs::read_to_string(&report).context("GNU time wrote no report")?;
    let kib: f64 = text
        .trim()
        .parse()
        .with_context(|| format!("GNU time reported {text:?}"))?;
    Ok(Cost {
        wall,
        peak_mib: kib / 1024.0,
    })
}

/// Writes out what is still to be written to disks, so that one measurement
/// does not pay for another.
///
/// # Errors
/// As [`check`].
pub fn settle() -> Result<()> {
    check(&mut Command::new("sync"))
}

/// Why a command can't be started, with the package that has it.
#[must_use]
pub fn cannot_run(command: &Command, error: &std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!(
            "cannot run {program}: {error}\nhint: apt-get install {}",
            package(&program)
        ),
        _ => anyhow!("cannot run {program}: {error}"),
    }
}

fn package(program: &str) -> &str {
    PACKAGES
        .iter()
        .find(|(known, _)| *known == program)
        .map_or(program, |(_, package)| package)
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
