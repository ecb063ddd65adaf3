//! Empty overlays: files in which a machine keeps what it changes of a disk that it shares.
//!
//! Writes the header and the empty tables of QEMU's qcow2, version 3. The file names no disk
//! below it: QEMU is told on its command line.
//!
//! Read first: `docs/interop/qcow2.txt` of QEMU.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a cluster, as a power of two: QEMU's default.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// What one entry of the first table covers: a cluster of pointers to clusters.
const COVERED: u64 = CLUSTER / 8 * CLUSTER;

/// The longest first table, in clusters: one block of reference counts has to cover all that
/// is written here. It is for disks of 512 TiB.
const MAX_TABLE: u64 = 128;

/// Makes an overlay of a disk of `size` bytes in the empty file `to`.
pub(super) fn create(to: &File, size: u64) -> io::Result<()> {
    let entries = size.div_ceil(COVERED).max(1);
    let table = (entries * 8).div_ceil(CLUSTER);
    if table > MAX_TABLE || !size.is_multiple_of(512) {
        return Err(io::Error::other("no disk has that size"));
    }
    // Clusters: the header, the table of reference counts, their one block, the first table.
    let used = 3 + table;
    to.set_len(used * CLUSTER)?;
    to.write_all_at(&header(size, entries), 0)?;
    to.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let counts = 1_u16
        .to_be_bytes()
        .repeat(usize::try_from(used).unwrap_or(0));
    to.write_all_at(&counts, 2 * CLUSTER)
}

fn header(size: u64, entries: u64) -> Vec<u8> {
    const VERSION: u32 = 3;
    const LENGTH: u32 = 104;
    /// Reference counts of two bytes: 2⁴ bits.
    const REFCOUNT_ORDER: u32 = 4;
    let entries = u32::try_from(entries).unwrap_or(u32::MAX);
    let long = |value: u64| value.to_be_bytes();
    let int = |value: u32| value.to_be_bytes();
    let parts: [&[u8]; 15] = [
        b"QFI\xfb",
        &int(VERSION),
        // The place and the length of the name of a disk below: there is none.
        &[0; 12],
        &int(CLUSTER_BITS),
        &long(size),
        // Not encrypted.
        &int(0),
        &int(entries),
        &long(3 * CLUSTER),
        &long(CLUSTER),
        // One cluster of reference counts' table.
        &int(1),
        // No snapshots.
        &[0; 12],
        // No features.
        &[0; 24],
        &int(REFCOUNT_ORDER),
        &int(LENGTH),
        // The end of extensions.
        &[0; 8],
    ];
    parts.concat()
}

/// How long an overlay of a disk of `size` bytes can get: everything changed, and tables.
pub(crate) fn largest(size: u64) -> u64 {
    size.saturating_add(size / 1000).saturating_add(64 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_where_the_specification_has_it() {
        let to = tempfile::tempfile().unwrap();
        create(&to, 1 << 40).unwrap();
        let mut header = [0; 112];
        to.read_exact_at(&mut header, 0).unwrap();
        let int = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        assert_eq!(&header[..4], b"QFI\xfb");
        assert_eq!((int(4), int(20), long(24)), (3, 16, 1 << 40));
        assert_eq!((int(36), long(40)), (2048, 3 << 16));
        assert_eq!((long(48), int(56)), (1 << 16, 1));
        assert_eq!((int(96), int(100)), (4, 104));
        for (at, zeros) in [(8, 12), (32, 4), (60, 36), (104, 8)] {
            assert!(header[at..at + zeros].iter().all(|byte| *byte == 0), "{at}");
        }
        let mut counts = [0; 10];
        to.read_exact_at(&mut counts, 2 << 16).unwrap();
        assert_eq!(counts, [0, 1, 0, 1, 0, 1, 0, 1, 0, 0]);
        for size in [1 << 63, 100] {
            assert!(create(&tempfile::tempfile().unwrap(), size).is_err());
        }
    }
}
