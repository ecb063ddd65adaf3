//! What the guest uses: read from the kernel's files when somebody asks, and at no other time.
//!
//! Reading: `proc(5)`. The kernel's file system is the agent's own, wherever a workload has
//! mounted something; but names and command lines in it are the workload's choice.

use std::cmp::Reverse;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::message::{GuestMetrics, ProcessMetrics};

/// The longest file that is read, in bytes. That of the processors has 1,500 for each.
const MAX_FILE: usize = 256 << 10;

/// Most processes that are looked at; more are counted and no more.
const MAX_LOOKED_AT: usize = 4096;

/// Units of the kernel's processor times in a second: the same for all programs.
const TICKS: u64 = 100;

/// Bytes of a sector, whatever the disk's own are.
const SECTOR: u64 = 512;

/// The kernel's process that starts the others of its own.
const KTHREADD: u32 = 2;

/// Reads everything; `proc` is the kernel's file system of processes. What can't be read is
/// zero.
pub(super) fn read(proc: BorrowedFd<'_>, top: bool) -> GuestMetrics {
    let mut metrics = GuestMetrics::default();
    let text = |name: &str| file(proc, name, MAX_FILE).unwrap_or_default();
    processors(&text("stat"), &mut metrics);
    memory(&text("meminfo"), &mut metrics);
    disks(&text("diskstats"), &mut metrics);
    if let Ok(root) = rustix::fs::statvfs("/") {
        metrics.root_total = root.f_blocks.saturating_mul(root.f_frsize);
        let free = root.f_bfree.saturating_mul(root.f_frsize);
        metrics.root_used = metrics.root_total.saturating_sub(free);
    }
    processes(proc, top, &mut metrics);
    metrics
}

fn file(folder: BorrowedFd<'_>, name: &str, max: usize) -> Result<Vec<u8>, Errno> {
    let file = openat(
        folder,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut content = Vec::new();
    while content.len() < max {
        let old = content.len();
        content.resize((2 * old).max(4096).min(max), 0);
        let read = rustix::io::read(&file, &mut content[old..]);
        content.truncate(old + *read.as_ref().unwrap_or(&0));
        if read? == 0 {
            break;
        }
    }
    Ok(content)
}

fn lines(text: &[u8]) -> impl Iterator<Item = impl Iterator<Item = &str>> {
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(|line| Some(std::str::from_utf8(line).ok()?.split_ascii_whitespace()))
}

fn number(word: Option<&str>) -> u64 {
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn millis(ticks: u64) -> u64 {
    ticks.saturating_mul(1000 / TICKS)
}

/// `cpu  user nice system idle iowait irq softirq steal …`, then a line for each processor.
fn processors(text: &[u8], metrics: &mut GuestMetrics) {
    for mut words in lines(text) {
        match words.next() {
            Some("cpu") => {
                let times: Vec<u64> = words.map(|word| number(Some(word))).take(8).collect();
                let idle = times.iter().skip(3).take(2);
                let all = times
                    .iter()
                    .fold(0, |sum: u64, time| sum.saturating_add(*time));
                let busy = idle.fold(all, |left, time| left.saturating_sub(*time));
                metrics.cpu_ms = millis(busy);
            }
            Some(word) if word.starts_with("cpu") => metrics.cpus += 1,
            _ => {}
        }
    }
}

fn memory(text: &[u8], metrics: &mut GuestMetrics) {
    for mut words in lines(text) {
        let place = match words.next() {
            Some("MemTotal:") => &mut metrics.memory_total,
            Some("MemAvailable:") => &mut metrics.memory_available,
            _ => continue,
        };
        *place = number(words.next()).saturating_mul(1024);
    }
}

/// `major minor name reads merged sectors ms writes merged sectors …`. Disks of the machine
/// are those of virtio; what lies on top of them would be counted twice.
fn disks(text: &[u8], metrics: &mut GuestMetrics) {
    for mut words in lines(text) {
        let is_disk = words.nth(2).is_some_and(|name| {
            let letters = name.strip_prefix("vd").unwrap_or_default();
            !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_lowercase())
        });
        if is_disk {
            let mut bytes = |skipped| number(words.nth(skipped)).saturating_mul(SECTOR);
            let (read, written) = (bytes(2), bytes(3));
            metrics.disk_read = metrics.disk_read.saturating_add(read);
            metrics.disk_written = metrics.disk_written.saturating_add(written);
        }
    }
}

fn processes(proc: BorrowedFd<'_>, top: bool, metrics: &mut GuestMetrics) {
    let Some(folder) = folder(proc, ".") else {
        return;
    };
    let Ok(entries) = Dir::read_from(&folder) else {
        return;
    };
    let own = rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_str().ok();
        let Some(pid) = name.and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own || pid == KTHREADD {
            continue;
        }
        if found.len() >= MAX_LOOKED_AT {
            metrics.processes += 1;
            continue;
        }
        // One that has ended meanwhile is none.
        let stat = file(proc, &format!("{pid}/stat"), MAX_FILE).unwrap_or_default();
        if let Some(process) = process(pid, &stat).filter(|one| one.parent != KTHREADD) {
            metrics.processes += 1;
            found.push(process);
        }
    }
    if top {
        found.sort_by_key(|process| Reverse(process.cpu_ms));
        found.truncate(GuestMetrics::MAX_TOP);
        found.sort_by_key(|process| process.pid);
        found.iter_mut().for_each(|process| describe(proc, process));
        metrics.top = found;
    }
}

