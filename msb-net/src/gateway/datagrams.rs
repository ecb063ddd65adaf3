//! Datagrams of one flow that are sent together.
//!
//! A system that takes several in one call (UDP segmentation offload) goes through its
//! network stack once for all of them. It wants them of one size, but for the last one,
//! which may be shorter.

/// Datagrams in one call: what Linux has taken ever since it takes several.
const MAX_COUNT: usize = 64;

/// Their bytes: together they are one datagram until the system cuts them, and the
/// largest has 65,507 over IPv4.
const MAX_BYTES: usize = 65_000;

/// One datagram or more, all as large as the first, but for the last one, which may be
/// smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagrams {
    bytes: Vec<u8>,
    size: usize,
    count: usize,
}

impl Datagrams {
    /// One.
    pub const fn one(payload: Vec<u8>) -> Self {
        Self {
            size: payload.len(),
            bytes: payload,
            count: 1,
        }
    }

    /// Adds another one, if it may follow those that are there.
    pub(crate) fn push(&mut self, payload: &[u8]) -> bool {
        let whole = self.bytes.len() == self.size * self.count;
        let fits = (1..=self.size).contains(&payload.len())
            && self.count < MAX_COUNT
            && self.bytes.len() + payload.len() <= MAX_BYTES;
        if !whole || !fits {
            return false;
        }
        if self.count == 1 {
            // More of them are likely to follow.
            let most = (self.size * MAX_COUNT).min(MAX_BYTES);
            self.bytes.reserve_exact(most - self.bytes.len());
        }
        self.bytes.extend_from_slice(payload);
        self.count += 1;
        true
    }

    /// All their bytes, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The size of each but the last.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count).map(|index| {
            let start = index * self.size;
            let end = self.bytes.len().min(start + self.size);
            &self.bytes[start..end]
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(datagrams: &Datagrams) -> Vec<Vec<u8>> {
        datagrams.iter().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn only_the_last_one_is_smaller() {
        let mut some = Datagrams::one(vec![1; 100]);
        assert!(some.push(&[2; 100]) && some.push(&[3; 99]));
        assert!(!some.push(&[4; 99]) && !some.push(&[4; 100]));
        assert_eq!(all(&some), [vec![1; 100], vec![2; 100], vec![3; 99]]);
        let mut some = Datagrams::one(vec![1; 100]);
        assert!(!some.push(&[2; 101]) && !some.push(&[]));
    }

    #[test]
    fn an_empty_one_is_alone() {
        let mut empty = Datagrams::one(Vec::new());
        assert!(!empty.push(&[]) && !empty.push(&[1]));
        assert_eq!(all(&empty), [Vec::new()]);
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(
            first in prop::collection::vec(any::<u8>(), 0..2000),
            sizes in prop::collection::vec(prop_oneof![Just(2000usize), 0usize..2100], 0..80),
        ) {
            let mut expected = vec![first.clone()];
            let mut datagrams = Datagrams::one(first);
            for (byte, size) in sizes.into_iter().enumerate() {
                let size = if size == 2000 { datagrams.size() } else { size };
                let payload = vec![byte as u8; size];
                if datagrams.push(&payload) {
                    expected.push(payload);
                }
            }
            prop_assert!(datagrams.bytes().len() <= MAX_BYTES && datagrams.count() <= MAX_COUNT);
            prop_assert_eq!(datagrams.count(), expected.len());
            prop_assert_eq!(all(&datagrams), expected);
        }
    }
}
