//! Properties that must hold for any input; each function panics where one does not.

pub mod ambiguous;
pub(crate) mod decode;
mod request;
mod secret;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::{EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};

use hickory_proto::op::Message;

pub use self::request::{content_coding, http_relay, http1_head, request_path};
pub use self::secret::{basic_credentials, scrubber};
use crate::claim::{Claimed, Line, examine};
use crate::gateway::fragment::Fragments;
use crate::gateway::{Action, Config, Gateway, OFFLOAD_HEADER};
use crate::policy::{Document, Policy};
#[cfg(feature = "shell")]
pub use crate::shell::fuzzing::http2_frames;
use crate::{Name, dns};

/// Policy text: never panics; what is read can be written and read again.
pub fn policy_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = Document::from_toml(text);
    let Ok(document) = text.parse::<Document>() else {
        return;
    };
    let written = document.policy.to_string();
    let again: Policy = written.parse().expect("a written policy can be read");
    assert_eq!(again, document.policy);
    for expectation in &document.expectations {
        let verdict = document
            .policy
            .explain_subject(&expectation.subject)
            .verdict;
        let line = format!("expect {} {}", expectation.action, expectation.subject);
        let reread: Document = line.parse().expect("a written expectation can be read");
        let subject = &reread.expectations[0].subject;
        assert_eq!(document.policy.explain_subject(subject).verdict, verdict);
    }
}

/// Frames from a guest, each behind its length in two bytes: the gateway never
/// panics, keeps its bounds, and sends no frame larger than the link allows.
pub fn gateway_frames(data: &[u8]) {
    frames(data, false);
}

/// As [`gateway_frames`], with an offload header in front of each frame: what a header
/// says of a frame to the guest lies within that frame.
pub fn offload_frames(data: &[u8]) {
    frames(data, true);
}

fn frames(mut data: &[u8], offload: bool) {
    const MTU: usize = 1500;
    let mut config = Config::new(Policy::allow_all(), 1);
    config.mtu = MTU as u16;
    config.offload = offload;
    config.limits.tcp_flows = 4;
    config.limits.udp_flows = 4;
    config.limits.tcp_buffer = 4096;
    config.limits.queries = 4;
    config.resolvers = vec![(Ipv4Addr::LOCALHOST, 53).into()];
    let mut gateway = Gateway::new(config);
    let mut now = Duration::ZERO;
    let mut frame = Vec::new();
    while let Some((&[high, low], rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        gateway.handle_frame(now, &rest[..length]);
        data = &rest[length..];
        while let Some(action) = gateway.poll_action() {
            answer(&mut gateway, now, &action);
        }
        let mut frames = 0;
        while gateway.poll_frame(now, &mut frame) {
            if offload {
                fits(&frame, MTU + 14);
            } else {
                assert!(frame.len() <= MTU + 14, "{} bytes", frame.len());
            }
            frames += 1;
            assert!(frames < 1000, "one frame is not answered with a thousand");
        }
        let (tcp, udp) = gateway.flows();
        assert!(tcp <= 4 && udp <= 4);
        while gateway.poll_event().is_some() {}
        now += Duration::from_millis(u64::from(low));
        gateway.handle_timeout(now);
        assert!(gateway.next_timeout().is_none_or(|at| at > now));
    }
}

/// What the kernel that takes a frame demands of the header in front of it: the other side
/// of a TAP device is not to be trusted with less.
fn fits(bytes: &[u8], usual: usize) {
    const NEEDS_CHECKSUM: u8 = 1;
    let (header, frame) = bytes.split_at(OFFLOAD_HEADER);
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (headers, size, start, offset) = (word(2), word(4), word(6), word(8));
    if header[0] & NEEDS_CHECKSUM != 0 {
        assert!(start + offset + 2 <= frame.len(), "the checksum is in it");
    }
    if header[1] == 0 {
        assert!(frame.len() <= usual, "{} bytes", frame.len());
    } else {
        assert!(headers <= frame.len() && size > 0);
        assert!(headers + size <= usual, "each segment fits the link");
    }
}

/// Plays an upstream that echoes datagrams and talks on every connection.
fn answer(gateway: &mut Gateway, now: Duration, action: &Action) {
    match action {
        Action::Connect { flow, .. } => gateway.connected(now, *flow),
        Action::Readable(flow) => while gateway.read(*flow, <[u8]>::len) > 0 {},
        Action::Writable(flow) => {
            gateway.write(*flow, |room| room.len().min(3000));
        }
        Action::Shutdown(flow) => gateway.finish(*flow),
        Action::Send {
            flow,
            to,
            datagrams,
            ..
        } => {
            for datagram in datagrams.iter() {
                let mut payload = datagram.to_vec();
                if to.port() == dns::PORT
                    && let Some(flags) = payload.get_mut(2)
                {
                    // What comes back to a query is an answer.
                    *flags |= 0x80;
                }
                gateway.datagram(now, *flow, &payload);
            }
        }
        Action::Echo {
            flow,
            sequence,
            payload,
            ..
        } => gateway.echo_reply(now, *flow, *sequence, payload),
        Action::Intercept(_) | Action::Close { .. } | Action::Forget(_) => {}
    }
}

/// A client's first bytes: never panics, and an answer once given holds for
/// whatever follows.
pub fn claim(data: &[u8]) {
    let mut answer = Claimed::Partial;
    let mut line = Line::default();
    for end in 0..=data.len().min(600) {
        let next = examine(&data[..end]);
        line = line.read(&data[end.saturating_sub(1)..end]);
        match answer {
            Claimed::Partial => {}
            // Whoever passes the bytes on notices.
            Claimed::Unclear if line == Line::Request => {}
            Claimed::Unclear => {
                assert!(
                    matches!(next, Claimed::Unclear | Claimed::Foreign),
                    "at {end}"
                );
            }
            answer => assert_eq!(next, answer, "at {end}"),
        }
        answer = next;
    }
    if !matches!(answer, Claimed::Partial | Claimed::Unclear) {
        assert_eq!(examine(data), answer);
    }
}

/// A guest's message to a resolver: never panics, and every reply can be read by
/// another reader and is no longer than it may be.
pub fn dns_query(data: &[u8]) {
    let mut reply = Vec::new();
    let mut answered = |query: &dns::Query<'_>, body: &dns::Body| {
        for limit in [512, 65_535] {
            body.reply(query, 3, query.datagram_limit(limit), &mut reply);
            assert!(reply.len() <= limit.max(512));
            let read = Message::from_vec(&reply).expect("a reply can be read");
            assert_eq!(read.metadata.id, query.id);
        }
    };
    match dns::Query::parse(data) {
        Ok(query) => {
            let note = dns::Note::new(dns::Note::BLOCKED, dns::text(query.name()));
            let denied = dns::Body::empty(dns::Rcode::NO_SUCH_NAME, Some(note));
            answered(&query, &denied);
            let Some(name) = query.host_name() else {
                return;
            };
            assert_eq!(dns::text(query.name()), name.as_str());
            let own = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
            if let Some(body) = dns::local(&name, query.kind, own) {
                answered(&query, &body);
            }
        }
        Err(dns::Unreadable::Refused(query, code)) => {
            answered(&query, &dns::Body::empty(code, None));
        }
        Err(dns::Unreadable::NotAQuery) => {}
    }
}

