//! The gateway's resolver: every query of the guest ends here.
//!
//! Whatever address the guest sends it to, a query is answered from what the
//! gateway knows, from the cache, or by a server of [`Config::resolvers`]; and
//! only if the policy lets the guest ask for the name. What is not answered is
//! refused at once, and says why to whoever understands it (RFC 8914):
//!
//! | | code |
//! |---|---|
//! | the policy denies the name, or one it leads to | `NXDOMAIN`: programs give up, where on `REFUSED` some C libraries try on or wait |
//! | the name may be at none of its addresses | `NOERROR` without records |
//! | not a question about one name | `FORMERR`, `NOTIMP`, `REFUSED` |
//! | no server, no answer, too many queries | `SERVFAIL` |
//!
//! The addresses in an answer are bound to the name asked for, and to no other:
//! the aliases an answer leads through are judged, but a guest that wants to
//! reach one of them by its own name must ask for it.

mod stream;
mod upstream;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use self::stream::Streams;
use self::upstream::Pending;
use super::event::{DropReason, Event};
use super::{Config, FlowId, FlowMap, Gateway, MAX_RESOLVERS};
use crate::Name;
use crate::addr::Faces;
use crate::dns::{
    self, Bindings, Body, Budget, Cache, HOST_NAME, Note, Outcome, Query, Rcode, Source,
    Unanswered, Unreadable,
};
use crate::policy::{self, Decider, Policy, Target, Verdict};

/// What the gateway's own addresses are bound for: until nobody counts any more.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The way an answer goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Via {
    guest: SocketAddr,
    /// Whom the guest asks, as it thinks.
    far: SocketAddr,
    /// The TCP flow the query came in.
    stream: Option<FlowId>,
}

impl Via {
    pub(super) const fn datagram((guest, far): (SocketAddr, SocketAddr)) -> Self {
        let stream = None;
        Self { guest, far, stream }
    }
}

/// Everything the resolver holds.
pub(super) struct Resolver {
    servers: Vec<SocketAddr>,
    cache: Cache<Kept>,
    bindings: Bindings,
    budget: Budget,
    streams: Streams,
    /// Queries under way, by the flow to the server that is asked just now.
    pending: FlowMap<Pending>,
    asked: HashMap<Arc<[u8]>, FlowId>,
    /// Used again for each query.
    key: Vec<u8>,
    reply: Vec<u8>,
}

/// What a query is about and what was decided about it.
#[derive(Clone)]
struct Subject {
    /// The name for people.
    text: Arc<str>,
    /// `None` for the root.
    name: Option<Name>,
    verdict: Option<Verdict>,
}

/// An answer, to be given now and perhaps again.
struct Kept {
    subject: Subject,
    body: Body,
    at: Duration,
    until: Duration,
    addresses: Vec<IpAddr>,
    filtered: u16,
    refused: Option<Unanswered>,
    /// The state of [`Bindings::evicted`] when the addresses were bound.
    evicted: u64,
}

impl Kept {
    fn new(now: Duration, subject: Subject, body: Body) -> Self {
        Self {
            subject,
            body,
            at: now,
            until: now,
            addresses: Vec::new(),
            filtered: 0,
            refused: None,
            evicted: 0,
        }
    }

    fn refused(now: Duration, subject: Subject, body: Body, why: Unanswered) -> Self {
        Self {
            refused: Some(why),
            ..Self::new(now, subject, body)
        }
    }

    fn outcome(&self, source: Source) -> Outcome {
        match self.refused {
            Some(why) => Outcome::Unanswered(why),
            None => Outcome::Answered {
                code: self.body.code,
                source,
                addresses: self.addresses.len().try_into().unwrap_or(u16::MAX),
                filtered: self.filtered,
            },
        }
    }

    fn bind(&mut self, now: Duration, bindings: &mut Bindings) {
        if let Some(name) = &self.subject.name {
            for address in &self.addresses {
                bindings.bind(now, name, *address, self.until.saturating_sub(now));
            }
        }
        self.evicted = bindings.evicted;
    }
}

