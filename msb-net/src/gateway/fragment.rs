//! Packets in pieces, and IPv6 packets with headers in between: made whole before
//! anybody judges them.
//!
//! Read RFC 791, 3.2; RFC 8200, 4; RFC 5722 for why pieces must not overlap: the
//! receiver could put them together otherwise than we did. A packet of which two
//! pieces overlap is dropped, with all pieces that follow. A piece that merely came
//! twice does no harm.
//!
//! Extension headers tell routers and hosts how to treat a packet. The upstream's
//! packets are made anew, so that options end here; a routing header would be a way
//! around the destination that was judged, and is refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use smoltcp::wire::{EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::event::DropReason;

/// Packets that may be incomplete at once; one more pushes out the oldest.
const MAX_PACKETS: usize = 64;

/// Bytes of them together.
const MAX_BYTES: usize = 1024 * 1024;

/// Pieces of one packet: the largest in pieces of the smallest usual size, 552.
const MAX_PIECES: usize = 128;

/// How long the missing pieces may take (RFC 791).
const PATIENCE: Duration = Duration::from_secs(15);

/// Extension headers in front of what counts.
const MAX_EXTENSIONS: usize = 8;

const V6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;

/// What the pieces of one packet have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    /// Of IPv6 packets, the protocol is not part of it.
    protocol: Option<IpProtocol>,
    ident: u32,
}

/// A piece.
struct Piece<'a> {
    key: Key,
    /// What stands in front of the payload in the whole packet.
    header: &'a [u8],
    protocol: IpProtocol,
    start: usize,
    more: bool,
    payload: &'a [u8],
}

/// A packet of which some pieces came.
struct Partial {
    since: Duration,
    /// Of the first piece, once it came.
    header: Option<(Vec<u8>, IpProtocol)>,
    payload: Vec<u8>,
    /// Which bytes of `payload` came, in order.
    pieces: Vec<(usize, usize)>,
    whole: Option<usize>,
    /// Two pieces overlapped.
    refused: bool,
}

/// Packets that are not complete.
#[derive(Default)]
pub(crate) struct Fragments {
    partial: HashMap<Key, Partial>,
    bytes: usize,
}

impl Fragments {
    /// Takes a packet that is a piece, or has extension headers. Returns a plain
    /// packet when there is a whole one. `own` says which addresses may send.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        kind: EthernetProtocol,
        bytes: &[u8],
        own: impl Fn(IpAddr) -> bool,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let piece = match kind {
            EthernetProtocol::Ipv4 => piece_v4(bytes)?,
            _ => match strip(bytes)? {
                Stripped::Whole(packet) => return Ok(Some(packet)),
                Stripped::Piece(piece) => piece,
            },
        };
        // What nobody may send is not kept either.
        if !own(piece.key.source) {
            return Err(DropReason::SpoofedAddress);
        }
        if piece.start == 0 && !piece.more {
            // Alone it is the whole packet, whatever else has its number (RFC 6946).
            return whole(piece.header, piece.protocol, piece.payload).map(Some);
        }
        let end = piece.start + piece.payload.len();
        let uneven = piece.more && !piece.payload.len().is_multiple_of(8);
        if uneven || piece.payload.is_empty() || end > usize::from(u16::MAX) {
            return Err(DropReason::Malformed);
        }
        self.add(now, &piece)
    }

    /// Forgets packets whose pieces took too long; returns how many.
    pub(crate) fn expire(&mut self, now: Duration) -> u64 {
        let before = self.partial.len();
        self.partial
            .retain(|_, partial| now.saturating_sub(partial.since) < PATIENCE);
        let gone = before - self.partial.len();
        if gone > 0 {
            self.bytes = self
                .partial
                .values()
                .map(|partial| partial.payload.len())
                .sum();
        }
        gone as u64
    }

    /// Returns when [`expire`](Self::expire) must be called. Looks at all of them,
    /// of which there are few.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        let since = self.partial.values().map(|partial| partial.since).min()?;
        Some(since + PATIENCE)
    }

    /// Returns how many packets are incomplete, and their bytes.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.partial.len(), self.bytes)
    }

    fn add(&mut self, now: Duration, piece: &Piece<'_>) -> Result<Option<Vec<u8>>, DropReason> {
        let mut pushed_out = Ok(None);
        if !self.partial.contains_key(&piece.key) && self.partial.len() >= MAX_PACKETS {
            self.push_out();
            pushed_out = Err(DropReason::Incomplete);
        }
        let partial = self.partial.entry(piece.key).or_insert_with(|| Partial {
            since: now,
            header: None,
            payload: Vec::new(),
            pieces: Vec::new(),
            whole: None,
            refused: false,
        });
        if partial.refused {
            return Err(DropReason::Overlap);
        }
        let before = partial.payload.len();
        let added = partial.add(piece);
        self.bytes = self.bytes - before + partial.payload.len();
        added?;
        if let (Some((header, protocol)), true) = (&partial.header, partial.is_whole()) {
            let packet = whole(header, *protocol, &partial.payload);
            self.remove(&piece.key);
            return packet.map(Some);
        }
        while self.bytes > MAX_BYTES {
            self.push_out();
            pushed_out = Err(DropReason::Incomplete);
        }
        pushed_out
    }

    fn push_out(&mut self) {
        let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.since);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(partial) = self.partial.remove(key) {
            self.bytes -= partial.payload.len();
        }
    }
}

