//! How a datagram socket sends what it is given.
//!
//! Read ip(7) and ipv6(7): hops and path discovery are the socket's, not the
//! datagram's, so they are changed when the next datagram wants it otherwise.

use std::os::fd::AsFd;

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

use crate::gateway::Handling;

/// What Linux starts a packet with.
const USUAL_HOPS: u32 = 64;

/// What a socket was told last; nothing was told a new one.
#[derive(Default)]
pub(super) struct Way {
    hops: Option<u8>,
    whole: Option<bool>,
}

impl Way {
    /// Makes a socket send its next datagram in this way. What a socket does not
    /// have, it does without: one of the two families is another's, and an embedding
    /// program may open sockets of its own kind.
    pub(super) fn prepare(&mut self, socket: &impl AsFd, handling: Handling) {
        let Handling { hops, whole } = handling;
        if std::mem::replace(&mut self.hops, hops) != hops {
            // `None` is the system's own number for IPv6, and IPv4 has no such word.
            let v4 = hops.map_or(USUAL_HOPS, u32::from);
            let _ = sockopt::set_ip_ttl(socket, v4);
            let _ = sockopt::set_ipv6_unicast_hops(socket, hops);
        }
        if self.whole.replace(whole) != Some(whole) {
            // Without the flag of IPv4, whoever cannot pass it on cuts it to pieces.
            let (v4, v6) = if whole {
                (Ipv4PathMtuDiscovery::DO, Ipv6PathMtuDiscovery::DO)
            } else {
                (Ipv4PathMtuDiscovery::DONT, Ipv6PathMtuDiscovery::WANT)
            };
            let _ = sockopt::set_ip_mtu_discover(socket, v4);
            let _ = sockopt::set_ipv6_mtu_discover(socket, v6);
        }
    }
}
