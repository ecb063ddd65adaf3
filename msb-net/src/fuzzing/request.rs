//! Properties of what reads requests and hides secrets.

use crate::http::path::{PathPattern, readings};
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
