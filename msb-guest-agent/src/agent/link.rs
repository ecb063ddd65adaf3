//! The agent's end of the link: a console port, or in tests any stream socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// A non-blocking byte stream to the host.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Link {
    /// Takes over a descriptor.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Link> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Link { fd })
    }

    /// Reads what can be read now; `None`: the host is not there any more.
    pub(super) fn read<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => Ok(None),
            Ok(n) => Ok(Some(&buffer[..n])),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Some(&[])),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes what can be written now and says how much that was.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(&self.fd, bytes) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes everything, waiting as long as the host is there.
    pub(super) fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.write(bytes)?;
            bytes = &bytes[n..];
            if n == 0 {
                self.wait(PollFlags::OUT)?;
            }
        }
        Ok(())
    }

    /// Waits until the link is ready for `events`; `false`: the host is gone.
    pub(super) fn wait(&self, events: PollFlags) -> io::Result<bool> {
        loop {
            let mut fds = [PollFd::new(&self.fd, events)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let ready = fds[0].revents();
            if ready.intersects(events) {
                return Ok(true);
            }
            if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Ok(false);
            }
        }
    }

    /// Waits until the host has opened its side of the port.
    ///
    /// An unconnected port is in hang-up state all the time, so it is the
    /// change that must be waited for: edge-triggered epoll.
    pub(super) fn wait_connected(&self) -> io::Result<()> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&set, &self.fd, epoll::EventData::new_u64(0), interest)?;
        let mut events = Vec::with_capacity(1);
        loop {
            events.clear();
            match epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let gone = |event: &epoll::Event| {
                let flags = event.flags;
                flags.contains(epoll::EventFlags::HUP)
            };
            if !events.iter().any(gone) {
                return Ok(());
            }
        }
    }

    /// Waits until the host has taken what was written: console ports return
    /// from a blocking write only then.
    pub(super) fn set_blocking(&self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.fd)?;
        rustix::fs::fcntl_setfl(&self.fd, flags - OFlags::NONBLOCK)?;
        Ok(())
    }
}
