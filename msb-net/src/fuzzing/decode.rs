//! What a reader could decode a text to: by hand, to check others against.

/// Base64 with padding (RFC 4648, 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place > group.len() {
                '='
            } else {
                letter.into()
            });
        }
    }
    text
}

fn sextet(byte: u8) -> Option<u32> {
    let own = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    };
    Some(own.into())
}

/// The bytes of the letters that the text begins with.
fn run(text: &[u8]) -> (Vec<u8>, usize) {
    let (mut bits, mut count, mut out, mut read) = (0u32, 0, Vec::new(), 0);
    for sextet in text.iter().map_while(|byte| sextet(*byte)) {
        (bits, count, read) = (bits << 6 | sextet, count + 6, read + 1);
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    (out, read)
}

/// Undoes [`base64`]; `None` when there is something else in the text.
pub(crate) fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let (bytes, read) = run(text);
    text[read..]
        .iter()
        .all(|byte| *byte == b'=')
        .then_some(bytes)
}

/// All that a reader could decode a text to: as it is, with escapes of URLs undone,
/// and from every byte on as hexadecimal digits and as base64.
pub(crate) fn readings(text: &[u8]) -> Vec<Vec<u8>> {
    let unescaped = unescape(text);
    let mut all = vec![text.to_vec(), unescaped.clone()];
    for text in [text, &unescaped] {
        for from in 0..text.len() {
            // A run that goes on from before was decoded from there, but for its
            // alignment: base64 has four of them, hexadecimal digits two.
            let continued = |back: usize| {
                from >= back && text[from - back..from].iter().all(|b| sextet(*b).is_some())
            };
            if continued(4) {
                continue;
            }
            all.push(run(&text[from..]).0);
            let digits = text[from..]
                .iter()
                .map_while(|b| char::from(*b).to_digit(16));
            let digits: Vec<_> = digits.collect();
            let pair = |pair: &[u32]| (pair[0] << 4 | pair[1]) as u8;
            all.push(digits.chunks_exact(2).map(pair).collect());
        }
    }
    all
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let digit = |at: usize| more.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                rest = &more[2..];
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_finds_what_was_encoded() {
        let value = b"\x80alue+of it";
        let has = |text: &[u8]| {
            readings(text)
                .iter()
                .any(|r| r.windows(value.len()).any(|p| p == value))
        };
        for before in ["", "a", "ab", "abc"] {
            let text = format!("x\": {}", base64(&[before.as_bytes(), value].concat()));
            assert!(has(text.as_bytes()), "{text}");
        }
        let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        let escaped: String = value.iter().map(|byte| format!("%{byte:02X}")).collect();
        assert!(has(format!("f{hex}").as_bytes()) && has(escaped.as_bytes()) && has(value));
        assert!(!has(b"other"));
        assert_eq!(
            unbase64(base64(value).as_bytes()).as_deref(),
            Some(&value[..])
        );
    }
}
