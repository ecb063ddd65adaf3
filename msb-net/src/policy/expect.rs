//! Policy texts that say what they are meant to do, and the check that they do.

use std::fmt;

use super::{Action, Asked, Claim, Direction, Explanation, Flow, Names, Policy, Transport};
use crate::Name;

/// A policy text: the policy and what its author expects of it.
///
/// ```
/// use msb_net::policy::Document;
///
/// let document: Document = "
///     allow tcp 443 api.github.com
///     expect allow tcp 443 api.github.com
///     expect deny tcp 443 api.github.com sni evil.example
///     expect deny dns evil.example
/// ".parse()?;
/// assert_eq!(document.failures().count(), 0);
/// # Ok::<(), msb_net::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The policy.
    pub policy: Policy,
    /// The expectations, in the order of the text.
    pub expectations: Vec<Expectation>,
}

/// One `expect` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Where it stands in the text, from 1.
    pub line: usize,
    /// What should happen.
    pub action: Action,
    /// To what.
    pub subject: Subject,
}

/// What an expectation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A query for a name.
    Query(Name),
    /// A flow.
    Flow {
        /// Its facts.
        flow: Flow,
        /// The name that the address was found under.
        name: Option<Name>,
        /// The name the client claims: unknown, kept back or given.
        claim: Option<Option<Name>>,
    },
    /// An HTTP request.
    Request {
        /// The flow that carries it.
        flow: Flow,
        /// The host it is for.
        host: Name,
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// The names of header fields that it has.
        fields: Vec<String>,
    },
}

/// An expectation that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    /// The expectation.
    pub expectation: &'a Expectation,
    /// What happens instead.
    pub instead: Explanation,
}

impl Document {
    /// Iterates over the expectations that the policy does not fulfil.
    pub fn failures(&self) -> impl Iterator<Item = Failure<'_>> {
        self.expectations.iter().filter_map(|expectation| {
            let instead = self.policy.explain_subject(&expectation.subject);
            (instead.verdict.action != expectation.action).then_some(Failure {
                expectation,
                instead,
            })
        })
    }
}

impl Policy {
    /// Judges what an expectation is about and says how.
    pub fn explain_subject(&self, subject: &Subject) -> Explanation {
        match subject {
            Subject::Query(name) => {
                let verdict = self.decide_query(name);
                Explanation {
                    decider: self.describe(&verdict.by),
                    verdict,
                    passed_over: Vec::new(),
                }
            }
            Subject::Request {
                flow,
                host,
                method,
                path,
                fields,
            } => {
                let methods = &[method.as_str()];
                let fields: &Vec<_> = &fields.iter().map(String::as_str).collect();
                let bound = std::slice::from_ref(host);
                let claim = Claim::Name(host);
                let names = Names { bound, claim };
                // A request over a flow that may not open is not made.
                if self.decide(flow, &names).action == Action::Deny {
                    return self.explain(flow, &names);
                }
                self.explain_request(
                    flow,
                    &names,
                    &Asked {
                        methods,
                        path,
                        fields,
                    },
                )
            }
            Subject::Flow { flow, name, claim } => {
                let claim = match claim {
                    None => Claim::Pending,
                    Some(None) => Claim::Absent,
                    Some(Some(name)) => Claim::Name(name),
                };
                let bound = name.as_slice();
                self.explain(flow, &Names { bound, claim })
            }
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flow, name, claim) = match self {
            Self::Query(name) => return write!(f, "dns {name}"),
            Self::Request {
                flow,
                host,
                method,
                path,
                fields,
            } => {
                write!(f, "http {method} {host}{path} at {}", flow.address)?;
                return match fields.is_empty() {
                    true => Ok(()),
                    false => write!(f, " with {}", fields.join(",")),
                };
            }
            Self::Flow { flow, name, claim } => (flow, name, claim),
        };
        if flow.direction == Direction::In {
            f.write_str("in ")?;
        }
        match flow.transport {
            Transport::Tcp(port) => write!(f, "tcp {port} ")?,
            Transport::Udp(port) => write!(f, "udp {port} ")?,
            Transport::Icmp => f.write_str("icmp ")?,
        }
        match name {
            _ if flow.is_host => f.write_str("host")?,
            Some(name) => write!(f, "{name} at {}", flow.address)?,
            None => write!(f, "{}", flow.address)?,
        }
        match claim {
            None => Ok(()),
            Some(None) => f.write_str(" no-sni"),
            Some(Some(name)) => write!(f, " sni {name}"),
        }
    }
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Expectation {
            line,
            action,
            subject,
        } = self.expectation;
        write!(
            f,
            "line {line}: expected {action} {subject}\n{}",
            self.instead
        )
    }
}
