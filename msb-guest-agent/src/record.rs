//! Records: what entries of folders and trees look like in the bytes of a stream.
//!
//! ```text
//! u32 LE  length of the rest
//! ...     one message, as all messages are encoded
//! ...     only after TreeRecord::Data: as many bytes as it says
//! ```
//!
//! A tree names each entry by a single name inside the folder that was entered last, so
//! whoever makes the tree never resolves a path.

use bytes::{Buf, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::message::{self, ByteString, FileKind, Metadata};

/// Longest encoded record, in bytes: a name, the text of a symlink, and numbers.
pub const MAX_RECORD: usize = 8 * 1024;

/// Most bytes that follow one [`TreeRecord::Data`].
pub const MAX_PIECE: u32 = 64 * 1024;

/// How deep folders may be nested in a tree: each costs both sides a descriptor, of which a
/// process has a thousand where nobody has asked for more.
pub const MAX_DEPTH: usize = 256;

/// Most files with several names in a tree that are told apart; further ones become files of
/// their own. Each costs both sides some hundred bytes.
pub const MAX_LINKED: usize = 65_536;

/// One step of making a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TreeRecord {
    /// A folder; what follows is in it, until [`Leave`](TreeRecord::Leave).
    Enter {
        /// Its name.
        name: ByteString,
        /// What else is known.
        metadata: Metadata,
    },
    /// The folder is complete.
    Leave,
    /// A regular file; its content follows.
    File {
        /// Its name.
        name: ByteString,
        /// What else is known. The size is final.
        metadata: Metadata,
        /// Set when it may come again, as [`Link`](TreeRecord::Link).
        id: Option<u64>,
    },
    /// Content of the last file, in rising order; what is left out is zeros.
    Data {
        /// Where it belongs.
        offset: u64,
        /// How many bytes follow, at most [`MAX_PIECE`].
        len: u32,
    },
    /// Another name of a file that came before.
    Link {
        /// Its name.
        name: ByteString,
        /// Of which.
        id: u64,
    },
    /// A symlink.
    Symlink {
        /// Its name.
        name: ByteString,
        /// What else is known.
        metadata: Metadata,
        /// What it says.
        target: ByteString,
    },
    /// Something that cannot be copied.
    Special {
        /// Its name.
        name: ByteString,
        /// What it is.
        kind: FileKind,
    },
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRecord(&'static str);

/// Appends a record.
pub fn put<T: Serialize>(out: &mut BytesMut, record: &T) {
    let bytes = message::encode(record);
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(&bytes);
}

/// Cuts bytes into records.
#[derive(Debug, Default)]
pub struct RecordDecoder {
    buffer: BytesMut,
}

impl RecordDecoder {
    /// Takes bytes, however they are cut.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, once it is complete.
    ///
    /// # Errors
    /// When the bytes are none. They stay where they are, so that this stays so.
    pub fn next_record<T: DeserializeOwned>(&mut self) -> Result<Option<T>, InvalidRecord> {
        let Some(len) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*len) as usize;
        if len == 0 || len > MAX_RECORD {
            return Err(InvalidRecord("a record of a length that none has"));
        }
        let Some(bytes) = self.buffer.get(4..4 + len) else {
            return Ok(None);
        };
        let record = message::decode(bytes).ok_or(InvalidRecord("a record of no known kind"))?;
        self.buffer.advance(4 + len);
        Ok(Some(record))
    }

    /// Up to `most` bytes that follow a record; empty when there are none yet.
    pub fn take_bytes(&mut self, most: usize) -> Bytes {
        let len = self.buffer.len().min(most);
        self.buffer.split_to(len).freeze()
    }

    /// Tells whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// What a tree's bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeItem {
    /// A record, but for those of data.
    Record(TreeRecord),
    /// Content of the last file.
    Data {
        /// Where it belongs.
        offset: u64,
        /// Never empty.
        bytes: Bytes,
    },
}

/// Reads a tree: the grammar of its records, names that are names, bounds.
#[derive(Debug, Default)]
pub struct TreeDecoder {
    records: RecordDecoder,
    /// Where the next bytes belong, and how many are still to come.
    data: (u64, u32),
    /// Up to where the file that is open may be written, and from where.
    file: Option<(u64, u64)>,
    depth: usize,
    /// Something came at the top: nothing more may.
    rooted: bool,
    failed: Option<InvalidRecord>,
}

impl TreeDecoder {
    /// Takes bytes, however they are cut.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.records.extend(bytes);
    }

    /// The next step, once it is complete.
    ///
    /// # Errors
    /// When the bytes are no tree. Every later call returns the same.
    pub fn next_item(&mut self) -> Result<Option<TreeItem>, InvalidRecord> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let item = self.step();
        self.failed = item.as_ref().err().copied();
        item
    }

    /// Tells whether the tree is complete.
    pub fn is_complete(&self) -> bool {
        self.failed.is_none()
            && self.rooted
            && self.depth == 0
            && self.data.1 == 0
            && self.records.is_empty()
    }

    fn step(&mut self) -> Result<Option<TreeItem>, InvalidRecord> {
        loop {
            if self.data.1 > 0 {
                let bytes = self.records.take_bytes(self.data.1 as usize);
                if bytes.is_empty() {
                    return Ok(None);
                }
                let offset = self.data.0;
                self.data.0 += bytes.len() as u64;
                self.data.1 -= bytes.len() as u32;
                return Ok(Some(TreeItem::Data { offset, bytes }));
            }
            let Some(record) = self.records.next_record()? else {
                return Ok(None);
            };
            if let TreeRecord::Data { offset, len } = record {
                self.check_data(offset, len)?;
                continue;
            }
            self.check(&record)?;
            return Ok(Some(TreeItem::Record(record)));
        }
    }

    fn check_data(&mut self, offset: u64, len: u32) -> Result<(), InvalidRecord> {
        let Some((from, size)) = self.file else {
            return Err(InvalidRecord("content of no file"));
        };
        let end = offset.checked_add(len.into());
        let end = end.filter(|end| *end <= size);
        let Some(end) = end.filter(|_| offset >= from) else {
            return Err(InvalidRecord("content outside of its file"));
        };
        if len == 0 || len > MAX_PIECE {
            return Err(InvalidRecord("content of a length that none has"));
        }
        self.file = Some((end, size));
        self.data = (offset, len);
        Ok(())
    }

    fn check(&mut self, record: &TreeRecord) -> Result<(), InvalidRecord> {
        self.file = None;
        let name = match record {
            TreeRecord::Leave => {
                self.depth = self.depth.checked_sub(1).ok_or(TOO_MANY)?;
                return Ok(());
            }
            TreeRecord::Enter { name, .. }
            | TreeRecord::File { name, .. }
            | TreeRecord::Link { name, .. }
            | TreeRecord::Symlink { name, .. }
            | TreeRecord::Special { name, .. } => name,
            TreeRecord::Data { .. } => unreachable!("looked at before"),
        };
        if self.depth == 0 && std::mem::replace(&mut self.rooted, true) {
            return Err(TOO_MANY);
        }
        check_name(name.as_bytes())?;
        match record {
            TreeRecord::Enter { .. } if self.depth == MAX_DEPTH => {
                return Err(InvalidRecord("folders nested too deep"));
            }
            TreeRecord::Enter { .. } => self.depth += 1,
            TreeRecord::File { metadata, .. } => self.file = Some((0, metadata.size)),
            TreeRecord::Symlink { target, .. } if !is_target(target.as_bytes()) => {
                return Err(InvalidRecord("a symlink that cannot be"));
            }
            _ => {}
        }
        Ok(())
    }
}

const TOO_MANY: InvalidRecord = InvalidRecord("something after the end of the tree");

/// A name inside a folder, and nothing else.
fn check_name(name: &[u8]) -> Result<(), InvalidRecord> {
    let wrong = name.is_empty()
        || name.len() > 255
        || name == b"."
        || name == b".."
        || name.contains(&b'/')
        || name.contains(&0);
    if wrong {
        return Err(InvalidRecord("a name that is none"));
    }
    Ok(())
}

fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() < message::MAX_PATH && !target.contains(&0)
}

#[cfg(test)]
mod tests;
