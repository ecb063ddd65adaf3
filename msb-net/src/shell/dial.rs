//! How host sockets are opened.
//!
//! Everything the gateway opens goes through one [`Dial`], so an embedding
//! program can open sockets in another place, bind them, or put a program of its
//! own in between: any stream socket will do, also one end of a pair.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use super::failures;
use crate::gateway::{ConnectError, FlowId};

/// Opens sockets for flows that were allowed.
pub trait Dial: Send {
    /// Begins to open a stream. The socket must not block; it may still be
    /// connecting, and its pending error then says how that went.
    ///
    /// # Errors
    ///
    /// What the system said; the guest hears the like.
    fn stream(&mut self, flow: FlowId, to: SocketAddr) -> io::Result<OwnedFd>;

    /// Opens a datagram socket that is connected to `to`. It must not block.
    ///
    /// # Errors
    ///
    /// What the system said.
    fn datagram(&mut self, flow: FlowId, to: SocketAddr) -> io::Result<OwnedFd>;

    /// Opens a socket for echo requests that is connected to `to` (`SOCK_DGRAM` and
    /// `IPPROTO_ICMP` or its IPv6 kin). It must not block.
    ///
    /// # Errors
    ///
    /// What the system said; a lack of permission means that it will say so every
    /// time. Without an implementation there are no echo requests.
    fn echo(&mut self, flow: FlowId, to: IpAddr) -> io::Result<OwnedFd> {
        let _ = (flow, to);
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Opens sockets of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDialer;

impl Dial for HostDialer {
    fn stream(&mut self, _: FlowId, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = open(to, SocketType::STREAM, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        // The guest's own probes end at the gateway: without these a peer that
        // vanished would never be noticed.
        sockopt::set_socket_keepalive(&socket, true)?;
        match net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    fn datagram(&mut self, _: FlowId, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = open(to, SocketType::DGRAM, None)?;
        net::connect(&socket, &to)?;
        Ok(socket)
    }

    fn echo(&mut self, _: FlowId, to: IpAddr) -> io::Result<OwnedFd> {
        let protocol = match to {
            IpAddr::V4(_) => net::ipproto::ICMP,
            IpAddr::V6(_) => net::ipproto::ICMPV6,
        };
        let to = SocketAddr::new(to, 0);
        let socket = open(to, SocketType::DGRAM, Some(protocol))?;
        net::connect(&socket, &to)?;
        Ok(socket)
    }
}

fn open(to: SocketAddr, kind: SocketType, protocol: Option<net::Protocol>) -> io::Result<OwnedFd> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(net::socket_with(family, kind, flags, protocol)?)
}

/// What the guest hears when a connection could not be opened.
pub(super) fn connect_error(error: Errno) -> ConnectError {
    match error {
        Errno::CONNREFUSED | Errno::CONNRESET => ConnectError::Refused,
        Errno::TIMEDOUT => ConnectError::TimedOut,
        // The last two: the host's own firewall said no.
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::PERM | Errno::ACCESS => {
            ConnectError::HostUnreachable
        }
        error if failures::is_exhausted(error) => ConnectError::Exhausted,
        _ => ConnectError::NetworkUnreachable,
    }
}
