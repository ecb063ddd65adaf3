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

/// Domains whose tokens are counted. The one not asked about for longest goes.
const MAX_DOMAINS: usize = 4096;

/// The full store: a page that loads a thousand hosts of one domain, several times.
const FULL: u64 = 4096;

/// What a domain begins with when another had to go for it that was not full: or else a
/// store would be full again for whoever asks for enough names that are nobody's.
const LATE: u64 = 64;

/// Tokens that come back each second.
const RATE: u64 = 20;

/// So much of a name below its domain costs nothing extra, in bytes.
const FREE: usize = 24;

/// Each so many bytes beyond that cost one more token.
const STEP: usize = 8;

/// Labels below a country's under which its registry registers domains.
const REGISTRIES: [&str; 20] = [
    "ac", "co", "com", "edu", "gob", "gov", "gv", "id", "info", "ltd", "me", "mil", "ne", "net",
    "nhs", "nom", "or", "org", "plc", "sch",
];

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
        let tokens = match self.domains.get(domain) {
            Some(store) => {
                self.used.remove(&(store.at, domain.into()));
                store.by(now)
            }
            None => self.make_room(now),
        };
        let left = tokens.checked_sub(cost);
        let store = Store {
            tokens: left.unwrap_or(tokens),
            at: now,
        };
        self.domains.insert(domain.into(), store);
        self.used.insert((now, domain.into()));
        left.is_some()
    }

    /// Makes room for a domain; returns the tokens that it begins with.
    fn make_room(&mut self, now: Duration) -> u64 {
        if self.domains.len() < MAX_DOMAINS {
            return FULL * 1000;
        }
        let oldest = self.used.pop_first();
        let gone = oldest.and_then(|(_, oldest)| self.domains.remove(&oldest));
        // Nothing is forgotten with a full one.
        match gone {
            Some(gone) if gone.by(now) < FULL * 1000 => LATE * 1000,
            _ => FULL * 1000,
        }
    }
}

impl Store {
    /// Its tokens, with those that have come back by now.
    fn by(&self, now: Duration) -> u64 {
        let millis = now.saturating_sub(self.at).as_millis();
        let back = u64::try_from(millis)
            .unwrap_or(u64::MAX)
            .saturating_mul(RATE);
        self.tokens.saturating_add(back).min(FULL * 1000)
    }
}

/// The part of a name that somebody registered: its last two labels, or three
/// where the second is a registry's own (`co.uk`). A registry that is taken for a
/// domain only makes its domains share a store; a domain that were taken for a
/// registry would have a store for each name below it, which is no bound at all.
fn domain(name: &Name) -> &str {
    let mut suffixes: [&str; 3] = [""; 3];
    for suffix in name.suffixes() {
        suffixes.rotate_left(1);
        suffixes[2] = suffix;
    }
    let [three, two, top] = suffixes;
    let second = two.split('.').next().unwrap_or_default();
    match (three, two) {
        ("", "") => top,
        ("", two) => two,
        (three, _) if top.len() == 2 && REGISTRIES.contains(&second) => three,
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
            ("a.b.t.co", "t.co"),
            ("a.b.abc.io", "abc.io"),
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

    /// One domain is the tunnel's, the others need not even exist.
    #[test]
    fn a_tunnel_does_not_get_a_full_store_for_asking_around() {
        let mut budget = Budget::default();
        let tunnel = name("a.t.example");
        // So fast that nothing comes back meanwhile.
        let mut at = Duration::ZERO;
        let mut passed = 0;
        for round in 0..20 {
            passed += (0..).take_while(|_| budget.spend(at, &tunnel)).count();
            for number in 0..MAX_DOMAINS {
                at += Duration::from_nanos(1);
                budget.spend(at, &name(&format!("d{number}r{round}.example")));
            }
        }
        assert_eq!(passed, (FULL + 19 * LATE) as usize);
        let later = Duration::from_secs(3600);
        let fresh = (0..).take_while(|_| budget.spend(later, &tunnel)).count();
        assert_eq!(fresh, FULL as usize, "the oldest was full by then");
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
