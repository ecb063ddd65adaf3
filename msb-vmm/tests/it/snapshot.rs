//! Machines that are held, and saved while they run.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use msb_vmm::{Disk, DiskFormat, Error, Machine, Snapshots, Templates, Vm};

use crate::guest::{BIND, Lab, PORT, UNBIND, run};

/// A machine with a read-only disk and one of its own.
fn with_disks(lab: &Lab, own: &str) -> Machine {
    let disk = |name: &str, read_only| Disk {
        path: lab.path(name),
        format: DiskFormat::Raw,
        read_only,
    };
    Machine {
        disks: vec![disk("image", true), disk(own, false)],
        ..lab.machine()
    }
}

/// Starts a machine from a template and has its disks taken up.
fn start(lab: &Lab, templates: &Templates) -> (Vm, std::os::unix::net::UnixStream) {
    fs::write(lab.path("image"), [b'i'; 1024]).unwrap();
    fs::write(lab.path("own"), [b'o'; 1 << 20]).unwrap();
    let machine = with_disks(lab, "own");
    let ready = |port: &_| run(port, UNBIND).map(drop);
    let template = templates.ensure(&machine, |_| (), ready).unwrap();
    let mut vm = template.start(&machine).unwrap();
    let shell = vm.take_port(PORT).unwrap();
    run(&shell, BIND).unwrap();
    (vm, shell)
}

fn save(vm: &mut Vm, snapshots: &Snapshots, name: &str) {
    let draft = snapshots.draft(name).unwrap();
    vm.pause().unwrap();
    vm.save(&draft).unwrap();
    vm.resume().unwrap();
    draft.publish("about it").unwrap();
}

#[test]
fn machines_go_on_from_a_snapshot_apart_from_each_other() {
    let lab = Lab::new();
    let templates = lab.templates();
    let snapshots = Snapshots::new(lab.path("snapshots"));
    let (mut vm, shell) = start(&lab, &templates);
    let fill = "dd if=/dev/urandom of=/big bs=64k count=128 2>/dev/null; sum=$(md5sum </big)";
    run(&shell, fill).unwrap();
    run(&shell, "who=parent; printf PARENT > /dev/vdb; sync").unwrap();
    let sum = run(&shell, "echo $sum").unwrap();
    save(&mut vm, &snapshots, "one");

    // The parent goes on, and what it does is its own affair.
    run(
        &shell,
        "who=later; dd if=/dev/zero of=/big bs=64k count=128 2>/dev/null",
    )
    .unwrap();
    run(&shell, "printf LATER1 > /dev/vdb; sync").unwrap();

    let snapshot = snapshots.open("one").unwrap();
    assert_eq!(snapshot.about(), "about it");
    let mut children = Vec::new();
    for name in ["first", "second"] {
        snapshot.copy_disk(1, &lab.path(name)).unwrap();
        let machine = with_disks(&lab, name);
        let mut child = templates.start_snapshot(&snapshot, &machine).unwrap();
        let shell = child.take_port(PORT).unwrap();
        assert_eq!(
            run(&shell, "echo $who; echo $(md5sum </big)").unwrap(),
            format!("parent\n{sum}")
        );
        assert_eq!(
            run(&shell, "head -c 6 /dev/vdb; head -c 1 /dev/vda").unwrap(),
            "PARENTi"
        );
        run(
            &shell,
            &format!("who={name}; printf {name} > /dev/vdb; sync"),
        )
        .unwrap();
        children.push((name, child, shell));
    }
    for (name, _, shell) in &children {
        assert_eq!(&run(shell, "echo $who").unwrap(), name);
        assert!(
            fs::read(lab.path(name))
                .unwrap()
                .starts_with(name.as_bytes())
        );
    }
    assert!(fs::read(lab.path("own")).unwrap().starts_with(b"LATER1"));

    // Also a child can be saved, and what it goes on from is not copied into its memory.
    let (_, child, shell) = &mut children[0];
    save(child, &snapshots, "two");
    assert_eq!(run(shell, "echo $who").unwrap(), "first");
    let two = snapshots.open("two").unwrap();
    two.copy_disk(1, &lab.path("third")).unwrap();
    let mut grandchild = templates
        .start_snapshot(&two, &with_disks(&lab, "third"))
        .unwrap();
    let shell = grandchild.take_port(PORT).unwrap();
    assert_eq!(
        run(&shell, "echo $who; echo $(md5sum </big)").unwrap(),
        format!("first\n{sum}")
    );

    let names: Vec<_> = snapshots.list().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["one", "two"]);
    snapshots.remove("one").unwrap();
    assert!(matches!(
        snapshots.open("one"),
        Err(Error::NoSnapshot { .. })
    ));
}

