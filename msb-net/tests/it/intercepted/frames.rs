//! A client of HTTP/2 that sends whatever frames a test wants.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::servers::{self, Outside};
use super::{Note, connect, run, world};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// The flags, some of which have the same bit in different frames.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITIZED: u8 = 32;
pub(super) const WHOLE: u8 = END_STREAM | END_HEADERS;

/// The codes of errors (RFC 9113, 7).
pub(super) const PROTOCOL: u32 = 1;
pub(super) const FLOW_CONTROL: u32 = 3;
pub(super) const STREAM_CLOSED: u32 = 5;
pub(super) const FRAME_SIZE: u32 = 6;
pub(super) const REFUSED: u32 = 7;
pub(super) const COMPRESSION: u32 = 9;
pub(super) const CALM: u32 = 11;

/// The frame behind a test's own ones, which is answered if all is well.
const PROBE: [u8; 8] = *b"are you?";

/// A safeguard: a gateway that neither answers nor ends has failed the test.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A field as HPACK's literal without indexing (RFC 7541, 6.2.2).
pub(super) fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let (name, value) = (name.as_ref(), value.as_ref());
    let text = |text: &[u8]| {
        // Lengths of more than seven bits go on in a second byte.
        let mut bytes = match u8::try_from(text.len()) {
            Ok(length @ 0..127) => vec![length],
            _ => {
                let rest = text.len() - 127;
                assert!(rest < 1 << 14);
                vec![127, (rest & 127) as u8 | 128, (rest >> 7) as u8]
            }
        };
        bytes.extend_from_slice(text);
        bytes
    };
    [vec![0], text(name), text(value)].concat()
}

/// The fields of a request, in the order given.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(n, v)| field(n, v)).collect()
}

/// The pseudo-header fields of an ordinary request.
pub(super) const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "a.example"),
    (":path", "/good"),
];

pub(super) fn get(stream: u32, flags: u8, more: &[(&str, &str)]) -> Vec<u8> {
    let post = flags & END_STREAM == 0;
    let mut fields = GET;
    if post {
        fields[0].1 = "POST";
    }
    let block = [block(&fields), block(more)].concat();
    frame(HEADERS, flags, stream, &block)
}

/// What is said of a block that cannot be read: the library has the general code for
/// it, where RFC 9113, 4.3, has one of its own. The connection ends the same way.
pub(super) const BLOCK: &[u32] = &[COMPRESSION, PROTOCOL];

/// The same of frames of a wrong size (4.2).
pub(super) const SIZE: &[u32] = &[FRAME_SIZE, PROTOCOL];

/// What is said of frames behind the end of a stream.
pub(super) const CLOSED: &[u32] = &[STREAM_CLOSED, PROTOCOL];

/// A request that stays open: its body is still to come.
pub(super) fn open(stream: u32) -> Vec<u8> {
    get(stream, END_HEADERS, &[])
}

/// A request that is whole.
pub(super) fn whole(stream: u32) -> Vec<u8> {
    get(stream, WHOLE, &[])
}

pub(super) fn raw(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, block)
}

pub(super) fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

pub(super) fn update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(super) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A stream was reset.
    Reset(u32),
    /// The connection is to end.
    Ends(u32),
    /// It is over.
    Closed,
    /// A response: the first byte of its fields says the status.
    Answer(u8),
    /// The probe was answered.
    Pong,
}

/// What must happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    /// The connection ends, for one of these reasons.
    Ends(&'static [u32]),
    /// The stream ends, or the connection, for one of these reasons.
    Resets(&'static [u32]),
    /// Nothing.
    GoesOn,
    /// A response with this status.
    Answers(u16),
    /// The stream or the connection ends, or it is answered with an error.
    Refuses,
    /// It goes on, or ends because it is too much.
    Bounded,
}

/// One test: what is sent behind the preface, and what must happen.
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) sent: Vec<u8>,
    pub(super) expect: Expect,
    /// Whether an honest request is among it.
    pub(super) honest: bool,
}

pub(super) fn case(what: &'static str, expect: Expect, sent: Vec<u8>) -> Case {
    Case {
        what,
        sent,
        expect,
        honest: false,
    }
}

/// A case whose frames come behind those of an honest request.
pub(super) fn behind(what: &'static str, expect: Expect, mut before: Vec<u8>, sent: &[u8]) -> Case {
    before.extend_from_slice(sent);
    Case {
        what,
        sent: before,
        expect,
        honest: true,
    }
}

