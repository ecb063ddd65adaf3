use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{BLOCKS, Block, Cidr, Faces, Group};
use crate::error::InvalidCidr;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn table_rows_are_well_formed_and_unique() {
    for (index, block) in BLOCKS.iter().enumerate() {
        assert_eq!(
            Cidr::new(block.cidr.base(), block.cidr.length()),
            Ok(block.cidr),
            "{block:?}"
        );
        assert_ne!(block.group, Group::Host, "{block:?}");
        assert!(!block.purpose.is_empty() && !block.source.is_empty());
        for other in &BLOCKS[index + 1..] {
            assert_ne!(block.cidr, other.cidr);
        }
    }
}

#[test]
fn known_addresses_are_in_their_groups() {
    for (text, group) in [
        ("1.1.1.1", Group::Public),
        ("192.0.0.9", Group::Public),
        ("100.128.0.0", Group::Public),
        ("172.32.0.1", Group::Public),
        ("2606:4700:4700::1111", Group::Public),
        ("10.255.255.255", Group::Private),
        ("172.16.0.1", Group::Private),
        ("172.31.255.255", Group::Private),
        ("192.168.0.1", Group::Private),
        ("100.64.0.1", Group::Private),
        ("fd12::1", Group::Private),
        ("fec0::1", Group::Private),
        ("127.255.0.1", Group::Loopback),
        ("::1", Group::Loopback),
        ("169.254.1.1", Group::LinkLocal),
        ("fe80::1", Group::LinkLocal),
        ("224.0.0.251", Group::Multicast),
        ("255.255.255.255", Group::Multicast),
        ("ff02::1", Group::Multicast),
        ("0.0.0.0", Group::Reserved),
        ("0.1.2.3", Group::Reserved),
        ("240.0.0.1", Group::Reserved),
        ("192.0.2.1", Group::Reserved),
        ("198.19.255.255", Group::Reserved),
        ("2001:db8::1", Group::Reserved),
        ("::", Group::Reserved),
        ("4000::1", Group::Reserved),
    ] {
        assert_eq!(Group::of(ip(text)), group, "{text}");
    }
}

#[test]
fn every_metadata_address_is_metadata() {
    for text in [
        "169.254.169.254",
        "169.254.169.253",
        "169.254.169.123",
        "169.254.170.2",
        "169.254.170.23",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "169.254.0.23",
        "169.254.42.42",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fe80::a9fe:a9fe",
    ] {
        assert_eq!(Group::of(ip(text)), Group::Metadata, "{text}");
    }
}

#[test]
fn wrapped_forms_of_a_denied_address_are_seen() {
    let metadata = |text: &str| Faces::of(ip(text)).any(|face| Group::of(face) == Group::Metadata);
    for text in [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1:a9fe:a9:fe00::",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1",
        "2001:0:101:101:0:0:5601:5601",
        "2606:4700::5efe:169.254.169.254",
        "2606:4700::200:5efe:169.254.169.254",
    ] {
        assert!(metadata(text), "{text}");
        assert!(!Faces::of(ip(text)).is_public(), "{text}");
    }
}

#[test]
fn wrappers_of_public_addresses_are_public() {
    for text in ["::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1"] {
        assert!(Faces::of(ip(text)).is_public(), "{text}");
    }
    assert_eq!(Faces::of(ip("64:ff9b::1.1.1.1")).canonical(), ip("1.1.1.1"));
    assert_eq!(
        Faces::of(ip("2002:101:101::1")).canonical(),
        ip("2002:101:101::1")
    );
}

