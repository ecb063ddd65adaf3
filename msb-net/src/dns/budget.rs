//! How many names of one domain a guest may ask the world for.
//!
//! Each query that leaves the sandbox carries its name to whoever owns the domain,
//! and the answer carries something back: enough for a tunnel. Names under an
//! ordinary domain are short, few, and asked for again, which the cache answers.
//! So each domain has a store of tokens that fills slowly; a query costs one, and
//! more the longer the part is that the domain's owner did not need to know.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::Name;

/// Domains whose tokens are counted. The one not asked about for longest goes, and
/// begins again with a full store.
const MAX_DOMAINS: usize = 4096;

/// The full store: a page that loads a thousand hosts of one domain, several times.
const FULL: u64 = 4096;

/// Tokens that come back each second.
const RATE: u64 = 20;

/// So much of a name below its domain costs nothing extra, in bytes.
const FREE: usize = 24;

/// Each so many bytes beyond that cost one more token.
const STEP: usize = 8;

/// The tokens of each domain.
#[derive(Default)]
pub(crate) struct Budget {
    domains: HashMap<Box<str>, Store>,
    used: BTreeSet<(Duration, Box<str>)>,
}

#[derive(Clone, Copy)]
struct Store {
    /// In thousandths.
    tokens: u64,
    at: Duration,
}

impl Budget {
    /// Pays for a query; false when there is not enough left.
    pub(crate) fn spend(&mut self, now: Duration, name: &Name) -> bool {
        let domain = domain(name);
        let below = name.as_str().len() - domain.len();
        let cost = 1000 * (1 + below.saturating_sub(FREE).div_ceil(STEP) as u64);
        let store = match self.domains.get(domain) {
            Some(store) => {
                self.used.remove(&(store.at, domain.into()));
                *store
            }
            None => {
                self.make_room();
                let tokens = FULL * 1000;
                Store { tokens, at: now }
            }
        };
        let millis = now.saturating_sub(store.at).as_millis();
        let back = u64::try_from(millis)
            .unwrap_or(u64::MAX)
            .saturating_mul(RATE);
        let tokens = store.tokens.saturating_add(back).min(FULL * 1000);
        let left = tokens.checked_sub(cost);
        let store = Store {
            tokens: left.unwrap_or(tokens),
            at: now,
        };
        self.domains.insert(domain.into(), store);
        self.used.insert((now, domain.into()));
        left.is_some()
    }

    fn make_room(&mut self) {
        if self.domains.len() >= MAX_DOMAINS
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.domains.remove(&oldest);
        }
    }
}

/// The part of a name that somebody registered: its last two labels, or three
/// where the second looks like a registry's own (`co.uk`). A guess is enough: a
/// registry taken for a domain only makes its domains share a store.
fn domain(name: &Name) -> &str {
    let mut suffixes: [&str; 3] = [""; 3];
    for suffix in name.suffixes() {
        suffixes.rotate_left(1);
        suffixes[2] = suffix;
    }
    let [three, two, top] = suffixes;
    let second = two.len().saturating_sub(top.len() + 1);
    match (three, two) {
        ("", "") => top,
        ("", two) => two,
        (three, _) if top.len() == 2 && second <= 3 => three,
        (_, two) => two,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn domains_are_guessed() {
        for (text, expected) in [
            ("com", "com"),
            ("example.com", "example.com"),
            ("a.b.example.com", "example.com"),
            ("example.co.uk", "example.co.uk"),
            ("a.example.co.uk", "example.co.uk"),
            ("a.example.uk", "example.uk"),
            ("a.b.github.io", "github.io"),
        ] {
            assert_eq!(domain(&name(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_tunnel_runs_dry_and_others_do_not() {
        let mut budget = Budget::default();
        let chunk = format!("{}.{}", "a".repeat(60), "b".repeat(60));
        let mut passed = 0;
        // Ten minutes at a hundred queries a second.
        for tick in 0..60_000u32 {
            let at = Duration::from_millis(10) * tick;
            let tunnel = name(&format!("{tick:05}.{chunk}.t.example"));
            passed += u32::from(budget.spend(at, &tunnel));
            assert!(budget.spend(at, &name("www.example.com")) || tick > 5000);
        }
        // 128 bytes below the domain cost 14 tokens.
        assert!((1100..1200).contains(&passed), "{passed}");
    }

    #[test]
    fn the_store_fills_again_and_not_beyond() {
        let mut budget = Budget::default();
        let short = name("www.example.com");
        let drain =
            |budget: &mut Budget, at| (0..).take_while(|_| budget.spend(at, &short)).count();
        assert_eq!(drain(&mut budget, Duration::ZERO), FULL as usize);
        assert_eq!(drain(&mut budget, Duration::from_secs(1)), RATE as usize);
        assert_eq!(
            drain(&mut budget, Duration::from_secs(10_000)),
            FULL as usize
        );
    }

    #[test]
    fn domains_are_bounded() {
        let mut budget = Budget::default();
        for number in 0..MAX_DOMAINS + 10 {
            assert!(budget.spend(Duration::ZERO, &name(&format!("d{number}.example"))));
        }
        assert_eq!(budget.domains.len(), MAX_DOMAINS);
        assert_eq!(budget.used.len(), MAX_DOMAINS);
    }
}
