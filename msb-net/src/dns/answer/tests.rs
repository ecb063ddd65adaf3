//! Answers are written with `hickory-proto`, as a server would send them.

use hickory_proto::op::{Query as WireQuery, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, Mandatory};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, NULL, SOA};
use proptest::prelude::*;

use super::super::Query;
use super::super::query::tests::{query, question};
use super::*;
use crate::policy::Policy;

/// The policy's word on answers for one name.
struct Asked(Policy, Name);

impl Verdicts for Asked {
    fn denies(&self, alias: &Name) -> Option<String> {
        let denied = self.0.names_as_denied(alias);
        denied.then(|| self.0.describe(&self.0.decide_query(alias).by))
    }

    fn admits(&self, address: IpAddr) -> bool {
        self.0.admits_answer(&self.1, address)
    }
}

fn name(text: &str) -> WireName {
    // Any bytes between the dots.
    let labels = text.split('.').filter(|label| !label.is_empty());
    WireName::from_labels(labels.map(str::as_bytes)).unwrap()
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 300, data)
}

fn a(owner: &str, address: &str) -> Record {
    record(owner, RData::A(A(address.parse().unwrap())))
}

fn cname(owner: &str, target: &str) -> Record {
    record(owner, RData::CNAME(CNAME(name(target))))
}

fn answer(kind: RecordType, answers: Vec<Record>) -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(WireQuery::query(name("www.example.com."), kind));
    message.answers = answers;
    message
}

fn judged(policy: &str, message: &Message) -> Option<Judged> {
    let bytes = message.to_vec().unwrap();
    let kind = RecordKind(message.queries[0].query_type().into());
    let question = question("www.example.com", kind);
    let subject = Subject {
        id: 7,
        question: &question,
    };
    header(&bytes, &subject).expect("it is an answer to the question");
    let asked = Asked(policy.parse().unwrap(), "www.example.com".parse().unwrap());
    judge(&bytes, &subject, &asked)
}

/// What the guest reads in the end.
fn reply(judged: &Judged, kind: RecordType) -> Message {
    let query = query(9, "wWw.example.com", RecordKind(kind.into()), Some(1232));
    let mut bytes = Vec::new();
    let query = Query::parse(&query).unwrap();
    judged.body.reply(&query, 0, 65_535, &mut bytes);
    Message::from_vec(&bytes).expect("another reader takes it")
}

#[test]
fn addresses_at_the_end_of_aliases_pass() {
    let mut message = answer(
        RecordType::A,
        vec![
            cname("www.example.com.", "WWW.cdn.example."),
            a("www.cdn.example.", "1.1.1.1"),
            a("www.cdn.example.", "1.1.1.2"),
        ],
    );
    message.additionals = vec![a("stray.example.", "1.1.1.3")];
    let judged = judged("preset none\nallow tcp 443 www.example.com", &message).unwrap();
    let expected: [IpAddr; 2] = ["1.1.1.1", "1.1.1.2"].map(|text| text.parse().unwrap());
    assert_eq!(judged.addresses, expected);
    assert_eq!(
        (judged.ttl, judged.filtered, judged.refused),
        (300, 0, None)
    );
    let reply = reply(&judged, RecordType::A);
    assert_eq!(reply.answers, message.answers);
    assert!(reply.additionals.is_empty());
}

#[test]
fn an_alias_that_is_denied_denies_the_name() {
    let chain = |target: &str| {
        let answers = vec![
            cname("www.example.com.", "a.example."),
            cname("a.example.", target),
            a(target, "1.1.1.1"),
        ];
        answer(RecordType::A, answers)
    };
    for (policy, target) in [
        (
            "preset public-only\nblock tracker.example",
            "x.tracker.example.",
        ),
        ("deny suffix tracker.example", "tracker.example."),
        // What no rule can name might be anything.
        ("preset allow-all", "x y.tracker.example."),
    ] {
        let judged = judged(policy, &chain(target)).unwrap();
        assert_eq!(judged.refused, Some(Unanswered::Alias), "{policy}");
        assert_eq!(judged.body.code, Rcode::NO_SUCH_NAME);
        assert!(judged.addresses.is_empty());
        assert!(reply(&judged, RecordType::A).answers.is_empty());
    }
}

