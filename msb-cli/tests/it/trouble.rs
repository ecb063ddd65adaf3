//! What runs out or breaks is said: memory, disks, the machine.

use std::process::{Command, Stdio};

use crate::lab::{
    BUSYBOX, Kept, Lab, PANIC, PYTHON, Run, alive, finish, image_layout, signal, text, until, wait,
};

/// Takes memory in steps of this many bytes until it is stopped.
fn hog(step: usize) -> String {
    format!("x=[]\nwhile True: x.append(bytearray({step}))")
}

fn kept<'a>(lab: &'a Lab, name: &str, args: &[&str], image: &str) -> Kept<'a> {
    let name = format!("{name}-{}", std::process::id());
    let mut command = lab.msb(["create", "-q", "--name", &name]);
    finish(command.args(args).arg(image), b"").success();
    Kept { lab, name }
}

impl Kept<'_> {
    fn exec(&self, words: &[&str]) -> Run {
        finish(self.lab.msb(["exec", &self.name, "--"]).args(words), b"")
    }

    fn inspect(&self) -> serde_json::Value {
        self.lab.inspect(&self.name)
    }
}

#[test]
fn a_program_that_takes_all_memory_is_told_so_and_the_sandbox_goes_on() {
    let lab = Lab::with_python();
    let kept = kept(&lab, "hog", &["-m", "256M"], PYTHON);
    let memory = "out of memory: a process was killed (the sandbox has 256 MiB";
    let run = kept.exec(&["python3", "-c", &hog(1 << 20)]);
    assert_eq!(run.code, Some(137), "{run:?}");
    assert!(run.stderr.contains(memory), "{run:?}");
    // One that its shell has started.
    let script = format!("python3 -c '{}'; exit 3", hog(1 << 16));
    let run = kept.exec(&["sh", "-c", &script]);
    assert_eq!(run.code, Some(3), "{run:?}");
    assert!(run.stderr.contains(memory), "{run:?}");
    // Those that have nothing to do with it are not blamed on it.
    let run = kept.exec(&["sh", "-c", "exit 3"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(3), ""), "{run:?}");
    let troubles = kept.inspect()["troubles"].clone();
    assert_eq!(troubles[0]["kind"], "out-of-memory", "{troubles}");
    assert_eq!(troubles[0]["count"], 2, "{troubles}");
    assert!(
        troubles[0]["message"]
            .as_str()
            .is_some_and(|text| text.contains("python3"))
    );
}

#[test]
fn a_full_disk_is_told() {
    let lab = Lab::shared();
    let fill = "dd if=/dev/zero of=/f bs=1M 2>/dev/null";
    let run = finish(
        lab.msb(["run", "-q", "-m", "128M", BUSYBOX, "--"])
            .args(["sh", "-c", fill]),
        b"",
    );
    assert_ne!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("msb: the disk is full"), "{run:?}");
    assert!(run.stderr.contains("--disk gives it a disk"), "{run:?}");

    let kept = kept(&lab, "full", &["--disk", "64M"], BUSYBOX);
    let run = kept.exec(&["sh", "-c", fill]);
    assert!(run.stderr.contains("msb: the disk is full"), "{run:?}");
    assert!(run.stderr.contains("larger --disk"), "{run:?}");
    let troubles = kept.inspect()["troubles"].clone();
    assert_eq!(troubles[0]["kind"], "disk-full", "{troubles}");
    let run = kept.exec(&["sh", "-c", "rm /f; exit 4"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(4), ""), "{run:?}");
}

/// The host's disk is a small one in a mount name space of its own.
#[test]
fn a_full_disk_of_the_host_is_told_and_nothing_hangs() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root may mount");
        return;
    }
    let lab = Lab::empty();
    let script = r#"
        set -e
        mkdir -p "$MSB_HOME/sandboxes"
        mount -t tmpfs -o size=64m none "$MSB_HOME/sandboxes"
        "$MSB" pull -q --from "$LAYOUT" "$IMAGE"
        "$MSB" run -q -m 128M --disk 1G "$IMAGE" -- sh -c 'dd if=/dev/zero of=/f bs=1M count=400 conv=fsync'
    "#;
    let mut command = Command::new("unshare");
    for (name, value) in lab.msb::<&str>([]).get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
        .args(["--mount", "sh", "-c", script])
        .env("MSB", env!("CARGO_BIN_EXE_msb"))
        .env("LAYOUT", image_layout("busybox"))
        .env("IMAGE", BUSYBOX);
    let run = finish(&mut command, b"");
    assert_ne!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("msb: the disk failed"), "{run:?}");
    assert!(run.stderr.contains("this host's disk is full"), "{run:?}");
}

