//! Packets that come, or go, in pieces.

use super::*;

/// The frames of a datagram of the guest on a link with a small MTU.
pub(super) fn pieces(from: &str, to: &str, payload: &[u8]) -> Vec<Vec<u8>> {
    let mut outbox = Outbox::new(GUEST_MAC, Some([2, 0, 0, 0, 0, 1]), 1280);
    assert!(outbox.datagram(from.parse().unwrap(), to.parse().unwrap(), payload));
    let mut frames = Vec::new();
    let mut frame = Vec::new();
    while outbox.pop(&mut frame) {
        frames.push(frame.clone());
    }
    frames
}

const ENDS: [(&str, &str); 2] = [
    ("192.168.127.2:5000", "1.1.1.1:123"),
    ("[fd6d:7362::2]:5000", "[2606:4700::1]:123"),
];

#[test]
fn a_datagram_in_pieces_is_judged_once_and_passed_on_whole() {
    for (from, to) in ENDS {
        let data = noise(1, 9000);
        let mut sim = sim("preset public-only");
        for frame in pieces(from, to, &data).iter().rev() {
            assert!(sim.datagrams.is_empty());
            sim.inject(frame);
        }
        assert_eq!(sim.datagrams.len(), 1);
        assert!(sim.datagrams[0].2 == data);
        let decided = |event: &&Event| matches!(event, Event::Decided { .. });
        assert_eq!(sim.events.iter().filter(decided).count(), 1);
    }
}

#[test]
fn a_denied_datagram_in_pieces_is_answered() {
    let mut sim = sim("preset public-only");
    for frame in pieces("192.168.127.2:5000", "10.0.0.1:123", &noise(1, 9000)) {
        sim.inject(&frame);
    }
    assert_eq!(last_icmp(&sim), Some((3, 13)));
    assert!(sim.datagrams.is_empty());
}

#[test]
fn pieces_that_never_become_a_packet_are_told_of() {
    let mut sim = sim("preset public-only");
    let frames = pieces("192.168.127.2:5000", "1.1.1.1:123", &noise(1, 9000));
    sim.inject(&frames[0]);
    sim.run_until(Duration::from_secs(14));
    assert_eq!(drops(&sim), []);
    sim.run_until(Duration::from_secs(16));
    assert_eq!(drops(&sim), [DropReason::Incomplete]);
    assert_eq!(sim.gateway.next_timeout(), None);
}

#[test]
fn a_datagram_larger_than_the_link_reaches_the_guest_in_pieces() {
    for (guest, far) in ENDS {
        let mut config = Config::new("preset public-only".parse().unwrap(), 7);
        config.mtu = 1500;
        let mut sim = Sim::new(config, 7);
        sim.inject(&datagram(guest, far, b"ping"));
        let (flow, ..) = sim.datagrams[0];
        let data = noise(2, 20_000);
        sim.gateway.datagram(sim.now, flow, &data);
        sim.run();
        assert!(sim.seen.len() > 13, "{far}");
        // Another gateway's way in is the guest's.
        let mut fragments = fragment::Fragments::default();
        let mut whole = Vec::new();
        for frame in &sim.seen {
            assert!(frame.len() <= 1500 + 14);
            let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
            let taken = fragments.take(sim.now, frame.ethertype(), frame.payload(), |_| true);
            whole.extend(taken.unwrap());
        }
        // An answer about neighbours may be among them.
        whole.retain(|packet: &Vec<u8>| packet.len() > data.len());
        assert_eq!(whole.len(), 1, "{far}");
        assert!(whole[0].ends_with(&data));
        let udp = &whole[0][whole[0].len() - data.len() - 8..];
        let datagram = smoltcp::wire::UdpPacket::new_checked(udp).unwrap();
        let (from, to): (SocketAddr, SocketAddr) = (far.parse().unwrap(), guest.parse().unwrap());
        assert!(datagram.verify_checksum(&from.ip().into(), &to.ip().into()));
        let longest = vec![0; 65_528];
        sim.gateway.datagram(sim.now, flow, &longest);
        sim.run();
        assert_eq!(drops(&sim), [DropReason::TooBig]);
    }
}

#[test]
fn a_segment_in_pieces_opens_a_connection() {
    // Cut behind its ports: nobody decides about half a header.
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Echo);
    let repr = smoltcp::wire::TcpRepr {
        src_port: 40_000,
        dst_port: 80,
        control: smoltcp::wire::TcpControl::Syn,
        seq_number: smoltcp::wire::TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut outbox = Outbox::new(GUEST_MAC, Some([2, 0, 0, 0, 0, 1]), 1500);
    let server: SocketAddr = SERVER.parse().unwrap();
    outbox.tcp("192.168.127.2".parse().unwrap(), server.ip(), &repr);
    let mut frame = Vec::new();
    outbox.pop(&mut frame);
    for (start, end, more) in [(8, 20, false), (0, 8, true)] {
        let mut piece = frame[..34].to_vec();
        piece.extend_from_slice(&frame[34 + start..34 + end]);
        let mut packet = Ipv4Packet::new_unchecked(&mut piece[14..]);
        packet.set_total_len(20 + (end - start) as u16);
        packet.set_frag_offset(start as u16);
        packet.set_more_frags(more);
        packet.fill_checksum();
        assert!(sim.upstreams.is_empty());
        sim.inject(&piece);
    }
    assert_eq!(sim.upstream().to, server);
}
