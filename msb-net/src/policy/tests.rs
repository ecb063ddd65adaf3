mod model;
mod request;

use std::net::IpAddr;

use super::*;

fn policy(text: &str) -> Policy {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// Runs the `expect` lines of a text.
fn holds(text: &str) {
    let document: Document = text.parse().unwrap_or_else(|error| panic!("{error}"));
    let failures: Vec<String> = document.failures().map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[track_caller]
fn refused(text: &str, line: usize, column: usize, message: &str, hint: Option<&str>) {
    let error = text.parse::<Document>().expect_err(text);
    let crate::Error::Policy(syntax) = &error else {
        panic!("{error}");
    };
    assert_eq!((syntax.line, syntax.column), (line, column), "{error}");
    assert!(syntax.message.contains(message), "{error}");
    assert_eq!(error.hint().as_deref(), hint, "{error}");
}

#[test]
fn public_only_keeps_internal_addresses_out_of_reach() {
    holds(
        "preset public-only
        expect allow tcp 443 1.1.1.1
        expect allow udp 53 2606:4700:4700::1111
        expect allow icmp 1.1.1.1
        expect allow dns example.com
        expect allow udp 443 1.1.1.1
        expect deny tcp 80 169.254.169.254
        expect deny tcp 80 ::ffff:169.254.169.254
        expect deny tcp 80 64:ff9b::a9fe:a9fe
        expect deny tcp 80 2002:a9fe:a9fe::
        expect deny tcp 22 10.0.0.1
        expect deny tcp 22 127.0.0.1
        expect deny tcp 22 host
        expect deny udp 5353 224.0.0.251
        expect deny tcp 443 example.com at 10.0.0.1
        expect allow in tcp 80 10.0.0.1",
    );
}

#[test]
fn none_opens_nothing_and_allow_all_everything() {
    holds(
        "expect deny tcp 443 1.1.1.1
        expect deny dns example.com
        expect deny icmp 1.1.1.1",
    );
    holds(
        "preset allow-all
        expect allow tcp 80 169.254.169.254
        expect allow tcp 80 host
        expect allow dns example.com",
    );
}

#[test]
fn a_name_needs_an_answer_of_ours_and_an_agreeing_claim() {
    holds(
        "allow tcp 443 api.github.com
        expect allow tcp 443 api.github.com
        expect deny tcp 443 api.github.com sni evil.example
        expect deny tcp 443 api.github.com no-sni
        expect deny tcp 443 192.31.196.1 sni api.github.com
        expect deny tcp 443 192.31.196.1
        expect deny tcp 22 api.github.com
        expect deny udp 443 api.github.com
        expect deny tcp 443 api.github.com at 127.0.0.1
        expect deny tcp 443 api.github.com at ::ffff:10.0.0.1
        expect allow dns api.github.com
        expect deny dns github.com
        expect deny dns x.api.github.com",
    );
}

#[test]
fn at_lets_a_name_point_inwards() {
    holds(
        "allow tcp 5432 db.corp.example at 10.0.0.0/8
        expect allow tcp 5432 db.corp.example at 10.1.2.3
        expect deny tcp 5432 db.corp.example at 192.168.0.1
        expect deny tcp 5432 db.corp.example
        expect deny tcp 5432 other.corp.example at 10.1.2.3",
    );
}

#[test]
fn blocked_suffixes_come_before_rules() {
    holds(
        "preset allow-all
        block ads.example tracker.example
        allow any
        expect deny tcp 443 ads.example
        expect deny tcp 443 x.y.ads.example
        expect allow tcp 443 goodads.example
        expect deny tcp 443 other.example sni ads.example
        expect deny tcp 443 ads.example sni other.example
        expect deny udp 443 other.example
        expect allow udp 123 other.example
        expect deny dns a.tracker.example",
    );
}

#[test]
fn a_deny_rule_for_a_port_leaves_queries_alone() {
    holds(
        "deny tcp 25
        deny dns suffix tunnel.example
        allow any
        expect allow dns example.com
        expect deny dns a.tunnel.example
        expect allow tcp 443 a.tunnel.example
        expect deny tcp 25 1.1.1.1",
    );
    // Blocks of addresses open no names: they could be a way to talk outwards.
    holds(
        "allow 10.0.0.0/8
        expect deny dns secret-bytes.tunnel.example",
    );
}

#[test]
fn server_first_protocols_need_no_claim() {
    let policy = policy("allow tcp 22 github.com");
    let flow = Flow::tcp("140.82.112.3".parse().unwrap(), 22);
    let bound = [name("github.com")];
    let names = Names {
        bound: &bound,
        claim: Claim::None,
    };
    assert_eq!(policy.decide(&flow, &names).action, Action::Allow);
}

#[test]
fn rebinding_answers_are_refused() {
    let metadata: IpAddr = "169.254.169.254".parse().unwrap();
    let inside: IpAddr = "10.0.0.7".parse().unwrap();
    let public: IpAddr = "1.1.1.1".parse().unwrap();
    let example = name("example.com");
    for (text, address, admitted) in [
        ("preset public-only", public, true),
        ("preset public-only", inside, false),
        ("preset public-only", metadata, false),
        ("preset allow-all", inside, true),
        ("preset allow-all\ndeny metadata", metadata, false),
        ("allow suffix example.com", inside, false),
        ("allow suffix example.com at private", inside, true),
        ("allow suffix example.com at private", metadata, false),
        ("allow suffix example.org at private", inside, false),
        ("allow tcp 80 10.0.0.0/24", inside, true),
    ] {
        let admits = policy(text).admits_answer(&example, address);
        assert_eq!(admits, admitted, "{text}: {address}");
    }
}

#[test]
fn an_alias_is_refused_only_when_it_is_denied_by_name() {
    let policy = policy("block ads.example\ndeny bad.example\nallow good.example");
    assert!(policy.names_as_denied(&name("x.ads.example")));
    assert!(policy.names_as_denied(&name("bad.example")));
    assert!(!policy.names_as_denied(&name("cdn.example")));
}

#[test]
fn explanations_name_the_rule_and_the_reasons() {
    let policy = policy(
        "deny tcp 25
        allow udp
        allow tcp 443 api.github.com
        allow in tcp 80 any
        deny private",
    );
    let flow = Flow::tcp("10.0.0.1".parse().unwrap(), 443);
    let text = policy.explain(&flow, &Names::default()).to_string();
    assert_eq!(
        text,
        "deny: rule 5: deny private
  not rule 1: deny tcp 25 any (other port)
  not rule 2: allow udp any (other protocol)
  not rule 3: allow tcp 443 domain api.github.com (address not covered)
  not rule 4: allow in tcp 80 any (other direction)"
    );
}

#[test]
fn an_explanation_accounts_for_every_rule_before_the_one_that_decides() {
    let policy = policy("allow a.test\nallow any");
    let flow = Flow::udp("1.1.1.1".parse().unwrap(), 443);
    let bound = [name("b.test"), name("a.test")];
    let claim = Claim::None;
    let bound = &bound;
    let explanation = policy.explain(&flow, &Names { bound, claim });
    assert_eq!(explanation.verdict.by, Decider::Rule(1));
    assert_eq!(explanation.passed_over.len(), 1);
}

#[test]
fn mistakes_are_placed_and_the_nearest_word_is_offered() {
    refused("alow tcp", 1, 1, "\"alow\"", Some("did you mean `allow`?"));
    refused(
        "\n  deny metdata",
        2,
        8,
        "\"metdata\"",
        Some("did you mean `metadata`?"),
    );
    refused(
        "allow tpc 443",
        1,
        7,
        "\"tpc\"",
        Some("did you mean `tcp`?"),
    );
    refused(
        "preset pubic-only",
        1,
        8,
        "preset",
        Some("did you mean `public-only`?"),
    );
    refused(
        "preset",
        1,
        7,
        "nothing",
        Some("one of: public-only, allow-all, none"),
    );
    refused(
        "preset none\npreset none",
        2,
        1,
        "line 1 has a preset",
        None,
    );
    refused("allow 443", 1, 7, "need `tcp`, `udp` or `http`", None);
    refused("allow tcp 70000", 1, 11, "1 to 65535", None);
    refused("allow tcp 0", 1, 11, "1 to 65535", None);
    refused("allow tcp 90-80", 1, 11, "ends before", None);
    refused("allow tcp 80,", 1, 11, "not a port", None);
    refused(
        "allow tcp 443 10.0.0.1/8",
        1,
        15,
        "below the prefix",
        Some("did you mean 10.0.0.0/8?"),
    );
    refused(
        "allow *.github.com",
        1,
        7,
        "not a domain name",
        Some("a name and all below it is written `suffix github.com`"),
    );
    refused("allow dns 10.0.0.0/8", 1, 11, "about names", None);
    refused("allow in tcp 80 a.example", 1, 17, "no name", None);
    refused("allow any any", 1, 11, "end of the line", None);
    refused(
        "allow a.example at",
        1,
        19,
        "addresses",
        Some("one of: public, private, loopback, link-local, metadata, multicast, host, reserved"),
    );
    refused("expect allow tcp 443", 1, 21, "a domain name", None);
    refused("allow bücher.example", 1, 7, "'ü'", None);
}

#[test]
fn a_rule_on_a_command_line_is_one_line() {
    assert!("allow any\nallow any".parse::<Rule>().is_err());
    assert!("preset none".parse::<Rule>().is_err());
    assert!("allow tcp 443 example.com".parse::<Rule>().is_ok());
}

#[test]
fn rules_and_block_lists_are_bounded() {
    let text = "allow any\n".repeat(MAX_RULES + 1);
    let error = text.parse::<Policy>().expect_err("too many rules");
    assert_eq!(error, crate::Error::TooManyRules { max: MAX_RULES });
}

#[test]
fn a_shared_address_is_inspected_before_it_is_judged() {
    let policy = policy("preset public-only\ndeny b.example");
    let bound = [name("a.example"), name("b.example")];
    let flow = Flow::tcp("1.1.1.1".parse().unwrap(), 443);
    let with = |claim| {
        let names = Names {
            bound: &bound,
            claim,
        };
        policy.decide(&flow, &names)
    };
    assert!(with(Claim::Pending).inspect);
    assert_eq!(with(Claim::Name(&bound[0])).action, Action::Allow);
    assert_eq!(with(Claim::Name(&bound[1])).action, Action::Deny);
    assert_eq!(with(Claim::Absent).action, Action::Deny);
}
