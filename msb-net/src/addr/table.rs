//! The table of special-use address blocks.
//!
//! One row per block with the document that sets it aside. Rows overlap; the
//! longest match decides. Cloud metadata addresses lie inside ordinary blocks
//! and have rows of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Cidr, Group};

/// A row of the table: a block, what it is for, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The addresses.
    pub cidr: Cidr,
    /// Where they belong.
    pub group: Group,
    /// What the block is for.
    pub purpose: &'static str,
    /// The document that sets it aside.
    pub source: &'static str,
}

impl Block {
    /// Finds the longest block that holds `address`.
    pub fn of(address: IpAddr) -> Option<&'static Self> {
        BLOCKS
            .iter()
            .filter(|block| block.cidr.contains(address))
            .max_by_key(|block| block.cidr.length())
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Cidr {
    Cidr::constant_v4(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(segments: [u16; 8], length: u8) -> Cidr {
    let [a, b, c, d, e, f, g, h] = segments;
    Cidr::constant_v6(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

const fn row(cidr: Cidr, group: Group, purpose: &'static str, source: &'static str) -> Block {
    Block {
        cidr,
        group,
        purpose,
        source,
    }
}

use Group::{LinkLocal, Loopback, Metadata, Multicast, Private, Public, Reserved};

/// Every special-use block this crate knows.
///
/// The blocks are those of the IANA special-purpose registries (RFC 6890 as
/// updated by RFC 8190) and the multicast ones; the last rows are services of
/// cloud providers, from the providers' own documentation.
pub const BLOCKS: &[Block] = &[
    row(v4(0, 0, 0, 0, 8), Reserved, "this network", "RFC 791"),
    row(v4(10, 0, 0, 0, 8), Private, "private use", "RFC 1918"),
    row(
        v4(100, 64, 0, 0, 10),
        Private,
        "shared address space",
        "RFC 6598",
    ),
    row(v4(127, 0, 0, 0, 8), Loopback, "loopback", "RFC 1122"),
    row(v4(169, 254, 0, 0, 16), LinkLocal, "link local", "RFC 3927"),
    row(v4(172, 16, 0, 0, 12), Private, "private use", "RFC 1918"),
    row(
        v4(192, 0, 0, 0, 24),
        Reserved,
        "IETF protocol assignments",
        "RFC 6890",
    ),
    row(
        v4(192, 0, 0, 9, 32),
        Public,
        "port control protocol anycast",
        "RFC 7723",
    ),
    row(v4(192, 0, 0, 10, 32), Public, "TURN anycast", "RFC 8155"),
    row(v4(192, 0, 2, 0, 24), Reserved, "documentation", "RFC 5737"),
    row(
        v4(192, 88, 99, 0, 24),
        Reserved,
        "6to4 relay anycast, deprecated",
        "RFC 7526",
    ),
    row(v4(192, 168, 0, 0, 16), Private, "private use", "RFC 1918"),
    row(v4(198, 18, 0, 0, 15), Reserved, "benchmarking", "RFC 2544"),
    row(
        v4(198, 51, 100, 0, 24),
        Reserved,
        "documentation",
        "RFC 5737",
    ),
    row(
        v4(203, 0, 113, 0, 24),
        Reserved,
        "documentation",
        "RFC 5737",
    ),
    row(v4(224, 0, 0, 0, 4), Multicast, "multicast", "RFC 5771"),
    row(v4(240, 0, 0, 0, 4), Reserved, "future use", "RFC 1112"),
    row(
        v4(255, 255, 255, 255, 32),
        Multicast,
        "limited broadcast",
        "RFC 919",
    ),
    row(
        v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
        Reserved,
        "unspecified",
        "RFC 4291",
    ),
    row(
        v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
        Loopback,
        "loopback",
        "RFC 4291",
    ),
    row(
        v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
        Private,
        "local-use translation",
        "RFC 8215",
    ),
    row(
        v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
        Reserved,
        "discard only",
        "RFC 6666",
    ),
    row(
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
        Reserved,
        "IETF protocol assignments",
        "RFC 2928",
    ),
    // Judged by the IPv4 addresses inside.
    row(
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32),
        Public,
        "Teredo",
        "RFC 4380",
    ),
    row(
        v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128),
        Public,
        "port control protocol anycast",
        "RFC 7723",
    ),
    row(
        v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128),
        Public,
        "TURN anycast",
        "RFC 8155",
    ),
    row(
        v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32),
        Public,
        "AMT",
        "RFC 7450",
    ),
    row(
        v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48),
        Public,
        "AS112",
        "RFC 7535",
    ),
    row(
        v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28),
        Public,
        "ORCHIDv2",
        "RFC 7343",
    ),
    row(
        v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
        Reserved,
        "documentation",
        "RFC 3849",
    ),
    // Judged by the IPv4 address inside.
    row(
        v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
        Public,
        "6to4",
        "RFC 3056",
    ),
    row(
        v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
        Reserved,
        "documentation",
        "RFC 9637",
    ),
    row(
        v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
        Reserved,
        "segment routing",
        "RFC 9602",
    ),
    row(
        v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
        Private,
        "unique local",
        "RFC 4193",
    ),
    row(
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        LinkLocal,
        "link local",
        "RFC 4291",
    ),
    row(
        v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
        Private,
        "site local, deprecated",
        "RFC 3879",
    ),
    row(
        v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
        Multicast,
        "multicast",
        "RFC 4291",
    ),
    row(
        v4(100, 100, 100, 200, 32),
        Metadata,
        "instance metadata",
        "Alibaba Cloud",
    ),
    row(v4(168, 63, 129, 16, 32), Metadata, "WireServer", "Azure"),
    row(
        v4(169, 254, 0, 23, 32),
        Metadata,
        "instance metadata",
        "Tencent Cloud",
    ),
    row(
        v4(169, 254, 10, 10, 32),
        Metadata,
        "instance metadata",
        "Tencent Cloud",
    ),
    row(
        v4(169, 254, 42, 42, 32),
        Metadata,
        "instance metadata",
        "Scaleway",
    ),
    row(
        v4(169, 254, 169, 0, 24),
        Metadata,
        "instance metadata, DNS and time",
        "AWS, Azure, GCP and others",
    ),
    row(
        v4(169, 254, 170, 0, 24),
        Metadata,
        "container and pod credentials",
        "AWS ECS and EKS",
    ),
    row(
        v4(192, 0, 0, 192, 32),
        Metadata,
        "instance metadata",
        "Oracle Cloud Classic",
    ),
    row(
        v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128),
        Metadata,
        "instance metadata",
        "Scaleway",
    ),
    row(
        v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0], 64),
        Metadata,
        "instance metadata",
        "Linode, Kubernetes on several clouds",
    ),
    row(
        v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
        Metadata,
        "instance metadata",
        "Oracle Cloud",
    ),
    row(
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
        Metadata,
        "instance metadata, DNS, time and credentials",
        "AWS",
    ),
    row(
        v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
        Metadata,
        "instance metadata",
        "GCP",
    ),
    row(
        v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
        Metadata,
        "instance metadata",
        "OpenStack",
    ),
];
