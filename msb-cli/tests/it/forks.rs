//! Sandboxes that are held, saved and forked by their names.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::lab::{BUSYBOX, Lab, alive, finish, signal, until};

/// A program that counts in its memory, one for each line that it is given.
const COUNTS: &str = "mkfifo /ask /answer; n=0; echo ready; \
     while read line < /ask; do n=$((n + 1)); echo $n > /answer; done";

/// Has it count.
const COUNT: &str = "echo > /ask; cat /answer";

fn begin(lab: &Lab, name: &str) {
    let args = [
        "run", "-q", "-d", "--rm", "--name", name, BUSYBOX, "--", "sh", "-c", COUNTS,
    ];
    finish(&mut lab.msb(args), b"").success();
    until("it counts", || {
        finish(&mut lab.msb(["logs", name]), b"").success() == "ready\n"
    });
}

/// A file that is still open for a fork would keep a disk from being closed at the end, which its
/// journal tells when it is used again.
#[test]
fn disks_of_a_sandbox_and_of_its_forks_are_closed_in_order() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"").success();
    let exec = |name: &str, script: &str| msb(&["exec", name, "--", "sh", "-c", script]);
    let recovered = |name: &str| {
        msb(&["start", name]);
        let log = exec(name, "dmesg");
        assert!(log.contains("EXT4-fs (vdb): mounted"), "{log}");
        log.contains("EXT4-fs (vdb): recovery complete")
    };
    msb(&[
        "create", "-q", "-m", "128M", "--disk", "64M", "--name", "app", BUSYBOX,
    ]);
    exec("app", "echo kept > /kept");
    // Nobody asks anything of the fork before it is stopped.
    assert_eq!(msb(&["fork", "app"]), "app-1\n");
    msb(&["stop", "app", "app-1"]);
    for name in ["app", "app-1"] {
        assert!(!recovered(name), "{name}");
        assert_eq!(exec(name, "cat /kept"), "kept\n");
    }
    // It would be told.
    exec("app-1", "echo more > /more; sync");
    msb(&["kill", "app-1"]);
    assert!(recovered("app-1"));
    msb(&["rm", "-f", "app", "app-1"]);
}

#[test]
fn sandboxes_are_forked_and_gone_on_from() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let exec = |name: &str, script: &str| msb(&["exec", name, "--", "sh", "-c", script]).success();
    begin(&lab, "app");
    assert_eq!(exec("app", COUNT), "1\n");

    let forks = msb(&["fork", "app", "2"]).success();
    assert_eq!(forks, "app-1\napp-2\n");
    assert_eq!(exec("app-1", COUNT), "2\n");
    assert_eq!(exec("app-1", COUNT), "3\n");
    assert_eq!(exec("app-2", &format!("{COUNT}; hostname")), "2\napp-2\n");
    assert_eq!(exec("app", "hostname"), "app\n");

    assert_eq!(
        msb(&["snapshot", "create", "app", "warm"]).success(),
        "warm\n"
    );
    assert_eq!(exec("app", COUNT), "2\n");
    let listed = msb(&["snapshot", "ls", "--format", "json"]).success();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["name"], "warm");
    assert_eq!(listed[0]["sandbox"], "app");
    assert!(msb(&["snapshot", "ls"]).success().contains("whole"));
    let run = msb(&[
        "run",
        "-q",
        "--from-snapshot",
        "warm",
        "-e",
        "A=5",
        "--",
        "sh",
        "-c",
        &format!("{COUNT}; echo $A"),
    ]);
    assert_eq!(run.success(), "2\n5\n");
    let other = [
        "run",
        "-q",
        "--from-snapshot",
        "warm",
        "-d",
        "--name",
        "other",
    ];
    let program = ["--", "sh", "-c", "echo left > /said; exec sleep 1000"];
    let left = [&other[..], &program].concat();
    assert_eq!(msb(&left).success(), "other\n");
    let said = "until [ -s /said ]; do :; done; cat /said";
    assert_eq!(exec("other", said), "left\n");
    msb(&["rm", "-f", "other"]).success();
    // One that ends at once has been run.
    let short = [&other[..], &["--", "touch", "/run"]].concat();
    assert_eq!(msb(&short).success(), "other\n");
    exec("other", "until [ -e /run ]; do :; done");
    msb(&["rm", "-f", "other"]).success();
    // One that can't be started leaves no sandbox.
    let missing = msb(&[&other[..], &["--", "nonsense"]].concat());
    assert_eq!(missing.code, Some(127), "{missing:?}");
    assert_eq!(msb(&other).success(), "other\n");
    assert_eq!(exec("other", COUNT), "2\n");

    assert_eq!(msb(&["pause", "other"]).success(), "other\n");
    assert!(msb(&["ps"]).success().contains("paused"));
    let held = msb(&["snapshot", "create", "other", "never"]);
    assert_eq!(held.code, Some(125), "{held:?}");
    assert!(held.stderr.contains("paused"), "{held:?}");
    assert_eq!(msb(&["resume", "other"]).success(), "other\n");
    assert_eq!(exec("other", COUNT), "3\n");

    for (args, says) in [
        (
            &["run", "--from-snapshot", "nothing", "--", "true"][..],
            "no snapshot",
        ),
        (&["run", "--from-snapshot", "warm"], "no program"),
        (
            &["run", "--from-snapshot", "../warm", "--", "true"],
            "not a name",
        ),
        (&["snapshot", "create", "app", "warm"], "exists already"),
        (&["snapshot", "create", "app", "a/b"], "not a name"),
        (&["fork", "nobody"], "no sandbox"),
    ] {
        let refused = msb(args);
        assert_eq!(refused.code, Some(125), "{args:?} {refused:?}");
        assert!(refused.stderr.contains(says), "{args:?} {refused:?}");
        // What is wrong with a name says what a right one is.
        let helps = refused.stderr.contains("hint: ") || says == "not a name";
        assert!(helps, "{args:?} {refused:?}");
    }
    msb(&["rm", "-f", "app", "app-1", "app-2", "other"]).success();
    let needed = msb(&["image", "rm", BUSYBOX]);
    assert!(needed.stderr.contains("the snapshot warm"), "{needed:?}");
    // It is neither damaged nor old; then it is old, and then it is damaged.
    let nothing = msb(&["snapshot", "prune", "-y"]).success();
    assert!(nothing.starts_with("no snapshot"), "{nothing}");
    let old = msb(&["snapshot", "prune", "--older-than", "1ms", "-n"]).success();
    assert!(old.starts_with("  warm (made "), "{old}");
    let ram = lab.home().join("snapshots/warm/ram");
    let ram = std::fs::File::options().write(true).open(ram).unwrap();
    ram.write_all_at(b"?", 4096).unwrap();
    let asked = msb(&["snapshot", "prune"]);
    assert!(asked.stderr.contains("msb snapshot prune -y"), "{asked:?}");
    let pruned = msb(&["snapshot", "prune", "-y"]).success();
    assert!(pruned.contains("removed 1 snapshots, "), "{pruned}");
    let gone = msb(&["snapshot", "rm", "warm"]);
    assert!(gone.stderr.contains("no snapshot"), "{gone:?}");
    msb(&["image", "rm", BUSYBOX]).success();
    assert_eq!(lab.sandboxes(), [""; 0]);
}

