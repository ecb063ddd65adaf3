//! The resolver, from the guest's frames to the servers and back.

mod flows;
mod lossy;
mod servers;
mod streams;

use std::net::SocketAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query as WireQuery, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name as WireName, RData, Record, RecordType};
use smoltcp::wire::UdpPacket;

use super::*;
use crate::dns::{Outcome, Rcode, Source, Unanswered};

const GUEST: &str = "192.168.127.2:5353";
const GATEWAY: &str = "192.168.127.1:53";
const SERVER_1: &str = "192.0.2.53:53";
const SERVER_2: &str = "192.0.2.54:53";

/// A simulated guest behind a gateway with two servers.
fn resolving(policy: &str) -> Sim {
    let mut config = Config::new(policy.parse().unwrap(), 7);
    config.resolvers = vec![SERVER_1.parse().unwrap(), SERVER_2.parse().unwrap()];
    Sim::new(config, 7)
}

fn query(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    // Any bytes between the dots.
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut name = WireName::from_labels(labels.map(str::as_bytes)).unwrap();
    name.set_fqdn(true);
    message.add_query(WireQuery::query(name, kind));
    message
}

/// A query that understands extended errors.
fn modern(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = query(id, name, kind);
    message.set_edns(hickory_proto::op::Edns::new());
    message
}

/// What a server says to a query.
fn answer(query: &[u8], ttl: u32, addresses: &[&str]) -> Vec<u8> {
    let query = Message::from_vec(query).expect("the gateway's queries can be read");
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.queries = query.queries.clone();
    for address in addresses {
        let data = match address.parse().unwrap() {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        let name = query.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, ttl, data));
    }
    message.to_vec().unwrap()
}

/// Sends a query as a datagram of the guest.
fn ask_at(sim: &mut Sim, to: &str, query: &Message) {
    let from = match to.parse().unwrap() {
        SocketAddr::V4(_) => GUEST,
        SocketAddr::V6(_) => "[fd6d:7362::2]:5353",
    };
    sim.inject(&datagram(from, to, &query.to_vec().unwrap()));
}

fn ask(sim: &mut Sim, query: &Message) {
    ask_at(sim, GATEWAY, query);
}

/// Takes the datagram that went to a server last.
fn asked(sim: &mut Sim) -> (FlowId, SocketAddr, Vec<u8>) {
    sim.datagrams.pop().expect("a server was asked")
}

/// Lets a server answer, and everything happen that follows at once.
fn say(sim: &mut Sim, flow: FlowId, message: &[u8]) {
    sim.gateway.datagram(sim.now, flow, message);
    sim.run_until(sim.now);
}

/// Asks, and lets the server answer.
fn resolve(sim: &mut Sim, name: &str, ttl: u32, addresses: &[&str]) {
    let kind = match addresses[0].parse().unwrap() {
        IpAddr::V4(_) => RecordType::A,
        IpAddr::V6(_) => RecordType::AAAA,
    };
    ask(sim, &query(1, name, kind));
    let (flow, _, bytes) = asked(sim);
    say(sim, flow, &answer(&bytes, ttl, addresses));
}

/// The datagrams to the guest so far, and whom they say they are from.
fn replies(sim: &mut Sim) -> Vec<(SocketAddr, Message)> {
    sim.seen
        .drain(..)
        .filter_map(|frame| read_reply(&frame))
        .collect()
}

fn read_reply(frame: &[u8]) -> Option<(SocketAddr, Message)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = packet::Packet::parse(frame.ethertype(), frame.payload()).ok()?;
    let datagram = UdpPacket::new_checked(packet.payload).ok()?;
    let from = SocketAddr::new(packet.source, datagram.src_port());
    Some((from, Message::from_vec(datagram.payload()).ok()?))
}

fn reply(sim: &mut Sim) -> Message {
    let mut replies = replies(sim);
    assert_eq!(replies.len(), 1);
    replies.remove(0).1
}

/// The extended error of a message: its number and its text.
fn note(message: &Message) -> Option<(u16, String)> {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

    let options = message.edns.as_ref()?;
    match options.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, bytes) => {
            let (code, text) = bytes.split_first_chunk()?;
            let text = String::from_utf8(text.to_vec()).ok()?;
            Some((u16::from_be_bytes(*code), text))
        }
        _ => None,
    }
}

