//! Machines booted from their kernel.

use std::fs::{self, File};

use rustix::fs::{FlockOperation, flock};

use msb_vmm::{
    Disk, DiskFormat, Engine, EngineKind, Error, Exit, Hold, Isolation, Kvm, Machine, PortName,
    Vcpus,
};

use crate::guest::{Lab, PORT, engine, options, run};

fn disk(lab: &Lab, name: &str, content: &[u8], format: DiskFormat, read_only: bool) -> Disk {
    let path = lab.path(name);
    fs::write(&path, content).unwrap();
    Disk {
        path,
        format,
        read_only,
    }
}

/// Whoever gets the lock knows that nothing of the machine is left.
#[test]
fn a_lock_that_a_machine_holds_is_free_when_it_is_gone() {
    let lab = Lab::new();
    let path = lab.path("lock");
    fs::write(&path, "").unwrap();
    let open = || File::open(&path).unwrap();
    let free = || flock(open(), FlockOperation::NonBlockingLockExclusive).is_ok();
    let lock = open();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut machine = lab.machine();
    machine.hold = Some(Hold::new(lock));
    let vm = engine().boot(&machine).unwrap();
    drop(machine);
    assert!(!free());
    drop(vm);
    assert!(free());
}

#[test]
fn a_machine_has_what_its_description_says() {
    let lab = Lab::new();
    let disks = vec![
        disk(&lab, "a, =b", &[b'a'; 512 * 3], DiskFormat::Raw, true),
        disk(&lab, "b", &[b'b'; 512 * 5], DiskFormat::Raw, false),
        disk(&lab, "c", &[b'c'; 512 * 7], DiskFormat::Raw, true),
    ];
    let machine = Machine {
        vcpus: Vcpus::try_from(2).unwrap(),
        disks,
        ports: [PORT, "second", "third"]
            .map(|name| PortName::try_from(name).unwrap())
            .into(),
        extra_cmdline: vec!["msb.test=1".into()],
        ..lab.machine()
    };
    let mut vm = engine().boot(&machine).unwrap();
    let shell = vm.take_port(PORT).unwrap();
    assert!(vm.take_port(PORT).is_none(), "a port is taken once");
    assert!(vm.take_port("other").is_none());
    let run = |command: &str| run(&shell, command).unwrap();

    assert_eq!(run("nproc"), "2");
    assert!(run("cat /proc/cmdline").contains("msb.test=1"));
    let kib: u64 = run("awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .unwrap();
    assert!((64 << 10..128 << 10).contains(&kib), "{kib} KiB of memory");
    assert_eq!(
        run("cat /sys/class/virtio-ports/*/name | sort"),
        "second\ntest.shell\nthird"
    );

    assert_eq!(run("ls /sys/block | sort | tr '\\n' ' '"), "vda vdb vdc");
    assert_eq!(
        run("for d in a b c; do cat /sys/block/vd$d/size; done | tr '\\n' ' '"),
        "3 5 7"
    );
    assert_eq!(
        run("for d in a b c; do cat /sys/block/vd$d/ro; done | tr '\\n' ' '"),
        "1 0 1"
    );
    assert_eq!(run("cat /dev/vda | tr -d 'a' | wc -c"), "0");
    run("printf changed > /dev/vdb; sync");
    assert!(fs::read(lab.path("b")).unwrap().starts_with(b"changedbbb"));

    let second = vm.take_port("second").unwrap();
    run(
        "name=$(grep -l second /sys/class/virtio-ports/*/name); name=${name%/name}; echo through > /dev/${name##*/}",
    );
    let mut text = [0; 8];
    std::io::Read::read_exact(&mut &second, &mut text).unwrap();
    assert_eq!(&text, b"through\n");

    assert_eq!(vm.try_wait().unwrap(), None);
    std::io::Write::write_all(&mut &shell, b"reboot -f\n").unwrap();
    assert_eq!(vm.wait().unwrap(), Exit::Guest);
    assert_eq!(vm.wait().unwrap(), Exit::Guest);
    vm.kill().unwrap();
}

#[test]
fn machines_share_what_is_read_only_and_nothing_else() {
    let lab = Lab::new();
    fs::write(lab.path("one"), [b'1'; 1024]).unwrap();
    fs::write(lab.path("two"), [b'2'; 512]).unwrap();
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
                      createType=\"twoGbMaxExtentFlat\"\nRW 2 FLAT \"one\" 0\nRW 1 FLAT \"two\" 0\n";
    let shared = disk(
        &lab,
        "joined.vmdk",
        descriptor.as_bytes(),
        DiskFormat::Vmdk,
        true,
    );
    let own = disk(&lab, "own", &[0; 512], DiskFormat::Raw, false);
    let machine = Machine {
        disks: vec![shared.clone(), own],
        ..lab.machine()
    };
    let sharing = Machine {
        disks: vec![shared],
        ..lab.machine()
    };

    let engine = engine();
    let mut first = engine.boot(&machine).unwrap();
    let mut second = engine.boot(&sharing).unwrap();
    // A guest whose shell hangs up would end.
    let shells = [&mut first, &mut second].map(|vm| vm.take_port(PORT).unwrap());
    for shell in &shells {
        assert_eq!(run(shell, "cat /dev/vda | tr -d 1").unwrap().len(), 512);
    }
    let refused = engine.boot(&machine).unwrap_err();
    match &refused {
        Error::ExitedEarly { stderr, .. } => assert!(stderr.contains("lock"), "{refused}"),
        Error::DiskInUse { path } => assert_eq!(*path, lab.path("own")),
        _ => panic!("{refused}"),
    }
}

#[test]
fn the_engines_words_come_with_the_error() {
    let lab = Lab::new();
    fs::write(lab.path("kernel"), "no kernel").unwrap();
    let machine = Machine {
        kernel: lab.path("kernel"),
        ..lab.machine()
    };
    let error = engine().boot(&machine).unwrap_err();
    match &error {
        Error::ExitedEarly { stderr, .. } => assert!(!stderr.is_empty(), "{error}"),
        Error::Unreadable { what, path, .. } => {
            assert_eq!((*what, path), ("kernel", &machine.kernel));
        }
        _ => panic!("{error}"),
    }
}

#[test]
fn missing_files_are_named() {
    let lab = Lab::new();
    let missing = lab.path("missing");
    let gone = Disk {
        path: missing.clone(),
        format: DiskFormat::Raw,
        read_only: true,
    };
    for (what, machine) in [
        (
            "kernel",
            Machine {
                kernel: missing.clone(),
                ..lab.machine()
            },
        ),
        (
            "initramfs",
            Machine {
                initramfs: missing.clone(),
                ..lab.machine()
            },
        ),
        (
            "disk",
            Machine {
                disks: vec![gone],
                ..lab.machine()
            },
        ),
    ] {
        let error = engine().boot(&machine).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("missing"), "{error}");
    }
    File::open(&missing).unwrap_err();
}

