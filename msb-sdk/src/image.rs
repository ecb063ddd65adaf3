//! The images of this host.

use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

pub use msb_oci::Unused as UnusedImages;

use msb_oci::{Credentials, Image, PullEvent, PullOptions, PullPolicy, Reference, Removed, Store};

use crate::error::Error;
use crate::home::{Home, docker_config};

/// The image store of a [`Home`].
#[derive(Clone, Debug)]
pub struct Images {
    store: Store,
}

impl Images {
    /// Opens the store; makes it when there is none.
    ///
    /// # Errors
    /// [`Error::Image`], naming the folder that can't be used.
    pub fn open(home: &Home) -> Result<Self, Error> {
        Ok(Self {
            store: home.store()?,
        })
    }

    /// Fetches an image from its registry, with the credentials that
    /// `docker login` has stored for this user.
    ///
    /// `progress` is called from other threads.
    ///
    /// # Errors
    /// [`Error::Image`]: a bad reference, a registry that does not have it or
    /// does not answer, content that is not what its digest says.
    pub async fn pull(
        &self,
        reference: &str,
        policy: PullPolicy,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, Error> {
        let (this, reference) = (self.clone(), reference.to_owned());
        blocking(move || this.pull_blocking(&reference, policy, &progress)).await
    }

    pub(crate) fn pull_blocking(
        &self,
        reference: &str,
        policy: PullPolicy,
        progress: &(dyn Fn(PullEvent) + Sync),
    ) -> Result<Image, Error> {
        let reference: Reference = reference.parse()?;
        let credentials = docker_config().map_or(Credentials::Anonymous, Credentials::DockerConfig);
        let options = PullOptions {
            policy,
            credentials,
            ..PullOptions::default()
        };
        Ok(self.store.pull(&reference, &options, progress)?)
    }

    /// Takes an image from an OCI layout folder, an OCI archive or a docker archive.
    ///
    /// # Errors
    /// [`Error::Image`]: no such file, no such format, or content that is not
    /// what its digest says.
    pub async fn import(
        &self,
        path: &Path,
        reference: &str,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, Error> {
        let (this, path, reference) = (self.clone(), PathBuf::from(path), reference.to_owned());
        blocking(move || {
            let reference: Reference = reference.parse()?;
            Ok(this
                .store
                .import(&path, Some(&reference), &PullOptions::default(), &progress)?)
        })
        .await
    }

    /// Takes all images of an archive under the names that it gives them: an OCI layout or what
    /// `docker save` writes, as a tar, compressed or not.
    ///
    /// # Errors
    /// As [`Images::import`], and when the archive names no image. Those that came before the
    /// one that is refused stay.
    pub async fn load(
        &self,
        path: &Path,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Vec<Image>, Error> {
        let (this, path) = (self.clone(), PathBuf::from(path));
        let options = PullOptions::default();
        blocking(move || Ok(this.store.load(&path, &options, &progress)?)).await
    }

    /// As [`Images::load`], from a stream such as a pipe, which is read on another thread.
    ///
    /// # Errors
    /// As [`Images::load`], and when the stream can't be read to its end.
    pub async fn load_from(
        &self,
        mut stream: impl Read + Send + 'static,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Vec<Image>, Error> {
        let this = self.clone();
        let options = PullOptions::default();
        blocking(move || Ok(this.store.load_from(&mut stream, &options, &progress)?)).await
    }

    /// Writes images as one archive: an OCI layout that docker loads, too. The configuration
    /// of each is its own, its layers are not compressed.
    ///
    /// ```no_run
    /// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
    /// use msb_sdk::{Home, Images};
    ///
    /// let images = Images::open(&Home::from_env()?)?;
    /// let file = std::fs::File::create("images.tar")?;
    /// images.save(["python:3.12", "nginx"], file).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Image`] when there is no such image, it is damaged, or the archive can't be
    /// written: what was written is of no use then.
    pub async fn save<R: AsRef<str>>(
        &self,
        references: impl IntoIterator<Item = R>,
        out: impl Write + Send + 'static,
    ) -> Result<(), Error> {
        let parsed = references.into_iter().map(|one| one.as_ref().parse());
        let parsed: Result<Vec<Reference>, _> = parsed.collect();
        let (this, references) = (self.clone(), parsed?);
        blocking(move || {
            let mut out = BufWriter::with_capacity(1 << 20, out);
            Ok(this.store.save(&references, &mut out)?)
        })
        .await
    }

    /// Finds an image.
    ///
    /// # Errors
    /// [`Error::Image`] when there is none, or the store can't be read.
    pub async fn get(&self, reference: &str) -> Result<Image, Error> {
        let (this, reference) = (self.clone(), reference.to_owned());
        blocking(move || {
            let reference: Reference = reference.parse()?;
            let found = this.store.get(&reference)?;
            found.ok_or_else(|| {
                let reference = reference.to_string();
                msb_oci::Error::NotInStore { reference }.into()
            })
        })
        .await
    }

    /// The images that no sandbox needs, running or kept, and what removing them frees.
    ///
    /// # Errors
    /// [`Error::Image`] when the store can't be read.
    pub async fn unused(&self) -> Result<UnusedImages, Error> {
        let this = self.clone();
        blocking(move || Ok(this.store.unused()?)).await
    }

    /// Removes the images that no sandbox needs. Returns the names that went and the bytes
    /// that became free. One that somebody needs by now stays.
    ///
    /// # Errors
    /// [`Error::Image`] when the store can't be read or written.
    pub async fn prune(&self) -> Result<(Vec<Reference>, u64), Error> {
        let this = self.clone();
        blocking(move || {
            let (mut gone, mut bytes) = (Vec::new(), 0);
            for image in this.store.unused()?.images {
                for reference in image.references() {
                    match this.store.remove(reference) {
                        Ok(removed) => {
                            gone.push(reference.clone());
                            bytes += removed.bytes_freed;
                        }
                        Err(
                            msb_oci::Error::InUse { .. }
                            | msb_oci::Error::Held { .. }
                            | msb_oci::Error::NotInStore { .. },
                        ) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok((gone, bytes))
        })
        .await
    }

    /// All images, by reference.
    ///
    /// # Errors
    /// [`Error::Image`] when the store can't be read.
    pub async fn list(&self) -> Result<Vec<Image>, Error> {
        let this = self.clone();
        blocking(move || Ok(this.store.list()?)).await
    }

    /// Removes a reference, and the image with it when that was its last, and
    /// every layer that no other image needs. Returns the bytes that became free.
    ///
    /// # Errors
    /// [`Error::Image`] when there is no such image, or a sandbox uses it or is kept and was
    /// made from it.
    pub async fn remove(&self, reference: &str) -> Result<u64, Error> {
        self.remove_as(reference, Store::remove).await
    }

    /// As [`Images::remove`], also when a sandbox that is stopped was made from the image. It
    /// cannot be started until the image is there again, of the same digest.
    ///
    /// # Errors
    /// As [`Images::remove`].
    pub async fn remove_needed(&self, reference: &str) -> Result<u64, Error> {
        self.remove_as(reference, Store::remove_held).await
    }

    async fn remove_as(
        &self,
        reference: &str,
        remove: fn(&Store, &Reference) -> msb_oci::Result<Removed>,
    ) -> Result<u64, Error> {
        let (this, reference) = (self.clone(), reference.to_owned());
        blocking(move || {
            let reference: Reference = reference.parse()?;
            Ok(remove(&this.store, &reference)?.bytes_freed)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
