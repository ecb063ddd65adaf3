//! An independent reader: proves what [`write()`](super::write()) made.
//!
//! For tests and fuzzing only. Shares nothing with the writer and is strict:
//! whatever the kernel could stumble over is an error. Works on the flat disk
//! (metadata image, then the devices), as the guest's kernel does.

use std::collections::{BTreeMap, BTreeSet};

/// An inode as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) nid: u64,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    pub(crate) size: u64,
    pub(crate) device: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Position of the body: inline data or chunk pointers.
    body: u64,
    layout: u16,
    union: u32,
}

type Fallible<T> = Result<T, String>;

/// A disk with an EROFS image at its start.
pub(crate) struct Disk<'d> {
    data: &'d [u8],
    meta: u64,
    build_time: (i64, u32),
    /// First block of each device, and its blocks.
    devices: Vec<(u64, u64)>,
    root: u64,
    inodes: u64,
}

impl<'d> Disk<'d> {
    pub(crate) fn open(data: &'d [u8]) -> Fallible<Disk<'d>> {
        let mut disk = Disk {
            data,
            meta: 0,
            build_time: (0, 0),
            devices: Vec::new(),
            root: 0,
            inodes: 0,
        };
        if disk.u32(1024)? != 0xe0f5_e1e2 || disk.bytes(1036, 1)? != [9] {
            return Err("no EROFS with 512-byte blocks".to_owned());
        }
        let mut covered = disk.bytes(1024, 512)?.to_vec();
        covered[4..8].fill(0);
        if crc(&covered) != disk.u32(1028)? {
            return Err("superblock checksum".to_owned());
        }
        disk.root = disk.u16(1038)?.into();
        disk.inodes = disk.u64(1040)?;
        disk.build_time = (disk.u64(1048)?.cast_signed(), disk.u32(1056)?);
        disk.meta = u64::from(disk.u32(1064)?) * 512;
        let table = u64::from(disk.u16(1112)?) * 128;
        let mut next = u64::from(disk.u32(1060)?);
        for device in 0..u64::from(disk.u16(1110)?) {
            let slot = table + device * 128;
            let (blocks, first) = (
                u64::from(disk.u32(slot + 64)?),
                u64::from(disk.u32(slot + 68)?),
            );
            if first != next {
                return Err(format!("device {device} is mapped at {first}, not {next}"));
            }
            disk.devices.push((first, blocks));
            next += blocks;
        }
        if next * 512 != data.len() as u64 {
            return Err("the disk's length is not that of its parts".to_owned());
        }
        Ok(disk)
    }

    fn bytes(&self, at: u64, length: u64) -> Fallible<&'d [u8]> {
        let end = at
            .checked_add(length)
            .filter(|&end| end <= self.data.len() as u64);
        let end = end.ok_or_else(|| format!("{length} bytes at {at} lie beyond the disk"))?;
        Ok(&self.data[at as usize..end as usize])
    }

    fn u16(&self, at: u64) -> Fallible<u16> {
        Ok(u16::from_le_bytes([
            self.bytes(at, 2)?[0],
            self.bytes(at, 2)?[1],
        ]))
    }

    fn u32(&self, at: u64) -> Fallible<u32> {
        Ok(u32::from(self.u16(at)?) | u32::from(self.u16(at + 2)?) << 16)
    }

    fn u64(&self, at: u64) -> Fallible<u64> {
        Ok(u64::from(self.u32(at)?) | u64::from(self.u32(at + 4)?) << 32)
    }