impl Resolver {
    pub(super) fn new(config: &Config) -> Self {
        let mut bindings = Bindings::default();
        if let Ok(host) = HOST_NAME.parse() {
            for own in [config.gateway_v4.into(), config.gateway_v6.into()] {
                bindings.bind(Duration::ZERO, &host, own, FOR_EVER);
            }
        }
        let servers = config.resolvers.iter().take(MAX_RESOLVERS).copied();
        Self {
            servers: servers.collect(),
            cache: Cache::new(config.limits.cache_memory),
            bindings,
            budget: Budget::default(),
            streams: Streams::default(),
            pending: FlowMap::default(),
            asked: HashMap::new(),
            key: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// Returns the names that were said to be at an address.
    pub(super) fn names(&mut self, now: Duration, address: IpAddr) -> &[Name] {
        self.bindings.names(now, address)
    }

    /// Tells whether a flow is one of ours to a server.
    pub(super) fn asks(&self, flow: FlowId) -> bool {
        self.pending.contains_key(&flow)
    }
}

impl Gateway {
    /// Takes a query of the guest.
    pub(super) fn handle_query(&mut self, now: Duration, via: Via, message: &[u8]) {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Unreadable::NotAQuery) => return self.events.dropped(DropReason::Malformed),
            Err(Unreadable::Refused(query, code)) => {
                let subject = Subject::of(&query, None);
                let text = "only questions of class IN about one name are answered".into();
                let body = Body::empty(code, Some(Note::new(Note::NOT_SUPPORTED, text)));
                let kept = Kept::refused(now, subject, body, Unanswered::Unsupported);
                return self.answer(via, &query, &kept, Source::Gateway);
            }
        };
        if self.answer_from_cache(now, via, &query) || self.join(now, via, &query) {
            return;
        }
        let name = query.host_name();
        let mut subject = Subject::of(&query, name);
        match self.answer_at_once(now, &query, &mut subject) {
            Some(kept) => self.answer(via, &query, &kept, Source::Gateway),
            None => self.ask_servers(now, via, &query, subject),
        }
    }

    /// Answers what needs no server: our own names, and everything that is refused.
    fn answer_at_once(
        &mut self,
        now: Duration,
        query: &Query<'_>,
        subject: &mut Subject,
    ) -> Option<Kept> {
        let refused = |subject: &Subject, why, code, note| {
            let body = Body::empty(code, Some(note));
            Some(Kept::refused(now, subject.clone(), body, why))
        };
        let failed = |subject: &Subject, why, note: u16, text: &str| {
            let note = Note::new(note, text.into());
            refused(subject, why, Rcode::SERVER_FAILURE, note)
        };
        let policy = &self.config.policy;
        let verdict = match &subject.name {
            Some(name) => {
                let own = (self.config.gateway_v4, self.config.gateway_v6);
                if let Some(body) = dns::local(name, query.kind, own) {
                    return Some(Kept::new(now, subject.clone(), body));
                }
                policy.decide_query(name)
            }
            None if subject.text.as_ref() == "." => policy.decide_root_query(),
            None => {
                let note = Note::new(Note::BLOCKED, "no host can have this name".into());
                return refused(subject, Unanswered::OddName, Rcode::NO_SUCH_NAME, note);
            }
        };
        let denied = verdict.action == policy::Action::Deny;
        let by = verdict.by.clone();
        subject.verdict = Some(verdict);
        if denied {
            let note = Note::new(Note::BLOCKED, policy.describe(&by));
            return refused(subject, Unanswered::Denied, Rcode::NO_SUCH_NAME, note);
        }
        if self.dns.servers.is_empty() {
            let text = "the gateway was given no server to ask";
            return failed(subject, Unanswered::NoServer, Note::NOT_READY, text);
        }
        if self.dns.pending.len() >= self.config.limits.queries {
            let text = "too many queries wait for an answer";
            return failed(subject, Unanswered::Busy, Note::NOT_READY, text);
        }
        let entrusted = names_it(policy, &by);
        let name = subject.name.as_ref().filter(|_| !entrusted);
        if name.is_some_and(|name| !self.dns.budget.spend(now, name)) {
            let text = "too many names of this domain were asked for";
            return failed(subject, Unanswered::TooManyNames, Note::OTHER, text);
        }
        None
    }

