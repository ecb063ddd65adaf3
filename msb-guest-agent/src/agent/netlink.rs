//! Talking to the kernel by netlink: requests, and what it answers.
//!
//! The structures are those of `include/uapi/linux/netlink.h`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Length of `struct nlmsghdr`, and where what it announces begins.
const HEADER: usize = 16;

/// The most that the kernel puts into one piece of a list, for whoever has room for it.
const MAX_PIECE: usize = 32 << 10;

/// A connection to a part of the kernel.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Netlink {
    /// Opens one to the part `protocol`.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Netlink> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
        // To nobody else: a workload with rights could answer in the kernel's place.
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Netlink(socket))
    }

    /// Sends a request and takes the answer, which is "done" or "no".
    pub(super) fn ask(&self, request: Request) -> io::Result<()> {
        self.send(request)?;
        let mut answer = [0; 256];
        let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        refusal(&answer[..length])
    }

    /// Sends a request for a list, and passes each entry of `kind` on.
    pub(super) fn list(
        &self,
        request: Request,
        kind: u16,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.send(request.also(libc::NLM_F_DUMP as u16))?;
        let mut piece = vec![0; MAX_PIECE];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut piece[..], RecvFlags::empty())?;
            let mut rest = &piece[..length];
            while let Some((found, entry)) = next(&mut rest)? {
                match i32::from(found) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return outcome(entry),
                    _ if found == kind => each(entry)?,
                    _ => {}
                }
            }
        }
    }

    fn send(&self, request: Request) -> io::Result<()> {
        rustix::net::send(&self.0, &request.finish(), SendFlags::empty())?;
        Ok(())
    }
}

/// Takes the kind and the content of the first message off; `None` at the end.
fn next<'a>(rest: &mut &'a [u8]) -> io::Result<Option<(u16, &'a [u8])>> {
    let all = *rest;
    if all.is_empty() {
        return Ok(None);
    }
    let header = all.get(..HEADER).ok_or(io::ErrorKind::InvalidData)?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let content = all.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
    *rest = all.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok(Some((u16::from_ne_bytes([header[4], header[5]]), content)))
}

/// What an answer to a request says, which may be that all went well.
fn refusal(mut answer: &[u8]) -> io::Result<()> {
    match next(&mut answer)? {
        Some((kind, said)) if i32::from(kind) == libc::NLMSG_ERROR => outcome(said),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// What an `NLMSG_ERROR` says, or an `NLMSG_DONE`: an error, negative, or none.
fn outcome(said: &[u8]) -> io::Result<()> {
    let errno = said.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes(*errno).wrapping_neg() {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A message being written: header, structure, attributes, each at a multiple of
/// four bytes.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(kind: u16, structure: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(structure);
        Request(bytes)
    }

    /// Adds flags to the header.
    pub(super) fn also(mut self, flags: u16) -> Request {
        for (byte, more) in self.0[6..8].iter_mut().zip(flags.to_ne_bytes()) {
            *byte |= more;
        }
        self
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Request {
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: i32, content: &[u8]) -> Vec<u8> {
        Request::new(kind as u16, content).finish()
    }

    #[test]
    fn messages_are_taken_off_one_by_one() {
        let mut all = message(20, b"entry");
        all.resize(all.len().next_multiple_of(4), 0);
        all.extend(message(libc::NLMSG_DONE, &[]));
        let mut rest = &all[..];
        assert_eq!(next(&mut rest).unwrap(), Some((20, &b"entry"[..])));
        let done = libc::NLMSG_DONE as u16;
        assert_eq!(next(&mut rest).unwrap(), Some((done, &[][..])));
        assert_eq!(next(&mut rest).unwrap(), None);
    }

    #[test]
    fn other_answers_are_no_success() {
        for bytes in [&[][..], &[0; 15], &[0; 20], &[2, 0, 0, 0, 2, 0]] {
            assert!(refusal(bytes).is_err(), "{bytes:?}");
        }
        let error = |errno: i32| refusal(&message(libc::NLMSG_ERROR, &errno.to_ne_bytes()));
        assert!(error(0).is_ok());
        for errno in [-libc::EPERM, 1, i32::MIN, i32::MAX] {
            assert!(error(errno).is_err());
        }
        assert!(outcome(&[0; 3]).is_err());
        let mut long = message(libc::NLMSG_ERROR, &[0; 4]);
        long[0] = 255;
        assert!(refusal(&long).is_err());
    }

    /// With rights that is a matter of the receiver; without, nobody may.
    #[test]
    fn nobody_answers_in_the_kernels_place() {
        let netlink = Netlink::open(None).unwrap();
        let own = rustix::net::getsockname(&netlink.0).unwrap();
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let other = rustix::net::socket(family, kind, None).unwrap();
        let done = message(libc::NLMSG_ERROR, &[0; 4]);
        let sent = rustix::net::sendto(&other, &done, SendFlags::empty(), &own);
        assert!(sent.is_err(), "{sent:?}");
    }

    /// The kernel's own list, which has at least the loopback card.
    #[test]
    fn a_list_is_read_to_its_end() {
        let netlink = Netlink::open(None).unwrap();
        let mut found = 0;
        let request = Request::new(libc::RTM_GETLINK, &[0; 16]);
        let count = |entry: &[u8]| {
            assert!(entry.len() > 16);
            found += 1;
            Ok(())
        };
        netlink.list(request, libc::RTM_NEWLINK, count).unwrap();
        assert!(found > 0);
    }
}
