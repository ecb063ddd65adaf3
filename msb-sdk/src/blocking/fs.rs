//! The guest's files.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};

use super::{wait, waiting};
use crate::error::Error;
use crate::{CopyOptions, CopyReport, DirEntry, FileMetadata, WriteOptions};

/// The files of a sandbox; see [`Fs`](crate::Fs).
#[derive(Clone, Debug)]
pub struct Fs {
    inner: crate::Fs,
}

impl From<crate::Fs> for Fs {
    fn from(inner: crate::Fs) -> Self {
        Self { inner }
    }
}

impl Fs {
    /// The same files with the rights of a user of the guest.
    #[must_use]
    pub fn as_user(self, user: impl Into<String>) -> Self {
        self.inner.as_user(user).into()
    }

    waiting! {
        /// See [`Fs::read`](crate::Fs::read).
        ///
        /// # Errors
        /// [`Error::File`], [`Error::Gone`]; so have all of these.
        read(path: impl AsRef<Path>) -> Vec<u8>;
        /// See [`Fs::read_to_string`](crate::Fs::read_to_string).
        read_to_string(path: impl AsRef<Path>) -> String;
        /// See [`Fs::write`](crate::Fs::write).
        write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> ();
        /// See [`Fs::list`](crate::Fs::list).
        list(path: impl AsRef<Path>) -> Vec<DirEntry>;
        /// See [`Fs::stat`](crate::Fs::stat).
        stat(path: impl AsRef<Path>) -> FileMetadata;
        /// See [`Fs::lstat`](crate::Fs::lstat).
        lstat(path: impl AsRef<Path>) -> FileMetadata;
        /// See [`Fs::exists`](crate::Fs::exists).
        exists(path: impl AsRef<Path>) -> bool;
        /// See [`Fs::lexists`](crate::Fs::lexists).
        lexists(path: impl AsRef<Path>) -> bool;
        /// See [`Fs::mkdir`](crate::Fs::mkdir).
        mkdir(path: impl AsRef<Path>) -> ();
        /// See [`Fs::mkdir_all`](crate::Fs::mkdir_all).
        mkdir_all(path: impl AsRef<Path>) -> ();
        /// See [`Fs::remove`](crate::Fs::remove).
        remove(path: impl AsRef<Path>) -> ();
        /// See [`Fs::remove_all`](crate::Fs::remove_all).
        remove_all(path: impl AsRef<Path>) -> ();
        /// See [`Fs::rename`](crate::Fs::rename).
        rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> ();
        /// See [`Fs::copy`](crate::Fs::copy).
        copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> ();
        /// See [`Fs::symlink`](crate::Fs::symlink).
        symlink(target: impl AsRef<Path>, path: impl AsRef<Path>) -> ();
        /// See [`Fs::read_link`](crate::Fs::read_link).
        read_link(path: impl AsRef<Path>) -> PathBuf;
        /// See [`Fs::chmod`](crate::Fs::chmod).
        chmod(path: impl AsRef<Path>, permissions: u32) -> ();
        /// See [`Fs::chown`](crate::Fs::chown).
        chown(path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> ();
        /// See [`Fs::lchown`](crate::Fs::lchown).
        lchown(path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> ();
        /// See [`Fs::truncate`](crate::Fs::truncate).
        truncate(path: impl AsRef<Path>, size: u64) -> ();
        /// See [`Fs::copy_in`](crate::Fs::copy_in).
        copy_in(from: impl AsRef<Path>, to: impl AsRef<Path>) -> CopyReport;
        /// See [`Fs::copy_in_with`](crate::Fs::copy_in_with).
        copy_in_with(
            from: impl AsRef<Path>,
            to: impl AsRef<Path>,
            options: CopyOptions
        ) -> CopyReport;
        /// See [`Fs::copy_out`](crate::Fs::copy_out).
        copy_out(from: impl AsRef<Path>, to: impl AsRef<Path>) -> CopyReport;
        /// See [`Fs::copy_out_with`](crate::Fs::copy_out_with).
        copy_out_with(
            from: impl AsRef<Path>,
            to: impl AsRef<Path>,
            options: CopyOptions
        ) -> CopyReport;
    }

    /// See [`Fs::open_read`](crate::Fs::open_read).
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gone`].
    pub fn open_read(&self, path: impl AsRef<Path>) -> Result<FileReader, Error> {
        wait(self.inner.open_read(path)).map(FileReader::from)
    }

    /// See [`Fs::open_read_at`](crate::Fs::open_read_at).
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gone`].
    pub fn open_read_at(
        &self,
        path: impl AsRef<Path>,
        offset: u64,
        len: Option<u64>,
    ) -> Result<FileReader, Error> {
        wait(self.inner.open_read_at(path, offset, len)).map(FileReader::from)
    }

    /// See [`Fs::open_write`](crate::Fs::open_write).
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gone`].
    pub fn open_write(&self, path: impl AsRef<Path>) -> Result<FileWriter, Error> {
        wait(self.inner.open_write(path)).map(|inner| FileWriter { inner })
    }

    /// See [`Fs::open_write_with`](crate::Fs::open_write_with).
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gone`].
    pub fn open_write_with(
        &self,
        path: impl AsRef<Path>,
        options: WriteOptions,
    ) -> Result<FileWriter, Error> {
        wait(self.inner.open_write_with(path, options)).map(|inner| FileWriter { inner })
    }

