//! When each flow wants to be looked at next: one deadline per flow.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{FlowId, FlowMap};

#[derive(Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Duration, FlowId)>,
    /// As many entries as `queue`, which the flow tables bound.
    deadlines: FlowMap<Duration>,
}

impl Timers {
    /// Sets, moves or clears the deadline of a flow.
    pub(super) fn set(&mut self, flow: FlowId, deadline: Option<Duration>) {
        let old = match deadline {
            Some(deadline) => self.deadlines.insert(flow, deadline),
            None => self.deadlines.remove(&flow),
        };
        if old == deadline {
            return;
        }
        if let Some(old) = old {
            self.queue.remove(&(old, flow));
        }
        if let Some(deadline) = deadline {
            self.queue.insert((deadline, flow));
        }
    }

    /// Takes out a flow whose deadline is not after `now`.
    pub(super) fn pop(&mut self, now: Duration) -> Option<FlowId> {
        let &(deadline, flow) = self.queue.first()?;
        if deadline > now {
            return None;
        }
        self.set(flow, None);
        Some(flow)
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.queue.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_can_be_moved_and_cleared() {
        let mut timers = Timers::default();
        let at = Duration::from_secs;
        timers.set(FlowId(1), Some(at(5)));
        timers.set(FlowId(2), Some(at(3)));
        timers.set(FlowId(1), Some(at(1)));
        timers.set(FlowId(3), Some(at(1)));
        timers.set(FlowId(3), None);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop(at(2)), Some(FlowId(1)));
        assert_eq!(timers.pop(at(2)), None);
        assert_eq!(timers.pop(at(3)), Some(FlowId(2)));
        assert_eq!(timers.next(), None);
    }
}
