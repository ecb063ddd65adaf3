//! What a VMM inherits, and when it dies.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use msb_vmm::Exit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

use crate::guest::{Lab, PORT, again, engine, machine, role, run};

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

/// Blocks until a process that may not be a child of ours has ended.
pub(crate) fn wait_for(process: &OwnedFd) {
    let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    poll(&mut fds, None).unwrap();
}

#[test]
fn a_vmm_inherits_nothing_it_is_not_given() {
    let lab = Lab::new();
    let secret = fs::File::create(lab.path("secret")).unwrap();
    // Without the flag that closes it, as a careless program would open it.
    let _leaky = rustix::io::dup(&secret).unwrap();
    let vm = engine().boot(&lab.machine()).unwrap();
    let proc = |what: &str| format!("/proc/{}/{what}", vm.pid());

    let open = fs::read_dir(proc("fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    let open: Vec<_> = open.collect();
    assert!(
        open.iter().all(|target| !target.ends_with("secret")),
        "{open:?}"
    );
    assert_eq!(fs::read(proc("environ")).unwrap(), b"");
    let status = fs::read_to_string(proc("status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = fs::read_to_string(proc("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(
        rustix::process::getpgid(Some(pid(vm.pid()))).unwrap(),
        pid(vm.pid())
    );
}

#[test]
fn a_dropped_machine_is_gone() {
    let lab = Lab::new();
    let vm = engine().boot(&lab.machine()).unwrap();
    let vmm = pid(vm.pid());
    test_kill_process(vmm).unwrap();
    drop(vm);
    assert_eq!(test_kill_process(vmm), Err(rustix::io::Errno::SRCH));
}

#[test]
fn a_killed_machine_says_so() {
    let lab = Lab::new();
    let mut vm = engine().boot(&lab.machine()).unwrap();
    let watched = vm.as_fd().try_clone_to_owned().unwrap();
    vm.kill().unwrap();
    wait_for(&watched);
    assert_eq!(vm.wait().unwrap(), Exit::Killed { signal: 9 });
}

#[test]
fn a_machine_outlives_the_thread_that_started_it() {
    let lab = Lab::new();
    let machine = lab.machine();
    let mut vm = std::thread::spawn(move || engine().boot(&machine).unwrap())
        .join()
        .unwrap();
    let shell = vm.take_port(PORT).unwrap();
    assert_eq!(run(&shell, "echo alive").unwrap(), "alive");
}

#[test]
fn a_machine_dies_with_the_process_that_started_it() {
    if let Some((_, folder)) = role() {
        let vm = engine().boot(&machine(&folder)).unwrap();
        println!("\npid {}", vm.pid());
        // Until killed.
        std::thread::park();
        unreachable!("nobody unparks the thread");
    }
    let lab = Lab::new();
    let name = "confinement::a_machine_dies_with_the_process_that_started_it";
    let mut child = again(name, "start", &lab.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let vmm = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("pid ")?.parse().ok())
        .unwrap();
    let vmm = pidfd_open(pid(vmm), PidfdFlags::empty()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for(&vmm);
}
