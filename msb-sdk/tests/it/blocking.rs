//! The same names for programs without a runtime.

use std::io::{Read, Write};
use std::time::{Duration, SystemTime};

use msb_sdk::blocking::{Images, Sandbox, SandboxBuilder, SandboxHandle};
use msb_sdk::{ExecEvent, ExecOptions, Snapshots, Status};

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

    let mut samples = sandbox.metrics_stream(Duration::from_millis(50))?;
    assert!(samples.next()?.guest.is_some());
    assert!(samples.next()?.cpu_percent.is_some());
    assert!(sandbox.metrics()?.host.memory_resident > 0);
    let mut events = sandbox.events();
    let first = events.next().expect("it was made");
    assert!(first.json().contains("\"created\""), "{first}");

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

    sandbox.pause()?;
    sandbox.resume()?;
    let name = format!("it-blocking-{}", std::process::id());
    sandbox.snapshot(&name)?;
    let copy = Sandbox::from_snapshot(&name).home(lab::home()).create();
    let removed = Snapshots::open(&lab::home()).remove(&name);
    let forks = sandbox.fork(2)?;
    for other in forks.iter().chain([&copy?]) {
        let hello = other.exec("cat", ["/tmp/file"])?;
        assert!(hello.stdout()?.starts_with("first second"));
    }
    removed?;
    sandbox.stop_and_wait()?;
    Ok(())
}

/// Whole lives, by name.
pub(crate) async fn sandboxes_live_on() -> anyhow::Result<()> {
    let builder = lab::builder(lab::BUSYBOX).await?;
    let thread = std::thread::spawn(move || lives(builder.into()));
    thread.join().expect("no panic")
}

fn lives(builder: SandboxBuilder) -> anyhow::Result<()> {
    let home = lab::home();
    let watch = Sandbox::watch_in(&home, SystemTime::now())?;
    let command = ["sh", "-c", "echo begun; exec sleep 1000"];
    let sandbox = builder.command(command).create_detached()?;
    let name = sandbox.spec().name.clone();
    let _removed = lab::LivesOn(name.clone());
    let handle = SandboxHandle::find(&home, &name)?;
    assert_eq!(handle.status()?.status, Status::Running);
    let mut logs = handle.logs();
    while logs.read()? != b"begun\n" {
        logs.changed()?;
    }
    sandbox.pause()?;
    assert_eq!(handle.status()?.status, Status::Paused);
    sandbox.resume()?;
    let forks = sandbox.fork(1)?;
    assert_eq!(forks[0].exec("echo", ["fork"])?.stdout()?, "fork\n");
    drop((sandbox, forks));
    handle.stop_within(Duration::from_millis(100))?;
    assert!(Sandbox::list_in(&home)?.iter().any(|one| one.name == name));
    let again = handle.start()?;
    assert!(handle.connect()?.exec("true", [""; 0])?.status().success());
    drop(again);
    handle.kill()?;
    handle.remove()?;
    let mut own = watch.filter(|event| event.sandbox == name);
    let first = own.next().expect("it was made");
    assert!(first.json().contains("\"created\""), "{first}");
    assert!(own.any(|event| event.json().contains("\"removed\"")));
    Ok(())
}