    fn answer_from_cache(&mut self, now: Duration, via: Via, query: &Query<'_>) -> bool {
        let dns = &mut self.dns;
        query.key(&mut dns.key);
        let Some(kept) = dns.cache.get(now, &dns.key) else {
            return false;
        };
        if kept.evicted != dns.bindings.evicted {
            kept.bind(now, &mut dns.bindings);
        }
        let age = now.saturating_sub(kept.at).as_secs();
        let age = age.try_into().unwrap_or(u32::MAX);
        let limit = limit(via, query, self.config.mtu);
        kept.body.reply(query, age, limit, &mut dns.reply);
        self.events.push(Event::Query {
            name: Arc::clone(&kept.subject.text),
            kind: query.kind,
            server: via.far,
            verdict: kept.subject.verdict.clone(),
            outcome: kept.outcome(Source::Cache),
            duration: Duration::ZERO,
        });
        self.send_reply(via);
        true
    }

    /// Answers one query, and tells of it.
    fn answer(&mut self, via: Via, query: &Query<'_>, kept: &Kept, source: Source) {
        self.answer_after(Duration::ZERO, via, query, kept, source);
    }

    fn answer_after(
        &mut self,
        duration: Duration,
        via: Via,
        query: &Query<'_>,
        kept: &Kept,
        source: Source,
    ) {
        let limit = limit(via, query, self.config.mtu);
        kept.body.reply(query, 0, limit, &mut self.dns.reply);
        self.events.push(Event::Query {
            name: Arc::clone(&kept.subject.text),
            kind: query.kind,
            server: via.far,
            verdict: kept.subject.verdict.clone(),
            outcome: kept.outcome(source),
            duration,
        });
        self.send_reply(via);
    }

    /// Sends what is in the reply buffer.
    fn send_reply(&mut self, via: Via) {
        match via.stream {
            Some(flow) => self.dns.streams.push(flow, &self.dns.reply),
            None => {
                // It was made to fit.
                self.outbox.datagram(via.far, via.guest, &self.dns.reply);
            }
        }
    }
}

impl Subject {
    fn of(query: &Query<'_>, name: Option<Name>) -> Self {
        let text = match &name {
            Some(name) => name.as_str().into(),
            None => dns::text(query.name()).into(),
        };
        Self {
            text,
            name,
            verdict: None,
        }
    }
}

/// Tells whether a rule allows names by name: whoever wrote it trusts their owner
/// with what the guest asks for.
fn names_it(policy: &Policy, by: &Decider) -> bool {
    match by {
        Decider::Rule(index) => policy
            .rules()
            .get(*index)
            .is_some_and(|rule| matches!(rule.target, Target::Names { .. })),
        _ => false,
    }
}

/// The largest reply that fits the way it goes.
fn limit(via: Via, query: &Query<'_>, mtu: u16) -> usize {
    let headers = match via.guest {
        SocketAddr::V4(_) => 20 + 8,
        SocketAddr::V6(_) => 40 + 8,
    };
    match via.stream {
        Some(_) => usize::from(u16::MAX),
        None => query.datagram_limit(usize::from(mtu) - headers),
    }
}

/// The policy's word on an answer for one name.
struct Verdicts<'a> {
    policy: &'a Policy,
    name: Option<&'a Name>,
}

impl dns::Verdicts for Verdicts<'_> {
    fn denies(&self, alias: &Name) -> Option<String> {
        self.policy.names_as_denied(alias).then(|| {
            let by = self.policy.decide_query(alias).by;
            self.policy.describe(&by)
        })
    }

    fn admits(&self, address: IpAddr) -> bool {
        match self.name {
            Some(name) => self.policy.admits_answer(name, address),
            None => Faces::of(address).is_public(),
        }
    }
}