fn outcomes(sim: &Sim) -> Vec<(String, Outcome)> {
    let outcome = |event: &Event| match event {
        Event::Query { name, outcome, .. } => Some((name.to_string(), *outcome)),
        _ => None,
    };
    sim.events.iter().filter_map(outcome).collect()
}

fn last_outcome(sim: &Sim) -> Outcome {
    outcomes(sim).pop().expect("a query was told of").1
}

const fn answered(source: Source, addresses: u16) -> Outcome {
    Outcome::Answered {
        code: Rcode::NO_ERROR,
        source,
        addresses,
        filtered: 0,
    }
}

#[test]
fn a_query_to_any_address_is_ours() {
    for to in [
        GATEWAY,
        "8.8.8.8:53",
        "169.254.169.254:53",
        "[2001:4860::8888]:53",
    ] {
        let mut sim = resolving("preset public-only");
        ask_at(&mut sim, to, &query(77, "a.example.", RecordType::A));
        let (flow, server, bytes) = asked(&mut sim);
        assert_eq!(server, SERVER_1.parse().unwrap());
        say(&mut sim, flow, &answer(&bytes, 300, &["1.1.1.1"]));
        let replies = replies(&mut sim);
        let [(from, reply)] = &replies[..] else {
            panic!("{to}: {replies:?}");
        };
        assert_eq!(*from, to.parse().unwrap());
        assert_eq!((reply.metadata.id, reply.answers.len()), (77, 1));
        assert_eq!(last_outcome(&sim), answered(Source::Upstream, 1));
        assert_eq!(sim.gateway.next_timeout(), None);
    }
}

#[test]
fn a_denied_name_is_refused_at_once_and_goes_nowhere() {
    const LIST: &str = "preset none\nallow tcp 443 api.example";
    for (policy, name, why) in [
        (
            LIST,
            "secret.tunnel.example.",
            "no rule matches, and the preset is none",
        ),
        (
            LIST,
            "x.api.example.",
            "no rule matches, and the preset is none",
        ),
        (
            "block ads.example",
            "X.Ads.Example.",
            "the block list has ads.example",
        ),
        (
            "deny dns suffix a.example",
            "b.a.example.",
            "rule 1: deny dns suffix a.example",
        ),
    ] {
        let mut sim = resolving(policy);
        ask(&mut sim, &modern(5, name, RecordType::A));
        let reply = reply(&mut sim);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(note(&reply), Some((15, why.into())));
        assert_eq!(
            reply.queries[0].name().to_ascii(),
            name,
            "as it was written"
        );
        assert!(sim.datagrams.is_empty());
        assert_eq!(last_outcome(&sim), Outcome::Unanswered(Unanswered::Denied));
    }
}

#[test]
fn what_is_no_name_of_a_host_goes_nowhere() {
    let mut sim = resolving("preset allow-all");
    ask(&mut sim, &modern(5, "a b.example.", RecordType::A));
    let answer = reply(&mut sim);
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(last_outcome(&sim), Outcome::Unanswered(Unanswered::OddName));
    // The root is nobody's name, and signed answers end there.
    ask(&mut sim, &modern(6, ".", RecordType::from(48)));
    let (_, _, bytes) = asked(&mut sim);
    assert!(
        Message::from_vec(&bytes).unwrap().queries[0]
            .name()
            .is_root()
    );
    let mut sim = resolving("preset none");
    ask(&mut sim, &modern(6, ".", RecordType::NS));
    assert_eq!(last_outcome(&sim), Outcome::Unanswered(Unanswered::Denied));
}

#[test]
fn other_business_is_refused() {
    let mut sim = resolving("preset allow-all");
    for (kind, code) in [
        (RecordType::ANY, ResponseCode::Refused),
        (RecordType::AXFR, ResponseCode::Refused),
    ] {
        ask(&mut sim, &modern(5, "example.", kind));
        let reply = reply(&mut sim);
        assert_eq!(reply.metadata.response_code, code);
        assert_eq!(note(&reply).unwrap().0, 21);
        assert_eq!(
            last_outcome(&sim),
            Outcome::Unanswered(Unanswered::Unsupported)
        );
    }
    sim.inject(&datagram(GUEST, GATEWAY, b"GET / HTTP/1.1"));
    sim.inject(&datagram(
        GUEST,
        GATEWAY,
        &answer(
            &query(1, "a.example.", RecordType::A).to_vec().unwrap(),
            1,
            &[],
        ),
    ));
    assert!(replies(&mut sim).len() <= 1, "an answer is not answered");
    assert!(sim.datagrams.is_empty());
    assert!(drops(&sim).contains(&DropReason::Malformed));
}

