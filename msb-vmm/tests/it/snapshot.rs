//! Machines that are held, and saved while they run.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Instant;

use msb_vmm::{Disk, DiskFormat, Error, Machine, Snapshots, Templates, Vm};
use rustix::process::{Signal, getpid, kill_process};

use crate::confinement::wait_for;
use crate::guest::{BIND, Lab, PORT, UNBIND, again, machine, role, run, templates};
use crate::template::orphans;

/// A machine with a read-only disk and one of its own.
fn with_disks(folder: &Path, own: &str, format: DiskFormat) -> Machine {
    let disk = |name: &str, format, read_only| Disk {
        path: folder.join(name),
        format,
        read_only,
    };
    Machine {
        disks: vec![
            disk("image", DiskFormat::Raw, true),
            disk(own, format, false),
        ],
        ..machine(folder)
    }
}

/// Starts a machine from a template and has its disks taken up.
fn start(folder: &Path, templates: &Templates) -> (Vm, std::os::unix::net::UnixStream) {
    fs::write(folder.join("image"), [b'i'; 1024]).unwrap();
    fs::write(folder.join("own"), [b'o'; 1 << 20]).unwrap();
    let machine = with_disks(folder, "own", DiskFormat::Raw);
    let ready = |port: &_| run(port, UNBIND).map(drop);
    let template = templates.ensure(&machine, |_| (), ready).unwrap();
    let mut vm = template.start(&machine).unwrap();
    let shell = vm.take_port(PORT).unwrap();
    run(&shell, BIND).unwrap();
    (vm, shell)
}

/// Checks that a machine has a memory file mapped copy-on-write, and open for reading only.
fn can_only_read(vm: &Vm, ram: &Path) {
    assert_eq!(*vm.confinement().memory.as_ref().unwrap(), ());
    let file = fs::metadata(ram).unwrap();
    let proc = |what: &str| Path::new("/proc").join(vm.pid().to_string()).join(what);
    let mut found = 0;
    for entry in fs::read_dir(proc("fd")).unwrap() {
        let path = entry.unwrap().path();
        if !fs::metadata(&path).is_ok_and(|open| open.ino() == file.ino()) {
            continue;
        }
        let info = fs::read_to_string(proc("fdinfo").join(path.file_name().unwrap())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY, "{info}");
        found += 1;
    }
    let maps = fs::read_to_string(proc("maps")).unwrap();
    let inode = format!(" {} ", file.ino());
    for line in maps.lines().filter(|line| line.contains(&inode)) {
        assert_eq!(line.split(' ').nth(1), Some("rw-p"), "{line}");
        found += 1;
    }
    assert!(found >= 2, "{found}");
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
    let (mut vm, shell) = start(&lab.path(""), &templates);
    let template = fs::read_dir(lab.path("templates")).unwrap();
    let ram = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().path().join("ram");
    let ram = template.map(ram).find(|ram| ram.exists()).unwrap();
    can_only_read(&vm, &ram);
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
        let format = snapshot.copy_disk(1, &lab.path(name)).unwrap();
        let machine = with_disks(&lab.path(""), name, format);
        let mut child = templates.start_snapshot(&snapshot, &machine).unwrap();
        can_only_read(&child, &lab.path("snapshots/one/ram"));
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
        let content = run(shell, "head -c 6 /dev/vdb").unwrap();
        assert!(content.starts_with(name), "{content} in {name}");
    }
    assert!(fs::read(lab.path("own")).unwrap().starts_with(b"LATER1"));

    // Also a child can be saved, and what it goes on from is not copied into its memory.
    let (_, child, shell) = &mut children[0];
    save(child, &snapshots, "two");
    assert_eq!(run(shell, "echo $who").unwrap(), "first");
    let two = snapshots.open("two").unwrap();
    let format = two.copy_disk(1, &lab.path("third")).unwrap();
    let mut grandchild = templates
        .start_snapshot(&two, &with_disks(&lab.path(""), "third", format))
        .unwrap();
    let shell = grandchild.take_port(PORT).unwrap();
    assert_eq!(
        run(&shell, "echo $who; echo $(md5sum </big)").unwrap(),
        format!("first\n{sum}")
    );
    // Its disk has what the child had changed, and below that what they share.
    let content = "head -c 5 /dev/vdb; tail -c 1 /dev/vdb";
    assert_eq!(run(&shell, content).unwrap(), "firsto");
    run(&shell, "printf third > /dev/vdb; sync").unwrap();
    let (_, _, shell) = &children[0];
    assert_eq!(run(shell, "head -c 5 /dev/vdb").unwrap(), "first");

    let names: Vec<_> = snapshots.list().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["one", "two"]);
    snapshots.remove("one").unwrap();
    assert!(matches!(
        snapshots.open("one"),
        Err(Error::NoSnapshot { .. })
    ));
}

