//! Queries on their way to the servers, and the answers.
//!
//! Each attempt has a flow of its own, so a socket of its own, connected to one
//! server and from a port that the host chose; the answer must come there, have
//! the query's random number and repeat its question (RFC 5452). What does not is
//! dropped, and a few such answers move the query to TCP, as a cut one does.
//!
//! ```text
//!              cut, or too many strays            failed
//!   datagram ──────────────────────────► stream ─────────┐
//!      │ ▲                                  │            ▼
//!      │ └──────────── next server ─────────┼──── too many attempts? ──► SERVFAIL
//!      └────────── answer ──────────────────┴──► judged, bound, kept ──► guest
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::super::event::DropReason;
use super::super::tcp::mix;
use super::super::{Action, Datagrams, FlowId, Gateway, Handling};
use super::{Kept, Subject, Verdicts, Via};
use crate::dns::{
    self, Body, FLAG_CHECKING_DISABLED, FLAG_DNSSEC_OK, Note, Query, Rcode, Source, UDP_SIZE,
    Unanswered,
};

/// How long each attempt may take. A guest's own patience is five seconds.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(1200),
    Duration::from_millis(1800),
    Duration::from_millis(2500),
    Duration::from_millis(2500),
];

/// Attempts where there are fewer servers than that: a datagram may be lost.
const MIN_ATTEMPTS: usize = 3;

/// How long a query over TCP may take.
const STREAM_PATIENCE: Duration = Duration::from_secs(4);

/// Wrong answers to one attempt after which somebody is guessing.
const MAX_STRAYS: u32 = 8;

/// Guests' queries that one query answers: a program asks once or twice.
const MAX_ASKERS: usize = 64;

/// How long the guest is told of a server's failure again without asking, so that
/// it cannot make us repeat what fails (RFC 9520, 3.2).
const FAILURE_TTL: Duration = Duration::from_secs(2);

/// One query of the guest that waits.
pub(super) struct Asker {
    via: Via,
    query: Query<'static>,
    at: Duration,
}

/// One query on its way.
pub(super) struct Pending {
    key: Arc<[u8]>,
    subject: Subject,
    askers: Vec<Asker>,
    /// The random number.
    id: u16,
    attempt: usize,
    /// Whether to say what we understand; very old servers do not like it.
    edns: bool,
    strays: u32,
    /// What a server said last that was of no use.
    said: Option<Said>,
    /// Over TCP.
    wire: Option<Wire>,
}

#[derive(Clone, Copy)]
enum Said {
    Code(Rcode),
    Nonsense,
}

/// The bytes of a connection.
struct Wire {
    output: Vec<u8>,
    input: Vec<u8>,
}

impl Pending {
    /// Name in lower case, type and class.
    fn question(&self) -> Vec<u8> {
        let (_, question) = self.key.split_last().unwrap_or((&0, &[]));
        [question, &[0, 1]].concat()
    }

    fn message(&self) -> Vec<u8> {
        let wants = self.key.last().copied().unwrap_or(0);
        let disabled = if wants & FLAG_CHECKING_DISABLED != 0 {
            0x10
        } else {
            0
        };
        let signatures = if wants & FLAG_DNSSEC_OK != 0 { 0x80 } else { 0 };
        let mut message = self.id.to_be_bytes().to_vec();
        // Recursion is desired, and to hear whether signatures were checked.
        message.extend([1, 0x20 | disabled, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns)]);
        message.extend(self.question());
        if self.edns {
            message.extend([0, 0, 41]);
            message.extend(UDP_SIZE.to_be_bytes());
            message.extend([0, 0, signatures, 0, 0, 0]);
        }
        message
    }
}

impl Gateway {
    /// Adds a query to one that asks for the same.
    pub(super) fn join(&mut self, now: Duration, via: Via, query: &Query<'_>) -> bool {
        let dns = &mut self.dns;
        query.key(&mut dns.key);
        let flow = dns.asked.get(&dns.key[..]);
        let Some(pending) = flow.and_then(|flow| dns.pending.get_mut(flow)) else {
            return false;
        };
        let repeated = |asker: &Asker| asker.via == via && asker.query.id == query.id;
        if via.stream.is_none() && pending.askers.iter().any(repeated) {
            return true;
        }
        if pending.askers.len() >= MAX_ASKERS {
            // Only a guest that floods us; it repeats what it needs to know.
            self.events.dropped(DropReason::Overload);
            return true;
        }
        let query = query.clone().into_owned();
        pending.askers.push(Asker {
            via,
            query,
            at: now,
        });
        if let Some(flow) = via.stream {
            dns.streams.waits(flow);
        }
        true
    }

