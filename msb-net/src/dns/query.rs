//! A guest's query, read without copying it.
//!
//! Read RFC 1035, 4.1, and RFC 6891, 6.1. Exactly one question, about a name that
//! is written out; of everything behind it only the OPT record is looked at, and
//! of that neither options nor anything else a guest could send out of the sandbox.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Rcode, RecordKind};
use crate::Name;

/// The length of a message's header.
pub(super) const HEADER: usize = 12;

/// The longest name in wire form, its final empty label included (RFC 1035, 2.3.4).
const MAX_WIRE_NAME: usize = 255;

/// Records a query may carry behind its question. An OPT and a signature are
/// usual; more have no use.
const MAX_ADDITIONAL: u16 = 4;

/// The class of the Internet.
const CLASS_IN: u16 = 1;

/// The header's flags that matter here.
pub(super) const RESPONSE: u16 = 0x8000;
pub(super) const OPCODE: u16 = 0x7800;
pub(super) const TRUNCATED: u16 = 0x0200;
pub(super) const RECURSION_DESIRED: u16 = 0x0100;
pub(super) const RECURSION_AVAILABLE: u16 = 0x0080;
pub(super) const AUTHENTIC: u16 = 0x0020;
pub(super) const CHECKING_DISABLED: u16 = 0x0010;

/// In a cache key: signatures are wanted.
pub(crate) const FLAG_DNSSEC_OK: u8 = 1;
/// In a cache key: the server must not check signatures.
pub(crate) const FLAG_CHECKING_DISABLED: u8 = 2;

/// One query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query<'a> {
    pub(crate) id: u16,
    pub(super) flags: u16,
    /// Name, type and class as they were sent. Empty when they cannot be read.
    pub(super) question: Cow<'a, [u8]>,
    pub(crate) kind: RecordKind,
    pub(crate) edns: Option<Edns>,
}

/// What a query says of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    /// The largest datagram it takes.
    pub(super) size: u16,
    /// Whether it wants signatures.
    pub(super) dnssec_ok: bool,
}

/// Why a message is not answered by looking for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable<'a> {
    /// It is no query.
    NotAQuery,
    /// It is one that gets this code, as far as it could be read.
    Refused(Query<'a>, Rcode),
}

impl<'a> Query<'a> {
    /// Reads a message of a guest.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Unreadable<'a>> {
        let word = |at| be16(message, at);
        let (Some(id), Some(flags), Some(questions)) = (word(0), word(2), word(4)) else {
            return Err(Unreadable::NotAQuery);
        };
        let (Some(answers), Some(authorities), Some(additional)) = (word(6), word(8), word(10))
        else {
            return Err(Unreadable::NotAQuery);
        };
        if flags & RESPONSE != 0 {
            return Err(Unreadable::NotAQuery);
        }
        let mut query = Self {
            id,
            flags,
            question: Cow::Borrowed(&[]),
            kind: RecordKind(0),
            edns: None,
        };
        if flags & OPCODE != 0 {
            return Err(Unreadable::Refused(query, Rcode::NOT_IMPLEMENTED));
        }
        let end = written_name(message, HEADER);
        let Some(end) = end.filter(|_| questions == 1 && answers == 0 && authorities == 0) else {
            return Err(Unreadable::Refused(query, Rcode::FORMAT_ERROR));
        };
        let (Some(kind), Some(class)) = (word(end), word(end + 2)) else {
            return Err(Unreadable::Refused(query, Rcode::FORMAT_ERROR));
        };
        query.kind = RecordKind(kind);
        query.question = Cow::Borrowed(&message[HEADER..end + 4]);
        if let Err(code) = query.read_additional(message, end + 4, additional) {
            return Err(Unreadable::Refused(query, code));
        }
        if class != CLASS_IN || query.kind.is_meta() {
            return Err(Unreadable::Refused(query, Rcode::REFUSED));
        }
        Ok(query)
    }

    fn read_additional(&mut self, message: &[u8], mut at: usize, count: u16) -> Result<(), Rcode> {
        if count > MAX_ADDITIONAL {
            return Err(Rcode::FORMAT_ERROR);
        }
        let mut version = 0;
        for _ in 0..count {
            let record = Record::read(message, at).ok_or(Rcode::FORMAT_ERROR)?;
            if record.kind == RecordKind::OPT {
                let root = message.get(at) == Some(&0);
                if self.edns.is_some() || !root {
                    return Err(Rcode::FORMAT_ERROR);
                }
                let ttl = record.ttl(message).ok_or(Rcode::FORMAT_ERROR)?;
                self.edns = Some(Edns {
                    size: record.class,
                    dnssec_ok: ttl & 0x8000 != 0,
                });
                version = (ttl >> 16) & 0xff;
            }
            at = record.end;
        }
        if version == 0 {
            Ok(())
        } else {
            Err(Rcode::BAD_VERSION)
        }
    }

    /// Returns the name asked for, in wire form as it was written.
    pub(crate) fn name(&self) -> &[u8] {
        let end = self.question.len().saturating_sub(4);
        &self.question[..end]
    }

    /// Writes what the answer depends on: name in lower case, type, flags.
    pub(crate) fn key(&self, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.name());
        key.make_ascii_lowercase();
        key.extend(self.kind.0.to_be_bytes());
        key.push(self.key_flags());
    }

    pub(crate) fn key_flags(&self) -> u8 {
        let disabled = self.flags & CHECKING_DISABLED != 0;
        u8::from(self.wants_signatures()) * FLAG_DNSSEC_OK
            + u8::from(disabled) * FLAG_CHECKING_DISABLED
    }

    pub(super) fn wants_signatures(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The largest answer that may go back as a datagram, within `room`.
    pub(crate) fn datagram_limit(&self, room: usize) -> usize {
        // RFC 6891, 6.2.3: less than 512 means 512.
        let size = self.edns.map_or(512, |edns| edns.size.max(512));
        usize::from(size).min(room)
    }

    pub(crate) fn into_owned(self) -> Query<'static> {
        Query {
            question: Cow::Owned(self.question.into_owned()),
            id: self.id,
            flags: self.flags,
            kind: self.kind,
            edns: self.edns,
        }
    }
}

