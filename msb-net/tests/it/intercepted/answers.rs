//! What servers answer, over TLS: compressed, in chunks, with trailers, without a body,
//! event by event, and as a WebSocket.

use std::io::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::servers::{self, Outside};
use super::{VALUE, assert_clean, connect, run, unchunked, world};

fn compress(coding: &str, text: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    match coding {
        "gzip" => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), level);
            writer.write_all(text).unwrap();
            writer.finish().unwrap()
        }
        "deflate" => {
            let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), level);
            writer.write_all(text).unwrap();
            writer.finish().unwrap()
        }
        "zstd" => zstd::encode_all(text, 3).unwrap(),
        "br" => {
            // One block that is stored (RFC 7932, 9.2): a window of 16 bits, four
            // digits of length, and the end.
            let length = u32::try_from(text.len()).unwrap() - 1;
            assert!(length < 1 << 16);
            // WBITS 0, ISLAST 0, MNIBBLES 0, MLEN - 1, ISUNCOMPRESSED 1.
            let bits = length << 4 | 1 << 20;
            let mut bytes = bits.to_le_bytes()[..3].to_vec();
            bytes.extend_from_slice(text);
            bytes.push(3);
            bytes
        }
        _ => text.to_vec(),
    }
}

/// Answers as the path says, with the credential in it.
fn answer(head: &str) -> Vec<u8> {
    let credential = servers::credential(head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let body = format!("{{\"key\": \"{}\"}}", servers::reflection(&credential));
    let coding = path.trim_start_matches('/');
    match coding {
        "204" | "304" => {
            format!("HTTP/1.1 {coding} x\r\nETag: \"{credential}\"\r\n\r\n").into_bytes()
        }
        "head" => b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n".to_vec(),
        "events" => {
            let event = format!("data: {credential}\n\n");
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n",
                event.len()
            )
            .into_bytes()
        }
        "socket" => format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\u{1}{credential}\u{2}"
        )
        .into_bytes(),
        "length" => {
            let mut all = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            all.push_str(&body);
            all.into_bytes()
        }
        _ => {
            let mut all = format!(
                "HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n"
            )
            .into_bytes();
            for piece in compress(coding, body.as_bytes()).chunks(5) {
                all.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                all.extend_from_slice(piece);
                all.extend_from_slice(b"\r\n");
            }
            all.extend_from_slice(format!("0\r\nX-Sum: {credential}\r\n\r\n").as_bytes());
            all
        }
    }
}

/// Sends one request and reads until what came is enough.
async fn ask(
    stream: &mut super::Tls,
    (method, path, own): (&str, &str, &str),
    more: &str,
    enough: impl Fn(&str) -> bool,
) -> String {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {own}\r\n{more}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut got = String::new();
    while !enough(&got) {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await.unwrap();
        assert!(length > 0, "{path} ended early: {got}");
        got.push_str(&String::from_utf8_lossy(&piece[..length]));
    }
    assert_clean(&got);
    got
}

#[test]
fn whatever_form_an_answer_has_it_is_whole_and_clean() {
    let outside = Outside::new("known");
    let (port, _) = servers::script(outside.config("a.example", b"http/1.1"), answer);
    let mut world = world("preset allow-all", &outside, super::literal());
    let own = world.placeholder();
    let (stream, config) = (world.connect(port), world.client(b"http/1.1"));
    run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        let expected = format!("{{\"key\": \"{own} ");
        let over = |got: &str| got.ends_with("\r\n\r\n") && got.contains("\r\n0\r\n");
        for coding in ["gzip", "deflate", "br", "zstd", "identity"] {
            let path = format!("/{coding}");
            let got = ask(&mut tls, ("GET", &path, &own), "", over).await;
            assert!(!got.contains("content-encoding"), "{got}");
            let body = unchunked(got.split("0\r\nx-sum").next().unwrap());
            assert!(
                body.starts_with(&expected) && body.ends_with("\"}"),
                "{body}"
            );
            assert!(
                got.ends_with(&format!("0\r\nx-sum: {own}\r\n\r\n")),
                "{got}"
            );
        }
        let got = ask(&mut tls, ("GET", "/length", &own), "", over).await;
        assert!(unchunked(&got).starts_with(&expected), "{got}");
        // Without a body; each is followed by another on the same connection.
        let end = |got: &str| got.ends_with("\r\n\r\n");
        for path in ["/204", "/304"] {
            let got = ask(&mut tls, ("GET", path, &own), "", end).await;
            assert!(got.contains(&format!("etag: \"{own}\"")), "{got}");
        }
        let got = ask(&mut tls, ("HEAD", "/head", &own), "", end).await;
        assert!(
            got.starts_with("HTTP/1.1 200 ") && got.contains("999"),
            "{got}"
        );
        // The event is there although the answer goes on.
        let event = format!("data: {own}\n\n");
        let got = ask(&mut tls, ("GET", "/events", &own), "", |got| {
            got.contains(&event)
        })
        .await;
        assert!(!over(&got), "{got}");
    });
}

#[test]
fn a_web_socket_opens_and_is_scrubbed_in_place() {
    let outside = Outside::new("known");
    let (port, _) = servers::script(outside.config("a.example", b"http/1.1"), answer);
    let mut world = world("preset allow-all", &outside, super::literal());
    let own = world.placeholder();
    let (stream, config) = (world.connect(port), world.client(b"http/1.1"));
    run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let frame = format!("\u{1}{}\u{2}", "*".repeat(VALUE.len()));
        let asked = ("GET", "/socket", &own[..]);
        let got = ask(&mut tls, asked, upgrade, |got| got.contains('\u{2}')).await;
        assert!(
            got.starts_with("HTTP/1.1 101 ") && got.ends_with(&frame),
            "{got}"
        );
    });
}
