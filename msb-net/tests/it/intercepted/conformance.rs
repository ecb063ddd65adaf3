//! HTTP/2 as guests speak it to the gateway, section by section of RFC 9113 and
//! RFC 7541: what h2spec asks of frames and heads. Each case is a connection
//! over TLS; what is refused is told of and never reaches the server.

use super::frames::Expect::{Answers, Ends, GoesOn, Resets};
use super::frames::*;

#[test]
fn frames_have_their_sizes_and_places() {
    let too_large = vec![0; 16_385];
    let stream = |kind, payload: &[u8]| frame(kind, 0, 1, payload);
    let zero = |kind, payload: &[u8]| frame(kind, 0, 0, payload);
    check(vec![
        // 3.4 and 4
        case(
            "4.1 a frame of an unknown kind",
            GoesOn,
            frame(0x16, 0, 0, b"12345678"),
        ),
        case(
            "4.1 flags without a meaning",
            GoesOn,
            frame(PING, 0x16, 0, b"12345678"),
        ),
        case(
            "4.1 the reserved bit",
            GoesOn,
            frame(PING, 0, 1 << 31, b"12345678"),
        ),
        behind(
            "4.2 DATA that is too large",
            Resets(&[FRAME_SIZE]),
            open(1),
            &stream(DATA, &too_large),
        ),
        case(
            "4.2 HEADERS that are too large",
            Ends(SIZE),
            raw(1, &too_large),
        ),
        case("4.3 a block that is none", Ends(BLOCK), raw(1, &[0x40])),
        case(
            "4.3 PRIORITY within a block",
            Ends(&[PROTOCOL]),
            [
                get(1, END_STREAM, &[]),
                stream(PRIORITY, &[0, 0, 0, 0, 255]),
            ]
            .concat(),
        ),
        case(
            "4.3 another stream within a block",
            Ends(&[PROTOCOL]),
            [get(1, END_STREAM, &[]), whole(3)].concat(),
        ),
        case(
            "5.3.1 HEADERS that depend on themselves",
            Resets(&[PROTOCOL]),
            frame(
                HEADERS,
                WHOLE | PRIORITIZED,
                1,
                &[&[0, 0, 0, 1, 255][..], &block(&GET)].concat(),
            ),
        ),
        case(
            "5.3.1 PRIORITY of itself",
            Resets(&[PROTOCOL]),
            stream(PRIORITY, &[0, 0, 0, 1, 255]),
        ),
        case(
            "5.5 a frame of an unknown kind within a block",
            Ends(&[PROTOCOL]),
            [
                get(1, END_STREAM, &[]),
                frame(0x16, 0, 0, b"12345678"),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
            ]
            .concat(),
        ),
        // 6.1 to 6.4
        behind(
            "6.1 DATA of the connection",
            Ends(&[PROTOCOL]),
            whole(1),
            &zero(DATA, b"x"),
        ),
        behind(
            "6.1 padding longer than DATA",
            Ends(&[PROTOCOL]),
            open(1),
            &frame(DATA, PADDED | END_STREAM, 1, b"\x06test"),
        ),
        case("6.2 HEADERS of the connection", Ends(&[PROTOCOL]), whole(0)),
        case(
            "6.2 padding longer than HEADERS",
            Ends(&[PROTOCOL]),
            frame(HEADERS, WHOLE | PADDED, 1, b"\xff\x82"),
        ),
        case(
            "6.3 PRIORITY of the connection",
            Ends(&[PROTOCOL]),
            zero(PRIORITY, &[0, 0, 0, 3, 255]),
        ),
        case(
            "6.3 PRIORITY of another size",
            Resets(&[FRAME_SIZE, PROTOCOL]),
            stream(PRIORITY, &[0; 4]),
        ),
        case(
            "6.4 RST_STREAM of the connection",
            Ends(&[PROTOCOL]),
            reset(0, 8),
        ),
        case(
            "6.4 RST_STREAM of an idle stream",
            Ends(&[PROTOCOL]),
            reset(1, 8),
        ),
        behind(
            "6.4 RST_STREAM of another size",
            Ends(SIZE),
            open(1),
            &stream(RST_STREAM, &[0; 3]),
        ),
        // 6.5
        case(
            "6.5 an ACK with settings",
            Ends(SIZE),
            frame(SETTINGS, ACK, 0, &[0; 6]),
        ),
        case(
            "6.5 SETTINGS of a stream",
            Ends(&[PROTOCOL]),
            stream(SETTINGS, &[0, 3, 0, 0, 0, 100]),
        ),
        case(
            "6.5 SETTINGS of another size",
            Ends(SIZE),
            zero(SETTINGS, &[0, 3, 0]),
        ),
        case(
            "6.5.2 ENABLE_PUSH is 0 or 1",
            Ends(&[PROTOCOL]),
            setting(2, 2),
        ),
        case(
            "6.5.2 a window too large",
            Ends(&[FLOW_CONTROL, PROTOCOL]),
            setting(4, 1 << 31),
        ),
        case(
            "6.5.2 frames too small",
            Ends(&[PROTOCOL]),
            setting(5, 16_383),
        ),
        case(
            "6.5.2 frames too large",
            Ends(&[PROTOCOL]),
            setting(5, 1 << 24),
        ),
        case("6.5.2 an unknown setting", GoesOn, setting(0xff, 1)),
        // 6.6 to 6.10
        behind(
            "6.6 a client does not push",
            Ends(&[PROTOCOL]),
            open(1),
            &frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        ),
        case("6.7 a PING is answered", GoesOn, Vec::new()),
        case(
            "6.7 an answer to no PING",
            GoesOn,
            frame(PING, ACK, 0, b"invalid!"),
        ),
        case(
            "6.7 PING of a stream",
            Ends(&[PROTOCOL]),
            stream(PING, &[0; 8]),
        ),
        case("6.7 PING of another size", Ends(SIZE), zero(PING, &[0; 6])),
        case(
            "6.8 GOAWAY of a stream",
            Ends(&[PROTOCOL]),
            stream(GOAWAY, &[0; 8]),
        ),
        case(
            "6.9 nothing more for the connection",
            Ends(&[PROTOCOL]),
            update(0, 0),
        ),
        behind(
            "6.9 nothing more for a stream",
            Resets(&[PROTOCOL]),
            open(1),
            &update(1, 0),
        ),
        case(
            "6.9 WINDOW_UPDATE of another size",
            Ends(SIZE),
            zero(WINDOW_UPDATE, &[0, 0, 1]),
        ),
        case(
            "6.9.1 more than the connection's window",
            Ends(&[FLOW_CONTROL]),
            [update(0, 0x7fff_ffff), update(0, 0x7fff_ffff)].concat(),
        ),
        behind(
            "6.9.1 more than a stream's window",
            Resets(&[FLOW_CONTROL]),
            open(1),
            &[update(1, 0x7fff_ffff), update(1, 0x7fff_ffff)].concat(),
        ),
        behind(
            "6.10 CONTINUATION behind the end",
            Ends(&[PROTOCOL]),
            whole(1),
            &frame(CONTINUATION, END_HEADERS, 1, &field("a", "b")),
        ),
        case(
            "6.10 CONTINUATION of the connection",
            Ends(&[PROTOCOL]),
            [
                get(1, END_STREAM, &[]),
                frame(CONTINUATION, END_HEADERS, 0, &[]),
            ]
            .concat(),
        ),
        behind(
            "6.10 CONTINUATION behind DATA",
            Ends(&[PROTOCOL]),
            open(1),
            &[
                stream(DATA, b"x"),
                frame(CONTINUATION, END_HEADERS, 1, &field("a", "b")),
            ]
            .concat(),
        ),
        case(
            "6.10 CONTINUATION behind one that ends",
            Ends(&[PROTOCOL]),
            [
                get(1, END_STREAM, &[]),
                frame(CONTINUATION, END_HEADERS, 1, &field("a", "b")),
                frame(CONTINUATION, END_HEADERS, 1, &field("c", "d")),
            ]
            .concat(),
        ),
        case(
            "6.10 DATA within a block",
            Ends(&[PROTOCOL]),
            [
                get(1, 0, &[]),
                frame(CONTINUATION, 0, 1, &field("a", "b")),
                stream(DATA, b"x"),
            ]
            .concat(),
        ),
        case(
            "6.10 a head in three frames",
            Answers(200),
            [
                get(1, END_STREAM, &[]),
                frame(CONTINUATION, 0, 1, &field("a", "b")),
                frame(CONTINUATION, END_HEADERS, 1, &field("c", "d")),
            ]
            .concat(),
        ),
        // 7
        case(
            "7 a GOAWAY with an unknown code",
            GoesOn,
            zero(GOAWAY, &[0, 0, 0, 0, 0, 0, 0, 255]),
        ),
        behind(
            "7 a RST_STREAM with an unknown code",
            GoesOn,
            open(1),
            &reset(1, 0xff),
        ),
    ]);
}

