//! A stream to a service of the guest that listens on loopback.
//!
//! Bytes go both ways, each with the stream's credit: input waits here in no more than a
//! window, output stays in the socket until the host takes it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::{Buf, Bytes};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};

use crate::endpoint::GuestEndpoint;
use crate::message::{Errno as WireErrno, ResetCode, StreamEvent};
use crate::wire::{Channel, StreamId};

/// A connection whose end was not reported yet.
#[derive(Debug)]
pub(super) struct Dial {
    stream: StreamId,
    socket: OwnedFd,
    connected: bool,
    /// Where to try next.
    second: Option<SocketAddr>,
    queue: VecDeque<Bytes>,
    input_ended: bool,
    /// The end of input, or of whoever takes it, was passed on.
    shut: bool,
    output_ended: bool,
}

impl Dial {
    /// Begins to connect: to IPv4's loopback address, and if nobody listens there, to
    /// IPv6's.
    pub(super) fn start(stream: StreamId, port: u16) -> Result<Dial, StreamEvent> {
        let second = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let begun = match connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(socket) => Ok((socket, Some(second))),
            Err(Errno::CONNREFUSED) => connect(second).map(|socket| (socket, None)),
            Err(errno) => Err(errno),
        };
        let (socket, second) = begun.map_err(failed)?;
        Ok(Dial {
            stream,
            socket,
            connected: false,
            second,
            queue: VecDeque::new(),
            input_ended: false,
            shut: false,
            output_ended: false,
        })
    }

    /// What it waits for, if anything. Output is wanted where there is credit for it.
    pub(super) fn waiting(&self, output: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, !self.connected || !self.queue.is_empty());
        flags.set(
            PollFlags::IN,
            self.connected && !self.output_ended && output,
        );
        (!flags.is_empty()).then(|| (self.socket.as_fd(), flags))
    }

    /// Takes input from the host.
    pub(super) fn take_input(&mut self, data: Bytes, endpoint: &mut GuestEndpoint) {
        if self.shut {
            endpoint.consumed(self.stream, data.len());
        } else {
            self.queue.push_back(data);
        }
    }

    /// Notes that the host has sent all input.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
    }

    /// Moves what can be moved; `false` when the stream is over, which was reported.
    pub(super) fn turn(&mut self, buffer: &mut [u8], endpoint: &mut GuestEndpoint) -> bool {
        // Events fail for streams that are over only, and then nobody waits for them.
        if !self.connected {
            match self.outcome() {
                Ok(true) => {
                    self.connected = true;
                    let _ = endpoint.event(self.stream, &StreamEvent::Connected);
                }
                Ok(false) => return true,
                Err(errno) => {
                    let _ = endpoint.event(self.stream, &failed(errno));
                    return false;
                }
            }
        }
        if self.pump(buffer, endpoint).is_err() {
            endpoint.reset(self.stream, ResetCode::Other);
            return false;
        }
        if self.shut && self.output_ended {
            let _ = endpoint.event(self.stream, &StreamEvent::HungUp);
            return false;
        }
        true
    }

    /// Tells whether the connection is there by now.
    fn outcome(&mut self) -> Result<bool, Errno> {
        match sockopt::socket_error(&self.socket)? {
            Ok(()) => {}
            Err(Errno::CONNREFUSED) => match self.second.take() {
                Some(second) => self.socket = connect(second)?,
                None => return Err(Errno::CONNREFUSED),
            },
            Err(errno) => return Err(errno),
        }
        match rustix::net::getpeername(&self.socket) {
            Ok(_) => Ok(true),
            Err(Errno::NOTCONN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn pump(&mut self, buffer: &mut [u8], endpoint: &mut GuestEndpoint) -> Result<(), Errno> {
        while let Some(data) = self.queue.front_mut() {
            match rustix::net::send(&self.socket, data, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    data.advance(n);
                    endpoint.consumed(self.stream, n);
                    if data.is_empty() {
                        self.queue.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        if self.input_ended && self.queue.is_empty() && !self.shut {
            self.shut = true;
            // A peer that is gone is noticed by reading.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
        let room = endpoint.capacity(self.stream, Channel::Stdout);
        let room = room.min(buffer.len());
        if self.output_ended || room == 0 {
            return Ok(());
        }
        match rustix::net::recv(&self.socket, &mut buffer[..room], RecvFlags::empty()) {
            Ok((0, _)) => {
                self.output_ended = true;
                let _ = endpoint.finish(self.stream, Channel::Stdout);
            }
            // There is credit for all of it.
            Ok((n, _)) => drop(endpoint.send(self.stream, Channel::Stdout, &buffer[..n])),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// The host gave it up: whoever serves it sees a reset.
    pub(super) fn abandon(self) {
        let _ = sockopt::set_socket_linger(&self.socket, Some(std::time::Duration::ZERO));
    }
}

fn failed(errno: Errno) -> StreamEvent {
    StreamEvent::NotConnected(WireErrno(errno.raw_os_error()))
}

fn connect(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}
