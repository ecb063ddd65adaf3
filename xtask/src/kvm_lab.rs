//! `cargo xtask kvm-lab [-- TEST…]`: the krun engine where KVM works, on any machine.
//!
//! QEMU's translator emulates SVM with nested paging. An outer guest with KVM in its kernel
//! therefore has a `/dev/kvm` that runs guests, however slowly, also where the host has
//! none. In it run the engine tests of `msb-vmm` and the `msb` command itself.
//!
//! ```text
//! xtask ── QEMU, TCG ──► outer guest: init, tests, msb ── KVM on emulated SVM ──► guests
//! ```
//!
//! Once for results and wall time, once more under `-icount`, whose clock counts the
//! instructions of everything below it: the VMM's and the guest's, waits included.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kernel::{self, KernelOptions};
use crate::run::{capture, cargo, check_quiet, step, target_dir};
use crate::{guest, host, images};

/// What the outer kernel has beyond that of guests.
const KERNEL: &str = include_str!("../kvm-lab/kernel.config");

/// PID 1 of the outer guest, and what it runs.
const SCRIPTS: [(&str, &str); 3] = [
    ("init", include_str!("../kvm-lab/init")),
    ("idle", include_str!("../kvm-lab/idle")),
    ("groups", include_str!("../kvm-lab/groups")),
];

/// Tests of these names need QEMU, which the lab does not have inside.
const NEED_QEMU: [&str; 3] = ["template::", "snapshot::", "network::a_copy_has"];

/// How long the outer guest may take. It takes a minute or two; a host with other work
/// may take several times that.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The same while instructions are counted, which takes a minute. QEMU's counter may stand still:
/// its processor then waits for timers to run, and its main loop for something to happen.
const COUNTING_PATIENCE: Duration = Duration::from_secs(300);

/// How often that may happen before it is a failure.
const MAX_STANDSTILLS: u32 = 2;

/// What is said of a lab that was ended.
const NO_END: &str = "no end within";

/// Lines of the log that are shown when the lab fails.
const TAIL_LINES: usize = 150;

/// Size of the outer root, sparse: programs, libraries, an image, and room.
const ROOT_SIZE: &str = "768M";

/// How often the outer kernel may die of QEMU's emulation before that is a failure: seen in
/// three of seven runs of one day.
const MAX_DEATHS: u32 = 4;

/// How often a step may hang until it is killed before that is a failure. Seen in one of the first three runs:
/// a program in a sandbox whose end nobody saw; why is not known. It is told each time.
const MAX_HANGS: u32 = 1;

/// Runs everything, or only the engine tests whose name holds one of `filters`.
pub(crate) fn run(filters: &[String]) -> Result<()> {
    let filters: Vec<&String> = filters.iter().filter(|word| *word != "--").collect();
    host::install(host::FOR_TEST)?;
    let bundle = guest::bundle()?;
    let images = images::prepare()?;
    let kernel = step("lab kernel", || {
        kernel::build(&KernelOptions {
            more: KERNEL,
            out_root: target_dir().join("guest-build"),
            ..KernelOptions::default()
        })
    })?;
    let lab = Lab {
        folder: target_dir().join("kvm-lab"),
        kernel,
    };
    let programs = step("programs for the lab", programs)?;
    let parts = if filters.is_empty() {
        "tests,msb,measure"
    } else {
        "tests"
    };
    let wall = || {
        step("root of the lab", || {
            lab.make_root(&bundle, &images, &programs, &filters)
        })?;
        step("KVM lab", || lab.boot(parts, Clock::Wall))
    };
    let mut left = MAX_DEATHS;
    let mut hangs = MAX_HANGS;
    let report = loop {
        match wall() {
            Err(error) if left > 0 && lab.died_of_patching() => {
                left -= 1;
                eprintln!("    {error:#}");
                eprintln!("    the outer kernel died of a trap in code that it had patched: again");
            }
            Err(error) if hangs > 0 && lab.hung() => {
                hangs -= 1;
                eprintln!("    {error:#}");
                eprintln!("    a step hung and was killed, which is a defect: once more");
            }
            report => break report?,
        }
    };
    if !filters.is_empty() {
        return Ok(());
    }
    let mut left = MAX_STANDSTILLS;
    let counted = loop {
        let counted = step("KVM lab, instructions", || {
            lab.boot("measure", Clock::Instructions)
        });
        match counted {
            Err(_) if left > 0 && lab.stood_still() => {
                left -= 1;
                eprintln!("    QEMU's counter of instructions stood still: again");
            }
            counted => break counted?,
        }
    };
    print_measured(&report, &counted);
    Ok(())
}

