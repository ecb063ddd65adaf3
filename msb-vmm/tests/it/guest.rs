//! A guest that runs shell commands sent through its first port, and what is around it.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use msb_vmm::{Engine, EngineKind, EngineOptions, Machine, MemorySize, PortName, Templates};
use tempfile::TempDir;

/// The first port's name.
pub(crate) const PORT: &str = "test.shell";

/// Ends the output of a command.
const END: u8 = 4;

/// How long a guest may take over a command before a test is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// PID 1: reads commands from the port, line by line.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" = test.shell ] && device=/dev/${port##*/}
done
exec <>$device >&0 2>&0
while read -r line; do
    eval "$line"
    printf '\004'
done
"#;

/// Lets go of all disks, or takes them up.
pub(crate) const UNBIND: &str =
    "cd /sys/bus/virtio/drivers/virtio_blk; for d in virtio*; do echo $d > unbind; done; cd /";
pub(crate) const BIND: &str = "cd /sys/bus/virtio/devices; for d in virtio*; do \
    [ $(cat $d/device) = 0x0002 ] && echo $d > /sys/bus/virtio/drivers/virtio_blk/bind; done; cd /";

/// A folder with a kernel and an initramfs, and room for what a test makes.
pub(crate) struct Lab {
    folder: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let lab = Lab {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        fs::write(lab.path("initramfs"), initramfs(INIT)).expect("write the initramfs");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A small machine with a shell on its port.
    pub(crate) fn machine(&self) -> Machine {
        machine(self.folder.path())
    }

    pub(crate) fn templates(&self) -> Templates {
        templates(&self.path("templates"))
    }
}

pub(crate) fn machine(folder: &Path) -> Machine {
    Machine {
        memory: MemorySize::from_mib(128).unwrap(),
        ports: vec![PortName::try_from(PORT).unwrap()],
        ..Machine::new(kernel(), folder.join("initramfs"))
    }
}

/// The engine that `MSB_TEST_ENGINE` names, or the best that this host can run.
pub(crate) fn engine() -> Engine {
    let named = std::env::var("MSB_TEST_ENGINE").ok();
    let kind = named.map(|name| name.parse().expect("the name of an engine"));
    Engine::choose(options(kind)).expect("an engine")
}

/// What leads to an engine, also in a program that is a test harness.
pub(crate) fn options(kind: Option<EngineKind>) -> EngineOptions {
    let mut options = EngineOptions::default();
    options.kind = kind;
    // In the lab, programs lie elsewhere than where they were built.
    let elsewhere = std::env::var_os("MSB_TEST_RUNNER").map(PathBuf::from);
    let built = env!("CARGO_BIN_EXE_msb-vmm-runner");
    options.runner = Some(elsewhere.unwrap_or_else(|| built.into()));
    options
}

/// A store of templates, which are QEMU's.
pub(crate) fn templates(root: &Path) -> Templates {
    let engine = Engine::choose(options(Some(EngineKind::Qemu))).expect("QEMU");
    engine.templates(root).expect("QEMU has templates")
}

/// Runs a command in the guest and returns what it printed.
pub(crate) fn run(
    mut port: &UnixStream,
    command: &str,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    port.set_read_timeout(Some(PATIENCE))?;
    port.write_all(format!("{command}\n").as_bytes())?;
    let mut output = Vec::new();
    let mut byte = [0];
    loop {
        port.read_exact(&mut byte)?;
        if byte[0] == END {
            return Ok(String::from_utf8(output)?.trim_end().to_owned());
        }
        output.push(byte[0]);
    }
}

/// Runs the test `name` of this binary in a process of its own, with `role` to tell it so.
pub(crate) fn again(name: &str, role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command
        .env("MSB_TEST_ROLE", role)
        .env("MSB_TEST_FOLDER", folder);
    command
}

/// What [`again`] said, in the process that it made.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    let role = std::env::var("MSB_TEST_ROLE").ok()?;
    Some((role, std::env::var_os("MSB_TEST_FOLDER")?.into()))
}

fn kernel() -> PathBuf {
    let guest = std::env::var_os("MSB_GUEST").unwrap_or_else(|| {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
        built.into_os_string()
    });
    let kernel = PathBuf::from(guest).join("vmlinux");
    assert!(
        kernel.exists(),
        "{} is missing: run `cargo xtask guest`, or set MSB_GUEST",
        kernel.display()
    );
    kernel
}

/// Makes an archive with busybox and `init`.
fn initramfs(init: &str) -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find_map(|path| fs::read(path).ok());
    let busybox = busybox.expect("a static busybox: apt-get install busybox-static");
    let mut archive = Vec::new();
    for (name, mode, content) in [
        ("bin", 0o40_755, &b""[..]),
        ("bin/busybox", 0o100_755, &busybox),
        ("init", 0o100_755, init.as_bytes()),
        ("TRAILER!!!", 0, b""),
    ] {
        let inode = archive.len();
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        archive.extend_from_slice(b"070701");
        archive.extend(
            fields
                .iter()
                .flat_map(|field| format!("{field:08x}").into_bytes()),
        );
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
