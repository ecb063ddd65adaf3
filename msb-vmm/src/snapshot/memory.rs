//! Saving the memory of a running machine, which it has mapped copy-on-write.
//!
//! What the machine has not changed is in the file that it has mapped. What it has
//! changed is in memory of its process: `/proc/PID/pagemap` says which pages those are. So saving costs what was changed, and what was not
//! changed is shared with the file where the file system can. The copying is done by a few
//! threads: the guest waits for it.
//!
//! The process may have been taken over. It can make what is saved wrong, which it could by
//! changing its memory, too; it cannot make it larger than the machine.
//!
//! Read: the kernel's `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::sys::read_memory;
use crate::template::copy;

/// Bits of an entry of `pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is the file's, or else the process's own.
const OF_FILE: u64 = 1 << 61;

/// How much is read at once: so little that it is still in the processor's cache when it is
/// written.
const CHUNK: usize = 256 << 10;

/// Threads that copy: one reads while another writes. More gain little, as writers to one
/// file take turns.
const COPIERS: usize = 2;

/// Entries of `pagemap` that are read at once.
const ENTRIES: usize = 8192;

/// The most of `maps` that is read: a VMM has some hundred mappings.
const MAX_MAPS: u64 = 4 << 20;

/// A part of the file, and where the process has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    address: u64,
    offset: u64,
    length: u64,
}

/// Writes the memory of the process `pid`, which has all of `base` mapped copy-on-write,
/// to `to`: an empty file that is as long. The process does not run meanwhile. Ends early,
/// with an error, once `given_up` is set.
pub(super) fn save(pid: Pid, base: &File, to: &File, given_up: &AtomicBool) -> io::Result<()> {
    let page = rustix::param::page_size();
    let size = base.metadata()?.len();
    let proc = |name: &str| File::open(format!("/proc/{}/{name}", pid.as_raw_nonzero()));
    let mappings = mappings(proc("maps")?, base.metadata()?.ino())?;
    check(&mappings, size)?;
    let pages = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(page);
    let mut changed = vec![false; pages];
    let pagemap = proc("pagemap")?;
    for mapping in &mappings {
        find_changed(&pagemap, mapping, page, &mut changed)?;
    }
    // What the new file shares with the old one has to be overwritten also by zeros.
    let shared = ioctl_ficlone(to, base).is_ok();
    if !shared {
        copy_unchanged(base, to, page, &changed, given_up)?;
    }
    let places = places(&mappings, &changed, page);
    let next = AtomicUsize::new(0);
    let copier = || {
        let mut buffer = vec![0; CHUNK];
        while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
            if given_up.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            copy_changed(pid, to, place, page, shared, &mut buffer)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        // A host that gives no more threads has this one.
        let others: Vec<_> = (1..COPIERS)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, copier).ok())
            .collect();
        let mut copied = copier();
        for other in others {
            let ended = other.join();
            copied = copied.and(ended.unwrap_or_else(|_| Err(io::Error::other("a copier failed"))));
        }
        copied
    })
}

/// Where the process has what it has changed, in pieces of at most [`CHUNK`].
fn places(mappings: &[Mapping], changed: &[bool], page: usize) -> Vec<Place> {
    let mut places = Vec::new();
    for mapping in mappings {
        let first = index(mapping.offset, page);
        let last = first + index(mapping.length, page);
        for (start, end) in runs(&changed[first..last]) {
            for start in (start..end).step_by(CHUNK / page) {
                let length = (end - start).min(CHUNK / page) * page;
                let (address, offset) = (mapping.address, mapping.offset);
                places.push(Place {
                    address: address + (start * page) as u64,
                    offset: offset + (start * page) as u64,
                    length,
                });
            }
        }
    }
    places
}

fn index(bytes: u64, page: usize) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX) / page
}

