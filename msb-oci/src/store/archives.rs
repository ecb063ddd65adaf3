//! Whole archives: all images of one into the store, and images of the store into one.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::Store;
use crate::ingest::{Budget, Events};
use crate::{Error, Image, PullEvent, PullOptions, Reference, Result, export, import};

impl Store {
    /// Takes all images of an archive, as [`import`](Store::import) takes one, under the names
    /// that it gives them. Together they may cost what one image may. One that has no name is
    /// left out when others have, with [`PullEvent::LeftOut`].
    ///
    /// # Errors
    /// As [`import`](Store::import); [`Error::NotAnArchive`] when it gives no names. Images
    /// that came before the one that is refused stay.
    pub fn load(
        &self,
        path: &Path,
        options: &PullOptions,
        events: Events<'_>,
    ) -> Result<Vec<Image>> {
        self.adding(|| self.load_all(path, options, events))
    }

    /// As [`load`](Store::load), from a stream such as a pipe. The archive lies in the store
    /// meanwhile, and may have as many bytes as an image.
    ///
    /// # Errors
    /// As [`load`](Store::load), and when the stream can't be read to its end.
    pub fn load_from(
        &self,
        stream: &mut dyn Read,
        options: &PullOptions,
        events: Events<'_>,
    ) -> Result<Vec<Image>> {
        self.adding(|| {
            let mut file = self.layout.temp_file()?;
            let limit = options.limits.image_bytes;
            let failed = |source| Error::store("write", &self.layout.tmp(), source);
            let copied = io::copy(&mut stream.take(limit.saturating_add(1)), &mut file);
            if copied.map_err(failed)? > limit {
                return Err(Error::TooLarge {
                    what: "the archive".to_owned(),
                    limit,
                    unit: "bytes",
                });
            }
            let loaded = self.load_all(file.path(), options, events);
            loaded.map_err(|error| match error {
                // It has no name that anybody knows.
                Error::NotAnArchive { reason, .. } => Error::NotAnArchive {
                    path: "the stream".into(),
                    reason,
                },
                error => error,
            })
        })
    }

    fn load_all(
        &self,
        path: &Path,
        options: &PullOptions,
        events: Events<'_>,
    ) -> Result<(Vec<Image>, bool)> {
        let archive = Arc::new(import::Archive::open(&self.layout, path, options)?);
        let names = archive.names(options)?;
        // Without names it is for the plan to say what is missing.
        let lone = names.whole.is_empty();
        if !lone {
            for (digest, tag) in names.nameless {
                events(PullEvent::LeftOut { digest, tag });
            }
        }
        let wanted = names.whole.iter().map(Some).chain(lone.then_some(None));
        let (mut images, mut replaced) = (Vec::new(), false);
        let budget = Budget::new(&options.limits);
        for name in wanted {
            let (plan, source, reference) = archive.plan(name, options)?;
            let (image, other) = self.complete(&plan, &source, &reference, &budget, events)?;
            images.push(image);
            replaced |= other;
        }
        Ok((images, replaced))
    }

    /// Writes images as one archive, which is an OCI layout and loads with docker too. Layers
    /// are not compressed.
    ///
    /// # Errors
    /// [`Error::NotInStore`]; [`Error::Damaged`] for a layer that is not what its digest says;
    /// the archive can't be written.
    pub fn save(&self, references: &[Reference], out: &mut dyn Write) -> Result<()> {
        let mut images = Vec::with_capacity(references.len());
        for reference in references {
            let image = self.get(reference)?.ok_or_else(|| Error::NotInStore {
                reference: reference.to_string(),
            })?;
            images.push((reference.clone(), image));
        }
        export::write(&self.layout, &images, out)
    }
}
