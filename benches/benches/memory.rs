//! What each of many identical sandboxes takes of the host's memory.
//!
//! The proportional set size of all processes of each sandbox: its supervisor and its VMM.
//! What sandboxes share, the template's memory and programs, counts in parts.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use msb_benches::conditions::Conditions;
use msb_benches::program;
use msb_benches::report::{self, Row, Unit};
use msb_sdk::{EngineKind, Home, Images, Sandbox};

/// How the image is called in the bench's own store.
const IMAGE: &str = "bench/busybox:latest";

/// How many sandboxes there are in the end.
const MOST: usize = 20;

fn main() -> Result<()> {
    msb_sdk::supervisor_hook();
    let conditions = Conditions::look()?;
    program::require(&["qemu-system-x86_64"])?;
    let scratch = conditions.scratch()?;
    let path = scratch.path().join("home");
    fs::create_dir_all(&path)?;
    symlink(conditions.guest()?, path.join("guest"))?;
    let home = Home::at(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let rows = runtime.block_on(measure(&conditions, &home))?;
    println!("\n{}", report::table(&rows));
    report::write(&conditions.kept("memory.json"), &conditions.json(), &rows)
}

async fn measure(conditions: &Conditions, home: &Home) -> Result<Vec<Row>> {
    let layout = conditions.image("busybox")?;
    Images::open(home)?.import(&layout, IMAGE, |_| ()).await?;
    let mut first = Row::new("one sandbox: PSS", Unit::Mib);
    let mut further = Row::new(format!("each further one, to {MOST}"), Unit::Mib);
    let mut vmm = Row::new("  of it: memory of the VMM's own", Unit::Mib);
    let mut sandboxes = Vec::new();
    let mut before = 0.0;
    for number in 0..MOST {
        let builder = Sandbox::builder(format!("memory-{number}")).image(IMAGE);
        let builder = builder.home(home.clone()).engine(EngineKind::Qemu);
        let sandbox = builder.create().await?;
        let output = sandbox.exec("/bin/true", [""; 0]).await?;
        ensure!(output.status().success(), "{output:?}");
        sandboxes.push(sandbox);
        let mut all = 0.0;
        for sandbox in &sandboxes {
            let pid = sandbox.report().vmm_pid;
            all += memory(pid, "Pss:")? + memory(parent(pid)?, "Pss:")?;
        }
        let row = if number == 0 {
            &mut first
        } else {
            &mut further
        };
        row.push(all - before);
        before = all;
        if let Some(last) = sandboxes.last() {
            vmm.push(memory(last.report().vmm_pid, "Private_Dirty:")?);
        }
    }
    for sandbox in sandboxes {
        sandbox.kill().await?;
    }
    Ok(vec![first, further, vmm])
}

/// MiB that the kernel says of a process.
fn memory(pid: u32, what: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(what));
    let words = line.context("the kernel does not say")?;
    let number = words.split_whitespace().next().unwrap_or_default();
    Ok(number.parse::<f64>()? / 1024.0)
}

/// The process that has started another one: the supervisor of a VMM.
fn parent(pid: u32) -> Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.context("the kernel does not say")?.trim().parse()?)
}
