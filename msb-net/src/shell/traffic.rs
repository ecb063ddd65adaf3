//! How much has crossed the guest's link: counted by the driver, read by anybody.
//!
//! It is counted where frames pass, so that it holds whatever the guest says of itself. There
//! is one writer, so that counting needs no locked instruction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames of a guest's link and their bytes, since the network was started. Directions are
/// those that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Frames that the guest sent, also those that were dropped.
    pub sent_frames: u64,
    /// Their bytes, with their Ethernet headers.
    pub sent_bytes: u64,
    /// Frames that the guest was sent.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

/// Reads the [`Traffic`] of a network, also after it has stopped.
#[derive(Clone, Debug, Default)]
pub struct TrafficMeter(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    sent: Counter,
    received: Counter,
}

#[derive(Debug, Default)]
struct Counter {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: usize) {
        let add = |to: &AtomicU64, value: u64| {
            to.store(
                to.load(Ordering::Relaxed).wrapping_add(value),
                Ordering::Relaxed,
            );
        };
        add(&self.frames, 1);
        add(&self.bytes, bytes as u64);
    }
}

impl TrafficMeter {
    /// What has crossed by now.
    #[must_use]
    pub fn read(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            sent_frames: read(&self.0.sent.frames),
            sent_bytes: read(&self.0.sent.bytes),
            received_frames: read(&self.0.received.frames),
            received_bytes: read(&self.0.received.bytes),
        }
    }

    /// Counts a frame of so many bytes. Only the driver's thread may.
    pub(super) fn count(&self, bytes: usize, from_guest: bool) {
        let counter = if from_guest {
            &self.0.sent
        } else {
            &self.0.received
        };
        counter.add(bytes);
    }
}
