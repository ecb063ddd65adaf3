//! The content-addressed store: files, locks and renames, no database.

mod archives;
mod assemble;
mod collect;
mod holders;
mod layout;
pub(crate) mod lock;
mod record;
mod unused;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fetch::{self, Plan};
use crate::ingest::{self, Budget, Events};
use crate::layer::{BLOCK, LayerIndex};
use crate::unpack::Source;
use crate::{
    Digest, Error, Image, Lease, PullEvent, PullOptions, PullPolicy, Reference, Result, import,
    pull,
};

pub use holders::{Holder, Holders};
pub(crate) use layout::{Layout, METADATA, allocated, read, rename, sync};
pub use unused::Unused;

/// A store of images below one directory.
///
/// Any number of processes may use one store at the same time.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Layout,
    holders: Holders,
}

/// What [`Store::remove`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// The image the reference meant.
    pub digest: Digest,
    /// Whether the image itself went, or other references still name it.
    pub image_removed: bool,
    /// Bytes of disk that came free. While another process adds images,
    /// nothing is freed yet; a later command does it.
    pub bytes_freed: u64,
}

impl Store {
    /// Opens the store below `root`, making its directories if needed, and
    /// repairs what a killed process left behind.
    ///
    /// # Errors
    /// The directory can't be made, read or written.
    pub fn open(root: impl AsRef<Path>) -> Result<Store> {
        Self::open_held(root, Holders::none())
    }

    /// As [`open`](Store::open), with others than its references that need images: what
    /// `holders` names stays until it names it no more, or [`remove_held`](Store::remove_held)
    /// is called. All who open one store are to say the same.
    ///
    /// # Errors
    /// As [`open`](Store::open).
    pub fn open_held(root: impl AsRef<Path>, holders: Holders) -> Result<Store> {
        let root = std::path::absolute(root.as_ref())
            .map_err(|source| Error::store("find", root.as_ref(), source))?;
        let layout = Layout { root };
        for path in layout.directories() {
            fs::create_dir_all(&path).map_err(|source| Error::store("create", &path, source))?;
        }
        collect::repair(&layout, &holders)?;
        Ok(Store { layout, holders })
    }

