//! Flows by the names their addresses have.

use super::*;
use crate::policy::Decider;

const NAMED: &str = "preset none\nallow tcp 80 web.example\nallow udp 443,5000 web.example";

/// The state of a connection of the guest, after a moment.
fn state(sim: &mut Sim, to: &str, from: u16) -> State {
    let handle = sim.connect(to, from);
    sim.run_until(sim.now + Duration::from_millis(10));
    sim.socket(handle).state()
}

#[test]
fn an_address_is_reached_by_its_name_and_for_its_time() {
    let mut sim = resolving(NAMED);
    sim.serve(80, Behaviour::Echo);
    assert_eq!(state(&mut sim, SERVER, 40_000), State::Closed);
    resolve(&mut sim, "web.example.", 60, &["1.1.1.1"]);
    assert_eq!(state(&mut sim, SERVER, 40_001), State::Established);
    assert_eq!(state(&mut sim, "1.1.1.2:80", 40_002), State::Closed);
    assert_eq!(state(&mut sim, "1.1.1.1:81", 40_003), State::Closed);
    let named = |event: &Event| match event {
        Event::Decided {
            flow: Some(_),
            name,
            ..
        } => name.clone(),
        _ => None,
    };
    let name = sim.events.iter().find_map(named).unwrap();
    assert_eq!(name.as_str(), "web.example");
    sim.run_until(Duration::from_secs(75));
    assert_eq!(state(&mut sim, SERVER, 40_004), State::Closed, "too late");
}

#[test]
fn the_name_claimed_must_be_the_one_that_was_resolved() {
    let hello = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for (host, passes) in [("web.example", true), ("other.example", false)] {
        let mut sim = resolving(NAMED);
        sim.serve(80, Behaviour::Echo);
        resolve(&mut sim, "web.example.", 60, &["1.1.1.1"]);
        let handle = sim.connect(SERVER, 40_000);
        sim.run();
        // The binding runs out while the flow waits: it keeps what it was judged by.
        sim.run_until(Duration::from_secs(100));
        let said = hello(host);
        sim.socket(handle).send_slice(said.as_bytes()).unwrap();
        sim.run();
        let expected = if passes { said } else { String::new() };
        assert_eq!(sim.upstream().received, expected.as_bytes());
        let state = sim.socket(handle).state();
        assert_eq!(state == State::Established, passes, "{host}: {state}");
    }
}

#[test]
fn an_address_of_a_denied_name_is_denied_under_any_other() {
    let mut sim = resolving("preset public-only\nblock ads.example");
    sim.serve(5000, Behaviour::Echo);
    resolve(&mut sim, "web.example.", 60, &["1.1.1.1"]);
    ask(&mut sim, &query(2, "ads.example.", RecordType::A));
    assert!(sim.datagrams.is_empty());
    assert_eq!(state(&mut sim, "1.1.1.1:5000", 40_000), State::Established);
}

#[test]
fn nobody_but_our_servers_binds_a_name() {
    let mut sim = resolving(NAMED);
    sim.serve(80, Behaviour::Echo);
    ask(&mut sim, &query(2, "web.example.", RecordType::A));
    let (flow, _, bytes) = asked(&mut sim);
    let good = answer(&bytes, 60, &["1.1.1.1"]);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    say(&mut sim, flow, &other_id);
    // The guest itself sends an answer, to where the gateway might listen.
    sim.inject(&datagram(GUEST, GATEWAY, &good));
    assert_eq!(state(&mut sim, SERVER, 40_000), State::Closed);
    assert!(drops(&sim).contains(&DropReason::StrayAnswer));
    say(&mut sim, flow, &good);
    assert_eq!(state(&mut sim, SERVER, 40_001), State::Established);
}

#[test]
fn a_rebound_name_opens_nothing() {
    // Both times public, the second time somewhere else: it is another binding.
    let mut sim = resolving(NAMED);
    sim.serve(80, Behaviour::Echo);
    resolve(&mut sim, "web.example.", 0, &["1.1.1.1"]);
    sim.run_until(Duration::from_secs(2));
    resolve(&mut sim, "web.example.", 0, &["10.0.0.1"]);
    assert_eq!(
        last_outcome(&sim),
        Outcome::Unanswered(Unanswered::Rebinding)
    );
    assert_eq!(state(&mut sim, "10.0.0.1:80", 40_000), State::Closed);
}

#[test]
fn an_internal_name_is_reached_where_it_may_be() {
    let mut sim = resolving("preset none\nallow tcp 80 db.corp.example at 10.0.0.0/8");
    sim.serve(80, Behaviour::Echo);
    resolve(
        &mut sim,
        "db.corp.example.",
        60,
        &["10.1.2.3", "192.168.0.1", "1.1.1.1"],
    );
    assert_eq!(state(&mut sim, "10.1.2.3:80", 40_000), State::Established);
    assert_eq!(state(&mut sim, "192.168.0.1:80", 40_001), State::Closed);
    assert_eq!(state(&mut sim, "1.1.1.1:80", 40_002), State::Closed);
}

#[test]
fn the_host_is_reached_by_name() {
    let mut sim = resolving("preset none\nallow tcp 80 host.msb.internal at host");
    sim.serve(80, Behaviour::Echo);
    assert_eq!(
        state(&mut sim, "192.168.127.1:80", 40_000),
        State::Established
    );
    assert_eq!(sim.upstream().to, "127.0.0.1:80".parse().unwrap());
}

#[test]
fn datagrams_go_by_name_unless_they_hide_it() {
    let mut sim = resolving(NAMED);
    resolve(&mut sim, "web.example.", 60, &["1.1.1.1"]);
    sim.inject(&datagram(GUEST, "1.1.1.1:5000", b"x"));
    assert_eq!(asked(&mut sim).1, "1.1.1.1:5000".parse().unwrap());
    sim.inject(&datagram(GUEST, "1.1.1.1:443", b"x"));
    assert!(sim.datagrams.is_empty(), "QUIC");
    assert_eq!(last_icmp(&sim), Some((3, 13)));
    let quic = |event: &Event| matches!(event, Event::Decided { flow: None, verdict, .. } if verdict.by == Decider::Quic);
    assert!(sim.events.iter().any(quic));
}

#[test]
fn resolvers_over_tls_are_ordinary_destinations() {
    let mut sim = resolving(NAMED);
    for (port, from) in [(853, 40_000), (443, 40_001)] {
        sim.serve(port, Behaviour::Echo);
        let to = format!("1.1.1.1:{port}");
        assert_eq!(state(&mut sim, &to, from), State::Closed, "{to}");
    }
}