#[test]
fn heads_that_are_malformed_are_refused() {
    let with = |more: &[(&str, &str)]| get(1, WHOLE, more);
    let fields = |fields: &[(&str, &str)]| raw(1, &block(fields));
    let [method, scheme, host, path] = GET;
    check(vec![
        case("a good one", Answers(200), whole(1)),
        case(
            "8.2 an upper case name",
            Resets(&[PROTOCOL]),
            with(&[("X-TEST", "ok")]),
        ),
        case(
            "8.2 a name with a colon",
            Resets(&[PROTOCOL]),
            with(&[("a:b", "ok")]),
        ),
        case(
            "8.2 a name with a blank",
            Resets(&[PROTOCOL]),
            with(&[("a b", "ok")]),
        ),
        case(
            "8.2 an empty name",
            Resets(&[PROTOCOL, COMPRESSION]),
            with(&[("", "ok")]),
        ),
        case(
            "8.2.2 Connection",
            Resets(&[PROTOCOL]),
            with(&[("connection", "keep-alive")]),
        ),
        case(
            "8.2.2 Proxy-Connection",
            Resets(&[PROTOCOL]),
            with(&[("proxy-connection", "keep-alive")]),
        ),
        case(
            "8.2.2 Keep-Alive",
            Resets(&[PROTOCOL]),
            with(&[("keep-alive", "1")]),
        ),
        case(
            "8.2.2 Upgrade",
            Resets(&[PROTOCOL]),
            with(&[("upgrade", "websocket")]),
        ),
        case(
            "8.2.2 TE is trailers or nothing",
            Resets(&[PROTOCOL]),
            with(&[("te", "trailers, deflate")]),
        ),
        case(
            "8.2.2 TE: trailers",
            Answers(200),
            with(&[("te", "trailers")]),
        ),
        case(
            "8.3 an unknown pseudo-header field",
            Resets(&[PROTOCOL]),
            with(&[(":test", "ok")]),
        ),
        case(
            "8.3 one of responses",
            Resets(&[PROTOCOL]),
            fields(&[method, scheme, host, path, (":status", "200")]),
        ),
        case(
            "8.3 one behind the others",
            Resets(&[PROTOCOL]),
            fields(&[method, scheme, ("x", "y"), host, path]),
        ),
        case(
            "8.3.1 no method",
            Resets(&[PROTOCOL]),
            fields(&[scheme, host, path]),
        ),
        case(
            "8.3.1 no scheme",
            Resets(&[PROTOCOL]),
            fields(&[method, host, path]),
        ),
        case(
            "8.3.1 no path",
            Resets(&[PROTOCOL]),
            fields(&[method, scheme, host]),
        ),
        case(
            "8.3.1 an empty path",
            Resets(&[PROTOCOL]),
            fields(&[method, scheme, host, (":path", "")]),
        ),
        case(
            "8.3.1 two methods",
            Resets(&[PROTOCOL]),
            fields(&[method, method, scheme, host, path]),
        ),
        case(
            "8.3.1 two schemes",
            Resets(&[PROTOCOL]),
            fields(&[method, scheme, scheme, host, path]),
        ),
        case(
            "8.3.1 two paths",
            Resets(&[PROTOCOL]),
            fields(&[method, scheme, host, path, path]),
        ),
        case(
            "8.3.1 two hosts",
            Resets(&[PROTOCOL]),
            fields(&[method, scheme, host, (":authority", "b.example"), path]),
        ),
        case(
            "8.5 an extended CONNECT nobody offered",
            Resets(&[PROTOCOL]),
            fields(&[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                scheme,
                host,
                path,
            ]),
        ),
    ]);
}

