//! The guest bundle: kernel, agent and initramfs, in `target/guest`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host;
use crate::kernel::{self, KernelOptions};
use crate::run::{cargo, check, step, target_dir};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds the kernel, or finds it built; returns the path of `vmlinux`.
pub(crate) fn kernel(tarball: Option<PathBuf>) -> Result<PathBuf> {
    if tarball.is_none() {
        host::install(host::FOR_GUEST)?;
    }
    let options = KernelOptions {
        more: "",
        tarball,
        out_root: target_dir().join("guest-build"),
        quiet: false,
    };
    kernel::build(&options)
}

/// Builds the bundle and returns its folder, `target/guest`.
pub(crate) fn bundle() -> Result<PathBuf> {
    let bundle = target_dir().join("guest");
    fs::create_dir_all(&bundle)?;
    let vmlinux = step("guest kernel", || kernel(None))?;
    replace(&bundle.join("vmlinux"), &fs::read(&vmlinux)?)?;
    let agent = step("guest agent", agent)?;
    let mut initramfs = Vec::new();
    msb_guest_agent::initramfs::write(&agent, &mut initramfs)
        .context("cannot write the initramfs")?;
    replace(&bundle.join("initramfs.cpio"), &initramfs)?;
    Ok(bundle)
}

/// Builds the static agent and returns its bytes.
fn agent() -> Result<Vec<u8>> {
    check(
        cargo()
            .args([
                "build",
                "--quiet",
                "--package",
                "msb-guest-agent",
                "--bin",
                "msb-guest-agent",
            ])
            .args([
                "--features",
                "agent",
                "--profile",
                "agent",
                "--target",
                TRIPLE,
            ])
            .env("CARGO_TARGET_DIR", target_dir())
            .env(
                "RUSTFLAGS",
                "-C target-feature=+crt-static -C relocation-model=static",
            ),
    )?;
    let path = target_dir()
        .join(TRIPLE)
        .join("agent")
        .join("msb-guest-agent");
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file by rename, and only when its content differs: templates are
/// keyed by what is in the bundle.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path).with_context(|| format!("cannot replace {}", path.display()))
}
