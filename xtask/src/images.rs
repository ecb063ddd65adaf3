//! The container images that demo, tests and benchmarks use, made from
//! Debian's packages with other people's tools: one OCI layout each.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host;
use crate::registry::Registry;
use crate::run::{capture, check_quiet, step, target_dir};

/// Raised when a recipe below changes, so that old images are made anew.
const RECIPE: &str = "2";

/// Busybox's programs that get a link of their own in the small image.
const APPLETS: &[&str] = &[
    "cat",
    "chmod",
    "chown",
    "cp",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "false",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mknod",
    "mount",
    "mv",
    "od",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "wc",
    "yes",
];

/// Makes the images that are not there yet; returns the folder that holds the
/// OCI layouts `busybox` and `python`, tagged `latest`. [`prepare_clients`] adds another,
/// for tests.
pub(crate) fn prepare() -> Result<PathBuf> {
    let dir = target_dir().join("test-images");
    let stamp = dir.join("recipe");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == RECIPE) {
        return Ok(dir);
    }
    host::install(host::FOR_DEMO)?;
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    step("small image (busybox)", || busybox(&dir))?;
    step("Debian + python3 image (mmdebstrap)", || python(&dir))?;
    fs::write(&stamp, RECIPE)?;
    Ok(dir)
}

/// The clients that the image of that name has beside Debian's: of Python, and of Node.
/// Their versions are fixed, so that a test says the same every day.
const PYTHON_CLIENTS: &str = "requests==2.34.2 httpx[http2]==0.28.1 openai==3.57.0 \
                              anthropic==2.14.0 grpcio==1.85.3 websockets==17.4";
const NODE_CLIENTS: &str = "openai@5.7.0";

/// Packages of Debian in it.
const DEBIAN_CLIENTS: &str = "ca-certificates,curl,git,nodejs,python3";

/// Adds the image `clients`: programs and libraries that people talk to services with. It
/// is made anew when what it is made of changes.
pub(crate) fn prepare_clients(dir: &Path) -> Result<()> {
    let stamp = dir.join("clients-recipe");
    let script = include_str!("images/clients.sh");
    let recipe = [DEBIAN_CLIENTS, PYTHON_CLIENTS, NODE_CLIENTS, script].join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == recipe) {
        return Ok(());
    }
    host::install(host::FOR_CLIENTS)?;
    let layout = dir.join("clients");
    if layout.exists() {
        fs::remove_dir_all(&layout)?;
    }
    step(
        "image of clients (mmdebstrap, and packages from the registries of Python and Node)",
        || {
            let tar = dir.join("clients.tar");
            check_quiet(
                Command::new("mmdebstrap")
                    .args(["--quiet", "--variant=minbase"])
                    .arg(format!("--include={DEBIAN_CLIENTS}"))
                    .arg(format!("--customize-hook={script}"))
                    .arg(host_release()?)
                    .arg(&tar)
                    .env("MSB_PYTHON_CLIENTS", PYTHON_CLIENTS)
                    .env("MSB_NODE_CLIENTS", NODE_CLIENTS),
            )?;
            add_image(&layout, &tar, &["--config.cmd=bash"])?;
            fs::remove_file(&tar).map_err(Into::into)
        },
    )?;
    fs::write(&stamp, recipe).map_err(Into::into)
}

/// Copies an image from its layout into a registry, under `name`.
pub(crate) fn push(images: &Path, image: &str, registry: &Registry, name: &str) -> Result<String> {
    let reference = format!("{}/{name}", registry.host());
    check_quiet(
        Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-tls-verify=false",
            ])
            .arg(format!("oci:{}:latest", images.join(image).display()))
            .arg(format!("docker://{reference}")),
    )?;
    Ok(reference)
}

fn busybox(dir: &Path) -> Result<()> {
    let root = dir.join("busybox-root");
    for folder in [
        "bin",
        "etc",
        "root",
        "tmp",
        "proc",
        "sys",
        "dev",
        "home/user",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let Some(program) = program else {
        bail!("busybox is missing\nhint: apt-get install busybox-static");
    };
    fs::copy(program, root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n",
    )?;
    fs::write(root.join("etc/not-executable"), "just text\n")?;
    let tar = dir.join("busybox.tar");
    check_quiet(
        Command::new("tar")
            .args([
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--sort=name",
                "-cf",
            ])
            .arg(&tar)
            .arg("-C")
            .arg(&root)
            .arg("."),
    )?;
    add_image(&dir.join("busybox"), &tar, &["--config.cmd=sh"])?;
    fs::remove_dir_all(&root)?;
    fs::remove_file(&tar).map_err(Into::into)
}

fn python(dir: &Path) -> Result<()> {
    let tar = dir.join("python.tar");
    check_quiet(
        Command::new("mmdebstrap")
            .args([
                "--quiet",
                "--variant=minbase",
                "--include=python3",
                &host_release()?,
            ])
            .arg(&tar),
    )
    .context("mmdebstrap could not make a Debian root from the package archive")?;
    add_image(&dir.join("python"), &tar, &["--config.cmd=python3"])?;
    fs::remove_file(&tar).map_err(Into::into)
}

fn add_image(layout: &Path, layer: &Path, config: &[&str]) -> Result<()> {
    check_quiet(Command::new("umoci").args(["init", "--layout"]).arg(layout))?;
    let image = format!("{}:latest", layout.display());
    check_quiet(Command::new("umoci").args(["new", "--image", &image]))?;
    check_quiet(
        Command::new("umoci")
            .args(["raw", "add-layer", "--image", &image])
            .arg(layer),
    )?;
    check_quiet(
        Command::new("umoci")
            .args(["config", "--image", &image])
            .arg("--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .args(config),
    )
}

/// The release name of this system, whose archive keys are installed.
fn host_release() -> Result<String> {
    let name =
        capture(Command::new("sh").args(["-c", ". /etc/os-release && echo $VERSION_CODENAME"]))?;
    Ok(name.trim().to_owned())
}
