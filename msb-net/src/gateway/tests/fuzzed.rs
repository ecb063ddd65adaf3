//! Frames that are nearly right.

use proptest::prelude::*;
use smoltcp::wire::{Icmpv6Packet, Ipv6Packet, TcpPacket, UdpPacket};

use super::*;

/// The committed seeds of the same target: real frames of each protocol.
fn templates() -> Vec<Vec<u8>> {
    let seeds = [
        &include_bytes!("../../../../fuzz/corpus/gateway_frames/arp-then-syn")[..],
        include_bytes!("../../../../fuzz/corpus/gateway_frames/dns"),
        include_bytes!("../../../../fuzz/corpus/gateway_frames/echo"),
        include_bytes!("../../../../fuzz/corpus/gateway_frames/neighbour"),
        include_bytes!("../../../../fuzz/corpus/gateway_frames/stray-segment"),
        include_bytes!("../../../../fuzz/corpus/gateway_frames/syn-six"),
        include_bytes!("../../../../fuzz/corpus/gateway_frames/udp"),
    ];
    let mut frames = Vec::new();
    for mut data in seeds {
        while let Some((&[high, low], rest)) = data.split_first_chunk() {
            let (frame, rest) = rest.split_at(u16::from_be_bytes([high, low]).into());
            frames.push(frame.to_vec());
            data = rest;
        }
    }
    frames
}

/// Makes the checksums right again, so that changes get past them.
fn repair(frame: &mut [u8]) {
    let Some(packet) = frame.get_mut(14..) else {
        return;
    };
    let (from, to, protocol, start): (IpAddr, IpAddr, _, _) = match packet.first() {
        Some(0x45) if packet.len() >= 20 => {
            let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
            ip.fill_checksum();
            (
                ip.src_addr().into(),
                ip.dst_addr().into(),
                ip.next_header(),
                20,
            )
        }
        Some(0x60) if packet.len() >= 40 => {
            let ip = Ipv6Packet::new_unchecked(&*packet);
            (
                ip.src_addr().into(),
                ip.dst_addr().into(),
                ip.next_header(),
                40,
            )
        }
        _ => return,
    };
    let payload = &mut packet[start..];
    let whole = payload.len();
    match (protocol, from, to) {
        (IpProtocol::Tcp, ..) if whole >= 20 => {
            TcpPacket::new_unchecked(payload).fill_checksum(&from.into(), &to.into());
        }
        (IpProtocol::Udp, ..) if UdpPacket::new_checked(&*payload).is_ok() => {
            UdpPacket::new_unchecked(payload).fill_checksum(&from.into(), &to.into());
        }
        (IpProtocol::Icmp, ..) if whole >= 8 => {
            Icmpv4Packet::new_unchecked(payload).fill_checksum();
        }
        (IpProtocol::Icmpv6, IpAddr::V6(from), IpAddr::V6(to)) if whole >= 8 => {
            Icmpv6Packet::new_unchecked(payload).fill_checksum(&from, &to);
        }
        _ => {}
    }
}

/// Real frames with a few bytes changed or cut get further than noise does.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let template = prop::sample::select(templates());
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (template, changes, cut).prop_map(|(mut frame, changes, cut)| {
        for (index, byte) in changes {
            // Mostly behind the link header, which admits of few changes.
            let at = 12 + index.index(frame.len() - 12);
            frame[at] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        repair(&mut frame);
        frame
    })
}

/// A header in front of a frame: mostly one that leaves the checksum out, or nothing.
fn any_header() -> impl Strategy<Value = Vec<u8>> {
    let plain = (0u8..2).prop_map(|flags| [&[flags][..], &[0; 9]].concat());
    prop_oneof![3 => plain, 1 => prop::collection::vec(any::<u8>(), 0..12)]
}

proptest! {
    #[test]
    fn no_frame_breaks_the_gateway(frames in prop::collection::vec(any_frame(), 1..20)) {
        let mut data = Vec::new();
        for frame in frames {
            data.extend_from_slice(&(frame.len() as u16).to_be_bytes());
            data.extend_from_slice(&frame);
        }
        crate::fuzzing::gateway_frames(&data);
    }

    #[test]
    fn no_offload_header_breaks_the_gateway(
        frames in prop::collection::vec((any_header(), any_frame()), 1..20),
    ) {
        let mut data = Vec::new();
        for (header, frame) in frames {
            let length = header.len() + frame.len();
            data.extend_from_slice(&(length as u16).to_be_bytes());
            data.extend_from_slice(&header);
            data.extend_from_slice(&frame);
        }
        crate::fuzzing::offload_frames(&data);
    }

    #[test]
    fn no_noise_breaks_the_gateway(data in prop::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzzing::gateway_frames(&data);
        crate::fuzzing::offload_frames(&data);
    }
}
