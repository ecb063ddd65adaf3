//! What is left when sandboxes have come and gone: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use msb_sdk::{Home, Images, Sandbox, SandboxHandle};

use crate::lab;

/// How many come and go; `MSB_CYCLES` says another number.
const CYCLES: usize = 20;

/// A home of its own, so that everything in it is this test's.
pub(crate) async fn nothing_is_left_of_those_that_have_ended() -> anyhow::Result<()> {
    let cycles = std::env::var("MSB_CYCLES").ok();
    let cycles = cycles.map_or(Ok(CYCLES), |cycles| cycles.parse())?;
    let folder = tempfile::tempdir()?;
    let home = Home::at(folder.path())?;
    let layout = lab::prepared("MSB_TEST_IMAGES").join("busybox");
    Images::open(&home)?
        .import(&layout, lab::BUSYBOX, |_| {})
        .await?;
    // All kinds once: the template is made, and threads that stay are there.
    for cycle in 0..KINDS {
        come_and_go(&home, cycle).await?;
    }
    settled(None).await;
    let (files, descriptors) = (files(folder.path())?, descriptors()?);
    for cycle in 0..cycles {
        come_and_go(&home, cycle).await?;
    }
    settled(Some(descriptors)).await;
    assert_eq!(processes(folder.path())?, [""; 0], "processes are left");
    assert_eq!(self::files(folder.path())?, files, "files are left");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let path = folder.path().to_string_lossy().into_owned();
    assert!(!mounts.contains(&path), "a mount is left");
    Ok(())
}

/// In how many ways they come and go.
const KINDS: usize = 5;

async fn come_and_go(home: &Home, cycle: usize) -> anyhow::Result<()> {
    let builder = Sandbox::builder(format!("cycle-{cycle}"))
        .image(lab::BUSYBOX)
        .home(home.clone())
        .cpus(1);
    match cycle % KINDS {
        0 => {
            let sandbox = builder.create().await?;
            sandbox.kill().await?;
        }
        1 => {
            let sandbox = builder.create().await?;
            sandbox.exec("/bin/true", [""; 0]).await?;
            sandbox.stop_and_wait().await?;
        }
        2 => {
            let sandbox = builder.disk_mib(64).create().await?;
            let fork = sandbox.fork(1).await?.remove(0);
            sandbox.kill().await?;
            fork.kill().await?;
        }
        3 => {
            // As of a program that has forgotten it: the supervisor sees to its end.
            drop(builder.create().await?);
        }
        _ => {
            let sandbox = builder.create_detached().await?;
            let name = sandbox.spec().name.clone();
            drop(sandbox);
            let handle = SandboxHandle::find(home, &name).await?;
            handle.kill().await?;
            handle.remove().await?;
        }
    }
    Ok(())
}

/// Processes, but for this one, that have something of the folder: in their command line, as a
/// VMM has its disks, or open, as a supervisor has its lock. Namespaces are there for as long
/// as a process is in them; their numbers are given again, and prove nothing.
fn processes(folder: &Path) -> anyhow::Result<Vec<String>> {
    let folder = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let open = fs::read_dir(entry.path().join("fd"));
        let open = open.into_iter().flatten().flatten();
        let mut files = open.filter_map(|file| fs::read_link(file.path()).ok());
        if words.contains(&folder) || files.any(|file| file.starts_with(&folder)) {
            found.push(format!("{name}: {words}"));
        }
    }
    Ok(found)
}

/// Waits until all children are gone, and there are no more descriptors than there were. The
/// test's time is the limit.
async fn settled(descriptors: Option<usize>) {
    loop {
        let tasks = fs::read_dir("/proc/self/task").expect("tasks");
        let children = tasks.flatten().any(|task| {
            let children = fs::read_to_string(task.path().join("children"));
            children.is_ok_and(|children| !children.is_empty())
        });
        let open = self::descriptors().expect("descriptors");
        if !children && descriptors.is_none_or(|most| open <= most) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn descriptors() -> anyhow::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// Everything below a folder, by its path.
fn files(folder: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        }
        found.insert(entry.path());
    }
    Ok(found)
}
