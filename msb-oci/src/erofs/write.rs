//! Writes the planned image in one go, from the first byte to the last.

use std::io::{self, Write};

use super::inode::{directory_content, emit};
use super::layout::{Body, DEVICE_SLOT, Layout, SLOT, SUPER_OFFSET, SUPER_SIZE};
use super::{Device, crc32c};
use crate::layer::{BLOCK, Kind};

const MAGIC: u32 = 0xe0f5_e1e2;
/// The checksum is valid; timestamps are modification times.
const COMPATIBLE: u32 = 0x1 | 0x2;
const CHUNKED_FILE: u32 = 0x4;
const DEVICE_TABLE: u32 = 0x8;
/// The checksum covers the rest of a block from the superblock on.
const CHECKSUMMED: usize = BLOCK as usize;

/// Bytes collected before they are handed to the writer.
const CHUNK: usize = 1 << 18;

pub(super) fn write(
    layout: &Layout<'_, '_>,
    devices: &[Device],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut output = Output {
        out,
        buffer: Vec::with_capacity(CHUNK * 2),
        written: 0,
    };
    output.buffer.resize(SUPER_OFFSET as usize, 0);
    superblock(layout, devices, &mut output.buffer);
    output.pad_to(layout.meta_block * BLOCK)?;
    let mut content = Vec::new();
    for (number, inode) in layout.inodes.iter().enumerate() {
        output.pad_to(layout.meta_block * BLOCK + inode.nid * SLOT)?;
        flat_content(layout, number, &mut content);
        emit(layout, number, &content, &mut output.buffer);
    }
    output.pad_to(layout.data_block * BLOCK)?;
    for (number, inode) in layout.inodes.iter().enumerate() {
        let Body::Flat {
            size,
            inline,
            blocks,
        } = inode.body
        else {
            continue;
        };
        let bytes = if inline { size - size % BLOCK } else { size };
        if bytes > 0 {
            output.pad_to(blocks * BLOCK)?;
            flat_content(layout, number, &mut content);
            output.buffer.extend_from_slice(&content[..bytes as usize]);
        }
    }
    output.pad_to(layout.image_bytes())?;
    output.flush()
}

/// The bytes of a directory or a symlink.
fn flat_content(layout: &Layout<'_, '_>, number: usize, content: &mut Vec<u8>) {
    let inode = &layout.inodes[number];
    match inode.node.kind() {
        Kind::Directory => directory_content(layout, inode, number, content),
        _ => {
            content.clear();
            content.extend_from_slice(inode.node.target());
        }
    }
}

fn superblock(layout: &Layout<'_, '_>, devices: &[Device], out: &mut Vec<u8>) {
    let start = out.len();
    let features = if devices.is_empty() {
        CHUNKED_FILE
    } else {
        CHUNKED_FILE | DEVICE_TABLE
    };
    let (seconds, nanos) = layout.build_time;
    let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
    put(&MAGIC.to_le_bytes());
    put(&[0; 4]); // checksum
    put(&COMPATIBLE.to_le_bytes());
    put(&[BLOCK.trailing_zeros() as u8, 0]);
    put(&(layout.inodes[0].nid as u16).to_le_bytes());
    put(&(layout.inodes.len() as u64).to_le_bytes());
    put(&seconds.to_le_bytes());
    put(&nanos.to_le_bytes());
    put(&((layout.image_bytes() / BLOCK) as u32).to_le_bytes());
    put(&(layout.meta_block as u32).to_le_bytes());
    put(&[0; 4]); // shared xattrs: none
    put(&[0; 32]); // uuid, volume name
    put(&features.to_le_bytes());
    put(&[0; 2]); // compression: none
    put(&(devices.len() as u16).to_le_bytes());
    put(&(((SUPER_OFFSET + SUPER_SIZE) / DEVICE_SLOT) as u16).to_le_bytes());
    put(&[0; 38]);
    let mut block = layout.image_bytes() / BLOCK;
    for device in devices {
        let blocks = device.bytes / BLOCK;
        put(&device.tag);
        put(&(blocks as u32).to_le_bytes());
        put(&(block as u32).to_le_bytes());
        put(&[0; 56]);
        block += blocks;
    }
    let mut covered = out[start..].to_vec();
    covered.resize(covered.len().max(CHECKSUMMED), 0);
    // Where metadata starts within the covered part, there is none: the first
    // inode lies in a block of its own.
    let checksum = crc32c(&covered[..CHECKSUMMED]);
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

struct Output<'w, W: Write> {
    out: &'w mut W,
    buffer: Vec<u8>,
    written: u64,
}

impl<W: Write> Output<'_, W> {
    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        let length = position.saturating_sub(self.written) as usize;
        debug_assert!(length >= self.buffer.len(), "overlapping layout");
        self.buffer.resize(length, 0);
        if self.buffer.len() >= CHUNK {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
