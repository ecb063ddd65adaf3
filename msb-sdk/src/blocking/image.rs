//! The images of this host.

use std::path::Path;

use super::waiting;
use crate::error::Error;
use crate::{Home, Image, PullEvent, PullPolicy};

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
    }
}
