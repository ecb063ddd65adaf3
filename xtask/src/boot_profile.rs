//! Where a cold boot spends its instructions.
//!
//! Under `-icount shift=0` QEMU's clock advances one nanosecond for each guest
//! instruction, so the time stamps of the kernel's log count instructions, the
//! same on every machine and in every run. [`run`] boots a kernel this way up
//! to a PID 1 of a few instructions that prints its TSC and reboots.
//! Idle waits count too (virtual time passes without instructions), which is
//! as well: a boot should not wait.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Shared with the benchmark `boot`, which measures the same guest.
#[path = "../../benches/src/instructions.rs"]
#[allow(unreachable_pub)]
mod instructions;

use instructions::{CPU, MACHINE, command_line};

/// Longest gaps and slowest initcalls that are printed.
const ROWS: usize = 15;

/// The guests that are measured: vcpus and MiB.
const GUESTS: &[(u32, u32)] = &[(1, 128), (1, 512), (2, 512), (4, 4096)];

/// PID 1. In assembly:
///
/// ```text
/// rdtsc; shl $32, %rdx; or %rax, %rdx
/// lea digits, %rdi; mov $16, %ecx
/// 1: rol $4, %rdx; mov %dl, %al; and $15, %al; add $'A', %al; stosb; loop 1b
/// 4: ebp = open("/dev/hvc0", O_RDWR); js 4b    (the console comes up in the background)
/// write(ebp, "pid1-tsc=<digits>\n", 26)
/// ebx = open("/dev/kmsg", O_RDONLY | O_NONBLOCK)
/// 2: rax = read(ebx, end, 8192); jle 3f; write(ebp, end, rax); jmp 2b
/// 3: reboot(0xfee1dead, 672274793, RB_AUTOBOOT); jmp .
/// ```
const PID1: &[u8] = b"\
\x0f\x31\x48\xc1\xe2\x20\x48\x09\xc2\x48\x8d\x3d\x9a\x00\x00\x00\xb9\x10\x00\x00\x00\x48\xc1\xc2\
\x04\x88\xd0\x24\x0f\x04\x41\xaa\xe2\xf3\xb8\x02\x00\x00\x00\x48\x8d\x3d\x8d\x00\x00\x00\xbe\x02\
\x00\x00\x00\x0f\x05\x89\xc5\x85\xc0\x78\xe7\xb8\x01\x00\x00\x00\x89\xef\x48\x8d\x35\x58\x00\x00\
\x00\xba\x1a\x00\x00\x00\x0f\x05\xb8\x02\x00\x00\x00\x48\x8d\x3d\x69\x00\x00\x00\xbe\x00\x08\x00\
\x00\x0f\x05\x89\xc3\x31\xc0\x89\xdf\x48\x8d\x35\x5f\x00\x00\x00\xba\x00\x20\x00\x00\x0f\x05\x48\
\x85\xc0\x7e\x0d\x89\xc2\xb8\x01\x00\x00\x00\x89\xef\x0f\x05\xeb\xdc\xb8\xa9\x00\x00\x00\xbf\xad\
\xde\xe1\xfe\xbe\x69\x19\x12\x28\xba\x67\x45\x23\x01\x0f\x05\xeb\xfe\
pid1-tsc=AAAAAAAAAAAAAAAA\n/dev/hvc0\0/dev/kmsg\0";

/// Room behind the code for one record of the kernel's log.
const BUFFER: u64 = 8192;

/// Boots the kernel in guests of several sizes and prints what they cost, then
/// where the instructions of a middling one go.
///
/// With an initramfs, its unpacking is part of the boot; its `/init` is
/// replaced by the measuring one.
///
/// # Errors
///
/// Fails when QEMU is missing or the kernel does not reach PID 1.
pub(crate) fn run(vmlinux: &Path, initramfs: Option<&Path>) -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("msb-boot-profile-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let result = profile(vmlinux, initramfs, &scratch);
    fs::remove_dir_all(&scratch)?;
    result
}

