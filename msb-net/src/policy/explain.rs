//! Which rule decides a flow, and why no earlier one did.

use std::fmt;

use super::decide::Evidence;
use super::{Claim, Decider, Flow, Names, Policy, Verdict};

/// The first part of a rule that does not fit a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mismatch {
    /// The rule is about flows the other way.
    Direction,
    /// Another protocol.
    Protocol,
    /// Another port.
    Port,
    /// The address is not among the rule's, or not in every form it stands for.
    Address,
    /// No name that is known of the destination fits.
    Name,
    /// Another method or path.
    Request,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direction => "other direction",
            Self::Protocol => "other protocol",
            Self::Port => "other port",
            Self::Address => "address not covered",
            Self::Name => "name not proven",
            Self::Request => "other requests",
        })
    }
}

/// A rule that was tried and did not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its index in [`Policy::rules`].
    pub index: usize,
    /// Its text.
    pub rule: String,
    /// Why it did not match.
    pub mismatch: Mismatch,
}

/// How a verdict came about. Its [`Display`](fmt::Display) is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict.
    pub verdict: Verdict,
    /// What came to it, in words.
    pub decider: String,
    /// The rules before it.
    pub passed_over: Vec<Step>,
}

impl Policy {
    /// Judges a flow as [`decide`](Self::decide) does and says how.
    pub fn explain(&self, flow: &Flow, names: &Names<'_>) -> Explanation {
        let verdict = self.decide(flow, names);
        let tried = match verdict.by {
            Decider::Rule(index) => index,
            Decider::Blocked(_) => 0,
            _ => self.rules.len(),
        };
        let claim = match names.claim {
            Claim::Pending => Claim::None,
            claim => claim,
        };
        let bound = names.bound;
        let evidence = Evidence::new(&Names { bound, claim });
        let passed_over = self.rules[..tried]
            .iter()
            .enumerate()
            .map(|(index, rule)| {
                Step {
                    index,
                    rule: rule.to_string(),
                    // A verdict that foresees several claims can pass over a
                    // rule that fits one of them: only the name differs.
                    mismatch: rule
                        .mismatch(flow, &evidence, None)
                        .unwrap_or(Mismatch::Name),
                }
            })
            .collect();
        Explanation {
            decider: self.describe(&verdict.by),
            verdict,
            passed_over,
        }
    }

    /// Puts into words what came to a verdict.
    pub fn describe(&self, by: &Decider) -> String {
        match by {
            Decider::Blocked(suffix) => format!("the block list has {suffix}"),
            Decider::Rule(index) => match self.rules.get(*index) {
                Some(rule) => format!("rule {}: {rule}", index + 1),
                None => format!("rule {}", index + 1),
            },
            Decider::Preset(preset) => format!("no rule matches, and the preset is {preset}"),
            Decider::Published => "the port is published and no rule matches".into(),
            Decider::Quic => "a server name or requests must be checked, which QUIC hides".into(),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verdict.action, self.decider)?;
        if self.verdict.inspect {
            f.write_str(", once the client's claim of a name has been checked")?;
        }
        for step in &self.passed_over {
            write!(
                f,
                "\n  not rule {}: {} ({})",
                step.index + 1,
                step.rule,
                step.mismatch
            )?;
        }
        Ok(())
    }
}
