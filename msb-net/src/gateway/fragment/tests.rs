use proptest::prelude::*;
use smoltcp::wire::EthernetFrame;

use super::*;
use crate::gateway::outbox::Outbox;

const GUEST: &str = "192.168.127.2:5000";
const GUEST_V6: &str = "[fd6d:7362::2]:5000";

/// The packets of a datagram on a link with a small MTU.
fn pieces(from: &str, to: &str, length: usize) -> Vec<(EthernetProtocol, Vec<u8>)> {
    let payload: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
    let mut outbox = Outbox::new([2; 6], Some([4; 6]), 1280);
    assert!(outbox.datagram(from.parse().unwrap(), to.parse().unwrap(), &payload));
    let mut frame = Vec::new();
    let mut packets = Vec::new();
    while outbox.pop(&mut frame) {
        let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
        assert!(frame.payload().len() <= 1280);
        packets.push((frame.ethertype(), frame.payload().to_vec()));
    }
    packets
}

fn own(address: IpAddr) -> bool {
    ["192.168.127.2", "fd6d:7362::2"].contains(&address.to_string().as_str())
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_pieces_of_a_datagram_make_it_whole_in_any_order() {
    for (from, to, largest) in [
        (GUEST, "1.1.1.1:9", 65_507),
        (GUEST_V6, "[2606::1]:9", 65_527),
    ] {
        for length in [1300, 5000, largest] {
            let mut packets = pieces(from, to, length);
            assert!(packets.len() > 1);
            packets.reverse();
            let mut fragments = Fragments::default();
            let last = packets.pop().unwrap();
            for (kind, packet) in &packets {
                assert_eq!(fragments.take(at(1), *kind, packet, own), Ok(None));
            }
            let packet = fragments
                .take(at(2), last.0, &last.1, own)
                .unwrap()
                .unwrap();
            let header = if from == GUEST { 20 } else { 40 };
            assert_eq!(packet.len(), header + 8 + length);
            let expected = (0..length).map(|at| (at / 7) as u8);
            assert!(packet[header + 8..].iter().copied().eq(expected));
            assert_eq!((fragments.held(), fragments.next_timeout()), ((0, 0), None));
        }
    }
}

#[test]
fn pieces_that_overlap_are_refused_with_all_that_follow() {
    for (from, to) in [(GUEST, "1.1.1.1:9"), (GUEST_V6, "[2606::1]:9")] {
        let packets = pieces(from, to, 5000);
        let mut fragments = Fragments::default();
        let (kind, first) = &packets[0];
        assert_eq!(fragments.take(at(0), *kind, first, own), Ok(None));
        // The same place, another content.
        let mut changed = first.clone();
        *changed.last_mut().unwrap() ^= 1;
        let overlap = Err(DropReason::Overlap);
        assert_eq!(fragments.take(at(0), *kind, &changed, own), overlap);
        for (kind, packet) in &packets {
            assert_eq!(fragments.take(at(0), *kind, packet, own), overlap);
        }
        assert_eq!(fragments.held(), (1, 0), "no memory is kept for it");
        assert_eq!(fragments.expire(at(15)), 1);
        for (kind, packet) in &packets[..packets.len() - 1] {
            assert_eq!(fragments.take(at(16), *kind, packet, own), Ok(None));
        }
    }
}

#[test]
fn incomplete_packets_are_few_and_do_not_stay() {
    let mut fragments = Fragments::default();
    let mut pushed_out = 0;
    for number in 0..200u16 {
        let packets = pieces(GUEST, "1.1.1.1:9", 60_000);
        for (kind, packet) in &packets[1..] {
            let mut packet = packet.clone();
            let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
            header.set_ident(number);
            header.fill_checksum();
            let taken = fragments.take(at(number.into()), *kind, &packet, own);
            pushed_out += u32::from(taken == Err(DropReason::Incomplete));
            let (held, bytes) = fragments.held();
            assert!(held <= MAX_PACKETS && bytes <= MAX_BYTES);
        }
    }
    assert!(pushed_out > 100, "{pushed_out}");
    assert_eq!(fragments.next_timeout().unwrap(), at(199 - 16 + 15));
    assert!(fragments.expire(at(1000)) > 0);
    assert_eq!(fragments.held(), (0, 0));
}

#[test]
fn strangers_pieces_are_not_kept() {
    let mut fragments = Fragments::default();
    for (kind, packet) in pieces("192.168.127.3:5000", "1.1.1.1:9", 5000) {
        let taken = fragments.take(at(0), kind, &packet, own);
        assert_eq!(taken, Err(DropReason::SpoofedAddress));
    }
    assert_eq!(fragments.held(), (0, 0));
}

/// An IPv6 packet with these headers behind the first.
fn extended(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; V6_HEADER];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    packet[6] = next;
    packet[7] = 64;
    packet.extend_from_slice(rest);
    packet
}

