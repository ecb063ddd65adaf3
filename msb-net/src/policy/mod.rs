//! What a guest may reach.
//!
//! A [`Policy`] is a block list, ordered rules of which the first match wins,
//! and a [`Preset`] that answers for what no rule matches. Deciding is a pure
//! function of the policy and the facts of one flow: no clock, no state, no I/O.
//! What enforces the verdicts is not here.
//!
//! - [`Policy::decide`] judges a flow, [`Policy::decide_query`] a name query,
//!   [`Policy::admits_answer`] an address in the answer to one.
//! - [`Policy::decide_request`] judges an HTTP request over a flow whose requests
//!   are read, as [`Policy::reads_requests`] says.
//! - [`Policy::explain`] says which rule decides and why no earlier one did.
//! - [`Document`] is a policy text, or a TOML file, together with what its author
//!   expects of it.

mod decide;
mod expect;
mod explain;
mod parse;
mod request;
mod rule;
#[cfg(test)]
mod tests;
mod toml;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

pub use self::decide::{Claim, Decider, Flow, Names, Transport, Verdict};
pub use self::expect::{Document, Expectation, Failure, Subject};
pub use self::explain::{Explanation, Mismatch, Step};
pub use self::request::{Asked, Reads, Requests};
pub use self::rule::{Action, Addresses, Direction, Pattern, Ports, Protocol, Rule, Target};
use crate::{Error, Name};

/// The most rules in a policy: each flow may be held against all of them, and a
/// name list longer than this belongs into the block list.
pub const MAX_RULES: usize = 4096;

/// The most suffixes in a block list: the largest public lists have several
/// hundred thousand.
pub const MAX_BLOCKED: usize = 1_000_000;

/// What happens to outgoing flows and queries that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Public addresses may be reached, internal ones may not.
    #[default]
    PublicOnly,
    /// Everything may be reached.
    AllowAll,
    /// Nothing may be reached.
    None,
}

impl Preset {
    const ALL: [Self; 3] = [Self::PublicOnly, Self::AllowAll, Self::None];

    /// Returns the word that stands for the preset in policy text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PublicOnly => "public-only",
            Self::AllowAll => "allow-all",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a guest may reach.
///
/// ```
/// use msb_net::policy::{Action, Flow, Names, Policy};
///
/// let policy = Policy::public_only().rule("allow tcp 5432 10.0.0.7".parse()?)?;
/// let database = Flow::tcp("10.0.0.7".parse().unwrap(), 5432);
/// let metadata = Flow::tcp("169.254.169.254".parse().unwrap(), 80);
/// assert_eq!(policy.decide(&database, &Names::default()).action, Action::Allow);
/// assert_eq!(policy.decide(&metadata, &Names::default()).action, Action::Deny);
/// # Ok::<(), msb_net::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    preset: Preset,
    rules: Vec<Rule>,
    blocked: BTreeSet<Name>,
}

impl Policy {
    /// A policy without rules.
    pub const fn preset(preset: Preset) -> Self {
        Self {
            preset,
            rules: Vec::new(),
            blocked: BTreeSet::new(),
        }
    }

    /// Public addresses only: the default.
    pub const fn public_only() -> Self {
        Self::preset(Preset::PublicOnly)
    }

    /// Everything.
    pub const fn allow_all() -> Self {
        Self::preset(Preset::AllowAll)
    }

    /// Nothing.
    pub const fn none() -> Self {
        Self::preset(Preset::None)
    }

    /// Adds a rule behind those already there.
    ///
    /// # Errors
    ///
    /// There are [`MAX_RULES`] already.
    pub fn rule(mut self, rule: Rule) -> Result<Self, Error> {
        self.push(rule)?;
        Ok(self)
    }

    /// Denies a name and everything below it, ahead of all rules.
    ///
    /// # Errors
    ///
    /// There are [`MAX_BLOCKED`] already.
    pub fn block_domain_suffix(mut self, suffix: Name) -> Result<Self, Error> {
        self.block(suffix)?;
        Ok(self)
    }

    fn push(&mut self, rule: Rule) -> Result<(), Error> {
        if self.rules.len() >= MAX_RULES {
            return Err(Error::TooManyRules { max: MAX_RULES });
        }
        self.rules.push(rule);
        Ok(())
    }

    fn block(&mut self, suffix: Name) -> Result<(), Error> {
        if self.blocked.len() >= MAX_BLOCKED {
            return Err(Error::TooManyBlocked { max: MAX_BLOCKED });
        }
        self.blocked.insert(suffix);
        Ok(())
    }

    /// Returns the rules in the order in which they are tried.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Returns what answers for flows that no rule matches.
    pub const fn fallback(&self) -> Preset {
        self.preset
    }

    /// Iterates over the blocked suffixes.
    pub fn blocked(&self) -> impl Iterator<Item = &Name> {
        self.blocked.iter()
    }

    /// Finds the longest blocked suffix that `name` falls under.
    pub fn blocking(&self, name: &Name) -> Option<&Name> {
        name.suffixes().find_map(|suffix| self.blocked.get(suffix))
    }
}

impl FromStr for Policy {
    type Err = Error;

    /// Reads a policy text; its expectations are checked for syntax only.
    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(text.parse::<Document>()?.policy)
    }
}

impl fmt::Display for Policy {
    /// Writes the policy in the grammar it is read in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "preset {}", self.preset)?;
        for suffix in &self.blocked {
            writeln!(f, "block {suffix}")?;
        }
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        Ok(())
    }
}
