//! Decides where everything goes: numbers inodes, chooses their forms, and
//! gives each a place, before the first byte is written.

use std::collections::{BTreeMap, HashMap};

use super::directory::{Packed, pack};
use super::{Device, MAX_CHUNKS, PAGE, WriteError, xattr};
use crate::layer::{BLOCK, Kind, printable};
use crate::tree::{Node, NodeId, Tree};

/// Where the superblock is; before it is room for a boot sector.
pub(super) const SUPER_OFFSET: u64 = 1024;
pub(super) const SUPER_SIZE: u64 = 128;
pub(super) const DEVICE_SLOT: u64 = 128;

/// Inode numbers count units of this many bytes from the metadata's start.
pub(super) const SLOT: u64 = 32;

const COMPACT: u64 = 32;
const EXTENDED: u64 = 64;
pub(super) const CHUNK_POINTER: u64 = 8;

/// What follows an inode and its xattrs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Nothing: devices, fifos, sockets, empty files.
    None,
    /// Directory or symlink of `size` bytes. The last, partial block is
    /// `inline` or lies with the others from block `blocks` on.
    Flat {
        size: u64,
        inline: bool,
        blocks: u64,
    },
    /// `count` chunk pointers for chunks of `512 << bits` bytes.
    Chunks { bits: u32, count: u64 },
}

/// An inode with its place.
pub(super) struct Inode<'t, 'a> {
    pub(super) node: Node<'t, 'a>,
    pub(super) parent: u32,
    pub(super) links: u32,
    pub(super) compact: bool,
    pub(super) xattr_bytes: u32,
    pub(super) body: Body,
    pub(super) nid: u64,
}

/// The whole image's plan.
pub(super) struct Layout<'t, 'a> {
    pub(super) inodes: Vec<Inode<'t, 'a>>,
    pub(super) numbers: HashMap<NodeId, u32>,
    /// The time that compact inodes stand for.
    pub(super) build_time: (i64, u32),
    pub(super) meta_block: u64,
    /// First block after the inodes.
    pub(super) data_block: u64,
    pub(super) data_blocks: u64,
}

impl Inode<'_, '_> {
    pub(super) fn inode_bytes(&self) -> u64 {
        if self.compact { COMPACT } else { EXTENDED }
    }

    /// Bytes from the inode's start to what its body puts there.
    pub(super) fn head_bytes(&self) -> u64 {
        self.inode_bytes() + u64::from(self.xattr_bytes)
    }
}

impl<'t, 'a> Layout<'t, 'a> {
    pub(super) fn new(
        tree: &'t Tree<'a>,
        devices: &[Device],
    ) -> Result<Layout<'t, 'a>, WriteError> {
        let (mut inodes, numbers) = number(tree);
        let build_time = commonest_time(&inodes);
        let mut chunks = 0;
        for inode in &mut inodes {
            plan(inode, build_time, devices).map_err(|problem| problem.at(tree, inode.node))?;
            if let Body::Chunks { count, .. } = inode.body {
                chunks += count;
                if chunks > MAX_CHUNKS {
                    return Err(Problem::TooSparse.at(tree, inode.node));
                }
            }
        }
        let slots_end = SUPER_OFFSET + SUPER_SIZE + DEVICE_SLOT * devices.len() as u64;
        let meta_block = slots_end.div_ceil(BLOCK);
        let meta_bytes = place(&mut inodes);
        let data_block = meta_block + meta_bytes.div_ceil(BLOCK);
        let mut next_block = data_block;
        for inode in &mut inodes {
            if let Body::Flat {
                size,
                inline,
                blocks,
            } = &mut inode.body
            {
                *blocks = next_block;
                next_block += if *inline {
                    *size / BLOCK
                } else {
                    size.div_ceil(BLOCK)
                };
            }
        }
        let data_blocks = next_block - data_block;
        let layout = Layout {
            inodes,
            numbers,
            build_time,
            meta_block,
            data_block,
            data_blocks,
        };
        let disk = devices
            .iter()
            .try_fold(layout.image_bytes(), |disk, device| {
                disk.checked_add(device.bytes)
            });
        if devices.len() >= usize::from(u16::MAX)
            || disk.is_none_or(|disk| disk / BLOCK >= u64::from(u32::MAX))
        {
            return Err(WriteError::TooLarge);
        }
        Ok(layout)
    }