/// The fixed part of a resource record, and where it ends.
pub(super) struct Record {
    pub(super) kind: RecordKind,
    class: u16,
    /// Where its time to live is.
    pub(super) ttl_at: usize,
    pub(super) end: usize,
}

impl Record {
    pub(super) fn read(message: &[u8], at: usize) -> Option<Self> {
        let fixed = skip_name(message, at)?;
        let length = be16(message, fixed + 8)?;
        let end = fixed + 10 + usize::from(length);
        (end <= message.len()).then_some(())?;
        Some(Self {
            kind: RecordKind(be16(message, fixed)?),
            class: be16(message, fixed + 2)?,
            ttl_at: fixed + 4,
            end,
        })
    }

    fn ttl(&self, message: &[u8]) -> Option<u32> {
        let bytes = message.get(self.ttl_at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    }
}

pub(super) fn be16(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

/// Finds the end of a name that is written out.
fn written_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => at += length,
            _ => return None,
        }
    }
    (at - start <= MAX_WIRE_NAME).then_some(at)
}

/// Finds the end of a name that may end in a pointer, without following it.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            0xc0..=0xff => return Some(at + 2),
            _ => return None,
        }
    }
}

/// The labels of a written-out name.
fn labels(mut name: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&length, rest) = name.split_first()?;
        let (label, rest) = rest.split_at_checked(length.into())?;
        name = rest;
        (length > 0).then_some(label)
    })
}

/// Writes a name for people; bytes that do not print as `\DDD` (RFC 1035, 5.1).
pub(crate) fn text(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for label in labels(name) {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                0x21..=0x7e => text.push(char::from(byte.to_ascii_lowercase())),
                // Writing to a string does not fail.
                _ => drop(write!(text, "\\{byte:03}")),
            }
        }
    }
    if text.is_empty() {
        text.push('.');
    }
    text
}

/// The name as one that rules can speak of; `None` if no host can have it.
pub(crate) fn host_name<'a>(mut labels: impl Iterator<Item = &'a [u8]>) -> Option<Name> {
    let mut text = String::new();
    labels.try_for_each(|label| {
        if !text.is_empty() {
            text.push('.');
        }
        let label = std::str::from_utf8(label).ok()?;
        // A dot inside a label would make another name of it.
        (!label.contains('.')).then(|| text.push_str(label))
    })?;
    Name::new(&text).ok()
}

