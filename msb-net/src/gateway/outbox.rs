//! Frames on their way to the guest, and how they are made.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{
    self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta,
};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet,
    Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use super::Mac;
use super::offload::{self, Header};
use super::packet::Packet;

/// Frames that may wait, and their bytes. Flows make theirs only when the driver
/// asks for one, so what waits here are answers to single frames; a guest that
/// does not take them loses them. A driver hands in what one read of the link
/// brought, up to some thousand small frames, before it asks for any.
const MAX_FRAMES: usize = 4096;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Buffers kept for the next frames.
const MAX_SPARE: usize = 32;

/// The length of an Ethernet header.
pub(super) const ETHERNET: usize = 14;

/// The hop limit of everything we send; neighbour discovery demands it (RFC 4861).
pub(super) const HOP_LIMIT: u8 = 255;

/// How much of a packet an ICMP error quotes: RFC 1812, 4.3.2.3, allows an error
/// of 576 bytes.
pub(super) const QUOTED: usize = 576 - 20 - 8 - 20;

pub(super) struct Outbox {
    frames: VecDeque<Vec<u8>>,
    /// The bytes of all of them.
    bytes: usize,
    spare: Vec<Vec<u8>>,
    mac: Mac,
    pub(super) guest_mac: Option<Mac>,
    pub(super) mtu: u16,
    /// Frames have a header in front.
    offload: bool,
    /// Of the last datagram that was sent in pieces.
    ident: u32,
}

impl Outbox {
    pub(super) fn new(mac: Mac, guest_mac: Option<Mac>, mtu: u16) -> Self {
        Self {
            frames: VecDeque::new(),
            bytes: 0,
            spare: Vec::new(),
            mac,
            guest_mac,
            mtu,
            offload: false,
            ident: 0,
        }
    }

    /// An outbox whose frames have an offload header in front, if `offload` is set.
    pub(super) fn with_offload(self, offload: bool) -> Self {
        Self { offload, ..self }
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn pop(&mut self, frame: &mut Vec<u8>) -> bool {
        let Some(next) = self.frames.pop_front() else {
            return false;
        };
        self.bytes -= next.len();
        let old = std::mem::replace(frame, next);
        if self.spare.len() < MAX_SPARE {
            self.spare.push(old);
        }
        true
    }

    /// Queues a frame with `length` bytes of payload, which `fill` writes.
    pub(super) fn push<R>(
        &mut self,
        kind: EthernetProtocol,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        self.push_with(length, |payload| (fill(payload), kind, offload::PLAIN))
    }

    /// As [`push`](Self::push), for what is an IP packet once it is written.
    fn push_packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.push_with(length, |payload| {
            let result = fill(payload);
            (result, kind(payload), offload::PLAIN)
        })
    }

    /// As [`push_packet`](Self::push_packet), for a packet of a flow's stack. With
    /// `size`, the guest's side is to cut it into segments of that size.
    fn push_segment<R>(
        &mut self,
        length: usize,
        size: Option<NonZeroU16>,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        if !self.offload {
            return self.push_packet(length, fill);
        }
        self.push_with(length, |payload| {
            let result = fill(payload);
            let header = offload::complete(payload, size);
            (result, kind(payload), header)
        })
    }

    fn push_with<R>(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> (R, EthernetProtocol, Header),
    ) -> R {
        let mut buffer = self.spare.pop().unwrap_or_default();
        // Not cleared first: everything below `length` is overwritten by `fill`.
        let start = if self.offload { offload::LENGTH } else { 0 };
        buffer.resize(start + ETHERNET + length, 0);
        let (front, frame) = buffer.split_at_mut(start);
        let mut frame = EthernetFrame::new_unchecked(frame);
        frame.set_src_addr(EthernetAddress(self.mac));
        frame.set_dst_addr(EthernetAddress(self.guest_mac.unwrap_or([0xff; 6])));
        let (result, kind, header) = fill(frame.payload_mut());
        frame.set_ethertype(kind);
        front.copy_from_slice(&header[..start]);
        if self.has_room() {
            self.bytes += buffer.len();
            self.frames.push_back(buffer);
        }
        result
    }

    fn has_room(&self) -> bool {
        self.frames.len() < MAX_FRAMES && self.bytes < MAX_BYTES
    }

