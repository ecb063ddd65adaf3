//! The example of a program that embeds sandboxes, built and run as its users would.

use std::path::Path;
use std::process::Command;

use crate::lab;

pub(crate) async fn a_program_outside_of_the_workspace_needs_no_msb() -> anyhow::Result<()> {
    // Sees to it that the image is there.
    drop(lab::builder(lab::PYTHON).await?);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/embed");
    // The versions that everything else is tested with.
    std::fs::copy(example.join("../../Cargo.lock"), example.join("Cargo.lock"))?;
    // Beside the folder for temporary files of tests: kept, so that it is built once.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../embedding");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--offline", "--manifest-path"])
        .arg(example.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .output()?;
    anyhow::ensure!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );

    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    assert!(
        path.split(':')
            .all(|folder| !Path::new(folder).join("msb").exists())
    );
    let run = Command::new(target.join("debug/embed"))
        .args([lab::PYTHON, "print(6 * 7)\nopen('result', 'w').close()"])
        .env("PATH", path)
        .env("MSB_HOME", lab::home().path())
        .env("MSB_GUEST", lab::prepared("MSB_GUEST"))
        .output()?;
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(String::from_utf8_lossy(&run.stdout), "42\n", "{stderr}");
    assert!(run.status.success(), "{stderr}");
    let mut left: Vec<_> = stderr.lines().collect();
    left.sort_unstable();
    assert_eq!(left, ["left behind: result", "left behind: script.py"]);
    Ok(())
}
