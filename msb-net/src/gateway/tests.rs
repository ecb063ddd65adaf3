mod dns;
mod echo;
mod ending;
mod fuzzed;
mod inbound;
mod intercept;
mod offload;
mod path;
mod pieces;
mod stingy;
mod throttle;
mod together;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::socket::tcp::State;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, Icmpv4Packet, IpProtocol, Ipv4Packet};

use super::outbox::Outbox;
use super::sim::{Behaviour, Dice, Faults, GUEST_MAC, Sim};
use super::*;

const SERVER: &str = "1.1.1.1:80";
const SERVER_V6: &str = "[2606:4700::1]:80";

fn sim(policy: &str) -> Sim {
    Sim::new(Config::new(policy.parse().unwrap(), 7), 7)
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..length).map(|_| dice.below(256) as u8).collect()
}

/// A UDP datagram from the guest, as a frame.
fn datagram(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    datagram_by(GUEST_MAC, from, to, payload)
}

fn datagram_by(mac: Mac, from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut outbox = Outbox::new(mac, Some([2, 0, 0, 0, 0, 1]), 65_520);
    assert!(outbox.datagram(from.parse().unwrap(), to.parse().unwrap(), payload));
    let mut frame = Vec::new();
    assert!(outbox.pop(&mut frame));
    frame
}

/// What refused each flow that the policy let through, if something did. A flow that may
/// open is told of with its number, and only such a flow.
fn decisions(sim: &Sim) -> Vec<Option<Refusal>> {
    let told = |event: &Event| match event {
        Event::Decided { flow, refusal, .. } => {
            assert_eq!(flow.is_some(), refusal.is_none());
            Some(*refusal)
        }
        _ => None,
    };
    sim.events.iter().filter_map(told).collect()
}

fn drops(sim: &Sim) -> Vec<DropReason> {
    let reason = |event: &Event| match event {
        Event::Dropped { reason, .. } => Some(*reason),
        _ => None,
    };
    sim.events.iter().filter_map(reason).collect()
}

/// The type and code of the last ICMP message to the guest.
fn last_icmp(sim: &Sim) -> Option<(u8, u8)> {
    let frame = EthernetFrame::new_checked(sim.seen.last()?).ok()?;
    assert_eq!(frame.ethertype(), EthernetProtocol::Ipv4);
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    assert_eq!(packet.next_header(), IpProtocol::Icmp);
    let message = Icmpv4Packet::new_checked(packet.payload()).ok()?;
    assert!(message.verify_checksum());
    Some((message.msg_type().into(), message.msg_code()))
}

#[test]
fn bytes_cross_both_ways_unchanged() {
    for server in [SERVER, SERVER_V6] {
        let mut sim = sim("preset public-only");
        sim.serve(80, Behaviour::Echo);
        let data = noise(1, 1_000_000);
        let handle = sim.connect(server, 40_000);
        let got = sim.exchange(handle, &data);
        assert!(
            got == data,
            "{server}: {} of {} bytes",
            got.len(),
            data.len()
        );
        assert!(sim.upstream().received == data);
        assert_eq!(sim.upstream().to, server.parse().unwrap());
        sim.run_until(sim.now + Duration::from_secs(60));
        assert_eq!(sim.gateway.flows(), (0, 0));
        assert_eq!(sim.upstream().closed, Some(false));
        let closed = sim.events.iter().find_map(|event| match event {
            Event::Closed {
                ended,
                sent,
                received,
                ..
            } => Some((*ended, *sent, *received)),
            _ => None,
        });
        assert_eq!(closed, Some((Ended::Finished, 1_000_000, 1_000_000)));
    }
}

