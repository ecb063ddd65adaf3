//! Sandboxes that a file describes.

use std::fs;

use crate::lab::{BUSYBOX, Lab, finish};

#[test]
fn a_file_describes_what_runs_and_flags_go_ahead() {
    let lab = Lab::shared();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("sandbox.yaml");
    fs::write(dir.path().join("app.conf"), "key=value\n").expect("a file");
    fs::write(
        &file,
        format!(
            "# A comment.
image: {BUSYBOX}
memory_mib: 256
env: {{MODE: file, PORT: 8080}}
workdir: /srv/app
network: |
  preset none
patches:
  - path: /etc/app.conf
    action: {{file: app.conf}}
    mode: 0o600
  - {{path: /etc/more, action: {{append: \"more\\n\"}}}}
scripts:
  greet: |
    #!/bin/sh
    echo hello from a script
command: [sh, -c, 'echo the command of the file']
"
        ),
    )
    .expect("a file");
    let file = file.to_str().expect("UTF-8");
    let script =
        "pwd; echo $MODE $PORT; cat /etc/app.conf /etc/more; stat -c %a /etc/app.conf; greet";
    let run = finish(
        &mut lab.msb(["run", "-q", "-f", file, "--", "sh", "-c", script]),
        b"",
    );
    assert_eq!(
        run.success(),
        "/srv/app\nfile 8080\nkey=value\nmore\n600\nhello from a script\n"
    );
    let run = finish(&mut lab.msb(["run", "-q", "-f", file]), b"");
    assert_eq!(run.success(), "the command of the file\n");
    let flags = ["-e", "MODE=flag", "-w", "/tmp", "--image", BUSYBOX];
    let mut command = lab.msb(["run", "-q", "-f", file]);
    command
        .args(flags)
        .args(["--", "sh", "-c", "pwd; echo $MODE $PORT"]);
    assert_eq!(finish(&mut command, b"").success(), "/tmp\nflag 8080\n");

    let run = finish(&mut lab.msb(["run", "-f", file, "ls", "-n", "/"]), b"");
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("after `--`"), "{run:?}");

    // What the state says of a sandbox may be given as a file.
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    assert_eq!(
        msb(&["create", "-q", "-f", file, "--name", "app"]).success(),
        "app\n"
    );
    let told: serde_json::Value =
        serde_json::from_str(&msb(&["inspect", "app"]).success()).expect("JSON");
    let spec = told[0]["spec"].as_object().expect("a spec");
    assert_eq!(
        (&spec["memory_mib"], &spec["name"]),
        (&256.into(), &"app".into())
    );
    let again = dir.path().join("again.json");
    fs::write(&again, told[0]["spec"].to_string()).expect("a file");
    msb(&["rm", "-f", "app"]).success();
    let again = again.to_str().expect("UTF-8");
    assert_eq!(
        msb(&["exec", "-f", again, "app", "cat", "/etc/more"]).success(),
        "more\n"
    );
    msb(&["rm", "-f", "app"]).success();
}

#[test]
fn mistakes_in_a_file_are_told_with_their_place() {
    let lab = Lab::empty();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("sandbox.yaml");
    let file = file.to_str().expect("UTF-8");
    for (text, parts) in [
        (
            "image: a\nmemroy_mib: 512\n",
            &[
                "sandbox.yaml:2:1: there is no key \"memroy_mib\"",
                "did you mean `memory_mib`?",
            ][..],
        ),
        ("image: a\ncpus: two\n", &["sandbox.yaml:2:7: ", "number"]),
        ("image: a\ncpus: 0\n", &["cpus cannot be 0"]),
        ("cpus: 1\n", &["names no image", "image: python:3.12"]),
        ("image: [\n", &["sandbox.yaml:", "no YAML"]),
        (
            "image: a\nnetwork: |\n  alow any\n",
            &["sandbox.yaml:", "alow"],
        ),
    ] {
        fs::write(file, text).expect("a file");
        let run = finish(&mut lab.msb(["run", "-f", file, "--", "true"]), b"");
        assert_eq!(run.code, Some(125), "{run:?}");
        for part in parts {
            assert!(
                run.stderr.contains(part),
                "{part:?} is missing in: {}",
                run.stderr
            );
        }
    }
    let run = finish(&mut lab.msb(["create", "-f", "/nonexistent"]), b"");
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("/nonexistent"), "{}", run.stderr);
    assert_eq!(lab.sandboxes(), [""; 0]);
}