/// Its memory is nowhere on a disk, and nobody can change it.
#[test]
fn a_snapshot_for_a_moment_is_gone_on_from_while_its_maker_has_it() {
    let lab = Lab::new();
    let templates = lab.templates();
    let snapshots = Snapshots::new(lab.path("snapshots"));
    let (mut vm, shell) = start(&lab.path(""), &templates);
    run(&shell, "who=parent").unwrap();
    let draft = snapshots.draft_passing("now").unwrap();
    vm.pause().unwrap();
    vm.save(&draft).unwrap();
    vm.resume().unwrap();
    let memory = draft.publish("about").unwrap().expect("it is in memory");
    assert!(!lab.path("snapshots/now/ram").exists());
    assert!(snapshots.open("now").is_err(), "there is no memory in it");
    let snapshot = snapshots.open_with("now", Some(&memory.path())).unwrap();
    let to_write = fs::File::options().write(true).open(memory.path()).unwrap();
    assert!(to_write.write_all_at(b"?", 1 << 20).is_err());
    // Other memory is not taken for it.
    let other = tempfile::NamedTempFile::new().unwrap();
    assert!(snapshots.open_with("now", Some(other.path())).is_err());

    let format = snapshot.copy_disk(1, &lab.path("first")).unwrap();
    let machine = with_disks(&lab.path(""), "first", format);
    let mut child = templates.start_snapshot(&snapshot, &machine).unwrap();
    // Whoever has opened it needs nobody else.
    drop((memory, vm));
    let shell = child.take_port(PORT).unwrap();
    assert_eq!(run(&shell, "echo $who").unwrap(), "parent");
    // And it can be saved in turn.
    let draft = snapshots.draft_passing("again").unwrap();
    child.pause().unwrap();
    child.save(&draft).unwrap();
    drop(child);
    let memory = draft.publish("").unwrap().expect("it is in memory");
    let again = snapshots.open_with("again", Some(&memory.path())).unwrap();
    let format = again.copy_disk(1, &lab.path("second")).unwrap();
    let machine = with_disks(&lab.path(""), "second", format);
    let mut child = templates.start_snapshot(&again, &machine).unwrap();
    let shell = child.take_port(PORT).unwrap();
    assert_eq!(run(&shell, "echo $who").unwrap(), "parent");
}

#[test]
fn a_save_that_nobody_wants_any_more_ends_and_leaves_nothing() {
    let lab = Lab::new();
    let templates = lab.templates();
    let snapshots = Snapshots::new(lab.path("snapshots"));
    let (mut vm, shell) = start(&lab.path(""), &templates);
    for draft in [snapshots.draft("one"), snapshots.draft_passing("two")] {
        let draft = draft.unwrap();
        vm.pause().unwrap();
        draft.give_up().now();
        vm.save(&draft).unwrap_err();
        vm.resume().unwrap();
    }
    assert_eq!(fs::read_dir(lab.path("snapshots")).unwrap().count(), 0);
    assert_eq!(run(&shell, "echo there").unwrap(), "there");
}

#[test]
fn a_held_machine_does_nothing_until_it_goes_on() {
    let lab = Lab::new();
    let templates = lab.templates();
    let (mut vm, shell) = start(&lab.path(""), &templates);
    vm.pause().unwrap();
    // Its time, and when it was asked at the earliest and held at the latest.
    let uptime = |vm: &mut Vm| {
        let asked = Instant::now();
        vm.resume().unwrap();
        let uptime = run(&shell, "cut -d' ' -f1 /proc/uptime").unwrap();
        vm.pause().unwrap();
        (uptime.parse::<f64>().unwrap(), asked, Instant::now())
    };
    let (before, asked, held) = uptime(&mut vm);
    let ran = held - asked;
    // Work of the host's that takes time.
    let begin = Instant::now();
    while begin.elapsed().as_millis() < 1500 {
        fs::read("/proc/self/status").unwrap();
    }
    let (after, asked, held) = uptime(&mut vm);
    // However long a busy host lets it take: as long as it was held it has not counted.
    let ran = (ran + (held - asked)).as_secs_f64();
    assert!(after - before < ran + 0.5, "its clock went on");
    // Twice is not an error.
    vm.pause().unwrap();
    vm.resume().unwrap();
    assert_eq!(run(&shell, "echo there").unwrap(), "there");
}

