//! Ending the TCP connections of a guest that has become another one.
//!
//! At their other ends is whoever the first guest talks to, which goes on. The programs that
//! have them are held meanwhile; each finds its connections reset. So does whoever accepts one
//! later that waited for that. Those within the guest, over loopback, stay.
//!
//! They are looked for before the guest is saved: no program makes another one until it goes on,
//! and each copy would have to translate what looking takes. One that comes in meanwhile, for
//! somebody who is held, is not found.
//!
//! The structures are those of `include/uapi/linux/{sock_diag,inet_diag}.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SOCK_DIAG;

use super::netlink::{Netlink, Request};

/// Values that are not in the `libc` crate.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// States of sockets that have a peer, as bits: not those that listen (10), nor those that are
/// closed (7), nor what is left of those that are over (6), of which there may be many.
const WITH_PEER: u32 = 0xfff & !(1 << 10 | 1 << 7 | 1 << 6);

/// Length of `struct inet_diag_sockid`, which names a socket.
const ID: usize = 48;

/// Where the name of a socket is in a request and in an entry of the list, and the address of
/// its own end in the name.
const ID_ASKED: usize = 8;
const ID_TOLD: usize = 4;
const OWN: usize = 4;

/// How many are kept. A connection takes some KiB of a guest's kernel: these are more than
/// most have room for.
const MAX_CONNECTIONS: usize = 1 << 18;

/// Connections that somebody has: the family and the name of each.
pub(super) type Connections = Vec<(u8, [u8; ID])>;

/// The part of the kernel that knows all sockets.
///
/// Is kept for as long as the guest lives: to close a way to it makes work for the kernel, in
/// each copy.
#[derive(Debug, Default)]
pub(super) struct Sockets(Option<Netlink>);

impl Sockets {
    /// Finds the connections that come from one of the addresses `own`.
    ///
    /// # Errors
    /// Those of the kernel, and that there are more than a guest of any use has.
    pub(super) fn find(&mut self, own: &[IpAddr]) -> io::Result<Connections> {
        let kernel = match self.0.take() {
            Some(kernel) => kernel,
            None => Netlink::open(Some(SOCK_DIAG))?,
        };
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let request = Request::new(SOCK_DIAG_BY_FAMILY, &asked(family, &[0; ID]));
            kernel.list(request, SOCK_DIAG_BY_FAMILY, |entry| {
                let id: Option<&[u8; ID]> = entry.get(ID_TOLD..).and_then(<[u8]>::first_chunk);
                let id = id.ok_or(io::ErrorKind::InvalidData)?;
                if own.contains(&own_end(family, id)) {
                    found.push((family, *id));
                }
                if found.len() > MAX_CONNECTIONS {
                    return Err(io::Error::other("there are too many"));
                }
                Ok(())
            })?;
        }
        // After an error there may be more to come of the list, which nobody wants.
        self.0 = Some(kernel);
        Ok(found)
    }

    /// Resets connections that were found.
    pub(super) fn reset(&self, found: &Connections) -> io::Result<()> {
        for (family, id) in found {
            let kernel = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let request = Request::new(SOCK_DESTROY, &asked(*family, id));
            match kernel.ask(request) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                reset => reset?,
            }
        }
        Ok(())
    }
}

/// `struct inet_diag_req_v2`: family, protocol, what else is to be told, padding, states, name.
fn asked(family: u8, id: &[u8; ID]) -> [u8; ID_ASKED + ID] {
    let mut request = [0; ID_ASKED + ID];
    request[..2].copy_from_slice(&[family, libc::IPPROTO_TCP as u8]);
    request[4..ID_ASKED].copy_from_slice(&WITH_PEER.to_ne_bytes());
    request[ID_ASKED..].copy_from_slice(id);
    request
}

/// The address of a socket's own end. Behind the ports, in sixteen bytes of which IPv4 uses the
/// first four.
fn own_end(family: u8, id: &[u8; ID]) -> IpAddr {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&id[OWN..OWN + 16]);
    let [a, b, c, d, ..] = bytes;
    if i32::from(family) == libc::AF_INET {
        return Ipv4Addr::new(a, b, c, d).into();
    }
    IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// Loopback stands for a card's address. What resets them is in guests' kernels only.
    #[test]
    fn connections_from_an_address_are_found_before_anybody_accepts_them() {
        let find = |own: &str| {
            let own = own.parse().unwrap();
            let found = Sockets::default().find(&[own]).unwrap();
            let ports = found.iter().map(|(_, id)| {
                let port = |at| u16::from_be_bytes([id[at], id[at + 1]]);
                [port(0), port(2)]
            });
            ports.collect::<Vec<_>>()
        };
        for own in ["127.61.0.1", "::1"] {
            let listener = TcpListener::bind((own.parse::<IpAddr>().unwrap(), 0));
            // A host without IPv6 has none of it.
            let Ok(listener) = listener else { continue };
            let server = listener.local_addr().unwrap();
            // Nobody has accepted it.
            let stream = TcpStream::connect(server).unwrap();
            let client = stream.local_addr().unwrap();
            let found = find(own);
            assert!(
                found.contains(&[server.port(), client.port()]),
                "{own} {found:?}"
            );
            assert!(!found.iter().any(|ports| *ports == [server.port(), 0]));
        }
        assert_eq!(find("127.61.0.2"), [[0; 2]; 0]);
    }

    #[test]
    fn a_mapped_address_is_that_of_ipv4() {
        let mut id = [0; ID];
        let mapped: Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
        id[OWN..OWN + 16].copy_from_slice(&mapped.octets());
        let own: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(own_end(libc::AF_INET6 as u8, &id), own);
        id[OWN..OWN + 4].copy_from_slice(&[192, 0, 2, 1]);
        assert_eq!(own_end(libc::AF_INET as u8, &id), own);
    }
}
