//! Programs, their input, output, environment and end.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::process::Stdio;

use crate::lab::{BUSYBOX, Lab, PYTHON, finish, image_layout, text, wait};

#[test]
fn a_program_runs_and_its_output_comes_out() {
    let lab = Lab::shared();
    let run = lab.sh("echo out; echo err >&2");
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (Some(0), "out\n", "err\n")
    );
    assert_eq!(
        lab.sandboxes()
            .iter()
            .filter(|name| !name.starts_with("run-"))
            .count(),
        0
    );
}

#[test]
fn python_says_hello() {
    let lab = Lab::with_python();
    let run = finish(
        &mut lab.msb([
            "run",
            "-q",
            PYTHON,
            "--",
            "python3",
            "-c",
            "print('Hello from a microVM!')",
        ]),
        b"",
    );
    assert_eq!(run.success(), "Hello from a microVM!\n");
}

/// Templates hold what their guest has read of an image.
#[test]
fn an_image_that_took_anothers_name_is_what_runs() {
    let lab = Lab::empty();
    let here = |lab: &Lab| {
        let script = "test -e /usr/bin/python3 && echo python || echo busybox";
        finish(
            &mut lab.msb(["run", "-q", "changing", "--", "sh", "-c", script]),
            b"",
        )
        .success()
    };
    for layout in ["busybox", "python", "busybox"] {
        let from = image_layout(layout);
        let pull = ["pull", "-q", "--from"].map(OsStr::new);
        let words = pull
            .into_iter()
            .chain([from.as_os_str(), OsStr::new("changing")]);
        finish(&mut lab.msb(words), b"").success();
        assert_eq!(here(&lab), format!("{layout}\n"));
    }
}

#[test]
fn exit_codes_are_the_programs() {
    let lab = Lab::shared();
    assert_eq!(lab.sh("exit 0").code, Some(0));
    assert_eq!(lab.sh("exit 7").code, Some(7));
    assert_eq!(lab.sh("exit 255").code, Some(255));
    assert_eq!(lab.sh("kill -9 $$").code, Some(128 + 9));
    assert_eq!(lab.sh("kill -TERM $$").code, Some(128 + 15));
}

