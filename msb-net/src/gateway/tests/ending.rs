//! How connections end: corner cases of RFC 9293.

use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::*;

const GUEST: &str = "192.168.127.2:40000";

/// The last TCP segment to the guest.
fn last_segment(sim: &Sim) -> (TcpSeqNumber, TcpSeqNumber, bool) {
    let segments = sim.seen.iter().rev().filter_map(|frame| {
        let packet = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
        let segment = TcpPacket::new_checked(packet.payload()).ok()?;
        (packet.next_header() == IpProtocol::Tcp)
            .then(|| (segment.seq_number(), segment.ack_number(), segment.fin()))
    });
    segments.into_iter().next().expect("there is one")
}

/// A segment of the guest's first connection, as a frame.
fn segment(
    control: TcpControl,
    seq_number: TcpSeqNumber,
    ack_number: Option<TcpSeqNumber>,
    payload: &[u8],
) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (GUEST.parse().unwrap(), SERVER.parse().unwrap());
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number,
        ack_number,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let mut outbox = Outbox::new(GUEST_MAC, Some([2, 0, 0, 0, 0, 1]), 1500);
    outbox.tcp(from.ip(), to.ip(), &repr);
    let mut frame = Vec::new();
    assert!(outbox.pop(&mut frame));
    frame
}

#[test]
fn an_end_that_was_lost_is_repeated_whatever_the_guest_repeats() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Stall);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    let flow = *sim.upstreams.keys().next().unwrap();
    sim.faults.lost = 100;
    sim.gateway.finish(flow);
    sim.run_until(sim.now + Duration::from_millis(1));
    let (seq, ack, fin) = last_segment(&sim);
    assert!(fin, "the end was sent, and lost");
    for _ in 0..5 {
        sim.inject(&segment(TcpControl::None, ack, Some(seq), b""));
    }
    sim.faults.lost = 0;
    sim.run_until(sim.now + Duration::from_secs(10));
    assert_eq!(sim.socket(handle).state(), State::CloseWait);
}

#[test]
fn an_end_that_is_lost_again_and_again_is_repeated_before_long() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Stall);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    let flow = *sim.upstreams.keys().next().unwrap();
    sim.faults.lost = 100;
    let before = sim.seen.len();
    sim.gateway.finish(flow);
    // A timer that doubles from a second would repeat it four times until then.
    sim.run_until(sim.now + Duration::from_secs(20));
    let ends = sim.seen[before..]
        .iter()
        .filter(|frame| frame[14 + 20 + 13] & 1 == 1)
        .count();
    assert!(ends >= 8, "the end and its repetitions: {ends}");
    assert_eq!(sim.gateway.flows(), (1, 0));
    sim.faults.lost = 0;
    sim.run_until(sim.now + Duration::from_secs(15));
    assert_eq!(sim.socket(handle).state(), State::CloseWait);
    // What the guest still has to say is heard, and its own end.
    sim.socket(handle).send_slice(b"bye").unwrap();
    sim.socket(handle).close();
    sim.run();
    assert_eq!(sim.upstream().received, b"");
    assert_eq!(sim.socket(handle).state(), State::Closed);
    assert_eq!(sim.gateway.flows(), (1, 0), "nobody has read it yet");
}

#[test]
fn a_guest_that_is_gone_is_given_up_after_two_minutes() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Stall);
    sim.connect(SERVER, 40_000);
    sim.run();
    let flow = *sim.upstreams.keys().next().unwrap();
    sim.faults.lost = 100;
    sim.gateway.finish(flow);
    sim.run_until(sim.now + Duration::from_secs(110));
    assert_eq!(sim.gateway.flows(), (1, 0));
    sim.run_until(sim.now + Duration::from_secs(30));
    assert_eq!(sim.gateway.flows(), (0, 0), "told nothing for so long");
    assert_eq!(sim.upstream().closed, Some(true));
    assert_eq!(sim.gateway.next_timeout(), None);
}

#[test]
fn a_guest_that_keeps_its_connection_alive_is_answered() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Echo);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    let every = Some(smoltcp::time::Duration::from_secs(10));
    sim.socket(handle).set_keep_alive(every);
    let patience = Some(smoltcp::time::Duration::from_secs(25));
    sim.socket(handle).set_timeout(patience);
    sim.run_until(sim.now + Duration::from_secs(600));
    assert_eq!(sim.socket(handle).state(), State::Established);
    assert_eq!(sim.upstream().received, b"", "probes are not data");
}

