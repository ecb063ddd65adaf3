//! What a server says, judged.
//!
//! An answer may name the aliases that lead from the name asked for, and
//! addresses at the end of them. The policy has a say in both: no alias may be
//! denied, and every address must be one that the name asked for may have. What
//! passes is written anew; the additional section, which nobody asked for, is not.
//!
//! Signatures pass as they are. Where something was taken out of a signed set, a
//! guest that checks signatures will not accept what is left, and rightly so.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::rdata::SVCB;
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::{DNSClass, Name as WireName, RData, Record};

use super::body::Note;
use super::query::{self, HEADER, OPCODE, RESPONSE, TRUNCATED, host_name};
use super::{Body, Rcode, RecordKind, Unanswered};
use crate::Name;

/// The most aliases that are followed; resolvers give up at about this many.
const MAX_ALIASES: usize = 16;

/// The most addresses that one answer may bind: more than fit a datagram.
const MAX_ADDRESSES: usize = 256;

/// The longest time to live, in seconds: what is longer is a mistake (RFC 8767, 4).
const MAX_TTL: u32 = 86_400;

/// The longest time a name may be said not to be there (RFC 2308, 5).
const MAX_NEGATIVE_TTL: u32 = 3600;

/// The longest time an answer is kept in which the policy took a hand.
const MAX_REFUSED_TTL: u32 = 60;

/// What the policy says of the names and addresses in an answer.
pub(crate) trait Verdicts {
    /// Says why an alias is denied, if it is.
    fn denies(&self, alias: &Name) -> Option<String>;
    /// Tells whether the name asked for may be at an address.
    fn admits(&self, address: IpAddr) -> bool;
}

/// What an answer must be an answer to.
pub(crate) struct Subject<'a> {
    pub(crate) id: u16,
    /// Name in lower case, type and class.
    pub(crate) question: &'a [u8],
}

/// The beginning of a server's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) truncated: bool,
    /// Without the bits that EDNS adds.
    pub(crate) code: Rcode,
}

/// An answer fit for the guest.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) body: Body,
    /// How long it holds, in seconds.
    pub(crate) ttl: u32,
    /// Addresses of the name asked for.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) filtered: u16,
    /// Why nothing is left of it.
    pub(crate) refused: Option<Unanswered>,
}

/// Reads the header of a message, if it is an answer to `subject`: this is all
/// that stands between a guess of somebody else's and the guest.
pub(crate) fn header(message: &[u8], subject: &Subject<'_>) -> Option<Header> {
    let flags = query::be16(message, 2)?;
    let question = message.get(HEADER..HEADER + subject.question.len())?;
    let fits = query::be16(message, 0)? == subject.id
        && flags & (RESPONSE | OPCODE) == RESPONSE
        && query::be16(message, 4)? == 1
        && question.eq_ignore_ascii_case(subject.question);
    fits.then_some(Header {
        truncated: flags & TRUNCATED != 0,
        code: Rcode(flags & 0xf),
    })
}

/// Judges a message whose [`header`] fits. `None` when it cannot be read.
pub(crate) fn judge(
    message: &[u8],
    subject: &Subject<'_>,
    verdicts: &impl Verdicts,
) -> Option<Judged> {
    let mut message = Message::from_vec(message).ok()?;
    let code = Rcode(message.metadata.response_code.into());
    let asked = message.queries.first()?.name.clone();
    let mut sieve = Sieve::new(verdicts, aliases(&asked, &message.answers)?);
    if let Some(note) = sieve.denied_alias() {
        return Some(Judged::refused(
            Unanswered::Alias,
            Rcode::NO_SUCH_NAME,
            note,
        ));
    }
    message.answers.retain_mut(|record| sieve.keeps(record));
    message.authorities.retain_mut(|record| {
        let addresses = matches!(
            record.data,
            RData::A(_) | RData::AAAA(_) | RData::HTTPS(_) | RData::SVCB(_)
        );
        !addresses && normal(record)
    });
    let note = sieve.note();
    if sieve.filtered > 0 && sieve.addresses.is_empty() && message.answers.iter().all(is_alias) {
        let mut judged = Judged::refused(Unanswered::Rebinding, Rcode::NO_ERROR, note?);
        judged.filtered = sieve.filtered;
        return Some(judged);
    }
    let Sieve {
        addresses,
        filtered,
        ..
    } = sieve;
    let mut ttl = lifetime(&message);
    if filtered > 0 {
        ttl = ttl.min(MAX_REFUSED_TTL);
    }
    // Whoever remembers a part of the answer remembers it no longer than we do.
    for record in &mut message.answers {
        record.ttl = ttl;
    }
    let mut body = rewrite(message, code, subject)?;
    body.note = note;
    Some(Judged {
        ttl,
        body,
        addresses,
        filtered,
        refused: None,
    })
}

impl Judged {
    fn refused(why: Unanswered, code: Rcode, note: Note) -> Self {
        Self {
            body: Body::empty(code, Some(note)),
            ttl: MAX_REFUSED_TTL,
            addresses: Vec::new(),
            filtered: 0,
            refused: Some(why),
        }
    }
}

/// What decides about each record.
struct Sieve<'a, V> {
    verdicts: &'a V,
    /// The name asked for and its aliases in order.
    chain: Vec<WireName>,
    addresses: Vec<IpAddr>,
    filtered: u16,
    /// The first thing that was taken out, and why.
    first: Option<String>,
}

impl<'a, V: Verdicts> Sieve<'a, V> {
    fn new(verdicts: &'a V, chain: Vec<WireName>) -> Self {
        Self {
            verdicts,
            chain,
            addresses: Vec::new(),
            filtered: 0,
            first: None,
        }
    }

