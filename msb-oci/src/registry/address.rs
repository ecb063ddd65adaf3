//! Which addresses a registry may send us to.
//!
//! The registry that the user names may be anywhere. Where *it* sends us is
//! another matter: a redirect or a token realm that leads into the user's own
//! network would make us its hand there. The check is made on the addresses
//! that are connected to, after name resolution, so that no name can lie.
//!
//! Read: RFC 6890 and the IANA registries of special-purpose addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of place an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// This machine.
    Loopback,
    /// The user's own network.
    Private,
    /// The internet.
    Public,
    /// Link-local, cloud metadata, multicast, reserved: nobody redirects there.
    Forbidden,
}

impl Place {
    /// Whether a registry at this place may send us to `target`: never
    /// nearer than it is itself.
    pub(crate) fn may_lead_to(self, target: Place) -> bool {
        target != Place::Forbidden
            && match self {
                Place::Loopback => true,
                Place::Private => target != Place::Loopback,
                Place::Public | Place::Forbidden => target == Place::Public,
            }
    }

    /// How errors name it.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Place::Loopback => "an address of this machine",
            Place::Private => "a private address",
            Place::Public => "a public address",
            Place::Forbidden => "a link-local, metadata or reserved address",
        }
    }
}

/// Addresses at which clouds answer questions about the machine, outside of
/// the link-local range.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Finds the place of an address; IPv6 forms that carry an IPv4 address are
/// judged by that.
pub(crate) fn place(address: IpAddr) -> Place {
    match address {
        IpAddr::V4(address) => place_v4(address),
        IpAddr::V6(address) => place_v6(address),
    }
}

fn place_v4(address: Ipv4Addr) -> Place {
    let octets = address.octets();
    if METADATA_V4.contains(&address) {
        return Place::Forbidden;
    }
    match octets {
        [127, ..] => Place::Loopback,
        [10, ..]
        | [172, 16..=31, ..]
        | [192, 168, ..]
        | [100, 64..=127, ..]
        | [198, 18..=19, ..] => Place::Private,
        [0, ..]
        | [169, 254, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [224..=255, ..] => Place::Forbidden,
        _ => Place::Public,
    }
}

fn place_v6(address: Ipv6Addr) -> Place {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        place_v4(Ipv4Addr::new(a, b, c, d))
    };
    if address.is_loopback() {
        return Place::Loopback;
    }
    if address.is_unspecified() || METADATA_V6.contains(&address) {
        return Place::Forbidden;
    }
    match segments {
        // IPv4-mapped, IPv4-compatible, IPv4-translated, NAT64.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        // Local NAT64 puts the address where the operator likes.
        [0x64, 0xff9b, 1, ..] => Place::Forbidden,
        // 6to4.
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, ORCHID, benchmarking and the like; documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Place::Forbidden,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Place::Private,
        [0x2000..=0x3fff, ..] => Place::Public,
        _ => Place::Forbidden,
    }
}

#[cfg(test)]
mod tests {
    use super::Place::{Forbidden, Loopback, Private, Public};
    use super::place;

    #[test]
    fn places() {
        for (address, wanted) in [
            ("8.8.8.8", Public),
            ("127.0.0.1", Loopback),
            ("127.255.0.9", Loopback),
            ("10.1.2.3", Private),
            ("172.16.0.1", Private),
            ("172.32.0.1", Public),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("100.100.100.200", Forbidden),
            ("168.63.129.16", Forbidden),
            ("169.254.169.254", Forbidden),
            ("192.0.0.192", Forbidden),
            ("0.0.0.0", Forbidden),
            ("224.0.0.1", Forbidden),
            ("255.255.255.255", Forbidden),
            ("::", Forbidden),
            ("::1", Loopback),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", Forbidden),
            ("::10.0.0.1", Private),
            ("64:ff9b::a9fe:a9fe", Forbidden),
            ("64:ff9b::808:808", Public),
            ("64:ff9b:1::1", Forbidden),
            ("2002:7f00:1::", Loopback),
            ("2002:a9fe:a9fe::1", Forbidden),
            ("2001::1", Forbidden),
            ("2001:db8::1", Forbidden),
            ("2606:4700::1", Public),
            ("fe80::1", Forbidden),
            ("fd00:ec2::254", Forbidden),
            ("fd00::1", Private),
            ("fec0::1", Private),
            ("ff02::1", Forbidden),
        ] {
            assert_eq!(place(address.parse().unwrap()), wanted, "{address}");
        }
    }

    #[test]
    fn nobody_leads_nearer_than_himself() {
        assert!(
            Loopback.may_lead_to(Loopback)
                && Loopback.may_lead_to(Private)
                && Loopback.may_lead_to(Public)
        );
        assert!(!Private.may_lead_to(Loopback) && Private.may_lead_to(Private));
        assert!(!Public.may_lead_to(Private) && Public.may_lead_to(Public));
        for place in [Loopback, Private, Public, Forbidden] {
            assert!(!place.may_lead_to(Forbidden));
        }
    }
}