#[test]
fn bytes_survive_loss_reordering_and_duplication() {
    for seed in 0..12 {
        let mut config = Config::new("preset public-only".parse().unwrap(), seed);
        config.mtu = if seed % 2 == 0 { 1500 } else { 9000 };
        config.limits.tcp_buffer = 32 * 1024;
        let mut sim = Sim::new(config, seed);
        sim.faults = Faults {
            lost: 5,
            doubled: 5,
            delayed_up_to: 20,
        };
        sim.serve(80, Behaviour::Echo);
        let data = noise(seed, 150_000);
        let server = if seed % 3 == 0 { SERVER_V6 } else { SERVER };
        let handle = sim.connect(server, 40_000);
        let got = sim.exchange(handle, &data);
        assert!(got == data, "seed {seed}: {} bytes", got.len());
        assert!(sim.upstream().received == data, "seed {seed}");
    }
}

#[test]
fn a_server_may_speak_first_and_end_first() {
    let mut sim = sim("preset public-only");
    let banner = noise(3, 300_000);
    sim.serve(80, Behaviour::Serve(banner.clone()));
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    assert!(
        sim.socket(handle).can_recv(),
        "the banner waits for nothing"
    );
    let mut got = Vec::new();
    while sim.socket(handle).may_recv() {
        let _ = sim.socket(handle).recv(|bytes| {
            got.extend_from_slice(bytes);
            (bytes.len(), ())
        });
        sim.run();
    }
    assert!(got == banner);
    // The guest's half is still open.
    sim.socket(handle).send_slice(b"thanks").unwrap();
    sim.run();
    assert_eq!(sim.upstream().received, b"thanks");
    assert!(!sim.upstream().shut);
    sim.socket(handle).close();
    sim.run_until(sim.now + Duration::from_secs(60));
    assert!(sim.upstream().shut);
    assert_eq!(sim.upstream().closed, Some(false));
    assert_eq!(sim.gateway.flows(), (0, 0));
}

#[test]
fn a_connect_ends_as_the_upstreams_does() {
    let mut sim = sim("preset public-only");
    let handle = sim.connect(SERVER, 40_000);
    sim.run_until(Duration::from_millis(1));
    assert_eq!(sim.socket(handle).state(), State::Closed, "refused at once");

    for (error, code) in [
        (ConnectError::NetworkUnreachable, 0),
        (ConnectError::HostUnreachable, 1),
    ] {
        let mut sim = self::sim("preset public-only");
        sim.serve(80, Behaviour::Fail(error));
        sim.connect(SERVER, 40_000);
        sim.run_until(Duration::from_millis(1));
        assert_eq!(last_icmp(&sim), Some((3, code)));
        assert_eq!(sim.gateway.flows(), (0, 0));
    }

    let mut sim = self::sim("preset public-only");
    sim.serve(80, Behaviour::Fail(ConnectError::TimedOut));
    let handle = sim.connect(SERVER, 40_000);
    sim.run_until(Duration::from_millis(1));
    assert_eq!(sim.socket(handle).state(), State::SynSent, "silence");
}

#[test]
fn a_denied_flow_is_reset_at_once_and_told_of() {
    for (text, to) in [
        ("preset public-only", "169.254.169.254:80"),
        ("preset public-only", "192.168.127.1:22"),
        ("deny any", SERVER),
        ("preset public-only", "[fd00:ec2::254]:80"),
        ("preset public-only", "[64:ff9b::a9fe:a9fe]:80"),
        ("preset public-only", "[2002:7f00:1::1]:80"),
    ] {
        let mut sim = sim(text);
        sim.serve(80, Behaviour::Echo);
        let handle = sim.connect(to, 40_000);
        sim.run_until(Duration::from_millis(1));
        assert_eq!(sim.socket(handle).state(), State::Closed, "{text}: {to}");
        assert!(sim.upstreams.is_empty(), "{text}: {to}");
        let denied = |event: &Event| matches!(event, Event::Decided { flow: None, .. });
        assert!(sim.events.iter().any(denied), "{text}: {to}");
    }
}

