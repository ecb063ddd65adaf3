//! Properties of layers and their roots, for tests and fuzz targets.

use super::reader::Disk;
use super::{Device, WriteError, write};
use crate::layer::{Indexer, Kind, LayerIndex, Limits};
use crate::tree::{Node, Tree};

/// Whatever the bytes are, the index does not depend on how they are cut and
/// survives being stored.
pub(crate) fn layer_tar(data: &[u8]) {
    let whole = indexed(data, data.len().max(1));
    let pieces = indexed(data, 7);
    assert_eq!(
        whole.is_some(),
        pieces.is_some(),
        "pieces decide over refusal"
    );
    let Some(index) = whole else { return };
    assert_eq!(
        Some(&index),
        pieces.as_ref(),
        "pieces decide over the index"
    );
    assert_eq!(
        LayerIndex::decode(&index.encode()).as_ref(),
        Ok(&index),
        "the stored form differs"
    );
    let _ = LayerIndex::decode(data);
    let _ = Tree::merge([&index, &index]);
}

/// If the bytes are a layer, the root made of it reads back equal.
pub(crate) fn erofs_roundtrip(data: &[u8]) {
    let Some(index) = indexed(data, data.len().max(1)) else {
        return;
    };
    let mut layer = data.to_vec();
    layer.resize(layer.len().next_multiple_of(512), 0);
    for indexes in [vec![index.clone()], vec![index.clone(), index]] {
        if let Err(problem) = roundtrip(&indexes, &vec![&layer[..]; indexes.len()]) {
            panic!("{problem}");
        }
    }
}

fn indexed(data: &[u8], piece: usize) -> Option<LayerIndex> {
    let mut indexer = Indexer::new(Limits {
        entries: 4096,
        bytes: 64 << 20,
    });
    for piece in data.chunks(piece) {
        indexer.push(piece).ok()?;
    }
    indexer.finish().ok()
}

/// Merges, writes, reads back and compares; returns the disk. Layers that
/// can't be merged or written pass: refusing is right.
pub(crate) fn roundtrip(indexes: &[LayerIndex], layers: &[&[u8]]) -> Result<Vec<u8>, String> {
    let Ok(tree) = Tree::merge(indexes) else {
        return Ok(Vec::new());
    };
    let devices: Vec<Device> = indexes
        .iter()
        .map(|index| Device::new(index.tar_bytes()))
        .collect();
    let mut disk = Vec::new();
    let info = match write(&tree, &devices, &mut disk) {
        Ok(info) => info,
        Err(WriteError::Io(error)) => return Err(format!("writing to memory: {error}")),
        Err(_) => return Ok(Vec::new()),
    };
    if info.bytes != disk.len() as u64 || disk.len() % 4096 != 0 {
        return Err("length of the image".to_owned());
    }
    for (layer, device) in layers.iter().zip(&devices) {
        let start = disk.len();
        disk.extend_from_slice(layer);
        disk.resize(start + device.bytes as usize, 0);
    }
    compare(&tree, layers, &Disk::open(&disk)?)?;
    Ok(disk)
}

fn compare(tree: &Tree<'_>, layers: &[&[u8]], disk: &Disk<'_>) -> Result<(), String> {
    let mut found = disk.list()?;
    for (path, node) in tree.walk() {
        let wrong = |what: &str| format!("{what} of {}", String::from_utf8_lossy(&path));
        let item = found.remove(&path).ok_or_else(|| wrong("absence"))?;
        if (item.mode, item.uid, item.gid, item.mtime)
            != (full_mode(node), node.uid(), node.gid(), node.mtime())
        {
            return Err(wrong("attributes"));
        }
        if !item
            .xattrs
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
            .eq(node.xattrs().map(|x| (x.name, x.value)))
        {
            return Err(wrong("xattrs"));
        }
        match node.kind() {
            Kind::File if item.size != node.size() => return Err(wrong("size")),
            Kind::File => {
                compare_data(node, layers, disk, &item).map_err(|problem| wrong(&problem))?;
            }
            Kind::Symlink if disk.read(&item, 0, item.size)? != node.target() => {
                return Err(wrong("target"));
            }
            _ => {}
        }
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err("more names than the tree has".to_owned())
    }
}

/// Compares the data of each extent, and the edges of each hole.
fn compare_data(
    node: Node<'_, '_>,
    layers: &[&[u8]],
    disk: &Disk<'_>,
    item: &super::reader::Item,
) -> Result<(), String> {
    /// How much of a hole's edge is looked at; holes may be terabytes.
    const EDGE: u64 = 8192;
    let zeros = |from: u64, to: u64| -> Result<bool, String> {
        let head = disk.read(item, from, to.min(from + EDGE))?;
        let tail = disk.read(item, from.max(to.saturating_sub(EDGE)), to)?;
        Ok(head.iter().chain(&tail).all(|&byte| byte == 0))
    };
    let mut end = 0;
    for extent in node.extents() {
        let stored =
            &layers[node.layer() as usize][extent.tar_offset as usize..][..extent.length as usize];
        if !zeros(end, extent.offset)?
            || disk.read(item, extent.offset, extent.offset + extent.length)? != stored
        {
            return Err("data".to_owned());
        }
        end = extent.offset + extent.length;
    }
    if zeros(end, node.size())? {
        Ok(())
    } else {
        Err("last hole".to_owned())
    }
}

fn full_mode(node: Node<'_, '_>) -> u16 {
    let kind = match node.kind() {
        Kind::Fifo => 1,
        Kind::CharDevice => 2,
        Kind::Directory => 4,
        Kind::BlockDevice => 6,
        Kind::Symlink => 10,
        _ => 8,
    };
    kind << 12 | node.mode()
}