#[test]
fn extension_headers_end_here() {
    let take =
        |packet: &[u8]| Fragments::default().take(at(0), EthernetProtocol::Ipv6, packet, |_| true);
    let options = [17, 0, 1, 4, 0, 0, 0, 0, b'x'];
    for first in [0, 60] {
        let packet = take(&extended(first, &options)).unwrap().unwrap();
        assert_eq!((packet[6], &packet[40..]), (17, &b"x"[..]));
    }
    let many: Vec<u8> = (0..9).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
    assert_eq!(take(&extended(60, &many)), Err(DropReason::UnknownProtocol));
    let twice = [&[0, 0, 1, 4, 0, 0, 0, 0], &options[..]].concat();
    assert_eq!(take(&extended(0, &twice)), Err(DropReason::Malformed));
    assert_eq!(take(&extended(0, &[17, 9, 0])), Err(DropReason::Malformed));
    assert_eq!(take(&extended(60, &[])), Err(DropReason::Malformed));
    // A routing header: a way around the destination that was judged.
    assert_eq!(
        take(&extended(43, &options)),
        Err(DropReason::UnknownProtocol)
    );
    let nested = [
        &[44, 0, 0, 0, 0, 0, 0, 1],
        &[17, 0, 0, 0, 0, 0, 0, 2],
        &b"x"[..],
    ]
    .concat();
    assert_eq!(take(&extended(44, &nested)), Err(DropReason::Malformed));
}

/// The header that the version stands for is longer than the packet.
#[test]
fn a_version_that_is_not_the_frames_is_refused() {
    let take = |kind, packet: &[u8]| Fragments::default().take(at(0), kind, packet, |_| true);
    let mut packet = extended(17, b"");
    packet[0] = 0x4f;
    let taken = take(EthernetProtocol::Ipv6, &packet);
    assert_eq!(taken, Err(DropReason::Malformed));
    packet[0] = 0x65;
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_total_len(40);
    header.fill_checksum();
    let taken = take(EthernetProtocol::Ipv4, &packet);
    assert_eq!(taken, Err(DropReason::Malformed));
}

proptest! {
    #[test]
    fn pieces_are_put_together_as_a_plain_model_does(ops in prop::collection::vec(
        (0u8..64, 0u16..40, 0u8..12, 0u8..2, 0u8..2), 0..60,
    )) {
        let data: Vec<u8> = ops
            .into_iter()
            .flat_map(|(flags, place, length, fill, step)| {
                let [high, low] = (place * 8).to_be_bytes();
                // Few packets, so that pieces meet.
                [flags & 0b10_0111, high, low, length, fill, step]
            })
            .collect();
        crate::fuzzing::reassembly(&data);
    }

    #[test]
    fn no_bytes_break_it(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
    ) {
        let mut fragments = Fragments::default();
        for packet in packets {
            for kind in [EthernetProtocol::Ipv4, EthernetProtocol::Ipv6] {
                let _ = fragments.take(at(0), kind, &packet, |_| true);
            }
        }
    }
}
