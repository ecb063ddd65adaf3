//! Echo requests of a flow, through a socket that needs no privileges.
//!
//! Read icmp(7): the kernel sets identifier and checksum, and lets in only replies
//! to what this socket asked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};

use super::failures;
use super::stream::Turn;
use super::way::Way;
use crate::gateway::{FlowId, Gateway, Handling};

/// Replies one flow may bring before the next one has its turn.
const BUDGET: usize = 32;

/// The length of the header of an echo message.
const HEADER: usize = 8;

const REQUEST_V4: u8 = 8;
const REQUEST_V6: u8 = 128;

pub(super) struct Ping {
    fd: OwnedFd,
    kind: u8,
    way: Way,
    /// The flow is in the driver's list of work.
    pub(super) waiting: bool,
}

impl AsFd for Ping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Ping {
    pub(super) fn new(fd: OwnedFd, to: std::net::IpAddr) -> Self {
        failures::watch(&fd);
        Self {
            fd,
            kind: if to.is_ipv4() { REQUEST_V4 } else { REQUEST_V6 },
            way: Way::default(),
            waiting: false,
        }
    }

    /// Sends one request. What the socket does not take is lost, as anywhere on
    /// the way; an error of an earlier one does not keep this one back.
    pub(super) fn send(&mut self, handling: Handling, sequence: u16, payload: &[u8]) {
        self.way.prepare(&self.fd, handling);
        let mut message = vec![self.kind, 0, 0, 0, 0, 0];
        message.extend_from_slice(&sequence.to_be_bytes());
        message.extend_from_slice(payload);
        if net::send(&self.fd, &message, SendFlags::NOSIGNAL).is_err() {
            let _ = net::send(&self.fd, &message, SendFlags::NOSIGNAL);
        }
    }

    /// Passes on what came.
    pub(super) fn turn(
        &mut self,
        now: Duration,
        id: FlowId,
        gateway: &mut Gateway,
        buffer: &mut [u8],
    ) -> Turn {
        for _ in 0..BUDGET {
            if let Some(failure) = failures::next(&self.fd, buffer) {
                // The quoted message is the request, its header included.
                if let Some(quoted) = buffer.get(HEADER - 2..failure.quoted) {
                    gateway.path_failed(now, id, failure.error, failure.from, quoted);
                }
                continue;
            }
            match net::recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((_, length)) => {
                    if let Some(&[high, low]) = buffer[..length].get(HEADER - 2..HEADER) {
                        let sequence = u16::from_be_bytes([high, low]);
                        gateway.echo_reply(now, id, sequence, &buffer[HEADER..length]);
                    }
                }
                Err(Errno::AGAIN) => return Turn::Idle,
                // Taken off the socket; more may follow.
                Err(_) => {}
            }
        }
        Turn::Again
    }
}
