//! Processes killed at bad moments: nothing is left, and the next command works.

use std::io::Read;
use std::process::{Child, Stdio};

use crate::lab::{BUSYBOX, Lab, alive, children, signal, until, wait};

/// A sandbox whose program runs, and its processes.
struct Victim {
    msb: Child,
    supervisor: u32,
    vmm: u32,
}

fn victim(lab: &Lab) -> Victim {
    let mut msb = lab
        .msb([
            "run",
            "-q",
            BUSYBOX,
            "--",
            "sh",
            "-c",
            "echo up; sleep 1000",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut up = [0; 3];
    msb.stdout
        .as_mut()
        .expect("stdout")
        .read_exact(&mut up)
        .expect("the program starts");
    let supervisor = children(msb.id())[0];
    let vmm = children(supervisor)[0];
    Victim {
        msb,
        supervisor,
        vmm,
    }
}

#[track_caller]
fn gone(victim: &Victim) {
    until("the supervisor is gone", || !alive(victim.supervisor));
    until("the machine is gone", || !alive(victim.vmm));
}

#[test]
fn the_command_is_killed() {
    let lab = Lab::shared();
    let mut victim = victim(&lab);
    victim.msb.kill().expect("kill");
    victim.msb.wait().expect("wait");
    gone(&victim);
    lab.sh("true").success();
}

#[test]
fn the_supervisor_is_killed() {
    let lab = Lab::shared();
    let victim = victim(&lab);
    signal(victim.supervisor, "KILL");
    gone(&victim);
    let output = wait(victim.msb);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    lab.sh("true").success();
}

#[test]
fn the_machine_is_killed() {
    let lab = Lab::shared();
    let victim = victim(&lab);
    signal(victim.vmm, "KILL");
    gone(&victim);
    let output = wait(victim.msb);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("signal 9"), "{stderr}");
    lab.sh("true").success();
}

#[test]
fn signals_reach_the_program() {
    let lab = Lab::shared();
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let victim = victim(&lab);
        signal(victim.msb.id(), name);
        let (supervisor, vmm) = (victim.supervisor, victim.vmm);
        assert_eq!(wait(victim.msb).status.code(), Some(code));
        until("nothing is left", || !alive(supervisor) && !alive(vmm));
    }
}

#[test]
fn killed_while_starting() {
    let lab = Lab::shared();
    // At many moments, from before the supervisor is there to after the end.
    for delay in (0..300).step_by(25) {
        let mut msb = lab
            .msb(["run", "-q", BUSYBOX, "--", "true"])
            .spawn()
            .expect("spawn");
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let offspring: Vec<u32> = children(msb.id())
            .into_iter()
            .flat_map(|pid| [vec![pid], children(pid)].concat())
            .collect();
        msb.kill().expect("kill");
        msb.wait().expect("wait");
        until("its processes are gone", || {
            offspring.iter().all(|pid| !alive(*pid))
        });
    }
    lab.sh("true").success();
}

#[test]
fn leftovers_of_killed_supervisors_are_removed_by_the_next_run() {
    let lab = Lab::own();
    let victim = victim(&lab);
    let [name] = &lab.sandboxes()[..] else {
        panic!("{:?}", lab.sandboxes())
    };
    let name = name.clone();
    signal(victim.supervisor, "KILL");
    gone(&victim);
    wait(victim.msb);
    // A process that is gone may have threads that have its lock for a moment yet.
    until("the next run removes it", || {
        lab.sh("true").success();
        !lab.sandboxes().contains(&name)
    });
}
