//! The states of HTTP/2's streams, its windows, and floods that live on both.

use tokio::io::AsyncWriteExt as _;

use super::frames::Expect::{Answers, Bounded, Ends, GoesOn, Resets};
use super::frames::*;
use super::servers::{self, Outside};
use super::{connect, run, world};

#[test]
fn streams_have_their_states() {
    let data = |stream| frame(DATA, END_STREAM, stream, b"test");
    check(vec![
        case("5.1 idle: DATA", Ends(&[PROTOCOL]), data(1)),
        case("5.1 idle: WINDOW_UPDATE", Ends(&[PROTOCOL]), update(1, 100)),
        case(
            "5.1 idle: CONTINUATION",
            Ends(&[PROTOCOL]),
            frame(CONTINUATION, END_HEADERS, 1, &field("a", "b")),
        ),
        behind("5.1 half closed: DATA", Resets(CLOSED), whole(1), &data(1)),
        behind(
            "5.1 half closed: HEADERS",
            Resets(CLOSED),
            whole(1),
            &whole(1),
        ),
        behind(
            "5.1 half closed: CONTINUATION",
            Resets(CLOSED),
            whole(1),
            &frame(CONTINUATION, END_HEADERS, 1, &[]),
        ),
        behind(
            "5.1 reset: CONTINUATION",
            Resets(CLOSED),
            whole(1),
            &[reset(1, 8), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
        ),
        behind(
            "5.1 reset: DATA",
            Resets(CLOSED),
            open(1),
            &[reset(1, 8), data(1)].concat(),
        ),
        behind(
            "5.1 reset: HEADERS",
            Resets(CLOSED),
            open(1),
            &[reset(1, 8), whole(1)].concat(),
        ),
        behind(
            "5.1.1 the server's numbers",
            Ends(&[PROTOCOL]),
            whole(1),
            &whole(2),
        ),
        behind(
            "5.1.1 numbers that go down",
            Resets(&[PROTOCOL, STREAM_CLOSED]),
            whole(5),
            &whole(3),
        ),
        behind(
            "5.1.2 too many streams",
            Resets(&[PROTOCOL, REFUSED]),
            Vec::new(),
            &(0..200).flat_map(|n| open(2 * n + 1)).collect::<Vec<_>>(),
        ),
        case(
            "5.3 PRIORITY of an idle stream",
            GoesOn,
            frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 255]),
        ),
        // 8.1
        behind(
            "8.1 a second HEADERS that does not end",
            Resets(&[PROTOCOL]),
            open(1),
            &open(1),
        ),
        // The library leaves them out; a server never sees them.
        behind(
            "8.1 pseudo-header fields in a trailer go no further",
            Answers(200),
            open(1),
            &raw(1, &field(":method", "GET")),
        ),
        behind(
            "8.1 DATA longer than it says",
            Resets(&[PROTOCOL]),
            get(1, END_HEADERS, &[("content-length", "1")]),
            &data(1),
        ),
        behind(
            "8.1 DATA shorter than it says",
            Resets(&[PROTOCOL]),
            get(1, END_HEADERS, &[("content-length", "9")]),
            &data(1),
        ),
        behind(
            "8.1 DATA in pieces longer than it says",
            Resets(&[PROTOCOL]),
            get(1, END_HEADERS, &[("content-length", "5")]),
            &[frame(DATA, 0, 1, b"test"), data(1)].concat(),
        ),
    ]);
}

#[test]
fn floods_are_bounded() {
    let many =
        |count: u32, one: &dyn Fn(u32) -> Vec<u8>| (0..count).flat_map(one).collect::<Vec<_>>();
    let id = |n: u32| 2 * n + 1;
    let begun = get(1, END_STREAM, &[]);
    let large = field("a", "b".repeat(1000)).repeat(16);
    let head = get(1, WHOLE, &[]);
    let head = [&head[..4], &[END_STREAM], &head[5..]].concat();
    check(vec![
        case(
            "CONTINUATION without an end",
            Ends(&[PROTOCOL, CALM, COMPRESSION]),
            [
                begun.clone(),
                many(5000, &|_| frame(CONTINUATION, 0, 1, &[])),
            ]
            .concat(),
        ),
        case(
            "CONTINUATION without an end, with fields",
            Ends(&[PROTOCOL, CALM, COMPRESSION]),
            [head, many(600, &|_| frame(CONTINUATION, 0, 1, &large))].concat(),
        ),
        behind(
            "requests that are reset at once",
            Bounded,
            Vec::new(),
            &many(1000, &|n| [open(id(n)), reset(id(n), 8)].concat()),
        ),
        behind(
            "requests that are malformed",
            Bounded,
            Vec::new(),
            &many(1000, &|n| get(id(n), WHOLE, &[("te", "x")])),
        ),
        case("SETTINGS", Bounded, many(2000, &|n| setting(4, n))),
        case(
            "PING",
            Bounded,
            many(2000, &|n| frame(PING, 0, 0, &u64::from(n).to_be_bytes())),
        ),
        behind(
            "DATA without any",
            Bounded,
            open(1),
            &many(2000, &|_| frame(DATA, 0, 1, &[])),
        ),
        behind(
            "more than the window",
            Resets(&[FLOW_CONTROL]),
            open(1),
            &many(200, &|_| frame(DATA, 0, 1, &[0; 16_384])),
        ),
        case(
            "RST_STREAM of streams that were not",
            Ends(&[PROTOCOL]),
            many(10, &|n| reset(id(n), 8)),
        ),
    ]);
}