    /// See [`Fs::open_list`](crate::Fs::open_list).
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gone`].
    pub fn open_list(&self, path: impl AsRef<Path>) -> Result<DirEntries, Error> {
        wait(self.inner.open_list(path)).map(|inner| DirEntries { inner, over: false })
    }
}

/// A file of the guest that is being read; see [`FileReader`](crate::FileReader). Its errors
/// as [`io::Read`] hold an [`Error`].
#[derive(Debug)]
pub struct FileReader {
    inner: crate::FileReader,
    /// What came and was not taken.
    rest: Bytes,
}

impl From<crate::FileReader> for FileReader {
    fn from(inner: crate::FileReader) -> Self {
        let rest = Bytes::new();
        Self { inner, rest }
    }
}

impl FileReader {
    /// What was known about the file when it was opened.
    #[must_use]
    pub fn metadata(&self) -> &FileMetadata {
        self.inner.metadata()
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// As [`FileReader::next`](crate::FileReader::next).
    // Not that of an iterator: it ends with an error.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        wait(self.inner.next())
    }
}

impl io::Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.rest = self.next().map_err(io::Error::other)?.unwrap_or_default();
        }
        let len = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// A file of the guest that is being written; see [`FileWriter`](crate::FileWriter). Its
/// errors as [`io::Write`] hold an [`Error`].
#[derive(Debug)]
pub struct FileWriter {
    inner: crate::FileWriter,
}

impl FileWriter {
    /// Writes all of `content`; returns when the last of it is on its way.
    ///
    /// # Errors
    /// As [`FileWriter::write`](crate::FileWriter::write).
    pub fn write(&mut self, content: impl AsRef<[u8]>) -> Result<(), Error> {
        wait(self.inner.write(content))
    }

    /// Ends the file. Returns when the guest has written all of it.
    ///
    /// # Errors
    /// As [`FileWriter::finish`](crate::FileWriter::finish).
    pub fn finish(self) -> Result<(), Error> {
        wait(self.inner.finish())
    }
}

impl io::Write for FileWriter {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        FileWriter::write(self, content).map_err(io::Error::other)?;
        Ok(content.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The entries of a folder, as they come; see [`DirEntries`](crate::DirEntries).
#[derive(Debug)]
pub struct DirEntries {
    inner: crate::DirEntries,
    over: bool,
}

impl Iterator for DirEntries {
    type Item = Result<DirEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let entry = wait(self.inner.next()).transpose();
        self.over = !matches!(entry, Some(Ok(_)));
        entry
    }
}
