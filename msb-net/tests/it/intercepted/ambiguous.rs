//! Requests that two readers could take for different ones, over TLS: each is answered
//! with an error and told of, and nothing of it reaches the server.

use msb_net::fuzzing::ambiguous::{CHUNKED, CHUNKS, HEADS};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::frames::Expect::{Answers, Refuses};
use super::frames::*;
use super::servers::{self, Outside};
use super::{Note, connect, run, world};

/// Sends a text over a connection of HTTP/1.1 and an honest request behind it; returns
/// what came until its end, and what the server got.
fn send(outside: &Outside, text: &[u8]) -> (String, String, Vec<Note>) {
    let (port, seen) = servers::bytes(outside.config("a.example", b"http/1.1"));
    let mut world = world("preset allow-all", outside, super::literal());
    let (stream, config) = (world.connect(port), world.client(b"http/1.1"));
    let got = run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        let honest = b"GET /honest HTTP/1.1\r\nHost: a.example\r\n\r\n";
        // It may be closed before all was sent.
        let _ = tls.write_all(&[text, honest].concat()).await;
        let _ = tls.flush().await;
        let mut got = Vec::new();
        let _ = tls.read_to_end(&mut got).await;
        String::from_utf8_lossy(&got).into_owned()
    });
    let notes = world.notes();
    let seen = seen.lock().unwrap().concat();
    (got, seen, notes)
}

fn refused(notes: &[Note]) -> bool {
    notes
        .iter()
        .any(|note| matches!(note, Note::Refused { .. }))
}

#[test]
fn of_heads_nothing_is_forwarded() {
    let outside = Outside::new("known");
    for (name, text) in HEADS {
        let (got, seen, notes) = send(&outside, text);
        let status = got.get(9..12).unwrap_or_default();
        assert!(matches!(status, "400" | "417" | "505"), "{name}: {got}");
        assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{name}: {got}");
        assert!(seen.is_empty(), "{name}: {seen}");
        assert!(refused(&notes), "{name}: {notes:?}");
    }
}

#[test]
fn of_bodies_no_end_is_forwarded() {
    let outside = Outside::new("known");
    for (name, text) in CHUNKS {
        let (got, seen, notes) = send(&outside, &[CHUNKED, text].concat());
        assert!(got.starts_with("HTTP/1.1 400 "), "{name}: {got}");
        let whole = seen.contains("0\r\n\r\n") || seen.contains("honest");
        assert!(!whole, "{name}: {seen}");
        assert!(refused(&notes), "{name}: {notes:?}");
    }
}

