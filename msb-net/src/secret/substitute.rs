//! Puts values into requests, in place of their placeholders.
//!
//! Whether a request goes where a value may go is decided before: a [`Grant`]
//! exists only for the host at hand.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{OnMisuse, Placeholder, Secret, SecretValue};
use crate::http::outgoing::Put;

/// The longest body of a known length that is read whole, so that its new length
/// can be told in front of it. Longer ones are sent in chunks.
pub const MAX_WHOLE_BODY: usize = 1024 * 1024;

/// A secret whose value a connection's host may have.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The secret.
    pub secret: Arc<Secret>,
    /// What stands for it in the guest.
    pub placeholder: Placeholder,
    /// The value; `None` for a host that may not have it.
    pub value: Option<Arc<SecretValue>>,
    /// Values of before, which the host may still know, the latest last.
    pub former: Vec<Arc<SecretValue>>,
}

/// Why a request cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The value has a byte that no header field can carry.
    #[error("its value cannot stand in a header field")]
    Unfit,
    /// The placeholder stands where the value may not go, and that is to be refused.
    #[error("its placeholder goes to where its value may not go")]
    Misuse,
    /// The body is compressed, so that nothing can be put into it.
    #[error("the body has a content coding, so that no value can be put into it")]
    Encoded,
    /// The body holds the placeholder, and may have lengths inside that would not be true
    /// any more.
    #[error("the body is not of a textual type, so that no value can be put into it")]
    Binary,
}

/// Puts values into one request.
#[derive(Debug)]
pub struct Substituter<'a> {
    grants: &'a [Grant],
    method: &'a str,
    path: &'a str,
    used: Vec<usize>,
}

/// A refusal and the index of the grant it is about.
pub type Refusal = (Refused, usize);

impl<'a> Substituter<'a> {
    /// For a request of this method and path.
    pub fn new(grants: &'a [Grant], method: &'a str, path: &'a str) -> Self {
        Self {
            grants,
            method,
            path,
            used: Vec::new(),
        }
    }

    /// Returns the indices of the grants whose values were put in so far.
    pub fn used(&self) -> &[usize] {
        &self.used
    }

    /// Rewrites the value of a header field, whose name is in lower case; `None`
    /// when it stays as it is.
    ///
    /// # Errors
    ///
    /// The request must not be sent.
    pub fn header(
        &mut self,
        field: &str,
        text: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        if let Some(user) = basic(text) {
            let new = self.replace(&user, |secret| secret.covers_header(field), false)?;
            return Ok(new.map(|user| {
                let encoded = Zeroizing::new(STANDARD.encode(&*user));
                Zeroizing::new([b"Basic ", encoded.as_bytes()].concat())
            }));
        }
        self.replace(text, |secret| secret.covers_header(field), true)
    }

