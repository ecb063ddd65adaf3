//! The second judgement of a TCP flow: by the name that its client claims.
//!
//! What is read of the client's first bytes, and how, is [`claim`]'s part.

use smoltcp::socket::tcp::State;

use super::event::Event;
use super::event::Refusal;
use super::{Action, FlowId, Gateway, policy};
use crate::Name;
use crate::claim::{self, Claimed, Line};
use crate::http::session::Note;
use crate::policy::{Claim, Decider, Names, Pattern, Reads, Verdict};

/// What a flow was judged by when it opened, and will be again.
pub(super) struct Unjudged {
    pub(super) facts: policy::Flow,
    pub(super) bound: Vec<Name>,
    /// The policy wants it, and not only whoever takes flows apart.
    pub(super) inspect: bool,
}

/// A flow that passes although its first line may yet become that of a request, which would
/// have had to be looked at.
pub(super) struct Watched {
    pub(super) line: Line,
    facts: policy::Flow,
    name: Option<Name>,
    verdict: Verdict,
}

impl Gateway {
    /// Judges what the client claims, once that can be read.
    pub(super) fn examine(&mut self, id: FlowId) {
        let Some((socket, told)) = self.tcp.open(id) else {
            return;
        };
        let Some(unjudged) = &told.unjudged else {
            return;
        };
        let facts = unjudged.facts;
        let waiting = socket.recv_queue();
        let more_may_come = matches!(
            socket.state(),
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2
        );
        let spoke = told.received > 0;
        let bytes = socket.peek(claim::MAX_EXAMINED).unwrap_or(&[]);
        let claimed = match claim::examine(bytes) {
            // An answer to whoever spoke first, which no server of HTTP does.
            Claimed::Partial if spoke && waiting > 0 && claim::is_skipped(bytes) => {
                Claimed::Foreign
            }
            Claimed::Partial if more_may_come => return,
            // A client that ends without a word asks for nothing.
            Claimed::Partial if waiting == 0 => {
                told.unjudged = None;
                return;
            }
            Claimed::Partial => Claimed::Absent,
            claimed => claimed,
        };
        let kind = match claim::is_tunnel(bytes) && self.config.intercept.is_some() {
            true => Kind::Tunnel,
            false => Kind::of(bytes, &claimed),
        };
        let unclear = claimed == Claimed::Unclear;
        let claim = match &claimed {
            // Of the proxy it says nothing; whoever reads it judges the tunnel's end.
            _ if kind == Kind::Tunnel => Claim::None,
            claimed => claimed.by(facts.transport),
        };
        let Unjudged { bound, inspect, .. } = &**unjudged;
        let (names, inspect) = (Names { bound, claim }, *inspect);
        let verdict = self.config.policy.decide(&facts, &names);
        let way = match verdict.action {
            policy::Action::Allow => {
                let intercept = self.config.intercept.as_ref();
                way(
                    (&self.config.policy, intercept),
                    &facts,
                    &names,
                    &verdict,
                    kind,
                )
            }
            policy::Action::Deny => Way::Pass,
        };
        let name = bound.iter().rfind(|bound| claim == Claim::Name(bound));
        let name = name.or(bound.last()).cloned();
        let bound = bound.clone();
        told.unjudged = None;
        told.denied = verdict.action == policy::Action::Deny || way == Way::Refuse;
        if told.denied {
            socket.abort();
        }
        let denied = told.denied;
        told.watched = (unclear && !denied).then(|| {
            Box::new(Watched {
                line: Line::default(),
                facts,
                name: name.clone(),
                verdict: verdict.clone(),
            })
        });
        let claim = match claimed {
            Claimed::Name(name) => Some(name),
            _ => None,
        };
        if way == Way::Intercept {
            self.actions
                .push_back(Action::Intercept(Box::new(Intercepted {
                    flow: id,
                    facts,
                    host: claim.clone(),
                    bound,
                    secure: kind == Kind::Tls,
                })));
        }
        if way == Way::Spare {
            let (host, note) = (claim.clone(), Note::Passed);
            self.events.push(Event::Request {
                flow: id,
                host,
                note,
            });
        }
        if inspect || denied {
            self.events.push(Event::Decided {
                flow: (!denied).then_some(id),
                facts,
                name,
                claim,
                verdict,
                refusal: (way == Way::Refuse).then_some(Refusal::Unread),
            });
        }
        self.tcp.mark_ready(id);
    }