    /// The directory the store lives in.
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    /// Gets an image from its registry, or from the store, as the policy says.
    ///
    /// # Errors
    /// See [`Error`]. A refused image leaves nothing behind; after a broken
    /// connection the layers that are complete stay for the next attempt.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        events: Events<'_>,
    ) -> Result<Image> {
        if options.policy != PullPolicy::Always {
            let known = match self.get(reference) {
                // A damaged record is replaced by pulling again.
                Err(Error::Damaged { .. }) if options.policy == PullPolicy::Missing => None,
                known => known?.filter(|image| {
                    options.policy == PullPolicy::Never
                        || image.config.platform() == options.platform
                }),
            };
            if let Some(image) = known {
                events(PullEvent::Done {
                    digest: image.digest,
                    fetched: false,
                });
                return Ok(image);
            }
        }
        if options.policy == PullPolicy::Never {
            return Err(Error::NotInStore {
                reference: reference.to_string(),
            });
        }
        self.adding(|| {
            let (plan, registry) = pull::plan(reference, options)?;
            let budget = Budget::new(&options.limits);
            self.complete(&plan, &registry, reference, &budget, events)
        })
    }

    /// Takes an image from an OCI layout (directory or tar) or from the
    /// output of `docker save`, plain or compressed, and stores it under
    /// `reference`, or under the reference that the archive names.
    ///
    /// # Errors
    /// The file is no such archive, or its content is refused.
    pub fn import(
        &self,
        path: &Path,
        reference: Option<&Reference>,
        options: &PullOptions,
        events: Events<'_>,
    ) -> Result<Image> {
        self.adding(|| {
            let archive = Arc::new(import::Archive::open(&self.layout, path, options)?);
            let (plan, source, reference) = archive.plan(reference, options)?;
            let budget = Budget::new(&options.limits);
            self.complete(&plan, &source, &reference, &budget, events)
        })
    }

    /// Finds the image that a reference means.
    ///
    /// # Errors
    /// The store can't be read or is damaged.
    pub fn get(&self, reference: &Reference) -> Result<Option<Image>> {
        let Some((_, digest)) = record::read_reference(&self.layout.reference(reference))? else {
            return Ok(None);
        };
        self.find(digest, vec![reference.clone()])
    }

    /// Finds an image by the digest of its manifest, whatever references it has: one that
    /// lost its last reference is there as long as somebody holds a lease on it. The image
    /// that is returned knows none of its references.
    ///
    /// # Errors
    /// The store can't be read or is damaged.
    pub fn get_digest(&self, digest: Digest) -> Result<Option<Image>> {
        self.find(digest, Vec::new())
    }

    fn find(&self, digest: Digest, references: Vec<Reference>) -> Result<Option<Image>> {
        if !self.layout.is_complete(digest) {
            return Ok(None); // deleted by hand: as good as never pulled
        }
        let Some(record) = record::read_image(&self.layout, digest)? else {
            return Ok(None);
        };
        let image = record.into_image(&self.layout, references);
        Ok(image
            .files()
            .iter()
            .all(|file| file.exists())
            .then_some(image))
    }

    /// Lists the images, each with all its references, sorted by these.
    ///
    /// # Errors
    /// The store can't be read or is damaged.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images: Vec<Image> = Vec::new();
        for (reference, digest) in record::all_references(&self.layout)? {
            if let Some(known) = images.iter_mut().find(|image| image.digest == digest) {
                known.references.push(reference);
            } else if let Some(record) = record::read_image(&self.layout, digest)? {
                images.push(record.into_image(&self.layout, vec![reference]));
            }
        }
        Ok(images)
    }

    /// Forgets a reference, and the image with its unshared layers if this
    /// was the last one.
    ///
    /// # Errors
    /// [`Error::NotInStore`]; [`Error::InUse`] while somebody holds a lease on
    /// an image that would go, [`Error::Held`] when one of the [`Holders`] needs it.
    pub fn remove(&self, reference: &Reference) -> Result<Removed> {
        self.remove_unless(reference, &|digest| match self.holders.of(digest) {
            by if by.is_empty() => Ok(()),
            by => Err(Error::Held {
                image: reference.to_string(),
                by,
            }),
        })
    }

    /// As [`remove`](Store::remove), also when one of the [`Holders`] needs the image.
    ///
    /// # Errors
    /// [`Error::NotInStore`], [`Error::InUse`].
    pub fn remove_held(&self, reference: &Reference) -> Result<Removed> {
        self.remove_unless(reference, &|_| Ok(()))
    }

    /// Deletes what nobody needs any more. Returns the bytes that became free.
    ///
    /// # Errors
    /// The store can't be read or written.
    pub fn collect(&self) -> Result<u64> {
        collect::collect(&self.layout, &self.holders)
    }

    fn remove_unless(
        &self,
        reference: &Reference,
        held: &dyn Fn(Digest) -> Result<()>,
    ) -> Result<Removed> {
        let path = self.layout.reference(reference);
        let Some((_, digest)) = record::read_reference(&path)? else {
            return Err(Error::NotInStore {
                reference: reference.to_string(),
            });
        };
        let others = record::all_references(&self.layout)?;
        let last = !others
            .iter()
            .any(|(other, of)| of == &digest && other != reference);
        let record = self.layout.image(digest).join(layout::RECORD);
        // Held until the reference is gone, so that no lease comes between.
        let unused = lock::try_exclusive_existing(&record);
        if last && matches!(unused, Ok(None)) {
            return Err(Error::InUse {
                image: reference.to_string(),
            });
        }
        if last {
            held(digest)?;
        }
        layout::delete(&path)?;
        drop(unused);
        let bytes_freed = if last {
            let holders = self.holders.clone();
            let others = Holders::new(move || holders.but(digest));
            collect::collect(&self.layout, &others)?
        } else {
            0
        };
        Ok(Removed {
            digest,
            image_removed: last,
            bytes_freed,
        })
    }

    /// Runs something that adds content, safe from collection, and collects
    /// afterwards what it left without a reference.
    fn adding<T>(&self, add: impl FnOnce() -> Result<(T, bool)>) -> Result<T> {
        let held = lock::shared(&self.layout.lock())?;
        let result = add();
        drop(held);
        match &result {
            Ok((_, false)) | Err(Error::Unreachable { .. } | Error::Registry { .. }) => {}
            Ok((_, true)) | Err(_) => {
                // What can't be collected now will be later.
                let _ = self.collect();
            }
        }
        result.map(|(added, _)| added)
    }

    /// Layers, root disk, record, reference. The flag tells whether another
    /// image lost this reference.
    fn complete(
        &self,
        plan: &Plan,
        source: &dyn ingest::Source,
        reference: &Reference,
        budget: &Budget,
        events: Events<'_>,
    ) -> Result<(Image, bool)> {
        let digest = plan.manifest;
        events(PullEvent::Resolved {
            digest,
            layers: plan.layers.len(),
            bytes: plan.bytes(),
        });
        let fetched = fetch::layers(&self.layout, &plan.layers, source, budget, events)?;
        let known =
            self.layout.is_complete(digest) && record::read_image(&self.layout, digest).is_ok();
        if !known {
            events(PullEvent::Indexing);
            assemble::assemble(&self.layout, plan, &fetched.indexes, budget)?;
        }
        let replaced = record::write_reference(&self.layout, reference, digest)?;
        let image = self.get(reference)?.ok_or_else(|| Error::NotInStore {
            reference: reference.to_string(),
        })?;
        events(PullEvent::Done {
            digest,
            fetched: fetched.transferred,
        });
        Ok((image, replaced.is_some()))
    }
}

