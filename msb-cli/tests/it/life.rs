//! Sandboxes that live on: detached, stopped, started, killed, removed.

use crate::lab::{BUSYBOX, Lab, alive, finish, signal, until};

#[test]
fn files_survive_a_stop_and_a_killed_supervisor() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let script = "echo started; sleep 1000";
    msb(&[
        "run", "-q", "--name", "app", "-d", BUSYBOX, "--", "sh", "-c", script,
    ])
    .success();
    let taken = msb(&["run", "-q", "--name", "app", "-d", BUSYBOX]);
    assert_eq!(taken.code, Some(125), "{taken:?}");
    // Several processes at once.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                let run = finish(&mut lab.msb(["exec", "app", "--", "cat"]), b"same");
                assert_eq!(run.success(), "same");
            });
        }
    });
    msb(&[
        "exec",
        "app",
        "--",
        "sh",
        "-c",
        "mkdir -p /srv; echo kept > /srv/file",
    ])
    .success();
    until("the program has written", || {
        msb(&["logs", "app"]).success() == "started\n"
    });
    msb(&["stop", "-t", "1", "app"]).success();
    assert!(msb(&["ls"]).success().contains("stopped"));
    assert_eq!(msb(&["exec", "app", "true"]).code, Some(125));
    msb(&["start", "app"]).success();
    assert_eq!(
        msb(&["exec", "app", "cat", "/srv/file"]).success(),
        "kept\n"
    );

    for victim in [0, 1] {
        let (supervisor, vmm) = lab.pids("app");
        signal([supervisor, vmm][victim], "KILL");
        until("nothing is left", || !alive(supervisor) && !alive(vmm));
        // The lock goes with the last process that was given it, a moment later.
        until("it is seen", || msb(&["ls"]).success().contains("failed"));
        msb(&["start", "app"]).success();
        assert_eq!(
            msb(&["exec", "app", "cat", "/srv/file"]).success(),
            "kept\n"
        );
    }
    let (supervisor, vmm) = lab.pids("app");
    assert_eq!(msb(&["rm", "app"]).code, Some(125));
    msb(&["rm", "-f", "app"]).success();
    until("nothing is left", || !alive(supervisor) && !alive(vmm));
    assert_eq!(lab.sandboxes(), [""; 0]);
}

#[test]
fn copies_go_in_and_out() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let host = tempfile::tempdir().expect("a folder");
    let at = |name: &str| host.path().join(name).display().to_string();
    std::fs::create_dir(at("tree")).expect("a folder");
    std::fs::write(at("tree/a:b"), "content").expect("a file");
    msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
    msb(&["exec", "app", "mkdir", "-p", "/srv"]).success();

    // Into a folder that is there, under its own name; else to the name itself.
    msb(&["cp", &at("tree"), "app:/tmp"]).success();
    msb(&["cp", &at("tree/a:b"), "app:srv/file"]).success();
    let script = "cat /tmp/tree/a:b /srv/file; mkfifo /tmp/tree/pipe; ln -s /etc /tmp/tree/etc";
    let told = msb(&["exec", "app", "--", "sh", "-c", script]).success();
    assert_eq!(told, "contentcontent");

    let out = msb(&["cp", "app:/tmp/tree", &at("copy")]);
    assert!(
        out.stderr.contains("left out") && out.stderr.contains("pipe"),
        "{out:?}"
    );
    assert_eq!(std::fs::read(at("copy/a:b")).expect("a file"), b"content");
    assert!(std::fs::symlink_metadata(at("copy/pipe")).is_err());
    msb(&["cp", "app:/srv/file", host.path().to_str().expect("UTF-8")]).success();
    assert_eq!(std::fs::read(at("file")).expect("a file"), b"content");

    for wrong in [
        ["app:/a", "app:/b"],
        ["./a", "./b"],
        ["none:/a", "./b"],
        ["app:/none", "./b"],
    ] {
        let refused = msb(&["cp", wrong[0], wrong[1]]);
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert!(
            refused.stderr.contains("hint") || refused.stderr.contains("/none"),
            "{refused:?}"
        );
    }
    msb(&["rm", "-f", "app"]).success();
}
