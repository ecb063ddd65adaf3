//! The kernel's log, for what it alone knows: whom it killed because memory ran out, and disks
//! that failed.
//!
//! Only lines of the kernel itself count. What programs write to the log is marked as theirs.
//!
//! Reading: the kernel's `Documentation/ABI/testing/dev-kmsg`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::message::{ByteString, Trouble};

/// Lines read at once: a program that floods the log keeps the agent from nothing else.
const MAX_LINES: usize = 256;

/// The longest record of the log.
const MAX_RECORD: usize = 8 * 1024;

/// The longest name of a program, as the kernel has it.
const MAX_NAME: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct KernelLog {
    file: OwnedFd,
    /// How often a disk has failed.
    failures: u32,
}

impl KernelLog {
    /// Begins with what the kernel says from now on.
    pub(super) fn open() -> io::Result<KernelLog> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
        rustix::fs::seek(&file, SeekFrom::End(0))?;
        Ok(KernelLog { file, failures: 0 })
    }

    /// Becomes readable when there is more.
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How often a disk has failed so far.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// What new lines tell of.
    pub(super) fn read(&mut self) -> Vec<Trouble> {
        let mut record = [0; MAX_RECORD];
        let mut found = Vec::new();
        for _ in 0..MAX_LINES {
            match rustix::io::read(&self.file, &mut record) {
                Ok(count) => found.extend(self.judge(&record[..count])),
                // It was overwritten before it was read; what comes next is there.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        found
    }

    fn judge(&mut self, record: &[u8]) -> Option<Trouble> {
        let line = kernels_line(record)?;
        if line.starts_with("I/O error, dev vd") {
            self.failures = self.failures.saturating_add(1);
            let count = self.failures;
            return Some(Trouble::DiskFailed { count });
        }
        let (_, killed) = line.split_once("ut of memory: Killed process ")?;
        let (_, name) = killed.split_once(" (")?;
        let (name, _) = name.split_once(") total-vm:")?;
        let name = name.as_bytes().get(..name.len().min(MAX_NAME))?;
        Some(Trouble::OutOfMemory {
            killed: 1,
            program: Some(ByteString::from(name)),
        })
    }
}

/// The text of a record, if the kernel wrote it: `PRIORITY,SEQUENCE,TIME,FLAGS;TEXT`. Above
/// the three bits of its severity a priority says who.
fn kernels_line(record: &[u8]) -> Option<&str> {
    let text = record.split(|byte| *byte == b'\n').next()?;
    let (head, line) = str::from_utf8(text).ok()?.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    (priority >> 3 == 0).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log() -> KernelLog {
        let file = std::fs::File::open("/dev/null").unwrap().into();
        KernelLog { file, failures: 0 }
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let mut log = log();
        let killed = "3,412,1700,-;Memory cgroup out of memory: Killed process 97 (a (b) c) \
                      total-vm:9kB, anon-rss:1kB\n SUBSYSTEM=x\n";
        let program = Some("a (b) c".into());
        let expected = Trouble::OutOfMemory { killed: 1, program };
        assert_eq!(log.judge(killed.as_bytes()), Some(expected));
        let killed = "3,412,1700,-;Out of memory: Killed process 97 (x) total-vm:9kB\n";
        assert!(log.judge(killed.as_bytes()).is_some());
        let error = "3,9,1,-;I/O error, dev vdb, sector 8 op 0x1:(WRITE) flags 0x800\n";
        for count in 1..3 {
            let expected = Trouble::DiskFailed { count };
            assert_eq!(log.judge(error.as_bytes()), Some(expected));
        }
    }

    #[test]
    fn programs_do_not_speak_for_the_kernel() {
        let mut log = log();
        for who in [12, 11, 8, 4096] {
            let said = format!("{who},9,1,-;I/O error, dev vdb\n");
            assert_eq!(log.judge(said.as_bytes()), None);
        }
        let quoted = b"6,9,1,-;x: I/O error, dev vdb\n";
        assert_eq!(log.judge(quoted), None);
    }

    proptest! {
        #[test]
        fn any_record_is_read(record in prop::collection::vec(any::<u8>(), 0..200)) {
            log().judge(&record);
        }
    }
}
