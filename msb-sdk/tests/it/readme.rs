//! The examples of the READMEs and of the guide to secrets, run. They are here as they are there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use msb_sdk::{
    Activity, Error, ExecEvent, ExecOptions, Home, Images, LifeEvent, NetworkActivity,
    NetworkPolicy, Patch, Sandbox, Secret,
};

use crate::{guide, lab};

/// Makes the test program the one of the README, and of the others behind it.
pub(crate) const README: &str = "MSB_IT_README";

/// The image that all of them name.
const IMAGE: &str = "python:3.12";

mod first {
    use super::{ExecEvent, ExecOptions, Sandbox};

    pub(super) fn main() -> Result<(), Box<dyn std::error::Error>> {
        // First thing: a sandbox's supervisor is this program, started again.
        msb_sdk::supervisor_hook();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let sandbox = Sandbox::builder("demo")
                .image("python:3.12")
                .memory_mib(512)
                .create()
                .await?;
            let output = sandbox.exec("python3", ["-c", "print(6 * 7)"]).await?;
            assert_eq!(output.stdout()?, "42\n");

            let mut run = sandbox
                .exec_with(ExecOptions::new(
                    "sh",
                    ["-c", "for i in 1 2 3; do echo $i; done"],
                ))
                .await?;
            while let Some(event) = run.recv().await {
                match event {
                    ExecEvent::Stdout(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
                    ExecEvent::Exited(status) => println!("{status}"),
                    _ => {}
                }
            }
            sandbox.stop_and_wait().await?;
            Ok(())
        })
    }
}

async fn network() -> Result<(), Error> {
    let policy = NetworkPolicy::none()
        .rule("allow tcp 443 198.51.100.7")
        .rule("deny metadata");
    let sandbox = Sandbox::builder("demo")
        .image("python:3.12")
        .network(policy)
        .create()
        .await?;
    let mut events = sandbox.network_events();
    while let Some(event) = events.recv().await {
        if let NetworkActivity::Deny(decision) = &event.activity {
            println!("{} was refused: {}", decision.address, decision.by);
        }
    }
    Ok(())
}

async fn ports(sandbox: &Sandbox) -> Result<(), Error> {
    let ports = sandbox.publish("0:80").await?;
    println!("the guest's port 80 is at {}", ports[0].host);
    sandbox.unpublish(&ports[0]).await?;
    Ok(())
}

async fn files(sandbox: &Sandbox) -> Result<(), Error> {
    let fs = sandbox.fs();
    fs.write("/tmp/input.txt", b"some data").await?;
    let text = fs.read_to_string("/tmp/input.txt").await?;
    for entry in fs.list("/tmp").await? {
        println!("{entry:?}");
    }
    fs.copy_in("./project", "/srv/project").await?;
    let report = fs.copy_out("/srv/project/out", "./out").await?;
    println!(
        "{} files and folders, {} left out",
        report.entries, report.skipped
    );
    assert_eq!(text, "some data");
    Ok(())
}

async fn prepared() -> Result<(), Error> {
    let sandbox = Sandbox::builder("worker")
        .image("python:3.12")
        .script(
            "setup",
            "#!/bin/sh\napt-get update && apt-get install -y curl",
        )
        .patch(Patch::text("/etc/app.conf", "key=value\n"))
        .patch(Patch::mkdir("/app").mode(0o755))
        .patch(Patch::append("/etc/hosts", "127.0.0.1 myapp.local\n"))
        .create()
        .await?;
    let output = sandbox.shell("setup && echo done").await?;
    println!("{}", output.status().code());
    Ok(())
}

async fn demo() -> Result<(), Box<dyn std::error::Error>> {
    let sandbox = Sandbox::builder("demo")
        .image("python:3.12")
        .cpus(1)
        .memory_mib(512)
        .create()
        .await?;
    let output = sandbox.exec("python3", ["-c", "print(6 * 7)"]).await?;
    println!("{} {}", output.stdout()?, output.status().shell_code());
    sandbox.stop_and_wait().await?;
    Ok(())
}