impl Query<'_> {
    /// The name asked for, if rules can speak of it.
    pub(crate) fn host_name(&self) -> Option<Name> {
        host_name(labels(self.name()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query for `name`, with an OPT record of this size if there is one.
    pub(crate) fn query(id: u16, name: &str, kind: RecordKind, size: Option<u16>) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(size.is_some())]);
        message.extend(question(name, kind));
        if let Some(size) = size {
            message.extend([0, 0, 41]);
            message.extend(size.to_be_bytes());
            message.extend([0; 6]);
        }
        message
    }

    pub(crate) fn question(name: &str, kind: RecordKind) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend(kind.0.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        bytes
    }

    fn code(message: &[u8]) -> Option<Rcode> {
        match Query::parse(message) {
            Err(Unreadable::Refused(_, code)) => Some(code),
            Err(Unreadable::NotAQuery) | Ok(_) => None,
        }
    }

    proptest! {
        #[test]
        fn no_message_breaks_the_reader(data in prop::collection::vec(any::<u8>(), 0..300)) {
            crate::fuzzing::dns_query(&data);
        }

        #[test]
        fn no_damage_breaks_the_reader(
            name in "([a-zA-Z0-9_-]{1,20}\\.){1,8}",
            size in prop::option::of(any::<u16>()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut message = query(7, &name, RecordKind::A, size);
            for (index, byte) in changes {
                let at = index.index(message.len());
                message[at] = byte;
            }
            crate::fuzzing::dns_query(&message);
        }
    }

    #[test]
    fn a_query_is_read() {
        let message = query(0x1234, "Www.Example.COM", RecordKind::A, Some(4096));
        let query = Query::parse(&message).unwrap();
        assert_eq!((query.id, query.kind), (0x1234, RecordKind::A));
        assert_eq!(query.host_name().unwrap().as_str(), "www.example.com");
        assert_eq!(text(query.name()), "www.example.com");
        assert_eq!(query.datagram_limit(65_000), 4096);
        assert_eq!(query.datagram_limit(1400), 1400);
        let mut key = Vec::new();
        query.key(&mut key);
        assert_eq!(key, b"\x03www\x07example\x03com\0\0\x01\0");
    }

    #[test]
    fn odd_names_are_shown_and_are_nobodys() {
        let mut message = query(1, "a.b", RecordKind::A, None);
        message[13] = b'.';
        let dotted = Query::parse(&message).unwrap();
        assert_eq!(text(dotted.name()), "\\..b");
        assert_eq!(dotted.host_name(), None);
        message[13] = 0xff;
        let binary = Query::parse(&message).unwrap();
        assert_eq!(text(binary.name()), "\\255.b");
        assert_eq!(binary.host_name(), None);
        let root = query(1, ".", RecordKind(2), None);
        assert_eq!(text(Query::parse(&root).unwrap().name()), ".");
    }

    #[test]
    fn what_is_no_plain_question_gets_its_code() {
        let good = query(1, "example.com", RecordKind::A, Some(1232));
        let with = |at: usize, byte| {
            let mut message = good.clone();
            message[at] = byte;
            message
        };
        let class = good.len() - 11 - 1;
        let version = good.len() - 11 + 6;
        for (message, expected) in [
            (with(2, 0x29), Rcode::NOT_IMPLEMENTED), // an update
            (with(5, 2), Rcode::FORMAT_ERROR),
            (with(5, 0), Rcode::FORMAT_ERROR),
            (with(7, 1), Rcode::FORMAT_ERROR),
            (with(9, 1), Rcode::FORMAT_ERROR),
            (with(11, 2), Rcode::FORMAT_ERROR),
            (with(10, 1), Rcode::FORMAT_ERROR),
            (with(12, 0xc0), Rcode::FORMAT_ERROR),
            (with(12, 0x40), Rcode::FORMAT_ERROR),
            (with(class, 3), Rcode::REFUSED),       // CHAOS
            (with(class - 2, 255), Rcode::REFUSED), // ANY
            (with(class - 2, 252), Rcode::REFUSED), // AXFR
            (with(version, 1), Rcode::BAD_VERSION),
        ] {
            assert_eq!(code(&message), Some(expected), "{message:02x?}");
        }
        assert_eq!(Query::parse(&with(2, 0x81)), Err(Unreadable::NotAQuery));
        for end in 0..good.len() {
            assert!(Query::parse(&good[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert!(Query::parse(&query(1, &longest, RecordKind::A, None)).is_ok());
        let longer = format!("{label}.{label}.{label}.{}", "a".repeat(62));
        let longer = query(1, &longer, RecordKind::A, None);
        assert_eq!(code(&longer), Some(Rcode::FORMAT_ERROR));
    }
}
