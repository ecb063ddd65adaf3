//! Templates: copies that share nothing they write, and a store that nothing damages for long.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use msb_vmm::{Disk, DiskFormat, Error, Machine, Step, Template, Templates, Vcpus, Vm};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

use crate::confinement::wait_for;
use crate::guest::{BIND, Lab, PORT, UNBIND, again, machine, role, run, templates};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Gets a guest ready to be saved.
fn ready(port: &UnixStream) -> Result<(), Failure> {
    assert_eq!(run(port, "state=template; echo ready")?, "ready");
    run(port, UNBIND).map(drop)
}

fn ensure(templates: &Templates, machine: &Machine) -> Result<Template, Error> {
    templates.ensure(machine, |_| (), ready)
}

/// Ensures a template and counts whether it was made.
fn ensure_counted(templates: &Templates, machine: &Machine, made: &AtomicUsize) -> Template {
    let counted = |port: &UnixStream| {
        made.fetch_add(1, Ordering::Relaxed);
        ready(port)
    };
    templates.ensure(machine, |_| (), counted).unwrap()
}

fn shell(vm: &mut Vm) -> UnixStream {
    vm.take_port(PORT).unwrap()
}

/// What can be seen of a folder from outside: content and change times.
fn snapshot(folder: &Path) -> BTreeMap<String, (i64, i64, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let describe = |entry: fs::DirEntry| {
        let meta = entry.metadata().unwrap();
        let content = fs::read(entry.path()).unwrap();
        (
            entry.file_name().into_string().unwrap(),
            (meta.ctime(), meta.ctime_nsec(), content),
        )
    };
    entries.map(describe).collect()
}