    /// Ends a flow whose first line became that of a request before anybody had it whole.
    pub(super) fn cut_request(&mut self, id: FlowId) {
        let Some((socket, told)) = self.tcp.open(id) else {
            return;
        };
        let Some(watched) = told.watched.take() else {
            return;
        };
        told.denied = true;
        socket.abort();
        let Watched {
            facts,
            name,
            verdict,
            ..
        } = *watched;
        self.events.push(Event::Decided {
            flow: None,
            facts,
            name,
            claim: None,
            verdict,
            refusal: Some(Refusal::Unread),
        });
        self.tcp.mark_ready(id);
    }

    /// Tells whether a flow's first bytes say if it has to be taken apart.
    pub(super) fn may_intercept(&self) -> bool {
        let wanted = |own: &Intercept| own.all || !own.hosts.is_empty();
        self.config.policy.has_request_rules() || self.config.intercept.as_ref().is_some_and(wanted)
    }
}

/// Which flows the driver is to take apart, beside those whose requests some rule is
/// about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intercept {
    /// Those to these hosts.
    pub hosts: Vec<Pattern>,
    /// All that are TLS or HTTP.
    pub all: bool,
    /// None to these hosts, unless a rule is about their requests.
    pub passthrough: Vec<Pattern>,
}

/// A flow to be taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercepted {
    /// The flow.
    pub flow: FlowId,
    /// What it was judged by.
    pub facts: policy::Flow,
    /// The host that the client claims, if it does.
    pub host: Option<Name>,
    /// Names that the resolver bound to its address.
    pub bound: Vec<Name>,
    /// Whether it begins with TLS; otherwise with HTTP.
    pub secure: bool,
}

/// What a flow begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tls,
    Http,
    /// A request for a tunnel, where those are looked into.
    Tunnel,
    Other,
}

impl Kind {
    /// Tells what a flow begins with that claims this.
    pub(crate) fn of(bytes: &[u8], claimed: &Claimed) -> Self {
        match bytes.first() {
            Some(&TLS_HANDSHAKE) => Self::Tls,
            _ if matches!(claimed, Claimed::Foreign | Claimed::Unclear) => Self::Other,
            _ => Self::Http,
        }
    }
}

/// What happens to a flow that may pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Pass,
    /// It passes because its host is to be left alone; else it would be taken apart.
    Spare,
    Intercept,
    Refuse,
}

/// The first byte of TLS (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Says what happens to a flow that the policy allows.
pub(crate) fn way(
    (policy, intercept): (&policy::Policy, Option<&Intercept>),
    facts: &policy::Flow,
    names: &Names<'_>,
    verdict: &policy::Verdict,
    kind: Kind,
) -> Way {
    let by_request = |index: usize| policy.rules()[index].protocol == policy::Protocol::Http;
    let only_requests = matches!(verdict.by, Decider::Rule(index) if by_request(index));
    let reads = policy.reads_requests(facts, names);
    let must = match (reads, kind) {
        (Reads::Always, _) => true,
        (Reads::IfHttp, Kind::Tls | Kind::Http | Kind::Tunnel) => true,
        // A later request of the connection may be to a host that has rules; so may one that
        // names its host in no way that is read here, such as HTTP/2.
        (_, Kind::Http) => policy.has_request_rules(),
        _ => only_requests,
    };
    let claim = match names.claim {
        Claim::Name(name) => Some(name),
        _ => None,
    };
    let has = |patterns: &[Pattern]| {
        let fits = |name: &Name| patterns.iter().any(|pattern| pattern.matches(name));
        claim.is_some_and(fits) || names.bound.iter().any(fits)
    };
    let wanted = |own: &Intercept| kind != Kind::Other && (own.all || has(&own.hosts));
    let spared =
        |own: &Intercept| claim.is_some_and(|n| own.passthrough.iter().any(|p| p.matches(n)));
    match intercept {
        _ if must && kind == Kind::Other => Way::Refuse,
        None if must => Way::Refuse,
        Some(_) if must || kind == Kind::Tunnel => Way::Intercept,
        Some(own) if wanted(own) && spared(own) => Way::Spare,
        Some(own) if wanted(own) => Way::Intercept,
        _ => Way::Pass,
    }
}
