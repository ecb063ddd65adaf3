//! What no start of a machine can be faster than: the engine's own program, without a guest.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use msb_vmm::{Engine, Isolation};

use crate::{instructions, program};

/// Starts QEMU with the machine that sandboxes have, executes nothing, and ends it; returns
/// how long that took.
///
/// # Errors
/// When it can't be started, or fails.
pub fn qemu_alone(engine: &Engine, memory_mib: u64) -> Result<Duration> {
    let (accelerator, cpu) = match engine.isolation() {
        Isolation::Hardware => ("kvm", "host"),
        _ => ("tcg", instructions::CPU),
    };
    let begin = Instant::now();
    let mut command = Command::new(engine.program());
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
        .args(["-machine", instructions::MACHINE])
        .args(["-accel", accelerator, "-cpu", cpu])
        .args(["-m", &memory_mib.to_string()])
        .args(["-device", "virtio-serial-device"])
        .args(["-chardev", "stdio,id=qmp,signal=off"])
        .args(["-mon", "chardev=qmp,mode=control"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut child = command
        .spawn()
        .map_err(|error| program::cannot_run(&command, &error))?;
    let commands = b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}\n";
    let mut input = child.stdin.take().context("QEMU has no standard input")?;
    if input.write_all(commands).is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    ensure!(status.success(), "QEMU alone ended with {status}");
    Ok(begin.elapsed())
}
