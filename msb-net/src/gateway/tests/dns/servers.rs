//! Servers that are slow, broken, or not who they seem to be.

use super::*;

fn code(code: ResponseCode, query: &[u8]) -> Vec<u8> {
    let mut message = Message::from_vec(&answer(query, 0, &[])).unwrap();
    message.metadata.response_code = code;
    message.to_vec().unwrap()
}

#[test]
fn silence_moves_the_query_on_and_in_the_end_fails_it() {
    let mut sim = resolving("preset public-only");
    ask(&mut sim, &modern(5, "a.example.", RecordType::A));
    sim.run_until(Duration::from_secs(20));
    let to: Vec<_> = sim
        .datagrams
        .iter()
        .map(|(_, to, _)| to.to_string())
        .collect();
    assert_eq!(to, [SERVER_1, SERVER_2, SERVER_1]);
    let flows: Vec<_> = sim.datagrams.iter().map(|(flow, ..)| *flow).collect();
    assert!(flows.is_sorted() && flows[0] < flows[1] && flows[1] < flows[2]);
    let ids: Vec<_> = sim
        .datagrams
        .iter()
        .map(|(.., bytes)| [bytes[0], bytes[1]])
        .collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    let reply = reply(&mut sim);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(note(&reply), Some((23, "no server answers".into())));
    assert_eq!(
        last_outcome(&sim),
        Outcome::Unanswered(Unanswered::TimedOut)
    );
    assert_eq!(sim.gateway.next_timeout(), None);
}

#[test]
fn a_server_that_is_not_there_costs_no_time() {
    let mut sim = resolving("preset public-only");
    ask(&mut sim, &query(5, "a.example.", RecordType::A));
    let (flow, ..) = asked(&mut sim);
    sim.gateway.datagram_failed(sim.now, flow);
    sim.run_until(sim.now);
    let (flow, to, bytes) = asked(&mut sim);
    assert_eq!(to, SERVER_2.parse().unwrap());
    say(&mut sim, flow, &answer(&bytes, 60, &["1.1.1.1"]));
    assert_eq!(last_outcome(&sim), answered(Source::Upstream, 1));
}

#[test]
fn a_server_that_fails_is_not_the_last_word() {
    let mut sim = resolving("preset public-only");
    ask(&mut sim, &query(5, "a.example.", RecordType::A));
    for expected in [SERVER_1, SERVER_2, SERVER_1] {
        assert!(replies(&mut sim).is_empty());
        let (flow, to, bytes) = asked(&mut sim);
        assert_eq!(to, expected.parse().unwrap());
        say(&mut sim, flow, &code(ResponseCode::ServFail, &bytes));
    }
    assert_eq!(
        reply(&mut sim).metadata.response_code,
        ResponseCode::ServFail
    );
    // It is not asked again for a moment.
    ask(&mut sim, &query(6, "a.example.", RecordType::A));
    assert!(sim.datagrams.is_empty());
    assert_eq!(
        reply(&mut sim).metadata.response_code,
        ResponseCode::ServFail
    );
}

#[test]
fn an_old_server_is_asked_in_the_old_way() {
    let mut sim = resolving("preset public-only");
    ask(&mut sim, &modern(5, "a.example.", RecordType::A));
    let (flow, _, bytes) = asked(&mut sim);
    assert!(Message::from_vec(&bytes).unwrap().edns.is_some());
    say(&mut sim, flow, &code(ResponseCode::FormErr, &bytes));
    let (flow, to, bytes) = asked(&mut sim);
    assert_eq!(to, SERVER_1.parse().unwrap());
    assert!(Message::from_vec(&bytes).unwrap().edns.is_none());
    say(&mut sim, flow, &answer(&bytes, 60, &["1.1.1.1"]));
    assert_eq!(reply(&mut sim).answers.len(), 1);
}

#[test]
fn nonsense_is_not_passed_on() {
    let mut sim = resolving("preset public-only");
    ask(&mut sim, &modern(5, "a.example.", RecordType::A));
    for _ in 0..3 {
        let (flow, _, bytes) = asked(&mut sim);
        let mut cut = answer(&bytes, 60, &["1.1.1.1"]);
        cut.truncate(cut.len() - 2);
        say(&mut sim, flow, &cut);
    }
    let reply = reply(&mut sim);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(note(&reply).unwrap().0, 24);
    assert_eq!(
        last_outcome(&sim),
        Outcome::Unanswered(Unanswered::Unreadable)
    );
}

/// A server's answer over TCP, if the gateway connects to one.
fn serve_stream(sim: &mut Sim, message: &[u8]) {
    let length = (message.len() as u16).to_be_bytes();
    let bytes = [&length[..], message].concat();
    sim.serve(53, Behaviour::Serve(bytes));
}