    /// Says which alias is denied and why.
    fn denied_alias(&self) -> Option<Note> {
        let mut why = self.chain[1..].iter().map(|alias| self.denies(alias));
        Some(Note::new(Note::BLOCKED, why.find_map(|why| why)?))
    }

    fn denies(&self, alias: &WireName) -> Option<String> {
        match host_name(alias.iter()) {
            Some(name) => {
                let why = self.verdicts.denies(&name)?;
                Some(format!("it leads to {name}: {why}"))
            }
            None => Some("it leads to what is no name of a host".into()),
        }
    }

    fn note(&self) -> Option<Note> {
        let first = self.first.clone()?;
        Some(Note::new(Note::FILTERED, first))
    }

    /// Tells whether a record of the answer section may stay, perhaps changed.
    fn keeps(&mut self, record: &mut Record) -> bool {
        if !normal(record) {
            return false;
        }
        let address = match &record.data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
            RData::SVCB(_) | RData::HTTPS(_) => {
                return self.chain.contains(&record.name) && self.keeps_service(&mut record.data);
            }
            // Signatures, and what makes aliases of whole zones (RFC 6672).
            _ => return self.chain.iter().any(|name| record.name.zone_of(name)),
        };
        self.chain.contains(&record.name) && self.admits(address)
    }

    fn admits(&mut self, address: IpAddr) -> bool {
        if self.addresses.len() >= MAX_ADDRESSES {
            return false;
        }
        let admitted = self.verdicts.admits(address);
        if admitted {
            self.addresses.push(address);
        } else {
            self.took_out(format!("the name may not be at {address}"));
        }
        admitted
    }

    fn took_out(&mut self, why: String) {
        self.filtered = self.filtered.saturating_add(1);
        self.first.get_or_insert(why);
    }

    /// Judges a SVCB or HTTPS record: its target is an alias, its hints are
    /// addresses, and the key to an encrypted ClientHello goes, because it would
    /// hide the name that must be checked (RFC 9460, 7.3; RFC 9849).
    fn keeps_service(&mut self, data: &mut RData) -> bool {
        let service: &mut SVCB = match data {
            RData::SVCB(service) => service,
            RData::HTTPS(https) => &mut https.0,
            _ => return true,
        };
        if !service.target_name.is_root()
            && !self.chain.contains(&service.target_name)
            && let Some(why) = self.denies(&service.target_name)
        {
            self.took_out(why);
            return false;
        }
        service.svc_params.retain_mut(|(_, value)| match value {
            SvcParamValue::EchConfigList(_) => false,
            SvcParamValue::Ipv4Hint(IpHint(hints)) => {
                hints.retain(|hint| self.admits(hint.0.into()));
                !hints.is_empty()
            }
            SvcParamValue::Ipv6Hint(IpHint(hints)) => {
                hints.retain(|hint| self.admits(hint.0.into()));
                !hints.is_empty()
            }
            _ => true,
        });
        let left: Vec<SvcParamKey> = service.svc_params.iter().map(|(key, _)| *key).collect();
        service.svc_params.retain_mut(|(_, value)| match value {
            SvcParamValue::Mandatory(keys) => {
                keys.0.retain(|key| left.contains(key));
                !keys.0.is_empty()
            }
            _ => true,
        });
        true
    }
}

/// Finds the name asked for and its aliases in order. `None` when there are too many.
fn aliases(asked: &WireName, answers: &[Record]) -> Option<Vec<WireName>> {
    let mut chain = vec![asked.clone()];
    while let Some(next) = answers.iter().find_map(|record| match &record.data {
        RData::CNAME(alias) if Some(&record.name) == chain.last() => Some(&alias.0),
        _ => None,
    }) {
        if chain.len() > MAX_ALIASES || chain.contains(next) {
            return None;
        }
        chain.push(next.clone());
    }
    Some(chain)
}

fn is_alias(record: &Record) -> bool {
    // Signatures of what was taken out are worth nothing alone.
    matches!(record.data, RData::CNAME(_)) || matches!(u16::from(record.record_type()), 39 | 46)
}

fn normal(record: &Record) -> bool {
    record.dns_class == DNSClass::IN && !RecordKind(record.record_type().into()).is_meta()
}

/// How long an answer holds, in seconds.
fn lifetime(message: &Message) -> u32 {
    let positive = message.answers.iter().map(|record| record.ttl).min();
    let denies = message.answers.iter().all(is_alias);
    let negative = message
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum).min(MAX_NEGATIVE_TTL)),
            _ => None,
        });
    let limit = match negative {
        _ if !denies => MAX_TTL,
        Some(negative) => negative,
        // Nobody says how long (RFC 2308, 5).
        None => 0,
    };
    positive.unwrap_or(MAX_TTL).min(limit)
}

/// Writes what is left of a message, and takes it apart again.
fn rewrite(mut message: Message, code: Rcode, subject: &Subject<'_>) -> Option<Body> {
    let mut whole = Message::new(0, MessageType::Response, OpCode::Query);
    whole.queries = std::mem::take(&mut message.queries);
    whole.answers = std::mem::take(&mut message.answers);
    whole.authorities = std::mem::take(&mut message.authorities);
    for record in whole.answers.iter_mut().chain(&mut whole.authorities) {
        record.ttl = record.ttl.min(MAX_TTL);
    }
    let bytes = whole.to_vec().ok()?;
    let written = header(&bytes, &Subject { id: 0, ..*subject })?;
    let mut body = Body::from_message(code, &bytes, subject.question.len())?;
    body.authentic = message.metadata.authentic_data;
    (!written.truncated).then_some(body)
}

#[cfg(test)]
mod tests;
