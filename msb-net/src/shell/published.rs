//! Published ports: sockets of the host on which clients reach the guest.
//!
//! They are bound by whoever asks for them, so that a port in use is reported at
//! once, and served by the driver. A datagram port has one socket for all its
//! clients; a listener makes one stream for each.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use mio::Token;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::Error;
use crate::error::PortRefusal;
use crate::gateway::{Datagrams, FlowId, Gateway, PublishedId};
use crate::publish::{Protocol, Publish};

/// Clients taken, and datagrams, before the flows have their turn.
const BUDGET: usize = 64;

/// Clients that the system holds until they are taken: as servers have it.
const BACKLOG: i32 = 1024;

/// Tokens of published ports count down from here, those of flows up from 1.
const FIRST_TOKEN: usize = usize::MAX - 2;
const LAST_TOKEN: usize = usize::MAX / 2;

/// Ports that are published, until [`Network::unpublish`](super::Network::unpublish)
/// or the network's end. Dropping this changes nothing.
#[derive(Debug)]
pub struct Publication {
    pub(super) ids: Vec<PublishedId>,
    ports: Vec<(SocketAddr, u16)>,
}

impl Publication {
    /// Returns where the host listens, and the guest's port behind it, of each.
    pub fn ports(&self) -> &[(SocketAddr, u16)] {
        &self.ports
    }

    /// Makes one of each port, so that each can be taken back alone.
    pub fn into_single(self) -> impl Iterator<Item = Self> {
        let each = self.ids.into_iter().zip(self.ports);
        each.map(|(id, port)| Self {
            ids: vec![id],
            ports: vec![port],
        })
    }
}

/// Takes clients whom the guest refuses: it may be that the service they want
/// listens on the guest's loopback address, where frames do not reach it.
pub trait Fallback: Send {
    /// Takes over a connected client, of whom nothing was read yet, and the port
    /// of the guest. It is called from the driver's thread and must not block.
    fn take(&mut self, client: OwnedFd, port: u16);
}

/// A socket to be served.
pub(super) struct Offer {
    pub(super) id: PublishedId,
    socket: OwnedFd,
    protocol: Protocol,
    port: u16,
    readable: bool,
}

impl AsFd for Offer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds all sockets of a range, or none.
pub(super) fn bind(
    publish: &Publish,
    mut id: impl FnMut() -> PublishedId,
) -> Result<(Publication, Vec<Offer>), Error> {
    let protocol = publish.protocol();
    let (mut ids, mut ports, mut offers) = (Vec::new(), Vec::new(), Vec::new());
    for (address, port) in publish.pairs() {
        let (socket, bound) = match protocol {
            Protocol::Tcp => listen(address),
            Protocol::Udp => receive(address),
        }
        .map_err(|error| Error::Port {
            address,
            reason: PortRefusal::of(&error),
        })?;
        let offer = Offer {
            id: id(),
            socket,
            protocol,
            port,
            readable: false,
        };
        ids.push(offer.id);
        ports.push((bound, port));
        offers.push(offer);
    }
    Ok((Publication { ids, ports }, offers))
}

fn listen(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = open(address, SocketType::STREAM)?;
    // Connections that have just ended do not keep the port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    bound(socket)
}