/// HTTP/2 stays HTTP/2 on the other side, so that nothing is ever written into lines:
/// what would smuggle through a gateway that does so is refused all the same.
#[test]
fn over_http2_nothing_is_forwarded() {
    let [method, scheme, host, path] = GET;
    let with = |more: &[(&str, &str)]| get(1, WHOLE, more);
    let post = |more: &[(&str, &str)], body: &[u8]| {
        [get(1, END_HEADERS, more), frame(DATA, END_STREAM, 1, body)].concat()
    };
    let fields = |fields: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &block(fields));
    let at = |path: &str| fields(&[method, scheme, host, (":path", path)]);
    let many: Vec<_> = (0..130).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (&name[..], "y")).collect();
    let large = "y".repeat(16_000);
    let large: Vec<u8> = (0..5)
        .flat_map(|n| {
            frame(
                CONTINUATION,
                if n == 4 { END_HEADERS } else { 0 },
                1,
                &field("x", &large),
            )
        })
        .collect();
    let hidden = b"GET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let case = |what, sent| {
        let mut case = case(what, Refuses, sent);
        // The head of one with a body may be on its way when the body proves wrong.
        case.honest = true;
        case
    };
    check(vec![
        behind(
            "an honest one",
            Answers(200),
            with(&[("host", "a.example")]),
            &[],
        ),
        case(
            "H2.CL: a body that is not",
            post(&[("content-length", "0")], hidden),
        ),
        case(
            "H2.CL: a shorter body",
            post(&[("content-length", "3")], hidden),
        ),
        case(
            "H2.CL: two lengths",
            post(&[("content-length", "4"), ("content-length", "5")], b"abcd"),
        ),
        case(
            "H2.CL: a length twice",
            post(&[("content-length", "4"), ("content-length", "4")], b"abcd"),
        ),
        case(
            "H2.CL: a list",
            post(&[("content-length", "4, 4")], b"abcd"),
        ),
        case("H2.CL: a sign", post(&[("content-length", "+4")], b"abcd")),
        case("H2.CL: none", post(&[("content-length", "")], b"")),
        case(
            "H2.CL: zeros in front",
            post(&[("content-length", "04")], b"abcd"),
        ),
        case(
            "H2.CL: another spelling",
            post(&[("content_length", "0")], b"abcd"),
        ),
        case(
            "H2.TE: another spelling",
            post(&[("transfer_encoding", "chunked")], b"0\r\n\r\n"),
        ),
        case(
            "an expectation that nobody knows",
            post(&[("expect", "y 100-continue")], b"abcd"),
        ),
        case(
            "H2.TE: chunked",
            post(&[("transfer-encoding", "chunked")], b"0\r\n\r\n"),
        ),
        case(
            "H2.TE: in a name",
            post(&[("x\r\ntransfer-encoding", "chunked")], b"0\r\n\r\n"),
        ),
        case(
            "H2.TE: in a value",
            post(&[("x", "y\r\ntransfer-encoding: chunked")], b"0\r\n\r\n"),
        ),
        case(
            "a value with an end of line",
            with(&[("x", "y\r\nhost: b.example")]),
        ),
        case("a value with LF", with(&[("x", "y\nz")])),
        case("a value with CR", with(&[("x", "y\rz")])),
        case("a value with NUL", with(&[("x", "y\0z")])),
        case("a name with NUL", with(&[("x\0y", "z")])),
        case(
            "a name with a blank",
            with(&[("transfer-encoding ", "chunked")]),
        ),
        case(
            "a method with a request",
            fields(&[
                (":method", "GET /admin HTTP/1.1\r\nx: y"),
                scheme,
                host,
                path,
            ]),
        ),
        case(
            "a method with a blank",
            fields(&[(":method", "GET /admin"), scheme, host, path]),
        ),
        case(
            "a method in lower case",
            fields(&[(":method", "get"), scheme, host, path]),
        ),
        case(
            "a path with a request",
            at("/ HTTP/1.1\r\nhost: b.example\r\n\r\n"),
        ),
        case("a path with a blank", at("/x /y")),
        // The library leaves it out before the path is judged, too.
        behind("a path with a fragment", Answers(200), at("/x#y"), &[]),
        case("a path with a host", at("https://b.example/")),
        case("a path without a root", at("x")),
        case("a path that is all", at("*")),
        case(
            "a scheme without TLS",
            fields(&[method, (":scheme", "http"), host, path]),
        ),
        case(
            "a scheme with a host",
            fields(&[method, (":scheme", "https://b.example/x?"), host, path]),
        ),
        case("a host that differs", with(&[("host", "b.example")])),
        case("a host with a port", with(&[("host", "a.example:443")])),
        case(
            "two hosts",
            with(&[("host", "a.example"), ("host", "a.example")]),
        ),
        case("no host", fields(&[method, scheme, path])),
        case(
            "an empty host",
            fields(&[method, scheme, (":authority", ""), path]),
        ),
        case(
            "a host with a user",
            fields(&[method, scheme, (":authority", "u@a.example"), path]),
        ),
        case(
            "a host with a path",
            fields(&[method, scheme, (":authority", "a.example/x"), path]),
        ),
        case(
            "a host with an end of line",
            fields(&[method, scheme, (":authority", "a.example\r\nx: y"), path]),
        ),
        case(
            "another host",
            fields(&[method, scheme, (":authority", "b.example"), path]),
        ),
        case(
            "another port",
            fields(&[method, scheme, (":authority", "a.example:8443"), path]),
        ),
        case(
            "CONNECT",
            fields(&[(":method", "CONNECT"), (":authority", "a.example:443")]),
        ),
        case(
            "CONNECT to another host",
            fields(&[(":method", "CONNECT"), (":authority", "b.example:443")]),
        ),
        case("too many fields", with(&many)),
        case(
            "too large a head",
            [get(1, END_STREAM, &[]), large].concat(),
        ),
    ]);
}