#[test]
fn urgent_bytes_stay_in_the_stream() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Stall);
    sim.connect(SERVER, 40_000);
    sim.run();
    let (seq, ack, _) = last_segment(&sim);
    let mut frame = segment(TcpControl::Psh, ack, Some(seq + 1), b"urgent");
    let (from, to): (SocketAddr, SocketAddr) = (GUEST.parse().unwrap(), SERVER.parse().unwrap());
    let mut urgent = TcpPacket::new_unchecked(&mut frame[14 + 20..]);
    urgent.set_urg(true);
    urgent.set_urgent_at(3);
    urgent.fill_checksum(&from.ip().into(), &to.ip().into());
    sim.inject(&frame);
    let flow = *sim.upstreams.keys().next().unwrap();
    let mut got = Vec::new();
    sim.gateway.read(flow, |bytes| {
        got.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!(got, b"urgent", "in line, as RFC 6093 wants it");
}

#[test]
fn a_reset_must_be_in_the_window() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Stall);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    let (_, ack, _) = last_segment(&sim);
    for wrong in [ack + 100_000_000, ack - 100_000_000] {
        sim.inject(&segment(TcpControl::Rst, wrong, None, b""));
        sim.run();
        assert_eq!(sim.gateway.flows(), (1, 0), "RFC 5961");
        assert_eq!(sim.socket(handle).state(), State::Established);
    }
    sim.inject(&segment(TcpControl::Rst, ack, None, b""));
    assert_eq!(sim.gateway.flows(), (0, 0));
    assert_eq!(sim.upstream().closed, Some(true));
}

#[test]
fn a_port_that_is_used_again_at_once_gets_a_decision_of_its_own() {
    let mut config = Config::new("preset public-only".parse().unwrap(), 7);
    config.guest_mac = Some(GUEST_MAC);
    let mut sim = Sim::new(config, 7);
    sim.serve(80, Behaviour::Echo);
    let old = sim.connect(SERVER, 40_000);
    sim.run();
    sim.socket(old).abort();
    // The reset is under way while the next connection opens between the same ends.
    let new = sim.connect(SERVER, 40_000);
    sim.run_until(sim.now + Duration::from_secs(5));
    assert_eq!(sim.socket(new).state(), State::Established);
    assert_eq!(sim.upstreams.len(), 2);
    let decided = |event: &&Event| matches!(event, Event::Decided { .. });
    assert_eq!(sim.events.iter().filter(decided).count(), 2);
    // A stray segment of neither is refused, and reaches nobody.
    sim.inject(&segment(
        TcpControl::None,
        TcpSeqNumber(1),
        Some(TcpSeqNumber(1)),
        b"stray",
    ));
    let received = |upstream: &super::super::sim::Upstream| upstream.received.clone();
    assert!(
        sim.upstreams
            .values()
            .all(|upstream| received(upstream).is_empty())
    );
}

#[test]
fn what_is_open_at_the_end_is_told_of() {
    let mut sim = sim("preset public-only");
    sim.serve(80, Behaviour::Echo);
    let handle = sim.connect(SERVER, 40_000);
    sim.run();
    sim.socket(handle).send_slice(b"to and fro").unwrap();
    sim.run();
    sim.inject(&datagram("192.168.127.2:5000", "1.1.1.1:123", b"tick"));
    let opened = |event: &Event| match event {
        Event::Decided { flow, .. } => *flow,
        _ => None,
    };
    let flows: Vec<_> = sim.events.iter().filter_map(opened).collect();
    let end = sim.now + Duration::from_secs(3);
    let mut told = Vec::new();
    while sim.gateway.shut_down(end) {
        told.extend(std::iter::from_fn(|| sim.gateway.poll_event()));
    }
    assert_eq!((told.len(), sim.gateway.flows()), (2, (0, 0)));
    for (event, (id, moved)) in told.iter().zip(flows.iter().zip([(10, 10), (4, 0)])) {
        let Event::Closed {
            flow,
            ended: Ended::Stopped,
            sent,
            received,
            duration,
        } = event
        else {
            panic!("{event:?}");
        };
        assert_eq!((flow, (*sent, *received)), (id, moved));
        assert!(*duration >= Duration::from_secs(3));
    }
}