#[test]
fn aliases_without_an_end_are_no_answer() {
    let circle = vec![
        cname("www.example.com.", "a.example."),
        cname("a.example.", "www.example.com."),
    ];
    assert!(judged("preset allow-all", &answer(RecordType::A, circle)).is_none());
    let owner = |n| match n {
        0 => "www.example.com.".into(),
        n => format!("a{n}.example."),
    };
    let long = (0..40).map(|n| cname(&owner(n), &owner(n + 1))).collect();
    assert!(judged("preset allow-all", &answer(RecordType::A, long)).is_none());
}

#[test]
fn a_public_name_is_not_inside() {
    for inside in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"] {
        let both = vec![
            a("www.example.com.", inside),
            a("www.example.com.", "1.1.1.1"),
        ];
        let some = judged("preset public-only", &answer(RecordType::A, both)).unwrap();
        assert_eq!(some.addresses, ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((some.filtered, some.refused), (1, None));
        assert_eq!(reply(&some, RecordType::A).answers.len(), 1);
        let alone = answer(RecordType::A, vec![a("www.example.com.", inside)]);
        let none = judged("preset public-only", &alone).unwrap();
        assert_eq!(none.refused, Some(Unanswered::Rebinding));
        assert!(none.addresses.is_empty());
        assert!(reply(&none, RecordType::A).answers.is_empty());
    }
    let mapped = "::ffff:10.0.0.1".parse().unwrap();
    let mapped = record("www.example.com.", RData::AAAA(AAAA(mapped)));
    let judged = judged(
        "preset public-only",
        &answer(RecordType::AAAA, vec![mapped]),
    )
    .unwrap();
    assert_eq!(judged.refused, Some(Unanswered::Rebinding));
}

#[test]
fn a_name_with_a_place_may_be_there() {
    let policy = "preset none\nallow tcp 5432 www.example.com at 10.0.0.0/8";
    let answers = vec![
        a("www.example.com.", "10.1.2.3"),
        a("www.example.com.", "10.1.2.4"),
    ];
    let judged = judged(policy, &answer(RecordType::A, answers)).unwrap();
    assert_eq!((judged.addresses.len(), judged.filtered), (2, 0));
}