/// What runs inside.
struct Programs {
    msb: PathBuf,
    runner: PathBuf,
    tests: PathBuf,
    bench: PathBuf,
}

/// Builds the programs and learns from cargo where they are.
///
/// What is measured is optimised as what the workspace depends on is: what people run is. Last,
/// because it takes the place of what was built for the tests.
fn programs() -> Result<Programs> {
    let packages = ["--package", "msb-vmm", "--package", "msb-cli"];
    let build = |how: &[&str], optimised: &str| {
        capture(
            cargo()
                .args(how)
                .args(["--quiet", "--message-format=json"])
                .args(packages)
                .env("CARGO_PROFILE_DEV_OPT_LEVEL", optimised)
                .env("CARGO_TARGET_DIR", target_dir()),
        )
    };
    let mut messages = build(&["test", "--no-run", "--test", "it"], "0")?;
    messages += &build(&["build", "--bins", "--example", "boot_bench"], "2")?;
    let found: Vec<(String, String, PathBuf)> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let source = message["target"]["src_path"].as_str()?.to_owned();
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, source, message["executable"].as_str()?.into()))
        })
        .collect();
    let find = |name: &str, folder: &str| {
        let of = found
            .iter()
            .find(|(found, source, _)| found == name && source.contains(folder));
        of.map(|(_, _, path)| path.clone())
            .with_context(|| format!("cargo built no {name}"))
    };
    Ok(Programs {
        msb: find("msb", "msb-cli/")?,
        runner: find("msb-vmm-runner", "msb-vmm/")?,
        tests: find("it", "msb-vmm/")?,
        bench: find("boot_bench", "msb-vmm/")?,
    })
}

/// Whose time the outer guest's clock tells.
#[derive(Clone, Copy, PartialEq)]
enum Clock {
    Wall,
    /// A nanosecond is an instruction.
    Instructions,
}

struct Lab {
    folder: PathBuf,
    kernel: PathBuf,
}

impl Lab {
    /// Puts the outer guest's root together and makes a disk of it.
    fn make_root(
        &self,
        bundle: &Path,
        images: &Path,
        programs: &Programs,
        filters: &[&String],
    ) -> Result<()> {
        let root = self.folder.join("root");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for folder in [
            "bin", "dev", "guest", "images", "lab", "proc", "root", "sys", "tmp",
        ] {
            fs::create_dir_all(root.join(folder))?;
        }
        let tests = tests(&programs.tests, filters)?;
        ensure!(!tests.is_empty(), "no engine test has such a name");
        fs::write(root.join("lab/tests"), tests.join("\n") + "\n")?;
        for (name, text) in SCRIPTS {
            let script = root.join("lab").join(name);
            fs::write(&script, text)?;
            executable(&script)?;
        }
        for file in ["vmlinux", "initramfs.cpio"] {
            fs::copy(bundle.join(file), root.join("guest").join(file))?;
        }
        check_quiet(
            Command::new("cp")
                .arg("-r")
                .arg(images.join("busybox"))
                .arg(root.join("images/busybox")),
        )?;
        fs::copy(on_path("busybox")?, root.join("bin/busybox"))?;
        let disks = on_path("mke2fs")?;
        for (program, place) in [
            (&programs.msb, "lab/msb"),
            (&programs.runner, "lab/msb-vmm-runner"),
            (&programs.tests, "lab/it"),
            (&programs.bench, "lab/boot_bench"),
            (&disks, "sbin/mke2fs"),
        ] {
            add_program(&root, program, place)?;
        }
        let disk = self.disk();
        let _ = fs::remove_file(&disk);
        check_quiet(
            Command::new(disks)
                .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
                .arg("-d")
                .arg(&root)
                .arg(&disk)
                .arg(ROOT_SIZE),
        )?;
        fs::remove_dir_all(&root).map_err(Into::into)
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("root.ext4")
    }

    /// Tells whether the outer kernel itself ended the last run, by a trap that it had put into
    /// its own code and taken out again. On QEMU's emulation of several processors one of
    /// them now and then still meets it, which says nothing of what is tested.
    fn died_of_patching(&self) -> bool {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.contains("] Oops: int3:") && !log.contains("@lab done")
    }

    /// Whether a step was killed because it took too long.
    fn hung(&self) -> bool {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let ends = log.lines().filter_map(|line| line.split_once("@lab end "));
        ends.filter_map(|(_, end)| end.split(' ').nth(1))
            .any(|code| code == "137")
    }

