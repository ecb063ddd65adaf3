//! The name a client gives for the host it wants, from its first bytes.
//!
//! Two protocols say it in the clear: TLS, in the server name of the ClientHello
//! (RFC 8446, 4.1.2; RFC 6066, 3), over any number of records; and HTTP/1, in
//! Host (RFC 9112, 3.2). Only what comes first is read: later requests of the same
//! connection, and what is inside TLS, are not.
//!
//! An answer that was given for some bytes holds for whatever follows them, but for
//! [`Claimed::Unclear`].

use crate::Name;
use crate::policy::{Claim, Transport};

/// The most bytes that are looked at: a ClientHello with post-quantum keys has
/// two thousand, servers take HTTP heads of about this size.
pub const MAX_EXAMINED: usize = 16 * 1024;

/// What a client's first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Nothing yet: more bytes are needed.
    Partial,
    /// They are neither TLS nor HTTP/1.
    Foreign,
    /// Neither yet, but they may become HTTP/1 with a method that is not known here. Nobody
    /// is kept waiting for that: whoever passes them on looks for it ([`Line`]).
    Unclear,
    /// They could have named a host and did not, or not in a way that everyone
    /// reads alike.
    Absent,
    /// This host.
    Name(Name),
}

impl Claimed {
    /// What it is to the policy, of a client that speaks first or might have to.
    pub(crate) fn by(&self, transport: Transport) -> Claim<'_> {
        match self {
            Self::Name(name) => Claim::Name(name),
            Self::Foreign | Self::Unclear if !transport.must_claim() => Claim::None,
            _ => Claim::Absent,
        }
    }
}

/// Reads a client's first bytes. With [`MAX_EXAMINED`] of them the answer is
/// never [`Claimed::Partial`].
///
/// ```
/// use msb_net::claim::{Claimed, examine};
///
/// let head = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n";
/// assert_eq!(examine(head), Claimed::Name("example.com".parse()?));
/// assert_eq!(examine(&head[..20]), Claimed::Partial);
/// assert_eq!(examine(b"SSH-2.0-OpenSSH_9.2\r\n"), Claimed::Foreign);
/// # Ok::<(), msb_net::Error>(())
/// ```
pub fn examine(bytes: &[u8]) -> Claimed {
    let full = bytes.len() >= MAX_EXAMINED;
    let bytes = &bytes[..bytes.len().min(MAX_EXAMINED)];
    let claimed = match bytes.first() {
        None => Claimed::Partial,
        Some(&HANDSHAKE) => tls(bytes).unwrap_or_else(|ended| match ended {
            Ended::Early => Claimed::Partial,
            Ended::Wrong => Claimed::Absent,
        }),
        Some(_) => http(bytes),
    };
    match claimed {
        Claimed::Partial if full => Claimed::Absent,
        claimed => claimed,
    }
}

/// Tells whether a client's first bytes ask a proxy for a tunnel: the host they name is
/// the tunnel's end, and not whoever is spoken to.
pub fn is_tunnel(bytes: &[u8]) -> bool {
    let token = CONNECT.trim_ascii_end();
    let begun = bytes.trim_ascii_start();
    // Behind more than is looked at of what servers skip it could be one.
    if bytes.len() >= MAX_EXAMINED && CONNECT.starts_with(begun) {
        return true;
    }
    let parts = begun.split_at_checked(token.len());
    // As the most generous of readers has it.
    parts.is_some_and(|(method, rest)| {
        method.eq_ignore_ascii_case(token) && rest.first().is_some_and(|byte| is_blank(*byte))
    })
}

/// Tells whether bytes are but what servers of HTTP skip before a request.
pub fn is_skipped(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().is_empty()
}

/// A client's first line, byte by byte: whether it is that of a request, whatever its
/// method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Line {
    /// Nothing, or what servers skip before a request: empty lines (RFC 9112, 2.2), and some
    /// blanks too.
    #[default]
    Start,
    /// A method, or whatever else is a token (RFC 9110, 5.6.2).
    Method,
    /// What stands behind it, with so many characters of the version at its end.
    Target(usize),
    /// It is the line of a request.
    Request,
    /// It is not, whatever follows.
    Other,
}