#[test]
fn addresses_of_other_names_are_not_taken() {
    let answers = vec![
        a("www.example.com.", "1.1.1.1"),
        a("bank.example.", "1.1.1.2"),
    ];
    let mut answers = answers;
    let text = RData::Unknown {
        code: 16.into(),
        rdata: NULL::with(b"\x02hi".to_vec()),
    };
    answers.push(record("other.example.", text));
    let judged = judged("preset public-only", &answer(RecordType::A, answers)).unwrap();
    assert_eq!(judged.addresses, ["1.1.1.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(reply(&judged, RecordType::A).answers.len(), 1);
}

fn service(target: &str, params: Vec<(SvcParamKey, SvcParamValue)>) -> Record {
    let data = HTTPS(SVCB::new(1, name(target), params));
    record("www.example.com.", RData::HTTPS(data))
}

#[test]
fn services_lose_their_keys_and_hints_that_point_inwards() {
    let hint = |text: &str| A(text.parse().unwrap());
    let keys = vec![SvcParamKey::Alpn, SvcParamKey::EchConfigList];
    let params = vec![
        (
            SvcParamKey::Mandatory,
            SvcParamValue::Mandatory(Mandatory(keys)),
        ),
        (
            SvcParamKey::Alpn,
            SvcParamValue::Alpn(Alpn(vec!["h2".into()])),
        ),
        (
            SvcParamKey::Ipv4Hint,
            SvcParamValue::Ipv4Hint(IpHint(vec![hint("10.0.0.1"), hint("1.1.1.1")])),
        ),
        (
            SvcParamKey::EchConfigList,
            SvcParamValue::EchConfigList(EchConfigList(vec![0; 40])),
        ),
    ];
    let message = answer(RecordType::HTTPS, vec![service(".", params)]);
    let judged = judged("preset public-only", &message).unwrap();
    assert_eq!(judged.addresses, ["1.1.1.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(judged.filtered, 1);
    let reply = reply(&judged, RecordType::HTTPS);
    let RData::HTTPS(HTTPS(left)) = &reply.answers[0].data else {
        panic!("{reply}");
    };
    let alpn = SvcParamKey::Alpn;
    assert_eq!(
        left.svc_params,
        [
            (
                SvcParamKey::Mandatory,
                SvcParamValue::Mandatory(Mandatory(vec![alpn]))
            ),
            (alpn, SvcParamValue::Alpn(Alpn(vec!["h2".into()]))),
            (
                SvcParamKey::Ipv4Hint,
                SvcParamValue::Ipv4Hint(IpHint(vec![hint("1.1.1.1")]))
            ),
        ]
    );
}

#[test]
fn a_service_elsewhere_must_not_be_denied() {
    let policy = "preset public-only\nblock tracker.example";
    let good = service("svc.example.", vec![]);
    let bad = service("x.tracker.example.", vec![]);
    let message = answer(RecordType::HTTPS, vec![good.clone(), bad]);
    let judged = judged(policy, &message).unwrap();
    assert_eq!(reply(&judged, RecordType::HTTPS).answers, [good]);
}

#[test]
fn signatures_and_unknown_records_pass() {
    let unknown = |kind: u16, bytes: &[u8]| RData::Unknown {
        code: kind.into(),
        rdata: NULL::with(bytes.to_vec()),
    };
    let answers = vec![
        a("www.example.com.", "1.1.1.1"),
        record(
            "www.example.com.",
            unknown(46, &[0, 1, 8, 2, 0, 0, 1, 44, 9, 9]),
        ),
        record("www.example.com.", unknown(65_280, b"anything")),
    ];
    let mut message = answer(RecordType::A, answers);
    message.authorities = vec![record("example.com.", unknown(47, &[0, 0, 1, 64]))];
    message.metadata.authentic_data = true;
    let judged = judged("preset public-only", &message).unwrap();
    let reply = reply(&judged, RecordType::A);
    assert_eq!(reply.answers, message.answers);
    assert_eq!(reply.authorities, message.authorities);
}

#[test]
fn that_there_is_nothing_holds_as_long_as_the_zone_says() {
    let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, 77);
    let mut message = answer(RecordType::A, vec![]);
    message.metadata.response_code = ResponseCode::NXDomain;
    message.authorities = vec![record("example.com.", RData::SOA(soa))];
    let nothing = judged("preset public-only", &message).unwrap();
    assert_eq!((nothing.body.code, nothing.ttl), (Rcode::NO_SUCH_NAME, 77));
    message.authorities.clear();
    let silent = judged("preset public-only", &message).unwrap();
    assert_eq!(silent.ttl, 0);
}

#[test]
fn only_an_answer_to_the_question_is_one() {
    let question = question("www.example.com", RecordKind::A);
    let subject = Subject {
        id: 7,
        question: &question,
    };
    let good = answer(RecordType::A, vec![]).to_vec().unwrap();
    assert!(header(&good, &subject).is_some());
    for (at, byte) in [
        (1, 8),
        (2, 0),
        (2, 0xa8),
        (5, 2),
        (13, b'v'),
        (good.len() - 3, 28),
    ] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(header(&bad, &subject), None, "byte {at}");
    }
    assert_eq!(header(&good[..good.len() - 1], &subject), None);
}

proptest! {
    #[test]
    fn no_message_breaks_the_judge(data in prop::collection::vec(any::<u8>(), 0..300)) {
        crate::fuzzing::dns_response(&data);
    }

    #[test]
    fn no_damage_breaks_the_judge(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut message = answer(
            RecordType::A,
            vec![
                cname("www.example.com.", "www.cdn.example."),
                a("www.cdn.example.", "1.1.1.1"),
                service("svc.example.", vec![]),
            ],
        );
        message.queries[0].set_name(name("www.example.com."));
        let mut bytes = message.to_vec().unwrap();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        crate::fuzzing::dns_response(&bytes);
    }
}
