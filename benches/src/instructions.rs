//! How many instructions a guest executes from power-on to the agent's answer.
//!
//! With `-icount` QEMU counts them. The kernel's clock then counts them too
//! (`cargo xtask boot-profile` uses that), but also the time in which the guest
//! waits; the counter that QEMU's monitor tells (`query-replay`) does not.
//!
//! Also compiled into xtask, so it uses nothing of this crate.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use msb_guest_agent::setup;
use serde_json::{Value, json};

const CMDLINE: &str = include_str!("../../msb-vmm/kernel/cmdline");
const CMDLINE_TCG: &str = include_str!("../../msb-vmm/kernel/cmdline.tcg");

/// The machine that the qemu engine uses (docs/boot.md).
pub const MACHINE: &str = "microvm,x-option-roms=off,pit=off,pic=off,rtc=on,acpi=off,\
isa-serial=off,auto-kernel-cmdline=on";

/// Without the instructions that TCG executes byte by byte (docs/boot.md).
pub const CPU: &str = "max,-erms,family=15,model=1,stepping=0";

/// One instruction is one nanosecond, hence a TSC of 1 GHz.
const TSC_KHZ: u64 = 1_000_000;

/// A guest that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(60);

/// Boots a guest under emulation and returns how many instructions it executed
/// until the agent's answer to `Hello` was here.
///
/// `scratch` is an existing folder. What the guest does between its answer and
/// the stop that follows it is counted too: well below a percent.
///
/// # Errors
/// When QEMU is missing, or does not start, or the guest does not answer.
pub fn until_answer(
    vmlinux: &Path,
    initramfs: &Path,
    vcpus: u32,
    mib: u32,
    scratch: &Path,
) -> Result<u64> {
    let socket = scratch.join("agent");
    let listener = UnixListener::bind(&socket).context("cannot make the agent's socket")?;
    let result = boot(vmlinux, initramfs, vcpus, mib, scratch).and_then(|mut qemu| {
        let count = qemu.count(&listener);
        count.with_context(|| qemu.errors(scratch))
    });
    fs::remove_file(&socket)?;
    result
}

fn boot(vmlinux: &Path, initramfs: &Path, vcpus: u32, mib: u32, scratch: &Path) -> Result<Qemu> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-machine", MACHINE, "-cpu", CPU])
        .args(["-accel", "tcg,thread=single"])
        .args(["-icount", "shift=0,sleep=off"])
        .args(["-smp", &vcpus.to_string(), "-m", &mib.to_string()])
        .arg("-kernel")
        .arg(vmlinux)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &command_line()])
        .arg("-chardev")
        .arg(format!(
            "socket,id=agent,path={}",
            scratch.join("agent").display()
        ))
        .args(["-device", "virtio-serial-device"])
        .args(["-device", "virtserialport,chardev=agent,name=msb.agent"])
        .args(["-chardev", "stdio,id=qmp,signal=off"])
        .args(["-mon", "chardev=qmp,mode=control"]);
    Qemu::spawn(command, scratch)
}

/// The kernel's command line, for a TSC that counts instructions.
#[must_use]
pub fn command_line() -> String {
    let options = CMDLINE.lines().chain(CMDLINE_TCG.lines()).map(str::trim);
    options
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            line.replace("{tsc_khz}", &TSC_KHZ.to_string())
                .replace("{lpj}", &(TSC_KHZ * 10).to_string())
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// A QEMU with its monitor on standard input and output; killed when dropped.
struct Qemu {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Qemu {
    fn spawn(mut command: Command, scratch: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(scratch.join("errors"))?)
            .spawn()
            .context("cannot run qemu-system-x86_64\nhint: apt-get install qemu-system-x86")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("QEMU has no standard streams");
        };
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    fn count(&mut self, listener: &UnixListener) -> Result<u64> {
        self.send("qmp_capabilities")?;
        self.answer()?;
        // QEMU has connected before its monitor came up.
        listener.set_nonblocking(true)?;
        let (mut agent, _): (UnixStream, _) = listener
            .accept()
            .context("QEMU did not connect the agent's port")?;
        agent.set_nonblocking(false)?;
        agent.set_read_timeout(Some(PATIENCE))?;
        setup::hello(&mut agent).context("the agent did not answer")?;
        self.send("stop")?;
        self.send("query-replay")?;
        self.answer()?;
        let answer = self.answer()?;
        let count = answer.get("icount").and_then(Value::as_u64);
        count.with_context(|| format!("QEMU told no instruction count: {answer}"))
    }

    fn send(&mut self, command: &str) -> Result<()> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.input
            .write_all(line.as_bytes())
            .context("QEMU takes no commands")
    }

    /// The next answer; greeting and events are passed over.
    fn answer(&mut self) -> Result<Value> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                bail!("QEMU ended early");
            }
            let mut message: Value = serde_json::from_str(&line)?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refused a command: {error}");
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    fn errors(&self, scratch: &Path) -> String {
        let text = fs::read_to_string(scratch.join("errors")).unwrap_or_default();
        format!("counting instructions failed; QEMU said: {:?}", text.trim())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
