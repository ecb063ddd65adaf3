//! `msb metrics`, `msb top`, `msb events`, and bounds of programs.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lab::{BUSYBOX, Lab, finish, signal, until};

/// A command that goes on until it is ended, also when the test has failed.
struct Background(Child);

impl Background {
    fn new(command: &mut Command) -> Self {
        Self(command.spawn().expect("spawn"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_program_whose_time_is_up_is_told_apart_from_others() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let run = msb(&[
        "run",
        "-q",
        "--timeout",
        "200ms",
        BUSYBOX,
        "--",
        "sleep",
        "1000",
    ]);
    assert_eq!(run.code, Some(124), "{run:?}");
    assert_eq!(
        run.stderr,
        "msb: sleep timed out after 200ms and was killed\n"
    );
    msb(&["create", "-q", "--name", "app", BUSYBOX]).success();
    let exec = |flags: &[&str], script: &str| {
        msb(&[&["exec"][..], flags, &["app", "--", "sh", "-c", script]].concat())
    };
    let late = exec(&["--timeout", "0.2"], "sleep 1000");
    assert_eq!(late.code, Some(124), "{late:?}");
    assert_eq!(exec(&["--timeout", "1m"], "exit 3").code, Some(3));
    let limits = ["--ulimit", "nofile=64:128", "--ulimit", "core=0"];
    let told = exec(&limits, "ulimit -Sn; ulimit -Hn; ulimit -c").success();
    assert_eq!(told, "64\n128\n0\n");
    for wrong in [["--timeout", "soon"], ["--ulimit", "files=1"]] {
        let refused = exec(&wrong, "true");
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert!(refused.stderr.contains(wrong[1]), "{refused:?}");
    }
}

#[test]
fn figures_are_shown_and_are_json() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    assert!(msb(&["metrics"]).success().starts_with("NAME"));
    for name in ["one", "two"] {
        let sleeper = ["-d", BUSYBOX, "--", "sleep", "1000"];
        msb(&[&["run", "-q", "--name", name][..], &sleeper].concat()).success();
    }
    let table = msb(&["metrics"]).success();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].contains("CPU %") && lines[1].starts_with("one"),
        "{table}"
    );
    let json = msb(&["metrics", "--format", "json", "two"]).success();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(1));
    assert_eq!(json[0]["name"], "two");
    assert_eq!(json[0]["guest"]["processes"], 1);
    for key in ["cpu_ms", "memory_resident"] {
        assert!(
            json[0]["host"][key].as_u64().is_some_and(|n| n > 0),
            "{json}"
        );
    }
    assert!(json[0]["cpu_percent"].is_number(), "{json}");

    let processes = msb(&["top", "one"]).success();
    assert!(
        processes
            .lines()
            .nth(1)
            .is_some_and(|line| line.ends_with("sleep 1000"))
    );
    let odd = "exec -a \"$(printf 'a\\033[2Jb')\" sleep 1000";
    msb(&[
        "exec",
        "one",
        "--",
        "sh",
        "-c",
        &format!("({odd}) >/dev/null 2>&1 &"),
    ])
    .success();
    let processes = msb(&["top", "one"]).success();
    assert!(!processes.contains('\u{1b}'), "{processes:?}");

    // Until nobody reads any more, and until all have ended.
    let words = [
        "metrics",
        "-w",
        "--interval",
        "50ms",
        "--format",
        "json",
        "one",
    ];
    let mut watch = Background::new(lab.msb(words).stdout(Stdio::piped()));
    let watch = &mut watch.0;
    let mut lines = BufReader::new(watch.stdout.take().expect("stdout")).lines();
    for _ in 0..3 {
        let line = lines.next().expect("a line").expect("a line");
        let sample: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(sample["name"], "one");
    }
    msb(&["kill", "one"]).success();
    for line in lines {
        line.expect("a line");
    }
    assert_eq!(watch.wait().expect("wait").code(), Some(0));
    let none = msb(&["metrics", "none"]);
    assert_eq!(none.code, Some(125));
    assert!(none.stderr.contains("hint: "), "{none:?}");
    let stopped = msb(&["metrics", "one"]);
    assert!(stopped.stderr.contains("msb start one"), "{stopped:?}");
    assert_eq!(msb(&["ps", "-q"]).success(), "two\n");
    assert_eq!(msb(&["ps", "-aq"]).success(), "one\ntwo\n");
}

