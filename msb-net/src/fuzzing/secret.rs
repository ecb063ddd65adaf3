//! Properties of what puts values in and takes them out.

use std::sync::Arc;

use super::decode::{base64, readings, unbase64};
use crate::secret::substitute::{Grant, Substituter};
use crate::secret::{MIN_VALUE, Placeholder, Scrubber, Secret, SecretValue, Source};

fn placeholder() -> Option<Placeholder> {
    Placeholder::new("", [1; 24]).ok()
}

/// A stream with values in it, the first eight bytes of the data: what comes out has
/// none, whatever the pieces, also not when all is decoded that can be.
pub fn scrubber(data: &[u8]) {
    /// The model tries every beginning.
    const MAX_TEXT: usize = 2048;
    let Some((value, text)) = data.split_at_checked(MIN_VALUE) else {
        return;
    };
    let text = &text[..text.len().min(MAX_TEXT)];
    let (Ok(secret), Some(placeholder)) = (SecretValue::new(value), placeholder()) else {
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
    // A value may be made of the placeholder and its neighbours: one that has a
    // byte of it, or of what it may be taken for, says nothing.
    let own = placeholder.as_bytes();
    let forms = ["", "a", "ab"].map(|before| base64(&[before.as_bytes(), own].concat()));
    let mut made: Vec<u8> = own.to_vec();
    for form in forms {
        made.extend(readings(form.as_bytes()).concat());
    }
    if value
        .iter()
        .any(|byte| made.contains(byte) || *byte == b'*')
    {
        return;
    }
    for reading in readings(&whole) {
        let left = reading.windows(value.len()).any(|part| part == value);
        assert!(!left, "the value is left");
    }
}

/// A field's value: the text of Basic credentials, in which 0xff stands for the
/// placeholder, or if it begins with 0xfe, anything. What is decoded and written
/// again is what it was, with the value in the placeholder's place.
pub fn basic_credentials(data: &[u8]) {
    const VALUE: &[u8] = b"the value of it";
    let (Some(placeholder), Ok(value), Ok(secret)) = (
        placeholder(),
        SecretValue::new(VALUE),
        Secret::new("T", Source::Env("T".into())),
    ) else {
        return;
    };
    let grants = [Grant {
        secret: Arc::new(secret),
        placeholder: placeholder.clone(),
        value: Some(Arc::new(value)),
        former: Vec::new(),
    }];
    let fill = |with: &[u8], data: &[u8]| -> Vec<u8> {
        let part = |byte: &u8| match byte {
            0xff => with.to_vec(),
            byte => vec![*byte],
        };
        data.iter().flat_map(part).collect()
    };
    let mut substituter = Substituter::new(&grants, "GET", "/");
    if let Some(anything) = data.strip_prefix(&[0xfe]) {
        let text = fill(placeholder.as_bytes(), anything);
        let (before, new) = (readings(&text), substituter.header("authorization", &text));
        if let Ok(Some(new)) = new {
            let has = |text: &[u8], what: &[u8]| text.windows(what.len()).any(|part| part == what);
            assert!(before.iter().any(|text| has(text, placeholder.as_bytes())));
            assert!(readings(&new).iter().any(|text| has(text, VALUE)));
        }
        return;
    }
    let user = fill(placeholder.as_bytes(), data);
    let field = format!("Basic {}", base64(&user));
    let new = substituter.header("authorization", field.as_bytes());
    let expected = data.contains(&0xff).then(|| fill(VALUE, data));
    match (new.expect("it may have it"), expected) {
        (None, None) => {}
        (Some(new), Some(expected)) => {
            let encoded = new.strip_prefix(b"Basic ").expect("the scheme stays");
            assert_eq!(unbase64(encoded).as_deref(), Some(&expected[..]));
        }
        (new, expected) => panic!("{new:?} instead of {expected:?}"),
    }
}
