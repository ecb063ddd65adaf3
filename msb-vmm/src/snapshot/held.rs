//! Memory of a snapshot that is not to be kept: a sealed file without a name.
//!
//! Whoever goes on from it maps it copy-on-write. A seal keeps everybody from changing what
//! the others read: also the one who saved it, and a VMM that had to open it for writing.
//!
//! Read: `memfd_create(2)`, and `F_ADD_SEALS` in `fcntl(2)`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// What makes the content of a file last.
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Makes an empty file in memory.
pub(super) fn create(size: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("msb-snapshot", flags)?);
    file.set_len(size)?;
    Ok(file)
}

/// Makes the content last.
pub(super) fn seal(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SEALS)?)
}

/// Whether nobody can change the file.
pub(crate) fn is_sealed(file: impl AsFd) -> bool {
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
}

/// The memory of a snapshot for a moment. It can be gone on from while this exists.
#[derive(Debug)]
pub struct HeldMemory(File);

impl HeldMemory {
    pub(super) fn new(file: File) -> Self {
        Self(file)
    }

    /// Where other processes of the same user find it.
    pub fn path(&self) -> PathBuf {
        let (process, fd) = (std::process::id(), self.0.as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{fd}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_sealed_stays_also_for_those_who_open_it_for_writing() {
        let file = create(8192).unwrap();
        file.write_all_at(b"saved", 4096).unwrap();
        assert!(!is_sealed(&file));
        seal(&file).unwrap();
        assert!(is_sealed(&file));
        let held = HeldMemory::new(file);
        let path = held.path();
        let other = File::options().read(true).write(true).open(path).unwrap();
        assert!(other.write_all_at(b"other", 4096).is_err());
        assert!(other.set_len(0).is_err());
        assert!(!is_sealed(tempfile::tempfile().unwrap()));
        let mut content = [0; 5];
        other.read_exact_at(&mut content, 4096).unwrap();
        assert_eq!(&content, b"saved");
    }
}