    /// Rewrites the query of a request's target; `None` when it stays as it is.
    ///
    /// # Errors
    ///
    /// The request must not be sent.
    pub fn target(&mut self, target: &str) -> Result<Option<Zeroizing<String>>, Refusal> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, query),
            None => (target, ""),
        };
        for (index, grant) in self.grants.iter().enumerate() {
            let there = |text: &str| text.contains(grant.placeholder.as_str());
            let misused = there(path) || there(query) && !self.may(index, |secret| secret.query);
            if misused && grant.secret.on_misuse == OnMisuse::Block {
                return Err((Refused::Misuse, index));
            }
        }
        let mut new = None::<Zeroizing<String>>;
        for (index, grant) in self.grants.iter().enumerate() {
            let now = new.as_ref().map_or(query, |text| text.as_str());
            if !now.contains(grant.placeholder.as_str()) || !self.may(index, |s| s.query) {
                continue;
            }
            let Some(value) = &grant.value else { continue };
            let escaped = Escaping::Percent.apply(value.expose());
            // Percent-encoded text is ASCII.
            let escaped = String::from_utf8_lossy(&escaped);
            new = Some(Zeroizing::new(
                now.replace(grant.placeholder.as_str(), &escaped),
            ));
            self.used.push(index);
        }
        Ok(new.map(|query| Zeroizing::new(format!("{path}?{}", *query))))
    }

    /// Says how the body is to be rewritten; `None` when it stays as it is. One that is not
    /// text is only searched.
    ///
    /// # Errors
    ///
    /// It would have to be, and is compressed.
    pub fn body(&self, content_type: &str, encoded: bool) -> Result<Option<Body>, Refusal> {
        let escaping = Escaping::of(content_type);
        let grants = self.grants.iter().enumerate();
        let wanted: Vec<_> = grants
            .filter(|(index, _)| self.may(*index, |secret| secret.body))
            .filter_map(|(index, grant)| {
                let value = escaping.apply(grant.value.as_ref()?.expose());
                Some((index, grant.placeholder.clone(), value))
            })
            .collect();
        match wanted.first() {
            None => Ok(None),
            Some((index, ..)) if encoded => Err((Refused::Encoded, *index)),
            Some(_) => Ok(Some(Body {
                wanted,
                text: has_no_lengths(content_type),
                held: Zeroizing::default(),
                used: Vec::new(),
            })),
        }
    }

    fn may(&self, index: usize, place: impl FnOnce(&Secret) -> bool) -> bool {
        let grant = &self.grants[index];
        grant.value.is_some() && place(&grant.secret) && grant.secret.covers(self.method, self.path)
    }

    fn replace(
        &mut self,
        text: &[u8],
        place: impl Fn(&Secret) -> bool,
        must_fit: bool,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        let mut new = None::<Zeroizing<Vec<u8>>>;
        for (index, grant) in self.grants.iter().enumerate() {
            let now = new.as_ref().map_or(text, |text| text.as_slice());
            if find(now, grant.placeholder.as_bytes()).is_none() {
                continue;
            }
            let value = grant.value.as_ref().filter(|_| self.may(index, &place));
            let Some(value) = value else {
                if grant.secret.on_misuse == OnMisuse::Block {
                    return Err((Refused::Misuse, index));
                }
                continue;
            };
            if must_fit && !value.fits_header() {
                return Err((Refused::Unfit, index));
            }
            new = Some(swap(now, grant.placeholder.as_bytes(), value.expose()));
            self.used.push(index);
        }
        Ok(new)
    }
}

/// The user and password of Basic credentials (RFC 7617, 2).
fn basic(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, rest) = text.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    STANDARD.decode(rest.trim_ascii()).ok().map(Zeroizing::new)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    let first = *what.first()?;
    let mut from = 0;
    loop {
        let at = from + text[from..].iter().position(|byte| *byte == first)?;
        if text[at..].starts_with(what) {
            return Some(at);
        }
        from = at + 1;
    }
}

fn swap(mut text: &[u8], what: &[u8], with: &[u8]) -> Zeroizing<Vec<u8>> {
    // Enough room: a vector that grows leaves copies behind.
    let most = text.len() + (text.len() / what.len()) * with.len();
    let mut new = Zeroizing::new(Vec::with_capacity(most));
    while let Some(at) = find(text, what) {
        new.extend_from_slice(&text[..at]);
        new.extend_from_slice(with);
        text = &text[at + what.len()..];
    }
    new.extend_from_slice(text);
    new
}

/// Formats that are JSON, as they stand in a content type.
const JSON: [&str; 5] = [
    "json",
    "jsonl",
    "x-ndjson",
    "x-amz-json-1.0",
    "x-amz-json-1.1",
];

/// Other formats that are text.
const TEXT: [&str; 8] = [
    "xml",
    "yaml",
    "x-yaml",
    "javascript",
    "x-javascript",
    "graphql",
    "sql",
    "x-www-form-urlencoded",
];

/// The first word of a content type and the last one, which says the format (RFC 6838, 4.2.8).
fn format_of(content_type: &str) -> (String, String) {
    let kind = content_type.split(';').next().unwrap_or("").trim();
    let kind = kind.to_ascii_lowercase();
    let (first, second) = kind.split_once('/').unwrap_or((&kind, ""));
    let last = second.rsplit('+').next().unwrap_or(second);
    (first.into(), last.into())
}