    /// Bytes of the image, padded to whole pages.
    pub(super) fn image_bytes(&self) -> u64 {
        ((self.data_block + self.data_blocks) * BLOCK).next_multiple_of(PAGE)
    }

    pub(super) fn number_of(&self, node: Node<'_, '_>) -> u32 {
        self.numbers.get(&node.id()).copied().unwrap_or(0)
    }
}

/// Numbers the nodes in depth-first order, the root first: its number has to
/// fit 16 bits. Counts their links.
fn number<'t, 'a>(tree: &'t Tree<'a>) -> (Vec<Inode<'t, 'a>>, HashMap<NodeId, u32>) {
    let mut inodes: Vec<Inode<'t, 'a>> = Vec::with_capacity(tree.capacity());
    let mut numbers = HashMap::with_capacity(tree.capacity());
    let inode = |node: Node<'t, 'a>, parent| Inode {
        node,
        parent,
        links: if node.kind() == Kind::Directory { 2 } else { 1 },
        compact: false,
        xattr_bytes: 0,
        body: Body::None,
        nid: 0,
    };
    numbers.insert(tree.root().id(), 0);
    inodes.push(inode(tree.root(), 0));
    let mut open = vec![(0u32, tree.root().children())];
    while let Some((parent, children)) = open.last_mut() {
        let parent = *parent;
        let Some((_, child)) = children.next() else {
            open.pop();
            continue;
        };
        if let Some(&number) = numbers.get(&child.id()) {
            inodes[number as usize].links += 1;
            continue;
        }
        let number = inodes.len() as u32;
        numbers.insert(child.id(), number);
        inodes.push(inode(child, parent));
        if child.kind() == Kind::Directory {
            inodes[parent as usize].links += 1;
            open.push((number, child.children()));
        }
    }
    (inodes, numbers)
}

/// The time most inodes have, the earliest of equals: inodes with it can take
/// the compact form, which has no time of its own.
fn commonest_time(inodes: &[Inode<'_, '_>]) -> (i64, u32) {
    let mut counts: BTreeMap<(i64, u32), u64> = BTreeMap::new();
    for inode in inodes {
        *counts.entry(inode.node.mtime()).or_default() += 1;
    }
    let commonest = counts
        .iter()
        .max_by_key(|&(time, count)| (count, std::cmp::Reverse(time)));
    commonest.map_or((0, 0), |(&time, _)| time)
}

enum Problem {
    TooSparse,
    XattrsTooLarge,
    NoDevice,
}

impl Problem {
    /// The error with the node's path, looked for only now that it is needed.
    fn at(self, tree: &Tree<'_>, node: Node<'_, '_>) -> WriteError {
        let path = tree
            .walk()
            .find(|(_, other)| other.id() == node.id())
            .map(|(path, _)| path)
            .unwrap_or_default();
        let (layer, path) = (node.layer(), printable(&path));
        match self {
            Problem::TooSparse => WriteError::TooSparse { layer, path },
            Problem::XattrsTooLarge => WriteError::XattrsTooLarge { layer, path },
            Problem::NoDevice => WriteError::NoDevice { layer, path },
        }
    }
}

fn plan(
    inode: &mut Inode<'_, '_>,
    build_time: (i64, u32),
    devices: &[Device],
) -> Result<(), Problem> {
    let node = inode.node;
    let xattr_bytes = xattr::size(node.xattrs()).ok_or(Problem::XattrsTooLarge)?;
    inode.xattr_bytes = xattr_bytes as u32;
    let size = match node.kind() {
        Kind::Directory => directory_size(node),
        Kind::Symlink => node.target().len() as u64,
        _ => node.size(),
    };
    let narrow = u32::from(u16::MAX);
    inode.compact = node.mtime() == build_time
        && node.uid() <= narrow
        && node.gid() <= narrow
        && inode.links <= narrow
        && size <= u64::from(u32::MAX);
    inode.body = match node.kind() {
        Kind::Directory | Kind::Symlink => {
            let inline = size % BLOCK != 0 && fits_inline(inode.head_bytes(), size % BLOCK);
            Body::Flat {
                size,
                inline,
                blocks: 0,
            }
        }
        Kind::File if size > 0 => chunks(node, size, devices)?,
        _ => Body::None,
    };
    Ok(())
}

