//! Upstream TCP: bytes between a flow and its socket.
//!
//! ```text
//!   Connecting ── writable, no error ──► Open ── Close ──► gone
//!        └─────── error ──► gone
//! ```
//!
//! A direction moves while both its ends can: guest → upstream while the guest
//! has bytes and the socket takes some, upstream → guest while the socket may have
//! bytes and the flow has room. Whichever end stops, stops its direction only.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, Shutdown, sockopt};

use super::dial::connect_error;
use crate::gateway::{FlowId, Gateway};

/// Bytes one flow may move in each direction before the next one has its turn.
/// So many stay in a processor's cache on their way through.
const BUDGET: usize = 128 * 1024;

pub(super) struct Stream {
    fd: OwnedFd,
    /// A client's, as long as this port of the guest has not answered.
    pub(super) unanswered: Option<u16>,
    connected: bool,
    /// The socket may have bytes, or room.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer has ended its half: a short read is not the last one.
    pub(super) peer_ended: bool,
    /// The flow may have bytes of the guest, or room for the guest.
    pub(super) guest_bytes: bool,
    pub(super) guest_room: bool,
    /// The guest's end of sending was passed on.
    shut: bool,
    /// The peer takes no more, and did not say so in good order.
    broken: bool,
    /// The flow is in the driver's list of work.
    pub(super) waiting: bool,
    /// Bytes that the last turn moved to the guest.
    pub(super) moved: usize,
}

/// What came of a flow's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing to do until something happens.
    Idle,
    /// It wants another turn.
    Again,
    /// It is over: the socket is of no more use.
    Gone,
}

impl Stream {
    pub(super) const fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            unanswered: None,
            connected: false,
            readable: false,
            writable: false,
            peer_ended: false,
            guest_bytes: false,
            guest_room: false,
            shut: false,
            broken: false,
            waiting: false,
            moved: 0,
        }
    }

    /// A client of a port that is published as `port` of the guest.
    pub(super) const fn accepted(fd: OwnedFd, port: u16) -> Self {
        let mut stream = Self::new(fd);
        stream.connected = true;
        stream.unanswered = Some(port);
        stream
    }

    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.fd
    }

    /// Puts another socket, which is connected, in place of the flow's.
    pub(super) fn replace(&mut self, fd: OwnedFd) -> OwnedFd {
        (self.readable, self.writable, self.peer_ended) = (false, true, false);
        std::mem::replace(&mut self.fd, fd)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// There is room for bytes to the guest: so it has answered, too.
    pub(super) const fn has_room(&mut self) {
        self.guest_room = true;
        self.unanswered = None;
    }

    /// The guest will send no more, and everything it sent was passed on.
    pub(super) fn shutdown(&mut self) {
        self.shut = true;
        // A peer that is gone already is told nothing, and its end is noticed by reading.
        let _ = net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Closes the socket; with `reset`, so that the peer sees a reset.
    pub(super) fn close(self, reset: bool) {
        if reset {
            // Only TCP knows this; other sockets close as they do.
            let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
        }
    }

    /// Moves what can be moved.
    pub(super) fn turn(&mut self, now: Duration, id: FlowId, gateway: &mut Gateway) -> Turn {
        self.moved = 0;
        if !self.connected {
            if !self.writable {
                return Turn::Idle;
            }
            match self.outcome() {
                Ok(true) => {
                    self.connected = true;
                    gateway.connected(now, id);
                }
                Ok(false) => {
                    self.writable = false;
                    return Turn::Idle;
                }
                Err(error) => {
                    gateway.connect_failed(now, id, connect_error(error));
                    return Turn::Gone;
                }
            }
        }
        let moved = self
            .upload(id, gateway)
            .and_then(|more| Ok(self.download(id, gateway)? || more));
        match moved {
            Ok(true) => Turn::Again,
            Ok(false) => Turn::Idle,
            Err(_) => {
                gateway.reset(now, id);
                Turn::Gone
            }
        }
    }

    /// Tells whether the socket is connected by now.
    fn outcome(&self) -> Result<bool, Errno> {
        sockopt::socket_error(&self.fd)??;
        match net::getpeername(&self.fd) {
            Ok(_) => Ok(true),
            Err(Errno::NOTCONN) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Guest to upstream; true when the budget ended it.
    fn upload(&mut self, id: FlowId, gateway: &mut Gateway) -> Result<bool, Errno> {
        let mut moved = 0;
        while self.guest_bytes && self.writable && !self.shut {
            if moved >= BUDGET {
                return Ok(true);
            }
            let mut failed = None;
            let sent = gateway.read(id, |bytes| {
                if self.broken {
                    return bytes.len();
                }
                match net::send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                    Ok(sent) => sent,
                    Err(error) => {
                        failed = Some(error);
                        0
                    }
                }
            });
            moved += sent;
            match failed {
                None => self.guest_bytes = sent > 0,
                Some(Errno::AGAIN) => self.writable = false,
                Some(Errno::INTR) => {}
                // The peer takes no more, but what it said before is still to be
                // read: the guest gets that first, and then the reset.
                Some(_) => {
                    self.broken = true;
                    self.readable = true;
                }
            }
        }
        Ok(false)
    }

    /// Upstream to guest; true when the budget ended it.
    fn download(&mut self, id: FlowId, gateway: &mut Gateway) -> Result<bool, Errno> {
        while self.guest_room && self.readable {
            if self.moved >= BUDGET {
                return Ok(true);
            }
            let mut room = 0;
            let mut got = None;
            let written = gateway.write(id, |buffer| {
                room = buffer.len();
                let result = net::recv(&self.fd, &mut *buffer, RecvFlags::empty());
                got = Some(result.map(|(_, length)| length));
                result.map_or(0, |(_, length)| length)
            });
            self.moved += written;
            match got {
                None => self.guest_room = false,
                Some(Ok(0)) if self.broken => return Err(Errno::CONNRESET),
                Some(Ok(0)) => {
                    self.readable = false;
                    self.peer_ended = true;
                    gateway.finish(id);
                }
                // Less than asked for: that was all, and more makes an event.
                Some(Ok(length)) if length < room && !self.peer_ended => self.readable = false,
                Some(Ok(_)) | Some(Err(Errno::INTR)) => {}
                Some(Err(Errno::AGAIN)) => self.readable = false,
                // What was just written reaches the guest before the reset does.
                Some(Err(_)) if self.moved > 0 => {
                    self.broken = true;
                    return Ok(true);
                }
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(false)
    }
}