/// Finds the mappings of the file `inode`. Its device is named differently here and there on
/// some file systems; that the mappings are all of a file of that size is checked later.
fn mappings(maps: impl Read, inode: u64) -> io::Result<Vec<Mapping>> {
    let mut found = Vec::new();
    for line in BufReader::new(maps.take(MAX_MAPS)).lines() {
        let line = line?;
        let mut fields = line.split_ascii_whitespace();
        let mut next = || fields.next().unwrap_or_default();
        let (range, access, offset, _device, file) = (next(), next(), next(), next(), next());
        if !access.ends_with('p') || file.parse() != Ok(inode) {
            continue;
        }
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let range = range.split_once('-');
        let range = range.and_then(|(start, end)| Some((hex(start)?, hex(end)?)));
        let (Some((start, end)), Some(offset)) = (range, hex(offset)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        found.push(Mapping {
            address: start,
            offset,
            length: end.saturating_sub(start),
        });
    }
    found.sort_by_key(|mapping| mapping.offset);
    Ok(found)
}

/// Checks that the mappings are one file of `size` bytes without gap or overlap.
fn check(mappings: &[Mapping], size: u64) -> io::Result<()> {
    let mut end = Some(0_u64);
    for mapping in mappings {
        let begins = end.filter(|end| *end == mapping.offset);
        end = begins.and_then(|end| end.checked_add(mapping.length));
    }
    (end == Some(size))
        .then_some(())
        .ok_or_else(|| io::Error::other("the machine's memory is not where it was put"))
}

/// Marks the pages of a mapping that are the process's own.
fn find_changed(
    pagemap: &File,
    mapping: &Mapping,
    page: usize,
    changed: &mut [bool],
) -> io::Result<()> {
    let mut bytes = vec![0; ENTRIES * 8];
    let first = index(mapping.offset, page);
    let count = index(mapping.length, page);
    let mut at = index(mapping.address, page) as u64 * 8;
    for places in changed[first..first + count].chunks_mut(ENTRIES) {
        let entries = &mut bytes[..places.len() * 8];
        pagemap.read_exact_at(entries, at)?;
        at += entries.len() as u64;
        for (place, entry) in places.iter_mut().zip(entries.chunks_exact(8)) {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            *place = entry & OF_FILE == 0 && entry & (PRESENT | SWAPPED) != 0;
        }
    }
    Ok(())
}

/// The ranges of pages that are marked.
fn runs(changed: &[bool]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + changed[at..].iter().position(|changed| *changed)?;
        let length = changed[start..].iter().position(|changed| !*changed);
        at = length.map_or(changed.len(), |length| start + length);
        Some((start, at))
    })
}

/// How much is copied before it is looked whether somebody wants it, in bytes.
const STEP: usize = 32 << 20;