/// What becomes of a snapshot whose maker is killed as soon as one of these is there.
#[test]
fn a_maker_killed_at_any_step_is_recovered_from() {
    let steps = [
        ".one.lock",
        ".one.draft",
        ".one.draft/state",
        ".one.draft/ram",
        ".one.draft/disk1",
        ".one.draft/about",
        ".one.draft/meta.json",
        "one",
    ];
    if let Some((step, folder)) = role() {
        let (mut vm, _shell) = start(&folder, &templates(&folder.join("templates")));
        let snapshots = Snapshots::new(folder.join("snapshots"));
        let awaited = folder.join("snapshots").join(step);
        std::thread::spawn(move || {
            while !awaited.exists() {}
            kill_process(getpid(), Signal::KILL).unwrap();
        });
        save(&mut vm, &snapshots, "one");
        // Whoever looks too seldom finds the last step.
        kill_process(getpid(), Signal::KILL).unwrap();
    }
    let lab = Lab::new();
    drop(start(&lab.path(""), &lab.templates()));
    let name = "snapshot::a_maker_killed_at_any_step_is_recovered_from";
    let snapshots = Snapshots::new(lab.path("snapshots"));
    for step in steps {
        let ended = again(name, step, &lab.path("")).status().unwrap();
        assert_eq!(ended.signal(), Some(9), "{step}");
        // It is whole, or it is not there.
        for listed in snapshots.list() {
            assert_eq!(listed.name, "one");
            snapshots.open("one").unwrap();
            snapshots.remove("one").unwrap();
        }
        orphans(&lab).iter().for_each(wait_for);
        drop(snapshots.draft("one").unwrap());
        let left = fs::read_dir(lab.path("snapshots")).unwrap().count();
        assert_eq!(left, 0, "{step}");
    }
}

/// What is noted of the files is all that a start goes by.
#[test]
fn a_damaged_snapshot_is_refused_and_a_copied_one_is_not() {
    let lab = Lab::new();
    let templates = lab.templates();
    let snapshots = Snapshots::new(lab.path("snapshots"));
    let (mut vm, _shell) = start(&lab.path(""), &templates);
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
    let damages: [(&str, Damage); 9] = [
        ("ram", |file| {
            let file = fs::File::options().write(true).open(file).unwrap();
            let middle = file.metadata().unwrap().len() / 2;
            file.write_all_at(b"?", middle).unwrap();
        }),
        ("state", |file| fs::write(file, "short").unwrap()),
        ("disk1", |file| fs::remove_file(file).unwrap()),
        ("disk1", |file| {
            let file = fs::File::options().write(true).open(file).unwrap();
            file.write_all_at(b"?", 0).unwrap();
        }),
        ("about", |file| fs::write(file, "about IT").unwrap()),
        // What is no file is not followed, and nobody waits for it.
        ("disk1", |file| {
            fs::rename(file, file.with_extension("moved")).unwrap();
            std::os::unix::fs::symlink("disk1.moved", file).unwrap();
        }),
        ("state", |file| {
            fs::remove_file(file).unwrap();
            let made = std::process::Command::new("mkfifo").arg(file).status();
            assert!(made.unwrap().success());
        }),
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
    fs::write(lab.path("snapshots/.four.lock"), "").unwrap();
    drop(snapshots.draft("two").unwrap());
    assert!(!lab.path("snapshots/.three.draft").exists());
    assert!(!lab.path("snapshots/.four.lock").exists());
    drop(held);
    assert!(!draft.exists());
    assert!(
        snapshots.draft("one").unwrap().publish("").is_err(),
        "nothing was saved in it"
    );
    assert_eq!(fs::read_dir(lab.path("snapshots")).unwrap().count(), 0);
}
