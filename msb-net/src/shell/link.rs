//! Where the guest's frames come from and go to.
//!
//! | link | unit of one system call | spoken by |
//! |---|---|---|
//! | stream socket | any number of frames, each behind its length (32 bits, big-endian) | QEMU `-netdev stream`, libkrun, passt's clients |
//! | datagram socket | one frame | libkrun's unixgram, vfkit |
//! | TAP | one frame, without packet information; with an offload header or without | every VMM, and a kernel's own stack |
//!
//! A stream that does not keep to its framing cannot be read any further, so it
//! ends. A link holds a bounded number of frames on their way to the guest; while
//! it is full nobody asks the gateway for more.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::io::Errno;

/// The largest frame: an IP packet of 65,520 bytes behind Ethernet and VLAN
/// headers, rounded up to what a 16-bit length can say.
pub const MAX_FRAME: usize = 65_535;

/// What is read in one system call: some frames of the largest size.
const INPUT: usize = 4 * (MAX_FRAME + LENGTH);

/// Frames read before what they caused is looked after, and their bytes: enough
/// to share the cost, few enough to keep the answers quick.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 512 * 1024;

/// Frames that may wait for the guest, and their bytes: one write's worth.
const MAX_QUEUED: usize = 64;
const MAX_QUEUED_BYTES: usize = 512 * 1024;

/// The length in front of each frame on a stream.
const LENGTH: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stream,
    Datagram,
    Tap,
}

/// A guest's network card, seen from the host: a stream socket, a datagram socket, or a TAP device.
#[derive(Debug)]
pub struct Link {
    kind: Kind,
    fd: OwnedFd,
    /// Frames have an offload header in front.
    pub(super) offload: bool,
}

impl Link {
    /// A connected stream socket.
    pub fn stream(socket: UnixStream) -> Self {
        Self {
            kind: Kind::Stream,
            fd: socket.into(),
            offload: false,
        }
    }

    /// A connected datagram socket.
    pub fn datagram(socket: UnixDatagram) -> Self {
        Self {
            kind: Kind::Datagram,
            fd: socket.into(),
            offload: false,
        }
    }

    /// An open TAP device (`IFF_TAP | IFF_NO_PI`).
    pub const fn tap(device: OwnedFd) -> Self {
        Self {
            kind: Kind::Tap,
            fd: device,
            offload: false,
        }
    }

    /// An open TAP device with offload headers (`IFF_TAP | IFF_NO_PI |
    /// IFF_VNET_HDR`), whose owner has set `TUN_F_CSUM`, and `TUN_F_TSO4` and
    /// `TUN_F_TSO6` if segments are to be large: several times faster than
    /// [`tap`](Self::tap) where the MTU is small.
    pub const fn tap_with_offload(device: OwnedFd) -> Self {
        Self {
            kind: Kind::Tap,
            fd: device,
            offload: true,
        }
    }
}

/// Whether there may be more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing until the descriptor is ready again.
    Idle,
    /// The budget was used up.
    More,
    /// The other side is gone, or does not keep to the framing.
    Ended,
}

/// A link at work.
pub(super) struct Port {
    kind: Kind,
    fd: OwnedFd,
    /// The descriptor may have something to read, or take something.
    pub(super) readable: bool,
    pub(super) writable: bool,
    input: Vec<u8>,
    /// What of `input` was read and not yet taken.
    start: usize,
    end: usize,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// How much of the first frame, its length included, was written.
    written: usize,
    spare: Vec<Vec<u8>>,
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Port {
    pub(super) fn new(link: Link) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&link.fd, true)?;
        Ok(Self {
            kind: link.kind,
            fd: link.fd,
            readable: true,
            writable: true,
            input: vec![0; INPUT],
            start: 0,
            end: 0,
            queue: VecDeque::new(),
            queued: 0,
            written: 0,
            spare: Vec::new(),
        })
    }

    /// Reads frames and hands them to `take`, up to a budget.
    pub(super) fn receive(&mut self, take: impl FnMut(&[u8])) -> Progress {
        match self.kind {
            Kind::Stream => self.receive_stream(take),
            Kind::Datagram | Kind::Tap => self.receive_frames(take),
        }
    }

    fn receive_frames(&mut self, mut take: impl FnMut(&[u8])) -> Progress {
        let mut bytes = 0;
        for _ in 0..BATCH {
            match rustix::io::read(&self.fd, &mut self.input[..]) {
                // A TAP has no end; an empty datagram is what a closed peer leaves.
                Ok(0) => return Progress::Ended,
                Ok(length) => {
                    take(&self.input[..length]);
                    bytes += length;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Progress::Idle;
                }
                Err(_) => return Progress::Ended,
            }
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Progress::More
    }

    fn receive_stream(&mut self, mut take: impl FnMut(&[u8])) -> Progress {
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            match rustix::io::read(&self.fd, &mut self.input[self.end..]) {
                Ok(0) => return Progress::Ended,
                Ok(length) => {
                    self.end += length;
                    bytes += length;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Progress::Idle;
                }
                Err(_) => return Progress::Ended,
            }
            let waiting = &self.input[self.start..self.end];
            let Some(taken) = split(waiting, &mut take) else {
                return Progress::Ended;
            };
            self.start += taken;
            // What is left is less than a frame: moving it costs little, and
            // there is room for several more behind it.
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        Progress::More
    }

    /// Tells whether another frame can be queued.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED && self.queued < MAX_QUEUED_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues a frame; leaves an old one's memory in its place.
    pub(super) fn push(&mut self, frame: &mut Vec<u8>) {
        let spare = self.spare.pop().unwrap_or_default();
        let frame = std::mem::replace(frame, spare);
        self.queued += frame.len();
        self.queue.push_back(frame);
    }

    /// Writes what is queued, as far as the other side takes it.
    pub(super) fn flush(&mut self) -> Progress {
        while self.writable && !self.queue.is_empty() {
            let result = match self.kind {
                Kind::Stream => self.write_stream(),
                Kind::Datagram | Kind::Tap => rustix::io::write(&self.fd, &self.queue[0]),
            };
            match (result, self.kind) {
                (Ok(length), Kind::Stream) => self.advance(length),
                (Ok(_), _) => self.drop_first(),
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), _) => self.writable = false,
                // The kernel is short of memory: a frame is lost, as on any wire.
                (Err(Errno::NOBUFS | Errno::NOMEM | Errno::MSGSIZE), _) => self.drop_first(),
                // The interface is down; or the kernel finds no sense in the frame,
                // which the guest has had a part in: what size its segments have.
                (Err(Errno::IO | Errno::INVAL), Kind::Tap) => self.drop_first(),
                (Err(_), _) => return Progress::Ended,
            }
        }
        Progress::Idle
    }

    fn write_stream(&self) -> rustix::io::Result<usize> {
        let lengths: [[u8; LENGTH]; MAX_QUEUED] = std::array::from_fn(|index| {
            let length = self.queue.get(index).map_or(0, Vec::len);
            (length as u32).to_be_bytes()
        });
        let mut parts = [IoSlice::new(&[]); 2 * MAX_QUEUED];
        let mut skip = self.written;
        for (index, frame) in self.queue.iter().enumerate() {
            for (part, bytes) in [&lengths[index][..], frame].into_iter().enumerate() {
                let skipped = skip.min(bytes.len());
                skip -= skipped;
                parts[2 * index + part] = IoSlice::new(&bytes[skipped..]);
            }
        }
        rustix::io::writev(&self.fd, &parts[..2 * self.queue.len()])
    }

    /// Drops what was written of the queue.
    fn advance(&mut self, length: usize) {
        self.written += length;
        while let Some(first) = self.queue.front() {
            let whole = first.len() + LENGTH;
            if self.written < whole {
                break;
            }
            self.written -= whole;
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(frame) = self.queue.pop_front() {
            self.queued -= frame.len();
            if self.spare.len() < MAX_QUEUED {
                self.spare.push(frame);
            }
        }
    }
}

