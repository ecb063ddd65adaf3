//! The index of a layer: entries in stream order over shared, flat storage.

use super::{Fault, MAX_METADATA, Reason};

/// What a layer holds, without the data. Made by [`super::Indexer`].
///
/// Compact: about 70 bytes per entry and the bytes of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerIndex {
    pub(super) tar_bytes: u64,
    pub(super) records: Vec<Record>,
    pub(super) bytes: Vec<u8>,
    pub(super) extents: Vec<Extent>,
    pub(super) xattrs: Vec<(Span, Span)>,
}

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// A regular file.
    File = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// Another name for an entry of this layer or of a lower one.
    HardLink = 3,
    /// A character device.
    CharDevice = 4,
    /// A block device.
    BlockDevice = 5,
    /// A named pipe.
    Fifo = 6,
    /// A socket. Tar has none; directories that are unpacked into may.
    Socket = 7,
    /// Hides the path in lower layers; the path is that of the hidden thing.
    Whiteout = 8,
    /// Hides what lower layers have in the directory.
    Opaque = 9,
}

impl Kind {
    pub(super) fn from_u8(value: u8) -> Option<Kind> {
        const ALL: [Kind; 10] = [
            Kind::File,
            Kind::Directory,
            Kind::Symlink,
            Kind::HardLink,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::Fifo,
            Kind::Socket,
            Kind::Whiteout,
            Kind::Opaque,
        ];
        ALL.get(usize::from(value)).copied()
    }
}

/// A run of a file's data within the uncompressed tar. What no extent covers
/// is a hole. `offset` and `tar_offset` are multiples of [`super::BLOCK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Position in the file.
    pub offset: u64,
    /// Position in the uncompressed tar.
    pub tar_offset: u64,
    /// Bytes.
    pub length: u64,
}

/// An extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr<'a> {
    /// Full name: `user.…`, `trusted.…`, `security.…`,
    /// `system.posix_acl_access` or `system.posix_acl_default`.
    pub name: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

/// Part of `LayerIndex::bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
}

/// The stored form of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    pub(super) path: Span,
    pub(super) target: Span,
    pub(super) extents: Span,
    pub(super) xattrs: Span,
}

/// An entry of a [`LayerIndex`].
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    index: &'a LayerIndex,
    record: &'a Record,
}

impl LayerIndex {
    /// Bytes of the uncompressed tar. The blob is this, zero-padded to a
    /// multiple of [`super::BLOCK`].
    pub fn tar_bytes(&self) -> u64 {
        self.tar_bytes
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The entries in the order of the stream.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'_>> {
        self.records.iter().map(|record| Entry {
            index: self,
            record,
        })
    }

    pub(super) fn span(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        &self.bytes[start..start + span.length as usize]
    }
}

impl<'a> Entry<'a> {
    /// Path from the root, without slashes at its ends; empty is the root.
    pub fn path(&self) -> &'a [u8] {
        self.index.span(self.record.path)
    }

    /// Type.
    pub fn kind(&self) -> Kind {
        self.record.kind
    }

    /// Permission bits with set-id and sticky: at most `0o7777`.
    pub fn mode(&self) -> u16 {
        self.record.mode
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.record.uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.record.gid
    }

    /// Modification time: seconds since 1970, perhaps negative, and
    /// nanoseconds.
    pub fn mtime(&self) -> (i64, u32) {
        (self.record.mtime, self.record.mtime_nsec)
    }

    /// Bytes of a regular file, holes included; 0 for others.
    pub fn size(&self) -> u64 {
        self.record.size
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        self.record.device
    }

    /// Target of a symlink (as stored) or of a hard link (as a path like
    /// [`Entry::path`]).
    pub fn target(&self) -> &'a [u8] {
        self.index.span(self.record.target)
    }

    /// Where a regular file's data lies, in file order.
    pub fn extents(&self) -> &'a [Extent] {
        let span = self.record.extents;
        &self.index.extents[span.start as usize..][..span.length as usize]
    }

    /// Extended attributes, sorted by name, no name twice.
    pub fn xattrs(&self) -> impl ExactSizeIterator<Item = Xattr<'a>> + use<'a> {
        let (index, span) = (self.index, self.record.xattrs);
        index.xattrs[span.start as usize..][..span.length as usize]
            .iter()
            .map(move |&(name, value)| Xattr {
                name: index.span(name),
                value: index.span(value),
            })
    }
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("path", &super::fault::printable(self.path()))
            .field("kind", &self.kind())
            .field("mode", &format_args!("{:o}", self.mode()))
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// The parts of an entry before they are stored.
#[derive(Clone, Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) path: &'a [u8],
    pub(crate) target: &'a [u8],
}

/// Puts a [`LayerIndex`] together.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    index: LayerIndex,
}

impl Builder {
    /// Adds an entry; its `xattrs` must be sorted by name.
    pub(crate) fn add<'x>(
        &mut self,
        draft: &Draft<'_>,
        extents: &[Extent],
        xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>,
    ) -> Result<(), Fault> {
        let fault = |reason| Fault::new(draft.path, reason);
        let path = self.store(draft.path).map_err(fault)?;
        let target = self.store(draft.target).map_err(fault)?;
        let extent_start = count(self.index.extents.len()).map_err(fault)?;
        self.index.extents.extend_from_slice(extents);
        let xattr_start = count(self.index.xattrs.len()).map_err(fault)?;
        for (name, value) in xattrs {
            let pair = (
                self.store(name).map_err(fault)?,
                self.store(value).map_err(fault)?,
            );
            self.index.xattrs.push(pair);
        }
        let xattr_count = count(self.index.xattrs.len()).map_err(fault)? - xattr_start;
        self.index.records.push(Record {
            kind: draft.kind,
            mode: draft.mode,
            uid: draft.uid,
            gid: draft.gid,
            mtime: draft.mtime.0,
            mtime_nsec: draft.mtime.1,
            size: draft.size,
            device: draft.device,
            path,
            target,
            extents: Span {
                start: extent_start,
                length: count(extents.len()).map_err(fault)?,
            },
            xattrs: Span {
                start: xattr_start,
                length: xattr_count,
            },
        });
        Ok(())
    }

    pub(crate) fn finish(mut self, tar_bytes: u64) -> LayerIndex {
        self.index.tar_bytes = tar_bytes;
        self.index
    }

    fn store(&mut self, bytes: &[u8]) -> Result<Span, Reason> {
        let start = self.index.bytes.len();
        if start + bytes.len() > MAX_METADATA {
            let limit = MAX_METADATA as u64;
            return Err(Reason::LimitExceeded {
                what: "bytes of names and attributes",
                limit,
            });
        }
        self.index.bytes.extend_from_slice(bytes);
        Ok(Span {
            start: count(start)?,
            length: count(bytes.len())?,
        })
    }
}

fn count(value: usize) -> Result<u32, Reason> {
    let limit = u64::from(u32::MAX);
    u32::try_from(value).map_err(|_| Reason::LimitExceeded {
        what: "extents or attributes",
        limit,
    })
}
