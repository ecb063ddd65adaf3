//! Events that wait for whoever listens: a bounded number of them, and how many did not fit.
//!
//! Whoever tells never waits. What is missing is itself an event, at the place where it is
//! missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// An event that can say that others are missing.
pub(crate) trait Countable: Sized {
    /// That so many are missing.
    fn lost(count: u64) -> Self;
}

/// The receiving end. Events stop when every sending end is gone.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    queue: mpsc::Receiver<T>,
    lost: Arc<AtomicU64>,
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct Watcher<T> {
    queue: mpsc::Sender<T>,
    lost: Arc<AtomicU64>,
}

/// Makes both ends of a queue for so many events.
pub(crate) fn waiting<T>(most: usize) -> (Watcher<T>, Waiting<T>) {
    let (sender, queue) = mpsc::channel(most);
    let lost = Arc::new(AtomicU64::new(0));
    let watcher = Watcher {
        queue: sender,
        lost: Arc::clone(&lost),
    };
    (watcher, Waiting { queue, lost })
}

impl<T> Watcher<T> {
    /// Hands an event on, or counts it; false when nobody listens any more.
    pub(crate) fn tell(&self, event: T) -> bool {
        match self.queue.try_send(event) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

impl<T> Clone for Watcher<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            lost: Arc::clone(&self.lost),
        }
    }
}

impl<T: Countable> Waiting<T> {
    /// Waits for the next event; `None` when no more will come and all were taken. Nothing is
    /// lost when this is given up.
    pub(crate) async fn recv(&mut self) -> Option<T> {
        if let Ok(event) = self.queue.try_recv() {
            return Some(event);
        }
        // What did not fit came after what waited.
        if let Some(lost) = self.missing() {
            return Some(lost);
        }
        match self.queue.recv().await {
            Some(event) => Some(event),
            None => self.missing(),
        }
    }

    fn missing(&self) -> Option<T> {
        match self.lost.swap(0, Ordering::Relaxed) {
            0 => None,
            count => Some(T::lost(count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Event {
        Number(u64),
        Lost(u64),
    }

    impl Countable for Event {
        fn lost(count: u64) -> Self {
            Self::Lost(count)
        }
    }

    #[tokio::test]
    async fn whoever_does_not_listen_is_told_how_many_are_missing() {
        let (watcher, mut events) = waiting(3);
        for number in 0..8 {
            assert!(watcher.tell(Event::Number(number)));
        }
        for number in 0..3 {
            assert_eq!(events.recv().await, Some(Event::Number(number)));
        }
        assert_eq!(events.recv().await, Some(Event::Lost(5)));
        assert!(watcher.tell(Event::Number(8)));
        assert_eq!(events.recv().await, Some(Event::Number(8)));
        // Also after the last one.
        for number in 0..4 {
            assert!(watcher.clone().tell(Event::Number(number)));
        }
        drop(watcher);
        for number in 0..3 {
            assert_eq!(events.recv().await, Some(Event::Number(number)));
        }
        assert_eq!(events.recv().await, Some(Event::Lost(1)));
        assert_eq!(events.recv().await, None);
    }

    #[test]
    fn whoever_tells_learns_that_nobody_listens() {
        let (watcher, events) = waiting(1);
        drop(events);
        assert!(!watcher.tell(Event::Number(1)));
    }
}