#[test]
fn programs_that_cannot_run_have_their_codes() {
    let lab = Lab::shared();
    let missing = lab.run(["no-such-program"]);
    assert_eq!(missing.code, Some(127), "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    let text_file = lab.run(["/etc/not-executable"]);
    assert_eq!(text_file.code, Some(126), "{text_file:?}");
    let folder = lab.run(["/etc"]);
    assert_eq!(folder.code, Some(126), "{folder:?}");
}

#[test]
fn input_is_piped_and_ends() {
    let lab = Lab::shared();
    let run = finish(
        &mut lab.msb(["run", "-q", BUSYBOX, "--", "wc", "-c"]),
        &vec![b'x'; 3_000_000],
    );
    assert_eq!(run.success().trim(), "3000000");
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut child = lab
        .msb(["run", "-q", BUSYBOX, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    let sent = binary.clone();
    let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &sent));
    let output = wait(child);
    feeder.join().expect("join").expect("write");
    assert_eq!(output.stdout, binary);
}

#[test]
fn a_program_that_ignores_its_input_does_not_hang() {
    let lab = Lab::shared();
    let run = finish(
        &mut lab.msb(["run", "-q", BUSYBOX, "--", "true"]),
        &vec![b'x'; 5_000_000],
    );
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn a_hundred_megabytes_pass_a_slow_reader_unharmed() {
    let lab = Lab::shared();
    let script = "dd if=/dev/zero bs=1M count=100 2>/dev/null; echo end";
    let mut child = lab
        .msb(["run", "-q", BUSYBOX, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut stdout = child.stdout.take().expect("stdout");
    // Small reads, and a pause before the first, so that every buffer fills.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (mut total, mut last, mut chunk) = (0_u64, Vec::new(), vec![0; 3_001]);
    loop {
        let count = stdout.read(&mut chunk).expect("read");
        if count == 0 {
            break;
        }
        total += count as u64;
        last = chunk[..count].to_vec();
    }
    assert_eq!(wait(child).status.code(), Some(0));
    assert_eq!(total, 100 * 1024 * 1024 + 4);
    assert!(text(&last).ends_with("end\n"));
}

#[test]
fn the_reader_may_go_away() {
    let lab = Lab::shared();
    let mut child = lab
        .msb(["run", "-q", BUSYBOX, "--", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut first = [0; 2];
    child
        .stdout
        .take()
        .expect("stdout")
        .read_exact(&mut first)
        .expect("read");
    assert_eq!(&first, b"y\n");
    assert_eq!(wait(child).status.code(), Some(128 + 13));
}

#[test]
fn environment_workdir_and_user_are_as_asked() {
    let lab = Lab::shared();
    let mut command = lab.msb([
        "run",
        "-q",
        "-e",
        "A=one two",
        "-e",
        "FROM_HERE",
        "-e",
        "NOT_SET",
        "-w",
        "/made/for/it",
        "-u",
        "user",
    ]);
    command
        .env("FROM_HERE", "x")
        .env_remove("NOT_SET")
        .args([BUSYBOX, "--", "sh", "-c"]);
    let run = finish(
        command.arg("echo \"$A|$FROM_HERE|${NOT_SET-unset}|$(pwd)|$(id -un)|$(id -G)|$HOME\""),
        b"",
    );
    assert_eq!(
        run.success(),
        "one two|x|unset|/made/for/it|user|1000 2000|/home/user\n"
    );
    let by_number = finish(
        lab.msb(["run", "-q", "-u", "1234:99", BUSYBOX, "--", "id"])
            .stdin(Stdio::null()),
        b"",
    );
    let by_number = by_number.success();
    assert!(by_number.starts_with("uid=1234 gid=99"), "{by_number}");
}

#[test]
fn an_unknown_user_is_an_error_that_names_it() {
    let lab = Lab::shared();
    let run = finish(
        &mut lab.msb(["run", "-q", "-u", "nobody-here", BUSYBOX, "--", "id"]),
        b"",
    );
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("nobody-here"), "{run:?}");
}

#[test]
fn the_images_own_command_runs_without_one() {
    let lab = Lab::shared();
    let run = finish(
        &mut lab.msb(["run", "-q", BUSYBOX]),
        b"echo from the shell\nexit 3\n",
    );
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(3), "from the shell\n")
    );
}

#[test]
fn the_guest_has_what_programs_expect() {
    let lab = Lab::shared();
    let out = lab
        .sh("set -e
            test -c /dev/null && test -c /dev/urandom && test -e /dev/ptmx && test -d /dev/pts && test -d /dev/shm
            test -r /proc/self/status && test -d /sys/class && test -f /sys/fs/cgroup/cgroup.controllers
            echo x > /dev/shm/a && echo y > /tmp/b && echo z > /etc/c
            test \"$(readlink /proc/self/fd/0)\" != ''
            grep -q localhost /etc/hosts
            hostname | grep -q '^run-'
            grep -w cpu /sys/fs/cgroup/cgroup.controllers | grep -q memory
            echo good")
        .success();
    assert_eq!(out, "good\n");
}

#[test]
fn two_sandboxes_share_no_identity() {
    let lab = Lab::shared();
    let script = "cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id /etc/machine-id
        od -An -N16 -tx1 /dev/urandom; hostname; date +%s";
    let before = now();
    let runs = [lab.sh(script).success(), lab.sh(script).success()];
    let after = now();
    let lines: Vec<Vec<&str>> = runs.iter().map(|run| run.lines().collect()).collect();
    for row in 0..5 {
        assert_ne!(lines[0][row], lines[1][row], "{lines:?}");
        assert!(!lines[0][row].trim().is_empty(), "{lines:?}");
    }
    for guest in &lines {
        let clock: u64 = guest[5].parse().expect("seconds");
        assert!(
            (before.saturating_sub(1)..=after + 1).contains(&clock),
            "{clock} is not in {before}..{after}"
        );
    }
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("clock")
        .as_secs()
}

#[test]
fn a_disk_takes_what_memory_would_not() {
    let lab = Lab::shared();
    let script = "df -k / | tail -1 | tr -s ' ' | cut -d' ' -f2; dd if=/dev/zero of=/big bs=1M count=200 2>&1 | tail -1; sync; wc -c < /big";
    let run = finish(
        &mut lab.msb([
            "run", "-q", "-m", "128M", "--disk", "1G", BUSYBOX, "--", "sh", "-c", script,
        ]),
        b"",
    );
    let out = run.success();
    assert!(out.trim_end().ends_with("209715200"), "{out}");
}

#[test]
fn memory_and_cpus_are_as_asked() {
    let lab = Lab::shared();
    let script = "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo | tr -dc 0-9";
    let run = finish(
        &mut lab.msb([
            "run", "-q", "-c", "2", "-m", "256M", BUSYBOX, "--", "sh", "-c", script,
        ]),
        b"",
    );
    let out = run.success();
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("2"));
    let kib: u64 = lines.next().expect("memory").parse().expect("number");
    assert!((200 * 1024..=256 * 1024).contains(&kib), "{kib}");
}

#[test]
fn many_sandboxes_start_at_once() {
    let lab = Lab::shared();
    let children: Vec<_> = (0..6)
        .map(|number| {
            let mut command = lab.msb(["run", "-q", "-m", "128M", BUSYBOX, "--", "sh", "-c"]);
            command
                .arg(format!("hostname; echo {number}"))
                .stdout(Stdio::piped());
            command.spawn().expect("spawn")
        })
        .collect();
    let mut names = BTreeSet::new();
    for (number, child) in children.into_iter().enumerate() {
        let output = wait(child);
        assert_eq!(output.status.code(), Some(0));
        let out = text(&output.stdout);
        let (name, said) = out.split_once('\n').expect("two lines");
        assert_eq!(said.trim(), number.to_string());
        names.insert(name.to_owned());
    }
    assert_eq!(names.len(), 6);
}

#[test]
fn an_unprivileged_user_needs_nothing_from_root() {
    let lab = Lab::shared();
    let user = tempfile::tempdir().expect("tempdir");
    let open = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    };
    open(user.path());
    // Copies, so that it does not matter where this tree lies and who may enter.
    let msb = user.path().join("msb");
    std::fs::copy(env!("CARGO_BIN_EXE_msb"), &msb).expect("copy msb");
    let guest = std::path::PathBuf::from(std::env::var_os("MSB_GUEST").expect("MSB_GUEST"));
    std::fs::create_dir(user.path().join("guest")).expect("mkdir");
    for file in ["vmlinux", "initramfs.cpio"] {
        std::fs::copy(guest.join(file), user.path().join("guest").join(file)).expect("copy");
    }
    let archive = user.path().join("busybox.tar");
    let packed = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(crate::lab::image_layout("busybox"))
        .arg(".")
        .status();
    assert!(packed.expect("tar").success());

    let as_user = |args: &[&str]| {
        let mut command = if rustix::process::getuid().is_root() {
            let mut command = std::process::Command::new("setpriv");
            command
                .args([
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                    "--no-new-privs",
                ])
                .arg(&msb);
            command
        } else {
            std::process::Command::new(&msb)
        };
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", user.path());
        finish(&mut command, b"")
    };
    let archive = archive.to_str().expect("utf-8");
    as_user(&["pull", "-q", "--from", archive, BUSYBOX]).success();
    let out = as_user(&[
        "run",
        "-q",
        BUSYBOX,
        "--",
        "sh",
        "-c",
        "id -u; touch /root/x && stat -c %u /bin/sh",
    ])
    .success();
    assert_eq!(out, "0\n0\n");
    let doctor = as_user(&["doctor"]);
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    drop(lab);
}