fn directory_size(node: Node<'_, '_>) -> u64 {
    let mut size = 0;
    let mut last = Packed { count: 0, bytes: 0 };
    for packed in pack(names(node).map(|(name, _)| name.len())) {
        size += BLOCK;
        last = packed;
    }
    size - BLOCK + last.bytes as u64
}

/// A directory's names with `.` and `..`, sorted by bytes as the format
/// wants it. `Some` is a child, `None` one of the two.
pub(super) fn names<'t, 'a>(
    node: Node<'t, 'a>,
) -> impl Iterator<Item = (&'a [u8], Option<Node<'t, 'a>>)> + use<'t, 'a> {
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    let mut children = node.children().peekable();
    std::iter::from_fn(move || {
        let dot_first = match (dots.peek(), children.peek()) {
            (Some(dot), Some((name, _))) => *dot < *name,
            (dot, _) => dot.is_some(),
        };
        if dot_first {
            dots.next().map(|dot| (dot, None))
        } else {
            children.next().map(|(name, child)| (name, Some(child)))
        }
    })
}

/// Whether there is a slot from which on `head` bytes can be followed by
/// `tail` bytes that lie within one block.
fn fits_inline(head: u64, tail: u64) -> bool {
    (0..BLOCK / SLOT).any(|slot| tail_in_block(slot * SLOT + head, tail))
}

fn tail_in_block(start: u64, tail: u64) -> bool {
    start % BLOCK + tail <= BLOCK
}

/// Chooses the chunk size: the largest that keeps data and holes apart.
fn chunks(node: Node<'_, '_>, size: u64, devices: &[Device]) -> Result<Body, Problem> {
    /// Bits that the format has for the chunk size.
    const MAX_BITS: u32 = 31;
    let extents = node.extents();
    let device = devices.get(node.layer() as usize);
    for extent in extents {
        let end = extent.tar_offset.checked_add(extent.length);
        if end.is_none_or(|end| device.is_none_or(|device| end > device.bytes)) {
            return Err(Problem::NoDevice);
        }
    }
    let mut bits = size
        .div_ceil(BLOCK)
        .next_power_of_two()
        .trailing_zeros()
        .min(MAX_BITS);
    let whole = matches!(extents, [])
        || matches!(extents, [only] if only.offset == 0 && only.length == size);
    if !whole {
        for extent in extents {
            let end = extent.offset + extent.length;
            for edge in [extent.offset, end] {
                if edge != 0 && edge != size {
                    bits = bits.min((edge / BLOCK).trailing_zeros());
                }
            }
        }
    }
    let count = size.div_ceil(BLOCK << bits);
    if count > MAX_CHUNKS {
        Err(Problem::TooSparse)
    } else {
        Ok(Body::Chunks { bits, count })
    }
}

/// Gives each inode its place, in order. Returns the bytes used.
fn place(inodes: &mut [Inode<'_, '_>]) -> u64 {
    let mut position = 0u64;
    for inode in inodes {
        position = position.next_multiple_of(SLOT);
        let head = inode.head_bytes();
        let body = match inode.body {
            Body::Flat {
                size, inline: true, ..
            } => {
                let tail = size % BLOCK;
                while !tail_in_block(position + head, tail) {
                    position += SLOT;
                }
                head + tail
            }
            Body::Chunks { count, .. } => {
                head.next_multiple_of(CHUNK_POINTER) + count * CHUNK_POINTER
            }
            _ => head,
        };
        inode.nid = position / SLOT;
        position += body;
    }
    position
}
