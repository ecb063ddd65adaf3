//! How much a guest may move each second.
//!
//! TCP flows over the limit are not cut but held: the driver is not told that there
//! is something to move, so the guest's window closes, or the upstream's. They wait
//! in line, and as tokens come back the first of them move on, each by its share of
//! what there is; whoever comes meanwhile goes to the end of the line. Datagrams over the
//! limit are lost, as on a full wire, and connections are refused.

use std::collections::VecDeque;
use std::time::Duration;

use super::bucket::Bucket;
use super::{FlowId, Gateway, Limits};

/// The least that may be moved at once: the largest datagram, so that one can be
/// moved at all.
const MIN_BURST: u64 = 65_536;

/// A rest lets this part of a second pass at once.
const BURST_PARTS: u64 = 10;

/// Held flows are looked at this often in a second, as long as there are any.
const LOOKS: u64 = 50;

/// What a flow must be able to move to be let on: an ordinary packet. Fewer flows
/// are let on at once than could move nothing.
const WORTH: usize = 1460;

/// All limits of a gateway.
pub(super) struct Throttle {
    pub(super) up: Lane,
    pub(super) down: Lane,
    opens: Option<Bucket>,
}

/// Where a flow is in the line of one direction.
#[derive(Default)]
pub(super) struct Place {
    /// It waits.
    pub(super) held: bool,
    /// What it may move while others wait.
    share: usize,
}

/// Where a flow is in both lines.
#[derive(Default)]
pub(super) struct Places {
    pub(super) up: Place,
    pub(super) down: Place,
}

/// One direction.
pub(super) struct Lane {
    bucket: Option<Bucket>,
    /// What is waited for.
    quantum: u64,
    /// Flows that wait, each once; and a few that are gone.
    waiting: VecDeque<FlowId>,
    due: Option<Duration>,
}

impl Throttle {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            up: Lane::new(limits.upload),
            down: Lane::new(limits.download),
            opens: limits
                .opens
                .map(|rate| Bucket::new(rate.into(), rate.into())),
        }
    }

    /// Tells whether another flow may open now.
    pub(super) fn may_open(&mut self, now: Duration) -> bool {
        self.opens.as_mut().is_none_or(|opens| opens.take(now, 1))
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.up.due.into_iter().chain(self.down.due).min()
    }
}

impl Lane {
    fn new(rate: Option<u64>) -> Self {
        let bucket = |rate: u64| Bucket::new(rate, (rate / BURST_PARTS).max(MIN_BURST));
        Self {
            bucket: rate.map(bucket),
            quantum: (rate.unwrap_or(0) / LOOKS).clamp(1, 16 * 1024),
            waiting: VecDeque::new(),
            due: None,
        }
    }

    /// Returns how many bytes a flow may move now.
    pub(super) fn left(&mut self, now: Duration, place: &Place) -> usize {
        let Some(bucket) = &mut self.bucket else {
            return usize::MAX;
        };
        let left = usize::try_from(bucket.left(now)).unwrap_or(usize::MAX);
        if self.due.is_some() {
            left.min(place.share)
        } else {
            left
        }
    }

    /// Notes that a flow moved bytes.
    pub(super) fn spend(&mut self, now: Duration, place: &mut Place, bytes: usize) {
        if let Some(bucket) = &mut self.bucket {
            bucket.spend(now, bytes as u64);
            place.share = place.share.saturating_sub(bytes);
        }
    }

    /// Tells whether a datagram may be moved now, and takes that it is.
    pub(super) fn pass(&mut self, now: Duration, bytes: usize) -> bool {
        let bucket = self.bucket.as_mut();
        bucket.is_none_or(|bucket| bucket.take(now, bytes as u64))
    }

    /// Puts a flow in line, if it is not there.
    pub(super) fn hold(&mut self, now: Duration, id: FlowId, place: &mut Place) {
        if std::mem::replace(&mut place.held, true) {
            return;
        }
        self.waiting.push_back(id);
        if let (None, Some(bucket)) = (self.due, &mut self.bucket) {
            self.due = Some(bucket.when(now, self.quantum));
        }
    }

    /// Takes those out of the line who may go on.
    fn release(&mut self, now: Duration) -> Vec<(FlowId, usize)> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let Some(bucket) = &mut self.bucket else {
            return Vec::new();
        };
        let left = bucket.left(now).max(1) as usize;
        let count = (left / WORTH).clamp(1, self.waiting.len().max(1));
        let count = count.min(self.waiting.len());
        let share = left / count.max(1);
        let released = self.waiting.drain(..count).map(|id| (id, share)).collect();
        // Those let on have not moved anything yet: the others wait a little more.
        let later = now + Duration::from_secs(1) / LOOKS as u32;
        self.due = (!self.waiting.is_empty()).then_some(later);
        released
    }
}

impl Gateway {
    /// Lets flows go on for which there are tokens again.
    pub(super) fn release_held(&mut self, now: Duration) {
        for (id, share) in self.throttle.up.release(now) {
            self.let_on(now, id, |places| places.up = Place { held: false, share });
        }
        for (id, share) in self.throttle.down.release(now) {
            self.let_on(now, id, |places| places.down = Place { held: false, share });
        }
    }
}