#[test]
fn a_machine_that_crashes_is_told_to_whom_it_concerns() {
    let lab = Lab::shared();
    let kept = kept(&lab, "crash", &[], BUSYBOX);
    let (supervisor, vmm) = lab.pids(&kept.name);
    let mut exec = lab.msb(["exec", &kept.name, "--", "sh", "-c", "echo up; sleep 1000"]);
    let mut exec = exec
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut up = [0; 3];
    let stdout = exec.stdout.as_mut().expect("stdout");
    std::io::Read::read_exact(stdout, &mut up).expect("the program starts");
    signal(vmm, "KILL");
    let output = wait(exec);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("the VMM was killed by signal 9"),
        "{stderr}"
    );
    until("it is over", || !alive(supervisor));
    let told = kept.inspect();
    assert_eq!(told["failed"], true, "{told}");
    assert_eq!(told["reason"], "the VMM was killed by signal 9", "{told}");
}

#[test]
fn a_kernel_that_panics_is_told_as_that() {
    let lab = Lab::shared();
    let kept = kept(&lab, "panic", &["--disk", "64M"], BUSYBOX);
    let (supervisor, _) = lab.pids(&kept.name);
    // Before that it has said more than anybody keeps, also that it panics.
    let noise = "echo on >/proc/sys/kernel/printk_devkmsg; for line in $(seq 1000); do echo \"<0>Kernel panic - not syncing: $(seq -s - 60)\"; \
                 done >/dev/kmsg";
    kept.exec(&["sh", "-c", noise]).success();
    let run = kept.exec(&["sh", "-c", PANIC]);
    assert_eq!(run.code, Some(125), "{run:?}");
    let panic = "the guest's kernel panicked: Attempted to kill init!";
    assert!(run.stderr.contains(panic), "{run:?}");
    until("it is over", || !alive(supervisor));
    let told = kept.inspect();
    assert_eq!(
        (&told["status"], &told["failed"]),
        (&"stopped".into(), &true.into())
    );
    let reason = told["reason"].as_str().expect("a reason");
    assert!(reason.starts_with(panic), "{told}");
    // Where it was, in the sandbox's folder.
    let log = lab.home().join("sandboxes").join(&kept.name).join("log");
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(log.contains("Kernel panic - not syncing"), "{log}");
    // Next time it is as any other.
    finish(&mut lab.msb(["start", &kept.name]), b"").success();
    assert_eq!(kept.exec(&["echo", "ran"]).success(), "ran\n");
    // One that root in the guest has ended is none.
    let run = kept.exec(&["busybox", "reboot", "-f"]);
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("the guest shut down"), "{run:?}");
}

/// However many processes one command has, another gets its share of the processor.
#[test]
fn a_fork_bomb_keeps_no_other_command_from_its_turn() {
    let lab = Lab::shared();
    let kept = kept(&lab, "bomb", &["-m", "256M"], BUSYBOX);
    let mut bomb = lab.msb(["exec", &kept.name, "--", "sh", "-c"]);
    bomb.arg("f() { f | f & }; f; sleep 1000");
    let mut bomb = bomb.stderr(Stdio::null()).spawn().expect("spawn");
    until("there are many", || {
        let mut metrics = lab.msb(["metrics", "--format", "json", &kept.name]);
        let told: serde_json::Value =
            serde_json::from_str(&finish(&mut metrics, b"").success()).expect("JSON");
        told[0]["guest"]["processes"].as_u64() > Some(200)
    });
    for _ in 0..3 {
        assert_eq!(kept.exec(&["echo", "ran"]).success(), "ran\n");
    }
    bomb.kill().expect("kill");
    bomb.wait().expect("wait");
}

/// Takes threads until there are no more, and keeps them.
const THREADS: &str = "
import _thread, time
_thread.stack_size(65536)
try:
    while True:
        _thread.start_new_thread(time.sleep, (1e6,))
except RuntimeError:
    print('no more', flush=True)
time.sleep(1e6)
";

/// However many threads one command has, the agent and other commands get theirs.
#[test]
fn a_command_with_all_threads_leaves_some_to_others() {
    let lab = Lab::with_python();
    let kept = kept(&lab, "threads", &["-m", "512M"], PYTHON);
    let mut taker = lab.msb(["exec", &kept.name, "--", "python3", "-c", THREADS]);
    let mut taker = taker.stdout(Stdio::piped()).spawn().expect("spawn");
    let mut told = [0; 8];
    let stdout = taker.stdout.as_mut().expect("stdout");
    std::io::Read::read_exact(stdout, &mut told).expect("it has all");
    assert_eq!(&told, b"no more\n");
    for _ in 0..3 {
        let pipes = "seq 1 100 | sort -n | tail -n 1";
        assert_eq!(kept.exec(&["sh", "-c", pipes]).success(), "100\n");
    }
    taker.kill().expect("kill");
    taker.wait().expect("wait");
}
