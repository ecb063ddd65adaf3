//! Upstream UDP: one connected socket per flow, so that the kernel lets in only
//! what comes from the far end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};

use super::failures;
use super::stream::Turn;
use super::way::Way;
use crate::gateway::{FlowId, Gateway, Handling};

/// Datagrams one flow may bring before the next one has its turn.
const BUDGET: usize = 32;

pub(super) struct Datagram {
    fd: OwnedFd,
    way: Way,
    /// There may be messages about what did not arrive.
    pub(super) failed: bool,
    pub(super) readable: bool,
    /// The flow is in the driver's list of work.
    pub(super) waiting: bool,
}

impl Datagram {
    pub(super) fn new(fd: OwnedFd) -> Self {
        failures::watch(&fd);
        Self {
            fd,
            way: Way::default(),
            failed: false,
            readable: false,
            waiting: false,
        }
    }

    /// Sends one datagram. What the socket does not take is lost, as anywhere on
    /// the way; an error that an earlier one caused is reported once and does not
    /// keep this one back.
    pub(super) fn send(&mut self, handling: Handling, payload: &[u8]) -> Result<(), Errno> {
        self.way.prepare(&self.fd, handling);
        let mut result = Ok(());
        for _ in 0..2 {
            match net::send(&self.fd, payload, SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => break,
                Err(error @ Errno::CONNREFUSED) => result = Err(error),
                Err(error) => return Err(error),
            }
        }
        result
    }

    /// Passes on what came; `buffer` holds the largest datagram.
    pub(super) fn turn(
        &mut self,
        now: Duration,
        id: FlowId,
        gateway: &mut Gateway,
        buffer: &mut [u8],
    ) -> Turn {
        for _ in 0..BUDGET {
            while self.failed {
                match failures::next(&self.fd, buffer) {
                    Some(failure) => {
                        let quoted = &buffer[..failure.quoted];
                        gateway.path_failed(now, id, failure.error, failure.from, quoted);
                    }
                    None => self.failed = false,
                }
            }
            match net::recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((_, length)) => gateway.datagram(now, id, &buffer[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Turn::Idle;
                }
                // The error is taken off the socket; what it was is in the queue, and
                // more datagrams may follow.
                Err(_) => {
                    self.failed = true;
                    gateway.datagram_failed(now, id);
                }
            }
        }
        Turn::Again
    }
}