#[test]
fn the_hosts_loopback_cannot_be_reached_around_the_policy() {
    // `deny host` must hold although everything else is allowed.
    const POLICY: &str = "deny host\nallow any";
    let (guest, guest_v6) = ("192.168.127.2:5000", "[fd6d:7362::2]:5000");
    for (from, to) in [
        (guest, "127.0.0.1:9"),
        (guest, "0.0.0.0:9"),
        (guest_v6, "[::1]:9"),
        (guest_v6, "[::]:9"),
        (guest_v6, "[::ffff:127.0.0.1]:9"),
        (guest_v6, "[::ffff:0.0.0.0]:9"),
        (guest_v6, "[64:ff9b::7f00:1]:9"),
        (guest_v6, "[64:ff9b::]:9"),
        (guest_v6, "[2002:7f00:1::]:9"),
    ] {
        let mut sim = sim(POLICY);
        sim.inject(&datagram(from, to, b"x"));
        let refused = Some(Refusal::Loopback);
        let told =
            |event: &Event| matches!(event, Event::Decided { refusal, .. } if *refusal == refused);
        assert!(sim.events.iter().any(told), "{to}");
        assert!(sim.datagrams.is_empty(), "{to}");
    }
    let mut config = Config::new(POLICY.parse().unwrap(), 7);
    config.host_addresses = vec!["10.0.0.5".parse().unwrap()];
    let mut sim = Sim::new(config, 7);
    for to in ["192.168.127.1:9", "10.0.0.5:9"] {
        sim.inject(&datagram(guest, to, b"x"));
        assert!(sim.datagrams.is_empty(), "{to}");
        assert_eq!(last_icmp(&sim), Some((3, 13)), "{to}");
    }
    sim.inject(&datagram(guest, "10.0.0.6:9", b"x"));
    assert_eq!(sim.datagrams.len(), 1);
}

#[test]
fn what_is_dialled_is_what_was_judged() {
    for (text, to, dialled) in [
        ("preset public-only", "[64:ff9b::101:101]:80", "1.1.1.1:80"),
        ("preset public-only", "[::ffff:0:1.1.1.1]:80", "1.1.1.1:80"),
        ("allow host", "192.168.127.1:80", "127.0.0.1:80"),
        ("allow host", "[fd6d:7362::1]:80", "[::1]:80"),
    ] {
        let mut sim = sim(text);
        sim.serve(80, Behaviour::Echo);
        sim.connect(to, 40_000);
        sim.run();
        assert_eq!(sim.upstream().to, dialled.parse().unwrap(), "{to}");
    }
}

/// What a client says over a flow that a block list makes the gateway examine,
/// byte by byte, and what gets through.
fn claiming(text: &str, to: &str, said: &[u8]) -> (Sim, Vec<u8>, State) {
    let mut sim = sim(text);
    sim.serve(to.parse::<SocketAddr>().unwrap().port(), Behaviour::Echo);
    let handle = sim.connect(to, 40_000);
    sim.run();
    for byte in said {
        // Once refused, the guest's socket takes no more.
        let _ = sim.socket(handle).send_slice(&[*byte]);
        sim.run_until(sim.now + Duration::from_millis(1));
    }
    let received = sim.upstream().received.clone();
    let state = sim.socket(handle).state();
    (sim, received, state)
}

#[test]
fn a_claim_is_judged_before_a_byte_goes_on() {
    const BLOCKING: &str = "preset public-only\nblock ads.example";
    let good = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\nbody";
    let (_, received, state) = claiming(BLOCKING, SERVER, good);
    assert_eq!((&received[..], state), (&good[..], State::Established));

    let bad = b"GET / HTTP/1.1\r\nHost: x.ads.example\r\n\r\nbody";
    for to in [SERVER, "1.1.1.1:5000"] {
        let (sim, received, state) = claiming(BLOCKING, to, bad);
        assert_eq!((&received[..], state), (&b""[..], State::Closed), "{to}");
        assert_eq!(sim.upstream().closed, Some(true));
        let told = |event: &Event| {
            let Event::Decided {
                flow: None,
                claim: Some(claim),
                ..
            } = event
            else {
                return false;
            };
            claim.as_str() == "x.ads.example"
        };
        assert!(sim.events.iter().any(told), "{to}");
        let ended = |event: &Event| {
            matches!(
                event,
                Event::Closed {
                    ended: Ended::Denied,
                    ..
                }
            )
        };
        assert!(sim.events.iter().any(ended), "{to}");
    }
}

