//! The network of a guest: one card, all of its settings.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{ByteString, decode, encode};

/// What the guest's network card is to be.
///
/// The settings travel as their encoding, because the agent only has to compare them:
/// in a copy of a template they are as they were.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The card's own address.
    pub mac: [u8; 6],
    settings: ByteString,
}

impl NetworkSpec {
    /// Puts address and settings together.
    pub fn new(mac: [u8; 6], settings: &NetworkSettings) -> NetworkSpec {
        NetworkSpec {
            mac,
            settings: encode(settings).into(),
        }
    }

    /// Decodes the settings; `None` when they are none.
    pub fn settings(&self) -> Option<NetworkSettings> {
        decode(self.settings.as_bytes())
    }

    /// Whether both have the same settings.
    pub fn is_set_like(&self, other: &NetworkSpec) -> bool {
        self.settings == other.settings
    }
}

impl std::fmt::Debug for NetworkSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkSpec")
            .field("mac", &self.mac)
            .field("settings", &self.settings())
            .finish()
    }
}

/// All but the card's address.
///
/// Nothing is left to be asked for on the link: no DHCP, no router advertisements, no
/// search for duplicate addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSettings {
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// The guest's addresses.
    pub addresses: Vec<Address>,
    /// Where packets for everywhere else go: one for each family that has one.
    pub gateways: Vec<IpAddr>,
    /// Whom `/etc/resolv.conf` names.
    pub resolvers: Vec<IpAddr>,
    /// Domains that short names are searched in.
    pub search: Vec<String>,
    /// Names for `/etc/hosts`, beside the guest's own.
    pub hosts: Vec<Host>,
}

impl NetworkSettings {
    /// Most entries of each list: far more than a card with one neighbour needs.
    pub const MAX_ENTRIES: usize = 32;
}

/// An address and how many of its bits name the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// The bits.
    pub prefix: u8,
}

impl Address {
    /// Whether both are on one link, as far as their bits say so.
    pub fn on_link_of(&self, other: &Address) -> bool {
        let link = |bits: u128, width: u32| {
            let host = width.saturating_sub(self.prefix.into());
            bits.checked_shr(host).unwrap_or(0)
        };
        self.prefix == other.prefix
            && match (self.address, other.address) {
                (IpAddr::V4(one), IpAddr::V4(two)) => {
                    link(one.to_bits().into(), 32) == link(two.to_bits().into(), 32)
                }
                (IpAddr::V6(one), IpAddr::V6(two)) => {
                    link(one.to_bits(), 128) == link(two.to_bits(), 128)
                }
                _ => false,
            }
    }
}

/// A name that is known without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its address.
    pub address: IpAddr,
    /// The name.
    pub name: String,
}
