//! The images of this host.

use std::path::{Path, PathBuf};

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
