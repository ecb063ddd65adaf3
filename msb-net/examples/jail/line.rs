//! What the two sides say to each other: short messages, some with a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The longest message: an error with a path in it.
const MAX_MESSAGE: usize = 8192;

/// One end of the line.
pub(crate) struct Line(OwnedFd);

/// A message and the descriptor that came with it.
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) descriptor: Option<OwnedFd>,
}

impl Line {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) =
            net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(one), Self(other)))
    }

    /// The end that is standard input now.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        Ok(Self(rustix::io::fcntl_dupfd_cloexec(
            rustix::stdio::stdin(),
            3,
        )?))
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    pub(crate) fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut extra = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if !descriptors.is_empty() {
            // There is space for exactly one.
            extra.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let parts = [IoSlice::new(text.as_bytes())];
        net::sendmsg(self.0.as_fd(), &parts, &mut extra, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for the next message; `None` when the other side is gone.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut extra = RecvAncillaryBuffer::new(&mut space);
        let mut text = vec![0; MAX_MESSAGE];
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = net::recvmsg(self.0.as_fd(), &mut parts, &mut extra, flags)?.bytes;
        if length == 0 {
            return Ok(None);
        }
        let descriptor = extra.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        text.truncate(length);
        let text = String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Some(Message { text, descriptor }))
    }
}