/// Tells whether what is in a body of this type has no lengths of its own, so that a value
/// may become something longer or shorter. Without a type it is taken for text.
pub(crate) fn is_text(content_type: &str) -> bool {
    let (first, last) = format_of(content_type);
    // Messages with their lengths in front, whatever is in them.
    let kind = content_type.to_ascii_lowercase();
    let framed = ["/grpc", "/connect+"].iter().any(|own| kind.contains(own));
    let text = first == "text" || JSON.contains(&&last[..]) || TEXT.contains(&&last[..]);
    last.is_empty() || text && !framed
}

/// The same of what a client sends: forms have parts, and no lengths.
fn has_no_lengths(content_type: &str) -> bool {
    is_text(content_type) || format_of(content_type).0 == "multipart"
}

/// How a value is written where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escaping {
    None,
    Json,
    Percent,
}

impl Escaping {
    fn of(content_type: &str) -> Self {
        match &format_of(content_type).1[..] {
            "x-www-form-urlencoded" => Self::Percent,
            format if JSON.contains(&format) => Self::Json,
            _ => Self::None,
        }
    }

    fn apply(self, value: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(6 * value.len()));
        let hex = |digit: u8| b"0123456789ABCDEF"[usize::from(digit & 15)];
        for byte in value.iter().copied() {
            let (high, low) = (hex(byte >> 4), hex(byte));
            match (self, byte) {
                (Self::Json, b'"' | b'\\') => text.extend_from_slice(&[b'\\', byte]),
                (Self::Json, 0..0x20) => {
                    text.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
                }
                (Self::Percent, _) if !byte.is_ascii_alphanumeric() && !b"-._~".contains(&byte) => {
                    text.extend_from_slice(&[b'%', high, low]);
                }
                _ => text.push(byte),
            }
        }
        text
    }
}

/// Puts values into a body that comes in pieces.
pub struct Body {
    wanted: Vec<(usize, Placeholder, Zeroizing<Vec<u8>>)>,
    /// Anything can be put in; else it is only searched.
    text: bool,
    held: Zeroizing<Vec<u8>>,
    used: Vec<usize>,
}

impl Body {
    /// Reads a piece and writes what can be written: all but a possible beginning
    /// of a placeholder.
    ///
    /// # Errors
    ///
    /// The request must not be sent, or not to its end.
    pub fn push(&mut self, piece: &[u8], out: &mut impl Put) -> Result<(), Refusal> {
        self.held.extend_from_slice(piece);
        self.scan(false, out)
    }

    /// Writes the rest.
    ///
    /// # Errors
    ///
    /// The request must not be sent, or not to its end.
    pub fn finish(&mut self, out: &mut impl Put) -> Result<(), Refusal> {
        self.scan(true, out)
    }

    /// Tells whether its length may change.
    pub fn changes_length(&self) -> bool {
        self.text
    }

    /// Returns the indices of the grants whose values were put in so far.
    pub fn used(&self) -> &[usize] {
        &self.used
    }

    fn scan(&mut self, whole: bool, out: &mut impl Put) -> Result<(), Refusal> {
        let (mut at, mut written) = (0, 0);
        'scan: while at < self.held.len() {
            let rest = &self.held[at..];
            for (index, placeholder, value) in &self.wanted {
                let own = placeholder.as_bytes();
                if rest.starts_with(own) {
                    if !self.text {
                        return Err((Refused::Binary, *index));
                    }
                    out.put(&self.held[written..at]);
                    out.put(value);
                    if !self.used.contains(index) {
                        self.used.push(*index);
                    }
                    at += own.len();
                    written = at;
                    continue 'scan;
                }
                if !whole && own.starts_with(rest) {
                    break 'scan;
                }
            }
            at += 1;
        }
        out.put(&self.held[written..at]);
        self.held.drain(..at);
        Ok(())
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}