#[test]
fn events_are_told_as_they_come() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let mut all = Background::new(
        lab.msb(["events", "--format", "json", "app"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let all = &mut all.0;
    // It says so once it sees everything.
    let mut said = BufReader::new(all.stderr.take().expect("stderr"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(
        line.contains("\"app\"") && line.contains("waiting"),
        "{line}"
    );
    msb(&["run", "-q", "--name", "other", BUSYBOX, "--", "true"]).success();
    msb(&["create", "-q", "--name", "app", "--net", "none", BUSYBOX]).success();
    msb(&[
        "exec",
        "app",
        "--",
        "sh",
        "-c",
        "nslookup msb.invalid; exit 3",
    ]);
    let history = ["events", "--since", "1h", "--type", "life", "app"];
    let mut late = Background::new(lab.msb(history).stdout(Stdio::piped()));
    let late = &mut late.0;
    let mut first = String::new();
    let mut lines = BufReader::new(late.stdout.take().expect("stdout"));
    lines.read_line(&mut first).expect("a line");
    assert!(first.contains("Z app created from "), "{first}");
    msb(&["rm", "-f", "app"]).success();
    let mut rest = String::new();
    while !rest.contains("app removed\n") {
        assert!(lines.read_line(&mut rest).expect("a line") > 0, "{rest}");
    }
    assert!(
        rest.contains("app killed\n") && !rest.contains("exec"),
        "{rest}"
    );
    signal(late.id(), "TERM");
    assert_eq!(late.wait().expect("wait").code(), Some(143));

    let mut words = Vec::new();
    let mut lines = BufReader::new(all.stdout.take().expect("stdout")).lines();
    while words.last().is_none_or(|last| last != "removed") {
        let line = lines.next().expect("a line").expect("a line");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(event["sandbox"], "app");
        if event["event"] == "exec-ended" {
            assert_eq!(
                (&event["program"], &event["code"]),
                (&"sh".into(), &3.into())
            );
        }
        words.push(event["event"].as_str().expect("a word").to_owned());
    }
    assert!(words.contains(&"query".to_owned()), "{words:?}");
    words.retain(|word| word != "query");
    let life = [
        "created",
        "started",
        "exec-started",
        "exec-ended",
        "killed",
        "removed",
    ];
    assert_eq!(words, life);
    drop(lines);
    // The next event finds nobody who reads.
    until("it has ended", || {
        msb(&["run", "-q", "--rm", "--name", "app", BUSYBOX, "--", "true"]).success();
        matches!(all.try_wait(), Ok(Some(_)))
    });
    assert_eq!(all.wait().expect("wait").code(), Some(0));
}

/// One whose supervisor lets nobody in, and one whose supervisor says nothing: others are told
/// of all the same, and neither is asked over and over.
#[test]
fn who_does_not_answer_keeps_nobody_from_hearing() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    let asked = Arc::new(AtomicUsize::new(0));
    let mut locks = Vec::new();
    for name in ["closed", "silent"] {
        msb(&["create", "-q", "--disk", "64M", "--name", name, BUSYBOX]).success();
        msb(&["stop", "-t", "0", name]).success();
        // In the place of its supervisor.
        let folder = lab.home().join("sandboxes").join(name);
        let lock = std::fs::File::open(folder.join("lock")).expect("a lock");
        lock.lock().expect("nobody else has it");
        locks.push(lock);
        let socket = UnixListener::bind(folder.join("control")).expect("bind");
        let asked = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for client in socket.incoming() {
                asked.fetch_add(1, Ordering::Relaxed);
                kept.extend(client.ok().filter(|_| name == "silent"));
            }
        });
    }
    let mut events = Background::new(
        lab.msb(["events", "--type", "life"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let mut lines = BufReader::new(events.0.stdout.take().expect("stdout"));
    until("both were asked", || asked.load(Ordering::Relaxed) >= 2);
    let mut seen = String::new();
    for _ in 0..3 {
        msb(&["run", "-q", "--rm", "--name", "app", BUSYBOX, "--", "true"]).success();
    }
    while seen.matches("app removed\n").count() < 3 {
        assert!(lines.read_line(&mut seen).expect("a line") > 0, "{seen}");
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked <= 4, "asked {asked} times");
    drop(locks);
    msb(&["rm", "-f", "closed", "silent"]).success();
}
