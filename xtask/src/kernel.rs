//! The guest kernel: Debian's Linux source, our configuration, our patches.
//!
//! [`build`] turns `msb-vmm/kernel/` and a source tarball into a stripped
//! `vmlinux` that lies in a folder named after the hash of everything that
//! went into it, so a second call finds it and returns at once. What the
//! options are for is said in `msb-vmm/kernel/config`; what they cost at boot
//! in `docs/boot.md`.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// Everything that is switched on in guests.
const FRAGMENT: &str = include_str!("../../msb-vmm/kernel/config");

/// Our changes to the kernel, in the order in which they apply.
const PATCHES: &[(&str, &str)] = &[
    (
        "0001-known-clock-rates.patch",
        include_str!("../../msb-vmm/kernel/patches/0001-known-clock-rates.patch"),
    ),
    (
        "0002-no-slab-files.patch",
        include_str!("../../msb-vmm/kernel/patches/0002-no-slab-files.patch"),
    ),
    (
        "0003-fair-server-on-demand.patch",
        include_str!("../../msb-vmm/kernel/patches/0003-fair-server-on-demand.patch"),
    ),
    (
        "0004-no-message-for-nobody.patch",
        include_str!("../../msb-vmm/kernel/patches/0004-no-message-for-nobody.patch"),
    ),
    (
        "0005-one-stack-segment.patch",
        include_str!("../../msb-vmm/kernel/patches/0005-one-stack-segment.patch"),
    ),
    (
        "0006-destroyed-is-reset.patch",
        include_str!("../../msb-vmm/kernel/patches/0006-destroyed-is-reset.patch"),
    ),
    (
        "0007-groups-once.patch",
        include_str!("../../msb-vmm/kernel/patches/0007-groups-once.patch"),
    ),
];

/// Raised when the steps below change in a way that changes the result.
const RECIPE: &str = "1";

/// Debian's package with the source, and where it puts it.
pub(crate) const PACKAGE: &str = "linux-source-6.12";

/// Names a tarball of Linux 6.12, for releases that have no [`PACKAGE`].
const TARBALL: &str = "MSB_KERNEL_TARBALL";

/// The tarball that the environment names, if it does.
pub(crate) fn named_tarball() -> Option<PathBuf> {
    std::env::var_os(TARBALL)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}
const PACKAGE_DIR: &str = "/usr/src";

/// Big parts of the source that an x86 guest never compiles.
const NOT_UNPACKED: &[&str] = &[
    "*/Documentation/*/*",
    "*/tools/testing/*",
    "*/drivers/gpu/drm/amd/include/*",
    "*/arch/*/boot/dts/*",
];

/// Names that the build would take from the machine; fixed, so that the same
/// inputs give the same bytes everywhere.
const REPRODUCIBLE: &[(&str, &str)] = &[
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "msb"),
    ("KBUILD_BUILD_HOST", "msb"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
];

/// About how many objects a build makes; only the progress line depends on it.
const USUAL_OBJECTS: usize = 1330;

/// How often a build without a terminal says that it is still at work.
const QUIET_INTERVAL: Duration = Duration::from_secs(30);

/// Lines of the build's output that are shown when it fails.
const TAIL_LINES: usize = 25;

/// What to build from and where to put it.
#[derive(Debug, Default)]
pub(crate) struct KernelOptions {
    /// What is switched on beyond what guests have.
    pub(crate) more: &'static str,
    /// The kernel's source; without it, that of Debian's `linux-source-6.12`.
    pub(crate) tarball: Option<PathBuf>,
    /// The folder that gets `kernel-HASH/vmlinux`; made when missing.
    pub(crate) out_root: PathBuf,
    /// Says nothing while it works.
    pub(crate) quiet: bool,
}

