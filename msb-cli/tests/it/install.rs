//! Commands that open sandboxes, and the end of msb.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::lab::{BUSYBOX, Lab, Run, finish};

/// Runs `msb` with its commands in `bin`.
fn msb(lab: &Lab, bin: &Path, args: &[&str]) -> Run {
    finish(lab.msb(args).env("MSB_BIN", bin), b"")
}

/// Runs a command that was installed, as a shell does.
fn installed(bin: &Path, name: &str, args: &[&str], input: &[u8]) -> String {
    let mut command = Command::new(bin.join(name));
    // The script knows the home by itself.
    let guest = std::env::var_os("MSB_GUEST").expect("MSB_GUEST");
    command
        .args(args)
        .env("MSB_GUEST", guest)
        .env_remove("MSB_HOME");
    finish(&mut command, input).success()
}

#[test]
fn a_command_opens_its_sandbox() {
    let lab = Lab::own();
    let dir = tempfile::tempdir().expect("a folder");
    let bin = dir.path().join("a bin");
    let msb = |args: &[&str]| msb(&lab, &bin, args);
    let args = ["install", "-m", "256M", "-e", "MODE=it's", BUSYBOX];
    assert_eq!(
        msb(&args).success().trim(),
        bin.join("busybox").to_str().expect("UTF-8")
    );
    msb(&["install", "--tmp", "--name", "once", BUSYBOX]).success();
    assert_eq!(lab.sandboxes(), [""; 0], "made when they are used");

    // Made, found again, started again; words arrive as they are.
    let script = "echo \"$MODE $1\"; mkdir -p /opt; touch /opt/here";
    let said = installed(&bin, "busybox", &["sh", "-c", script, "sh", "a  b"], b"");
    assert_eq!(said, "it's a  b\n");
    assert_eq!(installed(&bin, "busybox", &["cat"], b"input"), "input");
    msb(&["stop", "-t", "1", "busybox"]).success();
    assert_eq!(installed(&bin, "busybox", &["ls", "/opt"], b""), "here\n");
    // Without words, a shell.
    let said = installed(&bin, "busybox", &[], b"echo in a shell; exit\n");
    assert!(said.contains("in a shell"), "{said}");
    // Another one each time.
    let script = "mkdir -p /opt; ls /opt; touch /opt/here";
    for _ in 0..2 {
        assert_eq!(installed(&bin, "once", &["sh", "-c", script], b""), "");
    }
    assert_eq!(lab.sandboxes(), ["busybox"]);

    let list = msb(&["install", "--list", "--format", "json"]).success();
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let brief = |index: usize| (list[index]["name"].clone(), list[index]["tmp"].clone());
    assert_eq!(brief(0), ("busybox".into(), false.into()));
    assert_eq!(brief(1), ("once".into(), true.into()));
    assert!(
        msb(&["install", "--list"])
            .success()
            .contains("(new each time)")
    );

    msb(&["uninstall", "busybox", "once"]).success();
    assert_eq!(fs::read_dir(&bin).expect("bin").count(), 0);
    assert_eq!(lab.sandboxes(), ["busybox"], "the sandbox stays");
    assert_eq!(msb(&["uninstall", "busybox"]).code, Some(125));
    msb(&["rm", "-f", "busybox"]).success();
}

#[test]
fn what_is_not_msbs_is_not_touched() {
    let lab = Lab::empty();
    let dir = tempfile::tempdir().expect("a folder");
    let bin = dir.path();
    let theirs = bin.join("busybox");
    fs::write(&theirs, "#!/bin/sh\n").expect("a file");
    let refused = msb(&lab, bin, &["install", BUSYBOX]);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("--name"), "{refused:?}");
    for wrong in [
        &["install", "--name", "msb", BUSYBOX][..],
        &["install", "--name", "../x", BUSYBOX],
    ] {
        assert_eq!(msb(&lab, bin, wrong).code, Some(125), "{wrong:?}");
    }
    msb(&lab, bin, &["install", "--name", "mine", BUSYBOX]).success();
    // Somebody has put something else in its place.
    let mine = bin.join("mine");
    fs::remove_file(&mine).expect("remove");
    std::os::unix::fs::symlink(&theirs, &mine).expect("a symlink");
    msb(&lab, bin, &["uninstall", "mine"]).success();
    assert!(fs::symlink_metadata(&mine).is_ok());
    assert_eq!(fs::read_to_string(&theirs).expect("a file"), "#!/bin/sh\n");
}

#[test]
fn msb_removes_itself_and_nothing_else() {
    let lab = Lab::own();
    let dir = tempfile::tempdir().expect("a folder");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).expect("a folder");
    let program = bin.join("msb");
    fs::copy(env!("CARGO_BIN_EXE_msb"), &program).expect("a copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    let msb = |args: &[&str]| {
        let known = lab.msb([""; 0]);
        let mut command = Command::new(&program);
        command.args(args).env("MSB_BIN", &bin);
        for (key, value) in known.get_envs() {
            command.env(key, value.expect("set"));
        }
        finish(&mut command, b"")
    };
    msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
    msb(&["install", "--name", "bb", BUSYBOX]).success();
    fs::write(lab.home().join("diary"), "mine").expect("a file");

    let asked = msb(&["self", "uninstall"]);
    assert_eq!(asked.code, Some(125), "{asked:?}");
    assert!(asked.stderr.contains("--yes"), "{asked:?}");
    assert!(program.exists() && lab.sandboxes() == ["app"]);
    let told = msb(&["self", "uninstall", "--yes"]).success();
    for part in ["the sandbox app (running)", "bin/bb", "blobs", "bin/msb"] {
        assert!(told.contains(part), "{part:?} is missing in:\n{told}");
    }
    assert_eq!(fs::read_dir(&bin).expect("bin").count(), 0);
    let left: Vec<_> = fs::read_dir(lab.home())
        .expect("home")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(left, ["diary"]);
}