/// Hands whole frames to `take` and returns how many bytes they were; `None` when
/// a length is impossible.
fn split(mut bytes: &[u8], mut take: impl FnMut(&[u8])) -> Option<usize> {
    let whole = bytes.len();
    while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return None;
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else {
            break;
        };
        take(frame);
        bytes = rest;
    }
    Some(whole - bytes.len())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn pair() -> (Port, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Port::new(Link::stream(ours)).unwrap(), theirs)
    }

    fn frame(length: usize, byte: u8) -> Vec<u8> {
        vec![byte; length]
    }

    #[test]
    fn frames_are_put_together_from_any_pieces() {
        let (mut port, mut theirs) = pair();
        let mut stream = Vec::new();
        let sizes = [60, 0, 1514, MAX_FRAME, 1];
        for (byte, size) in sizes.iter().enumerate() {
            stream.extend_from_slice(&(*size as u32).to_be_bytes());
            stream.extend_from_slice(&frame(*size, byte as u8));
        }
        let mut seen = Vec::new();
        for piece in stream.chunks(997) {
            theirs.write_all(piece).unwrap();
            port.readable = true;
            assert_eq!(
                port.receive(|frame| seen.push(frame.to_vec())),
                Progress::Idle
            );
        }
        let expected: Vec<_> = (0..5).map(|i| frame(sizes[i], i as u8)).collect();
        assert_eq!(seen, expected);
        drop(theirs);
        assert_eq!(port.receive(|_| panic!("no more frames")), Progress::Ended);
    }

    #[test]
    fn an_impossible_length_ends_the_link() {
        let (mut port, mut theirs) = pair();
        theirs.write_all(&[0, 1, 0, 0]).unwrap();
        assert_eq!(port.receive(|_| panic!("no frame")), Progress::Ended);
    }

    #[test]
    fn what_the_guest_does_not_take_is_kept_and_bounded() {
        let (mut port, mut theirs) = pair();
        let mut expected = Vec::new();
        let mut count = 0;
        while port.has_room() {
            count += 1;
            let mut next = frame(20_000, count as u8);
            expected.extend_from_slice(&20_000u32.to_be_bytes());
            expected.extend_from_slice(&next);
            port.push(&mut next);
            assert_eq!(port.flush(), Progress::Idle);
        }
        assert!(!port.writable && !port.is_empty());
        let mut got = vec![0; expected.len()];
        let reader = std::thread::spawn(move || {
            theirs.read_exact(&mut got).unwrap();
            got
        });
        while !port.is_empty() {
            port.writable = true;
            port.flush();
            std::thread::yield_now();
        }
        assert!(reader.join().unwrap() == expected, "bytes in order");
    }

    #[test]
    fn a_datagram_is_a_frame() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut port = Port::new(Link::datagram(ours)).unwrap();
        theirs.send(&frame(60, 1)).unwrap();
        theirs.send(&frame(MAX_FRAME, 2)).unwrap();
        let mut seen = Vec::new();
        assert_eq!(port.receive(|f| seen.push(f.to_vec())), Progress::Idle);
        assert_eq!(seen, [frame(60, 1), frame(MAX_FRAME, 2)]);
        port.push(&mut frame(99, 3));
        assert_eq!(port.flush(), Progress::Idle);
        let mut got = [0; 200];
        assert_eq!(theirs.recv(&mut got).unwrap(), 99);
    }
}