fn receive(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = open(address, SocketType::DGRAM)?;
    net::bind(&socket, &address)?;
    bound(socket)
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        // `[::]` is all of IPv6: `0.0.0.0` can be published beside it, on the same port.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

fn bound(socket: OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let address = net::getsockname(&socket)?;
    Ok((socket, SocketAddr::try_from(address)?))
}

/// A client who wants to reach the guest.
pub(super) struct Client {
    pub(super) flow: FlowId,
    pub(super) socket: OwnedFd,
    pub(super) port: u16,
}

/// All published ports of a driver.
#[derive(Default)]
pub(super) struct Offers {
    ports: HashMap<PublishedId, Offer>,
    /// Ports with something to read, each at most once.
    work: VecDeque<PublishedId>,
    /// Which socket a datagram flow came to, and from where.
    origins: HashMap<FlowId, (PublishedId, SocketAddr)>,
    /// Given up for a moment when there are no more, so that clients are refused and
    /// do not wait for somebody who will not come.
    reserve: Option<OwnedFd>,
}

impl Offers {
    pub(super) const fn token(id: PublishedId) -> Token {
        Token(FIRST_TOKEN - id.0 as usize)
    }

    /// The port that a token stands for, unless it stands for a flow.
    pub(super) fn by_token(token: Token) -> Option<PublishedId> {
        (LAST_TOKEN..=FIRST_TOKEN)
            .contains(&token.0)
            .then(|| PublishedId((FIRST_TOKEN - token.0) as u64))
    }

    pub(super) fn insert(&mut self, offer: Offer) {
        self.ports.insert(offer.id, offer);
    }

    /// Stops offering a port. Its connections go on; its datagram flows cannot.
    pub(super) fn remove(&mut self, id: PublishedId) {
        self.ports.remove(&id);
    }

    pub(super) fn mark(&mut self, id: PublishedId) {
        if let Some(offer) = self.ports.get_mut(&id)
            && !std::mem::replace(&mut offer.readable, true)
        {
            self.work.push_back(id);
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Takes clients and datagrams, up to a budget. Returns those of the clients
    /// who are admitted.
    pub(super) fn turn(
        &mut self,
        now: Duration,
        gateway: &mut Gateway,
        buffer: &mut [u8],
    ) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..BUDGET {
            let Some(id) = self.work.pop_front() else {
                break;
            };
            let Some(offer) = self.ports.get_mut(&id) else {
                continue;
            };
            let taken = match offer.protocol {
                Protocol::Tcp => offer.client(now, gateway, &mut clients),
                Protocol::Udp => offer.datagram(now, gateway, buffer, &mut self.origins),
            };
            match taken {
                Ok(()) | Err(Errno::INTR | Errno::CONNABORTED | Errno::CONNREFUSED) => {
                    self.work.push_back(id);
                }
                Err(Errno::MFILE | Errno::NFILE) if offer.refuse(&mut self.reserve) => {
                    gateway.exhausted();
                    self.work.push_back(id);
                }
                // Whatever else it is, is met again with the next client.
                Err(_) => offer.readable = false,
            }
        }
        if self.reserve.is_none() && !self.ports.is_empty() {
            self.reserve = reserve();
        }
        clients
    }

    /// Sends a datagram of a flow that came from outside; false if it did not.
    pub(super) fn send(&self, flow: FlowId, datagrams: &Datagrams) -> bool {
        let Some((id, peer)) = self.origins.get(&flow) else {
            return false;
        };
        if let Some(offer) = self.ports.get(id) {
            for datagram in datagrams.iter() {
                // What the socket does not take is lost, as anywhere on the way.
                let _ = net::sendto(&offer.socket, datagram, SendFlags::NOSIGNAL, peer);
            }
        }
        true
    }

    pub(super) fn forget(&mut self, flow: FlowId) {
        self.origins.remove(&flow);
    }
}

/// A descriptor that is good for nothing else.
fn reserve() -> Option<OwnedFd> {
    UnixDatagram::unbound().ok().map(OwnedFd::from)
}

impl Offer {
    /// Refuses a client for whom there is no descriptor but the reserve; false if there
    /// is not even that.
    fn refuse(&self, reserve: &mut Option<OwnedFd>) -> bool {
        if reserve.take().is_none() {
            return false;
        }
        let client = net::accept_with(&self.socket, SocketFlags::CLOEXEC);
        if let Ok(client) = &client {
            let _ = sockopt::set_socket_linger(client, Some(Duration::ZERO));
        }
        let refused = client.is_ok();
        drop(client);
        *reserve = self::reserve();
        refused
    }

    fn client(
        &self,
        now: Duration,
        gateway: &mut Gateway,
        clients: &mut Vec<Client>,
    ) -> Result<(), Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = net::acceptfrom_with(&self.socket, flags)?;
        let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else {
            return Ok(());
        };
        match gateway.accept(now, peer, self.port) {
            Some(flow) => {
                // Both are matters of comfort.
                let _ = sockopt::set_tcp_nodelay(&socket, true);
                let _ = sockopt::set_socket_keepalive(&socket, true);
                clients.push(Client {
                    flow,
                    socket,
                    port: self.port,
                });
            }
            None => {
                let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
            }
        }
        Ok(())
    }

    fn datagram(
        &self,
        now: Duration,
        gateway: &mut Gateway,
        buffer: &mut [u8],
        origins: &mut HashMap<FlowId, (PublishedId, SocketAddr)>,
    ) -> Result<(), Errno> {
        let (_, length, peer) = net::recvfrom(&self.socket, &mut *buffer, RecvFlags::empty())?;
        if let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok())
            && let Some(flow) =
                gateway.datagram_from(now, self.id, self.port, peer, &buffer[..length])
        {
            // As many as the gateway has flows: it says when one is over.
            origins.insert(flow, (self.id, peer));
        }
        Ok(())
    }
}