impl Layout {
    /// The index of a layer that is in the store, whole.
    pub(crate) fn layer(&self, diff_id: Digest) -> Result<Option<LayerIndex>> {
        /// An index's own limits keep it below.
        const MAX_INDEX: u64 = 2 << 30;
        let Ok(blob) = fs::metadata(self.blob(diff_id)) else {
            return Ok(None);
        };
        let Some(encoded) = layout::read(&self.index(diff_id), MAX_INDEX)? else {
            return Ok(None);
        };
        // A damaged index is replaced by fetching the layer again.
        let index = LayerIndex::decode(&encoded).ok();
        Ok(index.filter(|index| blob.len() == index.tar_bytes().next_multiple_of(BLOCK)))
    }

    /// Whether an image's directory has all its files.
    pub(crate) fn is_complete(&self, digest: Digest) -> bool {
        let directory = self.image(digest);
        [METADATA, layout::ROOT_DISK, layout::RECORD]
            .iter()
            .all(|name| directory.join(name).is_file())
    }
}

/// Where the store below `root` keeps a blob.
pub(crate) fn blob_path(root: &Path, digest: Digest) -> PathBuf {
    root.join("blobs/sha256").join(digest.hex())
}

/// Takes a shared lock on an image and checks that it is still there.
pub(crate) fn lease(image: &Image) -> Result<Lease> {
    match lock::shared_existing(&image.directory.join(layout::RECORD))? {
        Some(lock) => Ok(Lease { _lock: lock }),
        None => Err(Error::NotInStore {
            reference: image.digest.to_string(),
        }),
    }
}

/// Opens an image's layers for unpacking.
pub(crate) fn unpack_sources(image: &Image) -> Result<Vec<Source>> {
    let layout = Layout {
        root: image.store_root.clone(),
    };
    let mut sources = Vec::with_capacity(image.layers.len());
    for (number, &diff_id) in image.layers.iter().enumerate() {
        let path = layout.blob(diff_id);
        let index = layout.layer(diff_id)?.ok_or_else(|| Error::Damaged {
            path: path.clone(),
            reason: "the layer or its index is not whole".to_owned(),
        })?;
        let tar = fs::File::open(&path).map_err(|source| Error::store("open", &path, source))?;
        let name = format!(
            "layer {} of {} ({})",
            number + 1,
            image.layers.len(),
            diff_id.short()
        );
        sources.push(Source::new(name, index, tar));
    }
    Ok(sources)
}
