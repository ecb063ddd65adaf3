//! What a reply says, apart from whom it is for, and how it becomes a message.
//!
//! A body is kept as bytes behind a header and a question that have the length of
//! the query's own. Pointers of its records into the question so stay right, and a
//! reply is a copy with a few bytes changed.

use std::net::IpAddr;

use super::query::{
    AUTHENTIC, CHECKING_DISABLED, HEADER, RECURSION_AVAILABLE, RECURSION_DESIRED, RESPONSE, Record,
    TRUNCATED,
};
use super::{Query, Rcode, RecordKind};

/// The datagram we tell others that we take: what crosses any network in one piece
/// (RFC 9715, 3).
pub(crate) const UDP_SIZE: u16 = 1232;

/// The longest text of a note in bytes: with the longest question it still fits
/// the smallest datagram.
const MAX_NOTE: usize = 200;

/// The code of the option that carries a note (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// An extended error: what is the matter, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    code: u16,
    text: String,
}

impl Note {
    /// Nothing that has a number of its own.
    pub(crate) const OTHER: u16 = 0;
    /// The resolver cannot answer yet.
    pub(crate) const NOT_READY: u16 = 14;
    /// Whoever runs the resolver does not want it answered.
    pub(crate) const BLOCKED: u16 = 15;
    /// Whoever sent the query asked for less than everything.
    pub(crate) const FILTERED: u16 = 17;
    /// That is not done here.
    pub(crate) const NOT_SUPPORTED: u16 = 21;
    /// No server answered.
    pub(crate) const NETWORK_ERROR: u16 = 23;
    /// The servers' answers are of no use.
    pub(crate) const INVALID_DATA: u16 = 24;

    pub(crate) fn new(code: u16, mut text: String) -> Self {
        if text.len() > MAX_NOTE {
            let end = (0..=MAX_NOTE).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or(0));
        }
        Self { code, text }
    }
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) code: Rcode,
    /// The server has checked the signatures.
    pub(super) authentic: bool,
    answers: u16,
    authorities: u16,
    /// The records, to stand behind header and question.
    records: Vec<u8>,
    /// Where in `records` their times to live are.
    ttls: Vec<u16>,
    pub(super) note: Option<Note>,
}

impl Body {
    /// A reply without records.
    pub(crate) fn empty(code: Rcode, note: Option<Note>) -> Self {
        Self {
            code,
            authentic: false,
            answers: 0,
            authorities: 0,
            records: Vec::new(),
            ttls: Vec::new(),
            note,
        }
    }

    /// A reply with addresses of the name asked for.
    pub(super) fn addresses(addresses: &[IpAddr], ttl: u32) -> Self {
        let mut body = Self::empty(Rcode::NO_ERROR, None);
        for address in addresses {
            let (kind, octets) = match address {
                IpAddr::V4(v4) => (RecordKind::A, v4.octets().to_vec()),
                IpAddr::V6(v6) => (RecordKind::AAAA, v6.octets().to_vec()),
            };
            // A pointer to the question's name, type, class IN.
            body.records.extend([0xc0, HEADER as u8]);
            body.records.extend(kind.0.to_be_bytes());
            body.records.extend([0, 1]);
            body.records.extend(ttl.to_be_bytes());
            body.records.extend((octets.len() as u16).to_be_bytes());
            body.records.extend(octets);
            body.answers += 1;
        }
        body
    }

    /// Takes the records out of a message that has a question of `question` bytes
    /// and no additional section. `None` when it is not such a message.
    pub(super) fn from_message(code: Rcode, message: &[u8], question: usize) -> Option<Self> {
        let start = HEADER + question;
        let counts: &[u8; 4] = message.get(6..)?.first_chunk()?;
        let [answers, authorities] = [[counts[0], counts[1]], [counts[2], counts[3]]];
        let mut body = Self {
            answers: u16::from_be_bytes(answers),
            authorities: u16::from_be_bytes(authorities),
            records: message.get(start..)?.to_vec(),
            ..Self::empty(code, None)
        };
        let mut at = start;
        for _ in 0..usize::from(body.answers) + usize::from(body.authorities) {
            let record = Record::read(message, at)?;
            body.ttls.push((record.ttl_at - start).try_into().ok()?);
            at = record.end;
        }
        (at == message.len()).then_some(body)
    }

    /// The memory it takes, in bytes.
    pub(crate) fn size(&self) -> usize {
        let note = self.note.as_ref().map_or(0, |note| note.text.len());
        self.records.len() + 2 * self.ttls.len() + note
    }

    /// Writes the reply to a query, `age` seconds after the body was made, in at
    /// most `limit` bytes: what does not fit is left out, and the reply says so.
    pub(crate) fn reply(&self, query: &Query<'_>, age: u32, limit: usize, reply: &mut Vec<u8>) {
        let extra = match (&query.edns, &self.note) {
            (None, _) => 0,
            (Some(_), None) => 11,
            (Some(_), Some(note)) => 11 + 6 + note.text.len(),
        };
        let length = HEADER + query.question.len() + self.records.len() + extra;
        let truncated = length > limit;
        let (answers, authorities) = match truncated {
            true => (0, 0),
            false => (self.answers, self.authorities),
        };
        reply.clear();
        reply.reserve(length);
        reply.extend(query.id.to_be_bytes());
        reply.extend(self.flags(query, truncated).to_be_bytes());
        reply.extend([0, u8::from(!query.question.is_empty())]);
        reply.extend(answers.to_be_bytes());
        reply.extend(authorities.to_be_bytes());
        reply.extend([0, u8::from(query.edns.is_some())]);
        reply.extend_from_slice(&query.question);
        if !truncated {
            let start = reply.len();
            reply.extend_from_slice(&self.records);
            self.grow_old(&mut reply[start..], age);
        }
        if query.edns.is_some() {
            self.write_opt(query, reply);
        }
    }

