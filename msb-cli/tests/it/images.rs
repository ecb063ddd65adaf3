//! `msb pull` and `msb image`, against a real registry.

use std::fs;
use std::path::Path;

use crate::lab::{Lab, Registry, finish};

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn an_image_is_pulled_listed_run_and_removed() {
    let registry = Registry::start();
    let image = registry.push("busybox", "tools/busybox:1");
    let lab = Lab::empty();
    let pull = finish(&mut lab.msb(["pull", &image]), b"");
    assert!(pull.stdout.starts_with("sha256:"), "{pull:?}");
    assert!(pull.stderr.contains("Pulled"), "{pull:?}");

    let table = finish(&mut lab.msb(["image", "ls"]), b"").success();
    assert!(table.contains(&image), "{table}");
    let json = finish(&mut lab.msb(["image", "ls", "--format", "json"]), b"").success();
    let json: serde_json::Value = serde_json::from_str(&json).expect("json");
    assert_eq!(json[0]["references"][0], image.as_str());
    assert_eq!(json[0]["digest"], pull.stdout.trim());

    finish(
        &mut lab.msb(["run", "-q", "--pull", "never", &image, "--", "true"]),
        b"",
    )
    .success();
    finish(&mut lab.msb(["image", "rm", &image]), b"").success();
    let table = finish(&mut lab.msb(["image", "ls"]), b"").success();
    assert!(!table.contains(&image), "{table}");
    let left = size_of(&lab.home().join("blobs"));
    assert!(left < 10_000, "{left} bytes of blobs are left");
}

#[test]
fn pulling_again_transfers_nothing() {
    let registry = Registry::start();
    let image = registry.push("busybox", "busybox:1");
    let lab = Lab::empty();
    finish(&mut lab.msb(["pull", "-q", &image]), b"").success();
    let before = size_of(&lab.home().join("blobs"));
    let again = registry.push("busybox", "other-name:2");
    let pull = finish(&mut lab.msb(["pull", &again]), b"");
    assert_eq!(pull.code, Some(0), "{pull:?}");
    assert!(!pull.stderr.contains("Pulling"), "{pull:?}");
    assert!(size_of(&lab.home().join("blobs")) < before + 10_000);
}

#[test]
fn a_running_sandbox_keeps_its_image() {
    let registry = Registry::start();
    let image = registry.push("busybox", "busybox:1");
    let lab = Lab::empty();
    let mut child = lab
        .msb([
            "run",
            "-q",
            &image,
            "--",
            "sh",
            "-c",
            "echo started; read line; sha256sum /bin/busybox",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut first = [0; 8];
    let mut stdout = child.stdout.take().expect("stdout");
    std::io::Read::read_exact(&mut stdout, &mut first).expect("read");
    // Removed or refused: either way the sandbox goes on.
    finish(&mut lab.msb(["image", "rm", &image]), b"");
    drop(child.stdin.take());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut rest).expect("read");
    assert!(rest.contains("/bin/busybox"), "{rest}");
    assert_eq!(crate::lab::wait(child).status.code(), Some(0));
}
