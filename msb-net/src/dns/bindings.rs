//! Which names our own resolver said an address has, and until when.
//!
//! A flow is judged by the names its address has when it opens; what runs out
//! later does not close it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::Name;
use crate::addr::Faces;

/// Bindings of all addresses: more than a browser makes in a day; about 5 MB of
/// the longest names.
const MAX_BINDINGS: usize = 16_384;

/// Names of one address: hosts that share many names are common, and a flow is
/// judged once for each of them.
const MAX_NAMES: usize = 32;

/// How much longer than its answer a binding holds: a program connects a little
/// after it has asked, and some ask for every connection and some do not.
const GRACE: Duration = Duration::from_secs(10);

/// Names by address.
#[derive(Default)]
pub(crate) struct Bindings {
    addresses: HashMap<IpAddr, Vec<Name>>,
    until: HashMap<(IpAddr, Name), Duration>,
    ends: BTreeSet<(Duration, IpAddr, Name)>,
    /// Counts the bindings that made room before their time.
    pub(crate) evicted: u64,
}

impl Bindings {
    /// Notes that `name` was said to be at `address`, for as long as the answer holds.
    pub(crate) fn bind(&mut self, now: Duration, name: &Name, address: IpAddr, ttl: Duration) {
        self.expire(now);
        let address = Faces::of(address).canonical();
        let until = now + ttl + GRACE;
        let key = (address, name.clone());
        if let Some(old) = self.until.get_mut(&key) {
            if *old < until {
                let (address, name) = key;
                self.ends.remove(&(*old, address, name.clone()));
                *old = until;
                self.ends.insert((until, address, name));
            }
            return;
        }
        let names = self.addresses.entry(address).or_default();
        if names.len() >= MAX_NAMES {
            let ends = |name: &Name| self.until.get(&(address, name.clone())).copied();
            let first = names.iter().min_by_key(|name| ends(name)).cloned();
            if let Some(first) = first {
                self.evict(address, first);
            }
        } else if self.until.len() >= MAX_BINDINGS
            && let Some((_, address, name)) = self.ends.first().cloned()
        {
            self.evict(address, name);
        }
        self.addresses
            .entry(address)
            .or_default()
            .push(name.clone());
        self.until.insert(key, until);
        self.ends.insert((until, address, name.clone()));
    }

    /// Returns the names of an address.
    pub(crate) fn names(&mut self, now: Duration, address: IpAddr) -> &[Name] {
        self.expire(now);
        let address = Faces::of(address).canonical();
        self.addresses.get(&address).map_or(&[], Vec::as_slice)
    }

    fn expire(&mut self, now: Duration) {
        while let Some((until, ..)) = self.ends.first()
            && *until <= now
            && let Some((_, address, name)) = self.ends.pop_first()
        {
            self.remove(address, name);
        }
    }

    fn evict(&mut self, address: IpAddr, name: Name) {
        self.evicted += 1;
        self.remove(address, name);
    }

    fn remove(&mut self, address: IpAddr, name: Name) {
        if let Some(names) = self.addresses.get_mut(&address) {
            names.retain(|own| *own != name);
            if names.is_empty() {
                self.addresses.remove(&address);
            }
        }
        if let Some(until) = self.until.remove(&(address, name.clone())) {
            self.ends.remove(&(until, address, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn name(number: usize) -> Name {
        format!("n{number}.example").parse().unwrap()
    }

    fn address(number: usize) -> IpAddr {
        IpAddr::from((number as u32 + (1 << 24)).to_be_bytes())
    }

    #[test]
    fn a_binding_outlives_its_answer_a_little() {
        let mut bindings = Bindings::default();
        bindings.bind(Duration::ZERO, &name(1), address(1), 5 * SECOND);
        assert_eq!(bindings.names(14 * SECOND, address(1)), [name(1)]);
        assert!(bindings.names(15 * SECOND, address(1)).is_empty());
        assert!(bindings.addresses.is_empty() && bindings.until.is_empty());
    }

    #[test]
    fn a_wrapped_address_is_the_one_inside() {
        let mut bindings = Bindings::default();
        bindings.bind(
            Duration::ZERO,
            &name(1),
            "192.0.2.1".parse().unwrap(),
            SECOND,
        );
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(bindings.names(SECOND, mapped), [name(1)]);
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut bindings = Bindings::default();
        for number in 0..MAX_BINDINGS + 10 {
            bindings.bind(
                Duration::ZERO,
                &name(number),
                address(number),
                SECOND * number as u32,
            );
        }
        assert_eq!(bindings.until.len(), MAX_BINDINGS);
        assert_eq!(bindings.evicted, 10);
        assert!(bindings.names(Duration::ZERO, address(9)).is_empty());
        assert_eq!(bindings.names(Duration::ZERO, address(10)), [name(10)]);
        let mut bindings = Bindings::default();
        for number in 0..MAX_NAMES + 1 {
            bindings.bind(
                Duration::ZERO,
                &name(number),
                address(0),
                SECOND * number as u32,
            );
        }
        let names = bindings.names(Duration::ZERO, address(0));
        assert_eq!(names.len(), MAX_NAMES);
        assert!(!names.contains(&name(0)));
    }

    proptest! {
        #[test]
        fn names_are_those_a_list_would_give(
            steps in prop::collection::vec((0usize..6, 0usize..6, 0u32..40), 1..100),
        ) {
            let mut bindings = Bindings::default();
            let mut list: Vec<(IpAddr, Name, Duration)> = Vec::new();
            for (index, (who, at, ttl)) in steps.into_iter().enumerate() {
                let now = SECOND * 3 * index as u32;
                bindings.bind(now, &name(who), address(at), SECOND * ttl);
                list.push((address(at), name(who), now + SECOND * ttl + GRACE));
                for at in 0..6 {
                    let mut expected: Vec<Name> = list
                        .iter()
                        .filter(|(own, _, until)| *own == address(at) && now < *until)
                        .map(|(_, name, _)| name.clone())
                        .collect();
                    expected.sort();
                    expected.dedup();
                    let mut names = bindings.names(now, address(at)).to_vec();
                    names.sort();
                    prop_assert_eq!(names, expected);
                }
            }
        }
    }
}