    /// Sends a query to the first server.
    pub(super) fn ask_servers(
        &mut self,
        now: Duration,
        via: Via,
        query: &Query<'_>,
        subject: Subject,
    ) {
        query.key(&mut self.dns.key);
        if let Some(flow) = via.stream {
            self.dns.streams.waits(flow);
        }
        let query = query.clone().into_owned();
        let pending = Pending {
            key: Arc::from(&self.dns.key[..]),
            subject,
            askers: vec![Asker {
                via,
                query,
                at: now,
            }],
            id: 0,
            attempt: 0,
            edns: true,
            strays: 0,
            said: None,
            wire: None,
        };
        self.ask(now, pending, false);
    }

    /// Makes an attempt.
    fn ask(&mut self, now: Duration, mut pending: Pending, stream: bool) {
        let flow = self.new_flow();
        let servers = &self.dns.servers;
        let to = servers[pending.attempt % servers.len()];
        // The flow's number was never used before, and the seed is a secret.
        pending.id = mix(self.config.seed.rotate_left(32) ^ mix(flow.number())) as u16;
        pending.strays = 0;
        let message = pending.message();
        let patience = PATIENCE[pending.attempt.min(PATIENCE.len() - 1)];
        let action = if stream {
            let length = message.len() as u16;
            let output = [&length.to_be_bytes()[..], &message].concat();
            let input = Vec::new();
            pending.wire = Some(Wire { output, input });
            Action::Connect { flow, to }
        } else {
            pending.wire = None;
            Action::Send {
                flow,
                to,
                handling: Handling::default(),
                datagrams: Datagrams::one(message),
            }
        };
        let patience = if stream { STREAM_PATIENCE } else { patience };
        self.timers.set(flow, Some(now + patience));
        self.actions.push_back(action);
        self.dns.asked.insert(Arc::clone(&pending.key), flow);
        self.dns.pending.insert(flow, pending);
    }

    /// Ends an attempt.
    fn take_back(&mut self, flow: FlowId) -> Option<Pending> {
        let pending = self.dns.pending.remove(&flow)?;
        self.dns.asked.remove(&pending.key);
        self.timers.set(flow, None);
        self.actions.push_back(match pending.wire {
            Some(_) => Action::Close { flow, reset: false },
            None => Action::Forget(flow),
        });
        Some(pending)
    }

    /// An attempt has taken too long.
    pub(in super::super) fn server_due(&mut self, now: Duration, flow: FlowId) {
        self.server_failed(now, flow);
    }

    /// An attempt has failed.
    pub(in super::super) fn server_failed(&mut self, now: Duration, flow: FlowId) {
        let Some(mut pending) = self.take_back(flow) else {
            return;
        };
        pending.attempt += 1;
        pending.edns = true;
        if pending.attempt < self.dns.servers.len().max(MIN_ATTEMPTS) {
            return self.ask(now, pending, false);
        }
        let fail = |note, text| Body::empty(Rcode::SERVER_FAILURE, Some(Note::new(note, text)));
        let subject = pending.subject.clone();
        let mut kept = match pending.said {
            Some(Said::Code(code)) => {
                let text = format!("the servers answer {code}");
                let body = Body::empty(code, Some(Note::new(Note::OTHER, text)));
                Kept::new(now, subject, body)
            }
            Some(Said::Nonsense) => {
                let body = fail(
                    Note::INVALID_DATA,
                    "the servers' answers make no sense".into(),
                );
                Kept::refused(now, subject, body, Unanswered::Unreadable)
            }
            None => {
                let body = fail(Note::NETWORK_ERROR, "no server answers".into());
                Kept::refused(now, subject, body, Unanswered::TimedOut)
            }
        };
        kept.until = now + FAILURE_TTL;
        self.conclude(now, pending, kept);
    }

