//! The runner as a process, and what is made of its answers.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::machine::{Card, Disk, MAX_MTU, PortName};

fn machine() -> Machine {
    Machine {
        ports: vec![PortName::try_from("msb.agent").unwrap()],
        network: Some(Card {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: MAX_MTU,
        }),
        disks: vec![Disk {
            path: "disk".into(),
            format: DiskFormat::Raw,
            read_only: false,
        }],
        ..Machine::new("/guest/vmlinux", "/guest/initramfs")
    }
}

#[test]
fn a_machine_becomes_a_configuration() {
    let machine = machine();
    let (_, theirs) = ends::make(&machine).unwrap();
    let config = config(&machine, &theirs).unwrap();
    assert_eq!(config.memory, machine.memory);
    assert!(config.disks[0].path.is_absolute());
    assert!(config.cmdline.contains("reboot=t"), "{}", config.cmdline);
    assert!(!config.cmdline.contains("tsc_early_khz"));
    assert_eq!(config.ports[0].1, theirs.ports[0].as_raw_fd());
    let (mac, fd) = config.network.unwrap();
    assert_eq!(mac, [2, 0, 0, 0, 0, 1]);
    assert_eq!(fd, theirs.network.unwrap().as_raw_fd());
}

#[test]
fn what_the_library_cannot_do_is_said_before_anything_is_started() {
    let mut machine = machine();
    machine.disks[0].format = DiskFormat::Vmdk;
    let (_, theirs) = ends::make(&machine).unwrap();
    let refused = config(&machine, &theirs).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");

    machine.disks.clear();
    machine.extra_cmdline = vec!["x".repeat(MAX_CMDLINE)];
    let refused = config(&machine, &theirs).unwrap_err();
    assert!(matches!(refused, Error::TooMany { .. }), "{refused}");
}

#[test]
fn each_fault_names_what_it_is_about() {
    let machine = machine();
    let (_, theirs) = ends::make(&machine).unwrap();
    let config = config(&machine, &theirs).unwrap();
    let file = |part| Fault::File { part, errno: 13 };
    for (fault, words) in [
        (file(Part::Kvm), "/dev/kvm"),
        (file(Part::Kernel), "/guest/vmlinux"),
        (file(Part::Initramfs), "/guest/initramfs"),
        (file(Part::Disk(0)), "/disk"),
        (file(Part::Disk(7)), "disk 7"),
        (Fault::InUse { disk: 0 }, "locked"),
        (Fault::NoLibrary, "without libkrun"),
        (
            Fault::Configuration {
                reason: "it is none".into(),
            },
            "it is none",
        ),
        (
            Fault::Library {
                call: "krun_start_enter".into(),
                errno: 22,
            },
            "krun_start_enter",
        ),
    ] {
        let text = failed(fault, &config).to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_program_that_is_no_runner_is_reported_with_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["vmlinux", "initramfs", "disk"] {
        fs::write(path(name), "").unwrap();
    }
    let machine = Machine {
        kernel: path("vmlinux"),
        initramfs: path("initramfs"),
        disks: Vec::new(),
        ..machine()
    };
    let program = ["/bin/false", "/usr/bin/false"].map(PathBuf::from);
    let program = program.into_iter().find(|path| path.exists());
    let error = Krun::find(program).unwrap().boot(&machine).unwrap_err();
    assert!(matches!(error, Error::ExitedEarly { .. }), "{error}");
}
