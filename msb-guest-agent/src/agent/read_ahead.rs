//! Reading files for the sake of the page cache.
//!
//! What a template's guest has read is in its memory, and so in that of every copy: the
//! first program of a copy is found there instead of on the disk.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

use crate::message::ByteString;

/// The most that is read of all files together: a template is that much larger.
const MAX_READ: u64 = 16 << 20;

/// Reads the files through `buffer`. What cannot be read, or is no file, is left out.
pub(super) fn read(paths: &[ByteString], buffer: &mut [u8]) {
    let mut left = MAX_READ;
    for path in paths {
        if let Some(file) = open(path) {
            let mut file = file.take(left);
            while file.read(buffer).is_ok_and(|length| length > 0) {}
            left = file.limit();
        }
    }
}

fn open(path: &ByteString) -> Option<File> {
    let mut options = OpenOptions::new();
    // A FIFO of the image must not hold the agent up.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(OsStr::from_bytes(path.as_bytes())).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}
