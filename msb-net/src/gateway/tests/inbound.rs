//! Published ports.

use super::*;
use crate::policy::{Decider, Direction};

const CLIENT: &str = "203.0.113.5:5555";

fn endings(sim: &Sim) -> Vec<Ended> {
    let ended = |event: &Event| match event {
        Event::Closed { ended, .. } => Some(*ended),
        _ => None,
    };
    sim.events.iter().filter_map(ended).collect()
}

#[test]
fn a_client_reaches_the_guest_and_bytes_cross_both_ways() {
    for seed in 0..6 {
        let mut config = Config::new(Policy::none(), seed);
        config.mtu = 1500;
        let mut sim = Sim::new(config, seed);
        if seed > 0 {
            sim.faults = Faults {
                lost: 5,
                doubled: 5,
                delayed_up_to: 20,
            };
        }
        let served = sim.listen(80);
        let question = noise(seed, 100_000);
        sim.client(CLIENT, 80, Behaviour::Serve(question.clone()))
            .unwrap();
        let answer = noise(seed + 100, 100_000);
        while !sim.socket(served).may_send() {
            sim.run();
        }
        let origin = sim.socket(served).remote_endpoint().unwrap();
        assert_eq!(origin.addr, IpAddr::from([192, 168, 127, 1]).into());
        assert!(sim.exchange(served, &answer) == question, "seed {seed}");
        sim.run_until(sim.now + Duration::from_secs(200));
        assert!(sim.upstream().received == answer, "seed {seed}");
        // Over a bad link the guest's own stack may lose its end for good.
        if seed == 0 {
            assert_eq!(endings(&sim), [Ended::Finished]);
            assert_eq!(sim.gateway.flows(), (0, 0));
        }
    }
}

#[test]
fn a_guest_that_refuses_or_is_silent_ends_the_client() {
    let mut config = Config::new(Policy::none(), 7);
    config.guest_mac = Some(GUEST_MAC);
    let mut sim = Sim::new(config, 7);
    // Nobody listens: the guest's stack says so, as soon as it has found the
    // gateway's address.
    sim.client(CLIENT, 80, Behaviour::Echo).unwrap();
    sim.run_until(Duration::from_secs(2));
    assert_eq!(sim.upstream().closed, Some(true));
    assert_eq!(endings(&sim), [Ended::NotConnected]);

    let mut sim = self::sim("preset none");
    sim.faults.lost = 100;
    sim.client(CLIENT, 80, Behaviour::Echo).unwrap();
    sim.run_until(Duration::from_secs(14));
    assert_eq!(sim.upstream().closed, None);
    sim.run_until(Duration::from_secs(40));
    assert_eq!(sim.upstream().closed, Some(true));
    assert_eq!(endings(&sim), [Ended::NotConnected]);
    assert_eq!(sim.gateway.next_timeout(), None);
}

#[test]
fn the_policy_says_who_may_come() {
    for (text, peer, allowed) in [
        ("preset none", CLIENT, true),
        ("deny in private", "10.1.1.1:5", false),
        ("deny in private", "[::ffff:10.1.1.1]:5", false),
        ("deny in private", "127.0.0.1:5", true),
        ("deny in host", "127.0.0.1:5", false),
        ("deny in tcp 80 any", CLIENT, false),
        ("deny in tcp 81 any", CLIENT, true),
        ("allow in host\ndeny in any", "[::1]:5", true),
        ("allow in host\ndeny in any", CLIENT, false),
    ] {
        let mut sim = sim(text);
        let flow = sim.client(peer, 80, Behaviour::Echo);
        assert_eq!(flow.is_some(), allowed, "{text}: {peer}");
        sim.run_until(Duration::from_millis(1));
        let Some(Event::Decided {
            flow,
            facts,
            verdict,
            ..
        }) = sim.events.first()
        else {
            panic!("{text}: nothing was told");
        };
        assert_eq!(flow.is_some(), allowed);
        assert_eq!(facts.direction, Direction::In);
        let published = verdict.by == Decider::Published;
        assert_eq!(published, !text.contains("\n") && allowed, "{text}");
    }
}

#[test]
fn clients_count_as_flows() {
    let mut config = Config::new(Policy::none(), 7);
    config.limits.tcp_flows = 2;
    let mut sim = Sim::new(config, 7);
    sim.faults.lost = 100;
    assert!(sim.client(CLIENT, 80, Behaviour::Echo).is_some());
    assert!(sim.client(CLIENT, 80, Behaviour::Echo).is_some());
    assert!(sim.client(CLIENT, 80, Behaviour::Echo).is_none());
    sim.run_until(Duration::from_millis(1));
    assert_eq!(decisions(&sim), [None, None, Some(Refusal::TooManyFlows)]);
    assert_eq!(drops(&sim), []);
}

