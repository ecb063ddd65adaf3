use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::fuzzing::ambiguous;
use crate::http::session::{Context, Note};
use crate::policy::{Flow, Policy};
use crate::secret::substitute::Grant;
use crate::secret::{OnMisuse, Placeholder, Secret, SecretValue, Source};

const VALUE: &str = "s3cr3t-v4lue-0001";

fn placeholder() -> Placeholder {
    Placeholder::new("", [3; 24]).unwrap()
}

fn relay(policy: &str, change: Option<fn(&mut Secret)>) -> Relay {
    over(policy, change, 443)
}

/// A relay over a flow to a port; behind that of TLS, TLS.
fn over(policy: &str, change: Option<fn(&mut Secret)>, port: u16) -> Relay {
    known(policy, change, ("a.example", "a.example"), port)
}

/// A relay to a proxy for a connection that begins with a request to a host.
fn proxied(policy: &str, change: Option<fn(&mut Secret)>, host: &str) -> Relay {
    known(policy, change, (host, "proxy.example"), 3128)
}

/// A relay for a host to an address with a name.
fn known(
    policy: &str,
    change: Option<fn(&mut Secret)>,
    (host, bound): (&str, &str),
    port: u16,
) -> Relay {
    let policy: Policy = policy.parse().unwrap();
    let grant = |change: fn(&mut Secret)| {
        let mut secret = Secret::new("TOKEN", Source::Env("T".into())).unwrap();
        change(&mut secret);
        Grant {
            secret: Arc::new(secret),
            placeholder: placeholder(),
            value: Some(Arc::new(SecretValue::new(VALUE.as_bytes()).unwrap())),
            former: Vec::new(),
        }
    };
    let context = Context {
        host: host.parse().unwrap(),
        bound: vec![bound.parse().unwrap()],
        flow: Flow::tcp("1.1.1.1".parse().unwrap(), port),
        secure: port == 443,
        tunnels: port != 443,
        policy: Arc::new(policy),
    };
    let grants: Vec<_> = change.into_iter().map(grant).collect();
    Relay::new(Session::new(context, grants.into()))
}

fn plain() -> Relay {
    relay("preset allow-all", None)
}

fn secret() -> Relay {
    relay("preset allow-all", Some(|_| ()))
}

fn take(bytes: &mut Outgoing) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    bytes.clear();
    text
}

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\n";