#[test]
fn cidrs_are_read_and_refused() {
    let parse = |text: &str| text.parse::<Cidr>();
    assert_eq!(parse("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
    assert_eq!(parse("10.0.0.1").unwrap().to_string(), "10.0.0.1");
    assert_eq!(parse("::/0").unwrap().to_string(), "::/0");
    assert_eq!(
        parse("10.0.0.1/8"),
        Err(InvalidCidr::BitsBelowPrefix {
            meant: parse("10.0.0.0/8").unwrap()
        })
    );
    assert_eq!(
        parse("10.0.0.0/33"),
        Err(InvalidCidr::TooLong {
            length: 33,
            width: 32
        })
    );
    for text in ["10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/256", "10.0.0.0/8/8"] {
        assert_eq!(parse(text), Err(InvalidCidr::NotALength), "{text}");
    }
    for text in ["", "/8", "10.0.0", "010.0.0.1", "fe80::1%eth0"] {
        assert_eq!(parse(text), Err(InvalidCidr::NotAnAddress), "{text:?}");
    }
}

/// Compares bit by bit, as slowly as the definition reads.
fn naive_contains(cidr: &Cidr, address: IpAddr) -> bool {
    fn bits(address: IpAddr) -> Vec<bool> {
        let octets = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        octets
            .iter()
            .flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1))
            .collect()
    }
    let (base, address) = (bits(cidr.base()), bits(address));
    let length = usize::from(cidr.length());
    base.len() == address.len() && base[..length] == address[..length]
}

fn any_v4() -> impl Strategy<Value = IpAddr> {
    any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
}

/// Uniform addresses never hit a block: half of these start inside one.
fn any_address() -> impl Strategy<Value = IpAddr> {
    let near = (0..BLOCKS.len(), any::<u128>()).prop_map(|(row, noise)| {
        let cidr = BLOCKS[row].cidr;
        match cidr.base() {
            IpAddr::V4(base) => {
                let below = u32::MAX.checked_shr(cidr.length().into()).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() | noise as u32 & below))
            }
            IpAddr::V6(base) => {
                let below = u128::MAX.checked_shr(cidr.length().into()).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() | noise & below))
            }
        }
    });
    prop_oneof![
        any_v4(),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        near,
    ]
}

proptest! {
    #[test]
    fn group_is_that_of_the_longest_block(address in any_address()) {
        let mut best: Option<&Block> = None;
        for block in BLOCKS {
            let longer = best.is_none_or(|best| best.cidr.length() < block.cidr.length());
            if naive_contains(&block.cidr, address) && longer {
                best = Some(block);
            }
        }
        prop_assert_eq!(Block::of(address), best);
        if let Some(block) = best {
            prop_assert_eq!(Group::of(address), block.group);
        }
    }

    #[test]
    fn contains_agrees_with_the_naive_model(a in any_address(), b in any_address(), length in 0u8..=128) {
        let length = if a.is_ipv4() { length % 33 } else { length };
        let cidr = Cidr::new(a, length).or_else(|error| match error {
            InvalidCidr::BitsBelowPrefix { meant } => Ok(meant),
            other => Err(other),
        }).unwrap();
        prop_assert!(cidr.contains(a));
        prop_assert_eq!(cidr.contains(b), naive_contains(&cidr, b));
    }

    #[test]
    fn cidr_text_round_trips(address in any_address(), length in 0u8..=32) {
        let cidr = match Cidr::new(address, length) {
            Ok(cidr) | Err(InvalidCidr::BitsBelowPrefix { meant: cidr }) => cidr,
            Err(other) => panic!("{other}"),
        };
        prop_assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(cidr));
    }

    #[test]
    fn an_embedded_address_is_a_face_of_every_form(bits in any::<u32>()) {
        prop_assume!(bits > 1);
        let v4 = Ipv4Addr::from_bits(bits);
        let [high, low] = [(bits >> 16) as u16, bits as u16];
        for form in [
            v4.to_ipv6_mapped(),
            v4.to_ipv6_compatible(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0, 0),
            Ipv6Addr::new(0x2001, 0, 0x101, 0x101, 0, 0, !high, !low),
            Ipv6Addr::new(0x2a00, 1, 2, 3, 0x200, 0x5efe, high, low),
        ] {
            let faces = Faces::of(form.into());
            prop_assert!(faces.any(|face| face == IpAddr::V4(v4)), "{}", form);
            // A form is never more public than what it carries.
            if Group::of(v4.into()) != Group::Public {
                prop_assert!(!faces.is_public());
            }
        }
    }
}
