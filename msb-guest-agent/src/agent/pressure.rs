//! Commands that have so much memory that they only read their own programs in again, and
//! again: nothing gets on, and the kernel, which finds a page to take each time, kills nobody.
//!
//! It is looked at only while the bound on memory is hit: the kernel tells that. Then, twice a
//! second, it is counted how many pages of files were read in again shortly after they were
//! taken. If that is more than there are, several times in a row, somebody has to go: the one
//! that has the most memory, as the kernel would choose.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::groups;

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// So often in a row it is thrashing: what a program does when it starts, or a burst, passes.
const PATIENCE: u32 = 4;

/// Thrashing is where files have less than this part of the memory that the bound allows.
const SMALL_PART: u64 = 16;

const PAGE: u64 = 4096;

/// The longest text of the numbers.
const MAX_TEXT: usize = 8 * 1024;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Pressure {
    events: OwnedFd,
    stat: OwnedFd,
    bound: u64,
    /// When to look, while the bound is hit.
    next: Option<Instant>,
    hits: u64,
    refaults: u64,
    looks: u32,
}

impl Pressure {
    /// Watches the group of all commands.
    pub(super) fn open(all: BorrowedFd<'_>) -> io::Result<Pressure> {
        let open = |name| groups::open(all, name, OFlags::RDONLY);
        let max = open("memory.max")?;
        let bound = groups::value(&max, b"");
        let mut pressure = Pressure {
            events: open("memory.events")?,
            stat: open("memory.stat")?,
            bound: bound.ok_or(io::ErrorKind::NotFound)?,
            next: None,
            hits: 0,
            refaults: 0,
            looks: 0,
        };
        pressure.hits = pressure.count_hits();
        Ok(pressure)
    }

    /// What tells that the bound is hit, as an exception; `None` while that is known.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.next.is_none().then(|| self.events.as_fd())
    }

    /// When to look.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// The bound is hit.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = Some(now + EVERY);
        self.looks = 0;
        self.hits = self.count_hits();
        self.refaults = self.read().refaults;
    }

    /// Looks, if it is time; tells whether somebody has to go.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        if self.next.is_none_or(|next| now < next) {
            return false;
        }
        let hits = self.count_hits();
        let before = std::mem::replace(&mut self.hits, hits);
        let numbers = self.read();
        let again = numbers.refaults.saturating_sub(self.refaults);
        self.refaults = numbers.refaults;
        if is_thrashing(self.bound, &numbers, again) {
            self.looks += 1;
        } else {
            self.looks = 0;
        }
        self.next = (hits != before || self.looks > 0).then_some(now + EVERY);
        if self.looks < PATIENCE {
            return false;
        }
        self.looks = 0;
        true
    }

    /// How often the bound was hit. Reading it is what ends the kernel's telling.
    fn count_hits(&self) -> u64 {
        groups::value(&self.events, b"max ").unwrap_or(0)
    }

    fn read(&self) -> Numbers {
        let mut text = [0; MAX_TEXT];
        let count = rustix::io::pread(&self.stat, &mut text, 0).unwrap_or(0);
        Numbers::parse(&text[..count])
    }
}

/// What there is of files, in bytes, and how many of their pages were read in again.
#[derive(Debug, Default, PartialEq, Eq)]
struct Numbers {
    files: u64,
    refaults: u64,
}

impl Numbers {
    fn parse(text: &[u8]) -> Numbers {
        let mut numbers = Numbers::default();
        for line in text.split(|byte| *byte == b'\n') {
            let Some((key, number)) = str::from_utf8(line)
                .ok()
                .and_then(|line| line.split_once(' '))
            else {
                continue;
            };
            let number = number.parse().unwrap_or(0);
            match key {
                "inactive_file" | "active_file" => numbers.files += number,
                "workingset_refault_file" => numbers.refaults = number,
                _ => {}
            }
        }
        numbers
    }
}

/// Whether all that there is of files was read in again since the last look.
fn is_thrashing(bound: u64, numbers: &Numbers, again: u64) -> bool {
    numbers.files < bound / SMALL_PART && again > (numbers.files / PAGE).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_stood_still_is_told_from_one_that_reads() {
        let stat = b"anon 205696000\nfile 2064384\ninactive_file 1265664\nactive_file 798720\n\
                     workingset_refault_anon 0\nworkingset_refault_file 887892\n";
        let numbers = Numbers::parse(stat);
        let (files, refaults) = (2_064_384, 887_892);
        assert_eq!(numbers, Numbers { files, refaults });
        let bound = 211_795_968;
        assert!(is_thrashing(bound, &numbers, 15_000));
        // The same with a little reading in again; much of it where files have much memory.
        assert!(!is_thrashing(bound, &numbers, 500));
        let files = 64 << 20;
        assert!(!is_thrashing(bound, &Numbers { files, refaults }, 100_000));
        assert_eq!(Numbers::parse(b"\xff\nactive_file x\n"), Numbers::default());
    }
}
