use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::coding::{Coding, Decoders};
use super::substitute::{Grant, Refused, Substituter};
use super::*;

const VALUE: &[u8] = b"s3cr/t+\"k&y%";

fn placeholder() -> Placeholder {
    Placeholder::new("", [9; 24]).unwrap()
}

fn scrub(value: &[u8], text: &[u8], piece: usize) -> Vec<u8> {
    let (value, placeholder) = (SecretValue::new(value).unwrap(), placeholder());
    let mut scrubber = Scrubber::new([(&value, &placeholder)]);
    let mut out = Vec::new();
    for piece in text.chunks(piece.max(1)) {
        scrubber.push(piece, &mut out);
    }
    scrubber.finish(&mut out);
    out
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|part| part == what)
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Raw,
    Percent,
    PercentAll,
    Json,
    JsonAll,
    Html,
    HexLower,
    HexUpper,
    Base64(usize, bool),
    Base64InJson(usize),
    Base64Wrapped(usize),
}

const WAYS: [Way; 17] = [
    Way::Raw,
    Way::Percent,
    Way::PercentAll,
    Way::Json,
    Way::JsonAll,
    Way::Html,
    Way::HexLower,
    Way::HexUpper,
    Way::Base64(0, false),
    Way::Base64(1, false),
    Way::Base64(2, false),
    Way::Base64(0, true),
    Way::Base64(1, true),
    Way::Base64(2, true),
    Way::Base64InJson(1),
    Way::Base64Wrapped(0),
    Way::Base64Wrapped(2),
];

/// The value as somebody else would write it, and what undoes that.
fn write(way: Way, value: &[u8], neighbours: &[u8]) -> Vec<u8> {
    let each = |format: &dyn Fn(u8) -> String| value.iter().map(|b| format(*b)).collect::<String>();
    let base64 = |before: usize| {
        let around = [&neighbours[..before], value, &neighbours[..1]].concat();
        STANDARD.encode(around)
    };
    match way {
        Way::Raw => return value.to_vec(),
        Way::Percent => each(&|b| match b {
            b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
            b => format!("%{b:02x}"),
        }),
        Way::PercentAll => each(&|b| format!("%{b:02X}")),
        Way::Json => each(&|b| match b {
            b'"' | b'\\' | b'/' => format!("\\{}", char::from(b)),
            0x20..0x7f => char::from(b).to_string(),
            b => format!("\\u{b:04x}"),
        }),
        Way::JsonAll => each(&|b| format!("\\u{b:04X}")),
        Way::Html => each(&|b| match b {
            b'&' => "&amp;".into(),
            b'"' => "&quot;".into(),
            b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
            b => format!("&#{b};"),
        }),
        Way::HexLower => each(&|b| format!("{b:02x}")),
        Way::HexUpper => each(&|b| format!("{b:02X}")),
        Way::Base64(before, false) => base64(before),
        Way::Base64(before, true) => {
            URL_SAFE_NO_PAD.encode([&neighbours[..before], value].concat())
        }
        Way::Base64InJson(before) => base64(before).replace('/', "\\/"),
        Way::Base64Wrapped(before) => {
            let text = base64(before).into_bytes();
            return text.chunks(7).collect::<Vec<_>>().join(&b"\r\n"[..]);
        }
    }
    .into_bytes()
}

/// All that a reader could decode a text to.
fn readings(text: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![text.to_vec()];
    let unescaped = unescape(text);
    let mut letters: Vec<_> = unescaped.clone();
    letters.retain(|byte| !matches!(byte, b'\r' | b'\n'));
    all.push(unescaped.clone());
    let hex = |text: &[u8]| -> Vec<u8> {
        let digits = text.iter().map_while(|b| char::from(*b).to_digit(16));
        let digits: Vec<_> = digits.collect();
        digits
            .chunks_exact(2)
            .map(|pair| (pair[0] << 4 | pair[1]) as u8)
            .collect()
    };
    for from in 0..letters.len() {
        all.push(hex(&unescaped[from.min(unescaped.len())..]));
        let (mut bits, mut count, mut run) = (0u32, 0, Vec::new());
        for byte in &letters[from..] {
            let Some(sextet) = super::pattern::sextet(*byte) else {
                break;
            };
            (bits, count) = (bits << 6 | u32::from(sextet), count + 6);
            if count >= 8 {
                count -= 8;
                run.push((bits >> count) as u8);
            }
        }
        all.push(run);
    }
    all
}

fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(first) = text.first() {
        let word = String::from_utf8_lossy(&text[..text.len().min(8)]).into_owned();
        let hex = |from: usize, to: usize| {
            let digits = word.get(from..to)?;
            u32::from_str_radix(digits, 16).ok()
        };
        let entity = word.find(';').and_then(|end| match word.get(..=end)? {
            "&amp;" => Some((38, end + 1)),
            "&quot;" => Some((34, end + 1)),
            other => Some((
                other.strip_prefix("&#")?.strip_suffix(';')?.parse().ok()?,
                end + 1,
            )),
        });
        let (byte, length) = if *first == b'%' && hex(1, 3).is_some() {
            (hex(1, 3).unwrap(), 3)
        } else if word.starts_with("\\u") && hex(2, 6).is_some() {
            (hex(2, 6).unwrap(), 6)
        } else if *first == b'\\' && text.len() > 1 {
            (text[1].into(), 2)
        } else if let (b'&', Some((byte, length))) = (*first, entity) {
            (byte, length)
        } else {
            ((*first).into(), 1)
        };
        out.push(byte as u8);
        text = &text[length..];
    }
    out
}

#[test]
fn every_form_is_found_at_every_border() {
    for way in WAYS {
        for value in [VALUE, b"0123456789", b"sk-live-abcDEF12", b"aaaaaaaaaa"] {
            let written = write(way, value, b"xy");
            let text = [b"{\"a\": \"", &written[..], b"\"}\n"].concat();
            assert!(
                readings(&text).iter().any(|text| contains(text, value)),
                "the model decodes {way:?}"
            );
            let expected = scrub(value, &text, usize::MAX);
            for piece in 1..text.len() {
                assert!(scrub(value, &text, piece) == expected, "{way:?} in {piece}");
            }
            let leak = readings(&expected).iter().any(|text| contains(text, value));
            let shown = String::from_utf8_lossy(&expected);
            assert!(!leak, "{way:?}: {shown}");
            assert!(shown.starts_with("{\"a\": \""), "{shown}");
            let known = readings(&expected)
                .iter()
                .any(|text| contains(text, placeholder().as_bytes()));
            assert!(known, "the placeholder is there: {way:?} {shown}");
        }
    }
}

#[test]
fn what_is_no_beginning_passes_at_once() {
    let (value, placeholder) = (SecretValue::new(b"abcdefgh12").unwrap(), placeholder());
    let mut scrubber = Scrubber::new([(&value, &placeholder)]);
    let mut out = Vec::new();
    scrubber.push(b"data: hello\n\n", &mut out);
    assert_eq!(out, b"data: hello\n\n");
    out.clear();
    scrubber.push(b"> abc", &mut out);
    assert_eq!(out, b"> ");
    // Three letters are let go, the rest of the value is not.
    scrubber.pause(&mut out);
    assert_eq!(out, b"> abc");
    scrubber.push(b"defgh12!", &mut out);
    scrubber.finish(&mut out);
    assert_eq!(out, b"> abc*!");
    out.clear();
    scrubber.push(b"> abcdef", &mut out);
    scrubber.pause(&mut out);
    assert_eq!(out, b"> ", "this much is not let go");
}

