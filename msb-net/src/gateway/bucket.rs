//! A token bucket: so many a second, and so many at once after a rest.

use std::time::Duration;

/// Tokens in it come back with time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Tokens for each second, and how many it holds.
    rate: u64,
    size: u64,
    /// What is in it, in billionths of a token, at that moment. Debts are negative.
    level: i128,
    at: Duration,
}

const NANO: i128 = 1_000_000_000;

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate: u64, size: u64) -> Self {
        Self {
            rate: rate.max(1),
            size: size.max(1),
            level: i128::from(size.max(1)) * NANO,
            at: Duration::ZERO,
        }
    }

    /// Takes tokens, if there are as many.
    pub(super) fn take(&mut self, now: Duration, tokens: u64) -> bool {
        self.fill(now);
        let wanted = i128::from(tokens) * NANO;
        let enough = self.level >= wanted;
        if enough {
            self.level -= wanted;
        }
        enough
    }

    /// Takes tokens that were used already; the bucket may end up in debt.
    pub(super) fn spend(&mut self, now: Duration, tokens: u64) {
        self.fill(now);
        self.level -= i128::from(tokens) * NANO;
    }

    /// Tells how many whole tokens there are.
    pub(super) fn left(&mut self, now: Duration) -> u64 {
        self.fill(now);
        (self.level / NANO).max(0) as u64
    }

    /// Returns when there will be as many tokens, or as many as it holds.
    pub(super) fn when(&mut self, now: Duration, tokens: u64) -> Duration {
        self.fill(now);
        let missing = i128::from(tokens.min(self.size)) * NANO - self.level;
        if missing <= 0 {
            return now;
        }
        let rate = i128::from(self.rate);
        let nanos = (missing + rate - 1) / rate;
        // What is in it is of that moment, which is not before `now`.
        self.at + Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX))
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos() as i128;
        let full = i128::from(self.size) * NANO;
        self.level = (self.level + passed * i128::from(self.rate)).min(full);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_come_back_with_time() {
        let mut bucket = Bucket::new(10, 5);
        let at = Duration::from_millis;
        assert!(bucket.take(at(0), 5) && !bucket.take(at(0), 1));
        assert_eq!(bucket.when(at(0), 1), at(100));
        assert!(!bucket.take(at(99), 1) && bucket.take(at(100), 1));
        bucket.spend(at(100), 10);
        assert_eq!(
            (bucket.left(at(100)), bucket.when(at(100), 1)),
            (0, at(1200))
        );
        assert_eq!(bucket.left(at(100_000)), 5, "no more than it holds");
        assert_eq!(bucket.when(at(100_000), 500), at(100_000));
    }

    #[test]
    fn a_moment_that_has_passed_counts_as_the_last() {
        let mut bucket = Bucket::new(1, 10);
        let at = Duration::from_secs;
        assert!(bucket.take(at(0), 10));
        assert_eq!(bucket.left(at(5)), 5);
        assert_eq!(bucket.when(at(0), 6), at(6));
    }

    proptest! {
        #[test]
        fn no_more_passes_than_rate_and_size_allow(
            rate in 1u64..1_000_000_000_000,
            size in 1u64..1_000_000_000_000,
            steps in prop::collection::vec((0u64..2_000_000_000, 0u64..2_000_000_000), 1..50),
        ) {
            let mut bucket = Bucket::new(rate, size);
            let (mut now, mut passed) = (Duration::ZERO, 0u128);
            for (wait, tokens) in steps {
                now += Duration::from_nanos(wait);
                if bucket.take(now, tokens) {
                    passed += u128::from(tokens);
                }
                let allowed = u128::from(size) + now.as_nanos() * u128::from(rate) / 1_000_000_000;
                prop_assert!(passed <= allowed);
                // Looking ahead is for a copy: time does not go back for the bucket.
                let mut later = bucket;
                let then = later.when(now, tokens);
                prop_assert!(later.left(then) >= tokens.min(size));
            }
        }
    }
}
