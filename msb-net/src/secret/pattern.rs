//! The forms in which a value may appear, and how one is recognised.
//!
//! A pattern is the value in one *inner* form: as it is, in hexadecimal, or in
//! base64 at one of three alignments. The text around it may have escaped any of
//! its bytes, each on its own, in an *outer* way: `%41`, `\u0041`, `\/`, `&#65;`,
//! `&amp;`. Both are undone while comparing, so there is no list of forms that
//! could be incomplete: `%61Hs%3d` is met by the same comparison as `aHs=`.
//!
//! In base64 the first and the last character may hold bits of the neighbours
//! (RFC 4648, 4): only the value's bits are compared there.

use zeroize::Zeroizing;

/// The longest escape, `&#x0000ff;` with room for zeros; longer ones are not
/// escapes that anything writes.
pub(super) const MAX_ESCAPE: usize = 12;

/// Steps for each element of a pattern, before a comparison is given up. Only a
/// value that is full of escapes itself has more than one reading of a text.
const MAX_READINGS: usize = 16;

/// An inner form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Raw,
    Hex,
    /// With this many bytes of somebody else in the value's first group of three.
    Base64(usize),
}

impl Form {
    pub(super) const ALL: [Self; 5] = [
        Self::Raw,
        Self::Hex,
        Self::Base64(0),
        Self::Base64(1),
        Self::Base64(2),
    ];
}

/// A value in one inner form.
pub(super) struct Pattern {
    pub(super) form: Form,
    /// Bytes, hexadecimal digits in lower case, or sextets.
    elements: Zeroizing<Vec<u8>>,
    /// For base64: which bits of the first and the last sextet are the value's.
    masks: (u8, u8),
}

/// What a text is to a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// It does not begin with it.
    No,
    /// It ended after this many elements, and may go on with the rest.
    Partial(usize),
    /// Its first bytes, this many, are it.
    Full(usize),
}

impl Pattern {
    pub(super) fn new(form: Form, value: &[u8]) -> Self {
        let (elements, masks) = match form {
            Form::Raw => (value.to_vec(), (0xff, 0xff)),
            Form::Hex => {
                let digits =
                    |byte: &u8| [byte >> 4, byte & 15].map(|d| b"0123456789abcdef"[usize::from(d)]);
                (value.iter().flat_map(digits).collect(), (0xff, 0xff))
            }
            Form::Base64(before) => sextets(value, before),
        };
        let elements = Zeroizing::new(elements);
        Self {
            form,
            elements,
            masks,
        }
    }

    fn mask(&self, index: usize) -> u8 {
        let (first, last) = self.masks;
        let mut mask = 0x3f;
        if index == 0 {
            mask &= first;
        }
        if index + 1 == self.elements.len() {
            mask &= last;
        }
        mask
    }

    /// Tells whether a byte that stands for itself, or was escaped, is the element.
    pub(super) fn accepts(&self, index: usize, byte: u8) -> bool {
        let own = self.elements[index];
        match self.form {
            // A blank in the query of a form.
            Form::Raw => own == byte || own == b' ' && byte == b'+',
            Form::Hex => own == byte.to_ascii_lowercase(),
            Form::Base64(_) => sextet(byte).is_some_and(|got| (got ^ own) & self.mask(index) == 0),
        }
    }

    /// The most bytes that a text may need to be this pattern.
    pub(super) fn longest(&self) -> usize {
        self.elements.len() * (MAX_ESCAPE + 2)
    }

    /// Compares the beginning of `text`, of which more may come if it is not `whole`.
    pub(super) fn compare(&self, text: &[u8], whole: bool) -> Match {
        let mut left = MAX_READINGS * self.elements.len();
        // Readings that are still to be tried: where in the text, and in the value.
        let mut untried = vec![(0, 0)];
        let mut partial = None;
        while let Some((mut at, mut index)) = untried.pop() {
            loop {
                if index == self.elements.len() {
                    // An escape that is still incomplete may be the longer reading.
                    return partial.map_or(Match::Full(at), Match::Partial);
                }
                left = match left.checked_sub(1) {
                    Some(left) => left,
                    None => return partial.map_or(Match::No, Match::Partial),
                };
                if index > 0 && matches!(self.form, Form::Base64(_)) {
                    at += line_end(&text[at..]);
                    // An end of line may be cut in two.
                    if !whole && LINE_ENDS.iter().any(|end| end.starts_with(&text[at..])) {
                        partial = partial.max(Some(index));
                        break;
                    }
                }
                let rest = &text[at..];
                let Some(first) = rest.first() else {
                    partial = partial.max((!whole).then_some(index));
                    break;
                };
                let plain = self.accepts(index, *first).then_some((at + 1, index + 1));
                let escaped = match escape(rest) {
                    Escape::None => None,
                    Escape::Partial => {
                        partial = partial.max((!whole).then_some(index));
                        None
                    }
                    Escape::Byte(byte, length) => self
                        .accepts(index, byte)
                        .then_some((at + length, index + 1)),
                    Escape::Char(c, length) => {
                        let [whole, single] = self.accepts_char(index, c);
                        let next = |taken| (at + length, index + taken);
                        untried.extend(whole.and(single).map(next));
                        whole.or(single).map(next)
                    }
                };
                (at, index) = match (escaped, plain) {
                    (Some(escaped), Some(plain)) => {
                        untried.push(plain);
                        escaped
                    }
                    (Some(next), None) | (None, Some(next)) => next,
                    (None, None) => break,
                };
            }
        }
        partial.map_or(Match::No, Match::Partial)
    }