#[test]
fn compression_is_read_strictly() {
    let good = block(&GET);
    let with = |more: &[u8]| raw(1, &[&good, more].concat());
    check(vec![
        case(
            "2.3.3 an index beyond the table",
            Ends(BLOCK),
            with(&[0xff, 0x80, 0x01]),
        ),
        case(
            "2.3.3 a name beyond the table",
            Ends(BLOCK),
            with(&[0x7f, 0x80, 0x01, 1, b'x']),
        ),
        case("4.2 a new size behind fields", Ends(BLOCK), with(&[0x20])),
        case("6.1 index 0", Ends(BLOCK), with(&[0x80])),
        case(
            "6.3 a larger table than allowed",
            Ends(BLOCK),
            raw(1, &[&[0x3f, 0xe1, 0xff, 0x7f][..], &good].concat()),
        ),
        case(
            "5.1 an integer that overflows",
            Ends(BLOCK),
            with(&[0xff; 12]),
        ),
        case(
            "5.2 a text longer than the block",
            Ends(BLOCK),
            with(&[0x00, 0x7e, b'x']),
        ),
        case(
            "5.2 padding of more than seven bits",
            Ends(BLOCK),
            with(&[0x00, 1, b'x', 0x82, 0x1f, 0xff]),
        ),
        case(
            "5.2 padding of zeros",
            Ends(BLOCK),
            with(&[0x00, 1, b'x', 0x81, 0x18]),
        ),
        case(
            "5.2 the end of text in text",
            Ends(BLOCK),
            with(&[0x00, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]),
        ),
    ]);
}

