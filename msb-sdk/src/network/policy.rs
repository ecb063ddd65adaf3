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
///     .rule("deny tcp 25")?
///     .rule("allow tcp 5432 10.0.0.7")?
///     .block_domain_suffix(".tracker.example")?;
/// # let text = policy.to_string();
/// # assert_eq!(text.parse::<NetworkPolicy>()?, policy);
/// # Ok::<(), msb_sdk::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy(Policy);

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
        Self(Policy::public_only())
    }

    /// Everything, the host and its networks among it.
    #[must_use]
    pub fn allow_all() -> Self {
        Self(Policy::allow_all())
    }

    /// Nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(Policy::none())
    }

    /// Reads a policy file; [`msb_net`] has its grammar.
    ///
    /// # Errors
    /// [`Error::Unreadable`], and [`Error::PolicyFile`] with line and column of a mistake.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let document = read_document(path.as_ref())?;
        Ok(Self(document.policy))
    }

    /// Adds a rule behind those already there.
    ///
    /// # Errors
    /// [`Error::Network`] for a text that is no rule, and for too many.
    pub fn rule(self, rule: &str) -> Result<Self, Error> {
        Ok(Self(self.0.rule(parse(rule)?)?))
    }

    /// Adds rules ahead of those already there, in their order.
    ///
    /// # Errors
    /// As [`NetworkPolicy::rule`].
    pub fn rules_first<R: AsRef<str>>(
        self,
        rules: impl IntoIterator<Item = R>,
    ) -> Result<Self, Error> {
        let mut policy = Policy::preset(self.0.fallback());
        for rule in rules {
            policy = policy.rule(parse(rule.as_ref())?)?;
        }
        for rule in self.0.rules() {
            policy = policy.rule(rule.clone())?;
        }
        for suffix in self.0.blocked() {
            policy = policy.block_domain_suffix(suffix.clone())?;
        }
        Ok(Self(policy))
    }

    /// Denies a name and everything below it, ahead of all rules. A dot in front
    /// changes nothing.
    ///
    /// # Errors
    /// [`Error::Network`] for what is no domain name, and for too many.
    pub fn block_domain_suffix(self, suffix: &str) -> Result<Self, Error> {
        let name = suffix.strip_prefix('.').unwrap_or(suffix);
        Ok(Self(self.0.block_domain_suffix(name.parse()?)?))
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.0
    }
}

fn parse(rule: &str) -> Result<msb_net::policy::Rule, Error> {
    rule.parse().map_err(|source| Error::PolicyRule {
        rule: rule.chars().take(MAX_SHOWN).collect(),
        source,
    })
}

/// How much of a rule is shown in an error, in characters.
const MAX_SHOWN: usize = 200;

/// Reads a policy file with what its author expects of it.
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
    text.parse().map_err(|source| Error::PolicyFile {
        path: path.to_owned(),
        source,
    })
}

impl FromStr for NetworkPolicy {
    type Err = Error;

    /// Reads a policy's text.
    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(Self(text.parse()?))
    }
}

impl fmt::Display for NetworkPolicy {
    /// Writes the policy in the grammar it is read in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for NetworkPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetworkPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