/// A stream is closed once its answer is there, too: nothing but PRIORITY goes on it.
#[test]
fn nothing_comes_behind_an_answer() {
    let outside = Outside::new("known");
    let (port, _) = servers::h2(outside.config("a.example", b"h2"));
    let (preface, more) = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", field("a", "b"));
    for (late, good) in [
        (frame(DATA, END_STREAM, 1, b"test"), false),
        (whole(1), false),
        (frame(CONTINUATION, END_HEADERS, 1, &more), false),
        (frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]), true),
        (update(1, 1), true),
        (reset(1, 8), true),
    ] {
        let mut world = world("preset allow-all", &outside, super::literal());
        let (stream, config) = (world.connect(port), world.client(b"h2"));
        let told = run(async {
            let mut tls = connect(stream, config, "a.example").await.unwrap();
            let start = [&preface[..], &frame(SETTINGS, 0, 0, &[]), &whole(1)].concat();
            tls.write_all(&start).await.unwrap();
            while let Some((kind, flags, _)) = read(&mut tls).await {
                if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                    break;
                }
            }
            tls.write_all(&late).await.unwrap();
            // The first may be answered before what is behind it in the library's queue.
            for _ in 0..2 {
                let ping = frame(PING, 0, 0, b"settled?");
                if tls.write_all(&ping).await.is_err() {
                    return false;
                }
                loop {
                    match read(&mut tls).await {
                        Some((PING, ACK, _)) => break,
                        Some((RST_STREAM | GOAWAY, ..)) | None => return false,
                        Some(_) => {}
                    }
                }
            }
            true
        });
        assert_eq!(told, good, "{late:?}");
    }
}

/// RFC 9113, 3.4 and 6.5.3.
#[test]
fn connections_begin_with_a_preface_and_settings_are_acknowledged() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h2(outside.config("a.example", b"h2"));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases = [
        (&preface[..], frame(SETTINGS, 0, 0, &[]), true),
        (preface, [setting(4, 1), setting(4, 70_000)].concat(), true),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\n\n", Vec::new(), false),
        (
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            Vec::new(),
            false,
        ),
    ];
    for (start, settings, good) in cases {
        let mut world = world("preset allow-all", &outside, super::literal());
        let (stream, config) = (world.connect(port), world.client(b"h2"));
        let acknowledged = run(async {
            let mut tls = connect(stream, config, "a.example").await.unwrap();
            let all = [start, &settings, &whole(1)].concat();
            tls.write_all(&all).await.unwrap();
            let mut acknowledged = 0;
            while let Some((kind, flags, _)) = read(&mut tls).await {
                acknowledged += usize::from(kind == SETTINGS && flags == ACK);
                if kind == HEADERS {
                    break;
                }
            }
            acknowledged
        });
        assert_eq!(acknowledged > 0, good, "{start:?}");
        let refused = |note: &super::Note| matches!(note, super::Note::Refused { .. });
        assert_eq!(world.notes().iter().any(refused), !good, "{start:?}");
        assert_eq!(seen.lock().unwrap().drain(..).count(), usize::from(good));
    }
}

/// A guest that opens no window gets nothing (RFC 9113, 6.9).
#[test]
fn windows_are_kept() {
    let outside = Outside::new("known");
    let (port, _) = servers::h2(outside.config("a.example", b"h2"));
    let mut world = world("preset allow-all", &outside, super::literal());
    let (stream, config) = (world.connect(port), world.client(b"h2"));
    run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        start.extend(setting(4, 3));
        start.extend(whole(1));
        tls.write_all(&start).await.unwrap();
        let mut got = 0;
        while got < 3 {
            let (kind, _, payload) = read(&mut tls).await.unwrap();
            if kind == DATA {
                got += payload.len();
            }
        }
        // The window becomes 2 - 3 = -1, so that two more bytes open one.
        let more = [setting(4, 2), update(1, 2), frame(PING, 0, 0, b"settled?")].concat();
        tls.write_all(&more).await.unwrap();
        let mut settled = false;
        while !settled || got < 4 {
            let (kind, flags, payload) = read(&mut tls).await.unwrap();
            match kind {
                DATA => got += payload.len(),
                PING => settled = flags == ACK,
                _ => {}
            }
            assert!(got <= 4, "more than the window");
        }
        tls.write_all(&update(1, 1000)).await.unwrap();
        while let Some((kind, flags, payload)) = read(&mut tls).await {
            match kind {
                DATA => got += payload.len(),
                HEADERS if flags & END_STREAM != 0 => break,
                _ => {}
            }
        }
        assert_eq!(got, servers::reflection("none").len());
    });
}
