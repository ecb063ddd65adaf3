//! One inode as it is on disk, with its xattrs and its body.

use super::directory::{Dirent, emit as emit_directory, pack};
use super::layout::{Body, CHUNK_POINTER, Inode, Layout, names};
use super::xattr;
use crate::layer::{BLOCK, Kind};

/// Inode data layouts of the format.
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;
/// Chunk pointers have a device number.
const CHUNK_INDEXES: u32 = 0x20;
/// A chunk that is a hole.
const HOLE: [u8; 8] = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

/// Appends inode `number`. `flat` is the content of a directory or symlink.
pub(super) fn emit(layout: &Layout<'_, '_>, number: usize, flat: &[u8], out: &mut Vec<u8>) {
    let inode = &layout.inodes[number];
    let start = out.len();
    emit_core(inode, number, out);
    xattr::emit(inode.node.xattrs(), out);
    match inode.body {
        Body::Flat {
            size, inline: true, ..
        } => {
            out.extend_from_slice(&flat[(size - size % BLOCK) as usize..]);
        }
        Body::Chunks { bits, count } => {
            let length = out.len() - start;
            out.resize(start + length.next_multiple_of(CHUNK_POINTER as usize), 0);
            emit_chunks(inode, bits, count, out);
        }
        Body::Flat { .. } | Body::None => {}
    }
}

fn emit_core(inode: &Inode<'_, '_>, number: usize, out: &mut Vec<u8>) {
    let node = inode.node;
    let (data_layout, size, union) = match inode.body {
        Body::None => (FLAT_PLAIN, 0, device_number(node.device())),
        Body::Flat {
            size,
            inline,
            blocks,
        } => (
            if inline { FLAT_INLINE } else { FLAT_PLAIN },
            size,
            blocks as u32,
        ),
        Body::Chunks { bits, .. } => (CHUNK_BASED, node.size(), bits | CHUNK_INDEXES),
    };
    let format = data_layout << 1 | u16::from(!inode.compact);
    let mode = type_bits(node.kind()) | node.mode();
    // Only a 32-bit stat uses this number.
    let ino = number as u32 + 1;
    let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
    put(&format.to_le_bytes());
    put(&xattr::count(inode.xattr_bytes as usize).to_le_bytes());
    put(&mode.to_le_bytes());
    if inode.compact {
        put(&(inode.links as u16).to_le_bytes());
        put(&(size as u32).to_le_bytes());
        put(&[0; 4]);
        put(&union.to_le_bytes());
        put(&ino.to_le_bytes());
        put(&(node.uid() as u16).to_le_bytes());
        put(&(node.gid() as u16).to_le_bytes());
        put(&[0; 4]);
        return;
    }
    let (seconds, nanos) = node.mtime();
    put(&[0; 2]);
    put(&size.to_le_bytes());
    put(&union.to_le_bytes());
    put(&ino.to_le_bytes());
    put(&node.uid().to_le_bytes());
    put(&node.gid().to_le_bytes());
    put(&seconds.to_le_bytes());
    put(&nanos.to_le_bytes());
    put(&inode.links.to_le_bytes());
    put(&[0; 16]);
}

fn emit_chunks(inode: &Inode<'_, '_>, bits: u32, count: u64, out: &mut Vec<u8>) {
    // Device 0 is the metadata image itself.
    let device = (inode.node.layer() as u16).wrapping_add(1);
    let mut extents = inode.node.extents().iter().peekable();
    for chunk in 0..count {
        let position = chunk * (BLOCK << bits);
        while extents
            .next_if(|extent| extent.offset + extent.length <= position)
            .is_some()
        {}
        match extents.peek() {
            Some(extent) if extent.offset <= position => {
                let block = (extent.tar_offset + position - extent.offset) / BLOCK;
                out.extend_from_slice(&[0; 2]);
                out.extend_from_slice(&device.to_le_bytes());
                out.extend_from_slice(&(block as u32).to_le_bytes());
            }
            _ => out.extend_from_slice(&HOLE),
        }
    }
}

/// A directory's content: its blocks, all but the last padded.
pub(super) fn directory_content(
    layout: &Layout<'_, '_>,
    inode: &Inode<'_, '_>,
    number: usize,
    out: &mut Vec<u8>,
) {
    out.clear();
    let entries: Vec<Dirent<'_>> = names(inode.node)
        .map(|(name, child)| {
            let target = match child {
                Some(child) => layout.number_of(child) as usize,
                None if name == b"." => number,
                None => inode.parent as usize,
            };
            let target = &layout.inodes[target];
            Dirent {
                name,
                nid: target.nid,
                kind: target.node.kind(),
            }
        })
        .collect();
    let mut rest = &entries[..];
    for packed in pack(entries.iter().map(|entry| entry.name.len())) {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let (block, tail) = rest.split_at(packed.count);
        emit_directory(block, out);
        rest = tail;
    }
}

fn type_bits(kind: Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice => 0o060_000,
        Kind::Symlink => 0o120_000,
        Kind::Socket => 0o140_000,
        Kind::File | Kind::HardLink | Kind::Whiteout | Kind::Opaque => 0o100_000,
    }
}

/// Linux's 32-bit device number: the minor number around the major.
fn device_number((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
