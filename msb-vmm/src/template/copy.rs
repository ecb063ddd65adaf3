//! Copying a template's memory: what is a hole stays one.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Copies `from` to `to`, an empty file that is as long and has no content yet. Shares the
/// blocks where the file system can.
pub(crate) fn sparse(from: &File, to: &File) -> io::Result<()> {
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
        copy(from, to, start, end)?;
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
            Err(errno) => return Err(errno.into()),
        }
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