    /// Whether the last run in which instructions were counted had to be ended.
    fn stood_still(&self) -> bool {
        let log = fs::read_to_string(self.folder.join("log-instructions")).unwrap_or_default();
        log.lines().any(|line| line.starts_with(NO_END))
    }

    /// Boots the outer guest, and fails when one of its steps does.
    fn boot(&self, parts: &str, clock: Clock) -> Result<Vec<Outcome>> {
        let log = self.folder.join(match clock {
            Clock::Wall => "log",
            Clock::Instructions => "log-instructions",
        });
        let lines = self.console(parts, clock, &log)?;
        let outcomes = outcomes(&lines);
        let ended = lines.iter().any(|line| line == "@lab done");
        let failed: Vec<&str> = outcomes
            .iter()
            .filter(|outcome| !outcome.passed)
            .map(|outcome| outcome.name.as_str())
            .collect();
        if ended && failed.is_empty() {
            eprintln!("    {} steps passed", outcomes.len());
            return Ok(outcomes);
        }
        let shown = excerpt(&lines, failed.first().copied());
        let what = if failed.is_empty() {
            "the lab did not get to its end".to_owned()
        } else {
            format!(
                "{} of {} steps failed: {}",
                failed.len(),
                outcomes.len(),
                failed.join(", ")
            )
        };
        bail!("{what}; all is in {}\n{shown}", log.display())
    }

    /// Runs QEMU and returns the lines of its console, of which `log` gets a copy.
    fn console(&self, parts: &str, clock: Clock, log: &Path) -> Result<Vec<String>> {
        let mut child = self
            .qemu(parts, clock)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log.with_extension("qemu"))?)
            .spawn()
            .context("cannot run qemu-system-x86_64")?;
        let stdout = child.stdout.take().context("QEMU has no output")?;
        let (sender, receiver) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut copy = File::create(log)?;
        let mut lines = Vec::new();
        let patience = match clock {
            Clock::Wall => PATIENCE,
            Clock::Instructions => COUNTING_PATIENCE,
        };
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(line) => {
                    writeln!(copy, "{line}")?;
                    lines.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    lines.push(format!("{NO_END} {} s", patience.as_secs()));
                    writeln!(copy, "{NO_END} {} s", patience.as_secs())?;
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // It has ended by itself, or is not to go on.
        let _ = child.kill();
        child.wait()?;
        let _ = reader.join();
        Ok(lines)
    }

    fn qemu(&self, parts: &str, clock: Clock) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        // Told, not measured: on a loaded host the kernel measures nonsense, and takes the
        // counter that guests depend on for broken.
        let khz = match clock {
            Clock::Wall => msb_vmm::host_tsc_khz(),
            Clock::Instructions => 1_000_000,
        };
        let lpj = u64::from(khz) * 10;
        let cmdline = format!(
            "quiet console=hvc0 root=/dev/vda rw init=/lab/init reboot=t panic=-1 \
             tsc=reliable no_timer_check tsc_early_khz={khz} lpj={lpj} \
             lapic_timer_khz=1000000 mitigations=off lab={parts}"
        );
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-cpu", "max", "-m", "4096"])
            .args(["-machine", "microvm,acpi=off,isa-serial=off"])
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-append", &cmdline])
            .arg("-drive")
            .arg(format!(
                "if=none,id=root,format=raw,file={}",
                self.disk().display()
            ))
            .args(["-device", "virtio-blk-device,drive=root"])
            .args(["-chardev", "stdio,id=console,signal=off"])
            .args(["-device", "virtio-serial-device"])
            .args(["-device", "virtconsole,chardev=console"])
            .args(["-device", "virtio-rng-device"]);
        match clock {
            Clock::Wall => command.args(["-accel", "tcg", "-smp", "2"]),
            Clock::Instructions => command
                .args(["-accel", "tcg,thread=single", "-smp", "1"])
                .args(["-icount", "shift=0,sleep=off"]),
        };
        command
    }
}

/// How a step ended.
#[derive(Debug, PartialEq)]
struct Outcome {
    name: String,
    passed: bool,
    took: Duration,
    output: Vec<String>,
}

/// Reads what the outer init says. A step that began and did not end has failed.
fn outcomes(lines: &[String]) -> Vec<Outcome> {
    let mut all: Vec<Outcome> = Vec::new();
    for line in lines {
        if let Some(name) = line.strip_prefix("@lab begin ") {
            all.push(Outcome {
                name: name.to_owned(),
                passed: false,
                took: Duration::ZERO,
                output: Vec::new(),
            });
            continue;
        }
        let Some(last) = all.last_mut() else { continue };
        match line.strip_prefix("@lab end ") {
            None => last.output.push(line.clone()),
            Some(end) => {
                let mut words = end.split(' ').skip(1);
                last.passed = words.next() == Some("0");
                let times = words
                    .next()
                    .and_then(seconds)
                    .zip(words.next().and_then(seconds));
                if let Some((begin, end)) = times {
                    last.took = end.saturating_sub(begin);
                }
            }
        }
    }
    all
}

