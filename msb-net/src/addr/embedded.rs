//! IPv4 addresses inside IPv6 addresses.
//!
//! A rule about `127.0.0.1` would be worth little if `::ffff:127.0.0.1`,
//! `64:ff9b::127.0.0.1` or a 6to4 address around it went past. This file lists
//! the forms and says what an address stands for; it does not decide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Cidr, Group};

/// Everything that one destination address stands for.
///
/// - A *wrapper* (IPv4-mapped, IPv4-compatible, IPv4-translated, NAT64) means
///   the IPv4 address and nothing else: that is its only face.
/// - A *tunnel* (6to4, Teredo, ISATAP) is an IPv6 destination that is reached
///   through an IPv4 one: it has both faces, Teredo even three.
/// - Any other address has one face, itself.
///
/// An allow rule must hold for all faces, a deny rule for any.
///
/// ```
/// use msb_net::addr::{Faces, Group};
///
/// let sneaky = Faces::of("64:ff9b::a9fe:a9fe".parse().unwrap());
/// assert!(sneaky.any(|face| Group::of(face) == Group::Metadata));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faces {
    outer: IpAddr,
    faces: [Option<IpAddr>; 3],
}

impl Faces {
    /// Unwraps `address`.
    pub fn of(address: IpAddr) -> Self {
        let faces = match address {
            IpAddr::V4(_) => [Some(address), None, None],
            IpAddr::V6(v6) => unwrap(v6),
        };
        Self {
            outer: address,
            faces,
        }
    }

    /// Returns the address as it was given.
    pub const fn outer(&self) -> IpAddr {
        self.outer
    }

    /// Returns the address the destination is spoken of by: the IPv4 address of
    /// a wrapper, the address itself otherwise.
    pub fn canonical(&self) -> IpAddr {
        self.faces[0].unwrap_or(self.outer)
    }

    /// Iterates over the faces.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.faces.iter().flatten().copied()
    }

    /// Tells whether `predicate` holds for every face.
    pub fn all(&self, predicate: impl FnMut(IpAddr) -> bool) -> bool {
        self.iter().all(predicate)
    }

    /// Tells whether `predicate` holds for some face, or for the address as given.
    pub fn any(&self, mut predicate: impl FnMut(IpAddr) -> bool) -> bool {
        predicate(self.outer) || self.iter().any(predicate)
    }

    /// Tells whether every face is globally reachable.
    pub fn is_public(&self) -> bool {
        self.all(|face| Group::of(face) == Group::Public)
    }

    /// Tells whether every face lies in `cidr`.
    pub fn within(&self, cidr: &Cidr) -> bool {
        self.all(|face| cidr.contains(face))
    }

    /// Tells whether some face, or the address as given, lies in `cidr`.
    pub fn touches(&self, cidr: &Cidr) -> bool {
        self.any(|face| cidr.contains(face))
    }
}

fn unwrap(v6: Ipv6Addr) -> [Option<IpAddr>; 3] {
    let s = v6.segments();
    let v4 = |high: u16, low: u16| {
        Some(IpAddr::V4(Ipv4Addr::from_bits(
            u32::from(high) << 16 | u32::from(low),
        )))
    };
    let own = Some(IpAddr::V6(v6));
    let last = v4(s[6], s[7]);
    match s {
        // `::` and `::1` look IPv4-compatible and are not (RFC 4291, 2.5.2 and 2.5.3).
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [own, None, None],
        // IPv4-compatible, deprecated (RFC 4291, 2.5.5.1); IPv4-mapped (2.5.5.2).
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] => [last, None, None],
        // IPv4-translated (RFC 7915, once RFC 2765).
        [0, 0, 0, 0, 0xffff, 0, _, _] => [last, None, None],
        // NAT64, well-known prefix (RFC 6052, 2.1). A non-zero middle is not
        // legal and would let one IPv4 address have many spellings.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => [last, None, None],
        // 6to4 (RFC 3056): the IPv4 address of the site's border router.
        [0x2002, high, low, ..] => [own, v4(high, low), None],
        // Teredo (RFC 4380): server, and the client with all bits inverted.
        [0x2001, 0, high, low, ..] => [own, v4(high, low), v4(!s[6], !s[7])],
        // ISATAP (RFC 5214, 6.1): any prefix, interface identifier 0[2]00:5efe:IPv4.
        [_, _, _, _, 0 | 0x0200, 0x5efe, _, _] => [own, last, None],
        // NAT64, local-use prefix (RFC 8215): the operator chooses where the IPv4
        // address stands, so the two usual places are both taken for it.
        [0x64, 0xff9b, 1, a, b, _, _, _] => {
            // RFC 6052, 2.2, length 48: bits 48..64, then 72..88.
            let split = v4(a, (b << 8) | (s[5] >> 8));
            [own, split, last]
        }
        _ => [own, None, None],
    }
}
