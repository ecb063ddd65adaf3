//! Sandboxes as they are left: by the shell that started them, by a host that went down, by a
//! newer version.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::lab::{BUSYBOX, Kept, Lab, alive, finish, until};
use crate::tmux::Screen;

/// What a service answers to a request, when it answers.
fn ask(place: SocketAddr) -> Option<String> {
    let mut client = TcpStream::connect(place).ok()?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn a_service_outlives_the_shell_that_started_it() {
    let lab = Lab::shared();
    let name = format!("service-{}", std::process::id());
    let kept = Kept { lab: &lab, name };
    let name = kept.name.as_str();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let serve = "mkdir -p /srv; echo served > /srv/index.html; exec httpd -f -p 80 -h /srv";
    let screen = Screen::open(&lab);
    screen.enter(&format!(
        "run -q -d -p 127.0.0.1:0:80 --name {name} {BUSYBOX} -- sh -c '{serve}'"
    ));
    screen.sees(name);
    // The shell, and everything else of this terminal.
    drop(screen);
    let told = lab.inspect(name);
    assert_eq!(told["status"], "running", "{told}");
    let place = || -> SocketAddr {
        let told = lab.inspect(name);
        let port = told["ports"][0].as_str().expect("a port");
        let place = port.strip_suffix(":80").expect("the guest's port");
        place.parse().expect("an address")
    };
    let serves = || ask(place()).is_some_and(|answer| answer.ends_with("\r\n\r\nserved\n"));
    until("it serves", serves);
    let list = msb(&["ls"]).success();
    let line = list.lines().find(|line| line.starts_with(name));
    let port = place().to_string();
    let line = line.expect("it is listed");
    assert!(line.contains("running") && line.contains(&port), "{line}");

    msb(&["stop", "-t", "5", name]).success();
    assert_eq!(ask(port.parse().expect("an address")), None);
    let told = lab.inspect(name);
    assert_eq!(
        (&told["status"], &told["failed"]),
        (&"stopped".into(), &false.into())
    );
    msb(&["start", name]).success();
    until("it serves again", serves);
    let (supervisor, vmm) = lab.pids(name);
    msb(&["rm", "-f", name]).success();
    until("nothing is left", || !alive(supervisor) && !alive(vmm));
}

/// Copies a folder as it is at this moment, holes as holes.
fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    finish(cp.args(["-a", "--sparse=always"]).arg(from).arg(to), b"").success();
}

/// The state of a host that went down is what was on its disk: a copy of it, in which everything
/// says that it runs, and nothing does.
#[test]
fn a_host_that_went_down_leaves_sandboxes_that_are_stopped() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    msb(&["create", "-q", "--disk", "64M", "--name", "idle", BUSYBOX]).success();
    let script = "echo begun; sleep 1000";
    msb(&[
        "run", "-q", "--disk", "64M", "--name", "app", "-d", BUSYBOX, "--", "sh", "-c", script,
    ])
    .success();
    msb(&["exec", "app", "--", "sh", "-c", "echo kept > /kept; sync"]).success();
    until("it has begun", || {
        msb(&["logs", "app"]).success() == "begun\n"
    });
    let fleeting = lab
        .msb([
            "run", "-q", "--rm", "--name", "fleeting", BUSYBOX, "--", "sleep", "1000",
        ])
        .spawn();
    let mut fleeting = fleeting.expect("spawn");
    until("it is there", || {
        inspect_status(&lab, "fleeting").as_deref() == Some("running")
    });
    let after = Lab::empty();
    copy(lab.home(), after.home());
    fleeting.kill().expect("kill");
    fleeting.wait().expect("wait");

    let msb = |args: &[&str]| finish(&mut after.msb(args), b"");
    let list = msb(&["ls", "--format", "json"]).success();
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let names: Vec<_> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["name"])
        .collect();
    // One that is not kept went with its host.
    assert_eq!(names, ["app", "idle"]);
    for name in ["app", "idle"] {
        let told = after.inspect(name);
        assert_eq!(told["status"], "stopped", "{told}");
        let reason = told["reason"].as_str().expect("a reason");
        assert!(reason.contains("the host was restarted"), "{told}");
        let refused = msb(&["exec", name, "true"]);
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert!(
            refused.stderr.contains(&format!("msb start {name}")),
            "{refused:?}"
        );
        // The processes that the copy names are somebody else's now.
        assert_eq!(msb(&["kill", name]).code, Some(125));
        msb(&["start", name]).success();
        msb(&["exec", name, "--", "true"]).success();
    }
    assert_eq!(
        msb(&["exec", "app", "--", "cat", "/kept"]).success(),
        "kept\n"
    );
    assert_eq!(after.sandboxes().len(), 2, "{:?}", after.sandboxes());
    msb(&["rm", "-f", "app", "idle"]).success();
    // Nothing happened to those of before.
    for name in ["app", "idle"] {
        assert_eq!(inspect_status(&lab, name).as_deref(), Some("running"));
    }
    finish(&mut lab.msb(["rm", "-f", "app", "idle"]), b"").success();
}

fn inspect_status(lab: &Lab, name: &str) -> Option<String> {
    let told = finish(&mut lab.msb(["inspect", name]), b"");
    let told: serde_json::Value = serde_json::from_str(&told.stdout).ok()?;
    told[0]["status"].as_str().map(str::to_owned)
}

#[test]
fn what_a_newer_version_wrote_is_refused_and_stays_as_it_is() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
    msb(&["stop", "-t", "0", "app"]).success();
    for name in ["sandbox.json", "state.json"] {
        let file = lab.home().join("sandboxes/app").join(name);
        let before = fs::read_to_string(&file).expect("a file");
        let newer = before.replace("\"version\": 1,", "\"version\": 2, \"new\": [],");
        assert_ne!(before, newer);
        fs::write(&file, &newer).expect("write");
        let list = msb(&["ls"]).success();
        assert!(list.contains("unreadable"), "{list}");
        let other = ["cp", "app:/etc/passwd", "."];
        let commands = [
            &["start", "app"][..],
            &["stop", "app"],
            &["restart", "app"],
            &["exec", "app", "true"],
            &["rm", "app"],
            &["rm", "-f", "app"],
            &other,
            &["run", "-q", "--name", "app", BUSYBOX, "--", "true"],
        ];
        for words in commands {
            // One that is stopped is so whatever its state says otherwise.
            if words[0] == "stop" && name == "state.json" {
                continue;
            }
            let refused = msb(words);
            assert_eq!(refused.code, Some(125), "{words:?}: {refused:?}");
            if !matches!(words[0], "run" | "exec" | "cp") || name == "sandbox.json" {
                let told = refused.stderr.contains("is of version 2");
                assert!(told, "{words:?}: {refused:?}");
            }
        }
        assert_eq!(fs::read_to_string(&file).expect("it stays"), newer);
        fs::write(&file, before).expect("write");
    }
    msb(&["start", "app"]).success();
    msb(&["rm", "-f", "app"]).success();
}
