//! The verdict on one flow, one query, one answer.
//!
//! A name rule matches a flow by two kinds of evidence: *bound* names, to which
//! this gateway's own resolver answered with the flow's address, and the
//! *claim*, the name the client itself gives (TLS server name, HTTP host). An
//! allow rule needs a bound name and, where a claim can be had, one that agrees;
//! a deny rule needs either. When a flow opens, the claim is still to come:
//! [`Claim::Pending`] stands for every claim that may follow, and the verdict
//! says whether to wait for it.

use std::net::{IpAddr, Ipv4Addr};

use super::explain::Mismatch;
use super::request::{Asked, Reads};
use super::rule::Peer;
use super::{Action, Direction, Policy, Preset, Protocol, Rule, Target};
use crate::Name;
use crate::addr::{Faces, Group};

use super::{Addresses, Ports};

/// Ports on which a client is known to speak first and to say whom it wants, so
/// that silence about it is suspicious: TLS from its first byte, or HTTP.
const CLAIMING_PORTS: &[u16] = &[
    80, 443, 465, 563, 636, 853, 989, 990, 992, 993, 994, 995, 3269, 5061, 5223, 5671, 6443, 6697,
    8000, 8008, 8080, 8443, 8883, 8888,
];

/// The port of HTTP/3, whose server name is encrypted out of a gateway's reach.
const QUIC_PORT: u16 = 443;

/// Protocol and port of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// TCP to a port.
    Tcp(u16),
    /// UDP to a port.
    Udp(u16),
    /// Echo requests.
    Icmp,
}

/// What is known of a flow when it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who opens it.
    pub direction: Direction,
    /// Protocol and destination port.
    pub transport: Transport,
    /// The destination, or with [`Direction::In`] the origin.
    pub address: IpAddr,
    /// Whether `address` is the one that stands for the host of the sandbox.
    pub is_host: bool,
}

impl Flow {
    /// An outgoing TCP flow.
    pub const fn tcp(address: IpAddr, port: u16) -> Self {
        Self::out(Transport::Tcp(port), address)
    }

    /// An outgoing UDP flow.
    pub const fn udp(address: IpAddr, port: u16) -> Self {
        Self::out(Transport::Udp(port), address)
    }

    /// An outgoing echo request.
    pub const fn icmp(address: IpAddr) -> Self {
        Self::out(Transport::Icmp, address)
    }

    /// An outgoing TCP flow of whose end only a name is known, such as that of a tunnel
    /// which somebody else opens.
    pub(crate) const fn by_name(port: u16) -> Self {
        Self::tcp(SOME_PUBLIC, port)
    }

    const fn out(transport: Transport, address: IpAddr) -> Self {
        Self {
            direction: Direction::Out,
            transport,
            address,
            is_host: false,
        }
    }

    /// Its other end.
    pub(super) fn peer(&self) -> Peer {
        Peer {
            faces: Faces::of(self.address),
            is_host: self.is_host,
        }
    }
}

/// The name a client gives for the host it wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Claim<'a> {
    /// Not seen yet.
    #[default]
    Pending,
    /// The protocol has none.
    None,
    /// The protocol has one and the client kept it back.
    Absent,
    /// This one.
    Name(&'a Name),
}

/// The names that are known of a flow's destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names<'a> {
    /// Names to which our own resolver answered with the address.
    pub bound: &'a [Name],
    /// What the client says.
    pub claim: Claim<'a>,
}

/// What came to the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Decider {
    /// The block list, by this suffix.
    Blocked(Name),
    /// The rule at this index of [`Policy::rules`].
    Rule(usize),
    /// No rule matched.
    Preset(Preset),
    /// No rule matched an incoming flow: publishing the port allowed it.
    Published,
    /// A server name would have to be checked, and QUIC hides it.
    Quic,
}

