//! What the network says about datagrams that did not arrive.
//!
//! Read ip(7), IP_RECVERR: the kernel queues such messages behind the socket, with
//! who said it. Only `nix` reads that queue in safe code.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd as _};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use rustix::io::Errno;

use crate::gateway::PathError;

/// Origins of a message (`SO_EE_ORIGIN_*`).
const LOCAL: u8 = 1;
const ICMP: u8 = 2;
const ICMP6: u8 = 3;

/// Room for the control messages of one report.
const CONTROL: usize = 512;

/// A message about a datagram.
pub(super) struct Failure {
    pub(super) error: PathError,
    /// Who says so, if it is not this host.
    pub(super) from: Option<IpAddr>,
    /// How much of the datagram was quoted.
    pub(super) quoted: usize,
}

/// Lets the kernel keep such messages. Sockets that have none do without.
pub(super) fn watch(socket: &impl AsFd) {
    let _ = setsockopt(&socket.as_fd(), sockopt::Ipv4RecvErr, &true);
    let _ = setsockopt(&socket.as_fd(), sockopt::Ipv6RecvErr, &true);
}

/// Takes the next message; `None` when there is none. What was sent is written to
/// `buffer` as far as it is known.
pub(super) fn next(socket: &impl AsFd, buffer: &mut [u8]) -> Option<Failure> {
    let mut control = [0; CONTROL];
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let fd = socket.as_fd().as_raw_fd();
    loop {
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags).ok()?;
        let quoted = message.bytes;
        for report in message.cmsgs().ok()? {
            let (about, from) = match report {
                ControlMessageOwned::Ipv4RecvErr(about, from) => {
                    let address = |from: nix::libc::sockaddr_in| u32::from_be(from.sin_addr.s_addr);
                    (
                        about,
                        from.map(address)
                            .map(|from| IpAddr::from(Ipv4Addr::from(from))),
                    )
                }
                ControlMessageOwned::Ipv6RecvErr(about, from) => {
                    let address = |from: nix::libc::sockaddr_in6| from.sin6_addr.s6_addr;
                    (
                        about,
                        from.map(address)
                            .map(|from| IpAddr::from(Ipv6Addr::from(from))),
                    )
                }
                _ => continue,
            };
            let (kind, code) = (about.ee_type, about.ee_code);
            let error = match about.ee_origin {
                ICMP => icmp(kind, code, about.ee_info),
                ICMP6 => icmp6(kind, code, about.ee_info),
                LOCAL => Some(local(about.ee_errno as i32, about.ee_info)),
                _ => None,
            };
            if let Some(error) = error {
                let from = from.filter(|_| about.ee_origin != LOCAL);
                return Some(Failure {
                    error,
                    from,
                    quoted,
                });
            }
        }
    }
}

/// Tells whether the system refuses a socket because there are too many.
pub(super) fn is_exhausted(error: Errno) -> bool {
    matches!(
        error,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::NOSPC
    )
}

/// What an error of a socket means to the guest.
pub(super) fn of(error: Errno) -> PathError {
    match error {
        Errno::CONNREFUSED => PathError::PortUnreachable,
        Errno::ACCESS | Errno::PERM => PathError::Prohibited,
        Errno::NETUNREACH | Errno::NETDOWN => PathError::NetworkUnreachable,
        error if is_exhausted(error) => PathError::Exhausted,
        _ => PathError::HostUnreachable,
    }
}

fn local(errno: i32, mtu: u32) -> PathError {
    match Errno::from_raw_os_error(errno) {
        Errno::MSGSIZE => PathError::TooBig { mtu },
        other => of(other),
    }
}

fn icmp(kind: u8, code: u8, mtu: u32) -> Option<PathError> {
    Some(match (kind, code) {
        (3, 0 | 6 | 11) => PathError::NetworkUnreachable,
        (3, 2 | 3) => PathError::PortUnreachable,
        (3, 4) => PathError::TooBig { mtu },
        (3, 9 | 10 | 13) => PathError::Prohibited,
        (3, _) => PathError::HostUnreachable,
        (11, 0) => PathError::TimeExceeded,
        _ => return None,
    })
}

fn icmp6(kind: u8, code: u8, mtu: u32) -> Option<PathError> {
    Some(match (kind, code) {
        (1, 0) => PathError::NetworkUnreachable,
        (1, 1 | 5 | 6) => PathError::Prohibited,
        (1, 4) => PathError::PortUnreachable,
        (1, _) => PathError::HostUnreachable,
        (2, _) => PathError::TooBig { mtu },
        (3, 0) => PathError::TimeExceeded,
        _ => return None,
    })
}
