//! Limits of the host's on a VMM as a whole: a control group of its own, where the host has
//! delegated a part of the hierarchy to this user.
//!
//! A group with processes in it can't have groups with limits below it, and moving whoever
//! called this library is not for a library to do. So the group is made *beside* that of
//! this process: in the nearest one above it that this user may change and that passes on
//! controllers. systemd makes such for each user who is logged in.
//!
//! Of I/O there is no limit: nobody says how much, and the guest's disks are files.
//!
//! Read first: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, "Delegation".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::Pid;

/// What groups are called, before a number.
const PREFIX: &str = "msb-vmm-";

/// The controllers that matter.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// What a VMM takes beside its guest's memory: code, translated code, buffers.
const OVERHEAD: u64 = 512 << 20;

/// Threads beside those of the processors: workers for disks, 64 at the most in QEMU.
const THREADS: u64 = 128;

/// Levels of the hierarchy that are looked at.
const MAX_DEPTH: usize = 32;

/// The period that a share of the processors is of, in microseconds.
const PERIOD: u64 = 100_000;

/// What a VMM is limited to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) vcpus: u64,
    /// The guest's memory, in bytes.
    pub(crate) memory: u64,
}

impl Limits {
    /// The files that say so, each with the controller that has it.
    fn files(self) -> [(&'static str, &'static str, String); 3] {
        // One more, for devices and translation.
        let time = (self.vcpus + 1) * PERIOD;
        let memory = self.memory.saturating_add(OVERHEAD);
        [
            ("memory", "memory.max", memory.to_string()),
            ("pids", "pids.max", (self.vcpus + THREADS).to_string()),
            ("cpu", "cpu.max", format!("{time} {PERIOD}")),
        ]
    }
}

/// A group of a VMM, removed when this is dropped. Its process has ended by then.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that is not empty yet is removed by whoever makes the next.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Puts a process into a group of its own with limits.
pub(super) fn place(pid: Pid, limits: Limits) -> Result<Group, Errno> {
    let (root, own) = hierarchy()?;
    let parent = delegated(&root, &own)?;
    sweep(&parent);
    make(&parent, pid, limits).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Whether there is a place for groups with all limits.
pub(super) fn available() -> Result<(), Errno> {
    let (root, own) = hierarchy()?;
    let parent = delegated(&root, &own)?;
    match controllers(&parent).len() == CONTROLLERS.len() {
        true => Ok(()),
        false => Err(Errno::OPNOTSUPP),
    }
}

/// Where the hierarchy is, and this process in it.
fn hierarchy() -> Result<(PathBuf, PathBuf), Errno> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let root = roots
        .into_iter()
        .find(|root| root.join("cgroup.controllers").exists())
        .ok_or(Errno::NOSYS)?;
    let text = fs::read_to_string("/proc/self/cgroup").map_err(|_| Errno::NOSYS)?;
    let own = own_group(&text).ok_or(Errno::NOSYS)?;
    Ok((root.to_owned(), own))
}

/// Reads where a process is, relative to the root.
fn own_group(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // That of a process whose namespace of groups begins elsewhere is not in it.
    let outside = Path::new(path)
        .components()
        .any(|part| part.as_os_str() == "..");
    (!outside).then(|| path.into())
}

/// The nearest group above `own` that this user may change and that passes on controllers.
fn delegated(root: &Path, own: &Path) -> Result<PathBuf, Errno> {
    let mut refused = Errno::OPNOTSUPP;
    for group in own.ancestors().skip(1).take(MAX_DEPTH) {
        let path = root.join(group);
        if controllers(&path).is_empty() {
            continue;
        }
        let changeable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK);
        match changeable(&path).and_then(|()| changeable(&path.join("cgroup.procs"))) {
            Ok(()) => return Ok(path),
            Err(errno) => refused = errno,
        }
    }
    Err(refused)
}

/// Which of the controllers that matter the groups below this one have.
fn controllers(group: &Path) -> Vec<&'static str> {
    let text = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |name: &&str| text.split_ascii_whitespace().any(|word| word == *name);
    CONTROLLERS.into_iter().filter(has).collect()
}

fn make(parent: &Path, pid: Pid, limits: Limits) -> io::Result<Group> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
    fs::create_dir(&path)?;
    let group = Group { path };
    let there = controllers(parent);
    for (controller, file, limit) in limits.files() {
        if there.contains(&controller) {
            fs::write(group.path.join(file), limit)?;
        }
    }
    let pid = pid.as_raw_nonzero().to_string();
    fs::write(group.path.join("cgroup.procs"), pid)?;
    Ok(group)
}

/// Removes groups of makers that are gone. The kernel removes none that has a process.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let maker = maker.and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy of files as the kernel has them.
    fn tree(subtree_control: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("user/app.slice");
        fs::create_dir_all(slice.join("terminal.scope/inner")).unwrap();
        for group in [
            "",
            "user",
            "user/app.slice",
            "user/app.slice/terminal.scope",
        ] {
            let group = root.path().join(group);
            fs::write(group.join("cgroup.subtree_control"), "").unwrap();
            fs::write(group.join("cgroup.procs"), "").unwrap();
        }
        fs::write(slice.join("cgroup.subtree_control"), subtree_control).unwrap();
        root
    }

    const LIMITS: Limits = Limits {
        vcpus: 2,
        memory: 1 << 30,
    };

    #[test]
    fn a_group_is_made_beside_the_own_one_with_the_controllers_there_are() {
        let root = tree("memory pids\n");
        let own = own_group("12:pids:/x\n0::/user/app.slice/terminal.scope\n").unwrap();
        let parent = delegated(root.path(), &own).unwrap();
        assert_eq!(parent, root.path().join("user/app.slice"));
        let pid = rustix::process::getpid();
        let group = make(&parent, pid, LIMITS).unwrap();
        let read = |file: &str| fs::read_to_string(group.path.join(file));
        assert_eq!(read("memory.max").unwrap(), (1536 << 20).to_string());
        assert_eq!(read("pids.max").unwrap(), "130");
        assert_eq!(
            read("cgroup.procs").unwrap(),
            pid.as_raw_nonzero().to_string()
        );
        assert!(read("cpu.max").is_err(), "nobody has passed it on");
        assert_eq!(LIMITS.files()[2].2, "300000 100000");
        assert_eq!(group.path.parent(), Some(&*parent));
    }

    #[test]
    fn where_nothing_is_passed_on_there_is_no_group() {
        for control in ["", "hugetlb\n"] {
            let root = tree(control);
            let own = Path::new("user/app.slice/terminal.scope");
            assert_eq!(delegated(root.path(), own), Err(Errno::OPNOTSUPP));
        }
        // That of this process itself has this process in it.
        let root = tree("memory");
        let own = Path::new("user/app.slice");
        assert_eq!(delegated(root.path(), own), Err(Errno::OPNOTSUPP));
        assert_eq!(own_group("0::/../../elsewhere\n"), None);
        assert_eq!(own_group("1:name=systemd:/\n"), None);
    }

    #[test]
    fn groups_of_those_who_are_gone_are_removed() {
        let root = tree("memory");
        let gone = std::process::Command::new("true").spawn().unwrap();
        let pid = gone.id();
        gone.wait_with_output().unwrap();
        let names = [
            format!("{PREFIX}{pid}-0"),
            format!("{PREFIX}{}-9", std::process::id()),
            format!("other-{pid}-0"),
        ];
        for name in &names {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        sweep(root.path());
        let there = names.map(|name| root.path().join(name).exists());
        assert_eq!(there, [false, true, true]);
    }
}