#[test]
fn values_that_overlap_are_both_gone() {
    let values = [b"abcdefgh".as_slice(), b"efghijkl", b"abcdefghXYZ"]
        .map(|value| SecretValue::new(value).unwrap());
    let placeholders = [1, 2, 3].map(|n| Placeholder::new("", [n; 24]).unwrap());
    let mut scrubber = Scrubber::new(values.iter().zip(&placeholders));
    let mut out = Vec::new();
    scrubber.push(b"-abcdefghijkl-abcdefghXYZ-", &mut out);
    scrubber.finish(&mut out);
    let (first, third) = (&placeholders[0], &placeholders[2]);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        format!("-{first}*-{third}-")
    );
}

proptest! {
    #[test]
    fn no_value_is_left(
        value in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'a'), Just(b'%')], 8..30),
        parts in prop::collection::vec((0..WAYS.len(), "[ -~]{0,12}"), 1..5),
        neighbours in "[a-z]{2}",
        pieces in prop::collection::vec(1usize..9, 1..8),
    ) {
        prop_assume!(!matches!(value.last(), Some(b'\n' | b'\r')));
        let mut text = Vec::new();
        for (way, between) in &parts {
            text.extend(write(WAYS[*way], &value, neighbours.as_bytes()));
            text.extend_from_slice(b" ");
            text.extend_from_slice(between.as_bytes());
            text.extend_from_slice(b" ");
        }
        let (secret, placeholder) = (SecretValue::new(&value).unwrap(), placeholder());
        let mut scrubber = Scrubber::new([(&secret, &placeholder)]);
        let (mut out, mut rest) = (Vec::new(), &text[..]);
        for piece in pieces.iter().cycle() {
            if rest.is_empty() { break }
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            scrubber.push(now, &mut out);
            rest = later;
        }
        scrubber.finish(&mut out);
        let whole = {
            let mut out = Vec::new();
            scrubber.push(&text, &mut out);
            scrubber.finish(&mut out);
            out
        };
        prop_assert_eq!(&out, &whole, "pieces change nothing");
        prop_assert!(!readings(&out).iter().any(|text| contains(text, &value)));
    }

    #[test]
    fn other_text_is_left_alone(text in prop::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
        prop_assert_eq!(scrub(b"a value that is not there", &text, piece), text);
    }

    #[test]
    fn codings_are_undone_in_any_pieces(text in prop::collection::vec(0u8..4, 0..5000), piece in 1usize..999) {
        for (coding, encoded) in encode(&text) {
            let mut decoders = Decoders::new(&[coding]).unwrap();
            let mut out = Vec::new();
            for piece in encoded.chunks(piece) {
                decoders.push(piece, &mut |bytes| out.extend_from_slice(bytes)).unwrap();
            }
            prop_assert!(decoders.may_end());
            prop_assert_eq!(&out, &text, "{:?}", coding);
        }
    }

    #[test]
    fn damaged_bodies_never_panic(text in prop::collection::vec(0u8..4, 0..500), at in 0usize..400, bits in 1u8..) {
        for (coding, mut encoded) in encode(&text) {
            let at = at % encoded.len();
            encoded[at] ^= bits;
            let mut decoders = Decoders::new(&[coding]).unwrap();
            let _ = decoders.push(&encoded, &mut |_| {});
        }
    }
}

fn encode(text: &[u8]) -> Vec<(Coding, Vec<u8>)> {
    let level = flate2::Compression::default();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
    let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), level);
    gzip.write_all(text).unwrap();
    zlib.write_all(text).unwrap();
    raw.write_all(text).unwrap();
    // Two members in one body.
    let gzip = [gzip.finish().unwrap(), {
        let empty = flate2::write::GzEncoder::new(Vec::new(), level);
        empty.finish().unwrap()
    }]
    .concat();
    vec![
        (Coding::Gzip, gzip),
        (Coding::Deflate, zlib.finish().unwrap()),
        (Coding::Deflate, raw.finish().unwrap()),
        (Coding::Zstd, zstd::encode_all(text, 3).unwrap()),
        (Coding::Brotli, stored_brotli(text)),
    ]
}