    /// Queues an IP packet with `length` bytes of payload.
    fn push_ip(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProtocol,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let (source, destination) = (source.into(), destination.into());
        let header = IpRepr::new(source, destination, protocol, length, HOP_LIMIT);
        self.push_packet(header.buffer_len(), |buffer| {
            header.emit(&mut *buffer, &ChecksumCapabilities::default());
            fill(&mut buffer[header.header_len()..]);
        });
    }

    /// Answers a TCP segment with a reset (RFC 9293, 3.10.7.1).
    pub(super) fn reset(&mut self, packet: &Packet<'_>, segment: &TcpPacket<&[u8]>) {
        if segment.rst() {
            return;
        }
        let (seq_number, ack_number) = if segment.ack() {
            (segment.ack_number(), None)
        } else {
            let end = segment.seq_number() + segment.segment_len();
            (TcpSeqNumber(0), Some(end))
        };
        let reply = TcpRepr {
            src_port: segment.dst_port(),
            dst_port: segment.src_port(),
            control: TcpControl::Rst,
            seq_number,
            ack_number,
            window_len: 0,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        self.tcp(packet.destination, packet.source, &reply);
    }

    pub(super) fn tcp(&mut self, from: IpAddr, to: IpAddr, segment: &TcpRepr<'_>) {
        self.push_ip(from, to, IpProtocol::Tcp, segment.buffer_len(), |buffer| {
            segment.emit(
                &mut TcpPacket::new_unchecked(buffer),
                &from.into(),
                &to.into(),
                &ChecksumCapabilities::default(),
            );
        });
    }

    /// Queues a UDP datagram, in pieces if it is larger than the link's MTU; false
    /// when it is larger than any packet.
    pub(super) fn datagram(
        &mut self,
        from: std::net::SocketAddr,
        to: std::net::SocketAddr,
        payload: &[u8],
    ) -> bool {
        let repr = UdpRepr {
            src_port: from.port(),
            dst_port: to.port(),
        };
        let length = repr.header_len() + payload.len();
        let emit = |buffer: &mut [u8]| {
            repr.emit(
                &mut UdpPacket::new_unchecked(buffer),
                &from.ip().into(),
                &to.ip().into(),
                payload.len(),
                |body| body.copy_from_slice(payload),
                &ChecksumCapabilities::default(),
            );
        };
        let header = if to.is_ipv4() { 20 } else { 40 };
        if header + length <= usize::from(self.mtu) {
            self.push_ip(from.ip(), to.ip(), IpProtocol::Udp, length, emit);
            return true;
        }
        let largest = if to.is_ipv4() {
            usize::from(u16::MAX) - header
        } else {
            usize::from(u16::MAX)
        };
        if length > largest {
            return false;
        }
        let mut whole = vec![0; length];
        emit(&mut whole);
        self.push_pieces(from.ip(), to.ip(), &whole);
        true
    }

    /// Queues the pieces of a datagram (RFC 791, 3.2; RFC 8200, 4.5).
    fn push_pieces(&mut self, from: IpAddr, to: IpAddr, whole: &[u8]) {
        self.ident = self.ident.wrapping_add(1);
        let ident = self.ident;
        let extra = if to.is_ipv4() { 0 } else { 8 };
        let header = if to.is_ipv4() { 20 } else { 40 };
        let size = (usize::from(self.mtu) - header - extra) & !7;
        for (index, piece) in whole.chunks(size).enumerate() {
            let (start, end) = (index * size, index * size + piece.len());
            let more = end < whole.len();
            if to.is_ipv4() {
                let header = IpRepr::new(
                    from.into(),
                    to.into(),
                    IpProtocol::Udp,
                    piece.len(),
                    HOP_LIMIT,
                );
                self.push_packet(header.buffer_len(), |buffer| {
                    header.emit(&mut *buffer, &ChecksumCapabilities::default());
                    buffer[20..].copy_from_slice(piece);
                    let mut packet = Ipv4Packet::new_unchecked(buffer);
                    packet.set_ident(ident as u16);
                    packet.set_dont_frag(false);
                    packet.set_more_frags(more);
                    packet.set_frag_offset(start as u16);
                    packet.fill_checksum();
                });
            } else {
                self.push_ip(
                    from,
                    to,
                    IpProtocol::Ipv6Frag,
                    extra + piece.len(),
                    |buffer| {
                        buffer[..2].copy_from_slice(&[IpProtocol::Udp.into(), 0]);
                        let place = start as u16 | u16::from(more);
                        buffer[2..4].copy_from_slice(&place.to_be_bytes());
                        buffer[4..8].copy_from_slice(&ident.to_be_bytes());
                        buffer[8..].copy_from_slice(piece);
                    },
                );
            }
        }
    }

    /// Says that a packet was refused by policy.
    pub(super) fn prohibited(&mut self, packet: &Packet<'_>) {
        self.unreachable(
            packet,
            Icmpv4DstUnreachable::CommProhibited,
            Icmpv6DstUnreachable::AdminProhibit,
        );
    }

    /// Says that a packet's destination cannot be reached. The error comes from
    /// the destination's address: that is the only peer the guest knows.
    pub(super) fn unreachable(
        &mut self,
        packet: &Packet<'_>,
        v4: Icmpv4DstUnreachable,
        v6: Icmpv6DstUnreachable,
    ) {
        let data = &packet.payload[..packet.payload.len().min(QUOTED)];
        let (from, to) = (packet.destination, packet.source);
        match packet.header {
            IpRepr::Ipv4(header) => {
                let reason = v4;
                self.icmpv4(
                    from,
                    to,
                    &Icmpv4Repr::DstUnreachable {
                        reason,
                        header,
                        data,
                    },
                );
            }
            IpRepr::Ipv6(header) => {
                let reason = v6;
                self.icmpv6(
                    from,
                    to,
                    &Icmpv6Repr::DstUnreachable {
                        reason,
                        header,
                        data,
                    },
                );
            }
        }
    }

    pub(super) fn icmpv4(&mut self, from: IpAddr, to: IpAddr, message: &Icmpv4Repr<'_>) {
        let length = message.buffer_len();
        self.push_ip(from, to, IpProtocol::Icmp, length, |buffer| {
            let checks = ChecksumCapabilities::default();
            message.emit(&mut Icmpv4Packet::new_unchecked(buffer), &checks);
        });
    }

    /// As [`icmpv4`](Self::icmpv4), with the next hop's MTU (RFC 1191).
    pub(super) fn too_big_v4(
        &mut self,
        from: IpAddr,
        to: IpAddr,
        message: &Icmpv4Repr<'_>,
        mtu: u32,
    ) {
        let length = message.buffer_len();
        self.push_ip(from, to, IpProtocol::Icmp, length, |buffer| {
            let checks = ChecksumCapabilities::default();
            message.emit(&mut Icmpv4Packet::new_unchecked(&mut *buffer), &checks);
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            buffer[6..8].copy_from_slice(&mtu.to_be_bytes());
            Icmpv4Packet::new_unchecked(buffer).fill_checksum();
        });
    }

    pub(super) fn icmpv6(&mut self, from: IpAddr, to: IpAddr, message: &Icmpv6Repr<'_>) {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (from, to) else {
            return;
        };
        let length = message.buffer_len();
        self.push_ip(from, to, IpProtocol::Icmpv6, length, |buffer| {
            let checks = ChecksumCapabilities::default();
            let mut packet = Icmpv6Packet::new_unchecked(buffer);
            message.emit(&source, &destination, &mut packet, &checks);
        });
    }
}

