//! How large packets may be on their way, and who says so.

use smoltcp::wire::{Icmpv6Packet, Ipv6Packet};

use super::pieces::pieces;
use super::*;

const GUEST: &str = "192.168.127.2:5000";
const GUEST_V6: &str = "[fd6d:7362::2]:5000";

#[test]
fn what_the_guest_wants_in_one_piece_is_sent_so() {
    // Larger than ordinary links, the mark alone is not enough.
    for (length, marked, hops, ident, whole) in [
        (1472, true, 64, 9, true),
        (1472, false, 64, 9, false),
        (1473, true, 64, 9, false),
        (1473, true, 64, 0, true),
        (1473, false, 64, 0, false),
        (1473, true, 20, 9, true),
        (1473, false, 20, 9, false),
    ] {
        let mut frame = datagram(GUEST, "1.1.1.1:123", &vec![7; length]);
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        packet.set_dont_frag(marked);
        packet.set_hop_limit(hops);
        packet.set_ident(ident);
        packet.fill_checksum();
        let mut sim = sim("preset public-only");
        sim.inject(&frame);
        let hops = (hops < 64).then_some(hops - 1);
        let case = (length, marked, ident);
        assert_eq!(sim.handlings, [Handling { hops, whole }], "{case:?}");
    }
    // Nobody on the way cuts IPv6 packets; who did was the guest.
    let mut sim = sim("preset public-only");
    sim.inject(&datagram(GUEST_V6, "[2606:4700::1]:123", &[7; 1400]));
    for (from, to) in [(GUEST, "1.1.1.1:123"), (GUEST_V6, "[2606:4700::1]:123")] {
        for frame in pieces(from, to, &[7; 3000]) {
            sim.inject(&frame);
        }
    }
    let whole = sim.handlings.iter().map(|handling| handling.whole);
    assert_eq!(whole.collect::<Vec<_>>(), [true, false, false]);
}

/// Linux counts through all numbers for a connected socket.
#[test]
fn a_number_that_is_zero_by_chance_is_a_number() {
    let mut sim = sim("preset public-only");
    for ident in [65_534, 65_535, 0, 1] {
        let mut frame = datagram(GUEST, "1.1.1.1:5201", &[7; 9000]);
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        packet.set_dont_frag(true);
        packet.set_ident(ident);
        packet.fill_checksum();
        sim.inject(&frame);
    }
    assert_eq!(sim.handlings, [Handling::default(); 4]);
}

#[test]
fn the_way_is_as_wide_as_the_guest_sees_it() {
    // What is dialled is IPv4, whose headers are shorter by 20 bytes.
    for (to, said, told) in [
        ("[2606:4700::1]:123", 1400, 1400),
        ("[64:ff9b::101:101]:123", 1400, 1420),
        ("[64:ff9b::101:101]:123", 600, 1280),
    ] {
        let mut sim = sim("preset public-only");
        sim.inject(&datagram(GUEST_V6, to, &[7; 3000]));
        let (flow, ..) = sim.datagrams[0];
        let error = PathError::TooBig { mtu: said };
        sim.gateway.path_failed(sim.now, flow, error, None, b"");
        sim.run();
        let packet = Ipv6Packet::new_checked(&sim.seen[0][14..]).unwrap();
        let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        assert!(message.verify_checksum(&packet.src_addr(), &packet.dst_addr()));
        assert_eq!(u8::from(message.msg_type()), 2);
        assert_eq!(message.pkt_too_big_mtu(), told, "{to}");
    }
}