/// Runs the cases, each over a connection of its own.
pub(super) fn check(cases: Vec<Case>) {
    let outside = Outside::new("known");
    let (port, seen) = servers::h2(outside.config("a.example", b"h2"));
    let mut failures = Vec::new();
    for case in cases {
        let Case {
            what, sent, expect, ..
        } = &case;
        seen.lock().unwrap().clear();
        let mut world = world("preset allow-all", &outside, super::literal());
        let (stream, config) = (world.connect(port), world.client(b"h2"));
        let told = run(async {
            let tls = connect(stream, config, "a.example").await.unwrap();
            let work = exchange(tls, sent, *expect);
            let told = tokio::time::timeout(PATIENCE, work).await;
            told.unwrap_or_else(|_| panic!("{what}: nothing happens"))
        });
        let notes = world.notes();
        let last = told.last().cloned().unwrap_or(Told::Closed);
        let fits = match (expect, &last) {
            (Expect::Ends(_) | Expect::Resets(_), Told::Closed) => true,
            (Expect::Ends(codes), Told::Ends(code))
            | (Expect::Resets(codes), Told::Ends(code) | Told::Reset(code)) => codes.contains(code),
            (Expect::GoesOn | Expect::Bounded, Told::Pong) => true,
            (Expect::Bounded, Told::Ends(code)) => *code == CALM,
            (Expect::Refuses, Told::Ends(_) | Told::Reset(_)) => true,
            (Expect::Refuses, Told::Answer(byte)) => !(0x88..0x8c).contains(byte),
            (Expect::Answers(status), Told::Answer(byte)) => status_of(*byte) == *status,
            _ => false,
        };
        if !fits {
            failures.push(format!("{what}: expected {expect:?}, got {told:?}"));
        }
        let refused = |note: &Note| matches!(note, Note::Refused { .. });
        let wrong = matches!(last, Told::Ends(_) | Told::Reset(_))
            || matches!(expect, Expect::Answers(400..) | Expect::Refuses);
        if wrong && !notes.iter().any(refused) {
            failures.push(format!("{what}: {told:?}, and nobody was told"));
        }
        let seen = seen.lock().unwrap();
        let good = |line: &String| case.honest && line.contains("https://a.example/good");
        if wrong && !seen.iter().all(good) {
            failures.push(format!("{what}: {seen:?} was forwarded"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The status that a byte of HPACK says (RFC 7541, appendix A).
fn status_of(byte: u8) -> u16 {
    match byte {
        0x88 => 200,
        0x8c => 400,
        // Any other, with the name from the table.
        _ => 0,
    }
}

/// Sends the frames and a probe, and reads until what matters was said.
async fn exchange(mut tls: super::Tls, sent: &[u8], expect: Expect) -> Vec<Told> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let probe = frame(PING, 0, 0, &PROBE);
    let all = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &settings[..],
        sent,
        &probe,
    ]
    .concat();
    let (mut reader, mut writer) = tokio::io::split(&mut tls);
    let writing = async {
        // It may be closed before all was sent.
        let _ = writer.write_all(&all).await;
        let _ = writer.flush().await;
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut told = Vec::new();
        loop {
            let now = next(&mut reader).await;
            let Some(now) = now else { continue };
            told.push(now.clone());
            let over = match (expect, now) {
                (_, Told::Closed | Told::Ends(1..)) => true,
                (Expect::Ends(_), _) => false,
                (_, Told::Ends(_)) => false,
                (Expect::Resets(_), told) => matches!(told, Told::Reset(_)),
                (Expect::GoesOn, told) => matches!(told, Told::Pong | Told::Reset(_)),
                (Expect::Bounded, told) => told == Told::Pong,
                (Expect::Answers(_) | Expect::Refuses, told) => {
                    matches!(told, Told::Answer(_) | Told::Reset(_))
                }
            };
            if over {
                return told;
            }
        }
    };
    tokio::select! {
        () = writing => Vec::new(),
        told = reading => told,
    }
}

/// Reads a frame; `None` for one that is of no interest.
async fn next(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Told> {
    let Some((kind, flags, payload)) = read(reader).await else {
        return Some(Told::Closed);
    };
    let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    match kind {
        RST_STREAM => Some(Told::Reset(code(0))),
        GOAWAY => Some(Told::Ends(code(4))),
        HEADERS => Some(Told::Answer(payload[0])),
        PING if flags & ACK != 0 && payload == PROBE => Some(Told::Pong),
        _ => None,
    }
}

/// Reads a frame: kind, flags and payload.
pub(super) async fn read(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    reader.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], payload))
}
