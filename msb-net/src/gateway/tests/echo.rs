//! Echo requests, and what the network says about packets.

use smoltcp::wire::{Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, Ipv6Packet};

use super::*;

const GUEST: &str = "192.168.127.2";
const FAR: &str = "1.1.1.1";
const FAR_V6: &str = "2606:4700::1";

/// An echo request of the guest, with these hops.
fn request(to: &str, hops: u8, ident: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut outbox = Outbox::new(GUEST_MAC, Some([2, 0, 0, 0, 0, 1]), 65_520);
    let to: IpAddr = to.parse().unwrap();
    if to.is_ipv4() {
        let message = Icmpv4Repr::EchoRequest {
            ident,
            seq_no: sequence,
            data,
        };
        outbox.icmpv4(GUEST.parse().unwrap(), to, &message);
    } else {
        let message = Icmpv6Repr::EchoRequest {
            ident,
            seq_no: sequence,
            data,
        };
        outbox.icmpv6("fd6d:7362::2".parse().unwrap(), to, &message);
    }
    let mut frame = Vec::new();
    outbox.pop(&mut frame);
    set_hops(&mut frame, hops);
    frame
}

fn set_hops(frame: &mut [u8], hops: u8) {
    if frame[14] >> 4 == 4 {
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        packet.set_hop_limit(hops);
        packet.fill_checksum();
    } else {
        Ipv6Packet::new_unchecked(&mut frame[14..]).set_hop_limit(hops);
    }
}

/// Who sent the last ICMP message, its type and code, and what is behind its
/// first eight bytes.
fn last(sim: &Sim) -> (IpAddr, (u8, u8), Vec<u8>) {
    let frame = &sim.seen.last().expect("a frame")[14..];
    if frame[0] >> 4 == 4 {
        let packet = Ipv4Packet::new_checked(frame).unwrap();
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert!(message.verify_checksum());
        let kind = (message.msg_type().into(), message.msg_code());
        (
            packet.src_addr().into(),
            kind,
            packet.payload()[8..].to_vec(),
        )
    } else {
        let packet = Ipv6Packet::new_checked(frame).unwrap();
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        assert!(message.verify_checksum(&from, &to));
        let kind = (message.msg_type().into(), message.msg_code());
        (from.into(), kind, packet.payload()[8..].to_vec())
    }
}

