//! `msb pull` and `msb image`, against a real registry.

use std::fs;
use std::path::Path;

use crate::lab::{BUSYBOX, Lab, PYTHON, Registry, finish, image_layout};

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

#[test]
fn images_are_saved_loaded_shown_and_pruned() {
    let lab = Lab::own();
    lab.import("python", PYTHON);
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let told = |name: &str| {
        let json = msb(&["image", "inspect", name]).success();
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON")[0].clone()
    };
    let before = told(BUSYBOX);
    assert_eq!(before["platform"], "linux/amd64");
    assert!(
        before["layers"][0]["size"]
            .as_u64()
            .is_some_and(|size| size > 0)
    );
    assert!(before["config"]["cmd"].is_array(), "{before}");

    msb(&["image", "save", "-o", &at("both.tar"), BUSYBOX, PYTHON]).success();
    let files = fs::read_dir(dir.path()).expect("a folder").count();
    assert_eq!(files, 1, "nothing is left beside it");
    // A sandbox that is stopped needs its image.
    msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
    msb(&["stop", "-t", "1", "app"]).success();
    let would = msb(&["image", "prune", "-n"]).success();
    assert!(
        would.contains(PYTHON) && !would.contains(BUSYBOX),
        "{would}"
    );
    let nobody = msb(&["image", "prune"]);
    assert_eq!(nobody.code, Some(125));
    assert!(nobody.stderr.contains("msb image prune -y"), "{nobody:?}");
    let pruned = msb(&["image", "prune", "-y"]).success();
    assert!(pruned.contains("removed 1 names"), "{pruned}");
    assert!(!msb(&["image", "ls"]).success().contains(PYTHON));
    msb(&["rm", "app"]).success();
    msb(&["image", "prune", "-y"]).success();
    assert!(size_of(&lab.home().join("blobs")) < 10_000);

    let loaded = msb(&["image", "load", "-q", &at("both.tar")]);
    assert_eq!(loaded.success(), "");
    let after = told(BUSYBOX);
    for same in ["config_digest", "config", "layers", "platform"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    msb(&["run", "-q", PYTHON, "--", "python3", "-c", "print(1)"]).success();
    // From standard input, and as other tools write it.
    let tar = at("docker.tar");
    let place = format!("docker-archive:{tar}:localhost/docker:1");
    let from = format!("oci:{}:latest", image_layout("busybox").display());
    let mut skopeo = std::process::Command::new("skopeo");
    finish(
        skopeo.args(["copy", "-q", "--insecure-policy", &from, &place]),
        b"",
    )
    .success();
    let bytes = fs::read(&tar).expect("an archive");
    let loaded = finish(&mut lab.msb(["image", "load"]), &bytes).success();
    assert_eq!(loaded, "loaded localhost/docker:1\n");
    msb(&["run", "-q", "localhost/docker:1", "--", "true"]).success();
    let junk = finish(&mut lab.msb(["image", "load"]), b"no archive");
    assert_eq!(junk.code, Some(125));
    assert!(
        junk.stderr.contains("hint: ") && !junk.stderr.contains("/tmp"),
        "{junk:?}"
    );
    for args in [
        &["image", "inspect", "none"][..],
        &["image", "save", "-o", &at("x"), "none"],
    ] {
        let missing = msb(args);
        assert_eq!(missing.code, Some(125));
        assert!(missing.stderr.contains("hint: "), "{missing:?}");
    }
    assert!(!dir.path().join("x").exists());
}