fn profile(vmlinux: &Path, initramfs: Option<&Path>, scratch: &Path) -> Result<()> {
    let ours = scratch.join("initramfs.cpio");
    let mut archive = initramfs
        .map(fs::read)
        .transpose()
        .context("cannot read the initramfs")?
        .unwrap_or_default();
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend(cpio());
    fs::write(&ours, archive)?;

    println!("Guest instructions from power-on, in millions (those to PID 1 with waiting):");
    println!("  vcpus    MiB   to PID 1   to the agent's answer");
    for &(vcpus, mib) in GUESTS {
        let boot = Boot::measure(vmlinux, &ours, vcpus, mib, &[])?;
        print!("  {vcpus:>5} {mib:>6} {:>10.1}", millions(boot.pid1));
        if let Some(initramfs) = initramfs {
            let count = instructions::until_answer(vmlinux, initramfs, vcpus, mib, scratch)?;
            print!(" {:>10.1}", millions(count));
        }
        println!();
    }

    let boot = Boot::measure(vmlinux, &ours, 1, 512, &[])?;
    println!("\nLongest gaps between messages (1 vcpu, 512 MiB), in millions:");
    let mut gaps: Vec<_> = boot
        .log
        .windows(2)
        .map(|pair| (pair[1].0 - pair[0].0, &pair[0].1, &pair[1].1))
        .collect();
    gaps.sort_by_key(|(gap, ..)| std::cmp::Reverse(*gap));
    for (gap, before, after) in gaps.into_iter().take(ROWS) {
        println!(
            "  {:>7.2}  {}  →  {}",
            millions(gap),
            clip(before),
            clip(after)
        );
    }

    let boot = Boot::measure(
        vmlinux,
        &ours,
        1,
        512,
        &["initcall_debug", "log_buf_len=1M"],
    )?;
    println!("\nSlowest initcalls, in millions:");
    let mut calls: Vec<_> = boot
        .log
        .iter()
        .filter_map(|(_, text)| initcall(text))
        .collect();
    calls.sort_by_key(|(_, microseconds)| std::cmp::Reverse(*microseconds));
    for (name, microseconds) in calls.iter().take(ROWS) {
        println!("  {:>7.2}  {name}", millions(microseconds * 1000));
    }
    let all: u64 = calls
        .iter()
        .map(|(_, microseconds)| microseconds * 1000)
        .sum();
    println!("  {:>7.2}  all {}", millions(all), calls.len());
    Ok(())
}

/// What one boot told.
struct Boot {
    /// The TSC at the first instruction of PID 1.
    pid1: u64,
    /// Time stamp in nanoseconds and text of each kernel message.
    log: Vec<(u64, String)>,
}

impl Boot {
    fn measure(
        vmlinux: &Path,
        initramfs: &Path,
        vcpus: u32,
        mib: u32,
        extra: &[&str],
    ) -> Result<Self> {
        let output = Command::new("qemu-system-x86_64")
            .args(arguments(vmlinux, initramfs, vcpus, mib, extra))
            .stdin(Stdio::null())
            .output()
            .context("cannot run qemu-system-x86_64: install the package qemu-system-x86")?;
        let console = String::from_utf8_lossy(&output.stdout);
        let log: Vec<_> = console.lines().filter_map(stamped).collect();
        let pid1 = console
            .lines()
            .find_map(|line| tsc(line.trim().strip_prefix("pid1-tsc=")?));
        let Some(pid1) = pid1 else {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("the guest did not reach PID 1:\n{console}{errors}");
        };
        Ok(Self { pid1, log })
    }
}

