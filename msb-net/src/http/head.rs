//! Heads of HTTP/1 messages, read strictly.
//!
//! Read RFC 9112. Wherever two readers could take a head differently, it is
//! refused and not repaired: that is what request smuggling lives on.

use std::fmt;

use zeroize::Zeroizing;

use super::outgoing::Put;

/// The most bytes of a head: what common servers take, and some more for cookies.
pub const MAX_HEAD: usize = 64 * 1024;

/// The most fields of a head or trailer.
pub const MAX_FIELDS: usize = 128;

/// A header field: the name in lower case, the value as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Field {
    /// The name.
    pub name: String,
    /// The value, without blanks around it. It may be a credential.
    pub value: Zeroizing<Vec<u8>>,
}

impl Field {
    /// A field.
    pub fn new(name: &str, value: impl Into<Vec<u8>>) -> Self {
        let (name, value) = (name.to_owned(), Zeroizing::new(value.into()));
        Self { name, value }
    }
}

impl fmt::Debug for Field {
    /// Shows the name: the value may be a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", self.name)
    }
}

/// The fields of a head or trailer, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<Field>);

impl Fields {
    /// Iterates over the values of all fields of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let named = move |field: &&Field| field.name == name;
        self.0.iter().filter(named).map(|field| &field.value[..])
    }

    /// Returns the value of the only field of a name.
    pub fn only<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        let mut all = self.all(name);
        let first = all.next()?;
        all.next().is_none().then_some(first)
    }

    /// Takes out all fields of a name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|field| field.name != name);
    }

    /// Puts a field in place of all of its name.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.remove(name);
        self.0.push(Field::new(name, value));
    }

    /// Iterates over the words of a list, from all fields of a name, in lower case.
    pub fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> {
        let texts = self.all(name).map(String::from_utf8_lossy);
        let words = texts.flat_map(|text| {
            let words = text.split(',').map(|word| word.trim().to_ascii_lowercase());
            words.collect::<Vec<_>>()
        });
        words.filter(|word| !word.is_empty())
    }

    /// Tells whether a list has a word, in lower case.
    pub fn has_word(&self, name: &str, word: &str) -> bool {
        self.words(name).any(|own| own == word)
    }
}

/// The head of a request, in the form both versions of HTTP share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The host and perhaps port that it is for.
    pub authority: String,
    /// Path and query, or `*`, or with CONNECT the authority. There may be a credential in it.
    pub target: Zeroizing<String>,
    /// The fields, without Host.
    pub fields: Fields,
}

impl Request {
    /// Returns the target without its query; with CONNECT what stands behind the host.
    pub fn path(&self) -> &str {
        if self.method == "CONNECT" {
            return self.target.rfind(':').map_or("", |at| &self.target[at..]);
        }
        self.target.split('?').next().unwrap_or(&self.target)
    }
}

/// The head of a response, in the form both versions of HTTP share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The fields.
    pub fields: Fields,
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// This many bytes, more than none.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Until the connection ends.
    UntilEnd,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is no HTTP/1 message.
    #[error("the head is malformed")]
    Malformed,
    /// The head is larger than [`MAX_HEAD`] or has more fields than [`MAX_FIELDS`].
    #[error("the head is too large")]
    TooLarge,
    /// A line ends with one of the two characters only, or has one inside.
    #[error("the head has a bare CR, LF or NUL")]
    BareControl,
    /// A field goes on in the next line.
    #[error("a field is folded")]
    Folded,
    /// The body has no length, or several.
    #[error("the length of the body is ambiguous")]
    Length,
    /// The body has a transfer coding other than chunks.
    #[error("the transfer coding is not known")]
    TransferCoding,
    /// There is no Host, there are several, or it is not that of the target.
    #[error("the host is ambiguous")]
    Host,
    /// The target is none that a server would be asked for.
    #[error("the target is malformed")]
    Target,
    /// A chunk is not one.
    #[error("a chunk is malformed")]
    Chunk,
    /// The version is not supported.
    #[error("the version is not supported")]
    Version,
    /// The client waits for something that is not a 100, or for what nobody knows.
    #[error("the expectation is not known")]
    Expectation,
}

/// A request and how it is framed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The request.
    pub request: Request,
    /// How long its body is.
    pub framing: Framing,
    /// Whether it is of HTTP/1.0.
    pub old: bool,
    /// How many bytes the head had.
    pub length: usize,
}

/// A response and how it is framed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The response.
    pub response: Response,
    /// How long its body is.
    pub framing: Framing,
    /// Whether it is of HTTP/1.0.
    pub old: bool,
    /// How many bytes the head had.
    pub length: usize,
}