/// Names in the store that are not templates or their bookkeeping.
fn leftovers(lab: &Lab) -> Vec<String> {
    let names = fs::read_dir(lab.path("templates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.ends_with(".draft"))
        .collect()
}

#[test]
fn copies_go_on_from_the_template_and_apart_from_each_other() {
    let lab = Lab::new();
    for (name, byte) in [("one", b'1'), ("two", b'2')] {
        fs::write(lab.path(name), [byte; 1024]).unwrap();
    }
    let with = |name: &str| {
        let disk = Disk {
            path: lab.path(name),
            format: DiskFormat::Raw,
            read_only: false,
        };
        Machine {
            disks: vec![disk],
            ..lab.machine()
        }
    };
    let templates = lab.templates();
    assert!(templates.find(&with("one")).unwrap().is_none());
    let template = ensure(&templates, &with("one")).unwrap();
    let folder = lab.path("templates").join(template.key());
    let before = snapshot(&folder);

    let mut copies = [
        template.start(&with("one")).unwrap(),
        template.start(&with("two")).unwrap(),
    ];
    let shells = copies.each_mut().map(shell);
    for (index, shell) in shells.iter().enumerate() {
        assert_eq!(run(shell, "echo $state").unwrap(), "template");
        assert_eq!(run(shell, "echo $written").unwrap(), "");
        run(
            shell,
            &format!("written={index}; dd if=/dev/zero of=/big bs=1M count=16 2>/dev/null"),
        )
        .unwrap();
        run(shell, BIND).unwrap();
        assert_eq!(run(shell, "cat /sys/block/vda/size").unwrap(), "2");
        run(shell, "printf written > /dev/vda; sync").unwrap();
    }
    assert_eq!(
        run(&shells[0], "echo $written; tail -c 1 /dev/vda").unwrap(),
        "0\n1"
    );
    assert_eq!(
        run(&shells[1], "echo $written; tail -c 1 /dev/vda").unwrap(),
        "1\n2"
    );
    assert!(fs::read(lab.path("one")).unwrap().starts_with(b"written1"));
    assert!(fs::read(lab.path("two")).unwrap().starts_with(b"written2"));
    drop(copies);
    assert!(before == snapshot(&folder), "a copy wrote to the template");
    assert!(
        templates.find(&with("two")).unwrap().is_some(),
        "disks are not part of the key"
    );

    // Also without its files' names.
    fs::remove_dir_all(&folder).unwrap();
    let mut vm = template.start(&with("one")).unwrap();
    assert_eq!(run(&shell(&mut vm), "echo $state").unwrap(), "template");
}

#[test]
fn a_variant_goes_on_from_its_template_with_its_read_only_disks() {
    let lab = Lab::new();
    for (name, byte) in [("image", b'i'), ("one", b'1'), ("two", b'2')] {
        fs::write(lab.path(name), [byte; 1024]).unwrap();
    }
    let disk = |name: &str, read_only| Disk {
        path: lab.path(name),
        format: DiskFormat::Raw,
        read_only,
    };
    let with = |name: &str| Machine {
        disks: vec![disk("image", true), disk(name, false)],
        ..lab.machine()
    };
    let (templates, machine) = (lab.templates(), with("one"));
    let base = ensure(&templates, &machine).unwrap();
    let before = snapshot(&lab.path("templates").join(base.key()));
    let further = |port: &UnixStream| -> Result<(), Failure> {
        assert_eq!(run(port, "echo $state; state=variant")?, "template");
        run(port, BIND)?;
        assert_eq!(run(port, "echo $(head -c 1 /dev/vdb | od -An -tx1)")?, "00");
        let unbind = "cd -P /sys/block/vdb/device; echo ${PWD##*/} > driver/unbind; cd /";
        run(port, unbind).map(drop)
    };
    let vary = || templates.ensure_variant(&base, &machine, "image i", |_| (), further);
    assert!(
        templates
            .find_variant(&machine, "image i")
            .unwrap()
            .is_none()
    );
    let variant = vary().unwrap();
    assert_eq!(
        templates
            .find_variant(&machine, "image i")
            .unwrap()
            .unwrap()
            .key(),
        variant.key()
    );
    assert!(
        templates
            .find_variant(&machine, "image j")
            .unwrap()
            .is_none()
    );
    assert!(
        before == snapshot(&lab.path("templates").join(base.key())),
        "the base changed"
    );

    let mut copy = variant.start(&with("two")).unwrap();
    let shell = shell(&mut copy);
    assert_eq!(
        run(&shell, "echo $state; head -c 1 /dev/vda").unwrap(),
        "variant\ni"
    );
    run(&shell, BIND).unwrap();
    assert_eq!(run(&shell, "head -c 1 /dev/vdb").unwrap(), "2");
    assert_eq!(vary().unwrap().key(), variant.key(), "it is not made twice");
}

#[test]
fn a_template_is_for_its_machine_only() {
    let lab = Lab::new();
    let machine = lab.machine();
    let template = ensure(&lab.templates(), &machine).unwrap();
    let two = Machine {
        vcpus: Vcpus::try_from(2).unwrap(),
        ..machine.clone()
    };
    assert!(matches!(
        template.start(&two),
        Err(Error::OtherMachine { .. })
    ));
    assert!(lab.templates().find(&two).unwrap().is_none());
    let silent = Machine {
        ports: Vec::new(),
        ..machine.clone()
    };
    assert!(matches!(lab.templates().find(&silent), Err(Error::NoPort)));

    let mut initramfs = fs::read(&machine.initramfs).unwrap();
    initramfs.extend_from_slice(&[0; 512]);
    fs::write(&machine.initramfs, initramfs).unwrap();
    assert!(
        lab.templates().find(&machine).unwrap().is_none(),
        "the initramfs changed"
    );
}

#[test]
fn a_guest_that_does_not_get_ready_leaves_nothing() {
    let lab = Lab::new();
    let error = lab
        .templates()
        .ensure(&lab.machine(), |_| (), |_| Err::<(), _>("no"))
        .unwrap_err();
    assert!(
        matches!(&error, Error::NotReady { source } if source.to_string() == "no"),
        "{error}"
    );
    assert!(lab.templates().find(&lab.machine()).unwrap().is_none());
    assert_eq!(leftovers(&lab), Vec::<String>::new());
}

#[test]
fn of_many_threads_one_makes_the_template() {
    let lab = Lab::new();
    let (machine, templates, made) = (lab.machine(), lab.templates(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let template = ensure_counted(&templates, &machine, &made);
                let mut vm = template.start(&machine).unwrap();
                assert_eq!(run(&shell(&mut vm), "echo $state").unwrap(), "template");
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
}

#[test]
fn of_many_processes_one_makes_the_template() {
    if let Some((_, folder)) = role() {
        let made = AtomicUsize::new(0);
        let machine = machine(&folder);
        let template = ensure_counted(&templates(&folder.join("templates")), &machine, &made);
        let mut vm = template.start(&machine).unwrap();
        assert_eq!(run(&shell(&mut vm), "echo $state").unwrap(), "template");
        println!("\nmade {}", made.into_inner());
        return;
    }
    let lab = Lab::new();
    let name = "template::of_many_processes_one_makes_the_template";
    let children: Vec<_> = (0..4)
        .map(|_| {
            again(name, "ensure", &lab.path(""))
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut made = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        made += String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .filter(|line| *line == "made 1")
            .count();
    }
    assert_eq!(made, 1);
}

#[test]
fn a_maker_killed_at_any_step_is_recovered_from() {
    let steps = [Step::Booting, Step::Saving, Step::Syncing, Step::Publishing];
    if let Some((role, folder)) = role() {
        let last = steps[role.parse::<usize>().unwrap()];
        let die = |step| {
            if step == last {
                kill_process(getpid(), Signal::KILL).unwrap();
            }
        };
        let outcome = templates(&folder.join("templates")).ensure(&machine(&folder), die, ready);
        unreachable!("the step was not reached: {outcome:?}");
    }
    let lab = Lab::new();
    let name = "template::a_maker_killed_at_any_step_is_recovered_from";
    for (index, step) in steps.iter().enumerate() {
        let status = again(name, &index.to_string(), &lab.path(""))
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(9), "{step:?}");
        assert!(
            lab.templates().find(&lab.machine()).unwrap().is_none(),
            "{step:?}"
        );
        orphans(&lab).iter().for_each(wait_for);
    }
    let made = AtomicUsize::new(0);
    let template = ensure_counted(&lab.templates(), &lab.machine(), &made);
    let mut vm = template.start(&lab.machine()).unwrap();
    assert_eq!(run(&shell(&mut vm), "echo $state").unwrap(), "template");
    assert_eq!(leftovers(&lab), Vec::<String>::new());
}

/// The VMMs of a lab that still run.
pub(crate) fn orphans(lab: &Lab) -> Vec<std::os::fd::OwnedFd> {
    let folder = lab.path("").into_os_string().into_encoded_bytes();
    let ours = |entry: fs::DirEntry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let found = command.windows(folder.len()).any(|window| window == folder);
        (found && number != getpid().as_raw_nonzero().get()).then_some(())?;
        pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .filter_map(ours)
        .collect()
}

#[test]
fn a_damaged_template_is_made_again() {
    let lab = Lab::new();
    let (machine, templates, made) = (lab.machine(), lab.templates(), AtomicUsize::new(0));
    let template = ensure_counted(&templates, &machine, &made);
    let folder = lab.path("templates").join(template.key());
    let open = |name: &str| {
        fs::File::options()
            .write(true)
            .open(folder.join(name))
            .unwrap()
    };
    let damages: [(&str, &dyn Fn()); 6] = [
        ("memory changed", &|| {
            open("ram").write_all_at(b"x", 1 << 20).unwrap();
        }),
        ("memory cut", &|| open("ram").set_len(1 << 20).unwrap()),
        ("state changed", &|| {
            open("state").write_all_at(b"x", 100).unwrap();
        }),
        ("state empty", &|| open("state").set_len(0).unwrap()),
        ("no description", &|| {
            fs::remove_file(folder.join("meta.json")).unwrap();
        }),
        ("a broken description", &|| {
            fs::write(folder.join("meta.json"), "{").unwrap();
        }),
    ];
    for (count, (what, damage)) in damages.into_iter().enumerate() {
        assert_eq!(made.load(Ordering::Relaxed), count + 1, "{what}");
        damage();
        assert!(templates.find(&machine).unwrap().is_none(), "{what}");
        let template = ensure_counted(&templates, &machine, &made);
        let mut vm = template.start(&machine).unwrap();
        assert_eq!(
            run(&shell(&mut vm), "echo $state").unwrap(),
            "template",
            "{what}"
        );
    }
}

#[test]
fn the_store_is_bounded() {
    let lab = Lab::new();
    let store = lab.path("templates");
    for index in 0..30 {
        fs::create_dir_all(store.join(format!("old{index}"))).unwrap();
    }
    fs::create_dir_all(store.join(".killed.draft")).unwrap();
    let template = ensure(&lab.templates(), &lab.machine()).unwrap();
    let kept = fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept: Vec<_> = kept.filter(|name| !name.starts_with('.')).collect();
    assert_eq!(kept.len(), 16, "{kept:?}");
    assert!(kept.iter().any(|name| name == template.key()));
    assert_eq!(leftovers(&lab), Vec::<String>::new());
}