fn arguments(
    vmlinux: &Path,
    initramfs: &Path,
    vcpus: u32,
    mib: u32,
    extra: &[&str],
) -> Vec<OsString> {
    let mut cmdline = command_line();
    cmdline.push_str(" console=hvc0");
    for option in extra {
        cmdline.push(' ');
        cmdline.push_str(option);
    }
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: OsString| list.extend([option.into(), value]);
    add("-machine", MACHINE.into());
    add("-accel", "tcg,thread=single".into());
    add("-icount", "shift=0,sleep=off".into());
    add("-cpu", CPU.into());
    add("-smp", vcpus.to_string().into());
    add("-m", mib.to_string().into());
    add("-kernel", vmlinux.into());
    add("-initrd", initramfs.into());
    add("-append", cmdline.into());
    add("-display", "none".into());
    add("-chardev", "stdio,id=console,signal=off".into());
    add("-device", "virtio-serial-device".into());
    add("-device", "virtconsole,chardev=console".into());
    list.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    list
}

/// `6,12,12345,-;text`, a record of /dev/kmsg: its stamp in nanoseconds, its text.
fn stamped(line: &str) -> Option<(u64, String)> {
    let (head, text) = line.trim().split_once(';')?;
    let microseconds: u64 = head.split(',').nth(2)?.parse().ok()?;
    Some((microseconds * 1000, text.to_owned()))
}

/// `initcall NAME+0x0/0x10 returned 0 after 12 usecs`.
fn initcall(text: &str) -> Option<(&str, u64)> {
    let (name, rest) = text.strip_prefix("initcall ")?.split_once(" returned ")?;
    let (_, time) = rest.split_once(" after ")?;
    Some((
        name.split('+').next()?,
        time.split(' ').next()?.parse().ok()?,
    ))
}

/// Sixteen letters, `A` for 0 to `P` for 15.
fn tsc(letters: &str) -> Option<u64> {
    letters.bytes().try_fold(0u64, |value, letter| {
        let digit = letter.checked_sub(b'A').filter(|digit| *digit < 16)?;
        Some(value.checked_mul(16)? | u64::from(digit))
    })
}

fn millions(instructions: u64) -> f64 {
    // A boot is far below 2^52 instructions: nothing is lost.
    instructions as f64 / 1e6
}

fn clip(text: &str) -> String {
    text.chars().take(48).collect()
}

/// The archive with the device nodes and `/init`.
fn cpio() -> Vec<u8> {
    let mut archive = Vec::new();
    let mut inode = 0x5000_0000;
    let mut entry = |name: &str, mode: u32, rdev: (u32, u32), data: &[u8]| {
        inode += 1;
        let size = u32::try_from(data.len()).expect("a small file");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        let fields = [
            inode, mode, 0, 0, 1, 0, size, 0, 0, rdev.0, rdev.1, name_size, 0,
        ];
        archive.extend(b"070701");
        for field in fields {
            write!(archive, "{field:08x}").expect("writing to memory");
        }
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    entry("dev", 0o040_755, (0, 0), &[]);
    entry("dev/hvc0", 0o020_600, (229, 0), &[]);
    entry("dev/kmsg", 0o020_600, (1, 11), &[]);
    entry("init", 0o100_755, (0, 0), &elf(PID1));
    entry("TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// A static executable of one segment that holds `code`.
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    for value in [BASE + HEADERS, 64, 0] {
        file.extend(value.to_le_bytes()); // entry, program headers, no section headers
    }
    file.extend([0; 4]); // flags
    file.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]); // one program header, no sections
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, read + write + execute
    for value in [0, BASE, BASE, size, size + BUFFER, 0x1000] {
        file.extend(u64::to_le_bytes(value));
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_read() {
        assert_eq!(
            stamped("6,7,12345,-;Run /init\r"),
            Some((12_345_000, "Run /init".to_owned()))
        );
        assert_eq!(stamped("pid1-tsc=A"), None);
        assert_eq!(
            initcall("initcall foo_init+0x0/0x30 returned 0 after 42 usecs"),
            Some(("foo_init", 42))
        );
        assert_eq!(tsc("AAAAAAAAAAAAAABP"), Some(31));
        assert_eq!(tsc("Z"), None);
    }

    #[test]
    fn command_line_has_no_comment_or_hole() {
        let line = command_line();
        assert!(line.contains("tsc_early_khz=1000000"));
        assert!(!line.contains(['#', '{', '\n']));
    }
}
