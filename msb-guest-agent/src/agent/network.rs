//! The guest's network card: addresses, routes, and the files that name resolvers.
//!
//! Everything but the card's own address is the same in all guests of a template, so
//! it is set before the template is saved, and its timers have run out by then: a
//! restored guest only takes up another hardware address.
//!
//! The host's settings are all there is. Nothing is asked for on the link.

use std::fmt::Write as _;
use std::fs;
use std::io;

use super::boot::step;
use super::rtnetlink::{Index, Tables};
use crate::message::{NetworkSpec, SetupFailure};

/// The kernel's name for the only card.
const CARD: &str = "eth0";

/// Settings of the card, before it is up. No addresses of the kernel's own making, no
/// solicitations; and what is still said about multicast groups is said at once and once,
/// not by timers that a restored guest would have to run.
const SETTINGS: [(&str, &str); 6] = [
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("accept_dad", "0"),
    ("router_solicitations", "0"),
    ("mldv1_unsolicited_report_interval", "1"),
    ("mldv2_unsolicited_report_interval", "1"),
];

/// What was done to the card so far.
#[derive(Debug, Default)]
pub(super) struct Network {
    up: Option<Card>,
}

#[derive(Debug)]
struct Card {
    tables: Tables,
    index: Index,
    spec: NetworkSpec,
}

impl Network {
    /// Makes the card what it is to be, whatever it was; without a `spec` it is taken
    /// down.
    pub(super) fn apply(&mut self, spec: Option<&NetworkSpec>) -> Result<(), SetupFailure> {
        let Some(spec) = spec else {
            return match self.up.take() {
                Some(card) => take_down(&card).map_err(failed("take down the network card")),
                None => Ok(()),
            };
        };
        if let Some(card) = &mut self.up {
            let moved = card.spec.mac != spec.mac;
            card.spec.mac = spec.mac;
            if card.spec == *spec {
                let set = if moved {
                    card.tables.set_mac(card.index, spec.mac)
                } else {
                    Ok(())
                };
                return set.map_err(failed("set the network card's address"));
            }
            take_down(card).map_err(failed("take down the network card"))?;
        }
        check(spec)?;
        self.up = Some(bring_up(spec)?);
        Ok(())
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> SetupFailure {
    move |error| step(doing, &error)
}

fn bring_up(spec: &NetworkSpec) -> Result<Card, SetupFailure> {
    let index = fs::read_to_string(format!("/sys/class/net/{CARD}/ifindex"))
        .map_err(failed("find the network card"))?;
    let index = index.trim_end().parse().map(Index);
    let index =
        index.map_err(|_| step("find the network card", &io::ErrorKind::InvalidData.into()))?;
    let _ = fs::write("/proc/sys/net/ipv6/mld_qrv", "1");
    for (name, value) in SETTINGS {
        // A kernel without IPv6 has none of them, and refuses the addresses below.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{CARD}/{name}"), value);
    }
    let tables = Tables::open().map_err(failed("open the routing tables"))?;
    let set = |result: io::Result<()>| result.map_err(failed("set up the network card"));
    set(tables.set_mac(index, spec.mac))?;
    set(tables.set_mtu(index, spec.mtu))?;
    set(tables.set_up(index, true))?;
    for own in &spec.addresses {
        let added = tables.add_address(index, own.address, own.prefix);
        added.map_err(|error| step(&format!("add the address {}", own.address), &error))?;
    }
    for &gateway in &spec.gateways {
        let added = tables.add_default_route(index, gateway);
        added.map_err(|error| step(&format!("add a route through {gateway}"), &error))?;
    }
    let spec = spec.clone();
    Ok(Card {
        tables,
        index,
        spec,
    })
}

/// Takes the card down, and away what that leaves: its IPv4 addresses. Routes go with
/// them, and so do IPv6 addresses.
fn take_down(card: &Card) -> io::Result<()> {
    for own in card
        .spec
        .addresses
        .iter()
        .filter(|own| own.address.is_ipv4())
    {
        card.tables
            .remove_address(card.index, own.address, own.prefix)?;
    }
    card.tables.set_up(card.index, false)
}

/// Refuses what would end up in files as something else than it is.
fn check(spec: &NetworkSpec) -> Result<(), SetupFailure> {
    let invalid = |what: &str, reason: &str| SetupFailure::Invalid {
        what: format!("network.{what}"),
        reason: reason.into(),
    };
    for (what, entries) in [
        ("addresses", spec.addresses.len()),
        ("gateways", spec.gateways.len()),
        ("resolvers", spec.resolvers.len()),
        ("search", spec.search.len()),
        ("hosts", spec.hosts.len()),
    ] {
        if entries > NetworkSpec::MAX_ENTRIES {
            return Err(invalid(what, "it has too many entries"));
        }
    }
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_graphic());
    if !spec.search.iter().all(|name| is_name(name)) {
        return Err(invalid("search", "a domain has printable characters only"));
    }
    if !spec.hosts.iter().all(|host| is_name(&host.name)) {
        return Err(invalid("hosts", "a name has printable characters only"));
    }
    Ok(())
}

/// The content of `/etc/resolv.conf`.
pub(super) fn resolv_conf(spec: &NetworkSpec) -> String {
    let mut text = String::new();
    for resolver in &spec.resolvers {
        // Writing to a string does not fail.
        let _ = writeln!(text, "nameserver {resolver}");
    }
    if !spec.search.is_empty() {
        let _ = writeln!(text, "search {}", spec.search.join(" "));
    }
    text
}

/// The lines that the network adds to `/etc/hosts`.
pub(super) fn hosts(spec: &NetworkSpec) -> String {
    let line = |host: &crate::message::Host| format!("{}\t{}\n", host.address, host.name);
    spec.hosts.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Host;

    fn spec() -> NetworkSpec {
        NetworkSpec {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: Vec::new(),
            gateways: Vec::new(),
            resolvers: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            search: vec!["a.example".into(), "b.example".into()],
            hosts: vec![Host {
                address: "192.0.2.1".parse().unwrap(),
                name: "host.example".into(),
            }],
        }
    }

    #[test]
    fn files_name_what_the_host_said() {
        assert_eq!(
            resolv_conf(&spec()),
            "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a.example b.example\n"
        );
        assert_eq!(hosts(&spec()), "192.0.2.1\thost.example\n");
    }

    #[test]
    fn names_cannot_carry_lines() {
        assert!(check(&spec()).is_ok());
        for name in ["", "a b", "a\nnameserver 203.0.113.1", "ä"] {
            let search = NetworkSpec {
                search: vec![name.into()],
                ..spec()
            };
            assert!(check(&search).is_err(), "{name:?}");
            let mut hosts = spec();
            hosts.hosts[0].name = name.into();
            assert!(check(&hosts).is_err(), "{name:?}");
        }
        let crowd = NetworkSpec {
            gateways: vec!["192.0.2.1".parse().unwrap(); 33],
            ..spec()
        };
        assert!(check(&crowd).is_err());
    }
}