#[test]
fn a_cut_answer_is_fetched_whole() {
    let mut sim = resolving("preset public-only");
    ask(&mut sim, &modern(5, "a.example.", RecordType::A));
    let (flow, _, bytes) = asked(&mut sim);
    let mut cut = Message::from_vec(&answer(&bytes, 60, &[])).unwrap();
    cut.metadata.truncation = true;
    // The number of the second attempt follows from the seed.
    let mut probe = resolving("preset public-only");
    ask(&mut probe, &modern(5, "a.example.", RecordType::A));
    let (first, ..) = asked(&mut probe);
    probe.serve(53, Behaviour::Echo);
    say(&mut probe, first, &cut.to_vec().unwrap());
    let asked_again = probe.upstream().received[2..].to_vec();
    assert_eq!(probe.upstream().to, SERVER_1.parse().unwrap());

    let many: Vec<String> = (0..200).map(|n| format!("1.1.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    serve_stream(&mut sim, &answer(&asked_again, 60, &many));
    say(&mut sim, flow, &cut.to_vec().unwrap());
    assert_eq!(last_outcome(&sim), answered(Source::Upstream, 200));
    assert_eq!(sim.upstream().closed, Some(false));
    assert!(reply(&mut sim).metadata.truncation, "for the guest as well");
    assert_eq!(sim.gateway.next_timeout(), None);
}

#[test]
fn a_server_that_hangs_up_is_a_failed_one() {
    for behaviour in [
        Behaviour::Serve(vec![0, 5, 1]),
        Behaviour::Serve(vec![0, 0]),
        Behaviour::Serve(b"\0\x0chello world!".to_vec()),
        Behaviour::CutOff,
        Behaviour::Fail(ConnectError::Refused),
    ] {
        let mut sim = resolving("preset public-only");
        sim.serve(53, behaviour.clone());
        ask(&mut sim, &modern(5, "a.example.", RecordType::A));
        let (flow, _, bytes) = asked(&mut sim);
        let mut cut = Message::from_vec(&answer(&bytes, 60, &[])).unwrap();
        cut.metadata.truncation = true;
        say(&mut sim, flow, &cut.to_vec().unwrap());
        let (_, to, _) = asked(&mut sim);
        assert_eq!(to, SERVER_2.parse().unwrap(), "{behaviour:?}");
    }
}

#[test]
fn guesses_move_the_query_to_where_they_do_not_reach() {
    let mut sim = resolving("preset public-only");
    sim.serve(53, Behaviour::Echo);
    ask(&mut sim, &query(5, "a.example.", RecordType::A));
    let (flow, _, bytes) = asked(&mut sim);
    let mut guess = answer(&bytes, 60, &["6.6.6.6"]);
    guess[0] ^= 1;
    for _ in 0..8 {
        assert!(sim.upstreams.is_empty());
        say(&mut sim, flow, &guess);
    }
    assert_eq!(sim.upstreams.len(), 1);
    assert!(outcomes(&sim).is_empty());
}

#[test]
fn one_question_is_asked_once() {
    let mut sim = resolving("preset public-only");
    for id in [5, 5, 6] {
        ask(&mut sim, &query(id, "a.example.", RecordType::A));
    }
    assert_eq!(sim.datagrams.len(), 1);
    let (flow, _, bytes) = asked(&mut sim);
    say(&mut sim, flow, &answer(&bytes, 60, &["1.1.1.1"]));
    let ids: Vec<_> = replies(&mut sim)
        .iter()
        .map(|(_, m)| m.metadata.id)
        .collect();
    assert_eq!(ids, [5, 6]);
}

#[test]
fn queries_that_wait_are_bounded() {
    let mut config = Config::new(Policy::public_only(), 7);
    config.resolvers = vec![SERVER_1.parse().unwrap()];
    config.limits.queries = 4;
    let mut sim = Sim::new(config, 7);
    for number in 0..6 {
        ask(
            &mut sim,
            &modern(number, &format!("n{number}.example."), RecordType::A),
        );
    }
    assert_eq!(sim.datagrams.len(), 4);
    let replies = replies(&mut sim);
    assert_eq!(replies.len(), 2);
    assert_eq!(note(&replies[0].1).unwrap().0, 14);
    assert_eq!(last_outcome(&sim), Outcome::Unanswered(Unanswered::Busy));
}

#[test]
fn without_servers_there_is_an_answer_all_the_same() {
    let mut sim = sim("preset public-only");
    ask(&mut sim, &modern(1, "a.example.", RecordType::A));
    assert_eq!(
        reply(&mut sim).metadata.response_code,
        ResponseCode::ServFail
    );
    assert_eq!(
        last_outcome(&sim),
        Outcome::Unanswered(Unanswered::NoServer)
    );
}