/// What happens to a flow or query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// Whether it passes.
    pub action: Action,
    /// Who says so.
    pub by: Decider,
    /// The flow may open, but the client's first bytes must be held back until
    /// a second decision on the name they claim. Only ever set with
    /// [`Action::Allow`] and [`Claim::Pending`].
    pub inspect: bool,
}

impl Verdict {
    fn new(action: Action, by: Decider) -> Self {
        Self {
            action,
            by,
            inspect: false,
        }
    }
}

/// The names that count for allow rules and for deny rules.
///
/// | claim | allow | deny |
/// |---|---|---|
/// | none in this protocol | bound | bound |
/// | a bound name | it | it |
/// | another name | nothing | bound, and it |
/// | kept back | nothing | bound |
#[derive(Clone, Copy)]
pub(super) struct Evidence<'a> {
    allow: &'a [Name],
    deny: &'a [Name],
    unbound: Option<&'a Name>,
}

impl Transport {
    /// Tells whether a client on this port is known to speak first and to say
    /// whom it wants, so that one that does not has kept it back:
    /// [`Claim::Absent`] instead of [`Claim::None`].
    pub fn must_claim(self) -> bool {
        matches!(self, Self::Tcp(port) if CLAIMING_PORTS.contains(&port))
    }
}

impl<'a> Evidence<'a> {
    pub(super) fn new(names: &Names<'a>) -> Self {
        let (allow, deny, unbound): (&[Name], _, _) = match names.claim {
            Claim::None => (names.bound, names.bound, None),
            Claim::Pending | Claim::Absent => (&[], names.bound, None),
            Claim::Name(claim) => match names.bound.iter().find(|bound| *bound == claim) {
                Some(bound) => {
                    let only = std::slice::from_ref(bound);
                    (only, only, None)
                }
                None => (&[], names.bound, Some(claim)),
            },
        };
        Self {
            allow,
            deny,
            unbound,
        }
    }

    fn names(&self, action: Action) -> impl Iterator<Item = &'a Name> + use<'a> {
        let (names, extra) = match action {
            Action::Allow => (self.allow, None),
            Action::Deny => (self.deny, self.unbound),
        };
        names.iter().chain(extra)
    }
}

impl Policy {
    /// Judges a flow.
    pub fn decide(&self, flow: &Flow, names: &Names<'_>) -> Verdict {
        match (flow.direction, flow.transport, names.claim) {
            (Direction::Out, Transport::Tcp(_), Claim::Pending) => {
                self.decide_pending(flow, names.bound, !flow.transport.must_claim())
            }
            (Direction::Out, Transport::Udp(QUIC_PORT), _) => {
                let verdict = self.decide_pending(flow, names.bound, false);
                // Requests of HTTP/3 cannot be read.
                let unread = self.reads_requests(flow, names) != Reads::Never;
                if verdict.inspect || unread && verdict.action == Action::Allow {
                    Verdict::new(Action::Deny, Decider::Quic)
                } else {
                    verdict
                }
            }
            (_, _, Claim::Pending) => self.settle(
                flow,
                &Names {
                    bound: names.bound,
                    claim: Claim::None,
                },
                None,
            ),
            _ => self.settle(flow, names, None),
        }
    }

    /// Judges a query for `name`.
    ///
    /// A name may be asked for when some flow to it might be allowed: a rule
    /// that allows one port of a host is worth nothing without its address. A
    /// rule about blocks of addresses opens no names, except that of `public`.
    pub fn decide_query(&self, name: &Name) -> Verdict {
        self.decide_query_for(Some(name))
    }

    /// Judges a query for the root of all names, of which no rule can speak by name.
    pub fn decide_root_query(&self) -> Verdict {
        self.decide_query_for(None)
    }

