//! A capture of the guest's link, for Wireshark and its kin.
//!
//! Read draft-ietf-opsawg-pcapng: a section header, one interface, and then one
//! enhanced packet block per frame with a time in nanoseconds and a direction,
//! seen from the gateway: *inbound* is what the guest sent. Statistics at the end
//! say how many frames there were and how many the limit left out.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::link::MAX_FRAME;
use crate::Error;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
const END_OF_OPTIONS: u16 = 0;
const APPLICATION: u16 = 4;
const TIME_RESOLUTION: u16 = 9;
const NANOSECONDS: u8 = 9;
const FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
const RECEIVED: u16 = 4;
const DROPPED: u16 = 5;

/// Where the frames of a guest are written to, and how much of them.
pub struct Capture {
    out: BufWriter<Box<dyn Write + Send>>,
    /// Bytes that may still be written, the statistics aside.
    left: u64,
    frames: u64,
    left_out: u64,
    started: bool,
    broken: bool,
    block: Vec<u8>,
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("left", &self.left)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// What a capture may hold if nobody says otherwise: a gibibyte, which the
    /// usual tools can still open.
    pub const DEFAULT_LIMIT: u64 = 1 << 30;

    /// A capture that is written to `out` and ends before it has more than `limit`
    /// bytes; statistics of fewer than a hundred may follow.
    pub fn new(out: Box<dyn Write + Send>, limit: u64) -> Self {
        Self {
            out: BufWriter::new(out),
            left: limit,
            frames: 0,
            left_out: 0,
            started: false,
            broken: false,
            block: Vec::new(),
        }
    }

    /// A capture in a file that only its owner may read; one of this name is
    /// overwritten.
    ///
    /// # Errors
    ///
    /// The file cannot be made, is somebody else's, or is no file but a pipe or device.
    pub fn create(path: &Path, limit: u64) -> Result<Self, Error> {
        let file = create(path)
            .map_err(|error| Error::system(format!("write {}", path.display()), &error))?;
        Ok(Self::new(Box::new(file), limit))
    }

    /// Adds a frame.
    pub(super) fn frame(&mut self, at: SystemTime, frame: &[u8], from_guest: bool) {
        self.frames += 1;
        if self.broken {
            return;
        }
        if let Err(full) = self.try_frame(at, frame, from_guest) {
            self.left_out += 1;
            // A block that was half written would make the rest unreadable, and
            // frames after a gap would look like all there were.
            self.left = 0;
            self.broken = full.kind() != io::ErrorKind::StorageFull;
        }
    }

    /// Hands on what was buffered.
    pub(super) fn flush(&mut self) {
        self.broken |= self.out.flush().is_err();
    }

    fn try_frame(&mut self, at: SystemTime, frame: &[u8], from_guest: bool) -> io::Result<()> {
        if !self.started {
            self.started = true;
            self.header()?;
        }
        self.block.clear();
        self.number(0);
        self.time(at);
        self.number(frame.len() as u32);
        self.number(frame.len() as u32);
        self.padded(frame);
        let direction = if from_guest { INBOUND } else { OUTBOUND };
        self.option(FLAGS, &direction.to_ne_bytes());
        self.option(END_OF_OPTIONS, &[]);
        self.write(PACKET)
    }

    fn header(&mut self) -> io::Result<()> {
        self.block.clear();
        self.number(BYTE_ORDER);
        self.block.extend_from_slice(&1u16.to_ne_bytes());
        self.block.extend_from_slice(&0u16.to_ne_bytes());
        // The length of the section is not known beforehand.
        self.block.extend_from_slice(&[0xff; 8]);
        self.option(APPLICATION, b"msb-net");
        self.option(END_OF_OPTIONS, &[]);
        self.write(SECTION_HEADER)?;
        self.block.clear();
        self.block.extend_from_slice(&ETHERNET.to_ne_bytes());
        self.block.extend_from_slice(&0u16.to_ne_bytes());
        self.number(MAX_FRAME as u32);
        self.option(TIME_RESOLUTION, &[NANOSECONDS]);
        self.option(END_OF_OPTIONS, &[]);
        self.write(INTERFACE)
    }

    fn statistics(&mut self) -> io::Result<()> {
        self.block.clear();
        self.number(0);
        self.time(SystemTime::now());
        self.option(RECEIVED, &self.frames.to_ne_bytes());
        self.option(DROPPED, &self.left_out.to_ne_bytes());
        self.option(END_OF_OPTIONS, &[]);
        self.left = u64::MAX;
        self.write(STATISTICS)
    }

    fn time(&mut self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since.unwrap_or(Duration::ZERO).as_nanos() as u64;
        self.number((nanos >> 32) as u32);
        self.number(nanos as u32);
    }

    fn number(&mut self, number: u32) {
        self.block.extend_from_slice(&number.to_ne_bytes());
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.block.extend_from_slice(&code.to_ne_bytes());
        self.block
            .extend_from_slice(&(value.len() as u16).to_ne_bytes());
        self.padded(value);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
        let whole = self.block.len().next_multiple_of(4);
        self.block.resize(whole, 0);
    }

    /// Writes the block, between its type and its length, if there is room.
    fn write(&mut self, kind: u32) -> io::Result<()> {
        let length = self.block.len() as u32 + 12;
        let Some(left) = self.left.checked_sub(length.into()) else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        self.left = left;
        self.out.write_all(&kind.to_ne_bytes())?;
        self.out.write_all(&length.to_ne_bytes())?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&length.to_ne_bytes())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.broken {
            return;
        }
        // A capture of nothing is one, too. There is nobody left to tell of a failure.
        let begun = if self.started { Ok(()) } else { self.header() };
        let _ = begun
            .and_then(|()| self.statistics())
            .and_then(|()| self.out.flush());
    }
}

fn create(path: &Path) -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .mode(0o600)
        // A pipe that nobody reads would not be opened before somebody did.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    if !file.metadata()?.is_file() {
        let reason = "it is not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    // Whoever could read the old file must not read this one.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