impl Line {
    /// Reads on.
    #[must_use]
    pub fn read(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |line, byte| line.next(*byte))
    }

    fn next(self, byte: u8) -> Self {
        /// How a version begins that stands behind a blank.
        const VERSION: &[u8] = b"HTTP/";
        match (self, byte) {
            (Self::Request | Self::Other, _) => self,
            (Self::Start, byte) if byte.is_ascii_whitespace() => Self::Start,
            (Self::Start | Self::Method, byte) if is_token(byte) => Self::Method,
            (Self::Method | Self::Target(_), byte) if is_blank(byte) => Self::Target(1),
            (Self::Start | Self::Method, _) | (Self::Target(_), b'\n' | 0) => Self::Other,
            (Self::Target(seen @ 1..), byte) if byte.eq_ignore_ascii_case(&VERSION[seen - 1]) => {
                match seen == VERSION.len() {
                    true => Self::Request,
                    false => Self::Target(seen + 1),
                }
            }
            (Self::Target(_), _) => Self::Target(0),
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What generous readers take for the blank between the parts of a line (RFC 9112, 3).
fn is_blank(byte: u8) -> bool {
    b" \t\x0b\x0c\r".contains(&byte)
}

/// The content type of a TLS record with handshake messages.
const HANDSHAKE: u8 = 22;
/// The longest TLS record in the clear (RFC 8446, 5.1).
const MAX_RECORD: usize = 1 << 14;

/// Why reading stopped.
enum Ended {
    /// The bytes ended; more may come.
    Early,
    /// The bytes are not what they should be.
    Wrong,
}

/// Takes `count` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Ended> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Ended::Early)?;
    *bytes = rest;
    Ok(taken)
}

/// Takes a big-endian number of `width` bytes, at most 3.
fn number(bytes: &mut &[u8], width: usize) -> Result<usize, Ended> {
    let digits = take(bytes, width)?;
    Ok(digits.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)))
}

/// Takes bytes that stand behind their length.
fn vector<'a>(bytes: &mut &'a [u8], width: usize) -> Result<&'a [u8], Ended> {
    let length = number(bytes, width)?;
    take(bytes, length)
}

fn tls(mut bytes: &[u8]) -> Result<Claimed, Ended> {
    let mut message = Vec::new();
    loop {
        if let Some(hello) = whole_message(&message)? {
            // Inside a whole message an early end is a wrong one.
            let name = server_name(hello).ok().flatten();
            return Ok(name.map_or(Claimed::Absent, Claimed::Name));
        }
        if number(&mut bytes, 1)? != usize::from(HANDSHAKE) || number(&mut bytes, 1)? != 3 {
            return Err(Ended::Wrong);
        }
        let _minor = number(&mut bytes, 1)?;
        let length = number(&mut bytes, 2)?;
        if length == 0 || length > MAX_RECORD {
            return Err(Ended::Wrong);
        }
        message.extend_from_slice(take(&mut bytes, length)?);
    }
}

/// Returns the body of the ClientHello once it is complete.
fn whole_message(mut message: &[u8]) -> Result<Option<&[u8]>, Ended> {
    const CLIENT_HELLO: u8 = 1;
    match message.first() {
        None => return Ok(None),
        Some(&CLIENT_HELLO) => {}
        Some(_) => return Err(Ended::Wrong),
    }
    let header = &mut message;
    let body = take(header, 1).and_then(|_| vector(header, 3));
    Ok(body.ok())
}

fn server_name(mut hello: &[u8]) -> Result<Option<Name>, Ended> {
    const SERVER_NAME: usize = 0;
    let hello = &mut hello;
    let _version_and_random = take(hello, 2 + 32)?;
    let _session = vector(hello, 1)?;
    let _ciphers = vector(hello, 2)?;
    let _compressions = vector(hello, 1)?;
    let mut extensions = vector(hello, 2)?;
    if !hello.is_empty() {
        return Err(Ended::Wrong);
    }
    let mut found = None;
    while !extensions.is_empty() {
        let kind = number(&mut extensions, 2)?;
        let mut body = vector(&mut extensions, 2)?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut list = vector(&mut body, 2)?;
        // One list, with one name, of the one type there is: readers disagree
        // about which of several counts.
        if found.is_some() || !body.is_empty() || number(&mut list, 1)? != 0 {
            return Err(Ended::Wrong);
        }
        let text = vector(&mut list, 2)?;
        if !list.is_empty() {
            return Err(Ended::Wrong);
        }
        found = Some(name(text).ok_or(Ended::Wrong)?);
    }
    Ok(found)
}

