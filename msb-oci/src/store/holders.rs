//! Who needs images besides those that hold a lease now.
//!
//! A lease ends with its process. Somebody who will want an image again later, such as a
//! sandbox that is stopped, has it written down in a place of its own, which is asked each
//! time something is to be deleted: there is no second note of it that could be wrong.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::Digest;

/// Somebody who needs an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Digest of the image's manifest.
    pub digest: Digest,
    /// What to call whoever needs it.
    pub name: String,
}

/// Says who needs images; see [`Store::open_held`](crate::Store::open_held).
#[derive(Clone)]
pub struct Holders(Arc<dyn Fn() -> Vec<Holder> + Send + Sync>);

impl Holders {
    /// Takes what is asked each time that something is to be deleted.
    pub fn new(ask: impl Fn() -> Vec<Holder> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// Nobody.
    pub(crate) fn none() -> Self {
        Self::new(Vec::new)
    }

    /// The names of those who need an image.
    pub(super) fn of(&self, digest: Digest) -> Vec<String> {
        let all = (self.0)().into_iter();
        all.filter(|holder| holder.digest == digest)
            .map(|holder| holder.name)
            .collect()
    }

    /// Those who need another image than this one.
    pub(super) fn but(&self, digest: Digest) -> Vec<Holder> {
        let mut all = (self.0)();
        all.retain(|holder| holder.digest != digest);
        all
    }

    /// Every image that somebody needs.
    pub(super) fn digests(&self) -> HashSet<Digest> {
        (self.0)().into_iter().map(|holder| holder.digest).collect()
    }
}

impl fmt::Debug for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Holders")
    }
}
