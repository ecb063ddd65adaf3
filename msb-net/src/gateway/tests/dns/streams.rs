//! Queries of the guest over TCP.

use smoltcp::iface::SocketHandle;

use super::*;

const RESOLVER: &str = "9.9.9.9:53";

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
}

/// What the guest has got so far, message by message.
fn messages(sim: &mut Sim, handle: SocketHandle) -> Vec<Message> {
    let mut got = Vec::new();
    while sim.socket(handle).can_recv() {
        let take = |bytes: &mut [u8]| {
            got.extend_from_slice(bytes);
            (bytes.len(), ())
        };
        sim.socket(handle).recv(take).unwrap();
        sim.run();
    }
    let mut messages = Vec::new();
    let mut rest = &got[..];
    while let Some((length, behind)) = rest.split_first_chunk() {
        let (message, behind) = behind.split_at(u16::from_be_bytes(*length).into());
        messages.push(Message::from_vec(message).unwrap());
        rest = behind;
    }
    messages
}

#[test]
fn many_queries_share_a_connection() {
    let mut sim = resolving("preset public-only\nblock ads.example");
    let handle = sim.connect(RESOLVER, 40_000);
    sim.run();
    let mut bytes = Vec::new();
    for (id, name) in [
        (1, "a.example."),
        (2, "ads.example."),
        (3, "host.msb.internal."),
    ] {
        bytes.extend(framed(&query(id, name, RecordType::A)));
    }
    for byte in bytes {
        sim.socket(handle).send_slice(&[byte]).unwrap();
        sim.run_until(sim.now + Duration::from_millis(1));
    }
    sim.socket(handle).close();
    sim.run_until(sim.now + Duration::from_millis(10));
    // The guest has ended its half, and its first question is still open.
    assert_ne!(sim.socket(handle).state(), State::Closed);
    let (flow, _, bytes) = asked(&mut sim);
    say(&mut sim, flow, &answer(&bytes, 60, &["1.1.1.1"]));
    sim.run();
    let messages = messages(&mut sim, handle);
    let ids: Vec<_> = messages.iter().map(|m| m.metadata.id).collect();
    assert_eq!(ids, [2, 3, 1]);
    assert_eq!(messages[0].metadata.response_code, ResponseCode::NXDomain);
    sim.run_until(sim.now + Duration::from_secs(60));
    assert_eq!(sim.gateway.flows(), (0, 0));
    assert!(sim.upstreams.is_empty(), "it ends at the gateway");
    let server = |event: &Event| match event {
        Event::Query { server, .. } => Some(*server),
        _ => None,
    };
    let servers: Vec<_> = sim.events.iter().filter_map(server).collect();
    assert_eq!(servers, [RESOLVER.parse().unwrap(); 3]);
}

#[test]
fn a_long_answer_is_given_whole() {
    let mut sim = resolving("preset public-only");
    let handle = sim.connect(RESOLVER, 40_000);
    sim.run();
    let question = framed(&query(1, "a.example.", RecordType::A));
    sim.socket(handle).send_slice(&question).unwrap();
    sim.run();
    let many: Vec<String> = (0..250).map(|n| format!("1.1.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (flow, _, bytes) = asked(&mut sim);
    say(&mut sim, flow, &answer(&bytes, 60, &many));
    sim.run();
    let messages = messages(&mut sim, handle);
    assert_eq!(messages[0].answers.len(), 250);
}

#[test]
fn a_guest_that_does_not_read_its_answers_is_not_read() {
    let mut sim = resolving("preset public-only");
    let many: Vec<String> = (0..250).map(|n| format!("1.1.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    resolve(&mut sim, "a.example.", 10_000, &many);
    let handle = sim.connect(RESOLVER, 40_000);
    sim.run();
    let question = framed(&query(1, "a.example.", RecordType::A));
    let (mut sent, mut idle) = (0, 0);
    while idle < 20 {
        let before = sent;
        while sim.socket(handle).can_send() && sent < 100_000 {
            sim.socket(handle).send_slice(&question).unwrap();
            sent += 1;
        }
        idle = if sent == before { idle + 1 } else { 0 };
        sim.run();
    }
    assert!(sent < 100_000, "the guest was never held up");
    let answered = outcomes(&sim).len();
    // What fits the buffers of both ends, and a little.
    assert!(answered < 200, "{answered}");
}

#[test]
fn a_query_of_impossible_length_ends_the_connection() {
    let mut sim = resolving("preset public-only");
    for (from, bytes) in [
        (40_000, &b"GET / HTTP/1.1\r\n\r\n"[..]),
        (40_001, &[0xff, 0xff]),
    ] {
        let handle = sim.connect(RESOLVER, from);
        sim.run();
        sim.socket(handle).send_slice(bytes).unwrap();
        sim.run();
        assert_eq!(sim.socket(handle).state(), State::Closed);
    }
    sim.run_until(sim.now + Duration::from_secs(60));
    assert_eq!(sim.gateway.flows(), (0, 0));
}

#[test]
fn connections_are_bounded_and_the_oldest_idle_one_goes() {
    let mut sim = resolving("preset public-only");
    let handles: Vec<_> = (0..65)
        .map(|number| {
            let handle = sim.connect(RESOLVER, 40_000 + number);
            sim.run_until(sim.now + Duration::from_millis(1));
            if number == 0 {
                let question = framed(&query(1, "a.example.", RecordType::A));
                sim.socket(handle).send_slice(&question).unwrap();
            }
            sim.run_until(sim.now + Duration::from_millis(1));
            handle
        })
        .collect();
    let mut state = |number: usize| sim.socket(handles[number]).state();
    assert_eq!(state(0), State::Established, "it waits for an answer");
    assert_eq!(state(1), State::Closed);
    assert_eq!(state(2), State::Established);
    assert_eq!(state(64), State::Established);
}

#[test]
fn a_guest_that_hangs_up_leaves_nothing() {
    let mut sim = resolving("preset public-only");
    let handle = sim.connect(RESOLVER, 40_000);
    sim.run();
    let question = framed(&query(1, "a.example.", RecordType::A));
    sim.socket(handle).send_slice(&question).unwrap();
    sim.run_until(sim.now + Duration::from_millis(10));
    sim.socket(handle).abort();
    sim.run_until(sim.now + Duration::from_millis(10));
    let (flow, _, bytes) = asked(&mut sim);
    say(&mut sim, flow, &answer(&bytes, 60, &["1.1.1.1"]));
    sim.run_until(sim.now + Duration::from_secs(200));
    assert_eq!(sim.gateway.flows(), (0, 0));
    assert_eq!(sim.gateway.next_timeout(), None);
}