    /// A message came for an attempt.
    pub(in super::super) fn server_said(&mut self, now: Duration, flow: FlowId, message: &[u8]) {
        let Some(pending) = self.dns.pending.get_mut(&flow) else {
            return;
        };
        let question = pending.question();
        let subject = dns::Subject {
            id: pending.id,
            question: &question,
        };
        let stream = pending.wire.is_some();
        let Some(header) = dns::header(message, &subject) else {
            pending.strays += 1;
            let guessing = pending.strays >= MAX_STRAYS;
            self.events.dropped(DropReason::StrayAnswer);
            return match (stream, guessing) {
                (true, _) => self.server_failed(now, flow),
                (false, true) => self.ask_by_stream(now, flow),
                (false, false) => {}
            };
        };
        if header.truncated && !stream {
            return self.ask_by_stream(now, flow);
        }
        match header.code {
            Rcode::NO_ERROR | Rcode::NO_SUCH_NAME => {}
            Rcode::FORMAT_ERROR | Rcode::NOT_IMPLEMENTED if pending.edns => {
                if let Some(mut pending) = self.take_back(flow) {
                    pending.edns = false;
                    self.ask(now, pending, stream);
                }
                return;
            }
            code => {
                pending.said = Some(Said::Code(code));
                return self.server_failed(now, flow);
            }
        }
        let verdicts = Verdicts {
            policy: &self.config.policy,
            name: pending.subject.name.as_ref(),
        };
        let judged = dns::judge(message, &subject, &verdicts);
        let Some(judged) = judged.filter(|j| j.body.code.0 <= Rcode::NO_SUCH_NAME.0) else {
            pending.said = Some(Said::Nonsense);
            return self.server_failed(now, flow);
        };
        let Some(pending) = self.take_back(flow) else {
            return;
        };
        // What holds for no time still holds for those who ask right now.
        let ttl = Duration::from_secs(judged.ttl.max(1).into());
        let kept = Kept {
            addresses: judged.addresses,
            filtered: judged.filtered,
            refused: judged.refused,
            until: now + ttl,
            ..Kept::new(now, pending.subject.clone(), judged.body)
        };
        self.conclude(now, pending, kept);
    }

    /// Asks the same server for an answer of any length.
    fn ask_by_stream(&mut self, now: Duration, flow: FlowId) {
        if let Some(pending) = self.take_back(flow) {
            self.ask(now, pending, true);
        }
    }

    /// Answers everybody who waits.
    fn conclude(&mut self, now: Duration, pending: Pending, mut kept: Kept) {
        kept.bind(now, &mut self.dns.bindings);
        for asker in &pending.askers {
            let took = now.saturating_sub(asker.at);
            if let Some(flow) = asker.via.stream {
                self.dns.streams.waits_no_more(flow);
            }
            self.answer_after(took, asker.via, &asker.query, &kept, Source::Upstream);
        }
        let size = kept.body.size() + 2 * kept.subject.text.len() + 32 * kept.addresses.len();
        let until = kept.until;
        self.dns.cache.insert(pending.key, kept, size, until);
        // Only now: what they ask next may be answered from the cache.
        for flow in pending.askers.iter().filter_map(|asker| asker.via.stream) {
            self.serve_stream(now, flow);
        }
    }

    /// A connection to a server is open.
    pub(in super::super) fn server_connected(&mut self, flow: FlowId) {
        if self.dns.asks(flow) {
            self.actions.push_back(Action::Readable(flow));
            self.actions.push_back(Action::Writable(flow));
        }
    }

    /// Hands over bytes for a server.
    pub(in super::super) fn write_server(
        &mut self,
        flow: FlowId,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> usize {
        let wire = self
            .dns
            .pending
            .get_mut(&flow)
            .and_then(|p| p.wire.as_mut());
        match wire {
            Some(wire) if !wire.output.is_empty() => {
                let taken = take(&wire.output).min(wire.output.len());
                wire.output.drain(..taken);
                taken
            }
            _ => 0,
        }
    }

    /// Takes bytes of a server: a length, and a message of that length.
    pub(in super::super) fn read_server(
        &mut self,
        flow: FlowId,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> usize {
        let wire = self
            .dns
            .pending
            .get_mut(&flow)
            .and_then(|p| p.wire.as_mut());
        let Some(wire) = wire else {
            return 0;
        };
        let held = wire.input.len();
        let wanted = match wire.input.first_chunk() {
            Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            None => 2,
        };
        wire.input.resize(wanted, 0);
        let got = fill(&mut wire.input[held..]).min(wanted - held);
        wire.input.truncate(held + got);
        let whole = wire
            .input
            .first_chunk()
            .is_some_and(|length| wire.input.len() == 2 + usize::from(u16::from_be_bytes(*length)));
        if whole {
            let message = wire.input.split_off(2);
            self.server_said(self.clock, flow, &message);
        }
        got
    }
}