/// What a client may send, however unusual, is understood.
#[test]
fn what_is_allowed_is_answered() {
    let good = block(&GET);
    let post = [&[(":method", "POST")][..], &GET[1..]].concat();
    let head = [&[(":method", "HEAD")][..], &GET[1..]].concat();
    let begun = || raw_open(&block(&post));
    let data = |flags, payload: &[u8]| frame(DATA, flags, 1, payload);
    let with = |more: &[u8]| raw(1, &[&good, more].concat());
    let names: [(&str, &[u8]); 2] = [
        ("", b"\x06x-test\x06folded"),
        // The same in Huffman's code (RFC 7541, B).
        (
            ", compressed",
            b"\x85\xf2\xb2\x4a\x84\xff\x85\x94\xf4\x48\x59\x3f",
        ),
    ];
    let mut cases = vec![
        behind("HEAD", Answers(200), raw(1, &block(&head)), &[]),
        behind("POST", Answers(200), begun(), &data(END_STREAM, b"test")),
        behind(
            "DATA in many frames",
            Answers(200),
            begun(),
            &[data(0, b"one"), data(0, b""), data(END_STREAM, b"two")].concat(),
        ),
        behind(
            "DATA with padding",
            Answers(200),
            begun(),
            &data(PADDED | END_STREAM, b"\x06test\0\0\0\0\0\0"),
        ),
        behind(
            "DATA as large as may be",
            Answers(200),
            begun(),
            &data(END_STREAM, &vec![b'x'; 16_384]),
        ),
        behind(
            "a trailer",
            Answers(200),
            [begun(), data(0, b"test")].concat(),
            &raw(1, &field("x-checksum", "1")),
        ),
        behind(
            "HEADERS with padding",
            Answers(200),
            frame(
                HEADERS,
                WHOLE | PADDED,
                1,
                &[b"\x02", &good[..], b"\0\0"].concat(),
            ),
            &[],
        ),
        behind(
            "a head in two frames",
            Answers(200),
            frame(HEADERS, END_STREAM, 1, &good[..9]),
            &frame(CONTINUATION, END_HEADERS, 1, &good[9..]),
        ),
        behind(
            "a window, and more of one",
            Answers(200),
            [setting(4, 0), whole(1)].concat(),
            &[update(0, 1), update(1, 1)].concat(),
        ),
        behind(
            "GOAWAY behind a request",
            Answers(200),
            whole(1),
            &frame(GOAWAY, 0, 0, &[0; 8]),
        ),
        behind(
            "PRIORITY of a stream behind the next",
            Answers(200),
            frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 255]),
            &whole(1),
        ),
        behind(
            "RST_STREAM of what was asked",
            GoesOn,
            open(1),
            &reset(1, 8),
        ),
        behind(
            "HPACK: no table",
            Answers(200),
            raw(1, &[b"\x20", &good[..]].concat()),
            &[],
        ),
        behind(
            "HPACK: two new sizes",
            Answers(200),
            raw(1, &[b"\x20\x3f\xe1\x1f", &good[..]].concat()),
            &[],
        ),
    ];
    let entry = with(b"\x40\x06x-test\x06folded\xbe");
    cases.push(behind(
        "HPACK: a field of the table",
        Answers(200),
        entry,
        &[],
    ));
    for (code, text) in names {
        for (kind, first) in [("added", 0x40), ("not added", 0), ("never added", 0x10)] {
            let what: &str = format!("HPACK: a new name, {kind}{code}").leak();
            let field = [&[first], text].concat();
            cases.push(behind(what, Answers(200), with(&field), &[]));
            // The name is user-agent's.
            let index: &[u8] = if first == 0x40 {
                b"\x7a"
            } else {
                &[first | 15, 43]
            };
            let value = if code.is_empty() {
                &text[7..]
            } else {
                &text[6..]
            };
            let what: &str = format!("HPACK: a known name, {kind}{code}").leak();
            let field = [index, value].concat();
            cases.push(behind(what, Answers(200), with(&field), &[]));
        }
    }
    for (what, dependency) in [
        ("with the least weight", [0, 0, 0, 0, 0]),
        ("with the most weight", [0, 0, 0, 0, 255]),
        ("of another stream", [0, 0, 0, 3, 15]),
        ("of another stream alone", [128, 0, 0, 3, 15]),
    ] {
        let priority = frame(PRIORITY, 0, 1, &dependency);
        let what: &str = format!("PRIORITY {what}").leak();
        cases.push(behind(what, Answers(200), priority.clone(), &whole(1)));
        cases.push(behind(what, Answers(200), whole(1), &priority));
        let block = [&dependency[..], &good].concat();
        let within = frame(HEADERS, WHOLE | PRIORITIZED, 1, &block);
        cases.push(behind(what, Answers(200), within, &[]));
    }
    check(cases);
}

/// A request whose body is to come.
fn raw_open(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, block)
}