/// Finds the end of a head and refuses what nobody should have to interpret.
fn extent(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let mut previous = 0;
    let mut line_is_empty = true;
    for (at, byte) in bytes.iter().enumerate().take(MAX_HEAD) {
        match *byte {
            b'\n' if previous != b'\r' => return Err(Fault::BareControl),
            b'\n' if line_is_empty && at > 1 => return Ok(Some(at + 1)),
            b'\n' => line_is_empty = true,
            _ if previous == b'\r' => return Err(Fault::BareControl),
            0 => return Err(Fault::BareControl),
            b'\r' => {}
            b' ' | b'\t' if line_is_empty && at > 0 => return Err(Fault::Folded),
            _ => line_is_empty = false,
        }
        previous = *byte;
    }
    if bytes.len() >= MAX_HEAD {
        return Err(Fault::TooLarge);
    }
    Ok(None)
}

fn failed(error: httparse::Error) -> Fault {
    match error {
        httparse::Error::TooManyHeaders => Fault::TooLarge,
        httparse::Error::Version => Fault::Version,
        _ => Fault::Malformed,
    }
}

pub(super) fn collect(headers: &[httparse::Header<'_>]) -> Fields {
    let field = |header: &httparse::Header<'_>| Field {
        name: header.name.to_ascii_lowercase(),
        value: header.value.trim_ascii().to_vec().into(),
    };
    Fields(headers.iter().map(field).collect())
}

/// Reads the head of a request; `None` when more bytes are needed.
///
/// # Errors
///
/// The request must not be passed on.
pub fn read_request(bytes: &[u8]) -> Result<Option<RequestHead>, Fault> {
    // An empty line may stand in front (RFC 9112, 2.2).
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let Some(length) = extent(&bytes[skipped..])? else {
        return Ok(None);
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut headers);
    let head = &bytes[skipped..skipped + length];
    match parsed.parse(head).map_err(failed)? {
        httparse::Status::Complete(read) if read == length => {}
        _ => return Err(Fault::Malformed),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Fault::Malformed);
    };
    let old = version == 0;
    let mut fields = collect(parsed.headers);
    check_fields(&fields)?;
    // Lower case methods are others, and taken for the same by some.
    if !method
        .bytes()
        .all(|b| b.is_ascii_graphic() && !b.is_ascii_lowercase())
    {
        return Err(Fault::Malformed);
    }
    let hosts: Vec<_> = fields.all("host").collect();
    let host = match hosts[..] {
        [host] => host,
        // Clients of HTTP/1.0 name a tunnel's end once.
        [] if old && method == "CONNECT" => target.as_bytes(),
        _ => return Err(Fault::Host),
    };
    let host = String::from_utf8(host.to_vec()).map_err(|_| Fault::Host)?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if host.is_empty() || !host.bytes().all(good) {
        return Err(Fault::Host);
    }
    let target = Zeroizing::new(origin_form(method, target, &host)?);
    let framing = match body_framing(&fields, old)? {
        // What follows is the tunnel's, or another request.
        Some(framing) if method == "CONNECT" && framing != Framing::None => {
            return Err(Fault::Length);
        }
        Some(framing) => framing,
        None => Framing::None,
    };
    fields.remove("host");
    let request = Request {
        method: method.into(),
        authority: match method {
            "CONNECT" => target.to_string(),
            _ => host,
        },
        target,
        fields,
    };
    Ok(Some(RequestHead {
        request,
        framing,
        old,
        length: skipped + length,
    }))
}

/// Brings a target into the form that a server of the host is asked in (RFC 9112, 3.2).
fn origin_form(method: &str, target: &str, host: &str) -> Result<String, Fault> {
    let graphic = target.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if !graphic {
        return Err(Fault::Target);
    }
    if method == "CONNECT" {
        let (name, port) = target.rsplit_once(':').ok_or(Fault::Target)?;
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Fault::Target);
        }
        // Some clients leave out the port in Host.
        let same = [target, name].map(|text| text.eq_ignore_ascii_case(host));
        return match same.contains(&true) {
            true => Ok(target.into()),
            false => Err(Fault::Host),
        };
    }
    if target.starts_with('/') || target == "*" && method == "OPTIONS" {
        return Ok(target.into());
    }
    let scheme = target
        .get(..7)
        .filter(|text| text.eq_ignore_ascii_case("http://"));
    let scheme = scheme.or(target
        .get(..8)
        .filter(|text| text.eq_ignore_ascii_case("https://")));
    let rest = &target[scheme.ok_or(Fault::Target)?.len()..];
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    if !rest[..end].eq_ignore_ascii_case(host) {
        return Err(Fault::Host);
    }
    match &rest[end..] {
        path if path.starts_with('/') => Ok(path.into()),
        query => Ok(format!("/{query}")),
    }
}