/// A server's answer for `www.example.com`, whatever the header says of it: never
/// panics, and what is passed on can be read by another reader and holds no
/// address that the policy refuses.
pub fn dns_response(data: &[u8]) {
    let name: Name = "www.example.com".parse().expect("a name");
    let policy = Policy::public_only();
    let mut question = b"\x03www\x07example\x03com\0".to_vec();
    let kind = data
        .get(30)
        .copied()
        .filter(|kind| matches!(kind, 1 | 28 | 65));
    question.extend([0, kind.unwrap_or(1), 0, 1]);
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend_from_slice(&question);
    let mut message = data.to_vec();
    if let Some(start) = message.get_mut(..2) {
        start.copy_from_slice(&[0, 7]);
    }
    let subject = dns::Subject {
        id: 7,
        question: &question,
    };
    let verdicts = Public(&policy, &name);
    let judged =
        dns::header(&message, &subject).and_then(|_| dns::judge(&message, &subject, &verdicts));
    let Some(judged) = judged else {
        return;
    };
    assert!(
        judged
            .addresses
            .iter()
            .all(|a| policy.admits_answer(&name, *a))
    );
    let query = dns::Query::parse(&query).expect("our query is one");
    let mut reply = Vec::new();
    for limit in [512, 65_535] {
        judged.body.reply(&query, 3, limit, &mut reply);
        assert!(reply.len() <= limit);
        Message::from_vec(&reply).expect("a reply can be read");
    }
}

/// What a policy says of answers for one name.
struct Public<'a>(&'a Policy, &'a Name);

impl dns::Verdicts for Public<'_> {
    fn denies(&self, alias: &Name) -> Option<String> {
        self.0.names_as_denied(alias).then(String::new)
    }

    fn admits(&self, address: IpAddr) -> bool {
        self.0.admits_answer(self.1, address)
    }
}

/// What a plain model of reassembly knows of one packet.
#[derive(Default)]
struct Pieces {
    bytes: BTreeMap<usize, u8>,
    taken: Vec<(usize, bool, Vec<u8>)>,
    whole: Option<usize>,
    refused: bool,
}