/// Reads seconds with a fraction.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok()
}

/// The log from where a step began, or its end.
fn excerpt(lines: &[String], failed: Option<&str>) -> String {
    let begin = failed.and_then(|name| {
        let begin = format!("@lab begin {name}");
        lines.iter().position(|line| *line == begin)
    });
    let from = begin.unwrap_or(lines.len().saturating_sub(TAIL_LINES));
    let shown: Vec<&str> = lines[from..]
        .iter()
        .take(TAIL_LINES)
        .map(String::as_str)
        .collect();
    shown.join("\n")
}

/// The engine tests that can run inside.
fn tests(program: &Path, filters: &[&String]) -> Result<Vec<String>> {
    let list = capture(Command::new(program).args(["--list", "--format", "terse"]))?;
    Ok(list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| NEED_QEMU.iter().all(|other| !name.starts_with(other)))
        .filter(|name| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter)))
        .map(str::to_owned)
        .collect())
}

/// Copies a program without its debug information, and the libraries it is loaded with.
fn add_program(root: &Path, program: &Path, place: &str) -> Result<()> {
    let target = root.join(place);
    fs::create_dir_all(target.parent().context("a place in a folder")?)?;
    check_quiet(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&target)
            .arg(program),
    )?;
    for word in capture(Command::new("ldd").arg(program))?.split_whitespace() {
        let library = Path::new(word);
        let copy = root.join(word.trim_start_matches('/'));
        if library.is_absolute() && !copy.exists() {
            fs::create_dir_all(copy.parent().context("a library in a folder")?)?;
            fs::copy(library, &copy)?;
        }
    }
    Ok(())
}

fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(Into::into)
}

fn on_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is missing"))
}

/// Prints what is worth comparing over time.
fn print_measured(wall: &[Outcome], counted: &[Outcome]) {
    let runs = |outcomes: &[Outcome], name: &str| {
        let mut times: Vec<Duration> = outcomes
            .iter()
            .filter(|outcome| outcome.name == name)
            .map(|outcome| outcome.took)
            .collect();
        times.sort();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    println!("KVM lab (krun on emulated SVM):");
    let said = |outcomes: &[Outcome], name: &str, unit: &str| {
        for outcome in outcomes.iter().filter(|outcome| outcome.name == name) {
            let lines = outcome.output.iter();
            for line in lines.filter(|line| line.starts_with("cold") || line.starts_with("idle")) {
                println!("  {line}{unit}");
            }
        }
    };
    said(wall, "measure-boot", "");
    said(counted, "measure-boot", " (1 ms = 1 M instructions)");
    said(wall, "measure-idle", "");
    for (command, name) in [
        ("run … /bin/true, the first", "measure-first-run"),
        ("run … /bin/true", "measure-run"),
        ("exec … /bin/true", "measure-exec"),
        ("stop", "measure-stop"),
        ("start", "measure-start"),
    ] {
        println!(
            "  msb {command}: {:.2} s, {:.0} M instructions",
            runs(wall, name).as_secs_f64(),
            runs(counted, name).as_secs_f64() * 1e3
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn steps_are_told_by_their_ends() {
        let console = lines(
            "noise\n@lab begin a\nout\n@lab end a 0 10.25 11.5\n@lab begin b\n\
             @lab end b 101 1.0 2.0\n@lab begin c\nx\n@lab end c 0 1.0 2.0\n\
             @lab end c lacks: words\n@lab begin d\nhangs",
        );
        let outcomes = outcomes(&console);
        let passed: Vec<(&str, bool)> = outcomes
            .iter()
            .map(|outcome| (outcome.name.as_str(), outcome.passed))
            .collect();
        assert_eq!(
            passed,
            [("a", true), ("b", false), ("c", false), ("d", false)]
        );
        assert_eq!(outcomes[0].took, Duration::from_millis(1250));
        assert_eq!(outcomes[0].output, ["out"]);
    }

    #[test]
    fn an_excerpt_begins_at_the_failure() {
        let console = lines("@lab begin a\n1\n@lab begin b\n2");
        assert_eq!(excerpt(&console, Some("b")), "@lab begin b\n2");
        assert_eq!(excerpt(&console, None), "@lab begin a\n1\n@lab begin b\n2");
    }
}
