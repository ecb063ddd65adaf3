//! Starting a sandbox that is kept.

use super::SandboxHandle;
use crate::builder::{Start, Started, blocking};
use crate::error::Error;
use crate::home::{GuestBundle, unusable};
use crate::record::{self, Record, State};
use crate::sandbox::Sandbox;
use crate::secret::Values;
use crate::state::SandboxDir;

impl SandboxHandle {
    /// Starts it, detached. Its disk is as it was left. Secrets are read from where they
    /// came from when it was made.
    ///
    /// # Errors
    /// [`Error::NameTaken`] when it runs already, [`Error::ImageGone`], [`Error::Secret`] for
    /// a secret whose value was given, and those of
    /// [`SandboxBuilder::create`](crate::SandboxBuilder::create).
    pub async fn start(&self) -> Result<Sandbox, Error> {
        self.start_with(std::iter::empty::<(String, Vec<u8>)>())
            .await
    }

    /// As [`SandboxHandle::start`], with the values of secrets, by their names: of those
    /// that were given when it was made, and in place of what others would be read from.
    ///
    /// # Errors
    /// As [`SandboxHandle::start`].
    pub async fn start_with<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Sandbox, Error> {
        let values = Values::named(secrets)?;
        let this = self.clone();
        blocking(move || this.start_blocking(values))
            .await?
            .sandbox()
    }

    /// Tells whether [`start_with`](Self::start_with) would find the values of its secrets,
    /// when these are given.
    ///
    /// # Errors
    /// [`Error::Secret`], [`Error::NoSandbox`], and those of reading its folder.
    pub async fn check_secrets<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<(), Error> {
        let values = Values::named(secrets)?;
        let path = self.home.sandboxes().join(&self.name);
        let none = || Error::NoSandbox {
            name: self.name.clone(),
        };
        let record = Record::read(&path)?.ok_or_else(none)?;
        let read = move || values.complete(&record.spec.secrets).map(drop);
        blocking(read).await
    }

    fn start_blocking(&self, values: Values) -> Result<Started, Error> {
        let bundle = GuestBundle::find(&self.home)?;
        let dir = SandboxDir::open(&self.home, &self.name)?;
        let record = Record::read(dir.path())?;
        let record = record.filter(|record| record.keep);
        let record = record.ok_or_else(|| Error::NoSandbox {
            name: self.name.clone(),
        })?;
        let values = values.complete(&record.spec.secrets)?;
        // One that can't be read is not written over. The process that it names is not that
        // of the supervisor which has the lock from here on.
        State::read(dir.path())?;
        record::forget_state(dir.path()).map_err(|source| unusable(dir.path(), source))?;
        let image = self.image(&record)?;
        let start = Start {
            home: self.home.clone(),
            bundle,
            record,
            image,
            values,
            attached: false,
            fresh: false,
            source: None,
        };
        start.run(dir, &|_| {})
    }
}