impl Partial {
    fn add(&mut self, piece: &Piece<'_>) -> Result<(), DropReason> {
        let (start, end) = (piece.start, piece.start + piece.payload.len());
        let index = self.pieces.partition_point(|(other, _)| *other < start);
        if self.pieces.get(index) == Some(&(start, end))
            && self.payload[start..end] == *piece.payload
            && (piece.more || self.whole == Some(end))
            && (!piece.more || self.whole != Some(end))
        {
            return Ok(());
        }
        let before = index.checked_sub(1).map_or(0, |index| self.pieces[index].1);
        let after = self.pieces.get(index).map_or(usize::MAX, |piece| piece.0);
        let last = self.pieces.last().map_or(0, |piece| piece.1);
        let beyond = match (self.whole, piece.more) {
            // The last piece says where the packet ends, and only one does.
            (Some(_), false) => true,
            (Some(whole), true) => end > whole,
            (None, false) => last > end,
            (None, true) => false,
        };
        if start < before || end > after || beyond || self.pieces.len() >= MAX_PIECES {
            self.refuse();
            return Err(DropReason::Overlap);
        }
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        self.payload[start..end].copy_from_slice(piece.payload);
        self.pieces.insert(index, (start, end));
        if !piece.more {
            self.whole = Some(end);
        }
        if start == 0 {
            self.header = Some((piece.header.to_vec(), piece.protocol));
        }
        Ok(())
    }

    /// Keeps only the memory that it is refused.
    fn refuse(&mut self) {
        self.refused = true;
        self.payload = Vec::new();
        self.pieces = Vec::new();
    }

    fn is_whole(&self) -> bool {
        let mut end = 0;
        for piece in &self.pieces {
            if piece.0 != end {
                return false;
            }
            end = piece.1;
        }
        self.whole == Some(end)
    }
}

fn piece_v4(bytes: &[u8]) -> Result<Piece<'_>, DropReason> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
    if packet.version() != 4 || !packet.verify_checksum() {
        return Err(DropReason::Malformed);
    }
    let start = usize::from(packet.header_len());
    let end = usize::from(packet.total_len());
    let payload = bytes.get(start..end).ok_or(DropReason::Malformed)?;
    let protocol = packet.next_header();
    Ok(Piece {
        key: Key {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol: Some(protocol),
            ident: packet.ident().into(),
        },
        header: &bytes[..start],
        protocol,
        start: packet.frag_offset().into(),
        more: packet.more_frags(),
        payload,
    })
}

enum Stripped<'a> {
    Whole(Vec<u8>),
    Piece(Piece<'a>),
}

/// Takes off the extension headers of an IPv6 packet.
fn strip(bytes: &[u8]) -> Result<Stripped<'_>, DropReason> {
    let packet = Ipv6Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
    // What is put together is told apart by its version alone.
    if packet.version() != 6 {
        return Err(DropReason::Malformed);
    }
    let bytes = bytes
        .get(..packet.total_len())
        .ok_or(DropReason::Malformed)?;
    let header = &bytes[..V6_HEADER];
    let mut rest = &bytes[V6_HEADER..];
    let mut next = packet.next_header();
    for index in 0..MAX_EXTENSIONS {
        match next {
            IpProtocol::HopByHop if index > 0 => return Err(DropReason::Malformed),
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts => {
                let &[following, length, ..] = rest else {
                    return Err(DropReason::Malformed);
                };
                let length = 8 * (usize::from(length) + 1);
                rest = rest.get(length..).ok_or(DropReason::Malformed)?;
                next = following.into();
            }
            IpProtocol::Ipv6Frag => {
                let Some((&[following, _, high, low, a, b, c, d], payload)) =
                    rest.split_first_chunk::<FRAGMENT_HEADER>()
                else {
                    return Err(DropReason::Malformed);
                };
                let place = u16::from_be_bytes([high, low]);
                return Ok(Stripped::Piece(Piece {
                    key: Key {
                        source: packet.src_addr().into(),
                        destination: packet.dst_addr().into(),
                        protocol: None,
                        ident: u32::from_be_bytes([a, b, c, d]),
                    },
                    header,
                    protocol: following.into(),
                    start: usize::from(place & !7),
                    more: place & 1 != 0,
                    payload,
                }));
            }
            IpProtocol::Ipv6Route => return Err(DropReason::UnknownProtocol),
            _ => return whole(header, next, rest).map(Stripped::Whole),
        }
    }
    Err(DropReason::UnknownProtocol)
}

/// A plain packet: the header of a piece, and all of the payload.
fn whole(header: &[u8], protocol: IpProtocol, payload: &[u8]) -> Result<Vec<u8>, DropReason> {
    let length = header.len() + payload.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(payload);
    if header[0] >> 4 == 4 {
        let total = u16::try_from(length).map_err(|_| DropReason::Malformed)?;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_total_len(total);
        packet.set_more_frags(false);
        packet.set_frag_offset(0);
        packet.fill_checksum();
        return Ok(bytes);
    }
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes[..]);
    packet.set_payload_len(u16::try_from(payload.len()).map_err(|_| DropReason::Malformed)?);
    packet.set_next_header(protocol);
    match protocol {
        // Headers behind the fragment header: once more, and no deeper.
        IpProtocol::HopByHop | IpProtocol::Ipv6Frag => Err(DropReason::Malformed),
        IpProtocol::Ipv6Opts => match strip(&bytes)? {
            Stripped::Whole(packet) => Ok(packet),
            Stripped::Piece(_) => Err(DropReason::Malformed),
        },
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests;