/// The last echo request that the driver got.
fn passed_on(sim: &Sim) -> (FlowId, IpAddr, Option<u8>, u16, Vec<u8>) {
    match sim.echoes.last() {
        Some(Action::Echo {
            flow,
            to,
            handling,
            sequence,
            payload,
        }) => (*flow, *to, handling.hops, *sequence, payload.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_gateway_answers_for_itself() {
    let mut sim = sim("preset none");
    sim.inject(&request("192.168.127.1", 64, 1, 2, b"hello"));
    let (from, kind, data) = last(&sim);
    assert_eq!(
        (from, kind, &data[..]),
        ("192.168.127.1".parse().unwrap(), (0, 0), &b"hello"[..])
    );
    sim.inject(&request("fd6d:7362::1", 64, 1, 2, b"hello"));
    assert_eq!(last(&sim).1, (129, 0));
    assert!(sim.echoes.is_empty());
}

#[test]
fn requests_are_judged_passed_on_and_answered() {
    for (far, reply) in [(FAR, (0, 0)), (FAR_V6, (129, 0))] {
        let mut sim = sim("preset public-only");
        sim.inject(&request(far, 64, 7, 1, b"hello"));
        let (flow, to, hops, sequence, payload) = passed_on(&sim);
        assert_eq!((to, hops, sequence), (far.parse().unwrap(), None, 1));
        assert_eq!(payload, b"hello");
        sim.gateway.echo_reply(sim.now, flow, 1, b"hello");
        sim.run();
        let (from, kind, data) = last(&sim);
        assert_eq!((from, kind, &data[..]), (to, reply, &b"hello"[..]));

        let frames = sim.seen.len();
        for (sequence, said) in [(1, &b"hello"[..]), (2, b"hello"), (1, b"other")] {
            sim.gateway.echo_reply(sim.now, flow, sequence, said);
        }
        sim.run();
        assert_eq!(sim.seen.len(), frames, "only what was asked, and once");
        sim.run_until(Duration::from_secs(60));
        sim.gateway.echo_reply(sim.now, flow, 1, b"hello");
        assert_eq!(sim.gateway.next_timeout(), None, "the flow is over");
    }
    let mut sim = sim("preset public-only");
    for to in ["10.0.0.1", "169.254.169.254"] {
        sim.inject(&request(to, 64, 1, 1, b"hello"));
        assert_eq!(last(&sim).1, (3, 13), "{to}");
    }
    assert!(sim.echoes.is_empty());
}

#[test]
fn nothing_can_be_sent_to_a_guest_in_replies() {
    let mut sim = sim("preset public-only");
    sim.inject(&request(FAR, 64, 7, 1, b"question"));
    let (flow, ..) = passed_on(&sim);
    sim.gateway.echo_reply(sim.now, flow, 1, b"commands");
    sim.run();
    assert!(sim.seen.is_empty());
    assert_eq!(drops(&sim), [DropReason::ForeignReply]);
}

#[test]
fn requests_are_bounded_in_size_number_and_flows() {
    let mut sim = sim("preset public-only");
    sim.inject(&request(FAR, 64, 1, 1, &[0; 1473]));
    assert_eq!(last(&sim).1, (3, 13));
    assert!(sim.echoes.is_empty());
    for sequence in 0..1000 {
        sim.inject(&request(FAR, 64, 1, sequence, &[0; 1472]));
    }
    assert_eq!(sim.echoes.len(), 100);
    sim.run_until(sim.now + Duration::from_secs(1));
    for ident in 0..1000 {
        sim.inject(&request(FAR, 64, ident, 1, b"x"));
    }
    assert_eq!(sim.echoes.len(), 150);
    assert!(sim.gateway.echo.len() <= 64);
}

#[test]
fn a_host_that_forbids_pings_is_told_of() {
    let mut sim = sim("preset public-only");
    sim.inject(&request(FAR, 64, 1, 1, b"x"));
    let (flow, ..) = passed_on(&sim);
    sim.gateway.echo_forbidden(sim.now, flow);
    sim.inject(&request(FAR, 64, 2, 1, b"x"));
    sim.run();
    assert_eq!(sim.echoes.len(), 1, "nobody tries any more");
    assert_eq!(last(&sim).1, (3, 13));
    let refused = Some(Refusal::Echo);
    let told =
        |event: &&Event| matches!(event, Event::Decided { refusal, .. } if *refusal == refused);
    assert_eq!(sim.events.iter().filter(told).count(), 2);
}

#[test]
fn the_gateway_is_the_first_hop() {
    for (far, gateway, exceeded) in [
        (FAR, "192.168.127.1", (11, 0)),
        (FAR_V6, "fd6d:7362::1", (3, 0)),
    ] {
        let mut sim = sim("preset none");
        for hops in [0, 1] {
            sim.inject(&request(far, hops, 1, 1, b"hello"));
            let (from, kind, _) = last(&sim);
            assert_eq!((from, kind), (gateway.parse().unwrap(), exceeded));
        }
        let mut sim = self::sim("preset public-only");
        for (hops, left) in [(2, Some(1)), (30, Some(29)), (64, None), (255, None)] {
            sim.inject(&request(far, hops, 1, 1, b"hello"));
            assert_eq!(passed_on(&sim).2, left);
        }
    }
}

#[test]
fn what_the_network_says_about_a_datagram_reaches_the_guest() {
    let router: IpAddr = "203.0.113.1".parse().unwrap();
    let gateway: IpAddr = "192.168.127.1".parse().unwrap();
    let far: IpAddr = FAR.parse().unwrap();
    for (error, from, said_by, kind) in [
        (PathError::TimeExceeded, Some(router), router, (11, 0)),
        (PathError::PortUnreachable, Some(far), far, (3, 3)),
        (PathError::PortUnreachable, None, far, (3, 3)),
        (PathError::HostUnreachable, None, gateway, (3, 1)),
        (
            PathError::NetworkUnreachable,
            Some("::1".parse().unwrap()),
            gateway,
            (3, 0),
        ),
        (PathError::Prohibited, Some(router), router, (3, 13)),
        (
            PathError::TooBig { mtu: 1400 },
            Some(router),
            router,
            (3, 4),
        ),
    ] {
        let mut sim = sim("preset public-only");
        sim.inject(&datagram("192.168.127.2:5000", "1.1.1.1:33434", b"probe"));
        let (flow, ..) = sim.datagrams[0];
        sim.gateway
            .path_failed(sim.now, flow, error, from, b"probe");
        sim.run();
        let (from, found, quoted) = last(&sim);
        assert_eq!((from, found), (said_by, kind), "{error:?}");
        // The packet as the guest sent it.
        let packet = Ipv4Packet::new_unchecked(&quoted[..]);
        assert_eq!(
            IpAddr::from(packet.src_addr()),
            GUEST.parse::<IpAddr>().unwrap()
        );
        assert_eq!(IpAddr::from(packet.dst_addr()), far);
        assert_eq!(packet.next_header(), IpProtocol::Udp);
        let header = &quoted[20..];
        assert_eq!(
            header[..4],
            [5000u16.to_be_bytes(), 33434u16.to_be_bytes()].concat()
        );
        if let PathError::TooBig { mtu } = error {
            let frame = &sim.seen.last().unwrap()[14 + 20..];
            assert_eq!(frame[6..8], (mtu as u16).to_be_bytes(), "RFC 1191");
        }
    }
}

#[test]
fn what_the_network_says_about_a_request_reaches_the_guest() {
    for (far, router, kind, echo) in [
        (FAR, "203.0.113.1", (11, 0), 8),
        (FAR_V6, "2001:db8:5::1", (3, 0), 128),
    ] {
        let mut sim = sim("preset public-only");
        sim.inject(&request(far, 5, 77, 9, b"hello"));
        let (flow, ..) = passed_on(&sim);
        let router = router.parse().unwrap();
        let quoted = [&9u16.to_be_bytes()[..], b"hello"].concat();
        let error = PathError::TimeExceeded;
        sim.gateway
            .path_failed(sim.now, flow, error, Some(router), &quoted);
        sim.gateway
            .path_failed(sim.now, flow, error, Some(router), b"");
        sim.run();
        let (from, found, quoted) = last(&sim);
        assert_eq!((from, found), (router, kind));
        let header = if router.is_ipv4() {
            &quoted[20..]
        } else {
            &quoted[40..]
        };
        assert_eq!(header[0], echo);
        assert_eq!(
            header[4..8],
            [77u16.to_be_bytes(), 9u16.to_be_bytes()].concat()
        );
    }
}