fn name(text: &[u8]) -> Option<Name> {
    Name::new(std::str::from_utf8(text).ok()?).ok()
}

/// The method that asks for a tunnel (RFC 9110, 9.3.6).
const CONNECT: &[u8] = b"CONNECT ";

/// Methods of HTTP and WebDAV, with the blank behind them: what begins like one waits for the
/// rest. With another one only the whole beginning of a line says that it is HTTP, so that
/// no other protocol is kept waiting.
const METHODS: &[&[u8]] = &[
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    CONNECT,
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
    b"PRI ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
    b"SEARCH ",
    // No method: the line that some servers take in front of a connection. What comes behind
    // it they serve, so it hides whom that is for.
    b"PROXY ",
];

/// The same in its other form, of which only the beginning is looked at.
const PROXIED: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn http(bytes: &[u8]) -> Claimed {
    if bytes.starts_with(PROXIED) {
        return Claimed::Absent;
    }
    // Behind the empty lines, whole requests may come as well.
    if bytes.contains(&0) && PROXIED.starts_with(bytes) {
        return Claimed::Partial;
    }
    let bytes = bytes.trim_ascii_start();
    let known = METHODS.iter().find(|method| bytes.starts_with(method));
    let method = match (known, Line::default().read(bytes)) {
        (Some(method), _) => method,
        _ if METHODS.iter().any(|method| method.starts_with(bytes)) => return Claimed::Partial,
        (None, Line::Other) => return Claimed::Foreign,
        (None, Line::Request) => {
            let length = bytes.iter().take_while(|byte| is_token(**byte)).count();
            match &bytes[..=length] {
                method if method.ends_with(b" ") => method,
                _ => return Claimed::Absent,
            }
        }
        (None, _) => return Claimed::Unclear,
    };
    let Some(end) = find(bytes, b"\n") else {
        return Claimed::Partial;
    };
    let Some(line) = bytes[..end].strip_suffix(b"\r") else {
        return Claimed::Absent;
    };
    let mut parts = line[method.len()..].split(|byte| *byte == b' ');
    let (target, version) = (parts.next(), parts.next());
    let (Some(target), Some(b"HTTP/1.0" | b"HTTP/1.1"), None) = (target, version, parts.next())
    else {
        // HTTP/2 without TLS, or nothing we know.
        return Claimed::Absent;
    };
    let rest = &bytes[end + 1..];
    // A head without any field ends at once.
    let length = match rest.starts_with(b"\r\n") {
        true => Some(0),
        false => find(rest, b"\r\n\r\n").map(|length| length + 2),
    };
    let Some(length) = length else {
        return Claimed::Partial;
    };
    let (Ok(field), Ok(target)) = (host_field(&rest[..length]), host_of_target(target, method))
    else {
        return Claimed::Absent;
    };
    match (field, target) {
        (Some(host), None) => Claimed::Name(host),
        (Some(host), Some(other)) if host == other => Claimed::Name(host),
        // Clients of HTTP/1.0 name a tunnel's end once.
        (None, Some(host)) if is_tunnel(bytes) && version == Some(&b"HTTP/1.0"[..]) => {
            Claimed::Name(host)
        }
        _ => Claimed::Absent,
    }
}

/// The host that the request target itself names, in absolute form or CONNECT.
fn host_of_target(target: &[u8], method: &[u8]) -> Result<Option<Name>, ()> {
    if method == CONNECT {
        return host(target).map(Some).ok_or(());
    }
    if target.starts_with(b"/") || target == b"*" {
        return Ok(None);
    }
    let rest = target
        .split_at_checked(7)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"http://"))
        .map(|(_, rest)| rest)
        .ok_or(())?;
    let authority = rest
        .split(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .next()
        .unwrap_or(rest);
    host(authority).map(Some).ok_or(())
}

/// The one Host field of a head, if there is one; an error where there is room for doubt.
fn host_field(fields: &[u8]) -> Result<Option<Name>, ()> {
    let mut found = None;
    for line in fields.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            continue;
        }
        let line = line.strip_suffix(b"\r").ok_or(())?;
        let colon = find(line, b":").ok_or(())?;
        let (key, value) = (&line[..colon], &line[colon + 1..]);
        // Folded lines, blanks before the colon and stray control characters are
        // what request smuggling is made of (RFC 9112, 5.1, 5.2, 2.2).
        let token = |byte: &u8| byte.is_ascii_graphic();
        let text = |byte: &u8| !byte.is_ascii_control() || *byte == b'\t';
        if key.is_empty() || !key.iter().all(token) || !value.iter().all(text) {
            return Err(());
        }
        if key.eq_ignore_ascii_case(b"host") {
            if found.is_some() {
                return Err(());
            }
            found = Some(host(value.trim_ascii()).ok_or(())?);
        }
    }
    Ok(found)
}

