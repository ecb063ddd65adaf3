//! Which images nobody needs, and what removing them would free.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{Store, layout, lock};
use crate::{Image, Result};

/// What [`Store::unused`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Unused {
    /// The images.
    pub images: Vec<Image>,
    /// Bytes of disk that removing all of them frees.
    pub bytes: u64,
}

impl Store {
    /// The images that nobody needs: no [`Holders`](crate::Holders), and no lease. They may be needed a moment
    /// later.
    ///
    /// # Errors
    /// The store can't be read or is damaged.
    pub fn unused(&self) -> Result<Unused> {
        let needed = self.holders.digests();
        let (mut images, mut live) = (Vec::new(), HashSet::new());
        for image in self.list()? {
            let record = image.directory.join(layout::RECORD);
            let free =
                !needed.contains(&image.digest) && lock::try_exclusive_existing(&record)?.is_some();
            match free {
                true => images.push(image),
                false => live.extend(image.files()),
            }
        }
        let files: HashSet<PathBuf> = images.iter().flat_map(Image::files).collect();
        let bytes = files
            .difference(&live)
            .map(|file| layout::allocated(file))
            .sum();
        Ok(Unused { images, bytes })
    }
}
