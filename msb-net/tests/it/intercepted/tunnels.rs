//! Tunnels through a proxy: judged by where they lead, and what is in them by its name.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use rustls::AlertDescription;

use super::servers::{self, Outside, Seen};
use super::*;

const POLICY: &str = "preset allow-all";

/// Asks for a tunnel; returns the head of the answer.
fn ask(stream: &mut UnixStream, to: &str) -> String {
    let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nX: y\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let (mut got, mut byte) = (Vec::new(), [0]);
    while !got.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

/// A connection to a proxy, and a tunnel in it.
pub(super) fn open(world: &mut World, proxy: u16, to: &str) -> UnixStream {
    let mut stream = world.connect(proxy);
    let head = ask(&mut stream, to);
    assert_eq!(head, "HTTP/1.1 200 OK\r\n\r\n");
    stream
}

/// Everything that was seen does not hold the value.
fn assert_unseen(seen: &Seen) {
    let all = seen.lock().unwrap().concat();
    assert!(!all.contains(VALUE), "{all}");
}

#[test]
fn a_host_with_a_secret_gets_the_value_through_a_tunnel_and_the_proxy_does_not() {
    let outside = Outside::new("known");
    let (server, heads) = servers::h1(Some(outside.config("a.example", b"http/1.1")));
    let (proxy, seen) = servers::proxy(server, b"");
    let mut world = world(POLICY, &outside, literal());
    let own = world.placeholder();
    let (stream, config) = (
        open(&mut world, proxy, "a.example:443"),
        world.client(b"http/1.1"),
    );
    run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        let request =
            format!("GET /x HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {own}\r\n\r\n");
        let answer = exchange(&mut tls, request).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_clean(&answer);
    });
    let head = &heads.lock().unwrap()[0];
    assert!(head.contains(&format!("Bearer {VALUE}\r\n")), "{head}");
    assert_eq!(
        seen.lock().unwrap()[0],
        "CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\nx: y\r\n\r\n"
    );
    assert_unseen(&seen);
    let notes = world.notes();
    assert!(
        matches!(&notes[..], [Note::Tunnel { port: 443, .. }, Note::SecretUsed { path, .. }] if path == "/x"),
        "{notes:?}"
    );
}

#[test]
fn who_a_proxy_leads_to_is_verified() {
    let (outside, stranger) = (Outside::new("known"), Outside::new("stranger"));
    let (server, heads) = servers::h1(Some(stranger.config("a.example", b"http/1.1")));
    let (proxy, seen) = servers::proxy(server, b"");
    let mut world = world(POLICY, &outside, literal());
    let stream = open(&mut world, proxy, "a.example:443");
    let config = world.client(b"http/1.1");
    let error = run(connect(stream, config, "a.example")).expect_err("no connection");
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
    assert_eq!(inner, Some(&alert), "{error}");
    assert!(matches!(world.note(), Note::Tunnel { .. }));
    assert!(matches!(world.note(), Note::Untrusted { .. }));
    assert!(heads.lock().unwrap().is_empty());
    assert_unseen(&seen);
}

#[test]
fn tls_in_a_tunnel_is_for_its_end() {
    let outside = Outside::new("known");
    let (server, heads) = servers::h1(Some(outside.config("a.example", b"http/1.1")));
    for end in ["b.example:443", "b.example:8443"] {
        let (proxy, seen) = servers::proxy(server, b"");
        let mut world = world(POLICY, &outside, literal());
        let stream = open(&mut world, proxy, end);
        let config = world.client(b"http/1.1");
        let error = run(connect(stream, config, "a.example")).expect_err("no connection");
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let alert = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
        assert_eq!(inner, Some(&alert), "{error}");
        assert!(matches!(world.note(), Note::Tunnel { .. }));
        let note = world.note();
        assert!(
            matches!(&note, Note::Refused { method, path, .. } if method == "CONNECT" && end.ends_with(path)),
            "{note:?}"
        );
        assert_eq!(seen.lock().unwrap().len(), 1, "the head alone");
    }
    assert!(heads.lock().unwrap().is_empty());
}

#[test]
fn other_hosts_are_not_taken_apart_in_a_tunnel_either() {
    let outside = Outside::new("known");
    let (server, heads) = servers::h1(Some(outside.config("b.example", b"http/1.1")));
    let (proxy, _) = servers::proxy(server, b"");
    let mut world = world(POLICY, &outside, literal());
    let own = world.placeholder();
    let stream = open(&mut world, proxy, "b.example:443");
    goes_unread(stream, &outside, "b.example", &own, &heads);
    let notes = world.notes();
    assert!(
        matches!(&notes[..], [Note::Tunnel { port: 443, by }] if by.contains("allow-all")),
        "{notes:?}"
    );
}

