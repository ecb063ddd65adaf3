//! The images of this host.

use std::io::{Read, Write};
use std::path::Path;

use super::{wait, waiting};
use crate::error::Error;
use crate::{Home, Image, PullEvent, PullPolicy, Reference, UnusedImages};

/// The image store of a [`Home`]; see [`Images`](crate::Images).
#[derive(Clone, Debug)]
pub struct Images {
    inner: crate::Images,
}

impl Images {
    /// Opens the store; makes it when there is none.
    ///
    /// # Errors
    /// As [`Images::open`](crate::Images::open).
    pub fn open(home: &Home) -> Result<Self, Error> {
        crate::Images::open(home).map(|inner| Self { inner })
    }

    /// Writes images as one archive.
    ///
    /// # Errors
    /// As [`Images::save`](crate::Images::save).
    pub fn save<R: AsRef<str>>(
        &self,
        references: impl IntoIterator<Item = R>,
        out: impl Write + Send + 'static,
    ) -> Result<(), Error> {
        wait(self.inner.save(references, out))
    }

    waiting! {
        /// Fetches an image from its registry.
        ///
        /// # Errors
        /// As [`Images::pull`](crate::Images::pull).
        pull(
            reference: &str,
            policy: PullPolicy,
            progress: impl Fn(PullEvent) + Send + Sync + 'static
        ) -> Image;
        /// Takes an image from a folder or an archive.
        ///
        /// # Errors
        /// As [`Images::import`](crate::Images::import).
        import(
            path: &Path,
            reference: &str,
            progress: impl Fn(PullEvent) + Send + Sync + 'static
        ) -> Image;
        /// Takes all images of an archive.
        ///
        /// # Errors
        /// As [`Images::load`](crate::Images::load).
        load(
            path: &Path,
            progress: impl Fn(PullEvent) + Send + Sync + 'static
        ) -> Vec<Image>;
        /// Takes all images of an archive that comes as a stream.
        ///
        /// # Errors
        /// As [`Images::load_from`](crate::Images::load_from).
        load_from(
            stream: impl Read + Send + 'static,
            progress: impl Fn(PullEvent) + Send + Sync + 'static
        ) -> Vec<Image>;
        /// Finds an image.
        ///
        /// # Errors
        /// As [`Images::get`](crate::Images::get).
        get(reference: &str) -> Image;
        /// The images that no sandbox needs.
        ///
        /// # Errors
        /// As [`Images::unused`](crate::Images::unused).
        unused() -> UnusedImages;
        /// Removes the images that no sandbox needs.
        ///
        /// # Errors
        /// As [`Images::prune`](crate::Images::prune).
        prune() -> (Vec<Reference>, u64);
        /// All images, by reference.
        ///
        /// # Errors
        /// As [`Images::list`](crate::Images::list).
        list() -> Vec<Image>;
        /// Removes a reference, and what only it needed; returns the bytes that became free.
        ///
        /// # Errors
        /// As [`Images::remove`](crate::Images::remove).
        remove(reference: &str) -> u64;
        /// As `remove`, also when a sandbox that is stopped was made from the image.
        ///
        /// # Errors
        /// As [`Images::remove_needed`](crate::Images::remove_needed).
        remove_needed(reference: &str) -> u64;
    }
}
