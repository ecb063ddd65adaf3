//! Properties of what reads requests and hides secrets.

use std::sync::Arc;

use crate::http::body::{BodyReader, Step};
use crate::http::head::{Framing, read_request, write_fields};
use crate::http::path::{PathPattern, readings};
use crate::http::relay::Relay;
use crate::http::session::{Context, Session};
use crate::policy::{Flow, Policy};
use crate::secret::coding::{Coding, Decoders};

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

/// The head of a request: in pieces it is the same as whole, what is read has one
/// meaning to a reader that knows only lines and colons, and what is written of it is
/// read as the same.
pub fn http1_head(data: &[u8]) {
    let whole = read_request(data);
    for length in 0..data.len().min(600) {
        match read_request(&data[..length]) {
            Ok(None) => {}
            // What is refused early may be read no further.
            Err(fault) => return assert_eq!(whole, Err(fault)),
            early => return assert_eq!(early, whole),
        }
    }
    let Ok(Some(head)) = whole else { return };
    let text = &data[..head.length];
    let lines: Vec<_> = text.split(|byte| *byte == b'\n').collect();
    let (last, lines) = lines.split_last().expect("there is a line");
    assert!(last.is_empty() && lines.iter().all(|line| line.ends_with(b"\r")));
    assert!(
        lines
            .iter()
            .all(|line| line.iter().filter(|b| **b == b'\r').count() == 1)
    );
    assert!(!text.contains(&0));
    let named = |name: &[u8]| {
        let is = |line: &&&[u8]| {
            let own = line.split(|byte| *byte == b':').next().unwrap_or(line);
            own.trim_ascii().eq_ignore_ascii_case(name)
        };
        lines.iter().filter(is).count()
    };
    // Clients of HTTP/1.0 name a tunnel's end once.
    let once = head.old && head.request.method == "CONNECT";
    assert!(named(b"host") == 1 || once && named(b"host") == 0);
    assert!(named(b"content-length") + named(b"transfer-encoding") <= 1);
    let framed = named(b"content-length") + named(b"transfer-encoding") > 0;
    assert!(framed || head.framing == Framing::None);
    let request = &head.request;
    let mut again = format!(
        "{} {} HTTP/1.{}\r\nhost: {}\r\n",
        request.method,
        *request.target,
        u8::from(!head.old),
        request.authority
    )
    .into_bytes();
    write_fields(&request.fields, &mut again);
    if request.method != "CONNECT" {
        let again = read_request(&again)
            .expect("it is good")
            .expect("it is whole");
        assert_eq!((&again.request, again.framing), (request, head.framing));
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
            tunnels: true,
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
