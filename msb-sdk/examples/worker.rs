//! Most of what a sandbox can be told, in one program.
//!
//! ```console
//! $ OPENAI_API_KEY=… cargo run -p msb-sdk --example worker
//! ```

use msb_sdk::{ExecEvent, NetworkPolicy, Patch, Sandbox, Secret};

/// Runs it; an image may be named instead of `python:3.12`.
pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    msb_sdk::supervisor_hook();
    let image = std::env::args().nth(1);
    let image = image.unwrap_or_else(|| "python:3.12".into());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(program(&image))
}

async fn program(image: &str) -> Result<(), Box<dyn std::error::Error>> {
    let sandbox = Sandbox::builder("worker")
        .image(image)
        .cpus(2)
        .memory_mib(512)
        .workdir("/app")
        .env("MODE", "test")
        .network(NetworkPolicy::public_only().block_domain_suffix(".evil.com"))
        .secret(
            Secret::env("OPENAI_API_KEY")
                .from_env()
                .allow_host("api.openai.com"),
        )
        .port(8080, 80)
        .script(
            "setup",
            "#!/bin/sh\napt-get update && apt-get install -y curl",
        )
        .patch(Patch::text("/etc/app.conf", "key=value\n"))
        .patch(Patch::mkdir("/app").mode(0o755))
        .patch(Patch::append("/etc/hosts", "127.0.0.1 myapp.local\n"))
        .create()
        .await?;

    let output = sandbox.exec("python3", ["-c", "print(1)"]).await?; // no shell
    print!("{}", output.stdout()?);
    let output = sandbox.shell("setup && echo done").await?; // the image's shell
    println!("{} {}", output.stdout()?, output.status().code());

    sandbox.fs().write("/tmp/input.txt", b"some data").await?;
    let text = sandbox.fs().read_to_string("/tmp/input.txt").await?;
    println!("{text}");
    for entry in sandbox.fs().list("/tmp").await? {
        println!("{entry:?}");
    }

    let mut run = sandbox.shell_stream("python3 train.py").await?;
    while let Some(event) = run.recv().await {
        match event {
            ExecEvent::Stdout(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
            ExecEvent::Stderr(bytes) => eprint!("{}", String::from_utf8_lossy(&bytes)),
            ExecEvent::Exited(status) => println!("{status}"),
            _ => {}
        }
    }
    sandbox.stop_and_wait().await?;
    Ok(())
}