#[test]
fn an_examined_flow_may_be_ended_or_answered_early() {
    const BLOCKING: &str = "preset public-only\nblock ads.example";
    let mut sim = sim(BLOCKING);
    sim.serve(22, Behaviour::Serve(b"SSH-2.0-x\r\n".to_vec()));
    let handle = sim.connect("1.1.1.1:22", 40_000);
    sim.run();
    assert_eq!(
        sim.socket(handle).recv_queue(),
        11,
        "the server speaks first"
    );
    sim.socket(handle).send_slice(b"SSH-2.0-y\r\n").unwrap();
    sim.run();
    assert_eq!(sim.upstream().received, b"SSH-2.0-y\r\n");

    for (said, passed_on) in [(&b""[..], true), (b"GET", true)] {
        let mut sim = self::sim(BLOCKING);
        sim.serve(80, Behaviour::Echo);
        let handle = sim.connect(SERVER, 40_000);
        let got = sim.exchange(handle, said);
        sim.run_until(sim.now + Duration::from_secs(60));
        // Nothing is claimed, and the list blocks nothing that has no name.
        assert_eq!(got == said, passed_on);
        assert_eq!(sim.gateway.flows(), (0, 0));
    }
}

#[test]
fn a_connection_cut_off_upstream_is_cut_off_here() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::CutOff);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    sim.socket(handle).send_slice(b"hello").unwrap();
    sim.run();
    assert_eq!(sim.socket(handle).state(), State::Closed);
    assert_eq!(sim.upstream().closed, Some(true));
    assert_eq!(sim.gateway.flows(), (0, 0));
}

#[test]
fn a_connection_cut_off_by_the_guest_is_cut_off_upstream() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Echo);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    sim.socket(handle).abort();
    sim.run();
    assert_eq!(sim.upstream().closed, Some(true));
    assert_eq!(sim.gateway.flows(), (0, 0));
}

#[test]
fn a_stalled_upstream_holds_up_its_own_flow_only() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Stall);
    sim.serve(81, Behaviour::Echo);
    let stalled = sim.connect(SERVER, 40_000);
    for _ in 0..50 {
        let socket = sim.socket(stalled);
        if socket.can_send() {
            socket.send_slice(&[0; 100_000]).unwrap();
        }
        sim.run();
    }
    assert!(!sim.socket(stalled).can_send(), "the window is closed");
    let data = noise(5, 200_000);
    let handle = sim.connect("1.1.1.1:81", 40_001);
    assert!(sim.exchange(handle, &data) == data);
}

#[test]
fn idle_flows_wake_nobody() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Echo);
    let handles: Vec<_> = (0..20).map(|n| sim.connect(SERVER, 40_000 + n)).collect();
    sim.run();
    assert_eq!(sim.gateway.flows(), (20, 0));
    assert_eq!(sim.gateway.next_timeout(), None);
    sim.run_until(Duration::from_secs(100_000));
    for handle in handles {
        assert_eq!(sim.socket(handle).state(), State::Established);
    }
}

#[test]
fn more_flows_than_allowed_are_refused() {
    let mut config = Config::new("preset public-only".parse().unwrap(), 7);
    config.limits.tcp_flows = 3;
    let mut sim = Sim::new(config, 7);
    sim.serve(80, Behaviour::Echo);
    let handles: Vec<_> = (0..4).map(|n| sim.connect(SERVER, 40_000 + n)).collect();
    sim.run();
    let states: Vec<_> = handles.iter().map(|h| sim.socket(*h).state()).collect();
    assert_eq!(sim.gateway.flows(), (3, 0));
    assert_eq!(
        states
            .iter()
            .filter(|state| **state == State::Closed)
            .count(),
        1
    );
    assert_eq!(decisions(&sim)[2..], [None, Some(Refusal::TooManyFlows)]);
}

