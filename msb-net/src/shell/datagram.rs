//! Upstream UDP: one connected socket per flow, so that the kernel lets in only
//! what comes from the far end.

use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};

use super::failures;
use super::stream::Turn;
use super::way::Way;
use crate::gateway::{Datagrams, FlowId, Gateway, Handling};

/// Datagrams one flow may bring before the next one has its turn.
const BUDGET: usize = 32;

pub(super) struct Datagram {
    fd: OwnedFd,
    way: Way,
    /// The kernel cuts several apart that it is given at once; `None` if nobody asked.
    together: Option<bool>,
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
            together: None,
            failed: false,
            readable: false,
            waiting: false,
        }
    }

    /// Sends datagrams. What the socket does not take is lost, as anywhere on
    /// the way; an error that an earlier one caused is reported once and does not
    /// keep the next one back.
    pub(super) fn send(&mut self, handling: Handling, all: &Datagrams) -> Result<(), Errno> {
        self.way.prepare(&self.fd, handling);
        if all.count() == 1 {
            return self.send_one(all.bytes());
        }
        let mut result = Ok(());
        if self.may_send_together() {
            match self.send_together(all) {
                Ok(()) | Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(()),
                // What an earlier one caused. These were not looked at.
                Err(error @ Errno::CONNREFUSED) => result = Err(error),
                // Nothing was sent. One is larger than the way takes in one piece, or the
                // way has no use for several at once: one by one they may go.
                Err(_) => self.together = Some(false),
            }
        }
        for datagram in all.iter() {
            let sent = self.send_one(datagram);
            result = result.and(sent);
        }
        result
    }

    /// Tells whether the socket knows of several at once. One that does not would take them
    /// for one: a kernel's before 4.18, and an embedding program's that is none of UDP.
    fn may_send_together(&mut self) -> bool {
        let knows = || getsockopt(&self.fd, sockopt::UdpGsoSegment).is_ok();
        *self.together.get_or_insert_with(knows)
    }

    /// Sends several in one call (udp(7), UDP_SEGMENT).
    fn send_together(&self, all: &Datagrams) -> Result<(), Errno> {
        // It is a part of a datagram's length.
        let size = u16::try_from(all.size()).map_err(|_| Errno::MSGSIZE)?;
        let parts = [IoSlice::new(all.bytes())];
        let control = [ControlMessage::UdpGsoSegments(&size)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.fd.as_raw_fd(), &parts, &control, flags, None) {
            Ok(_) => Ok(()),
            Err(error) => Err(Errno::from_raw_os_error(error as i32)),
        }
    }

    fn send_one(&self, payload: &[u8]) -> Result<(), Errno> {
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// Forty of 1,000 bytes and a smaller one.
    fn several() -> (Datagrams, Vec<Vec<u8>>) {
        let each: Vec<_> = (0..41)
            .map(|index| vec![index; if index == 40 { 10 } else { 1000 }])
            .collect();
        let mut all = Datagrams::one(each[0].clone());
        for datagram in &each[1..] {
            assert!(all.push(datagram));
        }
        (all, each)
    }

    #[test]
    fn several_arrive_as_they_were() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let receiver = UdpSocket::bind(address).unwrap();
            let sender = UdpSocket::bind(address).unwrap();
            sender.connect(receiver.local_addr().unwrap()).unwrap();
            let mut sender = Datagram::new(sender.into());
            let (all, each) = several();
            sender.send(Handling::default(), &all).unwrap();
            assert_eq!(sender.together, Some(true), "this kernel takes them");
            let mut buffer = [0; 2000];
            for expected in each {
                let length = receiver.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], expected);
            }
        }
    }

    /// A socket of another kind would take them for one datagram.
    #[test]
    fn a_socket_that_is_none_of_udp_gets_them_one_by_one() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let mut sender = Datagram::new(sender.into());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            let mut next = || {
                receiver
                    .recv(&mut buffer)
                    .map(|length| buffer[..length].to_vec())
            };
            (0..41).map(|_| next().unwrap()).collect::<Vec<_>>()
        });
        let (all, each) = several();
        sender.send(Handling::default(), &all).unwrap();
        assert_eq!(reader.join().unwrap(), each);
    }

    #[test]
    fn several_that_nobody_receives_are_told_of_once_and_the_next_are_sent() {
        // An address of its own: nobody takes the port meanwhile.
        let receiver = UdpSocket::bind("127.83.71.9:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        sender.connect(to).unwrap();
        drop(receiver);
        let mut sender = Datagram::new(sender.into());
        let (all, each) = several();
        assert_eq!(sender.send(Handling::default(), &all), Ok(()));
        let receiver = UdpSocket::bind(to).unwrap();
        // The kernel says so soon, if not at once.
        while sender.send(Handling::default(), &all) != Err(Errno::CONNREFUSED) {
            std::thread::yield_now();
        }
        let mut buffer = [0; 2000];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], each[0]);
    }
}