/// A host with or without a port.
fn host(authority: &[u8]) -> Option<Name> {
    let mut parts = authority.split(|byte| *byte == b':');
    let host = parts.next()?;
    let port = parts.next().unwrap_or(b"");
    if parts.next().is_some() || !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    name(host)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(width: usize, body: &[u8]) -> Vec<u8> {
        let length = body.len().to_be_bytes();
        [&length[length.len() - width..], body].concat()
    }

    fn sni(names: &[&str]) -> Vec<u8> {
        let entry = |name: &&str| [&[0][..], &vector(2, name.as_bytes())].concat();
        let list = names.iter().map(entry).collect::<Vec<_>>().concat();
        [&[0, 0][..], &vector(2, &vector(2, &list))].concat()
    }

    /// A ClientHello with these extensions, in records of at most `size` bytes.
    fn hello(extensions: &[Vec<u8>], size: usize) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &vector(1, &[9; 32]),
            &vector(2, &[0x13, 1]),
            &vector(1, &[0]),
            &vector(2, &extensions.concat()),
        ]
        .concat();
        let message = [&[1][..], &vector(3, &body)].concat();
        let record = |part: &[u8]| [&[22, 3, 1][..], &vector(2, part)].concat();
        message
            .chunks(size)
            .map(record)
            .collect::<Vec<_>>()
            .concat()
    }

    fn named(name: &str) -> Claimed {
        Claimed::Name(Name::new(name).unwrap())
    }

    #[test]
    fn the_server_name_is_found_over_any_records() {
        let padding = [&[0, 21][..], &vector(2, &[0; 200])].concat();
        for size in [1, 2, 5, 100, 16_000] {
            let bytes = hello(&[padding.clone(), sni(&["Example.COM"])], size);
            assert_eq!(examine(&bytes), named("example.com"), "{size}");
            for end in 0..bytes.len() {
                assert_eq!(examine(&bytes[..end]), Claimed::Partial, "{size}: {end}");
            }
        }
    }

    #[test]
    fn a_hello_without_one_clear_name_claims_none() {
        let long = "a".repeat(300);
        for extensions in [
            vec![],
            vec![sni(&["a.example", "b.example"])],
            vec![sni(&["a.example"]), sni(&["a.example"])],
            vec![sni(&[])],
            vec![sni(&["1.2.3.4"])],
            vec![sni(&["a\0.example"])],
            vec![sni(&[&long])],
            vec![vec![0, 0, 0, 9, 0]],
        ] {
            let bytes = hello(&extensions, 16_000);
            assert_eq!(examine(&bytes), Claimed::Absent, "{extensions:?}");
        }
    }

    #[test]
    fn a_hello_without_end_is_given_up() {
        let mut bytes = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
        bytes.resize(MAX_EXAMINED - 1, 0);
        assert_eq!(examine(&bytes), Claimed::Partial);
        bytes.push(0);
        assert_eq!(examine(&bytes), Claimed::Absent);
    }

    #[test]
    fn the_host_of_a_request_is_found() {
        for (head, host) in [
            ("GET / HTTP/1.1\r\nHost: Example.com\r\n\r\n", "example.com"),
            (
                "GET / HTTP/1.1\r\nA: b\r\nhost:example.com:8080\r\n\r\nbody",
                "example.com",
            ),
            (
                "GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n",
                "example.com",
            ),
            (
                "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
                "example.com",
            ),
            (
                "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
                "example.com",
            ),
            ("CONNECT example.com:443 HTTP/1.0\r\n\r\n", "example.com"),
            (
                "CONNECT example.com:443 HTTP/1.0\r\nA: b\r\n\r\n",
                "example.com",
            ),
            (
                "OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n",
                "example.com",
            ),
        ] {
            assert_eq!(examine(head.as_bytes()), named(host), "{head:?}");
        }
    }

    #[test]
    fn a_request_that_can_be_read_two_ways_claims_none() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
            "GET / HTTP/1.1\nHost: a.example\n\n",
            "GET / HTTP/1.1\r\nA: b\nHost: a.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\nA: \rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\nA: \0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: 1.2.3.4\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a.example\r\n\r\n",
            "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "CONNECT a.example:443 HTTP/1.1\r\n\r\n",
            "CONNECT a.example:443 HTTP/1.1\r\nA: b\r\n\r\n",
            "CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n",
            "CONNECT a.example:443 HTTP/1.0\r\nHost: b.example\r\n\r\n",
            "CONNECT 1.2.3.4:443 HTTP/1.0\r\n\r\n",
            "GET http://a.example/ HTTP/1.0\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a.example\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(examine(head.as_bytes()), Claimed::Absent, "{head:?}");
        }
    }

    /// What servers skip hides nothing from here, nor does a method that only they know.
    #[test]
    fn requests_are_found_behind_empty_lines_and_with_any_method() {
        for head in [
            "\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "\n\r\n \nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "\r\nCONNECT a.example:443 HTTP/1.0\r\n\r\n",
            "X / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "\r\nmkcalendar /x HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ] {
            assert_eq!(examine(head.as_bytes()), named("a.example"), "{head:?}");
        }
        for head in ["\r\n", "\r\nGE", "X / HTTP/", "X / HTTP/1.1\r\nHost:"] {
            assert_eq!(examine(head.as_bytes()), Claimed::Partial, "{head:?}");
        }
        for head in [
            "X\t/ HTTP/1.1\r\n",
            "X /\x0bhttp/1.1\r\n",
            "GET\t/ HTTP/1.1\r\n",
        ] {
            assert_eq!(examine(head.as_bytes()), Claimed::Absent, "{head:?}");
        }
        for head in ["CONNECT a", "\r\nCONNECT a", "\n connect\ta", "Connect\ra"] {
            assert!(is_tunnel(head.as_bytes()), "{head:?}");
        }
        for end in ["", "CONN"] {
            let head = format!("{}{end}", "\r\n".repeat(MAX_EXAMINED / 2));
            assert!(is_tunnel(head.as_bytes()), "{end}");
        }
        for head in ["\r\n", "CONNECT", "CONNECTED ", "XCONNECT ", "GET CONNECT "] {
            assert!(!is_tunnel(head.as_bytes()), "{head:?}");
        }
    }

    /// Servers behind others take a word about the client in front of what it says.
    #[test]
    fn what_proxies_say_in_front_names_nobody() {
        for front in [
            &b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"[..],
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        ] {
            for behind in [
                &b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"[..],
                b"\x16\x03\x01",
                b"",
            ] {
                let bytes = [front, behind].concat();
                assert_eq!(examine(&bytes), Claimed::Absent, "{bytes:?}");
                for length in 0..front.len() {
                    let early = examine(&bytes[..length]);
                    assert!(
                        matches!(early, Claimed::Partial | Claimed::Absent),
                        "{length}"
                    );
                }
            }
        }
        assert_eq!(examine(b"\r\n\r\n\0\x01"), Claimed::Foreign);
    }

    #[test]
    fn other_protocols_are_not_kept_waiting() {
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"EHLO me\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"SSH-2.0-OpenSSH_9.2 Debian-2\r\n",
            b"003egit-upload-pack /project.git\0host=a.example\0",
            b"<?xml version='1.0'?>",
            b"FOO /\r\n HTTP/1.1\r\n",
        ] {
            assert_eq!(examine(bytes), Claimed::Foreign, "{bytes:?}");
        }
        for bytes in [&b"GIT"[..], b"hello", b"FOO ", b"FOO / HTTP", b"\r\nFOO"] {
            assert_eq!(examine(bytes), Claimed::Unclear, "{bytes:?}");
        }
        assert_eq!(examine(b""), Claimed::Partial);
        assert_eq!(examine(b"PROPF"), Claimed::Partial);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(
            head in prop::sample::select(vec![&b""[..], b"GET / HTTP/1.1\r\nHost: ", b"\x16\x03\x01"]),
            tail in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            crate::fuzzing::claim(&[head, &tail].concat());
        }

        #[test]
        fn changed_hellos_keep_their_answers(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = hello(&[sni(&["a.example"])], 40);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            crate::fuzzing::claim(&bytes);
        }
    }
}
