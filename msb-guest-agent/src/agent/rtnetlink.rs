//! Requests to the kernel's tables of links, addresses and routes.
//!
//! Only what the agent needs. The structures are those of
//! `include/uapi/linux/{rtnetlink,if_link,if_addr}.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::netlink::{Netlink, Request};

/// An interface's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Index(pub(super) u32);

/// A connection to the tables.
#[derive(Debug)]
pub(super) struct Tables(Netlink);

/// Values that are not in the `libc` crate.
const RTN_UNICAST: u8 = 1;
const RTPROT_STATIC: u8 = 4;

impl AsFd for Tables {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tables {
    pub(super) fn open() -> io::Result<Tables> {
        // Routing is number 0, which is what `None` means.
        Ok(Tables(Netlink::open(None)?))
    }

    /// Takes an interface up or down.
    pub(super) fn set_up(&self, link: Index, up: bool) -> io::Result<()> {
        let flag = libc::IFF_UP as u32;
        let header = link_header(link, if up { flag } else { 0 }, flag);
        self.0.ask(Request::new(libc::RTM_SETLINK, &header))
    }

    /// Sets the largest packet of an interface.
    pub(super) fn set_mtu(&self, link: Index, mtu: u16) -> io::Result<()> {
        let request = Request::new(libc::RTM_SETLINK, &link_header(link, 0, 0));
        self.0
            .ask(request.with(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes()))
    }

    /// Gives an interface an address, which is used at once.
    pub(super) fn add_address(&self, link: Index, address: IpAddr, prefix: u8) -> io::Result<()> {
        let request = address_request(libc::RTM_NEWADDR, link, address, prefix);
        self.0
            .ask(request.also((libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16))
    }

    /// Takes an address away.
    pub(super) fn remove_address(
        &self,
        link: Index,
        address: IpAddr,
        prefix: u8,
    ) -> io::Result<()> {
        self.0
            .ask(address_request(libc::RTM_DELADDR, link, address, prefix))
    }

    /// Sends everything that has no route of its own to `gateway`.
    pub(super) fn add_default_route(&self, link: Index, gateway: IpAddr) -> io::Result<()> {
        // struct rtmsg: family, lengths of destination and source, tos, table,
        // protocol, scope, type, flags.
        let header = [
            family(gateway),
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let request = Request::new(libc::RTM_NEWROUTE, &header)
            .also((libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16)
            .with(libc::RTA_GATEWAY, &octets(gateway))
            .with(libc::RTA_OIF, &link.0.to_ne_bytes());
        self.0.ask(request)
    }
}

/// `struct ifinfomsg`: family, padding, type, index, flags and which of them count.
fn link_header(link: Index, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&link.0.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

fn address_request(kind: u16, link: Index, address: IpAddr, prefix: u8) -> Request {
    // struct ifaddrmsg: family, prefix, flags, scope, index. Nobody else is on the
    // link, so there is no search for a duplicate.
    let mut header = [
        family(address),
        prefix,
        libc::IFA_F_NODAD as u8,
        0,
        0,
        0,
        0,
        0,
    ];
    header[4..].copy_from_slice(&link.0.to_ne_bytes());
    Request::new(kind, &header)
        .with(libc::IFA_LOCAL, &octets(address))
        .with(libc::IFA_ADDRESS, &octets(address))
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn requests_are_laid_out_as_the_kernel_reads_them() {
        let request = Request::new(libc::RTM_SETLINK, &link_header(Index(2), 0, 0))
            .with(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]);
        // Ten bytes of attribute, padded to twelve.
        let expected = "2c000000 1300 0500 00000000 00000000 \
                        00 00 0000 02000000 00000000 00000000 0a00 0100 020000000001 0000";
        assert_eq!(hex(&request.finish()), expected.replace(' ', ""));
        let address = "192.0.2.1".parse().unwrap();
        let request = address_request(libc::RTM_NEWADDR, Index(1), address, 24);
        let expected = "28000000 1400 0500 00000000 00000000 \
                        02 18 02 00 01000000 0800 0200 c0000201 0800 0100 c0000201";
        assert_eq!(hex(&request.finish()), expected.replace(' ', ""));
    }

    /// The kernel is asked for what this process may not do, or for what is not there.
    #[test]
    fn the_kernels_refusal_comes_back() {
        let tables = Tables::open().unwrap();
        let error = tables.set_up(Index(0x7fff_fff0), true).unwrap_err();
        let errno = error.raw_os_error();
        assert!(matches!(errno, Some(libc::ENODEV | libc::EPERM)), "{error}");
    }
}
