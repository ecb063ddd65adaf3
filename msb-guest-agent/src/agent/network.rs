//! The guest's network card: addresses, routes, and the files that name resolvers.
//!
//! Everything but the card's own address is the same in all guests of a template, so
//! it is set before the template is saved, and its timers have run out by then: a
//! restored guest only takes up another hardware address.
//!
//! The host's settings are all there is. Nothing is asked for on the link.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::thread::Timespec;

use super::boot::step;
use super::rtnetlink::{Index, Tables};
use super::sys;
use crate::message::{Address, Host, NetworkSettings, NetworkSpec, SetupFailure};

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

/// How long the kernel may take to say what it has to say about multicast groups: three of
/// its ticks, twice.
const SETTLED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 60_000_000,
};

/// What was done to the card so far.
///
/// Is kept for as long as the guest lives: closing a connection to the tables makes work
/// for the kernel, in each copy of a template.
#[derive(Debug, Default)]
pub(super) struct Network {
    up: Option<Card>,
}

#[derive(Debug)]
struct Card {
    tables: Tables,
    index: Index,
    spec: NetworkSpec,
    settings: NetworkSettings,
    files: Files,
    /// Whether an address stays that came after one of the same link, when that goes.
    promotes: bool,
}

/// What the network adds to files in `/etc`.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// All of `resolv.conf`.
    pub(super) resolv_conf: String,
    /// Lines of `hosts`.
    pub(super) hosts: String,
}

impl Network {
    /// Makes the card what it is to be, whatever it was; without a `spec` it is taken
    /// down.
    pub(super) fn apply(&mut self, spec: Option<&NetworkSpec>) -> Result<(), SetupFailure> {
        if let (Some(card), Some(spec)) = (&mut self.up, spec)
            && card.spec.is_set_like(spec)
        {
            return card
                .take_up(spec.mac)
                .map_err(failed("set the network card's address"));
        }
        if let (Some(card), Some(spec)) = (&mut self.up, spec)
            && let Some(settings) = spec.settings()
            && card.differs_in_addresses(&settings)
        {
            check(&settings)?;
            let moved = card.move_to(spec, settings);
            return moved.map_err(failed("give the network card other addresses"));
        }
        if let Some(card) = self.up.take() {
            take_down(&card).map_err(failed("take down the network card"))?;
        }
        if let Some(spec) = spec {
            self.up = Some(bring_up(spec)?);
        }
        Ok(())
    }

    /// Waits until the kernel has nothing more to do for the card, and forgets whom it has
    /// spoken to. For templates: their copies would have to do both.
    pub(super) fn settle(&mut self) -> Result<(), SetupFailure> {
        let Some(card) = &self.up else {
            return Ok(());
        };
        // If it is interrupted, copies have a little more to do.
        let _ = rustix::thread::nanosleep(&SETTLED);
        card.set_mac(card.spec.mac)
            .map_err(failed("set the network card's address"))
    }

    /// Makes ready for a copy of the guest that takes up other addresses. The setting is the
    /// workload's, too, which may have something else in its place: a pipe must not hold the
    /// agent up.
    pub(super) fn prepare_move(&mut self) {
        if let Some(card) = &mut self.up {
            let setting = format!("/proc/sys/net/ipv4/conf/{CARD}/promote_secondaries");
            let mut options = OpenOptions::new();
            let opened = options.write(true).custom_flags(libc::O_NONBLOCK);
            let set = opened.open(setting).and_then(|mut set| set.write_all(b"1"));
            card.promotes = set.is_ok();
        }
    }

    /// The addresses of the card.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let addresses = self.up.iter().flat_map(|card| &card.settings.addresses);
        addresses.map(|own| own.address).collect()
    }

    /// What it adds to files; nothing without a card.
    pub(super) fn files(&self) -> Files {
        self.up
            .as_ref()
            .map_or_else(Files::default, |card| card.files.clone())
    }
}

impl Card {
    fn take_up(&mut self, mac: [u8; 6]) -> io::Result<()> {
        if self.spec.mac != mac {
            self.set_mac(mac)?;
            self.spec.mac = mac;
        }
        Ok(())
    }

    /// Whether other addresses are all that makes a card with `settings` of this one.
    fn differs_in_addresses(&self, settings: &NetworkSettings) -> bool {
        let addresses = self.settings.addresses.clone();
        self.settings
            == NetworkSettings {
                addresses,
                ..settings.clone()
            }
    }

    /// Takes up other addresses. The card stays up meanwhile: to take it down and up is many
    /// times the work.
    ///
    /// Those on the same link come before the old ones go. Then routes stay, and so does the
    /// group of neighbours that are asked for, which addresses with the same end have in common.
    fn move_to(&mut self, spec: &NetworkSpec, settings: NetworkSettings) -> io::Result<()> {
        let (old, new) = (&self.settings.addresses, &settings.addresses);
        let stays = |gone: &Address| {
            let on_link = |own: &Address| own.on_link_of(gone);
            (self.promotes || gone.address.is_ipv6()) && new.iter().any(on_link)
        };
        let gone = old.iter().filter(|own| !new.contains(own));
        let (last, first): (Vec<_>, Vec<_>) = gone.partition(|gone| stays(gone));
        let remove =
            |gone: &Address| (self.tables).remove_address(self.index, gone.address, gone.prefix);
        first.iter().copied().try_for_each(remove)?;
        for own in new.iter().filter(|own| !old.contains(own)) {
            self.tables
                .add_address(self.index, own.address, own.prefix)?;
        }
        last.iter().copied().try_for_each(remove)?;
        // A family's routes go with its last address.
        let family = |gateway: &IpAddr| {
            first
                .iter()
                .any(|gone| gone.address.is_ipv4() == gateway.is_ipv4())
        };
        for &gateway in settings.gateways.iter().filter(|gateway| family(gateway)) {
            self.tables.add_default_route(self.index, gateway)?;
        }
        self.settings = settings;
        self.take_up(spec.mac)?;
        self.spec = spec.clone();
        Ok(())
    }

