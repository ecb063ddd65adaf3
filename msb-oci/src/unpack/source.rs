//! A layer to unpack: its index, and its tar as a file that can be read at
//! any position.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::UnpackError;
use crate::layer::{Fault, Indexer, LayerIndex, Limits};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A zstd stream may begin with a skippable frame: 0x50 to 0x5f, then this.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Largest zstd window that is decoded: 2^27 bytes, what the zstd tool allows
/// by default.
const MAX_WINDOW_LOG: u32 = 27;

const BUFFER: usize = 1 << 18;

/// A layer's index and its uncompressed tar.
#[derive(Debug)]
pub struct Source {
    name: String,
    index: LayerIndex,
    tar: File,
}

impl Source {
    /// A layer that is indexed already. `name` is for messages.
    pub fn new(name: impl Into<String>, index: LayerIndex, tar: File) -> Source {
        Source {
            name: name.into(),
            index,
            tar,
        }
    }

    /// Reads a tar: plain, gzip or zstd, told apart by their first bytes. A
    /// compressed one is decompressed into an unnamed file in `scratch`.
    ///
    /// # Errors
    /// The file can't be read or decompressed, or the tar is refused.
    pub fn open(path: &Path, scratch: &Path, limits: Limits) -> Result<Source, UnpackError> {
        let name = path.display().to_string();
        let unreadable = |reason| UnpackError::Unreadable {
            layer: name.clone(),
            reason,
        };
        let file = File::open(path).map_err(unreadable)?;
        let seekable = file.metadata().map_err(unreadable)?.is_file();
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let compression = Compression::of(reader.fill_buf().map_err(unreadable)?);
        let mut indexer = Indexer::new(limits);
        let outcome = if compression == Compression::None && seekable {
            copy(&mut reader, &mut indexer, None).map(|()| reader.into_inner())
        } else {
            decompressed(reader, compression, &mut indexer, scratch)
        };
        let refused = |fault| UnpackError::Refused {
            layer: name.clone(),
            fault,
        };
        let mut tar = outcome.map_err(|failure| match failure {
            Failure::Read(reason) => unreadable(reason),
            Failure::Fault(fault) => refused(fault),
        })?;
        tar.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let index = indexer.finish().map_err(refused)?;
        Ok(Source { name, index, tar })
    }

    /// What the layer is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the layer holds.
    pub fn index(&self) -> &LayerIndex {
        &self.index
    }

    pub(super) fn tar(&self) -> &File {
        &self.tar
    }
}

enum Failure {
    Read(io::Error),
    Fault(Fault),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Read(error)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(start: &[u8]) -> Compression {
        if start.starts_with(GZIP) {
            Compression::Gzip
        } else if start.starts_with(ZSTD)
            || start.first().is_some_and(|byte| byte & 0xf0 == 0x50)
                && start[1..].starts_with(ZSTD_SKIPPABLE)
        {
            Compression::Zstd
        } else {
            Compression::None
        }
    }
}

fn decompressed(
    mut reader: BufReader<File>,
    compression: Compression,
    indexer: &mut Indexer,
    scratch: &Path,
) -> Result<File, Failure> {
    let mut tar = tempfile::tempfile_in(scratch)?;
    match compression {
        Compression::None => copy(&mut reader, indexer, Some(&mut tar))?,
        Compression::Gzip => gunzip(&mut reader, indexer, &mut tar)?,
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(reader)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            copy(&mut decoder, indexer, Some(&mut tar))?;
        }
    }
    Ok(tar)
}

/// Members one after the other; zeros may pad the end, as tape tools do.
fn gunzip(
    reader: &mut BufReader<File>,
    indexer: &mut Indexer,
    tar: &mut File,
) -> Result<(), Failure> {
    loop {
        let mut member = flate2::bufread::GzDecoder::new(&mut *reader);
        copy(&mut member, indexer, Some(tar))?;
        loop {
            let rest = reader.fill_buf()?;
            let zeros = rest.iter().take_while(|&&byte| byte == 0).count();
            if rest.is_empty() {
                return Ok(());
            }
            if zeros == 0 {
                break;
            }
            reader.consume(zeros);
        }
    }
}

fn copy(
    reader: &mut impl Read,
    indexer: &mut Indexer,
    mut tar: Option<&mut File>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        indexer.push(&buffer[..length]).map_err(Failure::Fault)?;
        if let Some(tar) = &mut tar {
            tar.write_all(&buffer[..length])?;
        }
    }
}