#[test]
fn the_probe_agrees_with_what_boots() {
    let kvm = Engine::probe();
    assert!(!kvm.to_string().contains('\n'));
    let engine = engine();
    assert_eq!(engine.kvm(), kvm);
    assert_eq!(engine.isolation(), kvm.isolation());

    let lab = Lab::new();
    let mut vm = engine.boot(&lab.machine()).unwrap();
    assert_eq!(vm.isolation(), kvm.isolation());
    let shell = vm.take_port(PORT).unwrap();
    assert_eq!(run(&shell, "echo $$").unwrap(), "1");

    let mut options = options(None);
    options.min_isolation = Isolation::Hardware;
    match kvm {
        Kvm::Usable => assert!(Engine::choose(options).is_ok()),
        _ => {
            let error = Engine::choose(options).unwrap_err();
            assert!(error.to_string().contains(&kvm.to_string()), "{error}");
            assert!(error.hint().is_some());
        }
    }
}

/// Where KVM cannot run guests, krun asked for all the same fails with a reason: at once where
/// the device is missing, and by the library's words where it only pretends.
#[test]
fn a_machine_that_kvm_cannot_run_ends_with_a_reason() {
    if Engine::probe() == Kvm::Usable {
        // Then the other tests boot on krun.
        return;
    }
    let mut options = options(Some(EngineKind::Krun));
    options.kvm = Some(Kvm::Usable);
    let engine = Engine::choose(options).unwrap();
    let lab = Lab::new();
    let refused = match engine.boot(&lab.machine()) {
        Ok(mut vm) => vm.wait().unwrap().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(
        ["/dev/kvm", "KVM", "Kvm", "without libkrun"]
            .iter()
            .any(|word| refused.contains(word)),
        "{refused}"
    );
}