    fn inode(&self, nid: u64) -> Fallible<Item> {
        let at = self.meta + nid * 32;
        let format = self.u16(at)?;
        let (extended, layout) = (format & 1 == 1, format >> 1);
        if !matches!(layout, 0 | 2 | 4) {
            return Err(format!("inode {nid} has data layout {layout}"));
        }
        let xattr_count = u64::from(self.u16(at + 2)?);
        let xattr_bytes = if xattr_count == 0 {
            0
        } else {
            12 + (xattr_count - 1) * 4
        };
        let head = if extended { 64 } else { 32 };
        let mode = self.u16(at + 4)?;
        let union = self.u32(at + 16)?;
        let mut item = Item {
            nid,
            mode,
            uid: self.u16(at + 24)?.into(),
            gid: self.u16(at + 26)?.into(),
            mtime: self.build_time,
            links: self.u16(at + 6)?.into(),
            size: self.u32(at + 8)?.into(),
            device: if matches!(mode >> 12, 2 | 6) {
                union
            } else {
                0
            },
            xattrs: self.xattrs(at + head, xattr_bytes)?,
            body: at + head + xattr_bytes,
            layout,
            union,
        };
        if extended {
            item.size = self.u64(at + 8)?;
            (item.uid, item.gid) = (self.u32(at + 24)?, self.u32(at + 28)?);
            item.mtime = (self.u64(at + 32)?.cast_signed(), self.u32(at + 40)?);
            item.links = self.u32(at + 44)?;
        }
        Ok(item)
    }