    /// An ioctl, which is a fraction of the kernel code that a request to the tables is.
    fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        sys::set_hardware_address(self.tables.as_fd(), CARD, mac)
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> SetupFailure {
    move |error| step(doing, &error)
}

fn bring_up(spec: &NetworkSpec) -> Result<Card, SetupFailure> {
    let settings = spec
        .settings()
        .ok_or_else(|| invalid("settings", "they make no sense"))?;
    check(&settings)?;
    let unknown = |error| step("find the network card", &error);
    let index = fs::read_to_string(format!("/sys/class/net/{CARD}/ifindex")).map_err(unknown)?;
    let index = index.trim_end().parse().map(Index);
    let index = index.map_err(|_| unknown(io::ErrorKind::InvalidData.into()))?;
    let _ = fs::write("/proc/sys/net/ipv6/mld_qrv", "1");
    for (name, value) in SETTINGS {
        // A kernel without IPv6 has none of them, and refuses the addresses below.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{CARD}/{name}"), value);
    }
    // Datagrams of published ports reach services on 127.0.0.1. The gateway, alone on the
    // link, sends nothing else there; if this fails, they reach those on the card only.
    let _ = fs::write(
        format!("/proc/sys/net/ipv4/conf/{CARD}/route_localnet"),
        "1",
    );
    let tables = Tables::open().map_err(failed("open the routing tables"))?;
    let card = Card {
        tables,
        index,
        spec: spec.clone(),
        files: Files {
            resolv_conf: resolv_conf(&settings),
            hosts: hosts(&settings),
        },
        settings,
        promotes: false,
    };
    let set = |result: io::Result<()>| result.map_err(failed("set up the network card"));
    set(card.set_mac(spec.mac))?;
    set(card.tables.set_mtu(index, card.settings.mtu))?;
    set(card.tables.set_up(index, true))?;
    for own in &card.settings.addresses {
        let added = card.tables.add_address(index, own.address, own.prefix);
        added.map_err(|error| step(&format!("add the address {}", own.address), &error))?;
    }
    for &gateway in &card.settings.gateways {
        let added = card.tables.add_default_route(index, gateway);
        added.map_err(|error| step(&format!("add a route through {gateway}"), &error))?;
    }
    Ok(card)
}

/// Takes the card down, and away what that leaves: its IPv4 addresses. Routes go with
/// them, and so do IPv6 addresses.
fn take_down(card: &Card) -> io::Result<()> {
    let own = card.settings.addresses.iter();
    for own in own.filter(|own| own.address.is_ipv4()) {
        card.tables
            .remove_address(card.index, own.address, own.prefix)?;
    }
    card.tables.set_up(card.index, false)
}

fn invalid(what: &str, reason: &str) -> SetupFailure {
    SetupFailure::Invalid {
        what: format!("network.{what}"),
        reason: reason.into(),
    }
}

/// Refuses what would end up in files as something else than it is.
fn check(settings: &NetworkSettings) -> Result<(), SetupFailure> {
    for (what, entries) in [
        ("addresses", settings.addresses.len()),
        ("gateways", settings.gateways.len()),
        ("resolvers", settings.resolvers.len()),
        ("search", settings.search.len()),
        ("hosts", settings.hosts.len()),
    ] {
        if entries > NetworkSettings::MAX_ENTRIES {
            return Err(invalid(what, "it has too many entries"));
        }
    }
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_graphic());
    if !settings.search.iter().all(|name| is_name(name)) {
        return Err(invalid("search", "a domain has printable characters only"));
    }
    if !settings.hosts.iter().all(|host| is_name(&host.name)) {
        return Err(invalid("hosts", "a name has printable characters only"));
    }
    Ok(())
}

/// The content of `/etc/resolv.conf`.
fn resolv_conf(settings: &NetworkSettings) -> String {
    let mut text = String::new();
    for resolver in &settings.resolvers {
        // Writing to a string does not fail.
        let _ = writeln!(text, "nameserver {resolver}");
    }
    if !settings.search.is_empty() {
        let _ = writeln!(text, "search {}", settings.search.join(" "));
    }
    text
}

/// The lines that the network adds to `/etc/hosts`.
fn hosts(settings: &NetworkSettings) -> String {
    let line = |host: &Host| format!("{}\t{}\n", host.address, host.name);
    settings.hosts.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> NetworkSettings {
        NetworkSettings {
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
            resolv_conf(&settings()),
            "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a.example b.example\n"
        );
        assert_eq!(hosts(&settings()), "192.0.2.1\thost.example\n");
    }

    #[test]
    fn names_cannot_carry_lines() {
        assert!(check(&settings()).is_ok());
        for name in ["", "a b", "a\nnameserver 203.0.113.1", "ä"] {
            let search = NetworkSettings {
                search: vec![name.into()],
                ..settings()
            };
            assert!(check(&search).is_err(), "{name:?}");
            let mut hosts = settings();
            hosts.hosts[0].name = name.into();
            assert!(check(&hosts).is_err(), "{name:?}");
        }
        let crowd = NetworkSettings {
            gateways: vec!["192.0.2.1".parse().unwrap(); 33],
            ..settings()
        };
        assert!(check(&crowd).is_err());
    }
}
