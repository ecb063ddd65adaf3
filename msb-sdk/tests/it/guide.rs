//! The examples of the guide to files, run. They are here as they are there.

use std::fs;

use msb_sdk::{CopyOptions, Error, FileFault, Patch, Sandbox, SandboxBuilder, WriteOptions};

use crate::lab;

async fn files(sandbox: &Sandbox) -> Result<(), Error> {
    let fs = sandbox.fs();
    fs.mkdir_all("/srv/data").await?;
    fs.write("/srv/data/input.txt", b"some data").await?;
    let text = fs.read_to_string("/srv/data/input.txt").await?;
    for entry in fs.list("/srv/data").await? {
        println!("{} {} {text}", entry.name.display(), entry.metadata.size);
    }
    // As it comes, from an offset: nothing is collected.
    let mut reader = fs.open_read_at("/srv/data/input.txt", 5, Some(4)).await?;
    while let Some(bytes) = reader.next().await? {
        println!("{} bytes", bytes.len());
    }
    let mut writer = fs
        .open_write_with(
            "/srv/data/log",
            WriteOptions::new().append().permissions(0o600),
        )
        .await?;
    writer.write("one more line\n").await?;
    writer.finish().await?;
    // Errors are typed and name the path.
    if let Err(Error::File {
        path,
        fault: FileFault::NotFound,
        ..
    }) = fs.read("/srv/none").await
    {
        println!("there is no {}", path.display());
    }
    // With the rights of a user of the guest; what is made belongs to it.
    fs.as_user("1000:1000").write("/tmp/mine", "mine").await?;
    Ok(())
}

async fn trees(sandbox: &Sandbox) -> Result<(), Error> {
    let fs = sandbox.fs();
    fs.copy_in_with(
        "./project",
        "/srv/project",
        CopyOptions::default().owner(1000, 1000),
    )
    .await?;
    let report = fs.copy_out("/srv/project/out", "./out").await?;
    for skipped in &report.skipped_entries {
        eprintln!("not copied: {} ({})", skipped.path.display(), skipped.kind);
    }
    Ok(())
}

fn prepared(builder: SandboxBuilder) -> SandboxBuilder {
    builder
        .workdir("/app")
        .script(
            "setup",
            "#!/bin/sh\necho setting up with $(cat /app/requirements.txt)\n",
        )
        .patch(Patch::text("/etc/app.conf", "key=value\n").mode(0o600))
        .patch(Patch::bytes("/etc/token", [0, 255]).owner(1000, 1000))
        .patch(Patch::file("/app/requirements.txt", "requirements.txt"))
        .patch(Patch::dir("/app/src", "src").owner(1000, 1000))
        .patch(Patch::mkdir("/var/lib/app").mode(0o750))
        .patch(Patch::symlink("/usr/local/bin/app", "/app/src/main.py"))
        .patch(Patch::append("/etc/hosts", "127.0.0.1 myapp.local\n"))
        .patch(Patch::remove("/etc/motd"))
}

/// Text without what formatting changes.
fn bare(text: &str) -> String {
    text.chars()
        .filter(|char| !char.is_whitespace() && *char != ',')
        .collect()
}

/// Checks that each block of a guide that begins so is in the text of the tests.
pub(crate) fn check(guide: &str, here: &str, begin: &str, count: usize) {
    let here = bare(here);
    let blocks: Vec<&str> = guide.split(begin).skip(1).collect();
    assert_eq!(blocks.len(), count);
    for block in blocks {
        let code = block.split("```").next().unwrap_or_default();
        // What is not shown, and what tests have at their beginning.
        let left_out = |line: &&str| line.starts_with("use ") || line.starts_with("# ");
        let code = code.lines().filter(|line| !left_out(line));
        let code = code.collect::<Vec<_>>().join("\n");
        assert!(here.contains(&bare(&code)), "not run here:\n{code}");
    }
}

pub(crate) async fn the_guide_to_files_holds() -> anyhow::Result<()> {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/files.md"))?;
    check(&guide, include_str!("guide.rs"), "```rust,no_run\n", 3);

    let host = tempfile::tempdir()?;
    std::env::set_current_dir(host.path())?;
    fs::write("requirements.txt", "nothing")?;
    for folder in ["src", "project"] {
        fs::create_dir_all(format!("{folder}/out"))?;
        fs::write(format!("{folder}/main.py"), "print('main')\n")?;
    }
    let sandbox = prepared(lab::builder(lab::PYTHON).await?).create().await?;
    assert_eq!(
        sandbox.shell("setup").await?.stdout()?,
        "setting up with nothing\n"
    );
    let seen = sandbox.exec("python3", ["/usr/local/bin/app"]).await?;
    assert_eq!(seen.stdout()?, "main\n");
    files(&sandbox).await?;
    let log = sandbox.fs().stat("/srv/data/log").await?;
    assert_eq!((log.size, log.permissions), (14, 0o600));
    assert_eq!(sandbox.fs().stat("/tmp/mine").await?.uid, 1000);
    trees(&sandbox).await?;
    assert_eq!(sandbox.fs().stat("/srv/project/main.py").await?.uid, 1000);
    assert!(fs::metadata("out")?.is_dir());
    sandbox.kill().await?;
    std::env::set_current_dir("/")?;
    Ok(())
}
