//! The index as a file beside the blob: versioned, checksummed, and checked
//! in every part when read, so that a damaged file can't mislead the merge.

use super::index::{Record, Span};
use super::{BLOCK, Extent, Kind, LayerIndex, MAX_FILE_SIZE, MAX_METADATA, name};
use crate::erofs::crc32c;

/// Changes with the format and with the rules that an index has passed.
const MAGIC: &[u8; 8] = b"msbidx01";

const RECORD: usize = 76;
const EXTENT: usize = 24;
const XATTR: usize = 16;
const PREAMBLE: usize = MAGIC.len() + 5 * 8;

/// A stored index that is damaged or of another version: index the blob anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the layer index is damaged or of another version")]
pub struct CorruptIndex;

impl LayerIndex {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let capacity = PREAMBLE
            + self.records.len() * RECORD
            + self.extents.len() * EXTENT
            + self.xattrs.len() * XATTR
            + self.bytes.len()
            + 4;
        let mut out = Vec::with_capacity(capacity);
        out.extend_from_slice(MAGIC);
        let counts = [
            self.records.len(),
            self.extents.len(),
            self.xattrs.len(),
            self.bytes.len(),
        ];
        out.extend_from_slice(&self.tar_bytes.to_le_bytes());
        for count in counts {
            out.extend_from_slice(&(count as u64).to_le_bytes());
        }
        for record in &self.records {
            encode_record(record, &mut out);
        }
        for extent in &self.extents {
            for value in [extent.offset, extent.tar_offset, extent.length] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        for (name, value) in &self.xattrs {
            encode_spans(&[*name, *value], &mut out);
        }
        out.extend_from_slice(&self.bytes);
        let checksum = crc32c(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// The data is not what [`LayerIndex::encode`] of this version writes.
    pub fn decode(data: &[u8]) -> Result<LayerIndex, CorruptIndex> {
        let (data, checksum) = data.split_last_chunk::<4>().ok_or(CorruptIndex)?;
        if crc32c(data) != u32::from_le_bytes(*checksum) {
            return Err(CorruptIndex);
        }
        let mut reader = Reader { data };
        if &reader.array::<8>()? != MAGIC {
            return Err(CorruptIndex);
        }
        let tar_bytes = reader.u64()?;
        let records = reader.count(RECORD)?;
        let extents = reader.count(EXTENT)?;
        let xattrs = reader.count(XATTR)?;
        let bytes = reader.count(1)?;
        let expected = records * RECORD + extents * EXTENT + xattrs * XATTR + bytes;
        if reader.data.len() != expected || bytes > MAX_METADATA {
            return Err(CorruptIndex);
        }
        let index = LayerIndex {
            tar_bytes,
            records: (0..records)
                .map(|_| reader.record())
                .collect::<Result<_, _>>()?,
            extents: (0..extents)
                .map(|_| reader.extent())
                .collect::<Result<_, _>>()?,
            xattrs: (0..xattrs)
                .map(|_| Ok((reader.span()?, reader.span()?)))
                .collect::<Result<_, _>>()?,
            bytes: reader.data.to_vec(),
        };
        if index.is_sound() {
            Ok(index)
        } else {
            Err(CorruptIndex)
        }
    }

    /// Whether each reference stays inside and each value in its range.
    fn is_sound(&self) -> bool {
        let inside =
            |span: Span, length: usize| span.start as usize + span.length as usize <= length;
        let in_bytes = |span: Span| inside(span, self.bytes.len());
        let records_sound = self.records.iter().all(|record| {
            in_bytes(record.path)
                && in_bytes(record.target)
                && inside(record.extents, self.extents.len())
                && inside(record.xattrs, self.xattrs.len())
                && record.mode <= 0o7777
                && record.mtime_nsec < 1_000_000_000
                && record.size <= MAX_FILE_SIZE
                && record.device.0 >> 12 == 0
                && record.device.1 >> 20 == 0
                && name::is_normal(self.span(record.path))
        });
        let extents_sound = self.extents.iter().all(|extent| {
            extent.offset % BLOCK == 0
                && extent.tar_offset % BLOCK == 0
                && extent.length > 0
                && extent
                    .offset
                    .checked_add(extent.length)
                    .is_some_and(|end| end <= MAX_FILE_SIZE)
                && extent
                    .tar_offset
                    .checked_add(extent.length)
                    .is_some_and(|end| end <= self.tar_bytes)
        });
        let xattrs_sound = self
            .xattrs
            .iter()
            .all(|&(name, value)| in_bytes(name) && in_bytes(value));
        records_sound && extents_sound && xattrs_sound && self.extents_fit()
    }

    fn extents_fit(&self) -> bool {
        self.records.iter().all(|record| {
            let extents =
                &self.extents[record.extents.start as usize..][..record.extents.length as usize];
            let ordered = extents
                .windows(2)
                .all(|pair| pair[0].offset + pair[0].length <= pair[1].offset);
            let aligned = extents.iter().all(|extent| {
                let end = extent.offset + extent.length;
                end % BLOCK == 0 || end == record.size
            });
            ordered
                && aligned
                && extents
                    .last()
                    .is_none_or(|last| last.offset + last.length <= record.size)
        })
    }
}

fn encode_record(record: &Record, out: &mut Vec<u8>) {
    out.extend_from_slice(&[record.kind as u8, 0]);
    out.extend_from_slice(&record.mode.to_le_bytes());
    for value in [
        record.uid,
        record.gid,
        record.mtime_nsec,
        record.device.0,
        record.device.1,
    ] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    out.extend_from_slice(&record.mtime.to_le_bytes());
    out.extend_from_slice(&record.size.to_le_bytes());
    encode_spans(
        &[record.path, record.target, record.extents, record.xattrs],
        out,
    );
    // Room to grow within the version's record size.
    out.extend_from_slice(&[0; 4]);
}

fn encode_spans(spans: &[Span], out: &mut Vec<u8>) {
    for span in spans {
        out.extend_from_slice(&span.start.to_le_bytes());
        out.extend_from_slice(&span.length.to_le_bytes());
    }
}

struct Reader<'a> {
    data: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CorruptIndex> {
        let (head, tail) = self.data.split_first_chunk::<N>().ok_or(CorruptIndex)?;
        self.data = tail;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, CorruptIndex> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CorruptIndex> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things that the rest of the data could hold.
    fn count(&mut self, size: usize) -> Result<usize, CorruptIndex> {
        let count = usize::try_from(self.u64()?).map_err(|_| CorruptIndex)?;
        if count <= self.data.len() / size {
            Ok(count)
        } else {
            Err(CorruptIndex)
        }
    }

    fn span(&mut self) -> Result<Span, CorruptIndex> {
        Ok(Span {
            start: self.u32()?,
            length: self.u32()?,
        })
    }

    fn extent(&mut self) -> Result<Extent, CorruptIndex> {
        Ok(Extent {
            offset: self.u64()?,
            tar_offset: self.u64()?,
            length: self.u64()?,
        })
    }

    fn record(&mut self) -> Result<Record, CorruptIndex> {
        let [kind, _, mode @ ..] = self.array::<4>()?;
        let kind = Kind::from_u8(kind).ok_or(CorruptIndex)?;
        let (uid, gid, mtime_nsec) = (self.u32()?, self.u32()?, self.u32()?);
        let device = (self.u32()?, self.u32()?);
        let mtime = self.u64()?.cast_signed();
        let size = self.u64()?;
        let (path, target, extents, xattrs) =
            (self.span()?, self.span()?, self.span()?, self.span()?);
        self.array::<4>()?;
        let mode = u16::from_le_bytes(mode);
        Ok(Record {
            kind,
            mode,
            uid,
            gid,
            mtime,
            mtime_nsec,
            size,
            device,
            path,
            target,
            extents,
            xattrs,
        })
    }
}
