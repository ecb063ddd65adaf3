//! Properties of what reads requests and hides secrets.

use std::sync::Arc;

use crate::http::body::{BodyReader, Step};
use crate::http::head::read_request;
use crate::http::path::{PathPattern, readings};
use crate::http::relay::Relay;
use crate::http::session::{Context, Session};
use crate::policy::{Flow, Policy};
use crate::secret::coding::{Coding, Decoders};
use crate::secret::{MIN_VALUE, Placeholder, Scrubber, SecretValue};

/// A stream with values in it, the first eight bytes of the data: what comes out
/// has none, whatever the pieces.
pub fn scrubber(data: &[u8]) {
    let Some((value, text)) = data.split_at_checked(MIN_VALUE) else {
        return;
    };
    let (Ok(secret), Ok(placeholder)) = (SecretValue::new(value), Placeholder::new("", [1; 24]))
    else {
        return;
    };
    let mut scrubber = Scrubber::new([(&secret, &placeholder)]);
    let mut whole = Vec::new();
    scrubber.push(text, &mut whole);
    scrubber.finish(&mut whole);
    for size in [1, 2, 7] {
        let mut out = Vec::new();
        for piece in text.chunks(size) {
            scrubber.push(piece, &mut out);
        }
        scrubber.finish(&mut out);
        assert_eq!(out, whole, "in pieces of {size}");
    }
    let hidden = placeholder.as_bytes();
    let left = whole.windows(value.len()).any(|part| part == value);
    // A value may be made of the placeholder and its neighbours.
    let made = value
        .iter()
        .any(|byte| hidden.contains(byte) || *byte == b'*');
    assert!(!left || made, "the value is left");
}

/// A compressed body, the first byte of the data says how: never panics, and gives
/// out bounded pieces.
pub fn content_coding(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else {
        return;
    };
    let (_, coding) = Coding::ALL[usize::from(*kind) % Coding::ALL.len()];
    let Some(mut decoders) = Decoders::new(&[coding]) else {
        return;
    };
    // What a bomb of this size makes is read by whoever asks for it.
    let body = &body[..body.len().min(4096)];
    for piece in body.chunks(100) {
        let taken = decoders.push(piece, &mut |bytes| assert!(bytes.len() <= 16 * 1024));
        if taken.is_err() {
            return;
        }
    }
}

/// A pattern of paths and a path, one on each line: what fits in every reading fits
/// in any, and readings are paths.
pub fn request_path(data: &[u8]) {
    let Some((pattern, path)) = std::str::from_utf8(data)
        .ok()
        .and_then(|text| text.split_once('\n'))
    else {
        return;
    };
    assert!(
        readings(path)
            .iter()
            .all(|reading| reading.starts_with('/'))
    );
    if let Ok(pattern) = pattern.parse::<PathPattern>() {
        assert!(!pattern.matches_all(path) || pattern.matches_any(path));
        let again = pattern.to_string().parse::<PathPattern>();
        assert_eq!(again.as_ref(), Ok(&pattern));
    }
}

/// What a guest sends, and behind the first 0xff what a server does: the relay never
/// panics, keeps its bounds, and whatever it sends on is whole requests to its host.
pub fn http_relay(data: &[u8]) {
    let split = data.iter().position(|byte| *byte == 0xff);
    let (guest, server) = data.split_at(split.unwrap_or(data.len()));
    let server = server.get(1..).unwrap_or(&[]);
    for size in [1, 5, usize::MAX] {
        let context = Context {
            host: "a.example".parse().expect("a name"),
            bound: Vec::new(),
            flow: Flow::tcp([1, 1, 1, 1].into(), 80),
            secure: false,
            policy: Arc::new(Policy::allow_all()),
        };
        let mut relay = Relay::new(Session::new(context, Arc::new([])));
        for piece in guest.chunks(size) {
            relay.from_guest(piece);
        }
        only_requests(&relay.to_server);
        for piece in server.chunks(size) {
            relay.from_server(piece);
        }
        relay.guest_ended();
        relay.server_ended();
        assert!(relay.end().is_some());
        only_requests(&relay.to_server);
    }
}

/// Reads what a server was sent as a server would.
fn only_requests(mut sent: &[u8]) {
    while let Some(head) = read_request(sent).expect("a request is sent on as one") {
        assert_eq!(head.request.authority.split(':').next(), Some("a.example"));
        sent = &sent[head.length..];
        let mut body = BodyReader::new(head.framing);
        loop {
            match body.step(sent).expect("and so is its body") {
                Step::More => return,
                Step::Skip(length) | Step::Data(length) => sent = &sent[length..],
                Step::End(length, _) => {
                    sent = &sent[length..];
                    break;
                }
            }
        }
    }
}