#[test]
fn requests_of_one_connection_follow_each_other() {
    let mut relay = plain();
    let two = format!("{GET}A: 1\r\n\r\n{GET}B: 2\r\n\r\n");
    relay.from_guest(two.as_bytes());
    assert_eq!(
        take(&mut relay.to_server),
        "GET /x HTTP/1.1\r\nhost: a.example\r\na: 1\r\n\r\n",
        "the second waits"
    );
    relay.from_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(
        take(&mut relay.to_guest),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
    );
    assert!(take(&mut relay.to_server).contains("b: 2"));
    relay.from_server(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(take(&mut relay.to_guest), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(relay.end(), None);
    relay.guest_ended();
    assert_eq!(relay.end(), Some(End::Finished));
}

#[test]
fn a_head_has_no_body_and_continue_is_passed_on() {
    let mut relay = plain();
    relay.from_guest(b"HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    relay.from_server(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n");
    assert!(take(&mut relay.to_guest).ends_with("content-length: 99\r\n\r\n"));
    take(&mut relay.to_server);
    relay.from_guest(b"POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert!(take(&mut relay.to_server).contains("expect: 100-continue"));
    relay.from_server(b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(take(&mut relay.to_guest), "HTTP/1.1 100 Continue\r\n\r\n");
    relay.from_guest(b"3;x=1\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n");
    assert_eq!(
        take(&mut relay.to_server),
        "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"
    );
    relay.from_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    assert!(
        take(&mut relay.to_guest).ends_with("\r\n\r\n1\r\nx\r\n"),
        "at once"
    );
    relay.from_server(b"0\r\nGrpc-Status: 0\r\n\r\n");
    assert_eq!(take(&mut relay.to_guest), "0\r\ngrpc-status: 0\r\n\r\n");
    assert_eq!(relay.end(), None);
}

#[test]
fn the_server_sees_the_value_and_the_guest_never_does() {
    let mut relay = secret();
    let own = placeholder();
    let request = format!("{GET}Authorization: Bearer {own}\r\nAccept-Encoding: gzip, dcb\r\n\r\n");
    relay.from_guest(request.as_bytes());
    let sent = take(&mut relay.to_server);
    assert!(sent.contains(&format!("authorization: Bearer {VALUE}\r\n")));
    assert!(sent.contains("accept-encoding: gzip\r\n"));
    let used = Note::SecretUsed {
        secret: "TOKEN".into(),
        method: "GET".into(),
        path: "/x".into(),
    };
    assert_eq!(relay.session().take_notes(), [used]);
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\nLocation: /?k={VALUE}\r\nContent-Length: {}\r\n\r\n{{\"k\":\"{VALUE}\"}}",
        VALUE.len() + 8
    );
    for byte in answer.as_bytes() {
        relay.from_server(&[*byte]);
    }
    let got = take(&mut relay.to_guest);
    assert!(
        !got.contains(VALUE) && !got.contains("content-length"),
        "{got}"
    );
    assert!(got.contains(&format!("location: /?k={own}\r\n")));
    assert!(
        got.contains(&format!("{own}\r\n")) && got.ends_with("0\r\n\r\n"),
        "{got}"
    );
    assert!(relay.session().take_stale() && !relay.session().take_stale());
}

/// What has lengths of its own, such as messages of gRPC, keeps them.
#[test]
fn a_value_in_a_body_that_is_no_text_becomes_as_many_asterisks() {
    let own = placeholder().to_string();
    for (kind, text) in [
        ("", true),
        ("text/event-stream", true),
        ("Application/JSON; charset=utf-8", true),
        ("application/problem+json", true),
        ("application/grpc", false),
        ("application/grpc+proto", false),
        ("application/octet-stream", false),
        (
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            false,
        ),
    ] {
        let mut relay = secret();
        relay.from_guest(format!("{GET}Grpc-Accept-Encoding: gzip\r\n\r\n").as_bytes());
        assert!(take(&mut relay.to_server).contains("grpc-accept-encoding: identity\r\n"));
        let kind_field = match kind {
            "" => String::new(),
            kind => format!("Content-Type: {kind}\r\n"),
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{kind_field}X-Echo: {VALUE}\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{VALUE}\r\n0\r\nX-Last: {VALUE}\r\n\r\n",
            VALUE.len()
        );
        relay.from_server(answer.as_bytes());
        let got = take(&mut relay.to_guest);
        assert!(!got.contains(VALUE), "{kind}: {got}");
        let count = |what: &str| got.matches(what).count();
        let expected = if text { (3, 0) } else { (2, 1) };
        let found = (count(&own), count(&"*".repeat(VALUE.len())));
        assert_eq!(found, expected, "{kind}: {got}");
    }
    let mut relay = secret();
    relay.from_guest(format!("{GET}\r\n").as_bytes());
    relay.from_server(b"HTTP/1.1 200 OK\r\nGrpc-Encoding: gzip\r\nContent-Length: 0\r\n\r\n");
    assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 502 "));
}

#[test]
fn bodies_get_the_value_and_their_new_length() {
    let mut relay = relay("preset allow-all", Some(|secret| secret.body = true));
    let own = placeholder();
    let body = format!("k={own}");
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    relay.from_guest(head.as_bytes());
    assert_eq!(take(&mut relay.to_guest), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(take(&mut relay.to_server), "");
    for byte in body.as_bytes() {
        relay.from_guest(&[*byte]);
    }
    let sent = take(&mut relay.to_server);
    assert!(
        sent.ends_with(&format!("content-length: 19\r\n\r\nk={VALUE}")),
        "{sent}"
    );
    relay.from_server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    relay.from_guest(b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n");
    let (first, second) = body.split_at(9);
    let chunks = format!(
        "9\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        second.len()
    );
    relay.from_guest(chunks.as_bytes());
    let sent = take(&mut relay.to_server);
    assert!(
        sent.ends_with(&format!("\r\n2\r\nk=\r\n11\r\n{VALUE}\r\n0\r\n\r\n")),
        "{sent}"
    );
    relay.from_server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    take(&mut relay.to_guest);
    relay.from_guest(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc");
    assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 415 "));
}

#[test]
fn denied_requests_are_answered_and_the_connection_goes_on() {
    let mut relay = relay("preset allow-all\ndeny http POST a.example/v1/**", None);
    relay.from_guest(b"POST /v1/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc");
    let got = take(&mut relay.to_guest);
    assert!(
        got.starts_with("HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\n")
    );
    assert!(
        got.contains("rule 1: deny http POST domain a.example/v1/**"),
        "{got}"
    );
    relay.from_guest(format!("{GET}X-HTTP-Method-Override: post\r\n\r\n").as_bytes());
    assert_eq!(take(&mut relay.to_guest), "", "not this path");
    assert!(take(&mut relay.to_server).starts_with("GET /x "));
    assert!(matches!(
        relay.session().take_notes()[..],
        [Note::Denied { .. }]
    ));
}

#[test]
fn rules_see_the_fields_that_the_server_will_see() {
    let mut relay = relay(
        "preset none\nallow http POST a.example with x-team without cookie",
        None,
    );
    for (fields, passes) in [
        ("X-Team: 1\r\n", true),
        ("x-team:\r\nA: b\r\n", true),
        ("A: b\r\n", false),
        ("X-Team: 1\r\nCookie: a=b\r\n", false),
        // It would be taken out on the way.
        ("X-Team: 1\r\nConnection: x-team\r\n", false),
    ] {
        let head = format!("POST /x HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n");
        relay.from_guest(head.as_bytes());
        let sent = take(&mut relay.to_server);
        assert_eq!(!sent.is_empty(), passes, "{fields:?}");
        if passes {
            relay.from_server(b"HTTP/1.1 204 No Content\r\n\r\n");
        }
        let got = take(&mut relay.to_guest);
        assert_eq!(got.starts_with("HTTP/1.1 204 "), passes, "{got}");
        assert_eq!(got.starts_with("HTTP/1.1 403 "), !passes, "{got}");
    }
}

#[test]
fn a_connection_carries_requests_to_its_host_only() {
    let mut relay = secret();
    relay.from_guest(b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n");
    assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 421 "));
    relay.from_guest(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n");
    assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 405 "));
    assert_eq!(take(&mut relay.to_server), "");
}

#[test]
fn a_proxy_opens_a_tunnel_and_what_follows_is_not_read_here() {
    let own = placeholder();
    for (head, sent) in [
        (
            "CONNECT a.example:8443 HTTP/1.1\r\nHost: a.example:8443\r\n",
            "",
        ),
        ("CONNECT a.example:8443 HTTP/1.1\r\nHost: A.example\r\n", ""),
        ("CONNECT a.example:8443 HTTP/1.0\r\n", ""),
        (
            &format!(
                "CONNECT a.example:8443 HTTP/1.0\r\nProxy-Authorization: Bearer {own}\r\nContent-Length: 0\r\n"
            ),
            &format!("proxy-authorization: Bearer {own}\r\n"),
        ),
    ] {
        let mut relay = over("preset allow-all", Some(|_| ()), 3128);
        relay.from_guest(format!("{head}\r\nahead").as_bytes());
        let expected =
            format!("CONNECT a.example:8443 HTTP/1.1\r\nhost: a.example:8443\r\n{sent}\r\n");
        assert_eq!(take(&mut relay.to_server), expected);
        relay.from_server(
            b"HTTP/1.1 200 Connection established\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        );
        assert_eq!(take(&mut relay.to_guest), "HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(relay.end(), Some(End::Tunnel));
        assert!(!relay.wants_guest() && !relay.wants_server());
        assert!(relay.to_server.is_empty(), "what came ahead waits");
        let notes = relay.session().take_notes();
        assert!(
            matches!(&notes[..], [Note::Tunnel { port: 8443, by }] if by.contains("allow-all")),
            "{notes:?}"
        );
        let rest = relay.into_tunnel().unwrap();
        assert_eq!(rest, (8443, b"ahead".to_vec(), b"hello".to_vec()));
    }
}

#[test]
fn a_proxy_that_opens_no_tunnel_is_asked_again() {
    let mut relay = over("preset allow-all", None, 3128);
    for (answer, length) in [("407 Proxy Authentication Required", 3), ("503 No", 0)] {
        relay.from_guest(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n");
        assert!(take(&mut relay.to_server).starts_with("CONNECT "));
        let answer = format!(
            "HTTP/1.1 {answer}\r\nContent-Length: {length}\r\n\r\n{}",
            "why".split_at(length).0
        );
        relay.from_server(answer.as_bytes());
        assert!(take(&mut relay.to_guest).ends_with("why".split_at(length).0));
        assert_eq!(relay.end(), None);
    }
    assert!(relay.into_tunnel().is_none());
}

/// A proxy lets the guest in by its own name, or by none; what is asked for behind that is
/// judged by the name it has.
#[test]
fn asking_for_a_tunnel_opens_no_other_requests() {
    const CONNECT: &[u8] = b"CONNECT x.ads.example:80 HTTP/1.1\r\nHost: x.ads.example:80\r\n\r\n";
    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x.ads.example\r\n\r\n";
    for policy in [
        "preset none\nallow tcp 3128 proxy.example",
        "preset allow-all\nblock ads.example",
        "preset allow-all\ndeny tcp 3128 x.ads.example",
        "preset allow-all\ndeny tcp x.ads.example",
    ] {
        for first in [true, false] {
            let mut relay = proxied(policy, Some(|_| ()), "x.ads.example");
            if first {
                relay.from_guest(CONNECT);
                if relay.to_server.is_empty() {
                    assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 403 "));
                } else {
                    take(&mut relay.to_server);
                    relay.from_server(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n");
                    assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 407 "));
                }
            }
            relay.session().take_notes();
            relay.from_guest(GET);
            let got = take(&mut relay.to_guest);
            assert_eq!(got.get(..13), Some("HTTP/1.1 403 "), "{policy}");
            assert!(relay.to_server.is_empty());
            let notes = relay.session().take_notes();
            assert!(matches!(notes[..], [Note::Denied { .. }]), "{notes:?}");
        }
    }
}

#[test]
fn tunnels_are_judged_by_where_they_lead() {
    let connect = |policy: &str, change: Option<fn(&mut Secret)>, head: &str| {
        let to = head.split([' ', ':']).nth(1).unwrap();
        let host = if to.contains("b.example") || to == "1.1.1.1" {
            "a.example"
        } else {
            to
        };
        let mut relay = proxied(policy, change, host);
        relay.from_guest(format!("{head}\r\n").as_bytes());
        let got = take(&mut relay.to_guest);
        assert_eq!(got.is_empty(), !take(&mut relay.to_server).is_empty());
        (
            got.get(9..12).unwrap_or("").to_owned(),
            relay.session().take_notes(),
        )
    };
    let head = |to: &str| format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    for (policy, to, expected) in [
        ("preset public-only", "a.example:443", ""),
        ("preset public-only", "b.example:443", "421"),
        (
            "preset none\nallow tcp 3128 1.1.1.1",
            "a.example:443",
            "403",
        ),
        (
            "preset none\nallow tcp 443 a.example",
            "a.example:443",
            "403",
        ),
        (
            "preset none\nallow tcp 3128 proxy.example\nallow tcp 443 a.example",
            "a.example:443",
            "",
        ),
        (
            "preset none\nallow tcp 3128 proxy.example\nallow tcp 443 a.example",
            "a.example:22",
            "403",
        ),
        (
            "preset none\nallow tcp 3128 proxy.example\nallow http GET a.example/x",
            "a.example:443",
            "",
        ),
        // The proxy itself is asked for something, too.
        (
            "preset none\nallow tcp 443 a.example\nallow http GET proxy.example/ro",
            "a.example:443",
            "403",
        ),
        (
            "preset none\nallow http GET proxy.example/ro",
            "proxy.example:3128",
            "403",
        ),
        (
            "preset none\nallow tcp 443 a.example\nallow http CONNECT proxy.example",
            "a.example:443",
            "",
        ),
        (
            "preset allow-all\ndeny http proxy.example",
            "a.example:443",
            "403",
        ),
        (
            "preset allow-all\ndeny http CONNECT proxy.example",
            "a.example:443",
            "403",
        ),
        (
            "preset allow-all\ndeny http DELETE proxy.example",
            "a.example:443",
            "403",
        ),
        (
            "preset allow-all\nallow http CONNECT proxy.example\ndeny http DELETE proxy.example",
            "a.example:443",
            "",
        ),
        // Names that lead to the inside.
        ("preset public-only", "localhost:5432", "403"),
        ("preset public-only", "LOCALHOST.:5432", "403"),
        ("preset public-only", "host.msb.internal:80", "403"),
        ("preset public-only", "metadata.google.internal:80", "403"),
        ("preset public-only\nallow tcp 80 public", "db:80", "403"),
        ("preset public-only\nallow tcp 80 db.corp", "db.corp:80", ""),
        (
            "preset public-only\nallow tcp 80 db.corp",
            "db.corp:81",
            "403",
        ),
        ("preset public-only\nallow tcp 80 any", "db:80", ""),
        ("preset allow-all", "localhost:5432", ""),
        (
            "preset allow-all\ndeny tcp a.example",
            "a.example:443",
            "403",
        ),
        ("preset allow-all\ndeny tcp 22", "a.example:22", "403"),
        (
            "preset allow-all\ndeny http CONNECT any",
            "a.example:443",
            "403",
        ),
        (
            "preset allow-all\ndeny http DELETE any",
            "a.example:443",
            "",
        ),
        ("preset allow-all\ndeny http any/x", "a.example:443", ""),
        ("preset public-only", "a.example", "400"),
        ("preset public-only", "a.example:", "400"),
        ("preset public-only", "a.example:+1", "400"),
        ("preset public-only", "a.example:65536", "400"),
        ("preset public-only", "1.1.1.1:443", "400"),
    ] {
        let (status, notes) = connect(policy, None, &head(to));
        assert_eq!(status, expected, "{policy}: {to}");
        assert_eq!(notes.len(), 1, "{policy}: {to}");
        let opened = matches!(notes[0], Note::Tunnel { .. });
        assert_eq!(opened, expected.is_empty(), "{policy}: {to}");
        if let [Note::Denied { method, path, .. }] = &notes[..] {
            assert_eq!((&**method, to.ends_with(&**path)), ("CONNECT", true));
        }
    }
    let body = format!("{}Content-Length: 1\r\n", head("a.example:443"));
    assert_eq!(connect("preset allow-all", None, &body).0, "400");
    let basic = STANDARD.encode(format!("me:{}", placeholder()));
    let misuse = format!(
        "{}Proxy-Authorization: Basic {basic}\r\n",
        head("a.example:443")
    );
    let block: fn(&mut Secret) = |secret| secret.on_misuse = OnMisuse::Block;
    assert_eq!(connect("preset allow-all", Some(block), &misuse).0, "403");
    assert_eq!(connect("preset allow-all", Some(|_| ()), &misuse).0, "");
}

/// Some readers take such a port for octal.
#[test]
fn a_tunnel_is_asked_for_as_it_was_judged() {
    let mut relay = over("preset allow-all", None, 3128);
    let end = "A.example.:0443";
    relay.from_guest(format!("CONNECT {end} HTTP/1.1\r\nHost: {end}\r\n\r\n").as_bytes());
    assert_eq!(
        take(&mut relay.to_server),
        "CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n"
    );
}

#[test]
fn web_sockets_pass_and_are_scrubbed_in_place() {
    let mut relay = secret();
    relay.from_guest(format!("{GET}Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n").as_bytes());
    let sent = take(&mut relay.to_server);
    assert!(
        sent.contains("upgrade: websocket\r\n") && !sent.contains("extensions"),
        "{sent}"
    );
    relay.from_server(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x13> ");
    relay.from_server(VALUE.as_bytes());
    let got = take(&mut relay.to_guest);
    assert!(
        got.ends_with(&format!("> {}", "*".repeat(VALUE.len()))),
        "{got}"
    );
    relay.from_guest(b"\x81\x80frame");
    assert!(take(&mut relay.to_server).ends_with("frame"));
    relay.guest_ended();
    assert!(relay.server_is_done());
    relay.server_ended();
    assert_eq!(relay.end(), Some(End::Finished));
}

/// A server that changed to HTTP/2 would be asked for what nobody reads.
#[test]
fn no_other_protocol_is_changed_to() {
    for upgrade in ["h2c", "h2c, websocket", "TLS/1.0"] {
        let mut relay = plain();
        let fields = format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
        );
        relay.from_guest(format!("{GET}{fields}\r\nPRI * HTTP/2.0").as_bytes());
        assert_eq!(
            take(&mut relay.to_server),
            "GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n"
        );
        relay.from_server(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        );
        assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 502 "));
        assert_eq!(take(&mut relay.to_server), "");
    }
}

#[test]
fn ambiguous_requests_are_refused_and_nothing_is_forwarded() {
    for (name, text) in ambiguous::HEADS {
        for piece in [1, 7, text.len()] {
            let mut relay = plain();
            for piece in text.chunks(piece) {
                relay.from_guest(piece);
            }
            let got = take(&mut relay.to_guest);
            let status = got.get(9..12).unwrap_or_default();
            assert!(matches!(status, "400" | "417" | "505"), "{name}: {got}");
            assert_eq!(take(&mut relay.to_server), "", "{name}");
            assert_eq!(relay.end(), Some(End::Finished));
            assert!(matches!(
                relay.session().take_notes()[..],
                [Note::Refused { .. }]
            ));
        }
    }
    let mut relay = plain();
    relay.from_guest(format!("{GET}X: {}", "a".repeat(MAX_HEAD)).as_bytes());
    assert!(take(&mut relay.to_guest).starts_with("HTTP/1.1 431 "));
}

/// A server that takes no body with GET would take this one for a request.
#[test]
fn a_body_where_none_is_expected_is_the_last_of_its_connection() {
    let mut relay = plain();
    let hidden = "DELETE /x HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let head = format!("{GET}Content-Length: {}\r\n\r\n{hidden}", hidden.len());
    relay.from_guest(head.as_bytes());
    let sent = take(&mut relay.to_server);
    assert!(sent.contains("connection: close\r\n\r\nDELETE"), "{sent}");
    relay.from_guest(format!("{GET}\r\n").as_bytes());
    relay.from_server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 204 x\r\n\r\n");
    let got = take(&mut relay.to_guest);
    assert!(
        got.contains("connection: close") && !got.contains("204"),
        "{got}"
    );
    assert_eq!(take(&mut relay.to_server), "");
    assert_eq!(relay.end(), Some(End::Finished));
}

#[test]
fn bad_chunks_end_the_connection() {
    for (name, chunk) in ambiguous::CHUNKS {
        for piece in [1, 7, chunk.len()] {
            let mut relay = plain();
            relay.from_guest(ambiguous::CHUNKED);
            for piece in chunk.chunks(piece) {
                relay.from_guest(piece);
            }
            assert_eq!(relay.end(), Some(End::Broken), "{name}");
            assert!(
                take(&mut relay.to_guest).starts_with("HTTP/1.1 400 "),
                "{name}"
            );
            assert!(!take(&mut relay.to_server).contains("0\r\n\r\n"), "{name}");
            assert!(matches!(
                relay.session().take_notes()[..],
                [Note::Refused { .. }]
            ));
        }
    }
}

#[test]
fn responses_that_are_none_do_not_pass() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 1\n\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "SSH-2.0-x\r\n\r\n",
        "",
    ] {
        let mut relay = plain();
        relay.from_guest(format!("{GET}\r\n").as_bytes());
        relay.from_server(text.as_bytes());
        relay.server_ended();
        let got = take(&mut relay.to_guest);
        assert!(got.starts_with("HTTP/1.1 502 "), "{text:?}: {got}");
        assert_eq!(relay.end(), Some(End::Finished));
    }
    let mut relay = plain();
    relay.from_server(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(take(&mut relay.to_guest), "", "nobody asked");
    assert_eq!(relay.end(), Some(End::Finished));
}

#[test]
fn a_response_that_is_cut_off_is_not_taken_for_a_whole_one() {
    for head in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
        let mut relay = secret();
        relay.from_guest(format!("{GET}\r\n").as_bytes());
        relay.from_server(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nab").as_bytes());
        relay.server_ended();
        assert_eq!(relay.end(), Some(End::Broken));
        assert!(!take(&mut relay.to_guest).ends_with("0\r\n\r\n"));
    }
    let mut relay = plain();
    relay.from_guest(b"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n");
    relay.from_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
    let got = take(&mut relay.to_guest);
    assert!(
        got.ends_with("connection: close\r\n\r\nab") && !got.contains("chunked"),
        "{got}"
    );
    assert_eq!(relay.end(), Some(End::Finished));
}

#[test]
fn slow_readers_stop_the_writers() {
    let mut relay = plain();
    relay.from_guest(format!("{GET}\r\n").as_bytes());
    relay.from_server(b"HTTP/1.1 200 OK\r\n\r\n");
    let mut sent = 0;
    while relay.wants_server() {
        relay.from_server(&[b'x'; 10_000]);
        sent += 10_000;
    }
    assert!(relay.to_guest.len() < MAX_OUTPUT + 2 * PIECE && sent < 500_000);
    relay.to_guest.clear();
    relay.written();
    assert!(relay.wants_server());
}

proptest! {
    #[test]
    fn pieces_change_nothing(
        cut in prop::collection::vec(1usize..60, 1..20),
        body in prop::collection::vec(any::<u8>(), 0..200),
        chunked in any::<bool>(),
        noise in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let own = placeholder();
        let mut request = format!("{GET}Authorization: Bearer {own}\r\n\r\n").into_bytes();
        request.extend_from_slice(&noise);
        let text = [&body[..], VALUE.as_bytes(), &body].concat();
        let mut response = b"HTTP/1.1 200 OK\r\n".to_vec();
        if chunked {
            response.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in text.chunks(cut[0]) {
                BodyWriter::Chunked.write(piece, &mut response);
            }
            BodyWriter::Chunked.finish(&Fields::default(), &mut response);
        } else {
            response.extend_from_slice(format!("Content-Length: {}\r\n\r\n", text.len()).as_bytes());
            response.extend_from_slice(&text);
        }
        let mut relay = secret();
        let mut sizes = cut.iter().copied().cycle();
        let mut feed = |mut bytes: &[u8], take: &mut dyn FnMut(&[u8])| {
            while !bytes.is_empty() {
                let (now, rest) = bytes.split_at(sizes.next().unwrap().min(bytes.len()));
                take(now);
                bytes = rest;
            }
        };
        feed(&request, &mut |piece| relay.from_guest(piece));
        feed(&response, &mut |piece| relay.from_server(piece));
        // The guest's own reader of what it got.
        let head = head::read_response(&relay.to_guest, "GET").unwrap().unwrap();
        let (mut reader, mut at, mut got) = (BodyReader::new(head.framing), head.length, Vec::new());
        loop {
            match reader.step(&relay.to_guest[at..]).unwrap() {
                Step::Skip(length) => at += length,
                Step::Data(length) => {
                    got.extend_from_slice(&relay.to_guest[at..at + length]);
                    at += length;
                }
                Step::End(..) => break,
                Step::More => prop_assert!(false, "it is whole"),
            }
        }
        prop_assert_eq!(got, [&body[..], own.as_bytes(), &body].concat());
    }

    #[test]
    fn any_bytes_from_either_side(guest in prop::collection::vec(any::<u8>(), 0..200), server in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut relay = secret();
        relay.from_guest(&guest);
        relay.from_server(&server);
        relay.from_guest(format!("{GET}\r\n").as_bytes());
        relay.from_server(&server);
        relay.guest_ended();
        relay.server_ended();
        prop_assert!(relay.end().is_some());
    }
}