#[test]
fn the_host_has_a_name() {
    let mut sim = resolving("preset none");
    ask(&mut sim, &query(5, "Host.MSB.internal.", RecordType::A));
    let reply = reply(&mut sim);
    assert_eq!(
        reply.answers[0].data,
        RData::A(A(Ipv4Addr::new(192, 168, 127, 1)))
    );
    assert_eq!(last_outcome(&sim), answered(Source::Gateway, 0));
    assert!(sim.datagrams.is_empty());
}

#[test]
fn an_answer_is_given_again_while_it_holds() {
    let mut sim = resolving("preset public-only");
    resolve(&mut sim, "A.example.", 100, &["1.1.1.1"]);
    replies(&mut sim);
    sim.run_until(Duration::from_secs(60));
    ask(&mut sim, &query(9, "a.EXAMPLE.", RecordType::A));
    let again = reply(&mut sim);
    assert_eq!((again.metadata.id, again.answers[0].ttl), (9, 40));
    assert_eq!(again.answers[0].name.to_ascii(), "a.EXAMPLE.");
    assert_eq!(last_outcome(&sim), answered(Source::Cache, 1));
    assert!(sim.datagrams.is_empty());
    // Another type, or signatures wanted: another question.
    ask(&mut sim, &query(9, "a.example.", RecordType::TXT));
    asked(&mut sim);
    let mut signed = modern(9, "a.example.", RecordType::A);
    signed.edns.as_mut().unwrap().set_dnssec_ok(true);
    ask(&mut sim, &signed);
    let (_, _, bytes) = asked(&mut sim);
    assert!(
        Message::from_vec(&bytes)
            .unwrap()
            .edns
            .unwrap()
            .flags()
            .dnssec_ok
    );
    sim.run_until(Duration::from_secs(100));
    ask(&mut sim, &query(9, "a.example.", RecordType::A));
    asked(&mut sim);
}

#[test]
fn an_answer_that_points_inwards_is_held_back() {
    let mut sim = resolving("preset public-only");
    ask(&mut sim, &modern(5, "evil.example.", RecordType::A));
    let (flow, _, bytes) = asked(&mut sim);
    say(&mut sim, flow, &answer(&bytes, 300, &["169.254.169.254"]));
    let reply = reply(&mut sim);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    let expected = (17, "the name may not be at 169.254.169.254".into());
    assert_eq!(note(&reply), Some(expected));
    assert_eq!(
        last_outcome(&sim),
        Outcome::Unanswered(Unanswered::Rebinding)
    );
    // Not even a failed attempt goes upstream again.
    ask(&mut sim, &modern(6, "evil.example.", RecordType::A));
    assert!(sim.datagrams.is_empty());
}

#[test]
fn a_long_answer_is_cut_for_a_datagram() {
    let mut sim = resolving("preset public-only");
    let many: Vec<String> = (0..60).map(|n| format!("1.1.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    resolve(&mut sim, "a.example.", 300, &many);
    let cut = reply(&mut sim);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut large = modern(2, "a.example.", RecordType::A);
    large.edns.as_mut().unwrap().set_max_payload(4096);
    ask(&mut sim, &large);
    let whole = reply(&mut sim);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 60);
}

#[test]
fn a_tunnel_runs_dry() {
    let mut sim = resolving("preset public-only");
    let chunk = "x".repeat(60);
    let mut left = 0;
    for number in 0..1000 {
        let name = format!("{number}.{chunk}.{chunk}.t.example.");
        ask(&mut sim, &query(number, &name, RecordType::NULL));
        if let Some((flow, _, bytes)) = sim.datagrams.pop() {
            left += 1;
            say(&mut sim, flow, &answer(&bytes, 0, &[]));
        }
        sim.events.drain(..sim.events.len() - 1);
        sim.seen.clear();
    }
    assert!(left < 400, "{left} names got out");
    assert_eq!(
        last_outcome(&sim),
        Outcome::Unanswered(Unanswered::TooManyNames)
    );
    // Other domains are not affected, and a name that a rule allows has no limit.
    resolve(&mut sim, "www.example.com.", 300, &["1.1.1.1"]);
    assert_eq!(last_outcome(&sim), answered(Source::Upstream, 1));
}
