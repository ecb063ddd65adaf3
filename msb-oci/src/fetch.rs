//! From a manifest to an image in the store: all layers, several at a time,
//! then the root disk. The same for registries and archives.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::ingest::{Budget, Events, Layer, Source, ingest};
use crate::layer::{Fault, LayerIndex};
use crate::manifest::Descriptor;
use crate::store::{Layout, lock};
use crate::{Digest, Error, ImageConfig, PullEvent, PullOptions, Result};

/// What is known once manifest and configuration are read and verified.
pub(crate) struct Plan {
    pub(crate) manifest: Digest,
    pub(crate) config_digest: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Layer>,
    /// Manifest and configuration as they came: for the store, once it has all
    /// layers.
    pub(crate) documents: [(Digest, Vec<u8>); 2],
}

impl Plan {
    /// Joins manifest and configuration, each with its digest.
    ///
    /// # Errors
    /// They don't fit each other, or the image is for another platform.
    pub(crate) fn new(
        name: &str,
        manifest: (Digest, Vec<u8>),
        config: (Digest, Vec<u8>),
        layers: &[(Option<Digest>, u64)],
        options: &PullOptions,
    ) -> Result<Plan> {
        let documents = [manifest, config];
        let [(manifest, _), (config_digest, config)] = &documents;
        let (manifest, config_digest) = (*manifest, *config_digest);
        let (config, diff_ids) = ImageConfig::parse(config)?;
        if config.platform() != options.platform {
            let offered = vec![config.platform().to_string()];
            return Err(Error::NoSuchPlatform {
                reference: name.to_owned(),
                wanted: options.platform.clone(),
                offered,
            });
        }
        let of = layers.len();
        if of > options.limits.layers {
            return Err(Error::TooLarge {
                what: name.to_owned(),
                limit: options.limits.layers as u64,
                unit: "layers",
            });
        }
        if diff_ids.len() != of {
            let reason = format!(
                "it has {of} layers, its configuration has {}",
                diff_ids.len()
            );
            return Err(Error::BadImage {
                what: format!("image {name}"),
                reason,
            });
        }
        let layers = layers.iter().zip(diff_ids).enumerate();
        let layers = layers
            .map(|(number, (&(digest, size), diff_id))| Layer {
                number,
                of,
                digest,
                size,
                diff_id,
            })
            .collect();
        Ok(Plan {
            manifest,
            config_digest,
            config,
            layers,
            documents,
        })
    }

    /// Bytes to transfer, at most.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// The layers of a manifest as [`Plan::new`] wants them.
pub(crate) fn described(layers: &[Descriptor]) -> Vec<(Option<Digest>, u64)> {
    layers
        .iter()
        .map(|layer| (Some(layer.digest), layer.size))
        .collect()
}

/// Layers by diff-id, and whether any had to be transferred.
pub(crate) struct Fetched {
    pub(crate) indexes: HashMap<Digest, LayerIndex>,
    pub(crate) transferred: bool,
}

/// Brings all layers into the store, within what is left of the budget.
pub(crate) fn layers(
    layout: &Layout,
    layers: &[Layer],
    source: &dyn Source,
    budget: &Budget,
    events: Events<'_>,
) -> Result<Fetched> {
    let mut seen = HashSet::new();
    let unique = layers.iter().filter(|layer| seen.insert(layer.diff_id));
    let unique: Vec<(&Layer, bool)> = unique
        .map(|layer| (layer, budget.announce(layer.diff_id, layer.size)))
        .collect();
    let next = AtomicUsize::new(0);
    let fetched = Mutex::new(Fetched {
        indexes: HashMap::new(),
        transferred: false,
    });
    let failed = Mutex::new(None);
    let work = || {
        while let Some((layer, new)) = unique.get(next.fetch_add(1, Ordering::Relaxed)) {
            match one(layout, (layer, *new), source, budget, events) {
                Ok((index, transferred)) => {
                    let mut fetched = fetched.lock().unwrap_or_else(PoisonError::into_inner);
                    fetched.indexes.insert(layer.diff_id, index);
                    fetched.transferred |= transferred;
                }
                Err(error) => {
                    // Before the others end: their errors only follow.
                    failed
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(error);
                    next.store(unique.len(), Ordering::Relaxed);
                    budget.cancel();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..budget.limits().parallel.clamp(1, unique.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(fetched.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// Brings one layer, and says whether it had to be transferred. One that is `new` to the budget
/// is counted also when it is there already.
fn one(
    layout: &Layout,
    (layer, new): (&Layer, bool),
    source: &dyn Source,
    budget: &Budget,
    events: Events<'_>,
) -> Result<(LayerIndex, bool)> {
    let number = layer.number;
    let present = || -> Result<Option<LayerIndex>> {
        let Some(index) = layout.layer(layer.diff_id)? else {
            return Ok(None);
        };
        if new {
            budget.receive(layer.size.min(index.tar_bytes()));
            let spent = budget.spend(index.tar_bytes());
            spent.map_err(|reason| Error::Layer {
                layer: layer.name(),
                fault: Fault::of_stream(reason),
            })?;
        }
        events(PullEvent::LayerExists { layer: number });
        Ok(Some(index))
    };
    if let Some(index) = present()? {
        return Ok((index, false));
    }
    let lock_path = layout.blob_locks().join(layer.diff_id.hex());
    let _fetching = lock::exclusive(&lock_path, || {
        events(PullEvent::LayerWaiting { layer: number });
    })?;
    if let Some(index) = present()? {
        return Ok((index, false));
    }
    let digest = layer.digest.unwrap_or(layer.diff_id);
    events(PullEvent::LayerStarted {
        layer: number,
        digest,
        total: layer.size,
    });
    let index = ingest(layout, layer, source, budget, events)?;
    events(PullEvent::LayerDone { layer: number });
    Ok((index, true))
}
