//! What goes wrong for new users, and what they are told.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use crate::lab::{BUSYBOX, Lab, finish};

/// Runs `msb`, which must fail by itself (125) and say all of `parts`.
#[track_caller]
fn fails(command: &mut std::process::Command, parts: &[&str]) {
    let run = finish(command, b"");
    assert_eq!(run.code, Some(125), "{run:?}");
    for part in parts {
        assert!(
            run.stderr.contains(part),
            "{part:?} is missing in: {}",
            run.stderr
        );
    }
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
}

#[test]
fn no_qemu() {
    let lab = Lab::shared();
    // A mount namespace of the test's own, in which the program is hidden.
    let script = "for dir in /usr/local/bin /usr/bin /bin; do
            test ! -e $dir/qemu-system-x86_64 || mount --bind /dev/null $dir/qemu-system-x86_64
        done; exec \"$0\" run \"$@\"";
    let msb = lab.msb(["run"]);
    let mut hidden = std::process::Command::new("unshare");
    hidden
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(msb.get_program());
    hidden.args([BUSYBOX, "--", "true"]);
    for (key, value) in msb.get_envs() {
        hidden.env(key, value.expect("set"));
    }
    fails(
        &mut hidden,
        &["qemu-system-x86_64", "hint: ", "apt-get install"],
    );
}

#[test]
fn no_kernel() {
    let lab = Lab::shared();
    let empty = tempfile::tempdir().expect("tempdir");
    let parts = [
        "guest kernel",
        empty.path().to_str().expect("utf-8"),
        "cargo xtask guest",
    ];
    fails(
        lab.msb(["run", BUSYBOX, "--", "true"])
            .env("MSB_GUEST", empty.path()),
        &parts,
    );
}

#[test]
fn registry_down() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .expect("port")
        .port();
    let lab = Lab::empty();
    let image = format!("localhost:{port}/some/image:1");
    fails(
        &mut lab.msb(["run", "-q", &image, "--", "true"]),
        &[&format!("localhost:{port}"), "refused"],
    );
    assert!(lab.sandboxes().is_empty());
}

#[test]
fn unknown_image_and_never_pull() {
    let lab = Lab::shared();
    fails(
        &mut lab.msb([
            "run",
            "-q",
            "--pull",
            "never",
            "localhost/none:1",
            "--",
            "true",
        ]),
        &["localhost/none:1", "hint: "],
    );
    let registry = crate::lab::Registry::start();
    let there = registry.push("busybox", "there:1");
    let elsewhere = there.replace("there", "elsewhere");
    fails(&mut lab.msb(["pull", "-q", &elsewhere]), &["elsewhere"]);
}

#[test]
fn bad_references_and_sizes() {
    let lab = Lab::empty();
    fails(
        &mut lab.msb(["run", "UPPER/Case", "--", "true"]),
        &["UPPER/Case"],
    );
    fails(
        &mut lab.msb(["run", "-m", "12", BUSYBOX]),
        &["no unit", "12M"],
    );
    fails(&mut lab.msb(["run", "-m", "1M", BUSYBOX]), &["1 MiB"]);
    fails(&mut lab.msb(["run", "-m", "lots", BUSYBOX]), &["lots"]);
    fails(&mut lab.msb(["run", "-c", "0", BUSYBOX]), &["cpus"]);
    fails(
        &mut lab.msb(["run", "-w", "relative", BUSYBOX]),
        &["relative", "absolute"],
    );
    fails(&mut lab.msb(["run"]), &["IMAGE"]);
    fails(&mut lab.msb(["rum", BUSYBOX]), &["rum", "run"]);
}

#[test]
fn options_in_the_wrong_place_and_files_that_are_not_there() {
    let lab = Lab::shared();
    fails(
        &mut lab.msb(["run", "-q", BUSYBOX, "--net-rul", "x"]),
        &["'--net-rul'", "'--net-rule'"],
    );
    let run = finish(
        &mut lab.msb(["run", "-q", BUSYBOX, "--", "--net-rule"]),
        b"",
    );
    assert_eq!(run.code, Some(127), "{run:?}");
    assert!(run.stderr.contains("own options go before `--`"), "{run:?}");
    fails(
        &mut lab.msb(["run", "-f", "none.yaml"]),
        &["none.yaml", "hint: "],
    );
    fails(
        &mut lab.msb(["policy", "check", "none"]),
        &["none", "hint: "],
    );
    fails(&mut lab.msb(["run", "-c", "65", BUSYBOX]), &["1..=64"]);
}

#[test]
fn hardware_isolation_that_is_not_there() {
    let lab = Lab::shared();
    let doctor = finish(&mut lab.msb(["doctor"]), b"");
    if doctor.stdout.contains("isolation: hardware") {
        // Here it is there, and asking for it must work.
        finish(
            &mut lab.msb([
                "run",
                "-q",
                "--min-isolation",
                "hardware",
                BUSYBOX,
                "--",
                "true",
            ]),
            b"",
        )
        .success();
        return;
    }
    fails(
        &mut lab.msb([
            "run",
            "-q",
            "--min-isolation",
            "hardware",
            BUSYBOX,
            "--",
            "true",
        ]),
        &["hardware", "emulated"],
    );
}

#[test]
fn a_home_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("write");
    let lab = Lab::empty();
    let home = file.join("home");
    fails(
        lab.msb(["image", "ls"]).env("MSB_HOME", &home),
        &[home.to_str().expect("utf-8")],
    );
    fails(
        lab.msb(["image", "ls"])
            .env_remove("MSB_HOME")
            .env_remove("HOME"),
        &["MSB_HOME", "hint: "],
    );
}

#[test]
fn doctor_says_what_works() {
    let lab = Lab::shared();
    let out = finish(&mut lab.msb(["doctor"]), b"").success();
    for part in ["kvm", "engine", "isolation: ", "guest", "disks"] {
        assert!(out.contains(part), "{out}");
    }
}

/// As `msb image ls | head` leaves it.
#[test]
fn a_reader_that_is_gone_is_no_failure() {
    let lab = Lab::shared();
    for arguments in [&["image", "ls"][..], &["doctor"]] {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let mut command = lab.msb(arguments);
        let output = command
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .output()
            .expect("msb runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*said),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let output = lab
        .msb(["image", "ls"])
        .stdout(full)
        .output()
        .expect("msb runs");
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn one_name_that_is_wrong_keeps_no_other_from_its_turn() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
    let steps = [
        &["stop", "-t", "0"][..],
        &["start"],
        &["restart", "-t", "0"],
        &["pause"],
        &["resume"],
        &["kill"],
        &["rm"],
    ];
    for step in steps {
        let run = msb(&[step, &["none", "app"]].concat());
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (Some(125), "app\n"),
            "{step:?}: {run:?}"
        );
        let none =
            "msb: there is no sandbox named \"none\"\nhint: `msb ls` lists those that there are\n";
        assert_eq!(run.stderr, none, "{step:?}");
    }
    let run = msb(&["image", "rm", "localhost/none:1", BUSYBOX]);
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(
        run.stderr.contains("localhost/none:1") && run.stdout.contains(BUSYBOX),
        "{run:?}"
    );
}
