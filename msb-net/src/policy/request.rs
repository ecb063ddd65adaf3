//! The verdict on one HTTP request.
//!
//! A rule with `http` in it is about requests. At the flow that carries them, one
//! that allows lets the flow open, on the condition that its requests are read;
//! one that denies does not keep it from opening. Then each request meets all
//! rules again, in order, and now those with `http` match by method and path too.

use std::fmt;

use super::decide::Evidence;
use super::{
    Action, Addresses, Claim, Decider, Explanation, Flow, Names, Policy, Preset, Protocol, Rule,
    Step, Transport, Verdict,
};
use super::{Pattern, Target};
use crate::Name;
use crate::http::path::PathPattern;

/// Which requests a rule is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requests {
    /// The methods; none means all.
    pub methods: Vec<String>,
    /// The paths; none means all.
    pub path: Option<PathPattern>,
    /// Header fields that a request must have, in lower case.
    pub with: Vec<String>,
    /// Header fields that it must not have.
    pub without: Vec<String>,
}

impl Requests {
    /// Tells whether a request is among them, on behalf of a rule with `action`: an
    /// allow rule must fit whatever a server takes the request for, a deny rule
    /// anything that one might.
    pub(super) fn hold(&self, asked: &Asked<'_>, action: Action) -> bool {
        let named = |method: &str| self.methods.iter().any(|own| own == method);
        let methods = &mut asked.methods.iter();
        let (method, path) = match action {
            Action::Allow => (
                methods.all(|method| named(method)),
                self.path
                    .as_ref()
                    .is_none_or(|own| own.matches_all(asked.path)),
            ),
            Action::Deny => (
                methods.any(|method| named(method)),
                self.path
                    .as_ref()
                    .is_none_or(|own| own.matches_any(asked.path)),
            ),
        };
        // Whether a field is there is one thing to every reader: what is sent on is
        // written anew.
        let has = |own: &String| asked.fields.contains(&own.as_str());
        let fields = self.with.iter().all(has) && !self.without.iter().any(has);
        (self.methods.is_empty() || method) && path && fields
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Its method, and those by which a server may replace it.
    pub methods: &'a [&'a str],
    /// Its path, as it came.
    pub path: &'a str,
    /// The names of its header fields, in lower case.
    pub fields: &'a [&'a str],
}

/// Whether the requests of a flow must be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reads {
    /// No rule is about them.
    Never,
    /// Some rule is about requests to any host: if it carries HTTP, they must.
    IfHttp,
    /// Some rule is about requests to this host: nothing else may pass.
    Always,
}

impl Policy {
    /// Judges a request over a flow that was allowed, to the host of the names.
    pub fn decide_request(&self, flow: &Flow, names: &Names<'_>, asked: &Asked<'_>) -> Verdict {
        self.settle(flow, names, Some(asked))
    }

    /// Tells whether the requests of a flow must be read, because some rule is about
    /// requests to one of its names. Whatever the client claims counts, and whatever
    /// the resolver bound to the address.
    pub fn reads_requests(&self, flow: &Flow, names: &Names<'_>) -> Reads {
        let claim = match names.claim {
            Claim::Name(name) => Some(name),
            _ => None,
        };
        let about = |pattern: &Pattern| names.bound.iter().chain(claim).any(|n| pattern.matches(n));
        let own =
            |rule: &&Rule| rule.protocol == Protocol::Http && rule.direction == flow.direction;
        let reads = |rule: &Rule| match &rule.target {
            Target::Names { pattern, .. } if about(pattern) => Reads::Always,
            Target::Names { .. } => Reads::Never,
            Target::Any | Target::Addresses(_) => Reads::IfHttp,
        };
        let all = self.rules.iter().filter(own).map(reads);
        all.max().unwrap_or(Reads::Never)
    }

    /// Tells whether some rule is about the requests of this very server, by one of its names
    /// or by its address, so that it does not meet those in a tunnel, whose end has neither.
    pub(crate) fn is_about_server(&self, flow: &Flow, bound: &[Name]) -> bool {
        let Transport::Tcp(port) = flow.transport else {
            return false;
        };
        let holds = |set: &Addresses, flow: &Flow| set.hold(&flow.peer(), Action::Deny);
        let end = Flow::by_name(port);
        self.rules.iter().any(|rule| {
            let own = rule.protocol == Protocol::Http && rule.direction == flow.direction;
            own && match &rule.target {
                Target::Any => false,
                Target::Addresses(set) => holds(set, flow) && !holds(set, &end),
                Target::Names { pattern, .. } => bound.iter().any(|name| pattern.matches(name)),
            }
        })
    }

    /// Tells whether any rule is about requests at all.
    pub fn has_request_rules(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.protocol == Protocol::Http)
    }

    /// Tells whether who allowed something by its name meant names of the inside, too: a rule
    /// with names in it, or one about everything.
    pub(crate) fn is_about_inside(&self, by: &Decider) -> bool {
        match by {
            Decider::Rule(index) => self
                .rules
                .get(*index)
                .is_some_and(|rule| matches!(rule.target, Target::Names { .. } | Target::Any)),
            Decider::Preset(preset) => *preset == Preset::AllowAll,
            _ => false,
        }
    }

    /// Tells whether who decided is a rule that names a method.
    pub(crate) fn is_about_method(&self, by: &Decider, method: &str) -> bool {
        let rule = match by {
            Decider::Rule(index) => self.rules.get(*index),
            _ => None,
        };
        let requests = rule.and_then(|rule| rule.requests.as_ref());
        requests.is_some_and(|own| own.methods.iter().any(|own| own == method))
    }

    /// Judges a request as [`decide_request`](Self::decide_request) does and says how.
    pub fn explain_request(
        &self,
        flow: &Flow,
        names: &Names<'_>,
        asked: &Asked<'_>,
    ) -> Explanation {
        let verdict = self.decide_request(flow, names, asked);
        let tried = match verdict.by {
            Decider::Rule(index) => index,
            Decider::Blocked(_) => 0,
            _ => self.rules.len(),
        };
        let evidence = Evidence::new(names);
        let step = |(index, rule): (usize, &Rule)| {
            let mismatch = rule.mismatch(flow, &evidence, Some(asked))?;
            let rule = rule.to_string();
            Some(Step {
                index,
                rule,
                mismatch,
            })
        };
        Explanation {
            decider: self.describe(&verdict.by),
            verdict,
            passed_over: self.rules[..tried]
                .iter()
                .enumerate()
                .filter_map(step)
                .collect(),
        }
    }
}

/// A host and a path as they stand in a rule.
pub(super) struct Shown<'a>(pub(super) &'a Rule, pub(super) &'a Requests);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rule, requests) = self;
        if !requests.methods.is_empty() {
            write!(f, " {}", requests.methods.join(","))?;
        }
        let path = requests.path.as_ref().map(PathPattern::to_string);
        let path = path.unwrap_or_default();
        match &rule.target {
            Target::Names { pattern, at } => {
                match pattern {
                    Pattern::Domain(name) => write!(f, " domain {name}{path}")?,
                    Pattern::Suffix(name) => write!(f, " suffix {name}{path}")?,
                }
                at.iter().try_for_each(|at| write!(f, " at {at}"))?;
            }
            Target::Any => write!(f, " any{path}")?,
            Target::Addresses(addresses) => write!(f, " {addresses}{path}")?,
        }
        for (word, names) in [("with", &requests.with), ("without", &requests.without)] {
            if !names.is_empty() {
                write!(f, " {word} {}", names.join(","))?;
            }
        }
        Ok(())
    }
}
