//! What kind of address a destination is.
//!
//! Owns one table of special-use address blocks, each with its source, and the
//! unwrapping of IPv4 addresses that hide inside IPv6 ones. It does not know
//! about rules, names or flows: `policy` builds on it.
//!
//! Read RFC 6890 (and the IANA registries it set up) for the blocks, RFC 6052
//! for addresses inside addresses.

mod embedded;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use self::embedded::Faces;
pub use self::table::{BLOCKS, Block};
use crate::error::InvalidCidr;

/// Where an address lies, as far as a policy is concerned.
///
/// Every address is in exactly one group: the group of the longest matching
/// block in [`BLOCKS`], or [`Group::Public`] where none matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Group {
    /// Globally reachable unicast.
    Public,
    /// Someone's internal network: RFC 1918, shared address space, unique local.
    Private,
    /// The machine itself.
    Loopback,
    /// One link only.
    LinkLocal,
    /// Instance metadata and other services a cloud serves to its machines.
    Metadata,
    /// Many receivers, including limited broadcast.
    Multicast,
    /// The sandbox's own host, under the address the gateway gives it.
    ///
    /// No block of the table is in this group: which address stands for the
    /// host is a matter of the gateway's configuration.
    Host,
    /// Blocks with no business on a network: unspecified, documentation,
    /// benchmarking, discard and unassigned ones.
    Reserved,
}

impl Group {
    /// All groups, in the order in which documentation lists them.
    pub const ALL: [Self; 8] = [
        Self::Public,
        Self::Private,
        Self::Loopback,
        Self::LinkLocal,
        Self::Metadata,
        Self::Multicast,
        Self::Host,
        Self::Reserved,
    ];

    /// Returns the word that stands for the group in policy text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Multicast => "multicast",
            Self::Host => "host",
            Self::Reserved => "reserved",
        }
    }

    /// Finds the group that `word` names.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.as_str() == word)
    }

    /// Classifies one address as it is written, without unwrapping.
    ///
    /// Most callers want [`Faces`], which also sees addresses inside addresses.
    ///
    /// ```
    /// use msb_net::addr::Group;
    ///
    /// assert_eq!(Group::of("10.1.2.3".parse().unwrap()), Group::Private);
    /// assert_eq!(Group::of("169.254.169.254".parse().unwrap()), Group::Metadata);
    /// assert_eq!(Group::of("2606:4700::1111".parse().unwrap()), Group::Public);
    /// ```
    pub fn of(address: IpAddr) -> Self {
        Block::of(address).map_or(Self::default_of(address), |block| block.group)
    }

    /// Returns the group of an address in no block: only 2000::/3 is handed out
    /// for global unicast, so the rest of IPv6 is reserved.
    const fn default_of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Public,
            IpAddr::V6(v6) if v6.segments()[0] & 0xe000 == 0x2000 => Self::Public,
            IpAddr::V6(_) => Self::Reserved,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A block of addresses: a prefix and its length, with no bits set below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    base: IpAddr,
    length: u8,
}

impl Cidr {
    /// Makes a block.
    ///
    /// # Errors
    ///
    /// Refuses a length beyond the family's, and a base with bits set below the
    /// prefix: `10.0.0.1/8` is more often a typing error than a block.
    pub fn new(base: IpAddr, length: u8) -> Result<Self, InvalidCidr> {
        let width = width(base);
        if length > width {
            return Err(InvalidCidr::TooLong { length, width });
        }
        let masked = Self {
            base: mask(base, length),
            length,
        };
        if masked.base != base {
            return Err(InvalidCidr::BitsBelowPrefix { meant: masked });
        }
        Ok(masked)
    }

    /// The block that holds exactly `address`.
    pub const fn host(address: IpAddr) -> Self {
        Self {
            base: address,
            length: width(address),
        }
    }

    /// Returns the first address of the block.
    pub const fn base(&self) -> IpAddr {
        self.base
    }

    /// Returns the length of the prefix, in bits.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Tells whether `address` lies in the block. Families never match each other.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.base.is_ipv4() == address.is_ipv4() && mask(address, self.length) == self.base
    }

    /// For the table: `base` must have no bits set below `length`.
    const fn constant_v4(base: Ipv4Addr, length: u8) -> Self {
        Self {
            base: IpAddr::V4(base),
            length,
        }
    }

    /// For the table: `base` must have no bits set below `length`.
    const fn constant_v6(base: Ipv6Addr, length: u8) -> Self {
        Self {
            base: IpAddr::V6(base),
            length,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == width(self.base) {
            write!(f, "{}", self.base)
        } else {
            write!(f, "{}/{}", self.base, self.length)
        }
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    /// Reads `ADDRESS` or `ADDRESS/LENGTH`.
    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let (base, length) = match text.split_once('/') {
            Some((base, length)) => (base, Some(length)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| InvalidCidr::NotAnAddress)?;
        let Some(length) = length else {
            return Ok(Self::host(base));
        };
        // `u8::from_str` takes "+8", which is no prefix length.
        if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidCidr::NotALength);
        }
        Self::new(base, length.parse().map_err(|_| InvalidCidr::NotALength)?)
    }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Clears the bits of `address` below a prefix of `length` bits.
fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(length.min(32)));
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & keep.unwrap_or(0)))
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(length.min(128)));
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & keep.unwrap_or(0)))
        }
    }
}