fn folder(proc: BorrowedFd<'_>, name: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(proc, name, flags, Mode::empty()).ok()
}

/// `pid (name) state ppid …`: the name may have anything in it, also parentheses.
fn process(pid: u32, stat: &[u8]) -> Option<ProcessMetrics> {
    let begin = stat.iter().position(|byte| *byte == b'(')?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let name = stat.get(begin + 1..end)?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered from 3 in the manual.
    let word = |place: usize| words.get(place - 3).copied();
    let page = rustix::param::page_size() as u64;
    Some(ProcessMetrics {
        pid,
        parent: u32::try_from(number(word(4))).ok()?,
        uid: 0,
        state: *word(3)?.as_bytes().first()?,
        threads: u32::try_from(number(word(20))).unwrap_or(u32::MAX),
        cpu_ms: millis(number(word(14)).saturating_add(number(word(15)))),
        memory: number(word(24)).saturating_mul(page),
        command: name.into(),
    })
}

/// Adds whose it is and its command line, with blanks between the words.
fn describe(proc: BorrowedFd<'_>, process: &mut ProcessMetrics) {
    let Some(folder) = folder(proc, &process.pid.to_string()) else {
        return;
    };
    if let Ok(found) = rustix::fs::fstat(&folder) {
        process.uid = found.st_uid;
    }
    let line = file(folder.as_fd(), "cmdline", GuestMetrics::MAX_COMMAND);
    let mut line = line.unwrap_or_default();
    while line.last() == Some(&0) {
        line.pop();
    }
    if !line.is_empty() {
        line.iter_mut()
            .filter(|byte| **byte == 0)
            .for_each(|byte| *byte = b' ');
        process.command = line.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let mut metrics = GuestMetrics::default();
        processors(
            b"cpu  10 1 20 1000 50 3 4 2 7 7\ncpu0 5 0 0 0\ncpu1 5 0 0 0\nintr 9\n",
            &mut metrics,
        );
        assert_eq!((metrics.cpus, metrics.cpu_ms), (2, 400));
        memory(
            b"MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n",
            &mut metrics,
        );
        assert_eq!(
            (metrics.memory_total, metrics.memory_available),
            (1_024_000, 409_600)
        );
        disks(
            b" 253 0 vda 10 0 8 1 0 0 0 0\n 253 1 vda1 1 0 8 1 1 0 8 0\n 253 16 vdb 1 2 2 4 5 6 20 8 0\n 7 0 loop0 9 9 9\n",
            &mut metrics,
        );
        assert_eq!((metrics.disk_read, metrics.disk_written), (5120, 10_240));
    }

    #[test]
    fn a_process_may_be_called_anything() {
        let stat =
            b"7 (a) R 1 ( x) S 3 7 7 0 -1 4194560 1 0 0 0 12 34 0 0 20 0 5 0 99 4096 2 18446";
        let process = process(7, stat).expect("a process");
        assert_eq!(process.command.as_bytes(), b"a) R 1 ( x");
        assert_eq!((process.parent, process.state), (3, b'S'));
        assert_eq!((process.cpu_ms, process.threads), (460, 5));
        assert_eq!(process.memory, 2 * rustix::param::page_size() as u64);
    }

    #[test]
    fn nonsense_is_zero() {
        for text in [
            &b""[..],
            b"cpu",
            b"cpu \xff",
            b"cpu x y z\n",
            b"cpu 99999999999999999999999 1",
        ] {
            let mut metrics = GuestMetrics::default();
            processors(text, &mut metrics);
            memory(text, &mut metrics);
            disks(text, &mut metrics);
        }
        for stat in [
            &b""[..],
            b"1",
            b"1 (x",
            b"1 )(",
            b"1 (x)",
            b"1 (x) S",
            b"1 (x) \xff 1",
        ] {
            let _ = process(1, stat);
        }
    }

    #[test]
    fn this_process_is_not_among_them_and_its_child_is() {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let proc = rustix::fs::open("/proc", flags, Mode::empty()).expect("/proc");
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .expect("spawn");
        let metrics = read(proc.as_fd(), true);
        assert!(metrics.cpus > 0 && metrics.memory_total > metrics.memory_available);
        assert!(metrics.root_total > metrics.root_used && metrics.processes > 0);
        let named = |pid: u32| metrics.top.iter().find(|process| process.pid == pid);
        assert_eq!(named(std::process::id()), None);
        // Where there are thousands it may not be one of the busiest.
        if metrics.processes < 256 {
            let found = named(child.id()).expect("the child");
            assert_eq!(found.parent, std::process::id());
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}
