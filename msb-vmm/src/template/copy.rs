//! Copying a template's memory: what is a hole stays one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// The most that is copied before it is looked whether somebody still wants it.
const CHUNK: u64 = 32 << 20;

/// Copies `from` to `to`, an empty file that is as long and has no content yet. Shares the
/// blocks where the file system can.
pub(crate) fn sparse(from: &File, to: &File) -> io::Result<()> {
    sparse_unless(from, to, &AtomicBool::new(false))
}

/// As [`sparse`]; ends early, with an error, once `given_up` is set.
pub(crate) fn sparse_unless(from: &File, to: &File, given_up: &AtomicBool) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut end = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(end)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        end = seek(from, SeekFrom::Hole(start))?;
        let mut at = start;
        while at < end {
            if given_up.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let next = end.min(at + CHUNK);
            copy(from, to, at, next)?;
            at = next;
        }
    }
}

/// Copies the bytes from `at` to `end`.
pub(crate) fn copy(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX);
        let (mut from_at, mut to_at) = (at, at);
        match copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => at += copied as u64,
            Err(Errno::INTR) => {}
            // From one file system to another, or on a kernel that does not do it.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_bytes(from, to, at, end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_bytes(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX);
        let length = length.min(buffer.len());
        let chunk = &mut buffer[..length];
        from.read_exact_at(chunk, at)?;
        to.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for file in [&from, &to] {
            file.set_len(64 << 20).unwrap();
        }
        for at in [0, 5 << 20, (64 << 20) - 4096] {
            from.write_all_at(&[7; 4096], at).unwrap();
        }
        let slow = tempfile::tempfile().unwrap();
        copy_bytes(&from, &slow, 4096, (5 << 20) + 4096).unwrap();
        let mut byte = [0];
        slow.read_exact_at(&mut byte, 5 << 20).unwrap();
        assert_eq!(byte, [7]);
        let stopped = sparse_unless(&from, &slow, &AtomicBool::new(true));
        assert!(stopped.is_err(), "nobody wants it");
        sparse(&from, &to).unwrap();
        assert_eq!(from.metadata().unwrap().len(), to.metadata().unwrap().len());
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut page = [0; 4096];
        for at in [0, 4096, 5 << 20, 6 << 20, (64 << 20) - 4096] {
            let written = !matches!(at, 4096 | 0x60_0000);
            to.read_exact_at(&mut page, at).unwrap();
            assert_eq!(page[9], if written { 7 } else { 0 }, "{at}");
        }
    }
}