/// Where a secret may go without TLS, a proxy that the guest chose must not have it.
#[test]
fn without_tls_requests_in_a_tunnel_are_read_and_get_no_value() {
    let outside = Outside::new("known");
    let (server, heads) = servers::h1(None);
    let (proxy, seen) = servers::proxy(server, b"");
    let mut secret = literal().unwrap();
    secret.plain_http = true;
    let policy = "preset allow-all\ndeny http DELETE a.example";
    let mut world = world(policy, &outside, Some(secret));
    let own = world.placeholder();
    let stream = open(&mut world, proxy, "a.example:80");
    stream.set_nonblocking(true).unwrap();
    run(async {
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: a.example", "200"),
            ("DELETE / HTTP/1.1\r\nHost: a.example", "403"),
            ("GET / HTTP/1.1\r\nHost: b.example", "421"),
            (
                "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443",
                "421",
            ),
            ("CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80", "405"),
        ] {
            let request = format!("{request}\r\nAuthorization: Bearer {own}\r\n\r\n");
            let answer = exchange(&mut stream, request).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{answer}");
        }
    });
    let heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 1);
    assert!(heads[0].contains(&own));
    assert_unseen(&seen);
}

#[test]
fn what_is_not_http_passes_unless_a_rule_is_about_the_hosts_requests() {
    let outside = Outside::new("known");
    for (rules, passes) in [
        ("deny http DELETE b.example", true),
        ("deny http DELETE a.example", false),
        ("deny tcp a.example", true),
    ] {
        let (server, heads) = servers::lines();
        let (proxy, _) = servers::proxy(server, b"220 hello\r\n");
        let mut world = world(&format!("{POLICY}\n{rules}"), &outside, literal());
        let mut stream = world.connect(proxy);
        let head = ask(&mut stream, "a.example:22");
        if rules.contains("tcp") {
            assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
            assert!(matches!(world.note(), Note::Denied { .. }));
            continue;
        }
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(
            &greeting, b"220 hello\r\n",
            "it comes before the guest speaks"
        );
        stream.write_all(b"SSH-2.0-x\r\n").unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        assert_eq!(got, if passes { "SSH-2.0-x\r\n" } else { "" });
        if !passes {
            assert!(matches!(world.note(), Note::Tunnel { port: 22, .. }));
            assert!(matches!(world.note(), Note::Refused { .. }));
            assert!(heads.lock().unwrap().is_empty());
        }
    }
}

/// A rule by name opens the proxy, another one what it may be asked for.
#[test]
fn a_proxy_and_where_it_leads_are_both_to_be_allowed() {
    let outside = Outside::new("known");
    let rules = "preset none\nallow tcp host\nallow tcp 443 a.example";
    let (proxy, seen) = servers::proxy(1, b"");
    for (to, status) in [
        ("b.example:443", "403"),
        ("a.example:22", "403"),
        ("169.254.169.254:80", "400"),
    ] {
        let mut world = world(rules, &outside, literal());
        let mut stream = world.connect(proxy);
        let head = ask(&mut stream, to);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let denied = matches!(world.note(), Note::Denied { .. });
        assert_eq!(denied, status == "403");
    }
    assert!(seen.lock().unwrap().is_empty());
}

/// What servers skip in front of a request, nobody else may take for another protocol.
#[test]
fn an_empty_line_in_front_hides_no_request_for_a_tunnel() {
    let outside = Outside::new("known");
    let rules = "preset none\nallow tcp host\nallow tcp 443 a.example";
    for front in ["\r\n", "\n", "\r\n\r\n", " \r\n"] {
        let (proxy, seen) = servers::proxy(1, b"");
        let mut world = world(rules, &outside, literal());
        let mut stream = world.connect(proxy);
        stream.write_all(front.as_bytes()).unwrap();
        let head = ask(&mut stream, "evil.example:443");
        // Other readers skip more than this one.
        let status = if front.starts_with("\r") {
            "403"
        } else {
            "400"
        };
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(seen.lock().unwrap().is_empty());
    }
}

/// The guest cannot reach those of the proxy's own host and network by name.
#[test]
fn names_of_the_inside_are_no_ends_of_tunnels() {
    let outside = Outside::new("known");
    let (proxy, seen) = servers::proxy(1, b"");
    let rules = format!("preset public-only\nallow tcp {proxy} host");
    for to in ["localhost:5432", "metadata.google.internal:80", "db:80"] {
        let mut world = world(&rules, &outside, literal());
        let mut stream = world.connect(proxy);
        let head = ask(&mut stream, to);
        assert!(head.starts_with("HTTP/1.1 403 "), "{to}: {head}");
        let note = world.note();
        assert!(
            matches!(&note, Note::Refused { why, .. } if why.contains("public")),
            "{note:?}"
        );
    }
    assert!(seen.lock().unwrap().is_empty());
}

/// A method that is not known here may still be the first of a connection, whose later ones
/// are then read.
#[test]
fn requests_in_a_tunnel_are_read_whatever_the_first_ones_method() {
    let outside = Outside::new("known");
    let (server, heads) = servers::h1(None);
    let (proxy, _) = servers::proxy(server, b"");
    let policy = "preset allow-all\ndeny http DELETE a.example";
    let mut world = world(policy, &outside, literal());
    let stream = open(&mut world, proxy, "a.example:80");
    stream.set_nonblocking(true).unwrap();
    run(async {
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        stream.write_all(b"\r\nBR").await.unwrap();
        for (request, status) in [("EW", "200"), ("DELETE", "403")] {
            let request = format!("{request} / HTTP/1.1\r\nHost: a.example\r\n\r\n");
            let answer = exchange(&mut stream, request).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{answer}");
        }
    });
    assert_eq!(heads.lock().unwrap().len(), 1);
}
