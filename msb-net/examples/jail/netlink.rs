//! The inside's interface: up, with addresses and routes.
//!
//! Read rtnetlink(7). One request, one answer, each on its own socket message.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const REQUEST: u16 = 0x001;
const ACKNOWLEDGE: u16 = 0x004;
const CREATE: u16 = 0x400;

const ERROR: u16 = 2;

/// Attributes of links, addresses and routes.
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const UP: u32 = 1;
/// Frames that wait until the gateway takes them. A TAP device drops what comes above, and
/// a thousand connections that open at once are more than the kernel's usual 1,000.
const QUEUE: u32 = 8192;

/// Nobody else is on this link: no search for duplicates, which takes a second.
const NO_DUPLICATES: u8 = 0x02;
const MAIN_TABLE: u8 = 254;
const BY_BOOT: u8 = 3;
const SCOPE_LINK: u8 = 253;
const SCOPE_UNIVERSE: u8 = 0;
const UNICAST: u8 = 1;

/// A conversation with the kernel about the network namespace it was opened in.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// Returns the number of the interface with this name.
    pub(crate) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(net::netdevice::name_to_index(&self.0, name)?)
    }

    /// Switches an interface on; with an MTU, it is the gateway's device.
    pub(crate) fn up(&self, interface: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut body = vec![0; 4];
        for part in [interface, UP, UP] {
            body.extend_from_slice(&part.to_ne_bytes());
        }
        if let Some(mtu) = mtu {
            attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
            attribute(&mut body, IFLA_TXQLEN, &QUEUE.to_ne_bytes());
        }
        self.request(NEW_LINK, 0, &body)
    }

    /// Gives an interface an address, alone on its link.
    pub(crate) fn address(&self, interface: u32, address: IpAddr) -> io::Result<()> {
        let bytes = octets(address);
        let bits = bytes.len() as u8 * 8;
        let mut body = vec![family(address), bits, NO_DUPLICATES, SCOPE_UNIVERSE];
        body.extend_from_slice(&interface.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &bytes);
        attribute(&mut body, IFA_ADDRESS, &bytes);
        self.request(NEW_ADDRESS, CREATE, &body)
    }

    /// Makes a gateway the next hop for everything.
    pub(crate) fn gateway(&self, interface: u32, gateway: IpAddr) -> io::Result<()> {
        let bytes = octets(gateway);
        let bits = bytes.len() as u8 * 8;
        // That it is on the link is known from no address: it needs saying.
        let mut near = route(family(gateway), bits, SCOPE_LINK);
        attribute(&mut near, RTA_DST, &bytes);
        attribute(&mut near, RTA_OIF, &interface.to_ne_bytes());
        self.request(NEW_ROUTE, CREATE, &near)?;
        let mut rest = route(family(gateway), 0, SCOPE_UNIVERSE);
        attribute(&mut rest, RTA_GATEWAY, &bytes);
        attribute(&mut rest, RTA_OIF, &interface.to_ne_bytes());
        self.request(NEW_ROUTE, CREATE, &rest)
    }

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = 16 + body.len() as u32;
        let mut message = Vec::new();
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST | ACKNOWLEDGE | flags).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(body);
        net::send(&self.0, &message, SendFlags::empty())?;
        let mut reply = [0; 4096];
        let (_, length) = net::recv(&self.0, &mut reply[..], RecvFlags::empty())?;
        let field = |from: usize, to: usize| reply[..length].get(from..to);
        match (field(4, 6), field(16, 20)) {
            (Some(kind), Some(&[a, b, c, d])) if kind == ERROR.to_ne_bytes() => {
                match i32::from_ne_bytes([a, b, c, d]) {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(-code)),
                }
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn route(family: u8, bits: u8, scope: u8) -> Vec<u8> {
    let mut body = vec![family, bits, 0, 0, MAIN_TABLE, BY_BOOT, scope, UNICAST];
    body.extend_from_slice(&[0; 4]);
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = 4 + value.len() as u16;
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    // All values here are multiples of four bytes, as attributes must be.
    body.extend_from_slice(value);
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    family.as_raw() as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
