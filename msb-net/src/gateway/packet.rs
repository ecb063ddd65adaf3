//! One IP packet of the guest, taken apart.
//!
//! Read RFC 791 and RFC 8200. Pieces of packets, and packets with IPv6 extension
//! headers, are told apart and not taken: `fragment.rs` makes plain ones of them.

use std::net::IpAddr;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{EthernetProtocol, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet};
use smoltcp::wire::{Ipv4Repr, Ipv6Repr};

use super::event::DropReason;

pub(super) struct Packet<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: IpProtocol,
    /// The whole packet, without what the link padded it with.
    pub(super) bytes: &'a [u8],
    pub(super) payload: &'a [u8],
    pub(super) header: IpRepr,
    /// The sender's kernel has left the transport's checksum to its network card,
    /// which we are: nothing has happened to the packet since.
    pub(super) unsummed: bool,
    /// It came in pieces, or behind headers that were taken off.
    pub(super) mended: bool,
}

/// Why a packet is not one that can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It is a piece of one, or has extension headers.
    NotPlain,
    Drop(DropReason),
}

impl From<DropReason> for Unfit {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl<'a> Packet<'a> {
    pub(super) fn parse(kind: EthernetProtocol, bytes: &'a [u8]) -> Result<Self, Unfit> {
        let packet = match kind {
            EthernetProtocol::Ipv4 => Self::parse_v4(bytes)?,
            EthernetProtocol::Ipv6 => Self::parse_v6(bytes)?,
            _ => return Err(DropReason::UnknownProtocol.into()),
        };
        match packet.protocol {
            IpProtocol::HopByHop
            | IpProtocol::Ipv6Route
            | IpProtocol::Ipv6Opts
            | IpProtocol::Ipv6Frag => Err(Unfit::NotPlain),
            _ => Ok(packet),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Unfit> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
        if packet.verify_checksum() && (packet.more_frags() || packet.frag_offset() != 0) {
            return Err(Unfit::NotPlain);
        }
        let checks = ChecksumCapabilities::default();
        let header = Ipv4Repr::parse(&packet, &checks).map_err(|_| DropReason::Malformed)?;
        let (start, end) = (packet.header_len().into(), packet.total_len().into());
        Ok(Self::new(IpRepr::Ipv4(header), bytes, start, end)?)
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let packet = Ipv6Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
        let header = Ipv6Repr::parse(&packet).map_err(|_| DropReason::Malformed)?;
        let start = packet.header_len();
        Self::new(IpRepr::Ipv6(header), bytes, start, packet.total_len())
    }

    fn new(header: IpRepr, bytes: &'a [u8], start: usize, end: usize) -> Result<Self, DropReason> {
        let bytes = bytes.get(..end).ok_or(DropReason::Malformed)?;
        Ok(Self {
            source: header.src_addr().into(),
            destination: header.dst_addr().into(),
            protocol: header.next_header(),
            bytes,
            payload: bytes.get(start..).ok_or(DropReason::Malformed)?,
            header,
            unsummed: false,
            mended: false,
        })
    }

    /// Tells whether nobody on the way may cut it to pieces: by its flag (RFC 791),
    /// and in IPv6 by its kind, unless its sender cut it already.
    pub(super) fn is_for_one_piece(&self) -> bool {
        match self.header {
            IpRepr::Ipv4(_) => Ipv4Packet::new_unchecked(self.bytes).dont_frag() && !self.mended,
            IpRepr::Ipv6(_) => !self.mended,
        }
    }

    /// Tells whether its sender is sure that it stays in one piece, and did not give it
    /// a number for putting it together again (RFC 6864).
    pub(super) fn is_unnumbered(&self) -> bool {
        matches!(self.header, IpRepr::Ipv4(_)) && Ipv4Packet::new_unchecked(self.bytes).ident() == 0
    }

    /// Which checksums of the transport are to be verified.
    pub(super) fn checks(&self) -> ChecksumCapabilities {
        let mut checks = ChecksumCapabilities::default();
        if self.unsummed {
            checks.tcp = Checksum::None;
            checks.udp = Checksum::None;
        }
        checks
    }
}
