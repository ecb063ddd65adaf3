//! What ran out or broke in a guest, so that the end of a program is not just a number.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::ByteString;

/// The longest name of a program, in bytes: the kernel's have 15.
const MAX_NAME: usize = 64;

/// The most that is told of one program's end; there are three kinds.
const MAX_TROUBLES: usize = 8;

/// Something that a program can't help, and its user can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Trouble {
    /// Memory ran out, and processes were killed.
    OutOfMemory {
        /// How many.
        killed: u32,
        /// The name of the last of them, where it is known. At most 64 bytes.
        #[serde(deserialize_with = "short")]
        program: Option<ByteString>,
    },
    /// The guest's file system is full.
    DiskFull {
        /// Its size in bytes.
        size: u64,
        /// Whether it is the number of files that is exhausted.
        files: bool,
    },
    /// The guest's disk did not take or give what it should.
    DiskFailed {
        /// How often so far.
        count: u32,
    },
}

fn short<'de, D: Deserializer<'de>>(input: D) -> Result<Option<ByteString>, D::Error> {
    let name = Option::<ByteString>::deserialize(input)?;
    match &name {
        Some(name) if name.0.len() > MAX_NAME => Err(D::Error::custom("the name is too long")),
        _ => Ok(name),
    }
}

/// Reads what is told of one program's end.
pub(super) fn few<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Trouble>, D::Error> {
    let troubles = Vec::deserialize(input)?;
    match troubles.len() {
        ..=MAX_TROUBLES => Ok(troubles),
        _ => Err(D::Error::custom("too many troubles")),
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::OutOfMemory {
                program: Some(name),
                ..
            } => write!(f, "out of memory: {name} was killed"),
            Trouble::OutOfMemory { killed: 1, .. } => {
                f.write_str("out of memory: a process was killed")
            }
            Trouble::OutOfMemory { killed, .. } => {
                write!(f, "out of memory: {killed} processes were killed")
            }
            Trouble::DiskFull { size, files: false } => {
                write!(f, "the disk is full: it has {} MiB", size >> 20)
            }
            Trouble::DiskFull { files: true, .. } => {
                f.write_str("the disk is full: it has no room for more files")
            }
            Trouble::DiskFailed { .. } => {
                f.write_str("the disk failed: what was written may be lost")
            }
        }
    }
}
