//! Answers that are still good, within a bound in bytes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// What an entry takes beside its key and its value, in bytes: the two tables'
/// slots and the structures that hold the two.
const OVERHEAD: usize = 320;

/// What a query's key leads to, until it has had its time.
pub(crate) struct Cache<V> {
    entries: HashMap<Arc<[u8]>, Entry<V>>,
    /// When each entry ends.
    ends: BTreeSet<(Duration, Arc<[u8]>)>,
    bytes: usize,
    max_bytes: usize,
}

struct Entry<V> {
    value: V,
    bytes: usize,
    until: Duration,
}

impl<V> Cache<V> {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            entries: HashMap::new(),
            ends: BTreeSet::new(),
            bytes: 0,
            max_bytes,
        }
    }

    /// Keeps a value of `size` bytes until then. Where there is no room, what
    /// would have ended first goes; what is larger than the cache is not kept.
    pub(crate) fn insert(&mut self, key: Arc<[u8]>, value: V, size: usize, until: Duration) {
        self.remove(&key);
        let bytes = size + 2 * key.len() + OVERHEAD;
        if bytes > self.max_bytes {
            return;
        }
        while self.bytes + bytes > self.max_bytes
            && let Some((_, first)) = self.ends.pop_first()
        {
            self.remove(&first);
        }
        self.bytes += bytes;
        self.ends.insert((until, Arc::clone(&key)));
        let entry = Entry {
            value,
            bytes,
            until,
        };
        self.entries.insert(key, entry);
    }

    /// Finds a value that is still good.
    pub(crate) fn get(&mut self, now: Duration, key: &[u8]) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        (now < entry.until).then_some(&mut entry.value)
    }

    fn remove(&mut self, key: &Arc<[u8]>) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
            self.ends.remove(&(entry.until, Arc::clone(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Arc<[u8]> {
        Arc::from(&[number][..])
    }

    proptest! {
        /// A list that is searched from end to end holds the same.
        #[test]
        fn the_cache_holds_what_a_list_would(
            steps in prop::collection::vec((0u8..20, 0u64..50, 0usize..2000), 1..200),
        ) {
            const ROOM: usize = 10_000;
            let mut cache = Cache::new(ROOM);
            let mut list: Vec<(Duration, u8, usize, usize)> = Vec::new();
            for (index, (number, seconds, size)) in steps.into_iter().enumerate() {
                let now = Duration::from_secs(index as u64);
                let until = now + Duration::from_secs(seconds);
                let bytes = size + 2 + OVERHEAD;
                list.retain(|(_, other, ..)| *other != number);
                while list.iter().map(|(.., bytes)| bytes).sum::<usize>() + bytes > ROOM {
                    list.sort();
                    list.remove(0);
                }
                list.push((until, number, index, bytes));
                cache.insert(key(number), index, size, until);
                prop_assert!(cache.bytes <= ROOM);
                prop_assert_eq!(cache.entries.len(), cache.ends.len());
                for number in 0..20 {
                    let held = list.iter().find(|(_, other, ..)| *other == number);
                    let good = held.filter(|(until, ..)| now < *until).map(|(.., index, _)| *index);
                    prop_assert_eq!(cache.get(now, &[number]).copied(), good);
                }
            }
        }
    }

    #[test]
    fn what_ends_first_makes_room() {
        let at = Duration::from_secs;
        let mut cache = Cache::new(3 * (OVERHEAD + 2 + 100));
        for (number, until) in [(1, 30), (2, 10), (3, 20)] {
            cache.insert(key(number), number, 100, at(until));
        }
        cache.insert(key(4), 4, 100, at(5));
        let mut found = |number| cache.get(Duration::ZERO, &[number]).is_some();
        assert_eq!([1, 2, 3, 4].map(&mut found), [true, false, true, true]);
        cache.insert(key(5), 5, 1_000_000, at(50));
        assert!(cache.get(Duration::ZERO, &[5]).is_none(), "larger than all");
        assert!(cache.get(at(30), &[1]).is_none(), "its time is over");
    }
}
