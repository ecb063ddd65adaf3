//! The same names for programs without a runtime.

use std::io::{Read, Write};

use msb_sdk::blocking::{Images, SandboxBuilder};
use msb_sdk::{ExecEvent, ExecOptions};

use crate::lab;

pub(crate) async fn the_same_names_wait() -> anyhow::Result<()> {
    let builder = lab::builder(lab::BUSYBOX).await?;
    // As in a program that has no runtime: a thread that belongs to none.
    let thread = std::thread::spawn(move || without_runtime(builder.into()));
    thread.join().expect("no panic")
}

fn without_runtime(builder: SandboxBuilder) -> anyhow::Result<()> {
    assert!(!Images::open(&lab::home())?.list()?.is_empty());
    let sandbox = builder
        .env("MODE", "test")
        .script("hello", "#!/bin/sh\necho hi $MODE\n")
        .create()?;
    assert_eq!(sandbox.shell("hello")?.stdout()?, "hi test\n");
    assert_eq!(sandbox.exec("echo", ["a b"])?.stdout()?, "a b\n");

    let fs = sandbox.fs();
    let mut writer = fs.open_write("/tmp/file")?;
    writer.write_all(b"first ")?;
    write!(writer, "{}", "second".repeat(50_000))?;
    writer.finish()?;
    let (mut text, mut reader) = (String::new(), fs.open_read("/tmp/file")?);
    assert_eq!(reader.metadata().size, 300_006);
    reader.read_to_string(&mut text)?;
    assert_eq!(text, format!("first {}", "second".repeat(50_000)));
    let names: Vec<_> = fs
        .open_list("/tmp")?
        .map(|entry| entry.map(|entry| entry.name))
        .collect::<Result<_, _>>()?;
    assert_eq!(names, ["file"]);
    let missing = fs.open_read("/none").expect_err("missing").to_string();
    assert!(missing.contains("/none"), "{missing}");

    let mut run = sandbox.exec_with(ExecOptions::new("cat", [""; 0]).stdin())?;
    let stdin = run.stdin();
    stdin.write("typed")?;
    stdin.close();
    assert_eq!(run.recv(), Some(ExecEvent::Stdout("typed".into())));
    assert!(run.wait()?.success());
    sandbox.stop_and_wait()?;
    Ok(())
}