/// Whoever is killed while a snapshot is made leaves a whole one or none.
#[test]
fn a_supervisor_that_is_killed_leaves_a_whole_snapshot_or_none() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let folder = lab.home().join("snapshots");
    let draft = |part: &str| folder.join(".one.draft").join(part);
    type Reached = fn(&Path) -> bool;
    let exists: Reached = Path::exists;
    let filled: Reached = |path| fs::metadata(path).is_ok_and(|file| file.len() > 0);
    let steps = [
        (draft(""), exists),
        (draft("state"), filled),
        (draft("ram"), exists),
        (draft("about"), exists),
        (draft("meta.json"), exists),
        (folder.join("one"), exists),
    ];
    for (number, (place, reached)) in steps.iter().enumerate() {
        let name = format!("app{number}");
        begin(&lab, &name);
        let (supervisor, vmm) = lab.pids(&name);
        let mut making = lab.msb(["snapshot", "create", &name, "one"]);
        let mut making = making.spawn().expect("spawn");
        until("it is there, or was", || {
            reached(place) || folder.join("one").exists()
        });
        signal(supervisor, "KILL");
        making.wait().expect("wait");
        until("its machine is gone", || !alive(vmm));

        // The name is free, or the snapshot is whole.
        let listed = msb(&["snapshot", "ls", "--format", "json"]).success();
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        if listed.as_array().is_some_and(|list| !list.is_empty()) {
            assert!(listed[0]["damage"].is_null(), "{listed}");
            let run = msb(&[
                "run",
                "-q",
                "--from-snapshot",
                "one",
                "--",
                "sh",
                "-c",
                COUNT,
            ]);
            assert_eq!(run.success(), "1\n");
            msb(&["snapshot", "rm", "one"]).success();
        }
        begin(&lab, "next");
        msb(&["snapshot", "create", "next", "one"]).success();
        msb(&["snapshot", "rm", "one"]).success();
        msb(&["rm", "-f", "next"]).success();
        let left: Vec<_> = fs::read_dir(&folder).expect("read").collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert_eq!(lab.sandboxes(), [""; 0]);
}

/// Whoever is killed while it forks leaves sandboxes that run, or none.
#[test]
fn a_fork_that_is_killed_leaves_whole_sandboxes_or_none() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let sandboxes = lab.home().join("sandboxes");
    let steps = [
        "app/forks",
        "app/forks/1",
        "app-1/sandbox.json",
        "app-1/state.json",
        "app-2",
    ];
    for step in steps {
        begin(&lab, "app");
        let mut forking = lab.msb(["fork", "app", "2"]);
        let mut forking = forking.spawn().expect("spawn");
        until("it is there, or was", || {
            sandboxes.join(step).exists() || forking.try_wait().expect("wait").is_some()
        });
        signal(forking.id(), "KILL");
        forking.wait().expect("wait");
        let names = || {
            lab.sandboxes()
                .into_iter()
                .filter(|name| name.starts_with("app-"))
        };
        until("those that began have ended, or run", || {
            let listed = msb(&["ps", "--format", "json"]).success();
            let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
            let list = listed.as_array().cloned().unwrap_or_default();
            list.iter().all(|one| one["status"] == "running") && names().count() < list.len()
        });
        for name in names() {
            // One that nobody took runs for a moment, and ends.
            until("it answers, or has ended", || {
                let run = msb(&["exec", &name, "--", "sh", "-c", COUNT]);
                if run.code == Some(0) {
                    assert_eq!(run.stdout, "1\n", "{step}");
                    msb(&["rm", "-f", &name]).success();
                }
                run.code == Some(0) || !names().any(|other| other == name)
            });
        }
        // The first one has noticed nothing, and forks.
        let forks = msb(&["fork", "app"]).success();
        assert_eq!(forks, "app-1\n", "{step}");
        msb(&["rm", "-f", "app", "app-1"]).success();
        assert_eq!(lab.sandboxes(), [""; 0], "{step}");
    }
}
