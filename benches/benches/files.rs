//! How fast the guest's files are from outside: content through the agent, and whole trees.
//!
//! The peer is what is done where there is no such thing: `cat` in the guest for content, and
//! `tar` on both sides through a program's input and output for trees, in turn with ours, in
//! the same sandbox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use msb_benches::conditions::Conditions;
use msb_benches::report::{self, Unit};
use msb_benches::versus::{self, Better, Versus};
use msb_sdk::{ExecEvent, ExecOptions, Home, Images, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How the image is called in the bench's own store.
const IMAGE: &str = "bench/busybox:latest";

/// Content that is measured, in MiB.
const CONTENT_MIB: usize = 128;

/// How much is written at once.
const PIECE: usize = 1 << 20;

/// The tree: so many files of so many bytes, a hundred to a folder.
const FILES: usize = 10_000;
const FILE_LEN: usize = 1500;

const CONTENDERS: [&str; 2] = ["msb", "cat and tar in the guest"];

fn main() -> Result<()> {
    msb_sdk::supervisor_hook();
    let conditions = Conditions::look()?;
    let scratch = conditions.scratch()?;
    let home = scratch.path().join("home");
    fs::create_dir_all(&home)?;
    symlink(conditions.guest()?, home.join("guest"))?;
    let home = Home::at(home)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tree = scratch.path().join("tree");
    make_tree(&tree)?;
    let rounds = conditions.rounds(1, 5);
    let quantities = runtime.block_on(async {
        let layout = conditions.image("busybox")?;
        Images::open(&home)?.import(&layout, IMAGE, |_| {}).await?;
        let builder = Sandbox::builder("bench")
            .image(IMAGE)
            .memory_mib(1024)
            .home(home);
        let sandbox = builder.create().await?;
        let mut quantities = content(&sandbox, rounds).await?;
        quantities.extend(trees(&sandbox, &tree, scratch.path(), rounds).await?);
        sandbox.kill().await?;
        anyhow::Ok(quantities)
    })?;
    println!("\n{}", versus::table(&quantities));
    let results: Vec<_> = quantities.iter().map(Versus::json).collect();
    report::write_lines(&conditions.kept("files.json"), &conditions.json(), &results)
}

/// Content of one file, both ways, in MiB a second.
async fn content(sandbox: &Sandbox, rounds: usize) -> Result<Vec<Versus>> {
    let quantity = |name: &str| Versus::new(name, Unit::MibPerSecond, Better::More, &CONTENDERS);
    let (mut up, mut down) = (quantity("write a file"), quantity("read a file"));
    let fs = sandbox.fs();
    let piece = vec![7; PIECE];
    let rate = |begin: Instant| CONTENT_MIB as f64 / begin.elapsed().as_secs_f64();
    for _ in 0..rounds {
        let begin = Instant::now();
        let mut writer = fs.open_write("/tmp/ours").await?;
        for _ in 0..CONTENT_MIB {
            writer.write(&piece).await?;
        }
        writer.finish().await?;
        up.push(0, rate(begin));

        let begin = Instant::now();
        let options = ExecOptions::new("sh", ["-c", "cat > /tmp/theirs"]).stdin();
        let mut run = sandbox.exec_with(options).await?;
        let stdin = run.stdin();
        for _ in 0..CONTENT_MIB {
            stdin.write(piece.clone()).await?;
        }
        stdin.close();
        ensure!(run.wait().await?.success(), "cat failed");
        up.push(1, rate(begin));

        let begin = Instant::now();
        let (mut reader, mut len) = (fs.open_read("/tmp/ours").await?, 0);
        while let Some(bytes) = reader.next().await? {
            len += bytes.len();
        }
        ensure!(len == CONTENT_MIB * PIECE, "{len} bytes came back");
        down.push(0, rate(begin));

        let begin = Instant::now();
        let run = sandbox
            .exec_with(ExecOptions::new("cat", ["/tmp/theirs"]))
            .await?;
        ensure!(output_len(run).await? == len, "cat was cut");
        down.push(1, rate(begin));
        fs.remove("/tmp/ours").await?;
        fs.remove("/tmp/theirs").await?;
    }
    Ok(vec![up, down])
}

/// Ten thousand files, both ways, in seconds.
async fn trees(
    sandbox: &Sandbox,
    tree: &Path,
    scratch: &Path,
    rounds: usize,
) -> Result<Vec<Versus>> {
    let quantity = |name: &str| Versus::new(name, Unit::Seconds, Better::Less, &CONTENDERS);
    let (mut into, mut out) = (quantity("10,000 files in"), quantity("10,000 files out"));
    let fs = sandbox.fs();
    for round in 0..rounds {
        let begin = Instant::now();
        fs.copy_in(tree, "/tmp/ours").await?;
        into.push(0, begin.elapsed().as_secs_f64());

        let begin = Instant::now();
        tar_in(sandbox, tree).await?;
        into.push(1, begin.elapsed().as_secs_f64());

        let ours = scratch.join(format!("ours-{round}"));
        let begin = Instant::now();
        let report = fs.copy_out("/tmp/ours", &ours).await?;
        out.push(0, begin.elapsed().as_secs_f64());
        ensure!(
            report.entries as usize == FILES + FILES / 100 + 1,
            "{report:?}"
        );

        let theirs = scratch.join(format!("theirs-{round}"));
        fs::create_dir(&theirs)?;
        let begin = Instant::now();
        tar_out(sandbox, &theirs).await?;
        out.push(1, begin.elapsed().as_secs_f64());
        ensure!(
            fs::read(theirs.join("99/99"))?.len() == FILE_LEN,
            "tar was cut"
        );
        fs.remove_all("/tmp/ours").await?;
        fs.remove_all("/tmp/theirs").await?;
    }
    Ok(vec![into, out])
}

async fn tar_in(sandbox: &Sandbox, tree: &Path) -> Result<()> {
    let script = "mkdir /tmp/theirs && tar -x -C /tmp/theirs -f -";
    let mut run = sandbox
        .exec_with(sandbox.shell_options(script).stdin())
        .await?;
    let stdin = run.stdin();
    let mut tar = tokio::process::Command::new("tar")
        .args(["-c", "-f", "-", "-C"])
        .arg(tree)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut packed = tar.stdout.take().context("no output of tar")?;
    let mut piece = vec![0; 256 << 10];
    loop {
        match packed.read(&mut piece).await? {
            0 => break,
            len => stdin.write(piece[..len].to_vec()).await?,
        }
    }
    stdin.close();
    ensure!(tar.wait().await?.success(), "tar failed");
    ensure!(run.wait().await?.success(), "tar failed in the guest");
    Ok(())
}

async fn tar_out(sandbox: &Sandbox, target: &Path) -> Result<()> {
    let mut tar = tokio::process::Command::new("tar")
        .args(["-x", "-f", "-", "-C"])
        .arg(target)
        .stdin(Stdio::piped())
        .spawn()?;
    let mut unpack = tar.stdin.take().context("no input of tar")?;
    let mut run = sandbox.shell_stream("tar -c -C /tmp/theirs -f - .").await?;
    loop {
        match run.recv().await {
            Some(ExecEvent::Stdout(bytes)) => unpack.write_all(&bytes).await?,
            Some(ExecEvent::Exited(status)) => break ensure!(status.success(), "tar: {status}"),
            Some(_) => {}
            None => break,
        }
    }
    drop(unpack);
    ensure!(tar.wait().await?.success(), "tar failed");
    Ok(())
}

/// How much a program writes.
async fn output_len(mut run: msb_sdk::ExecHandle) -> Result<usize> {
    let mut len = 0;
    while let Some(event) = run.recv().await {
        if let ExecEvent::Stdout(bytes) = event {
            len += bytes.len();
        }
    }
    Ok(len)
}

fn make_tree(tree: &Path) -> Result<()> {
    for folder in 0..FILES / 100 {
        let folder = tree.join(folder.to_string());
        fs::create_dir_all(&folder)?;
        for file in 0..100 {
            fs::write(folder.join(file.to_string()), [b'x'; FILE_LEN])?;
        }
    }
    // What was just made is not to be written while others are measured.
    let synced = Command::new("sync").arg("-f").arg(tree).status()?;
    ensure!(synced.success(), "sync failed");
    Ok(())
}
