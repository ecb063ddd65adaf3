//! Entries of folders as they come.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use msb_guest_agent::message::Entry;
use msb_guest_agent::record::RecordDecoder;

use super::FileMetadata;
use super::fault::FileFault;
use super::stream::{FileStream, Next};
use crate::error::Error;

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirEntry {
    /// Its name: any bytes but `/` and NUL, also those that are no UTF-8.
    pub name: OsString,
    /// What it is; a symlink is not followed.
    pub metadata: FileMetadata,
}

/// The entries of a folder, as they come.
#[derive(Debug)]
pub struct DirEntries {
    stream: FileStream,
    records: RecordDecoder,
    over: bool,
}

impl DirEntries {
    pub(super) fn new(stream: FileStream) -> Self {
        Self {
            stream,
            records: RecordDecoder::default(),
            over: false,
        }
    }

    /// The next entry; `None` when there are no more.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gone`].
    pub async fn next(&mut self) -> Result<Option<DirEntry>, Error> {
        loop {
            match self.records.next_record::<Entry>() {
                Ok(Some(entry)) => return self.checked(entry).map(Some),
                Ok(None) if self.over && self.records.is_empty() => return Ok(None),
                Ok(None) if self.over => {
                    return Err(self.fails(FileFault::Malformed("half an entry".into())));
                }
                Ok(None) => {}
                Err(error) => {
                    return Err(self.fails(FileFault::Malformed(error.to_string())));
                }
            }
            match self.stream.next().await? {
                Next::Data(bytes) => self.records.extend(&bytes),
                Next::Done(_) => self.over = true,
                Next::Opened(_) => {}
            }
        }
    }

    /// A name is a name: callers join it to paths of their own.
    fn checked(&self, entry: Entry) -> Result<DirEntry, Error> {
        let name = entry.name.0;
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(self.fails(FileFault::Malformed("a name that is none".into())));
        }
        Ok(DirEntry {
            name: OsString::from_vec(name),
            metadata: entry.metadata.into(),
        })
    }

    pub(super) fn fails(&self, fault: FileFault) -> Error {
        self.stream.fails(fault)
    }
}
