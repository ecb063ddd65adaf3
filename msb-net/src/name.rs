//! Domain names in the one form in which they can be compared.
//!
//! Lower case, no final dot, letters, digits, `-` and `_` only (RFC 1123, 2.1,
//! plus the underscore of service names). Names with other bytes are legal in
//! the DNS (RFC 2181, 11) but no host is called so; they are refused. An
//! internationalized name is given in its `xn--` form (RFC 5890).

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, InvalidName, excerpt};

/// The longest name in text form, without the final dot (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 253;
/// The longest label (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// A checked domain name.
///
/// ```
/// use msb_net::Name;
///
/// let name: Name = "API.GitHub.com.".parse()?;
/// assert_eq!(name.as_str(), "api.github.com");
/// assert!(name.is_under(&"github.com".parse()?));
/// # Ok::<(), msb_net::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// Checks and normalizes `text`.
    ///
    /// # Errors
    ///
    /// Says what keeps the text from being a name.
    pub fn new(text: &str) -> Result<Self, Error> {
        check(text).map(Self).map_err(|reason| Error::Name {
            name: excerpt(text),
            reason,
        })
    }

    /// Returns the name in lower case without a final dot.
    pub const fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether this name is `suffix` or lies below it.
    pub fn is_under(&self, suffix: &Self) -> bool {
        self.suffixes().any(|own| own == suffix.as_str())
    }

    /// Iterates over the name and its parents, longest first.
    pub fn suffixes(&self) -> impl Iterator<Item = &str> {
        let mut rest = Some(self.as_str());
        std::iter::from_fn(move || {
            let current = rest?;
            rest = current.split_once('.').map(|(_, parent)| parent);
            Some(current)
        })
    }
}

fn check(text: &str) -> Result<Box<str>, InvalidName> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() {
        return Err(InvalidName::Empty);
    }
    if text.len() > MAX_NAME {
        return Err(InvalidName::TooLong);
    }
    for label in text.split('.') {
        if label.is_empty() {
            return Err(InvalidName::EmptyLabel);
        }
        if label.len() > MAX_LABEL {
            return Err(InvalidName::LabelTooLong);
        }
        let odd = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if let Some(c) = label.chars().find(odd) {
            return Err(InvalidName::Character(c));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(InvalidName::Hyphen);
        }
    }
    let last = text.rsplit('.').next().unwrap_or(text);
    // What the WHATWG URL standard calls a name that "ends in a number":
    // `1.2.3.4`, `127.1` and `0x7f000001` are addresses to some resolvers.
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    if last.bytes().all(|b| b.is_ascii_digit())
        || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(InvalidName::Address);
    }
    Ok(text.to_ascii_lowercase().into())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalized() {
        for (text, name) in [
            ("example.com", "example.com"),
            ("EXAMPLE.Com.", "example.com"),
            ("_dmarc.example.com", "_dmarc.example.com"),
            ("localhost", "localhost"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.example", "1.example"),
        ] {
            assert_eq!(Name::new(text).unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        let long = "a.".repeat(127) + "com";
        let label = "a".repeat(64);
        for (text, reason) in [
            ("", InvalidName::Empty),
            (".", InvalidName::Empty),
            ("a..b", InvalidName::EmptyLabel),
            (".a", InvalidName::EmptyLabel),
            ("a..", InvalidName::EmptyLabel),
            (&long, InvalidName::TooLong),
            (&label, InvalidName::LabelTooLong),
            ("exa mple.com", InvalidName::Character(' ')),
            ("bücher.example", InvalidName::Character('ü')),
            ("a\0.com", InvalidName::Character('\0')),
            ("-a.com", InvalidName::Hyphen),
            ("a-.com", InvalidName::Hyphen),
            ("1.2.3.4", InvalidName::Address),
            ("127.1", InvalidName::Address),
            ("0x7f000001", InvalidName::Address),
            ("a.0x", InvalidName::Address),
        ] {
            assert_eq!(check(text), Err(reason), "{text:?}");
        }
    }

    #[test]
    fn suffixes_end_at_label_borders() {
        let name = |text: &str| Name::new(text).unwrap();
        assert!(name("a.example.com").is_under(&name("example.com")));
        assert!(name("example.com").is_under(&name("example.com")));
        assert!(!name("badexample.com").is_under(&name("example.com")));
        assert!(!name("com").is_under(&name("example.com")));
    }
}
