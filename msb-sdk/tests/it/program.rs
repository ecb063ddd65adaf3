//! The program that the documentation begins with, on an image that needs no network.

use std::process::Command;

use msb_sdk::{ExecEvent, Home, Images, NetworkPolicy, Patch};

use crate::lab;

/// Makes the test program the example `worker`.
pub(crate) const WORKER: &str = "MSB_IT_WORKER";

pub(crate) async fn the_program_that_people_write() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::PYTHON)
        .await?
        .cpus(2)
        .memory_mib(512)
        .workdir("/app")
        .env("MODE", "test")
        .network(NetworkPolicy::public_only().block_domain_suffix(".evil.com"))
        .port(0, 80)
        .script("setup", "#!/bin/sh\necho \"setting up for $MODE\"")
        .patch(Patch::text("/etc/app.conf", "key=value\n"))
        .patch(Patch::mkdir("/app").mode(0o755))
        .patch(Patch::text(
            "/app/train.py",
            "import sys\nprint('epoch')\nprint('loss', file=sys.stderr)\nsys.exit(4)\n",
        ))
        .patch(Patch::append("/etc/hosts", "127.0.0.1 myapp.local\n"))
        .create()
        .await?;

    let output = sandbox.exec("python3", ["-c", "print(1)"]).await?;
    assert_eq!((output.stdout()?, output.status().code()), ("1\n", 0));
    let output = sandbox.shell("setup && echo done").await?;
    assert_eq!(output.stdout()?, "setting up for test\ndone\n");
    println!("{} {}", output.stdout()?, output.status().code());
    let named = "import socket; print(socket.gethostbyname('myapp.local'))";
    let output = sandbox.exec("python3", ["-c", named]).await?;
    assert_eq!(output.stdout()?, "127.0.0.1\n");

    sandbox.fs().write("/tmp/input.txt", b"some data").await?;
    let text = sandbox.fs().read_to_string("/tmp/input.txt").await?;
    assert_eq!(text, "some data");
    let mut names = Vec::new();
    for entry in sandbox.fs().list("/tmp").await? {
        names.push(entry.name);
    }
    assert_eq!(names, ["input.txt"]);

    let mut run = sandbox.shell_stream("python3 train.py").await?;
    let (mut out, mut err, mut end) = (Vec::new(), Vec::new(), None);
    while let Some(event) = run.recv().await {
        match event {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => err.extend_from_slice(&bytes),
            ExecEvent::Exited(status) => end = Some(status.code()),
            _ => {}
        }
    }
    assert_eq!(
        (&out[..], &err[..], end),
        (&b"epoch\n"[..], &b"loss\n"[..], Some(4))
    );
    sandbox.stop_and_wait().await?;
    Ok(())
}

/// As it stands, but for the image: in a namespace where port 8080 is free, and in which there
/// is no network, so that its script fails.
pub(crate) async fn the_example_runs_as_it_stands() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let home = Home::at(dir.path().join("home"))?;
    let from = lab::prepared("MSB_TEST_IMAGES").join("python");
    Images::open(&home)?
        .import(&from, lab::PYTHON, |_| {})
        .await?;
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--map-root-user", "--net", "sh", "-c"])
        .arg("ip link set lo up && exec \"$@\"")
        .arg("sh")
        .arg(std::env::current_exe()?)
        .arg(lab::PYTHON);
    let run = unshare
        .env(WORKER, "1")
        .env("OPENAI_API_KEY", "sk-a-value-that-nobody-sees")
        .env("MSB_HOME", home.path())
        .env("MSB_GUEST", lab::prepared("MSB_GUEST"))
        .output()?;
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{out}\n{err}");
    assert!(out.starts_with("1\n"), "{out}");
    assert!(!out.contains("done"), "there is no network: {out}");
    for part in ["some data", "\"input.txt\"", "exit code 2"] {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
    assert!(err.contains("train.py"), "{err}");
    assert!(
        std::fs::read_dir(home.path().join("sandboxes"))?
            .next()
            .is_none()
    );
    Ok(())
}