#[test]
fn what_the_guest_sent_is_kept_until_it_was_read() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Stall);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    let flow = *sim.upstreams.keys().next().unwrap();
    sim.gateway.finish(flow);
    let data = noise(8, 50_000);
    sim.socket(handle).send_slice(&data).unwrap();
    sim.socket(handle).close();
    sim.run_until(Duration::from_secs(1000));
    assert_eq!(sim.gateway.flows(), (1, 0), "nobody has read anything");
    let mut got = Vec::new();
    let take = |got: &mut Vec<u8>, bytes: &[u8]| {
        got.extend_from_slice(bytes);
        bytes.len()
    };
    while sim.gateway.read(flow, |bytes| take(&mut got, bytes)) > 0 {}
    sim.run();
    assert!(got == data);
    assert!(sim.upstream().shut);
    assert_eq!(sim.upstream().closed, Some(false));
    assert_eq!(sim.gateway.flows(), (0, 0));
}

#[test]
fn connections_that_the_far_end_closes_do_not_pile_up() {
    let mut config = Config::new("preset public-only".parse().unwrap(), 7);
    config.limits.tcp_flows = 4;
    let mut sim = Sim::new(config, 7);
    sim.serve(80, Behaviour::Serve(b"bye".to_vec()));
    for port in 0..100 {
        let handle = sim.connect(SERVER, 40_000 + port);
        assert_eq!(sim.exchange(handle, b""), b"bye");
        sim.run_until(sim.now + Duration::from_millis(1));
        assert_eq!(sim.gateway.flows(), (0, 0));
    }
}

#[test]
fn ports_can_be_used_again_at_once() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Serve(b"hello".to_vec()));
    for round in 0..50 {
        let handle = sim.connect(SERVER, 40_000);
        assert_eq!(sim.exchange(handle, b""), b"hello", "round {round}");
        sim.run_until(sim.now + Duration::from_millis(50));
        sim.socket(handle).abort();
        sim.run_until(sim.now + Duration::from_millis(50));
    }
    assert_eq!(sim.upstreams.len(), 50);
    assert!(sim.gateway.flows().0 <= 1);
}

#[test]
fn datagrams_cross_both_ways() {
    for (guest, far) in [
        ("192.168.127.2:5000", "1.1.1.1:123"),
        ("[fd6d:7362::2]:5000", "[2606:4700::1]:123"),
    ] {
        let mut sim = sim("preset public-only");
        let frame = datagram(guest, far, b"ping");
        sim.inject(&frame);
        sim.inject(&frame);
        assert_eq!(sim.gateway.flows(), (0, 1));
        let (flow, to, payload) = sim.datagrams[1].clone();
        assert_eq!(to, far.parse::<SocketAddr>().unwrap());
        assert_eq!(payload, b"ping");
        sim.gateway.datagram(sim.now, flow, b"pong");
        sim.run();
        let expected = datagram_by([2, 0, 0, 0, 0, 1], far, guest, b"pong");
        let crossed = |frame: &Vec<u8>| frame[14..] == expected[14..];
        assert!(sim.seen.iter().any(crossed));

        sim.run_until(Duration::from_secs(100));
        sim.gateway.datagram(sim.now, flow, b"pong");
        sim.run_until(Duration::from_secs(200));
        assert_eq!(sim.gateway.flows(), (0, 1), "it was used");
        sim.run_until(Duration::from_secs(230));
        assert_eq!(sim.gateway.flows(), (0, 0));
        assert_eq!(sim.gateway.next_timeout(), None);
        sim.gateway.datagram(sim.now, flow, b"late");
    }
}

#[test]
fn the_idlest_datagram_flow_makes_room() {
    let mut config = Config::new("preset public-only".parse().unwrap(), 7);
    config.limits.udp_flows = 2;
    let mut sim = Sim::new(config, 7);
    for (at, port) in [(1, 1000), (2, 2000), (3, 1000), (4, 3000), (5, 1000)] {
        sim.run_until(Duration::from_secs(at));
        let from = format!("192.168.127.2:{port}");
        sim.inject(&datagram(&from, "1.1.1.1:123", b"x"));
    }
    assert_eq!(sim.gateway.flows(), (0, 2));
    let flows: Vec<_> = sim.datagrams.iter().map(|(flow, ..)| *flow).collect();
    assert_eq!(flows[0], flows[4], "port 1000 was used lately and kept");
}