/// Builds the kernel, or finds it built, and returns the path of `vmlinux`.
///
/// # Errors
///
/// Fails when a tool or the source is missing (naming the Debian package), when
/// an option of the fragment does not survive in this source (naming it), when
/// a patch does not apply, or when the compilation fails (showing its last lines).
pub(crate) fn build(options: &KernelOptions) -> Result<PathBuf> {
    let named = named_tarball();
    let source = Source::find(options.tarball.as_deref().or(named.as_deref()))?;
    check_tools()?;
    let fragment = format!("{FRAGMENT}{}", options.more);
    let key = key(&source, &fragment)?;
    let done = options.out_root.join(format!("kernel-{key}"));
    let vmlinux = done.join("vmlinux");
    if vmlinux.exists() {
        return Ok(vmlinux);
    }

    fs::create_dir_all(&options.out_root)
        .with_context(|| format!("cannot create {}", options.out_root.display()))?;
    let _lock = lock(&options.out_root.join("kernel.lock"), options.quiet)?;
    if vmlinux.exists() {
        return Ok(vmlinux);
    }
    let tree = options.out_root.join("kernel-source");
    remove(&tree)?;
    let build = Build {
        tree: &tree,
        quiet: options.quiet,
        started: Instant::now(),
    };
    build.unpack(&source)?;
    build.patch()?;
    build.configure(&fragment)?;
    build.compile(&options.out_root.join(format!("kernel-{key}.log")))?;
    build.install(&done)?;
    remove(&tree)?;
    build.say(&format!("built in {} s", build.started.elapsed().as_secs()));
    Ok(vmlinux)
}

/// Where the kernel's source comes from.
struct Source {
    tarball: PathBuf,
    /// Tells one content from another without reading it twice.
    identity: String,
}

impl Source {
    fn find(given: Option<&Path>) -> Result<Self> {
        if let Some(tarball) = given {
            let identity = sha256_of(tarball)?;
            return Ok(Self {
                tarball: tarball.to_owned(),
                identity,
            });
        }
        let tarball = ["xz", "bz2", "gz", "zst"]
            .iter()
            .map(|suffix| Path::new(PACKAGE_DIR).join(format!("{PACKAGE}.tar.{suffix}")))
            .find(|path| path.exists())
            .with_context(|| {
                format!(
                    "no {PACKAGE}.tar.* in {PACKAGE_DIR}: install the package {PACKAGE} \
                     (apt-get install {PACKAGE}), or set MSB_KERNEL_TARBALL to the path of a tarball of Linux 6.12"
                )
            })?;
        // The package's version stands for the 150 MB that it installed.
        let identity = match output(
            "dpkg-query",
            &["--show", "--showformat=${Version}", PACKAGE],
        ) {
            Ok(version) => format!("{PACKAGE} {version} {}", fs::metadata(&tarball)?.len()),
            Err(_) => sha256_of(&tarball)?,
        };
        Ok(Self { tarball, identity })
    }
}

/// One build in its source tree.
struct Build<'a> {
    tree: &'a Path,
    quiet: bool,
    started: Instant,
}

