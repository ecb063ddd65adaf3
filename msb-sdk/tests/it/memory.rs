//! Memory of the host's: what a guest gives back of it, and how much it can have.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use msb_sdk::{EngineKind, Error, Sandbox};

use crate::lab;

/// MiB that the kernel says of a process in a file of its folder.
fn of_process(pid: u32, file: &str, what: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(what));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("the kernel does not say")?.parse::<u64>()? >> 10)
}

/// What a machine has of the host's memory for itself alone, in MiB.
fn own(sandbox: &Sandbox) -> anyhow::Result<u64> {
    of_process(sandbox.report().vmm_pid, "smaps_rollup", "Private_Dirty:")
}

/// The memory files of the templates there are: blocks that have content, and when they were
/// changed.
fn templates() -> anyhow::Result<BTreeMap<PathBuf, (u64, i64, i64)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(lab::home().path().join("templates"))? {
        let path = entry?.path().join("ram");
        // Others may remove it.
        if let Ok(meta) = path.metadata() {
            found.insert(path, (meta.blocks(), meta.ctime(), meta.ctime_nsec()));
        }
    }
    Ok(found)
}

/// 200 MB that are freed are the host's again: of a sandbox, and of a fork of it, which
/// has them from its memory when it was saved. What is shared with others is as it was.
pub(crate) async fn what_the_guest_frees_goes_back_to_the_host() -> anyhow::Result<()> {
    let builder = lab::builder(lab::BUSYBOX).await?.memory_mib(512);
    let sandbox = builder.engine(EngineKind::Qemu).create().await?;
    let shared = templates()?;
    let before = own(&sandbox)?;
    let fill = "head -c 200000000 /dev/urandom > /dev/shm/held; md5sum /dev/shm/held";
    let sum = sandbox.shell(fill).await?.stdout()?.to_owned();
    let held = own(&sandbox)?;
    assert!(held > before + 180, "{before} MiB, then {held}");

    let fork = sandbox.fork(1).await?.remove(0);
    frees(&sandbox, before + 60).await?;
    // The fork does not notice, and it frees its own.
    let seen = fork.shell("md5sum /dev/shm/held").await?;
    assert_eq!(seen.stdout()?, sum);
    let changed = fork.shell(fill).await?;
    assert!(changed.status().success(), "{changed:?}");
    assert!(own(&fork)? > 180, "{} MiB", own(&fork)?);
    frees(&fork, 90).await?;
    // What was given back can be had again.
    let again = sandbox.shell(fill).await?;
    assert!(again.status().success(), "{again:?}");
    assert!(own(&sandbox)? > before + 180);

    for (path, now) in templates()? {
        if let Some(then) = shared.get(&path) {
            assert_eq!(*then, now, "{} was changed", path.display());
        }
    }
    Ok(())
}

async fn frees(sandbox: &Sandbox, most: u64) -> anyhow::Result<()> {
    sandbox.shell("rm /dev/shm/held").await?;
    // A guest tells of free pages after two seconds, and again if there are more.
    let mut samples = sandbox.metrics_stream(Duration::from_millis(100));
    for _ in 0..600 {
        if own(sandbox)? <= most {
            return Ok(());
        }
        samples.next().await?;
    }
    panic!("{} MiB are kept, more than {most}", own(sandbox)?);
}

/// A program takes all that there is, in a guest of 256 MiB.
pub(crate) async fn a_guest_has_what_it_was_given_and_no_more() -> anyhow::Result<()> {
    const MEMORY: u64 = 256;
    // As the limit of a control group has it: what a VMM takes beside.
    const OVERHEAD: u64 = 512;
    let builder = lab::builder(lab::BUSYBOX).await?.memory_mib(MEMORY as u32);
    let sandbox = builder.create().await?;
    let hungry = sandbox.exec("tail", ["/dev/zero"]).await;
    assert!(
        matches!(&hungry, Err(Error::OutOfMemory { program }) if program == "tail"),
        "{hungry:?}"
    );
    let most = of_process(sandbox.report().vmm_pid, "status", "VmHWM:")?;
    assert!(
        (MEMORY / 2..MEMORY + OVERHEAD).contains(&most),
        "{most} MiB"
    );
    // It goes on with what is left.
    assert!(sandbox.shell("true").await?.status().success());
    Ok(())
}
