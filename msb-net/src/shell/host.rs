//! Which addresses this host has.
//!
//! Read rtnetlink(7): one request for all addresses, answered by several messages.

use std::io;
use std::net::IpAddr;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::Error;

const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;

/// Attributes of an address.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// The lengths of the headers of a message, of an address in it, and of an attribute.
const MESSAGE: usize = 16;
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;

/// The most addresses that are listed: a host with more is a router of routers,
/// and each flow may be held against all of them.
const MAX_ADDRESSES: usize = 4096;

/// Lists the addresses of this host's interfaces, loopback included: what
/// [`Config::host_addresses`](crate::gateway::Config::host_addresses) needs to
/// know so that a rule about `host` holds for all of them.
///
/// # Errors
///
/// The system does not say.
pub fn host_addresses() -> Result<Vec<IpAddr>, Error> {
    list().map_err(|error| Error::system("list this host's addresses", &error))
}

fn list() -> io::Result<Vec<IpAddr>> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    let mut request = [0; MESSAGE + ADDRESS];
    request[..4].copy_from_slice(&((MESSAGE + ADDRESS) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&GET_ADDRESS.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    net::send(&socket, &request, SendFlags::empty())?;
    let mut addresses = Vec::new();
    // The kernel's own messages are at most this long.
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let (_, length) = net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if read(&buffer[..length], &mut addresses)? {
            return Ok(addresses);
        }
    }
}

/// Takes the addresses out of some messages; true after the last one.
fn read(mut bytes: &[u8], addresses: &mut Vec<IpAddr>) -> io::Result<bool> {
    while let Some((message, rest)) = record(bytes) {
        let body = message.get(MESSAGE..).unwrap_or(&[]);
        match u16::from_ne_bytes([message[4], message[5]]) {
            DONE => return Ok(true),
            ERROR => {
                let code = body
                    .first_chunk()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(-code));
            }
            NEW_ADDRESS => {
                if let Some(address) = address(body)
                    && addresses.len() < MAX_ADDRESSES
                {
                    addresses.push(address);
                }
            }
            _ => {}
        }
        bytes = rest;
    }
    Ok(false)
}

/// Cuts off the first message, whose length is in front.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    if length < MESSAGE {
        return None;
    }
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((bytes.get(..length)?, rest))
}

/// The address itself: on a link with two ends the local one.
fn address(body: &[u8]) -> Option<IpAddr> {
    let mut attributes = body.get(ADDRESS..)?;
    let mut found = None;
    while let Some((&[a, b, c, d], _)) = attributes.split_first_chunk::<ATTRIBUTE>() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(ATTRIBUTE..length)?;
        let kind = u16::from_ne_bytes([c, d]);
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = match *value {
                [a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
                _ => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            };
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_them() {
        let addresses = host_addresses().unwrap();
        assert!(
            addresses.contains(&IpAddr::from([127, 0, 0, 1])),
            "{addresses:?}"
        );
    }

    #[test]
    fn the_local_end_counts_and_nonsense_does_not() {
        let mut body = vec![0; ADDRESS];
        for (kind, last) in [(IFA_ADDRESS, 1), (IFA_LOCAL, 2)] {
            body.extend_from_slice(&8u16.to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(&[10, 0, 0, last]);
        }
        assert_eq!(address(&body), Some([10, 0, 0, 2].into()));
        body.extend_from_slice(&[0; 4]);
        assert_eq!(address(&body), None, "an attribute shorter than its header");
        assert_eq!(record(&[3, 0, 0, 0, 0, 0]), None);
    }
}