    /// Tells how many elements a character is: written in UTF-8, and as the byte of
    /// Latin-1 that JSON and HTML also write so.
    fn accepts_char(&self, index: usize, c: char) -> [Option<usize>; 2] {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        if self.form != Form::Raw {
            let fits = bytes.len() == 1 && self.accepts(index, bytes[0]);
            return [fits.then_some(1), None];
        }
        let whole = self.elements[index..].starts_with(bytes);
        let single = bytes.len() > 1 && u32::from(c) == u32::from(self.elements[index]);
        [whole.then_some(bytes.len()), single.then_some(1)]
    }

    /// Writes `with` in this pattern's form, in place of `found`.
    pub(super) fn replace(&self, found: &[u8], with: &[u8], out: &mut Vec<u8>) {
        match self.form {
            Form::Raw => out.extend_from_slice(with),
            Form::Hex => {
                let upper = found.iter().any(|byte| matches!(byte, b'A'..=b'F'));
                let digits: &[u8; 16] = if upper {
                    b"0123456789ABCDEF"
                } else {
                    b"0123456789abcdef"
                };
                for byte in with {
                    out.push(digits[usize::from(byte >> 4)]);
                    out.push(digits[usize::from(byte & 15)]);
                }
            }
            Form::Base64(before) => {
                let first = plain(found).and_then(sextet).unwrap_or(0) & !self.masks.0;
                let last = found.last().copied().and_then(sextet).unwrap_or(0) & !self.masks.1;
                // The same length within a group, so that what follows still decodes.
                let bits = self.elements.len() % 4;
                let mut padded = with.to_vec();
                let mut filled = sextets(&padded, before).0;
                while filled.len() % 4 != bits {
                    padded.push(b'_');
                    filled = sextets(&padded, before).0;
                }
                if let Some(own) = filled.first_mut() {
                    *own |= first & 0x3f;
                }
                if let Some(own) = filled.last_mut() {
                    *own |= last & 0x3f;
                }
                let url = found.iter().any(|byte| matches!(byte, b'-' | b'_'));
                out.extend(filled.iter().map(|sextet| letter(*sextet, url)));
            }
        }
    }
}

/// The sextets that hold bits of `value` when `before` bytes stand ahead of it in
/// its first group, and which bits of the first and the last are its own.
fn sextets(value: &[u8], before: usize) -> (Vec<u8>, (u8, u8)) {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(value);
    let bytes = Zeroizing::new(bytes);
    let mut all = Vec::with_capacity(bytes.len() * 4 / 3 + 1);
    for group in bytes.chunks(3) {
        let mut bits = [0; 3];
        bits[..group.len()].copy_from_slice(group);
        let [a, b, c] = bits;
        let four = [
            a >> 2,
            (a & 3) << 4 | b >> 4,
            (b & 15) << 2 | c >> 6,
            c & 63,
        ];
        all.extend_from_slice(&four[..=group.len()]);
    }
    all.drain(..before);
    let first = [0x3f, 0x0f, 0x03][before];
    let last = [0x3f, 0x30, 0x3c][bytes.len() % 3];
    (all, (first, last))
}

/// The value of a character of either alphabet.
pub(super) fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

fn letter(sextet: u8, url: bool) -> u8 {
    match (sextet & 63, url) {
        (n @ 0..26, _) => b'A' + n,
        (n @ 26..52, _) => b'a' + n - 26,
        (n @ 52..62, _) => b'0' + n - 52,
        (62, false) => b'+',
        (62, true) => b'-',
        (_, false) => b'/',
        (_, true) => b'_',
    }
}

/// The first byte that a text stands for.
fn plain(text: &[u8]) -> Option<u8> {
    match escape(text) {
        Escape::Byte(byte, _) => Some(byte),
        Escape::Char(c, _) => u8::try_from(u32::from(c)).ok(),
        _ => text.first().copied(),
    }
}