#[test]
fn a_held_machine_does_nothing_until_it_goes_on() {
    let lab = Lab::new();
    let templates = lab.templates();
    let (mut vm, shell) = start(&lab, &templates);
    vm.pause().unwrap();
    let uptime = |vm: &mut Vm| {
        vm.resume().unwrap();
        let uptime = run(&shell, "cut -d' ' -f1 /proc/uptime").unwrap();
        vm.pause().unwrap();
        uptime.parse::<f64>().unwrap()
    };
    let before = uptime(&mut vm);
    // Work of the host's that takes time.
    let begin = std::time::Instant::now();
    while begin.elapsed().as_millis() < 1500 {
        fs::read("/proc/self/status").unwrap();
    }
    assert!(uptime(&mut vm) - before < 1.0, "its clock went on");
    // Twice is not an error.
    vm.pause().unwrap();
    vm.resume().unwrap();
    assert_eq!(run(&shell, "echo there").unwrap(), "there");
}

/// What is noted of the files is all that a start goes by.
#[test]
fn a_damaged_snapshot_is_refused_and_a_copied_one_is_not() {
    let lab = Lab::new();
    let templates = lab.templates();
    let snapshots = Snapshots::new(lab.path("snapshots"));
    let (mut vm, _shell) = start(&lab, &templates);
    save(&mut vm, &snapshots, "whole");
    let folder = lab.path("snapshots/whole");
    let copied = |name: &str| {
        let to = lab.path(&format!("snapshots/{name}"));
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    };
    copied("copy");
    assert!(snapshots.open("copy").is_ok());

    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("ram", |file| {
            let file = fs::File::options().write(true).open(file).unwrap();
            let middle = file.metadata().unwrap().len() / 2;
            file.write_all_at(b"?", middle).unwrap();
        }),
        ("state", |file| fs::write(file, "short").unwrap()),
        ("disk1", |file| fs::remove_file(file).unwrap()),
        ("about", |file| fs::write(file, "about IT").unwrap()),
        ("meta.json", |file| fs::write(file, "{}").unwrap()),
        ("meta.json", |file| fs::remove_file(file).unwrap()),
    ];
    for (index, (file, damage)) in damages.into_iter().enumerate() {
        let name = format!("damaged{index}");
        damage(&copied(&name).join(file));
        let error = snapshots.open(&name).unwrap_err();
        assert!(
            matches!(&error, Error::Snapshot { name: told, .. } if *told == name),
            "{error}"
        );
        assert!(error.hint().is_some());
    }
    // The one that it is made of is whole all the same, and its content is where it was.
    assert!(snapshots.open("whole").is_ok());
    assert!(fs::metadata(folder.join("ram")).unwrap().blocks() * 512 < 128 << 20);
}

#[test]
fn names_are_names_and_what_a_killed_maker_left_is_removed() {
    let lab = Lab::new();
    let snapshots = Snapshots::new(lab.path("snapshots"));
    for name in [
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "-x",
        ".hidden",
        "a b",
        "ä",
        &"x".repeat(64),
    ] {
        assert!(
            matches!(snapshots.draft(name), Err(Error::SnapshotName { .. })),
            "{name:?}"
        );
        assert!(
            matches!(snapshots.open(name), Err(Error::SnapshotName { .. })),
            "{name:?}"
        );
    }
    let held = snapshots.draft("one").unwrap();
    assert!(matches!(
        snapshots.draft("one"),
        Err(Error::SnapshotTaken { .. })
    ));
    assert!(snapshots.list().is_empty());
    let draft = lab.path("snapshots/.one.draft");
    // Another maker leaves it alone.
    drop(snapshots.draft("two").unwrap());
    assert!(draft.exists());
    // A killed one has let go of its lock, and nothing else.
    fs::create_dir(lab.path("snapshots/.three.draft")).unwrap();
    drop(snapshots.draft("two").unwrap());
    assert!(!lab.path("snapshots/.three.draft").exists());
    drop(held);
    assert!(!draft.exists());
    assert!(
        snapshots.draft("one").unwrap().publish("").is_err(),
        "nothing was saved in it"
    );
    assert_eq!(fs::read_dir(lab.path("snapshots")).unwrap().count(), 0);
}