#[test]
fn every_client_has_a_port_of_its_own() {
    let mut config = Config::new(Policy::none(), 7);
    config.limits.tcp_buffer = 1;
    let mut gateway = Gateway::new(config);
    // More than there are ports in use at once is refused by the flow limit first.
    for _ in 0..10_000 {
        let flow = gateway.accept(Duration::ZERO, CLIENT.parse().unwrap(), 80);
        assert!(flow.is_some());
    }
    assert_eq!(gateway.flows(), (10_000, 0));
}

#[test]
fn datagrams_find_their_way_back() {
    let mut sim = sim("preset none");
    let port = PublishedId(3);
    let peers: [SocketAddr; 2] = ["127.0.0.1:7000".parse().unwrap(), CLIENT.parse().unwrap()];
    let flows = peers.map(|peer| {
        let flow = sim.gateway.datagram_from(sim.now, port, 53, peer, b"who?");
        let again = sim.gateway.datagram_from(sim.now, port, 53, peer, b"who?");
        assert_eq!(flow, again);
        flow.unwrap()
    });
    sim.run();
    assert_eq!(sim.gateway.flows(), (0, 2));
    for n in [0, 1] {
        // The frames to the guest name where it must answer to.
        let frame = sim.seen[2 * n].clone();
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        let datagram = smoltcp::wire::UdpPacket::new_checked(packet.payload()).unwrap();
        assert_eq!(datagram.payload(), b"who?");
        assert_eq!(datagram.dst_port(), 53);
        let back = format!("192.168.127.1:{}", datagram.src_port());
        sim.inject(&super::datagram("192.168.127.2:53", &back, b"me"));
        let (flow, to, payload) = sim.datagrams[n].clone();
        assert_eq!((flow, to, &payload[..]), (flows[n], peers[n], &b"me"[..]));
    }
    sim.run_until(Duration::from_secs(300));
    assert_eq!(sim.gateway.flows(), (0, 0));
    assert_ne!(
        sim.gateway.datagram_from(sim.now, port, 53, peers[0], b"x"),
        Some(flows[0]),
        "a flow that is over is not used again"
    );
}

/// Where the last datagram to the guest went, from which port, and what it held.
fn last_datagram(sim: &Sim) -> (SocketAddr, u16, Vec<u8>) {
    let read = |frame: &Vec<u8>| {
        let (to, protocol, payload): (IpAddr, _, _) = match frame[12..14] {
            [0x08, 0x00] => {
                let packet = Ipv4Packet::new_checked(&frame[14..]).ok()?;
                let to = packet.dst_addr().into();
                (to, packet.next_header(), packet.payload().to_vec())
            }
            _ => {
                let packet = smoltcp::wire::Ipv6Packet::new_checked(&frame[14..]).ok()?;
                let to = packet.dst_addr().into();
                (to, packet.next_header(), packet.payload().to_vec())
            }
        };
        let datagram = smoltcp::wire::UdpPacket::new_checked(&payload[..]).ok()?;
        let to = SocketAddr::new(to, datagram.dst_port());
        let found = (to, datagram.src_port(), datagram.payload().to_vec());
        (protocol == IpProtocol::Udp).then_some(found)
    };
    sim.seen.iter().rev().find_map(read).expect("a datagram")
}

/// Says that nobody receives a datagram to 127.0.0.1, as Linux says it.
fn nobody_at_loopback(port: u16, far: u16) -> Vec<u8> {
    use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Repr, Ipv4Repr};
    let (guest, gateway) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 168, 127, 1));
    let mut data = [0; 8];
    data[..2].copy_from_slice(&far.to_be_bytes());
    data[2..4].copy_from_slice(&port.to_be_bytes());
    let header = Ipv4Repr {
        src_addr: gateway,
        dst_addr: guest,
        next_header: IpProtocol::Udp,
        payload_len: data.len(),
        hop_limit: 64,
    };
    let message = Icmpv4Repr::DstUnreachable {
        reason: Icmpv4DstUnreachable::PortUnreachable,
        header,
        data: &data,
    };
    let mut outbox = Outbox::new(GUEST_MAC, Some([2, 0, 0, 0, 0, 1]), 1500);
    outbox.icmpv4(guest.into(), gateway.into(), &message);
    let mut frame = Vec::new();
    assert!(outbox.pop(&mut frame));
    frame
}

/// A guest that nothing is received by at its own address, nor at IPv6's, and a datagram.
fn refusing(loopback: bool) -> (Sim, u16) {
    let mut config = Config::new(Policy::none(), 7);
    config.guest_mac = Some(GUEST_MAC);
    config.guest_loopback = loopback;
    let mut sim = Sim::new(config, 7);
    let peer = CLIENT.parse().unwrap();
    let (now, port) = (sim.now, PublishedId(3));
    // Its stack has no such socket, and says so once it has found the gateway.
    for _ in 0..2 {
        let flow = sim.gateway.datagram_from(now, port, 53, peer, b"who?");
        assert!(flow.is_some());
        sim.run();
    }
    let (_, far, _) = last_datagram(&sim);
    (sim, far)
}