mod secrets {
    use super::{Error, NetworkPolicy, Sandbox, Secret};

    pub(super) async fn demo() -> Result<(), Error> {
        let sandbox = Sandbox::builder("worker")
            .image("python:3.12")
            .network(NetworkPolicy::none().rule("allow tcp 443 api.openai.com"))
            .secret(
                Secret::env("OPENAI_API_KEY")
                    .from_env()
                    .allow_host("api.openai.com")
                    .header("authorization")
                    .prefix("sk-"),
            )
            .create()
            .await?;
        sandbox.exec("python3", ["agent.py"]).await?;
        sandbox.stop_and_wait().await?;
        // One that was given is not kept; whoever starts the sandbox again gives it again.
        let kept = Sandbox::get("kept").await?;
        kept.start_with([("TOKEN", "what it is today")]).await?;
        Ok(())
    }
}

/// Runs all of them, in a process whose environment and working folder are right for it.
pub(crate) fn main() -> anyhow::Result<()> {
    first::main().map_err(|error| anyhow::anyhow!("{error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        demo().await.map_err(|error| anyhow::anyhow!("{error}"))?;
        prepared().await?;
        // It ends with what stood for it, a moment later.
        if let Ok(worker) = Sandbox::get("worker").await {
            let _ = worker.wait().await;
        }
        let sandbox = Sandbox::builder("other").image(IMAGE).create().await?;
        ports(&sandbox).await?;
        files(&sandbox).await?;
        sandbox.kill().await?;
        // It listens until its sandbox is ended, which somebody else does.
        let (listened, ended) = tokio::join!(network(), end("demo"));
        listened?;
        ended?;
        let token = Secret::env("TOKEN")
            .value("what it was")
            .allow_host("api.example.com");
        let kept = Sandbox::builder("kept").image(IMAGE).secret(token);
        kept.create_detached().await?.stop_and_wait().await?;
        secrets::demo().await?;
        let kept = Sandbox::get("kept").await?;
        kept.kill().await?;
        kept.remove().await?;
        Ok(())
    })
}

/// Ends a sandbox once one of this name has started.
async fn end(name: &str) -> Result<(), Error> {
    let mut events = Sandbox::watch_in(&Home::from_env()?, SystemTime::UNIX_EPOCH).await?;
    while let Some(event) = events.recv().await {
        let started = matches!(event.activity, Activity::Life(LifeEvent::Started { .. }));
        if started && event.sandbox == name {
            break;
        }
    }
    Sandbox::get(name).await?.kill().await
}

pub(crate) async fn the_examples_of_the_readmes_run() -> anyhow::Result<()> {
    let here = include_str!("readme.rs");
    guide::check(include_str!("../../README.md"), here, "```no_run\n", 5);
    guide::check(
        include_str!("../../../README.md"),
        here,
        "```rust,no_run\n",
        1,
    );
    guide::check(
        include_str!("../../../docs/secrets.md"),
        here,
        "```rust,no_run\n",
        1,
    );
    let dir = tempfile::tempdir()?;
    fs::create_dir_all(dir.path().join("project/out"))?;
    let home = Home::at(dir.path().join("home"))?;
    let from = lab::prepared("MSB_TEST_IMAGES").join("python");
    Images::open(&home)?.import(&from, IMAGE, |_| {}).await?;
    let run = Command::new(std::env::current_exe()?)
        .current_dir(dir.path())
        .env(README, "1")
        .env("OPENAI_API_KEY", "sk-a-value-that-nobody-sees")
        .env("MSB_HOME", home.path())
        .env("MSB_GUEST", lab::prepared("MSB_GUEST"))
        .output()?;
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{out}\n{err}");
    for part in [
        "1\n2\n3\n",
        "42\n 0",
        "is at 127.0.0.1:",
        "input.txt",
        "0 left out",
    ] {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
    assert!(Path::new(&dir.path().join("out")).is_dir());
    assert!(
        fs::read_dir(home.path().join("sandboxes"))?
            .next()
            .is_none()
    );
    Ok(())
}