/// What an IP packet is in Ethernet.
fn kind(packet: &[u8]) -> EthernetProtocol {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => EthernetProtocol::Ipv6,
        _ => EthernetProtocol::Ipv4,
    }
}

/// The outbox as the device of a flow's stack, with at most one packet to receive.
pub(super) struct Wire<'a> {
    pub(super) packet: Option<&'a [u8]>,
    pub(super) outbox: &'a mut Outbox,
}

pub(super) struct Received<'a>(&'a [u8]);

pub(super) struct Sender<'a> {
    outbox: &'a mut Outbox,
    meta: PacketMeta,
}

impl<'a> Sender<'a> {
    fn new(outbox: &'a mut Outbox) -> Self {
        let meta = PacketMeta::default();
        Self { outbox, meta }
    }
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sender<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sender<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sender::new(self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        self.outbox.has_room().then(|| Sender::new(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.outbox.mtu.into();
        // What comes was verified before its flow was looked for.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        if self.outbox.offload {
            let most = NonZeroUsize::new(offload::MAX_SEGMENT);
            capabilities.checksum.tcp = Checksum::None;
            capabilities.segmentation.tcpv4 = most;
            capabilities.segmentation.tcpv6 = most;
        }
        capabilities
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let size = self.meta.segmentation_offload_size;
        self.outbox.push_segment(length, size, fill)
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}
