//! Rules about requests.

use super::super::*;
use super::name;

fn document(text: &str) -> Document {
    text.parse().expect("a policy")
}

#[track_caller]
fn holds(text: &str) {
    let document = document(text);
    assert!(!document.expectations.is_empty());
    let failures: Vec<_> = document.failures().map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    let again: Policy = document.policy.to_string().parse().expect("it is written");
    assert_eq!(again, document.policy);
}

#[test]
fn allowed_requests_open_their_flow_and_no_others_pass() {
    holds(
        "preset none
         allow http GET,HEAD api.example.com/repos/*/issues/**
         expect allow tcp 443 api.example.com
         expect deny tcp 443 api.example.com sni other.example
         expect allow dns api.example.com
         expect deny udp 443 api.example.com
         expect allow http GET api.example.com/repos/a/issues/7
         expect allow http HEAD api.example.com/repos/a/issues
         expect deny http POST api.example.com/repos/a/issues/7
         expect deny http GET api.example.com/repos/a/pulls
         expect deny http GET api.example.com/repos/a/issues/../../../admin
         expect deny http GET api.example.com/repos/a/issues/%2e%2e/pulls
         expect deny http GET www.example.com/repos/a/issues/7
         expect deny http GET api.example.com/repos/a/issues/7 at 10.0.0.1",
    );
}

#[test]
fn denied_requests_leave_the_rest_alone() {
    holds(
        "preset public-only
         deny http POST,PUT suffix example.com/v1/**
         expect allow tcp 443 api.example.com
         expect deny udp 443 api.example.com
         expect allow udp 443 other.example
         expect deny http POST api.example.com/v1/x
         expect deny http POST api.example.com//%76%31/x
         expect deny http POST api.example.com/a/..;/v1
         expect allow http GET api.example.com/v1/x
         expect allow http POST api.example.com/v2
         expect allow http POST other.example/v1/x",
    );
}

#[test]
fn the_first_rule_that_fits_a_request_decides() {
    holds(
        "preset public-only
         allow http any/health
         deny http 80 DELETE any
         deny http suffix internal.example
         expect allow http GET a.internal.example/health
         expect deny http GET a.internal.example/
         expect allow http DELETE other.example/x",
    );
}

#[test]
fn rules_can_ask_for_header_fields() {
    holds(
        "preset none
         deny http suffix example.com with X-Debug,x-trace
         allow http POST api.example.com/v1/** with Authorization without cookie
         allow http GET any/open without authorization
         expect allow http POST api.example.com/v1/x with authorization
         expect allow http POST api.example.com/v1/x at 1.1.1.1 with AUTHORIZATION,accept
         expect deny http POST api.example.com/v1/x
         expect deny http POST api.example.com/v1/x with authorization,cookie
         expect allow http POST api.example.com/v1/x with authorization,x-debug
         expect deny http POST api.example.com/v1/x with authorization,x-debug,x-trace
         expect allow http GET other.example/open
         expect deny http GET other.example/open with authorization",
    );
    let policy = document("deny http GET a.example/x at public with b,c without D").policy;
    let text = "deny http GET domain a.example/x at public with b,c without d";
    assert_eq!(policy.rules()[0].to_string(), text);
}

/// `api.` is a name of one word.
#[test]
fn a_lone_word_is_a_host_where_that_is_said() {
    holds(
        "preset none
         allow http domain api./x
         allow http suffix corp
         expect deny http GET other.example/x
         expect allow http GET a.corp/x",
    );
    assert!("deny http api./x".parse::<Document>().is_err());
}

#[test]
fn an_explanation_names_the_rule() {
    let policy = document("preset public-only\ndeny http 80 any\ndeny http GET a.example/x").policy;
    let host = name("a.example");
    let flow = Flow::tcp("1.1.1.1".parse().unwrap(), 443);
    let names = Names {
        bound: &[],
        claim: Claim::Name(&host),
    };
    let asked = Asked {
        methods: &["POST", "GET"],
        path: "/y/%2e%2e/x",
        fields: &[],
    };
    assert_eq!(
        policy.explain_request(&flow, &names, &asked).to_string(),
        "deny: rule 2: deny http GET domain a.example/x\n  not rule 1: deny http 80 any (other port)"
    );
    assert_eq!(policy.reads_requests(&flow, &names), Reads::Always);
}

#[test]
fn requests_are_read_only_where_a_rule_is_about_them() {
    let policy = document("preset public-only\ndeny http GET a.example/x").policy;
    let (host, other) = (name("a.example"), name("b.example"));
    let flow = Flow::tcp("1.1.1.1".parse().unwrap(), 443);
    let reads = |bound: &[Name], claim| {
        policy.reads_requests(&flow, &Names { bound, claim }) != Reads::Never
    };
    assert!(reads(&[], Claim::Name(&host)));
    assert!(reads(std::slice::from_ref(&host), Claim::Name(&other)));
    assert!(!reads(&[], Claim::Name(&other)));
    assert!(!reads(&[], Claim::Absent));
}

/// What is in a tunnel meets no rule about the addresses of the proxy that opened it.
#[test]
fn a_rule_may_be_about_the_requests_of_one_server() {
    let flow = Flow::tcp("10.0.0.7".parse().unwrap(), 3128);
    let bound = [name("proxy.example")];
    for (rule, about) in [
        ("deny http DELETE proxy.example", true),
        ("allow http GET suffix example", true),
        ("deny http DELETE a.example", false),
        ("deny http DELETE any", false),
        ("deny tcp proxy.example", false),
    ] {
        let policy = document(rule).policy;
        assert_eq!(policy.is_about_server(&flow, &bound), about, "{rule}");
    }
    for (addresses, about) in [
        ("10.0.0.0/8", true),
        ("10.1.0.0/16", false),
        ("0.0.0.0/0", false),
    ] {
        let mut rule: Rule = "deny http DELETE any".parse().unwrap();
        rule.target = Target::Addresses(Addresses::Cidr(addresses.parse().unwrap()));
        let policy = Policy::allow_all().rule(rule).unwrap();
        assert_eq!(policy.is_about_server(&flow, &bound), about, "{addresses}");
    }
}

#[test]
fn mistakes_in_rules_are_pointed_at() {
    for (text, says) in [
        ("deny http GET a.example/../x", "is no pattern of paths"),
        ("deny http GET example/x", "`any` host or a domain name"),
        ("deny http get a.example/x", "`any` host or a domain name"),
        ("deny in http any", "not read"),
        ("deny http GET 10.0.0.0/8", "is not a domain name"),
        ("deny http any with", "names of header fields"),
        (
            "deny http any with a,,b",
            "is not the name of a header field",
        ),
        (
            "deny http any without a:b",
            "is not the name of a header field",
        ),
        ("deny http any with Host", "is about the connection"),
        ("deny http any without a with b", "the end of the line"),
        ("deny http any with a b", "`without` or the end of the line"),
        // Where a credential is, its name belongs.
        ("deny http any with a=HUNTER2", "is not the name"),
        ("deny http any with a: HUNTER2", "is not the name"),
        ("deny http any with a HUNTER2", "the end of the line"),
        ("deny http a.example a=HUNTER2", "the end of the line"),
        ("deny http a.example/v1?key=HUNTER2", "no pattern of paths"),
        ("deny http https://me:HUNTER2@a.example/", "a domain name"),
        ("deny tcp 443 a.example with b", "the end of the line"),
        ("expect deny http a.example/x", "a method"),
        ("expect deny http GET a.example/x with é", "is not the name"),
    ] {
        let error = text.parse::<Document>().expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
        assert!(!error.to_uppercase().contains("HUNTER2"), "{error}");
    }
}