/// Copies the content of `base` but for what was changed. Holes stay holes. Ends early, with an
/// error, once `given_up` is set.
fn copy_unchanged(
    base: &File,
    to: &File,
    page: usize,
    changed: &[bool],
    given_up: &AtomicBool,
) -> io::Result<()> {
    let mut end = 0;
    loop {
        let start = match seek(base, SeekFrom::Data(end)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        end = seek(base, SeekFrom::Hole(start))?;
        let first = index(start, page);
        let last = index(end.next_multiple_of(page as u64), page).min(changed.len());
        let kept: Vec<bool> = changed[first..last]
            .iter()
            .map(|changed| !changed)
            .collect();
        for (from, until) in runs(&kept) {
            let at = ((first + from) * page) as u64;
            let until = ((first + until) * page) as u64;
            let until = until.min(end);
            for at in (at..until).step_by(STEP) {
                if given_up.load(Ordering::Relaxed) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                copy::copy(base, to, at, until.min(at + STEP as u64))?;
            }
        }
    }
}

struct Place {
    address: u64,
    offset: u64,
    length: usize,
}

/// Copies pages of the process. Zeros are left out, unless something else is there.
fn copy_changed(
    pid: Pid,
    to: &File,
    place: &Place,
    page: usize,
    over: bool,
    buffer: &mut [u8],
) -> io::Result<()> {
    let chunk = &mut buffer[..place.length];
    read_memory(pid, place.address, chunk)?;
    if over {
        return to.write_all_at(chunk, place.offset);
    }
    let zeros = vec![0; page];
    let full: Vec<bool> = chunk.chunks(page).map(|page| page != zeros).collect();
    runs(&full).try_for_each(|(start, end)| {
        let (start, end) = (start * page, end * page);
        to.write_all_at(&chunk[start..end], place.offset + start as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_found_by_their_file() {
        let maps = "7f00-8000 rw-p 00000000 fe:00 77 /a b\n\
                    8000-9000 rw-s 00000000 fe:00 42 /ram\n\
                    20000-30000 rw-p 00010000 00:2d 42 /ram (deleted)\n\
                    10000-20000 rw-p 00000000 00:2d 42 /ram\n";
        let found = mappings(maps.as_bytes(), 42).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].address, 0x10000);
        assert!(check(&found, 0x20000).is_ok());
        for size in [0x10000, 0x1ffff, 0x20001, 0x30000] {
            assert!(check(&found, size).is_err(), "{size:#x}");
        }
        assert!(check(&[found[0], found[0]], 0x20000).is_err());
        // What is said behind a gap is not believed either.
        let far = Mapping {
            offset: 0x18000,
            ..found[1]
        };
        for said in [[found[0], far], [far, found[0]]] {
            assert!(check(&said, 0x10000).is_err());
        }
        let endless = Mapping {
            length: u64::MAX,
            ..found[1]
        };
        assert!(check(&[found[0], endless], 0xffff).is_err());
        assert!(mappings(&b"nonsense rw-p 0 0:0 42 x\n"[..], 42).is_err());
    }

    #[test]
    fn runs_are_what_is_marked() {
        let marked = |text: &str| text.bytes().map(|c| c == b'x').collect::<Vec<_>>();
        let all = |text| runs(&marked(text)).collect::<Vec<_>>();
        assert_eq!(all(""), []);
        assert_eq!(all("..."), []);
        assert_eq!(all("xx.x..x"), [(0, 2), (3, 4), (6, 7)]);
    }

    #[test]
    fn pieces_are_bounded_and_complete() {
        let mapping = Mapping {
            address: 1 << 40,
            offset: 0,
            length: 5 << 20,
        };
        let mut changed = vec![true; (5 << 20) / 4096];
        changed[700] = false;
        let places = places(&[mapping], &changed, 4096);
        let told: usize = places.iter().map(|place| place.length).sum();
        assert_eq!(told, (5 << 20) - 4096);
        for place in &places {
            assert!((1..=CHUNK).contains(&place.length));
            assert_eq!(place.address - (1 << 40), place.offset);
            assert_ne!(place.offset, 700 * 4096);
        }
    }

    #[test]
    fn what_was_changed_is_left_out() {
        let page = 4096;
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&[7; 4 * 4096], 0).unwrap();
        from.write_all_at(&[8; 4096], 8 * 4096).unwrap();
        let mut changed = vec![false; 16];
        (changed[1], changed[8]) = (true, true);
        for file in [&from, &to] {
            file.set_len(16 * 4096).unwrap();
        }
        let given_up = AtomicBool::new(true);
        let error = copy_unchanged(&from, &to, page, &changed, &given_up).expect_err("given up");
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        given_up.store(false, Ordering::Relaxed);
        copy_unchanged(&from, &to, page, &changed, &given_up).unwrap();
        let mut first = [0; 1];
        for (at, content) in [(0, 7), (1, 0), (2, 7), (3, 7), (8, 0), (9, 0)] {
            to.read_exact_at(&mut first, at * 4096).unwrap();
            assert_eq!(first[0], content, "{at}");
        }
    }
}