/// Refuses fields of a request that servers take for different things, whatever the version.
///
/// # Errors
///
/// The request must not be passed on.
pub fn check_fields(fields: &Fields) -> Result<(), Fault> {
    // Gateways to programs make the same variable of both spellings.
    let spelt = |name: &str| fields.0.iter().any(|field| field.name == name);
    if spelt("content_length") {
        return Err(Fault::Length);
    }
    if spelt("transfer_encoding") {
        return Err(Fault::TransferCoding);
    }
    // Whoever does not know one does not wait, or does (RFC 9110, 10.1.1).
    let mut expected = fields.all("expect");
    match (expected.next(), expected.next()) {
        (None, _) => Ok(()),
        (Some(own), None) if own.eq_ignore_ascii_case(b"100-continue") => Ok(()),
        _ => Err(Fault::Expectation),
    }
}

/// Tells whether a length is written in the one way that every reader takes for it.
pub fn is_length(text: &[u8]) -> bool {
    let digits = text.iter().all(u8::is_ascii_digit) && matches!(text.len(), 1..=18);
    digits && (text == b"0" || text[0] != b'0')
}

/// What the fields say about a body; `None` when they say nothing.
fn body_framing(fields: &Fields, old: bool) -> Result<Option<Framing>, Fault> {
    let codings: Vec<_> = fields.all("transfer-encoding").collect();
    let lengths: Vec<_> = fields.all("content-length").collect();
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(None),
        ([], [length]) => {
            let text = std::str::from_utf8(length).ok();
            let text = text.filter(|_| is_length(length));
            match text.and_then(|text| text.parse().ok()) {
                Some(0) => Ok(Some(Framing::None)),
                Some(length) => Ok(Some(Framing::Length(length))),
                None => Err(Fault::Length),
            }
        }
        ([coding], []) if !old && coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Framing::Chunked))
        }
        ([_], []) if !old => Err(Fault::TransferCoding),
        _ => Err(Fault::Length),
    }
}

/// Reads the head of the response to a request of this method; `None` when more
/// bytes are needed.
///
/// # Errors
///
/// The response must not be passed on.
pub fn read_response(bytes: &[u8], method: &str) -> Result<Option<ResponseHead>, Fault> {
    let Some(length) = extent(bytes)? else {
        return Ok(None);
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut headers);
    match parsed.parse(&bytes[..length]).map_err(failed)? {
        httparse::Status::Complete(read) if read == length => {}
        _ => return Err(Fault::Malformed),
    }
    let (Some(version), Some(status @ 100..=999)) = (parsed.version, parsed.code) else {
        return Err(Fault::Malformed);
    };
    let old = version == 0;
    let fields = collect(parsed.headers);
    let bodiless = method == "HEAD" || matches!(status, 100..=199 | 204 | 304);
    let framing = match body_framing(&fields, old)? {
        _ if bodiless => Framing::None,
        Some(framing) => framing,
        None => Framing::UntilEnd,
    };
    Ok(Some(ResponseHead {
        response: Response { status, fields },
        framing,
        old,
        length,
    }))
}

/// Fields that are about one connection and not about the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "http2-settings",
];

/// Takes out the fields that are about one connection, also those that the sender
/// says are. Returns the protocol that the sender wants to change to.
pub fn strip_hop_by_hop(fields: &mut Fields) -> Option<String> {
    let named: Vec<_> = fields.words("connection").collect();
    let upgrade = named.iter().any(|word| word == "upgrade");
    let protocol = fields.only("upgrade").map(String::from_utf8_lossy);
    let protocol = protocol.map(|text| text.to_ascii_lowercase());
    let trailers = fields.has_word("te", "trailers");
    // Length and host are not the sender's to take away.
    let kept = |name: &String| !matches!(&name[..], "content-length" | "host");
    let named: Vec<_> = named.into_iter().filter(kept).collect();
    fields
        .0
        .retain(|f| !HOP_BY_HOP.contains(&&f.name[..]) && !named.contains(&f.name));
    if trailers {
        fields.set("te", "trailers");
    }
    protocol.filter(|_| upgrade)
}

/// Writes fields and the empty line behind them.
pub fn write_fields(fields: &Fields, out: &mut impl Put) {
    for field in &fields.0 {
        out.put(field.name.as_bytes());
        out.put(b": ");
        out.put(&field.value);
        out.put(b"\r\n");
    }
    out.put(b"\r\n");
}