impl Build<'_> {
    fn unpack(&self, source: &Source) -> Result<()> {
        self.say(&format!("unpacking {}", source.tarball.display()));
        fs::create_dir_all(self.tree)?;
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--file").arg(&source.tarball);
        tar.arg("--directory")
            .arg(self.tree)
            .arg("--strip-components=1");
        for pattern in NOT_UNPACKED {
            tar.arg(format!("--exclude={pattern}"));
        }
        run(&mut tar).with_context(|| format!("cannot unpack {}", source.tarball.display()))?;
        ensure!(
            self.tree.join("Kconfig").exists(),
            "{} holds no Linux source: no Kconfig in its top folder",
            source.tarball.display()
        );
        Ok(())
    }

    fn patch(&self) -> Result<()> {
        for (name, text) in PATCHES {
            let file = self.tree.join(name);
            fs::write(&file, text)?;
            let mut patch = Command::new("patch");
            patch.args([
                "--strip=1",
                "--batch",
                "--forward",
                "--no-backup-if-mismatch",
                "--input",
                name,
            ]);
            run(patch.current_dir(self.tree)).with_context(|| {
                format!("msb-vmm/kernel/patches/{name} does not apply to this source")
            })?;
        }
        Ok(())
    }

    /// Makes `.config`: the fragment, what it needs, and nothing else; and
    /// checks that nothing of the fragment got lost.
    fn configure(&self, fragment: &str) -> Result<()> {
        fs::write(self.tree.join("msb.config"), fragment)?;
        run(self
            .make()
            .arg("allnoconfig")
            .env("KCONFIG_ALLCONFIG", "msb.config"))
        .context("make allnoconfig failed")?;
        let path = self.tree.join(".config");
        let lost = lost_options(fragment, &fs::read_to_string(&path)?);
        ensure!(
            lost.is_empty(),
            "this source does not take these lines of the configuration \
             (unknown option, or something it depends on is off):\n  {}",
            lost.join("\n  ")
        );
        Ok(())
    }

    fn compile(&self, log: &Path) -> Result<()> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut child = self
            .make()
            .arg(format!("--jobs={jobs}"))
            .arg("vmlinux")
            .stdout(Stdio::piped())
            .stderr(File::create(log).with_context(|| format!("cannot create {}", log.display()))?)
            .spawn()
            .context("cannot run make")?;
        let stdout = child.stdout.take().context("make has no output")?;
        let mut progress = Progress::new(self.quiet, self.started);
        let mut tail = VecDeque::with_capacity(TAIL_LINES);
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            progress.line(&line);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
        progress.end();
        let status = child.wait()?;
        if !status.success() {
            let messages = fs::read_to_string(log).unwrap_or_default();
            let last: Vec<&str> = messages.lines().rev().take(TAIL_LINES).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            bail!(
                "the kernel does not compile ({status}); all messages are in {}\n{}\n{}",
                log.display(),
                tail.make_contiguous().join("\n"),
                last.join("\n")
            );
        }
        fs::remove_file(log).or_else(ignore_missing)
    }

    /// Strips the kernel and puts it in place in one rename.
    fn install(&self, done: &Path) -> Result<()> {
        let staged = done.with_extension("new");
        remove(&staged)?;
        fs::create_dir_all(&staged)?;
        let vmlinux = staged.join("vmlinux");
        run(Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&vmlinux)
            .arg(self.tree.join("vmlinux")))?;
        File::open(&vmlinux)?.sync_all()?;
        fs::copy(self.tree.join(".config"), staged.join("config"))?;
        fs::rename(&staged, done).with_context(|| format!("cannot create {}", done.display()))
    }

    fn make(&self) -> Command {
        let mut make = Command::new("make");
        make.current_dir(self.tree)
            .arg("ARCH=x86_64")
            .stdin(Stdio::null());
        // Whoever calls us through make must not hand its job server on.
        make.env_remove("MAKEFLAGS")
            .env_remove("MFLAGS")
            .envs(REPRODUCIBLE.iter().copied());
        make
    }

    fn say(&self, what: &str) {
        if !self.quiet {
            eprintln!("kernel: {what}");
        }
    }
}

/// One line that counts up on a terminal, a line now and then elsewhere.
struct Progress {
    shown: Shown,
    objects: usize,
    started: Instant,
    last: Instant,
}

#[derive(PartialEq)]
enum Shown {
    Nothing,
    Line,
    Lines,
}

impl Progress {
    fn new(quiet: bool, started: Instant) -> Self {
        let shown = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Line,
            (false, false) => Shown::Lines,
        };
        Self {
            shown,
            objects: 0,
            started,
            last: Instant::now(),
        }
    }

    fn line(&mut self, line: &str) {
        let step = line.split_whitespace().next();
        if !matches!(step, Some("CC" | "AS" | "LD" | "HOSTCC")) {
            return;
        }
        self.objects += 1;
        match self.shown {
            Shown::Nothing => {}
            Shown::Line => eprint!("\r{}", self.text()),
            Shown::Lines if self.last.elapsed() >= QUIET_INTERVAL => {
                eprintln!("{}", self.text());
                self.last = Instant::now();
            }
            Shown::Lines => {}
        }
        let _ = std::io::stderr().flush();
    }

    fn text(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        format!(
            "kernel: {} of about {USUAL_OBJECTS} objects, {seconds} s",
            self.objects
        )
    }

    fn end(&self) {
        if self.shown == Shown::Line {
            eprintln!();
        }
    }
}