    fn decide_query_for(&self, name: Option<&Name>) -> Verdict {
        if let Some(suffix) = name.and_then(|name| self.blocking(name)) {
            return Verdict::new(Action::Deny, Decider::Blocked(suffix.clone()));
        }
        let decides = |rule: &Rule| {
            let whole =
                matches!(rule.protocol, Protocol::Any | Protocol::Dns) && rule.ports.is_empty();
            let reaches = rule.action == Action::Allow || whole;
            rule.direction == Direction::Out
                && reaches
                && match &rule.target {
                    Target::Any => true,
                    Target::Addresses(Addresses::Group(Group::Public)) => {
                        rule.action == Action::Allow
                    }
                    Target::Addresses(_) => false,
                    Target::Names { pattern, at } => {
                        name.is_some_and(|name| pattern.matches(name))
                            && (at.is_none() || rule.action == Action::Allow)
                    }
                }
        };
        match self.rules.iter().position(decides) {
            Some(index) => Verdict::new(self.rules[index].action, Decider::Rule(index)),
            None => self.by_preset(self.preset != Preset::None),
        }
    }

    /// Tells whether `name` is refused by name: blocked, or denied by a rule
    /// that names it. Judges the aliases an answer leads through, which under a
    /// list of allowed names are never on the list themselves.
    pub fn names_as_denied(&self, name: &Name) -> bool {
        if self.blocking(name).is_some() {
            return true;
        }
        match self.decide_query(name).by {
            Decider::Rule(index) => {
                let rule = &self.rules[index];
                rule.action == Action::Deny && matches!(rule.target, Target::Names { .. })
            }
            _ => false,
        }
    }

    /// Tells whether an answer may say that `name` is at `address`.
    ///
    /// A public address may be anyone's. Another one is believed only when the
    /// policy allows that very address: on its own, or for this name with `at`.
    /// Otherwise whoever owns a name could point it at the inside.
    pub fn admits_answer(&self, name: &Name, address: IpAddr) -> bool {
        let faces = Faces::of(address);
        if faces.is_public() {
            return true;
        }
        let peer = Peer {
            faces,
            is_host: false,
        };
        let admits = |rule: &&Rule| {
            let whole = rule.protocol == Protocol::Any && rule.ports.is_empty();
            rule.direction == Direction::Out
                && rule.protocol != Protocol::Dns
                && (rule.action == Action::Allow || whole)
                && match &rule.target {
                    Target::Any => true,
                    Target::Addresses(addresses) => addresses.hold(&peer, rule.action),
                    Target::Names { pattern, at } => {
                        let there = at.map_or(rule.action == Action::Deny, |at| {
                            at.hold(&peer, rule.action)
                        });
                        pattern.matches(name) && there
                    }
                }
        };
        match self.rules.iter().find(admits) {
            Some(rule) => rule.action == Action::Allow,
            None => self.preset == Preset::AllowAll,
        }
    }

    /// Judges a flow whose claim is still to come, by judging every claim that
    /// could come. `silent` says whether a client may well make none.
    fn decide_pending(&self, flow: &Flow, bound: &[Name], silent: bool) -> Verdict {
        let with = |claim| self.settle(flow, &Names { bound, claim }, None);
        let absent = with(Claim::Absent);
        let mut outcomes = vec![];
        outcomes.extend(bound.iter().map(|name| with(Claim::Name(name))));
        outcomes.extend(silent.then(|| with(Claim::None)));
        // A name that is not bound meets the same rules as none at all, and
        // possibly one more that denies.
        let refusable = self.may_deny_unbound(flow, &absent.by);
        outcomes.push(absent);
        let one_verdict = outcomes.iter().all(|o| o.action == outcomes[0].action);
        let position = outcomes.iter().position(|o| o.action == Action::Allow);
        let Some(position) = position else {
            return outcomes.swap_remove(0);
        };
        let mut verdict = outcomes.swap_remove(position);
        verdict.inspect = !one_verdict || refusable;
        verdict
    }