#[test]
fn a_datagram_goes_on_to_the_loopback_address_and_is_answered_from_there() {
    let (mut sim, far) = refusing(true);
    let (to, _, payload) = last_datagram(&sim);
    assert_eq!(
        (to, &payload[..]),
        ("127.0.0.1:53".parse().unwrap(), &b"who?"[..])
    );
    let back = format!("192.168.127.1:{far}");
    sim.inject(&super::datagram("127.0.0.1:53", &back, b"me"));
    let (_, to, payload) = sim.datagrams[0].clone();
    assert_eq!((to, &payload[..]), (CLIENT.parse().unwrap(), &b"me"[..]));
    // Nothing else may come from there.
    let stray = format!("192.168.127.1:{}", far + 1);
    for (from, to) in [
        ("127.0.0.1:54", &back[..]),
        ("127.0.0.1:53", &stray),
        ("127.0.0.1:53", "1.1.1.1:53"),
    ] {
        sim.inject(&super::datagram(from, to, b"me"));
    }
    assert_eq!(sim.datagrams.len(), 1);
    assert_eq!(drops(&sim), [DropReason::SpoofedAddress; 3]);
}

#[test]
fn a_datagram_that_nobody_receives_is_tried_at_each_address_once() {
    let (mut sim, far) = refusing(true);
    let before = sim.seen.len();
    sim.inject(&nobody_at_loopback(53, far));
    sim.run();
    let addresses: Vec<_> = sim.seen[before..]
        .iter()
        .filter(|frame| frame[12..14] == [0x86, 0xdd] && frame[20] == 17)
        .collect();
    assert_eq!(addresses.len(), 1, "IPv6's, and then no other");
    assert_eq!(drops(&sim), []);
    // The client tries again, and so does the gateway, from IPv6's address on.
    let peer = CLIENT.parse().unwrap();
    for _ in 0..3 {
        let (now, port) = (sim.now, PublishedId(3));
        sim.gateway.datagram_from(now, port, 53, peer, b"again?");
        sim.run();
    }
    let (to, _, payload) = last_datagram(&sim);
    assert_eq!(
        (to, &payload[..]),
        ("127.0.0.1:53".parse().unwrap(), &b"again?"[..])
    );
}

#[test]
fn a_guest_that_takes_nothing_for_loopback_is_sent_nothing_there() {
    let (sim, _) = refusing(false);
    let (to, _, payload) = last_datagram(&sim);
    assert_eq!(
        (to, &payload[..]),
        ("[fd6d:7362::2]:53".parse().unwrap(), &b"who?"[..])
    );
}

#[test]
fn a_guest_cannot_answer_from_another_port() {
    let mut sim = sim("preset none");
    let peer = CLIENT.parse().unwrap();
    sim.gateway
        .datagram_from(sim.now, PublishedId(0), 53, peer, b"who?")
        .unwrap();
    sim.run();
    let packet = Ipv4Packet::new_checked(&sim.seen[0][14..]).unwrap();
    let port = smoltcp::wire::UdpPacket::new_checked(packet.payload())
        .unwrap()
        .src_port();
    let back = format!("192.168.127.1:{port}");
    sim.inject(&super::datagram("192.168.127.2:54", &back, b"me"));
    assert!(sim.datagrams.is_empty());
}

#[test]
fn a_guest_without_ipv6_refuses_nearly_at_once() {
    let mut config = Config::new(Policy::none(), 7);
    config.guest_mac = Some(GUEST_MAC);
    let mut sim = Sim::new(config, 7);
    sim.forget_ipv6();
    sim.client(CLIENT, 80, Behaviour::Echo).unwrap();
    sim.run_until(Duration::from_secs(6));
    assert_eq!(sim.upstream().closed, Some(true));
    assert_eq!(endings(&sim), [Ended::NotConnected]);
    assert_eq!(sim.gateway.next_timeout(), None);
}

/// The guest's stack looks for a neighbour once a second, whatever its family, and has just
/// done so: its answer to the second try comes more than a second after it.
#[test]
fn a_service_on_ipv6_only_is_reached_though_the_guest_takes_its_time() {
    let mut config = Config::new(Policy::none(), 7);
    config.guest_mac = Some(GUEST_MAC);
    let service = SocketAddr::new(config.guest_v6.into(), 80);
    let mut sim = Sim::new(config, 7);
    let served = sim.listen(80);
    sim.socket(served).abort();
    sim.socket(served).listen(service).expect("it can listen");
    // What it says to the gateway first makes it look for the gateway's address.
    sim.connect("1.1.1.1:80", 40_000);
    sim.run_until(Duration::from_millis(10));
    sim.client(CLIENT, 80, Behaviour::Serve(b"hello".to_vec()));
    sim.run_until(Duration::from_secs(2));
    assert!(sim.socket(served).may_send(), "it has a client");
    assert_eq!(sim.exchange(served, b"world"), b"hello");
    sim.run();
    assert_eq!(sim.upstream().received, b"world");
}