/// Lines of the fragment that the final configuration does not have.
fn lost_options<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let lines: std::collections::HashSet<&str> = config.lines().collect();
    fragment
        .lines()
        .filter(|line| {
            match line
                .strip_prefix("# CONFIG_")
                .and_then(|rest| rest.strip_suffix(" is not set"))
            {
                // An option that does not exist here is off all the more.
                Some(name) => lines
                    .iter()
                    .any(|set| set.starts_with(&format!("CONFIG_{name}="))),
                None => line.starts_with("CONFIG_") && !lines.contains(line),
            }
        })
        .collect()
}

/// A program or header that the build needs, and the package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("patch", "patch"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];
const HEADERS: &[(&str, &str)] = &[("gelf.h", "libelf-dev")];

/// Names every missing tool at once.
fn check_tools() -> Result<()> {
    let mut missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(tool, _)| !on_path(tool))
        .map(|(_, package)| *package)
        .collect();
    if !missing.contains(&"gcc") {
        missing.extend(
            HEADERS
                .iter()
                .filter(|(header, _)| !has_header(header))
                .map(|(_, package)| *package),
        );
    }
    missing.dedup();
    ensure!(
        missing.is_empty(),
        "building the kernel needs {0}: apt-get install {0}",
        missing.join(" ")
    );
    Ok(())
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

fn has_header(header: &str) -> bool {
    let child = Command::new("gcc")
        .args(["-E", "-x", "c", "-", "-o", "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let written = child
        .stdin
        .take()
        .is_some_and(|mut stdin| writeln!(stdin, "#include <{header}>").is_ok());
    child.wait().is_ok_and(|status| status.success()) && written
}

/// Twelve hex digits of the hash of everything that decides the result.
fn key(source: &Source, fragment: &str) -> Result<String> {
    let mut hash = Sha256::new();
    let gcc = output("gcc", &["--version"])?;
    let ld = output("ld", &["--version"])?;
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    let mut feed = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    feed(RECIPE);
    feed(fragment);
    for (name, text) in PATCHES {
        feed(name);
        feed(text);
    }
    feed(&source.identity);
    feed(&first(&gcc));
    feed(&first(&ld));
    Ok(hex(&hash.finalize()[..6]))
}

fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two builds in one folder wait for each other.
fn lock(path: &Path, quiet: bool) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        if !quiet {
            eprintln!("kernel: waiting for another build to end");
        }
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).or_else(ignore_missing)
}

fn ignore_missing(error: std::io::Error) -> Result<()> {
    if error.kind() == ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error.into())
    }
}

/// Runs a command silently; its output is in the error when it fails.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        bail!(
            "{name} ended with {}:\n{stdout}{}",
            result.status,
            String::from_utf8_lossy(&result.stderr)
        );
    }
    Ok(stdout)
}

fn output(program: &str, args: &[impl AsRef<OsStr>]) -> Result<String> {
    run(Command::new(program).args(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_options_are_named() {
        let fragment =
            "# why\nCONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let config = "CONFIG_A=y\nCONFIG_B=\"y\"\nCONFIG_C=y\n";
        assert_eq!(
            lost_options(fragment, config),
            ["CONFIG_B=\"x\"", "# CONFIG_C is not set"]
        );
    }

    #[test]
    fn fragment_has_no_option_twice() {
        let mut names: Vec<&str> = FRAGMENT
            .lines()
            .filter_map(|line| line.strip_prefix("CONFIG_")?.split('=').next())
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