    fn xattrs(&self, at: u64, length: u64) -> Fallible<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut position = at + 12;
        while position < at + length {
            let [name_length, namespace] = self.bytes(position, 2)? else {
                return Err("short xattr".to_owned());
            };
            let name_length = u64::from(*name_length);
            let value_length = u64::from(self.u16(position + 2)?);
            let mut name = match namespace {
                1 => b"user.".to_vec(),
                2 => b"system.posix_acl_access".to_vec(),
                3 => b"system.posix_acl_default".to_vec(),
                4 => b"trusted.".to_vec(),
                6 => b"security.".to_vec(),
                _ => return Err(format!("xattr namespace {namespace}")),
            };
            name.extend_from_slice(self.bytes(position + 4, name_length)?);
            let value = self
                .bytes(position + 4 + name_length, value_length)?
                .to_vec();
            if found.insert(name, value).is_some() {
                return Err("an xattr twice".to_owned());
            }
            position += (4 + name_length + value_length).next_multiple_of(4);
        }
        if length > 0 && position != at + length {
            return Err("xattrs overrun their space".to_owned());
        }
        Ok(found)
    }

    /// Bytes `[from, to)` of a file, directory or symlink.
    pub(crate) fn read(&self, item: &Item, from: u64, to: u64) -> Fallible<Vec<u8>> {
        let mut data = Vec::new();
        let mut position = from;
        while position < to {
            let (source, run) = if item.layout == 4 {
                self.chunk(item, position)?
            } else {
                self.flat(item, position)?
            };
            let length = run.min(to - position);
            match source {
                Some(at) => data.extend_from_slice(self.bytes(at, length)?),
                None => data.resize(data.len() + length as usize, 0),
            }
            position += length;
        }
        Ok(data)
    }

    fn flat(&self, item: &Item, position: u64) -> Fallible<(Option<u64>, u64)> {
        let tail = item.size - item.size % 512;
        if item.layout == 2 && position >= tail {
            if item.body % 512 + item.size % 512 > 512 || item.size.is_multiple_of(512) {
                return Err(format!("inline data of inode {} crosses a block", item.nid));
            }
            return Ok((Some(item.body + position - tail), item.size - position));
        }
        let end = if item.layout == 2 { tail } else { item.size };
        Ok((Some(u64::from(item.union) * 512 + position), end - position))
    }

    fn chunk(&self, item: &Item, position: u64) -> Fallible<(Option<u64>, u64)> {
        if item.union & !0x3f != 0 || item.union & 0x20 == 0 {
            return Err(format!("chunk format {:#x}", item.union));
        }
        let size = 512u64 << (item.union & 0x1f);
        let pointer = item.body.next_multiple_of(8) + position / size * 8;
        let run = (size - position % size).min(item.size - position);
        let (device, block) = (self.u16(pointer + 2)?, self.u32(pointer + 4)?);
        if block == u32::MAX {
            return Ok((None, run));
        }
        let slot = usize::from(device)
            .checked_sub(1)
            .and_then(|device| self.devices.get(device));
        let &(first, blocks) = slot.ok_or_else(|| format!("device {device}"))?;
        let within = u64::from(block) * 512 + position % size;
        if within + run > blocks * 512 {
            return Err(format!("inode {} reads beyond its device", item.nid));
        }
        Ok((Some(first * 512 + within), run))
    }

    fn directory(&self, item: &Item) -> Fallible<Vec<(Vec<u8>, u64, u8)>> {
        let content = self.read(item, 0, item.size)?;
        let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in content.chunks(512) {
            let field = |at: usize| {
                block
                    .get(at..at + 2)
                    .map(|pair| usize::from(u16::from_le_bytes([pair[0], pair[1]])))
            };
            let names =
                field(8).filter(|names| *names > 0 && names % 12 == 0 && *names < block.len());
            let names = names.ok_or("first name offset")?;
            for entry in (0..names).step_by(12) {
                let start = field(entry + 8).ok_or("name offset")?;
                let end = if entry + 12 < names {
                    field(entry + 20).ok_or("name offset")?
                } else {
                    block.len()
                };
                let name = block.get(start..end).ok_or("name")?;
                let name = &name[..name
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(name.len())];
                if name.is_empty()
                    || name.len() > 255
                    || entries
                        .last()
                        .is_some_and(|(last, ..)| last.as_slice() >= name)
                {
                    return Err(format!("name out of order in directory {}", item.nid));
                }
                let nid = block[entry..entry + 8]
                    .iter()
                    .rev()
                    .fold(0, |nid, &byte| nid << 8 | u64::from(byte));
                entries.push((name.to_vec(), nid, block[entry + 10]));
            }
        }
        Ok(entries)
    }

    /// Every path with its inode; checks dot entries, types and link counts.
    pub(crate) fn list(&self) -> Fallible<BTreeMap<Vec<u8>, Item>> {
        let mut found = BTreeMap::new();
        let mut counted: BTreeMap<u64, u32> = BTreeMap::new();
        let mut directories = BTreeSet::new();
        let mut pending = vec![(Vec::new(), self.root, self.root)];
        while let Some((path, nid, parent)) = pending.pop() {
            let item = self.inode(nid)?;
            if !directories.insert(nid) || item.mode >> 12 != 4 {
                return Err(format!("{nid} is no directory or has two parents"));
            }
            *counted.entry(nid).or_default() += 2;
            let entries = self.directory(&item)?;
            for dot in [(&b"."[..], nid), (b"..", parent)] {
                if !entries
                    .iter()
                    .any(|(name, target, _)| (name.as_slice(), *target) == dot)
                {
                    return Err(format!("dot entries of directory {nid}"));
                }
            }
            for (name, child, kind) in entries {
                if name == b"." || name == b".." {
                    continue;
                }
                let child_item = self.inode(child)?;
                let types = [0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7, 0, 6, 0, 0, 0];
                if types[usize::from(child_item.mode >> 12)] != kind {
                    return Err(format!("type of inode {child}"));
                }
                let child_path = if path.is_empty() {
                    name
                } else {
                    [&path[..], &name].join(&b'/')
                };
                if kind == 2 {
                    *counted.entry(nid).or_default() += 1;
                    pending.push((child_path, child, nid));
                } else {
                    *counted.entry(child).or_default() += 1;
                    found.insert(child_path, child_item);
                }
            }
            found.insert(path, item);
        }
        if let Some(item) = found
            .values()
            .find(|item| counted.get(&item.nid) != Some(&item.links))
        {
            return Err(format!("link count of inode {}", item.nid));
        }
        if counted.len() as u64 != self.inodes {
            return Err("inode count".to_owned());
        }
        Ok(found)
    }
}

/// CRC-32C bit by bit.
fn crc(data: &[u8]) -> u32 {
    data.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    })
}