    /// Tells whether a claimed name that is not bound could meet a denial ahead
    /// of the one who decides without it.
    fn may_deny_unbound(&self, flow: &Flow, by: &Decider) -> bool {
        let before = match by {
            Decider::Rule(index) => *index,
            _ => self.rules.len(),
        };
        let evidence = Evidence::new(&Names::default());
        !self.blocked.is_empty()
            || self.rules[..before].iter().any(|rule| {
                rule.action == Action::Deny
                    && rule.mismatch(flow, &evidence, None) == Some(Mismatch::Name)
            })
    }

    /// Judges a flow of which all is known, or a request over it.
    pub(super) fn settle(
        &self,
        flow: &Flow,
        names: &Names<'_>,
        asked: Option<&Asked<'_>>,
    ) -> Verdict {
        let evidence = Evidence::new(names);
        if flow.direction == Direction::Out {
            let mut denied = evidence.names(Action::Deny);
            if let Some(suffix) = denied.find_map(|name| self.blocking(name)) {
                return Verdict::new(Action::Deny, Decider::Blocked(suffix.clone()));
            }
        }
        let matching = |rule: &Rule| rule.mismatch(flow, &evidence, asked).is_none();
        match self.rules.iter().position(matching) {
            Some(index) => Verdict::new(self.rules[index].action, Decider::Rule(index)),
            None if flow.direction == Direction::In => {
                Verdict::new(Action::Allow, Decider::Published)
            }
            None => {
                let public = !flow.is_host && Faces::of(flow.address).is_public();
                self.by_preset(match self.preset {
                    Preset::PublicOnly => public,
                    Preset::AllowAll => true,
                    Preset::None => false,
                })
            }
        }
    }

    fn by_preset(&self, allowed: bool) -> Verdict {
        let action = if allowed { Action::Allow } else { Action::Deny };
        Verdict::new(action, Decider::Preset(self.preset))
    }
}

impl Rule {
    /// Finds the first part of the rule that does not fit a flow, or a request over it.
    pub(super) fn mismatch(
        &self,
        flow: &Flow,
        evidence: &Evidence<'_>,
        asked: Option<&Asked<'_>>,
    ) -> Option<Mismatch> {
        if self.direction != flow.direction {
            return Some(Mismatch::Direction);
        }
        let port = match (self.protocol, flow.transport) {
            (Protocol::Tcp | Protocol::Any | Protocol::Http, Transport::Tcp(port))
            | (Protocol::Udp | Protocol::Any, Transport::Udp(port)) => Some(port),
            (Protocol::Icmp | Protocol::Any, Transport::Icmp) => None,
            _ => return Some(Mismatch::Protocol),
        };
        let within = |port| self.ports.iter().any(|ports: &Ports| ports.contains(port));
        if !self.ports.is_empty() && !port.is_some_and(within) {
            return Some(Mismatch::Port);
        }
        let peer = flow.peer();
        let target = match &self.target {
            Target::Any => None,
            Target::Addresses(set) => (!set.hold(&peer, self.action)).then_some(Mismatch::Address),
            Target::Names { pattern, at } => {
                let there = match (at, self.action) {
                    (Some(at), action) => at.hold(&peer, action),
                    (None, Action::Allow) => !peer.is_host && peer.faces.is_public(),
                    (None, Action::Deny) => true,
                };
                if !there {
                    return Some(Mismatch::Address);
                }
                let named = evidence
                    .names(self.action)
                    .any(|name| pattern.matches(name));
                (!named).then_some(Mismatch::Name)
            }
        };
        let requests = self.requests.as_ref();
        target.or(match (requests, asked, self.action) {
            (None, ..) | (Some(_), None, Action::Allow) => None,
            // It is about some requests only.
            (Some(_), None, Action::Deny) => Some(Mismatch::Request),
            (Some(own), Some(asked), action) => {
                (!own.hold(asked, action)).then_some(Mismatch::Request)
            }
        })
    }
}

/// A public address for flows that are only given by name, taken from a block
/// that answers nobody (RFC 7535).
pub(super) const SOME_PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 31, 196, 1));