impl Pieces {
    /// Takes a piece; the whole payload if it is complete now, `None` if it is
    /// not, an error if it is refused.
    fn take(&mut self, start: usize, more: bool, payload: &[u8]) -> Result<Option<Vec<u8>>, ()> {
        let end = start + payload.len();
        let piece = (start, more, payload.to_vec());
        if !self.refused && self.taken.contains(&piece) {
            return Ok(None);
        }
        let last = self.bytes.keys().next_back().map_or(0, |at| at + 1);
        self.refused |= (start..end).any(|at| self.bytes.contains_key(&at))
            || self.whole.is_some_and(|whole| !more || end > whole)
            || (!more && last > end)
            || self.taken.len() >= 128;
        if self.refused {
            return Err(());
        }
        self.bytes.extend((start..end).zip(payload.iter().copied()));
        self.taken.push(piece);
        if !more {
            self.whole = Some(end);
        }
        let complete = self.whole == Some(self.bytes.len());
        Ok(complete.then(|| self.bytes.values().copied().collect()))
    }
}

/// Pieces of packets, six bytes each: what comes out is what a plain model puts
/// together, and what overlaps is refused.
pub fn reassembly(data: &[u8]) {
    const MAX_PAYLOAD: usize = 65_535;
    let mut fragments = Fragments::default();
    let mut models: HashMap<(bool, u8), Pieces> = HashMap::new();
    for chunk in data.chunks_exact(6) {
        let &[flags, high, low, length, fill, step] = chunk else {
            continue;
        };
        let (v6, more, ident) = (flags & 1 != 0, flags & 2 != 0, flags >> 2 & 7);
        let start = usize::from(u16::from_be_bytes([high, low]) & !7);
        let unit = if flags & 32 != 0 { 1 } else { 8 };
        let payload: Vec<u8> = (0..usize::from(length) * unit)
            .map(|at| fill.wrapping_add((at as u8).wrapping_mul(step)))
            .collect();
        let (kind, header, packet) = if v6 {
            let packet = piece_v6(ident, start, more, &payload);
            (EthernetProtocol::Ipv6, 40, packet)
        } else {
            let packet = piece_v4(ident, start, more, &payload);
            (EthernetProtocol::Ipv4, 20, packet)
        };
        let found = fragments.take(Duration::ZERO, kind, &packet, |_| true);
        let (held, bytes) = fragments.held();
        assert!(held <= 16 && bytes <= 16 * MAX_PAYLOAD);
        let limit = if v6 {
            MAX_PAYLOAD
        } else {
            MAX_PAYLOAD - header
        };
        let end = start + payload.len();
        let expected = if start == 0 && !more {
            Ok(Some(payload)).filter_length(limit)
        } else if payload.is_empty()
            || (more && !payload.len().is_multiple_of(8))
            || end > MAX_PAYLOAD
        {
            Err(())
        } else {
            let model = models.entry((v6, ident)).or_default();
            let result = model.take(start, more, &payload);
            if let Ok(Some(_)) = result {
                models.remove(&(v6, ident));
            }
            result.filter_length(limit)
        };
        match (found, expected) {
            (Ok(Some(found)), Ok(Some(expected))) => {
                assert_eq!(found[header..], expected);
                let plain = if v6 {
                    found[6] == 17
                } else {
                    Ipv4Packet::new_checked(&found).is_ok_and(|packet| packet.verify_checksum())
                };
                assert!(plain);
            }
            (Ok(None), Ok(None)) | (Err(_), Err(())) => {}
            (found, expected) => panic!("{found:?} and not {expected:?}"),
        }
    }
}

/// What would be longer than a packet can be is refused.
trait FilterLength {
    fn filter_length(self, limit: usize) -> Self;
}

impl FilterLength for Result<Option<Vec<u8>>, ()> {
    fn filter_length(self, limit: usize) -> Self {
        match self {
            Ok(Some(payload)) if payload.len() > limit => Err(()),
            other => other,
        }
    }
}

fn piece_v4(ident: u8, start: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20 + payload.len()];
    bytes[20..].copy_from_slice(payload);
    let length = bytes.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    packet.set_version(4);
    packet.set_header_len(20);
    packet.set_total_len(length);
    packet.set_ident(ident.into());
    packet.set_more_frags(more);
    packet.set_frag_offset(start as u16);
    packet.set_hop_limit(64);
    packet.set_next_header(IpProtocol::Udp);
    packet.fill_checksum();
    bytes
}

fn piece_v6(ident: u8, start: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 48 + payload.len()];
    let place = start as u16 | u16::from(more);
    bytes[40..48].copy_from_slice(&[17, 0, 0, 0, 0, 0, 0, ident]);
    bytes[42..44].copy_from_slice(&place.to_be_bytes());
    bytes[48..].copy_from_slice(payload);
    let length = bytes.len() as u16 - 40;
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes[..]);
    packet.set_version(6);
    packet.set_payload_len(length);
    packet.set_next_header(IpProtocol::Ipv6Frag);
    packet.set_hop_limit(64);
    bytes
}
