//! The policy of a sandbox's network, as people write it.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use msb_net::policy::{Document, Policy};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// The longest policy file that is read: a million blocked names.
const MAX_FILE: u64 = 32 << 20;

/// What a sandbox may reach: an ordered list of rules, of which the first that matches
/// decides, above a preset. The default is [`public_only`](Self::public_only).
///
/// ```
/// use msb_sdk::NetworkPolicy;
///
/// let policy = NetworkPolicy::public_only()
///     .rule("deny tcp 25")
///     .rule("allow tcp 5432 10.0.0.7")
///     .block_domain_suffix(".tracker.example");
/// policy.check()?;
/// # let text = policy.to_string();
/// # assert_eq!(text.parse::<NetworkPolicy>()?, policy);
/// # Ok::<(), msb_sdk::Error>(())
/// ```
///
/// A mistake in a rule is told by [`check`](Self::check), and by whatever makes a sandbox
/// with the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    policy: Policy,
    /// The first one.
    mistake: Option<Mistake>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mistake {
    text: String,
    source: msb_net::Error,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self::public_only()
    }
}

impl NetworkPolicy {
    /// Public addresses only: neither the host nor its networks, nor what a cloud tells
    /// its machines.
    #[must_use]
    pub fn public_only() -> Self {
        Policy::public_only().into()
    }

    /// Everything, the host and its networks among it.
    #[must_use]
    pub fn allow_all() -> Self {
        Policy::allow_all().into()
    }

    /// Nothing.
    #[must_use]
    pub fn none() -> Self {
        Policy::none().into()
    }

    /// Reads a policy file, TOML if it is named `*.toml`; [`msb_net`] has the grammar.
    ///
    /// # Errors
    /// [`Error::Unreadable`], and [`Error::PolicyFile`] with line and column of a mistake.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let document = read_document(path.as_ref())?;
        Ok(document.policy.into())
    }

    /// Adds a rule behind those already there.
    #[must_use]
    pub fn rule(self, rule: &str) -> Self {
        self.with(rule, |policy| policy.rule(rule.parse()?))
    }

    /// Adds rules ahead of those already there, in their order.
    #[must_use]
    pub fn rules_first<R: AsRef<str>>(self, rules: impl IntoIterator<Item = R>) -> Self {
        let mut first = Self::from(Policy::preset(self.policy.fallback()));
        for rule in rules {
            first = first.rule(rule.as_ref());
        }
        first.mistake = first.mistake.or(self.mistake);
        for rule in self.policy.rules() {
            first = first.with("", |policy| policy.rule(rule.clone()));
        }
        for suffix in self.policy.blocked() {
            first = first.with("", |policy| policy.block_domain_suffix(suffix.clone()));
        }
        first
    }

    /// Denies a name and everything below it, ahead of all rules. A dot in front
    /// changes nothing.
    #[must_use]
    pub fn block_domain_suffix(self, suffix: &str) -> Self {
        let name = suffix.strip_prefix('.').unwrap_or(suffix);
        self.with(suffix, |policy| policy.block_domain_suffix(name.parse()?))
    }

    /// Tells the first mistake in what was added, if there is one.
    ///
    /// # Errors
    /// [`Error::PolicyRule`] for a text that is no rule or name, and for too many.
    pub fn check(&self) -> Result<(), Error> {
        match &self.mistake {
            None => Ok(()),
            Some(mistake) => Err(Error::PolicyRule {
                rule: mistake.text.clone(),
                source: mistake.source.clone(),
            }),
        }
    }

    /// Changes the policy by what `text` says, unless there was a mistake before.
    fn with(
        mut self,
        text: &str,
        change: impl FnOnce(Policy) -> Result<Policy, msb_net::Error>,
    ) -> Self {
        if self.mistake.is_none() {
            match change(std::mem::take(&mut self.policy)) {
                Ok(policy) => self.policy = policy,
                Err(source) => {
                    let text = shown_rule(text);
                    self.mistake = Some(Mistake { text, source });
                }
            }
        }
        self
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl From<Policy> for NetworkPolicy {
    fn from(policy: Policy) -> Self {
        Self {
            policy,
            mistake: None,
        }
    }
}

/// How much of a rule is shown in an error, in characters.
const MAX_SHOWN: usize = 200;

/// A rule as messages show it: up to where a credential may stand that was put beside its name.
pub(crate) fn shown_rule(text: &str) -> String {
    let mut shown = Vec::new();
    for word in text.split_whitespace() {
        let is_last = matches!(shown.last(), Some(&("with" | "without")));
        if is_last || word.contains(['=', '@']) {
            shown.push("…");
            break;
        }
        shown.push(word);
    }
    shown.join(" ").chars().take(MAX_SHOWN).collect()
}

/// Reads a policy file with what its author expects of it: TOML where its name says so.
pub(crate) fn read_document(path: &Path) -> Result<Document, Error> {
    let unreadable = |source| Error::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let read = io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE + 1), &mut text);
    if read.map_err(unreadable)? as u64 > MAX_FILE {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    Document::from_file(path, &text).map_err(|source| Error::PolicyFile {
        path: path.to_owned(),
        source,
    })
}

impl FromStr for NetworkPolicy {
    type Err = Error;

    /// Reads a policy's text.
    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(Policy::from_str(text)?.into())
    }
}

impl fmt::Display for NetworkPolicy {
    /// Writes the policy in the grammar it is read in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.policy.fmt(f)
    }
}

impl Serialize for NetworkPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.check().map_err(serde::ser::Error::custom)?;
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetworkPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_in_a_rule_tells_no_value() {
        for rule in [
            "allow http a.example with authorization=HUNTER2",
            "allow http a.example with authorization HUNTER2",
            "allow http a.example authorization=HUNTER2",
            "allow http a.example/v1?key=HUNTER2",
            "TOKEN=HUNTER2@a.example",
            "allow tcp 443 me:HUNTER2@a.example",
        ] {
            let policy = NetworkPolicy::public_only().rule(rule);
            let error = policy.check().expect_err(rule);
            let told = format!("{error} {error:?}");
            assert!(!told.to_uppercase().contains("HUNTER2"), "{rule}: {told}");
        }
    }
}
