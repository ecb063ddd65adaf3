//! Content as it comes and goes.

use bytes::Bytes;
use msb_guest_agent::message::WriteMode;

use super::FileMetadata;
use super::fault::FileFault;
use super::stream::{FileStream, Next};
use crate::error::Error;

/// How much is passed on at once: what the guest takes without being asked again.
const PIECE: usize = 256 * 1024;

/// A file of the guest that is being read. Whoever does not read slows nobody down but the
/// guest's own reader.
#[derive(Debug)]
pub struct FileReader {
    stream: FileStream,
    metadata: FileMetadata,
    over: bool,
}

impl FileReader {
    pub(super) fn new(stream: FileStream, metadata: FileMetadata) -> Self {
        Self {
            stream,
            metadata,
            over: false,
        }
    }

    /// What was known about the file when it was opened.
    #[must_use]
    pub fn metadata(&self) -> &FileMetadata {
        &self.metadata
    }

    /// The next bytes, some ten KiB of them; `None` at the end.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gone`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.over {
            match self.stream.next().await {
                Ok(Next::Data(bytes)) => return Ok(Some(bytes)),
                Ok(Next::Done(_)) => self.over = true,
                Ok(Next::Opened(_)) => {}
                Err(error) => {
                    self.over = true;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    pub(super) fn fails(&self, fault: FileFault) -> Error {
        self.stream.fails(fault)
    }
}

/// A file of the guest that is being written. What was written is sure to be in the file once
/// [`FileWriter::finish`] has said so; one that is dropped before leaves what came through.
#[derive(Debug)]
pub struct FileWriter {
    stream: FileStream,
}

impl FileWriter {
    pub(super) fn new(stream: FileStream) -> Self {
        Self { stream }
    }

    /// Writes all of `content`; returns when the last of it is on its way.
    ///
    /// # Errors
    /// [`Error::File`], also for what was written before; [`Error::Gone`].
    pub async fn write(&mut self, content: impl AsRef<[u8]>) -> Result<(), Error> {
        for piece in content.as_ref().chunks(PIECE) {
            self.stream.send(Bytes::copy_from_slice(piece)).await?;
        }
        Ok(())
    }

    /// Ends the file. Returns when the guest has written all of it.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub async fn finish(mut self) -> Result<(), Error> {
        self.stream.finish().await.map(drop)
    }
}

/// How a file is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    pub(super) mode: WriteMode,
    pub(super) permissions: Option<u32>,
}

impl WriteOptions {
    /// Makes the file, or replaces its content.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails when there is a file.
    #[must_use]
    pub fn create_new(mut self) -> Self {
        self.mode = WriteMode::CreateNew;
        self
    }

    /// Writes behind what is there.
    #[must_use]
    pub fn append(mut self) -> Self {
        self.mode = WriteMode::Append;
        self
    }

    /// Writes over what is there, from this offset on, and keeps the rest.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.mode = WriteMode::At(offset);
        self
    }

    /// The file's permissions, such as `0o600`; a file that is made has `0o644` otherwise.
    #[must_use]
    pub fn permissions(mut self, permissions: u32) -> Self {
        self.permissions = Some(permissions);
        self
    }
}
