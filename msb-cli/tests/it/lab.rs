//! What the tests stand on: a home folder, images, and ways to run `msb`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The small image's name in every lab.
pub(crate) const BUSYBOX: &str = "localhost/busybox:test";

/// The Debian and python3 image's name.
pub(crate) const PYTHON: &str = "localhost/python:test";

/// A script that ends the guest's first process by writing over its program: the kernel can't
/// go on without it.
pub(crate) const PANIC: &str = "for map in $(grep ' r-xp ' /proc/1/maps | cut -d- -f1); do
    dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((0x$map / 4096)) count=400 conv=notrunc
    done 2>/dev/null; while :; do echo; sleep 1; done";

/// No test waits longer for anything. A bound against hangs, not a measure.
const PATIENCE: Duration = Duration::from_secs(120);

/// A home folder and the images in it.
pub(crate) struct Lab {
    home: PathBuf,
    /// Removed with the lab, when it is this test's own.
    own: Option<tempfile::TempDir>,
}

/// A folder that the task which runs the tests prepares.
fn prepared(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run the tests with `cargo xtask test`"),
    }
}

pub(crate) fn image_layout(name: &str) -> PathBuf {
    prepared("MSB_TEST_IMAGES").join(name)
}

impl Lab {
    /// The home that all tests share, at the same time: templates are made
    /// once, and the locks are tried in passing.
    pub(crate) fn shared() -> Self {
        let lab = Self {
            home: prepared("MSB_TEST_IMAGES").join("home"),
            own: None,
        };
        lab.import("busybox", BUSYBOX);
        lab
    }

    /// The shared home with the Debian image in it.
    pub(crate) fn with_python() -> Self {
        let lab = Self::shared();
        lab.import("python", PYTHON);
        lab
    }

    /// An empty home of this test's own.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        Self {
            home: dir.path().join("home"),
            own: Some(dir),
        }
    }

    /// A home of this test's own with the small image in it.
    pub(crate) fn own() -> Self {
        let lab = Self::empty();
        lab.import("busybox", BUSYBOX);
        lab
    }

    pub(crate) fn import(&self, layout: &str, reference: &str) {
        let list = self.msb(["image", "ls"]).output().expect("msb image ls");
        if String::from_utf8_lossy(&list.stdout).contains(reference) {
            return;
        }
        let output = self
            .msb(["pull", "-q", "--from"])
            .arg(image_layout(layout))
            .arg(reference)
            .output()
            .expect("msb pull");
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn msb<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msb"));
        command
            .args(args)
            .env("MSB_HOME", &self.home)
            .env("MSB_GUEST", prepared("MSB_GUEST"))
            .stdin(Stdio::null());
        command
    }

    /// `msb run -q IMAGE -- COMMAND…`
    pub(crate) fn run<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Run {
        finish(self.msb(["run", "-q", BUSYBOX, "--"]).args(command), b"")
    }

    /// A shell script in the small image.
    pub(crate) fn sh(&self, script: &str) -> Run {
        self.run(["sh", "-c", script])
    }

    /// What `msb inspect` tells of a sandbox.
    #[track_caller]
    pub(crate) fn inspect(&self, name: &str) -> serde_json::Value {
        let told = finish(&mut self.msb(["inspect", name]), b"").success();
        let mut told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        told[0].take()
    }

    /// The processes of a sandbox: its supervisor and its machine.
    #[track_caller]
    pub(crate) fn pids(&self, name: &str) -> (u32, u32) {
        let told = self.inspect(name);
        let pid = |key: &str| told[key].as_u64().expect("a process id") as u32;
        (pid("supervisor_pid"), pid("vmm_pid"))
    }

    /// Names in the folder of running sandboxes.
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.home.join("sandboxes")) else {
            return Vec::new();
        };
        entries
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Its output, once it is sure that it went well.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }
}

/// Runs a command with `input` to its end, within bounds.
#[track_caller]
pub(crate) fn finish(command: &mut Command, input: &[u8]) -> Run {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // A program that does not read its input ends first.
        let _ = stdin.write_all(&input);
    });
    let output = wait(child);
    feeder.join().expect("feeder");
    Run {
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Waits for a child's end and output; a child that hangs is killed and fails the test.
#[track_caller]
pub(crate) fn wait(child: Child) -> Output {
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(output) => output.expect("wait"),
        Err(_) => {
            signal(pid, "KILL");
            panic!("process {pid} did not end within {PATIENCE:?}");
        }
    }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .stderr(Stdio::null())
        .status();
    status.expect("kill");
}

/// The processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Whether a process runs: it is there and no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(
        |stat| !matches!(stat.rsplit(") ").next(), Some(rest) if rest.starts_with(['Z', 'X'])),
    )
}

/// Everything below a home, but for what comes and goes with its use: templates, and the files
/// that are locked while a layer is fetched or removed.
pub(crate) fn files(home: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(home).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.ends_with("blobs/locks") {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "templates" {
            found.extend(files(&path));
        }
        found.insert(path);
    }
    found
}

/// Processes that have something of the folder open, or in their command line.
pub(crate) fn processes(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.parse::<u32>().is_err() || pid == std::process::id().to_string() {
            continue;
        }
        let words = text(&std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
        let open = std::fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut open = open.filter_map(|file| std::fs::read_link(file.path()).ok());
        if words.contains(&folder.display().to_string())
            || open.any(|file| file.starts_with(folder))
        {
            found.push(format!("{pid}: {}", words.replace('\0', " ")));
        }
    }
    found
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A real registry on a free loopback port.
pub(crate) struct Registry {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|socket| socket.local_addr())
            .expect("port")
            .port();
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {storage:?}}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: \"127.0.0.1:{port}\"}}\n"
            ),
        )
        .expect("config");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry must be installed: `cargo xtask setup`");
        let registry = Self {
            child,
            port,
            _dir: dir,
        };
        until("the registry listens", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        registry
    }

    pub(crate) fn push(&self, layout: &str, name: &str) -> String {
        let reference = format!("localhost:{}/{name}", self.port);
        let output = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-tls-verify=false",
            ])
            .arg(format!("oci:{}:latest", image_layout(layout).display()))
            .arg(format!("docker://{reference}"))
            .output()
            .expect("skopeo must be installed: `cargo xtask setup`");
        assert!(output.status.success(), "{}", text(&output.stderr));
        reference
    }
}

/// A sandbox of the shared home: removed at the end of its test, also when that failed.
pub(crate) struct Kept<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) name: String,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        let _ = self.lab.msb(["rm", "-f", &self.name]).output();
    }
}

impl Drop for Lab {
    /// Ends what a test has left in a home of its own, also when it failed.
    fn drop(&mut self) {
        if self.own.is_none() {
            return;
        }
        for name in self.sandboxes() {
            let _ = self.msb(["rm", "-f", &name]).output();
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