/// The least that is a body in brotli: blocks that are not compressed (RFC 7932, 9.2).
fn stored_brotli(text: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let (mut bits, mut count) = (0u64, 0);
    // WBITS 16 is one zero bit.
    count += 1;
    for block in text.chunks(65_536) {
        // ISLAST 0, MNIBBLES 4 (00), MLEN - 1, ISUNCOMPRESSED 1.
        bits |= ((block.len() as u64 - 1) << 3 | 1 << 19) << count;
        count += 20;
        while count > 0 {
            out.push(bits as u8);
            bits >>= 8;
            count = i32::max(count - 8, 0);
        }
        out.extend_from_slice(block);
    }
    // ISLAST 1, ISLASTEMPTY 1.
    out.push((bits | 0b11 << count) as u8);
    out
}

#[test]
fn a_bomb_needs_no_memory() {
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..256 {
        bomb.write_all(&zeros).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let (mut total, mut most) = (0usize, 0);
    let mut decoders = Decoders::new(&[Coding::Zstd]).unwrap();
    let mut count = |bytes: &[u8]| {
        total += bytes.len();
        most = most.max(bytes.len());
    };
    decoders.push(&bomb, &mut count).unwrap();
    assert_eq!((total, most), (256 << 20, 16 * 1024));
    assert!(decoders.may_end());
}

fn grants(change: impl FnOnce(&mut Secret)) -> Vec<Grant> {
    let source = Source::Env("T".into());
    let mut secret = Secret::new("TOKEN", source).unwrap();
    change(&mut secret);
    vec![Grant {
        secret: Arc::new(secret),
        placeholder: placeholder(),
        value: Some(Arc::new(SecretValue::new(VALUE).unwrap())),
        former: Vec::new(),
    }]
}

#[test]
fn headers_and_basic_credentials_get_the_value() {
    let grants = grants(|_| ());
    let mut request = Substituter::new(&grants, "GET", "/");
    let own = placeholder();
    let bearer = format!("Bearer {own}");
    let new = request
        .header("authorization", bearer.as_bytes())
        .unwrap()
        .unwrap();
    assert_eq!(*new, [b"Bearer ", VALUE].concat());
    let basic = format!("basic {}", STANDARD.encode(format!("user:{own}")));
    let new = request
        .header("authorization", basic.as_bytes())
        .unwrap()
        .unwrap();
    let decoded = STANDARD.decode(&new[6..]).unwrap();
    assert_eq!(decoded, [b"user:", VALUE].concat());
    assert_eq!(request.header("host", own.as_bytes()).unwrap(), None);
    assert_eq!(request.header("x", b"Bearer msb_ph_").unwrap(), None);
    assert_eq!(
        request.target(&format!("/?k={own}")).unwrap(),
        None,
        "not by itself"
    );
    assert_eq!(request.used(), [0, 0]);
}

#[test]
fn scope_is_kept_and_misuse_is_refused() {
    let own = placeholder();
    let set = grants(|secret| {
        secret.headers = Headers::Named(vec!["x-api-key".into()]);
        secret.methods = vec!["POST".into()];
        secret.path = Some("/v1/".into());
        secret.on_misuse = OnMisuse::Block;
    });
    let try_at = |method, path, field| {
        let mut request = Substituter::new(&set, method, path);
        request
            .header(field, own.as_bytes())
            .map(|new| new.is_some())
    };
    assert_eq!(try_at("POST", "/v1/x", "x-api-key"), Ok(true));
    let misuse = Err((Refused::Misuse, 0));
    assert_eq!(try_at("POST", "/v1/x", "authorization"), misuse);
    assert_eq!(try_at("GET", "/v1/x", "x-api-key"), misuse);
    assert_eq!(try_at("POST", "/v1/../x", "x-api-key"), misuse);
    assert_eq!(try_at("POST", "/v12", "x-api-key"), misuse);
    let mut unfit = grants(|_| ());
    unfit[0].value = Some(Arc::new(SecretValue::new(b"two\nlines").unwrap()));
    let mut request = Substituter::new(&unfit, "GET", "/");
    let refused = request.header("x", own.as_bytes()).unwrap_err();
    assert_eq!(refused, (Refused::Unfit, 0));
}

#[test]
fn queries_and_bodies_get_it_escaped() {
    let own = placeholder();
    let set = grants(|secret| (secret.query, secret.body) = (true, true));
    let mut request = Substituter::new(&set, "GET", "/");
    let target = request.target(&format!("/a?k={own}&l=1")).unwrap().unwrap();
    assert_eq!(*target, "/a?k=s3cr%2Ft%2B%22k%26y%25&l=1");
    let text = format!("{{\"a\":\"{own}\"}}{}", &own.as_str()[..9]);
    for piece in 1..text.len() {
        let mut body = request.body("application/json", false).unwrap().unwrap();
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(piece) {
            body.push(piece, &mut out).unwrap();
        }
        body.finish(&mut out).unwrap();
        let expected = "{\"a\":\"s3cr/t+\\\"k&y%\"}msb_ph_jj";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(body.used(), [0]);
    }
    let refused = request.body("", true).unwrap_err();
    assert_eq!(refused, (Refused::Encoded, 0));
}

/// A length in front of a value, of a message or of an entry, would not be true any more.
#[test]
fn bodies_that_are_not_text_are_refused_if_there_is_a_placeholder() {
    let set = grants(|secret| secret.body = true);
    let request = Substituter::new(&set, "POST", "/");
    for (kind, text) in [
        ("", true),
        ("text/plain", true),
        ("application/json; charset=utf-8", true),
        ("application/vnd.api+json", true),
        ("application/x-amz-json-1.1", true),
        ("application/xml", true),
        ("multipart/form-data; boundary=x", true),
        ("application/grpc", false),
        ("application/grpc+proto", false),
        ("application/grpc+json", false),
        ("application/grpc-web-text", false),
        ("Application/gRPC+JSON", false),
        ("application/connect+json", false),
        ("application/x-protobuf", false),
        ("application/cbor", false),
        ("application/msgpack", false),
        ("application/octet-stream", false),
        ("application/x-tar", false),
    ] {
        for (inside, size) in [(true, 1), (true, 7), (true, 99), (false, 7)] {
            let own = if inside {
                placeholder().to_string()
            } else {
                "msb_ph_x".into()
            };
            let sent = [b"\0\0\0\0\x2a", own.as_bytes(), b"\n"].concat();
            let (mut body, mut out) = (request.body(kind, false).unwrap().unwrap(), Vec::new());
            assert_eq!(body.changes_length(), text, "{kind}");
            let mut pieces = sent.chunks(size);
            let pushed = pieces.try_for_each(|piece| body.push(piece, &mut out));
            let result = pushed.and_then(|()| body.finish(&mut out));
            if inside && !text {
                assert_eq!(result, Err((Refused::Binary, 0)), "{kind}");
                assert!(!contains(&out, VALUE) && !contains(&out, own.as_bytes()));
            } else {
                assert_eq!(result, Ok(()), "{kind}");
                assert!(!inside || !contains(&out, own.as_bytes()), "{kind}");
                assert_eq!(out == sent, !inside, "{kind}");
            }
        }
    }
}

#[test]
fn values_are_not_shown() {
    let value = SecretValue::new(b"hunter2hunter2\r\n").unwrap();
    assert_eq!(value.expose(), b"hunter2hunter2");
    let secret = Secret::new("A", Source::Literal(Arc::new(value))).unwrap();
    assert!(!format!("{secret:?}").contains("hunter2"));
    assert!(SecretValue::new(b"short").is_err());
    assert!(SecretValue::new(&[b'a'; MAX_VALUE + 1]).is_err());
    assert!(Secret::new("1A", Source::Env("A".into())).is_err());
    assert!(Placeholder::new("a b", [0; 24]).is_err());
    let usual = Placeholder::new("sk-", [0; 24]).unwrap();
    assert_eq!(usual.as_str().len(), 27);
}
