//! Sparse files: from a map of data runs to extents in the tar.

use super::header::unsigned;
use super::pax::decimal;
use super::{BLOCK, Extent, MAX_FILE_SIZE, MAX_SPARSE_EXTENTS, Reason};

/// Bytes of one run in an old GNU header: two octal fields of twelve.
const GNU_RUN: usize = 24;

/// Longest line of a version 1.0 map: a 63-bit number in decimal.
const MAX_LINE: usize = 20;

fn bad(what: &'static str) -> Reason {
    Reason::BadSparseMap { what }
}

/// Adds the runs of an old GNU header or of a continuation block; an empty
/// field ends the map.
pub(super) fn gnu_runs(fields: &[u8], runs: &mut Vec<(u64, u64)>) -> Result<(), Reason> {
    for run in fields.chunks_exact(GNU_RUN) {
        if run[0] == 0 || run[12] == 0 {
            break;
        }
        add(
            runs,
            (
                unsigned(&run[..12], "sparse offset")?,
                unsigned(&run[12..], "sparse length")?,
            ),
        )?;
    }
    Ok(())
}

fn add(runs: &mut Vec<(u64, u64)>, run: (u64, u64)) -> Result<(), Reason> {
    if runs.len() == MAX_SPARSE_EXTENTS {
        let limit = MAX_SPARSE_EXTENTS as u64;
        return Err(Reason::LimitExceeded {
            what: "extents of a sparse file",
            limit,
        });
    }
    runs.push(run);
    Ok(())
}

/// The map at the start of a version 1.0 sparse file's data: decimal numbers,
/// one per line, fed in block by block.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    line: Vec<u8>,
    announced: Option<u64>,
    offset: Option<u64>,
    runs: Vec<(u64, u64)>,
    /// Bytes of the map, in whole blocks.
    pub(super) bytes: u64,
}

impl MapReader {
    /// Takes a block; `true` when it was the last of the map.
    pub(super) fn push(&mut self, block: &[u8]) -> Result<bool, Reason> {
        self.bytes += block.len() as u64;
        for &byte in block {
            if byte != b'\n' {
                if self.line.len() == MAX_LINE {
                    return Err(bad("malformed number"));
                }
                self.line.push(byte);
                continue;
            }
            let number = decimal(&self.line).ok_or(bad("malformed number"))?;
            self.line.clear();
            match (self.announced, self.offset.take()) {
                (None, _) => self.announced = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => add(&mut self.runs, (offset, number))?,
            }
            if self.announced == Some(self.runs.len() as u64) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn into_runs(self) -> Vec<(u64, u64)> {
        self.runs
    }
}

/// Turns runs into extents of a file of `size` bytes whose `stored` bytes
/// begin at `start` in the tar.
pub(super) fn extents(
    runs: &[(u64, u64)],
    size: u64,
    start: u64,
    stored: u64,
) -> Result<Vec<Extent>, Reason> {
    if size > MAX_FILE_SIZE {
        return Err(Reason::LimitExceeded {
            what: "bytes in a file",
            limit: MAX_FILE_SIZE,
        });
    }
    let mut extents: Vec<Extent> = Vec::new();
    let (mut end, mut used) = (0, 0u64);
    for &(offset, length) in runs {
        let run_end = offset
            .checked_add(length)
            .filter(|&run_end| run_end <= size);
        let run_end = run_end.ok_or(bad("a run lies beyond the end of the file"))?;
        if offset < end {
            return Err(bad("the runs overlap or are out of order"));
        }
        end = run_end;
        if length == 0 {
            continue;
        }
        let tar_offset = start + used;
        let now_used = used.checked_add(length).filter(|&used| used <= stored);
        used = now_used.ok_or(bad("the runs are longer than the data"))?;
        if !offset.is_multiple_of(BLOCK) || !tar_offset.is_multiple_of(BLOCK) {
            return Err(bad("a run does not start at a multiple of 512"));
        }
        if run_end % BLOCK != 0 && run_end != size {
            return Err(bad("a run does not end at a multiple of 512"));
        }
        match extents.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length += length,
            _ => extents.push(Extent {
                offset,
                tar_offset,
                length,
            }),
        }
    }
    if used != stored {
        return Err(bad("the data is longer than the runs"));
    }
    Ok(extents)
}