#[test]
fn a_denied_datagram_is_answered() {
    for (text, to) in [
        ("preset public-only", "10.0.0.1:123"),
        ("preset public-only", "192.168.127.1:123"),
    ] {
        let mut sim = sim(text);
        sim.inject(&datagram("192.168.127.2:5000", to, b"x"));
        assert_eq!(last_icmp(&sim), Some((3, 13)), "{to}");
        assert!(sim.datagrams.is_empty());
        assert_eq!(sim.gateway.flows(), (0, 0));
    }
}

#[test]
fn spoofed_and_stray_frames_go_nowhere() {
    let guest = "192.168.127.2:5000";
    for (frame, reason) in [
        (
            datagram("192.168.127.3:5000", "1.1.1.1:123", b"x"),
            DropReason::SpoofedAddress,
        ),
        (
            datagram("[fe80::1]:5000", "[2606:4700::1]:123", b"x"),
            DropReason::SpoofedAddress,
        ),
        (
            datagram_by([2, 0, 0, 0, 0, 8], guest, "1.1.1.1:123", b"x"),
            DropReason::SpoofedMac,
        ),
        (
            datagram(guest, "224.0.0.251:5353", b"x"),
            DropReason::Multicast,
        ),
        (
            datagram(guest, "255.255.255.255:67", b"x"),
            DropReason::Multicast,
        ),
        (vec![0; 13], DropReason::Malformed),
        (vec![], DropReason::Malformed),
    ] {
        let mut config = Config::new(Policy::allow_all(), 7);
        config.guest_mac = Some(GUEST_MAC);
        let mut sim = Sim::new(config, 7);
        sim.inject(&frame);
        assert_eq!(drops(&sim), [reason]);
        assert!(sim.datagrams.is_empty() && sim.seen.is_empty());
    }
}

#[test]
fn a_frame_with_a_wrong_checksum_is_dropped() {
    let good = datagram("192.168.127.2:5000", "1.1.1.1:123", b"hello");
    let patch = |offset: usize, byte: u8, fix: bool| {
        let mut frame = good.clone();
        frame[offset] = byte;
        if fix {
            Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
        }
        frame
    };
    for (frame, reason) in [
        (patch(14 + 8, 1, false), DropReason::Malformed),
        (patch(14 + 28, 0xff, false), DropReason::Malformed),
        (patch(14 + 2, 0xff, true), DropReason::Malformed),
    ] {
        let mut sim = sim("preset allow-all");
        sim.inject(&frame);
        assert_eq!(drops(&sim), [reason]);
        assert!(sim.datagrams.is_empty());
    }
}

#[test]
fn a_flood_of_connection_attempts_stays_in_bounds() {
    let mut config = Config::new(Policy::allow_all(), 7);
    config.guest_mac = Some(GUEST_MAC);
    let mut gateway = Gateway::new(config);
    // Nobody takes actions, frames or events.
    for n in 0..100_000u32 {
        let port = (n % 60_000) as u16 + 1;
        let frame = datagram(&format!("192.168.127.2:{port}"), "1.1.1.1:9", b"x");
        gateway.handle_frame(Duration::ZERO, &frame);
    }
    assert!(gateway.actions.len() <= MAX_ACTIONS);
    assert!(gateway.flows().1 <= Limits::default().udp_flows);
}

#[test]
fn a_guest_that_is_gone_does_not_leave_flows_for_ever() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Serve(noise(1, 1_000_000)));
    sim.connect(SERVER, 40_000);
    sim.run();
    assert_eq!(
        sim.guest_address(),
        "192.168.127.2".parse::<IpAddr>().unwrap()
    );
    sim.faults.lost = 100;
    sim.run_until(Duration::from_secs(1000));
    assert_eq!(sim.gateway.flows(), (0, 0));
    assert_eq!(sim.gateway.next_timeout(), None);
}
