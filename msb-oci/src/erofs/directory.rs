//! Directory blocks: sorted entries first, their names after them.

use crate::layer::Kind;

const BLOCK: usize = crate::layer::BLOCK as usize;
const DIRENT: usize = 12;

/// One block of a directory: `count` entries that use `bytes` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

/// Distributes names, given by their lengths, over blocks.
pub(super) fn pack(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = Packed> {
    let mut lengths = lengths.peekable();
    std::iter::from_fn(move || {
        let mut packed = Packed { count: 0, bytes: 0 };
        while let Some(length) = lengths.next_if(|length| packed.bytes + DIRENT + length <= BLOCK) {
            packed.count += 1;
            packed.bytes += DIRENT + length;
        }
        (packed.count > 0).then_some(packed)
    })
}

/// An entry of a directory.
#[derive(Clone, Copy)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) kind: Kind,
}

/// Appends one block's entries and names, without padding.
pub(super) fn emit(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT;
    for entry in entries {
        out.extend_from_slice(&entry.nid.to_le_bytes());
        out.extend_from_slice(&(name_offset as u16).to_le_bytes());
        out.extend_from_slice(&[file_type(entry.kind), 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend_from_slice(entry.name);
    }
}

/// Linux's `FT_*` numbers.
fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::File => 1,
        Kind::Directory => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink => 7,
        Kind::HardLink | Kind::Whiteout | Kind::Opaque => 0,
    }
}
