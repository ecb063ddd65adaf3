//! The policy against a model that is written down rule by rule.

use std::net::IpAddr;

use proptest::prelude::*;

use super::super::*;
use super::name;
use crate::addr::{Cidr, Faces, Group};

const LABELS: [&str; 6] = ["a.test", "x.a.test", "b.test", "x.b.test", "c.test", "test"];
const ADDRESSES: [&str; 9] = [
    "1.1.1.1",
    "10.0.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:a00:1::",
    "2606:4700::1",
    "fd00::1",
];
const SETS: [&str; 8] = [
    "public",
    "private",
    "metadata",
    "host",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "2002::/16",
];
const PORTS: [u16; 4] = [22, 80, 443, 5000];

fn any_name() -> impl Strategy<Value = Name> {
    prop::sample::select(&LABELS[..]).prop_map(name)
}

fn any_set() -> impl Strategy<Value = Addresses> {
    prop::sample::select(&SETS[..]).prop_map(|text| match Group::from_word(text) {
        Some(group) => Addresses::Group(group),
        None => Addresses::Cidr(text.parse::<Cidr>().expect("a block")),
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let pattern = prop_oneof![
        any_name().prop_map(Pattern::Domain),
        any_name().prop_map(Pattern::Suffix)
    ];
    let target = prop_oneof![
        Just(Target::Any),
        any_set().prop_map(Target::Addresses),
        (pattern, prop::option::of(any_set()))
            .prop_map(|(pattern, at)| Target::Names { pattern, at }),
    ];
    let ports = prop::collection::vec((1u16..6000, 0u16..600), 0..3).prop_map(|ranges| {
        let range = |(first, more)| Ports::new(first, first + more).expect("not empty");
        ranges.into_iter().map(range).collect::<Vec<_>>()
    });
    let protocol = prop::sample::select(&Protocol::ALL[..]);
    (action, any::<bool>(), protocol, ports, target).prop_map(
        |(action, incoming, protocol, ports, target)| {
            let named = matches!(target, Target::Names { .. });
            let incoming = incoming && !named && protocol != Protocol::Dns;
            let protocol = match (&target, protocol) {
                (Target::Addresses(_), Protocol::Dns) => Protocol::Any,
                // Flows only: requests have tests of their own.
                (_, Protocol::Http) => Protocol::Tcp,
                (_, protocol) => protocol,
            };
            let ported = matches!(protocol, Protocol::Tcp | Protocol::Udp);
            Rule {
                action,
                direction: if incoming {
                    Direction::In
                } else {
                    Direction::Out
                },
                protocol,
                ports: if ported { ports } else { Vec::new() },
                target,
                requests: None,
            }
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let preset = prop::sample::select(&Preset::ALL[..]);
    let rules = prop::collection::vec(any_rule(), 0..6);
    let blocked = prop::collection::btree_set(any_name(), 0..2);
    (preset, rules, blocked).prop_map(|(preset, rules, blocked)| Policy {
        preset,
        rules,
        blocked,
    })
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let transport = (0..3, prop::sample::select(&PORTS[..])).prop_map(|(kind, port)| match kind {
        0 => Transport::Tcp(port),
        1 => Transport::Udp(port),
        _ => Transport::Icmp,
    });
    let address = prop::sample::select(&ADDRESSES[..]);
    (transport, address, any::<[bool; 3]>()).prop_map(|(transport, address, odds)| Flow {
        direction: if odds == [true; 3] {
            Direction::In
        } else {
            Direction::Out
        },
        transport,
        address: address.parse().expect("an address"),
        is_host: odds == [false; 3],
    })
}

/// Who decides a flow of which all is known, written down rule by rule from the
/// documentation.
fn model(policy: &Policy, flow: &Flow, bound: &[Name], claim: Claim<'_>) -> Action {
    let mut allowing: Vec<&Name> = bound.iter().collect();
    let mut denying = allowing.clone();
    match claim {
        Claim::None => {}
        Claim::Pending | Claim::Absent => allowing.clear(),
        Claim::Name(claim) => {
            allowing.retain(|name| *name == claim);
            if allowing.is_empty() {
                denying.push(claim);
            } else {
                denying.retain(|name| *name == claim);
            }
        }
    }
    let out = flow.direction == Direction::Out;
    let under = |name: &Name, suffix: &Name| {
        name == suffix || name.as_str().ends_with(&format!(".{suffix}"))
    };
    if out
        && denying
            .iter()
            .any(|n| policy.blocked.iter().any(|s| under(n, s)))
    {
        return Action::Deny;
    }
    let faces = Faces::of(flow.address);
    let holds = |set: &Addresses, action: Action| {
        let one = |face: IpAddr| match set {
            Addresses::Cidr(cidr) => cidr.contains(face),
            Addresses::Group(Group::Host) => flow.is_host,
            Addresses::Group(group) => !flow.is_host && Group::of(face) == *group,
        };
        if action == Action::Allow {
            faces.iter().all(one)
        } else {
            faces.iter().any(one) || one(flow.address)
        }
    };
    let public = Addresses::Group(Group::Public);
    for rule in &policy.rules {
        let protocol = matches!(
            (rule.protocol, flow.transport),
            (Protocol::Any, _)
                | (Protocol::Tcp, Transport::Tcp(_))
                | (Protocol::Udp, Transport::Udp(_))
                | (Protocol::Icmp, Transport::Icmp)
        );
        let port = match flow.transport {
            Transport::Tcp(port) | Transport::Udp(port) => {
                rule.ports.is_empty() || rule.ports.iter().any(|range| range.contains(port))
            }
            Transport::Icmp => rule.ports.is_empty(),
        };
        let names = if rule.action == Action::Allow {
            &allowing
        } else {
            &denying
        };
        let target = match &rule.target {
            Target::Any => true,
            Target::Addresses(set) => holds(set, rule.action),
            Target::Names { pattern, at } => {
                let there = match at {
                    Some(set) => holds(set, rule.action),
                    None => rule.action == Action::Deny || holds(&public, Action::Allow),
                };
                let fits = |name: &&Name| match pattern {
                    Pattern::Domain(own) => *name == own,
                    Pattern::Suffix(own) => under(name, own),
                };
                there && names.iter().any(fits)
            }
        };
        if rule.direction == flow.direction && protocol && port && target {
            return rule.action;
        }
    }
    let allowed = match policy.preset {
        _ if !out => true,
        Preset::AllowAll => true,
        Preset::None => false,
        Preset::PublicOnly => holds(&public, Action::Allow),
    };
    if allowed { Action::Allow } else { Action::Deny }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn decisions_agree_with_the_naive_model(
        policy in any_policy(),
        flow in any_flow(),
        bound in prop::collection::vec(any_name(), 0..3),
        claimed in any_name(),
        kind in 0usize..3,
    ) {
        let claim = [Claim::None, Claim::Absent, Claim::Name(&claimed)][kind];
        let quic = flow.transport == Transport::Udp(443) && flow.direction == Direction::Out;
        let verdict = policy.decide(&flow, &Names { bound: &bound, claim });
        if !quic {
            prop_assert_eq!(verdict.action, model(&policy, &flow, &bound, claim));
        }
        prop_assert!(!verdict.inspect);
    }

    /// A pending verdict may not promise what a claim could still change.
    #[test]
    fn a_pending_verdict_foresees_every_claim(
        policy in any_policy(),
        flow in any_flow(),
        bound in prop::collection::vec(any_name(), 0..3),
    ) {
        let verdict = policy.decide(&flow, &Names { bound: &bound, claim: Claim::Pending });
        let universe: Vec<Name> = LABELS.into_iter().chain(["z.test"]).map(name).collect();
        let mut claims: Vec<Claim<'_>> = universe.iter().map(Claim::Name).collect();
        claims.push(Claim::Absent);
        let tcp = matches!(flow.transport, Transport::Tcp(_)) && flow.direction == Direction::Out;
        match flow.transport {
            Transport::Tcp(80 | 443) | Transport::Udp(443) if flow.direction == Direction::Out => {}
            Transport::Tcp(_) if tcp => claims.push(Claim::None),
            _ => claims = vec![Claim::None],
        }
        let outcomes: Vec<Action> =
            claims.into_iter().map(|claim| model(&policy, &flow, &bound, claim)).collect();
        if verdict.by == Decider::Quic {
            prop_assert_eq!(verdict.action, Action::Deny);
        } else if verdict.action == Action::Deny {
            prop_assert!(outcomes.iter().all(|action| *action == Action::Deny));
        } else {
            prop_assert!(outcomes.contains(&Action::Allow));
            if !verdict.inspect {
                prop_assert!(outcomes.iter().all(|action| *action == Action::Allow));
            }
        }
        prop_assert!(!verdict.inspect || tcp);
    }

    #[test]
    fn policies_are_read_as_they_were_written(policy in any_policy()) {
        prop_assert_eq!(policy.to_string().parse::<Policy>(), Ok(policy));
    }

    #[test]
    fn explanations_agree_with_decisions(
        policy in any_policy(),
        flow in any_flow(),
        bound in prop::collection::vec(any_name(), 0..3),
    ) {
        let names = Names { bound: &bound, claim: Claim::None };
        let explanation = policy.explain(&flow, &names);
        prop_assert_eq!(&explanation.verdict, &policy.decide(&flow, &names));
        if let Decider::Rule(index) = explanation.verdict.by {
            prop_assert_eq!(explanation.passed_over.len(), index);
        }
    }

    #[test]
    fn no_text_panics(text in "(allow|deny|expect|block|preset|tcp|any|at|dns|[ -~]{0,9}|[ \n#,:/.-]|é){0,20}") {
        crate::fuzzing::policy_text(text.as_bytes());
    }
}
