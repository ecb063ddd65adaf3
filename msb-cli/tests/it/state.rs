//! What stays of a sandbox, and what does not: images that are needed, interrupted starts,
//! ends that cross each other.

use std::io::Read;
use std::process::{Child, Stdio};

use crate::lab::{BUSYBOX, Lab, alive, children, finish, signal, until, wait};

/// Reads until the program says that it is up.
fn until_up(msb: &mut Child) {
    let mut up = [0; 3];
    let stdout = msb.stdout.as_mut().expect("stdout");
    stdout.read_exact(&mut up).expect("the program starts");
}

#[test]
fn a_kept_sandbox_keeps_its_image() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
    msb(&["stop", "-t", "0", "app"]).success();
    let refused = msb(&["image", "rm", BUSYBOX]);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("the sandbox app"), "{refused:?}");
    assert!(refused.stderr.contains("hint"), "{refused:?}");
    msb(&["start", "app"]).success();
    // While it runs, nothing removes it.
    assert_eq!(msb(&["image", "rm", "-f", BUSYBOX]).code, Some(125));
    msb(&["stop", "-t", "0", "app"]).success();

    msb(&["image", "rm", "-f", BUSYBOX]).success();
    let gone = msb(&["start", "app"]);
    assert_eq!(gone.code, Some(125), "{gone:?}");
    assert!(gone.stderr.contains("is gone"), "{gone:?}");
    // The same digest, and it is as it was.
    lab.import("busybox", BUSYBOX);
    msb(&["start", "app"]).success();
    msb(&["rm", "-f", "app"]).success();
    msb(&["image", "rm", BUSYBOX]).success();
    let blobs = std::fs::read_dir(lab.home().join("blobs/sha256")).expect("blobs");
    assert_eq!(blobs.count(), 0);
}

/// Ending and removing need no image, whatever became of it.
#[test]
fn a_sandbox_whose_image_is_gone_is_stopped_and_removed_all_the_same() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    for end in ["stop", "kill"] {
        lab.import("busybox", BUSYBOX);
        msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
        // As somebody who does not know better.
        for images in std::fs::read_dir(lab.home().join("images")).expect("images") {
            std::fs::remove_dir_all(images.expect("entry").path()).expect("remove");
        }
        msb(&[end, "app"]).success();
        msb(&["rm", "app"]).success();
    }
    assert_eq!(lab.sandboxes(), [""; 0]);
}

#[test]
fn what_a_kept_sandbox_wrote_survives_the_kill_of_its_command() {
    let lab = Lab::own();
    let mut msb = lab
        .msb(["run", "-q", "--name", "app", BUSYBOX, "--", "sh", "-c"])
        .arg("echo kept > /root/file; echo up; sleep 1000")
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    until_up(&mut msb);
    let supervisor = children(msb.id())[0];
    msb.kill().expect("kill");
    msb.wait().expect("wait");
    until("the supervisor is gone", || !alive(supervisor));
    let told = finish(&mut lab.msb(["inspect", "app"]), b"").success();
    assert!(told.contains("its creator ended"), "{told}");
    finish(&mut lab.msb(["start", "app"]), b"").success();
    let file = finish(&mut lab.msb(["exec", "app", "cat", "/root/file"]), b"");
    assert_eq!(file.success(), "kept\n");
    finish(&mut lab.msb(["rm", "-f", "app"]), b"").success();
}

/// Either the command has printed the name and the sandbox is there, or nothing is.
#[test]
fn an_interrupted_start_leaves_nothing() {
    let lab = Lab::own();
    lab.sh("true").success(); // makes the templates
    let mut interrupted = 0;
    for delay in (0..400).step_by(25) {
        let msb = lab
            .msb([
                "run", "-q", "--name", "app", "-d", BUSYBOX, "--", "sleep", "1000",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawn");
        std::thread::sleep(std::time::Duration::from_millis(delay));
        signal(msb.id(), "INT");
        let output = wait(msb);
        let there = || {
            let list = finish(&mut lab.msb(["ls", "-q"]), b"").success();
            list.contains("app")
        };
        if output.stdout.is_empty() {
            interrupted += 1;
            until("nothing is left of it", || !there());
            // What was there before anybody looked after it goes with the next look.
            until("its folder is gone", || {
                !there() && lab.sandboxes().is_empty()
            });
        } else {
            assert!(there());
            finish(&mut lab.msb(["rm", "-f", "app"]), b"").success();
        }
    }
    // The first of them comes before anything is there.
    assert!(interrupted > 0);
}

#[test]
fn an_impatient_stop_shortens_a_patient_one() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let script = "trap '' TERM; echo up; sleep 100000";
    msb(&[
        "run", "-q", "--name", "app", "-d", BUSYBOX, "--", "sh", "-c", script,
    ])
    .success();
    until("the program is up", || {
        msb(&["logs", "app"]).success() == "up\n"
    });
    let patient = lab
        .msb(["stop", "-t", "10000", "app"])
        .spawn()
        .expect("spawn");
    until("it is being stopped", || {
        msb(&["inspect", "app"]).success().contains("stopping")
    });
    msb(&["stop", "-t", "0", "app"]).success();
    assert_eq!(wait(patient).status.code(), Some(0));
    msb(&["rm", "app"]).success();
}

/// `logs -f` sees what comes, and ends with the sandbox.
#[test]
fn a_log_is_followed() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let script = "echo up; while ! [ -e /go ]; do sleep 0.1; done; echo on; sleep 1000";
    msb(&[
        "run", "-q", "--name", "app", "-d", BUSYBOX, "--", "sh", "-c", script,
    ])
    .success();
    let mut follower = lab
        .msb(["logs", "-f", "app"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    until_up(&mut follower);
    msb(&["exec", "app", "touch", "/go"]).success();
    until_up(&mut follower);
    msb(&["stop", "-t", "0", "app"]).success();
    assert_eq!(wait(follower).status.code(), Some(0));
    msb(&["rm", "app"]).success();
}