/// How ends of lines are written, in text and in JSON.
const LINE_ENDS: [&[u8]; 4] = [b"\r\n", b"\n", b"\\r\\n", b"\\n"];

/// How long an end of line is, where base64 was broken (RFC 2045, 6.8).
fn line_end(text: &[u8]) -> usize {
    let end = LINE_ENDS.iter().find(|end| text.starts_with(end));
    end.map_or(0, |end| end.len())
}

/// What an escape at the beginning of a text stands for, and how long it is.
enum Escape {
    None,
    Partial,
    Byte(u8, usize),
    Char(char, usize),
}

fn escape(text: &[u8]) -> Escape {
    match text {
        [b'%', rest @ ..] => match number(rest, 16, 2) {
            Number::Whole(byte) => Escape::Byte(byte as u8, 3),
            Number::Partial => Escape::Partial,
            Number::None => Escape::None,
        },
        [b'\\', rest @ ..] => json(rest),
        [b'&', rest @ ..] => entity(rest),
        _ => Escape::None,
    }
}

enum Number {
    None,
    Partial,
    Whole(u32),
}

/// Reads exactly `width` digits.
fn number(text: &[u8], radix: u32, width: usize) -> Number {
    let mut number = 0;
    for index in 0..width {
        let Some(byte) = text.get(index) else {
            return Number::Partial;
        };
        match char::from(*byte).to_digit(radix) {
            Some(digit) => number = number * radix + digit,
            None => return Number::None,
        }
    }
    Number::Whole(number)
}

/// Escapes of JSON (RFC 8259, 7) and of JavaScript, behind the backslash.
fn json(text: &[u8]) -> Escape {
    let Some(kind) = text.first() else {
        return Escape::Partial;
    };
    match kind {
        b'"' | b'\\' | b'/' | b'\'' => Escape::Byte(*kind, 2),
        b'b' => Escape::Byte(8, 2),
        b'f' => Escape::Byte(12, 2),
        b'n' => Escape::Byte(b'\n', 2),
        b'r' => Escape::Byte(b'\r', 2),
        b't' => Escape::Byte(b'\t', 2),
        b'x' => match number(&text[1..], 16, 2) {
            Number::Whole(byte) => Escape::Byte(byte as u8, 4),
            Number::Partial => Escape::Partial,
            Number::None => Escape::None,
        },
        b'u' => match number(&text[1..], 16, 4) {
            Number::Whole(high @ 0xd800..=0xdbff) => surrogates(high, &text[5..]),
            Number::Whole(unit) => {
                char::from_u32(unit).map_or(Escape::None, |c| Escape::Char(c, 6))
            }
            Number::Partial => Escape::Partial,
            Number::None => Escape::None,
        },
        _ => Escape::None,
    }
}

/// The second half of a pair of surrogates.
fn surrogates(high: u32, text: &[u8]) -> Escape {
    let begun = text.len() < 2 && b"\\u".starts_with(text);
    if begun {
        return Escape::Partial;
    }
    let Some(rest) = text.strip_prefix(b"\\u") else {
        return Escape::None;
    };
    match number(rest, 16, 4) {
        Number::Whole(low @ 0xdc00..=0xdfff) => {
            let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            char::from_u32(code).map_or(Escape::None, |c| Escape::Char(c, 12))
        }
        Number::Partial => Escape::Partial,
        _ => Escape::None,
    }
}

/// References of HTML and XML, behind the ampersand.
fn entity(text: &[u8]) -> Escape {
    const NAMED: [(&[u8], u8); 6] = [
        (b"amp;", b'&'),
        (b"lt;", b'<'),
        (b"gt;", b'>'),
        (b"quot;", b'"'),
        (b"apos;", b'\''),
        (b"sol;", b'/'),
    ];
    for (name, byte) in NAMED {
        if text.starts_with(name) {
            return Escape::Byte(byte, 1 + name.len());
        }
    }
    let Some(digits) = text.strip_prefix(b"#") else {
        let begun = NAMED.iter().any(|(name, _)| name.starts_with(text));
        return if begun { Escape::Partial } else { Escape::None };
    };
    let (digits, radix, before) = match digits {
        [b'x' | b'X', rest @ ..] => (rest, 16, 3),
        _ => (digits, 10, 2),
    };
    let mut code = 0u32;
    for (index, byte) in digits.iter().take(MAX_ESCAPE - before).enumerate() {
        if *byte == b';' && index > 0 {
            let c = char::from_u32(code);
            return c.map_or(Escape::None, |c| Escape::Char(c, before + index + 1));
        }
        match char::from(*byte).to_digit(radix) {
            Some(digit) => code = code.saturating_mul(radix).saturating_add(digit),
            None => return Escape::None,
        }
    }
    if digits.len() < MAX_ESCAPE - before {
        Escape::Partial
    } else {
        Escape::None
    }
}
