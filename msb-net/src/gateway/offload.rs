//! The header that a TAP device has in front of each frame, if asked: what of
//! the work on a frame was left to the other side.
//!
//! Read virtio 1.2, 5.1.6. Linux speaks it here in its oldest form: ten bytes, in
//! the byte order of the host. A kernel that sends one TCP segment of 64 KiB
//! where the link's packets have 1,500 bytes, and computes no checksum for it,
//! does a small part of the work; so does one that is given such a segment.

use std::num::NonZeroU16;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::outbox::ETHERNET;

/// The length of the header.
pub(crate) const LENGTH: usize = 10;

/// A header as it is on the link.
pub(super) type Header = [u8; LENGTH];

/// The header of a frame that is all there is to it.
pub(super) const PLAIN: Header = [0; LENGTH];

/// The largest TCP segment, with its IP header: a link's largest packet.
pub(super) const MAX_SEGMENT: usize = 65_520;

/// Flag: the checksum is that of the pseudo-header alone.
const NEEDS_CHECKSUM: u8 = 1;
const TCP_IN_IPV4: u8 = 1;
const TCP_IN_IPV6: u8 = 4;

/// Where in a TCP header the checksum is.
const CHECKSUM: u16 = 16;

/// Takes the header off; tells whether the transport's checksum was left out.
/// `None` when that is no header.
pub(super) fn split(bytes: &[u8]) -> Option<(bool, &[u8])> {
    let (header, frame) = bytes.split_first_chunk::<LENGTH>()?;
    Some((header[0] & NEEDS_CHECKSUM != 0, frame))
}

/// Completes a TCP packet that was made without a checksum; returns its header.
/// `size` is given if its payload must be cut into segments of that size.
pub(super) fn complete(packet: &mut [u8], size: Option<NonZeroU16>) -> Header {
    let (start, kind, sum) = match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            let header = Ipv4Packet::new_unchecked(&*packet);
            let length = header.total_len() - u16::from(header.header_len());
            let (source, destination) = (header.src_addr(), header.dst_addr());
            let ends = [source.octets(), destination.octets()].concat();
            (header.header_len().into(), TCP_IN_IPV4, sum(&ends, length))
        }
        _ => {
            let header = Ipv6Packet::new_unchecked(&*packet);
            let (source, destination) = (header.src_addr(), header.dst_addr());
            let ends = [source.octets(), destination.octets()].concat();
            let sum = sum(&ends, header.payload_len());
            (header.header_len(), TCP_IN_IPV6, sum)
        }
    };
    let mut segment = TcpPacket::new_unchecked(&mut packet[start..]);
    segment.set_checksum(sum);
    let before = (ETHERNET + start) as u16;
    let headers = before + u16::from(segment.header_len());
    let mut header = PLAIN;
    header[0] = NEEDS_CHECKSUM;
    if let Some(size) = size {
        header[1] = kind;
        header[2..4].copy_from_slice(&headers.to_ne_bytes());
        header[4..6].copy_from_slice(&size.get().to_ne_bytes());
    }
    header[6..8].copy_from_slice(&before.to_ne_bytes());
    header[8..10].copy_from_slice(&CHECKSUM.to_ne_bytes());
    header
}

/// The sum of a pseudo-header of TCP (RFC 9293, 3.1), folded and not inverted.
fn sum(ends: &[u8], length: u16) -> u16 {
    let words = ends
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let fixed = u32::from(u8::from(IpProtocol::Tcp)) + u32::from(length);
    let mut sum = words.sum::<u32>() + fixed;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpAddress, IpRepr, TcpControl, TcpRepr, TcpSeqNumber};

    use super::*;

    /// What the other side's network card makes of a packet that was completed.
    fn finish(packet: &mut [u8], header: Header) {
        let at = |index| usize::from(u16::from_ne_bytes([header[index], header[index + 1]]));
        let start = at(6) - ETHERNET;
        let mut sum = 0;
        for word in packet[start..].chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let place = start + at(8);
        packet[place..place + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
    }

    fn segment() -> TcpRepr<'static> {
        TcpRepr {
            src_port: 80,
            dst_port: 40_000,
            control: TcpControl::Psh,
            seq_number: TcpSeqNumber(-5),
            ack_number: Some(TcpSeqNumber(77)),
            window_len: 1000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: b"an odd number of bytes!",
        }
    }

    #[test]
    fn the_other_side_completes_the_checksum() {
        for (source, destination) in [("1.1.1.1", "10.0.0.9"), ("2606::1", "fd00::ffff")] {
            let parse = |text: &str| text.parse::<IpAddress>().unwrap();
            let (source, destination) = (parse(source), parse(destination));
            let tcp = segment();
            let ip = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
            let mut packet = vec![0; ip.buffer_len()];
            let checks = ChecksumCapabilities::default();
            ip.emit(&mut packet[..], &checks);
            let start = ip.header_len();
            let mut unfilled = ChecksumCapabilities::default();
            unfilled.tcp = smoltcp::phy::Checksum::None;
            let mut view = TcpPacket::new_unchecked(&mut packet[start..]);
            tcp.emit(&mut view, &source, &destination, &unfilled);
            let header = complete(&mut packet, NonZeroU16::new(1400));
            assert_eq!(u16::from_ne_bytes([header[4], header[5]]), 1400);
            finish(&mut packet, header);
            let view = TcpPacket::new_checked(&packet[start..]).unwrap();
            assert_eq!(
                TcpRepr::parse(&view, &source, &destination, &checks),
                Ok(tcp)
            );
        }
    }

    #[test]
    fn less_than_a_header_is_none() {
        assert_eq!(split(&[1; LENGTH - 1]), None);
        assert_eq!(split(&[1; LENGTH]), Some((true, &[][..])));
        assert_eq!(split(&[0; LENGTH + 1]), Some((false, &[0][..])));
    }
}