    fn flags(&self, query: &Query<'_>, truncated: bool) -> u16 {
        let kept = query.flags & (RECURSION_DESIRED | CHECKING_DISABLED);
        // RFC 6840, 5.8: only those who ask for it are told.
        let asks = query.flags & AUTHENTIC != 0 || query.wants_signatures();
        let authentic = if self.authentic && asks { AUTHENTIC } else { 0 };
        let truncated = if truncated { TRUNCATED } else { 0 };
        RESPONSE | RECURSION_AVAILABLE | kept | authentic | truncated | (self.code.0 & 0xf)
    }

    fn grow_old(&self, records: &mut [u8], age: u32) {
        if age == 0 {
            return;
        }
        for at in &self.ttls {
            let rest = records.get_mut(usize::from(*at)..);
            if let Some(ttl) = rest.and_then(|rest| rest.first_chunk_mut()) {
                *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
            }
        }
    }

    fn write_opt(&self, query: &Query<'_>, reply: &mut Vec<u8>) {
        reply.push(0);
        reply.extend(RecordKind::OPT.0.to_be_bytes());
        reply.extend(UDP_SIZE.to_be_bytes());
        let signatures = if query.wants_signatures() { 0x80 } else { 0 };
        reply.extend([(self.code.0 >> 4) as u8, 0, signatures, 0]);
        let Some(note) = &self.note else {
            return reply.extend([0, 0]);
        };
        let option = 2 + note.text.len() as u16;
        reply.extend((4 + option).to_be_bytes());
        reply.extend(EXTENDED_ERROR.to_be_bytes());
        reply.extend(option.to_be_bytes());
        reply.extend(note.code.to_be_bytes());
        reply.extend_from_slice(note.text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use hickory_proto::rr::rdata::opt::EdnsCode;

    use super::super::query::tests::query;
    use super::*;

    fn reply(body: &Body, query: &[u8], age: u32, limit: usize) -> Vec<u8> {
        let mut reply = Vec::new();
        body.reply(&Query::parse(query).unwrap(), age, limit, &mut reply);
        reply
    }

    #[test]
    fn a_denial_fits_the_smallest_datagram_and_says_why() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let note = Note::new(Note::BLOCKED, "ü".repeat(500));
        let body = Body::empty(Rcode::NO_SUCH_NAME, Some(note));
        let query = query(7, &longest, RecordKind::A, Some(0));
        let bytes = reply(&body, &query, 0, 512);
        let message = Message::from_vec(&bytes).expect("another reader takes it");
        assert_eq!(message.metadata.id, 7);
        assert!(!message.metadata.truncation);
        let option = message.edns.unwrap();
        assert!(option.option(EdnsCode::Unknown(15)).is_some());
    }

    #[test]
    fn without_edns_there_is_no_opt_record() {
        let body = Body::empty(Rcode::REFUSED, Some(Note::new(15, "no".into())));
        let bytes = reply(&body, &query(7, "a.example", RecordKind::A, None), 0, 512);
        assert_eq!(Message::from_vec(&bytes).unwrap().edns, None);
        assert_eq!(bytes.len(), HEADER + 11 + 4);
    }

    #[test]
    fn a_name_keeps_the_case_it_was_asked_for_in() {
        let body = Body::addresses(&["192.0.2.1".parse().unwrap()], 60);
        let query = query(7, "HoSt.example", RecordKind::A, None);
        let message = Message::from_vec(&reply(&body, &query, 0, 512)).unwrap();
        assert_eq!(message.answers[0].name.to_string(), "HoSt.example.");
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let body = Body::addresses(&many, 60);
        let query = query(7, "host.example", RecordKind::A, None);
        let message = Message::from_vec(&reply(&body, &query, 0, 512)).unwrap();
        assert!(message.metadata.truncation);
        assert!(message.answers.is_empty());
        let message = Message::from_vec(&reply(&body, &query, 0, 65_535)).unwrap();
        assert_eq!(message.answers.len(), 100);
    }

    #[test]
    fn times_to_live_run_down() {
        let query = query(7, "host.example", RecordKind::A, None);
        let fresh = reply(
            &Body::addresses(&["192.0.2.1".parse().unwrap()], 60),
            &query,
            0,
            512,
        );
        let body = Body::from_message(Rcode::NO_ERROR, &fresh, 18).unwrap();
        for (age, left) in [(0, 60), (59, 1), (100, 0)] {
            let message = Message::from_vec(&reply(&body, &query, age, 512)).unwrap();
            assert_eq!(message.answers[0].ttl, left);
        }
    }
}
