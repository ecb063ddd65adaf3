//! The network of a guest: one card, all of its settings.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What the guest's network card is to be.
///
/// Nothing is left to be asked for on the link: no DHCP, no router advertisements, no
/// search for duplicate addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The card's own address.
    pub mac: [u8; 6],
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

impl NetworkSpec {
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

/// A name that is known without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its address.
    pub address: IpAddr,
    /// The name.
    pub name: String,
}
