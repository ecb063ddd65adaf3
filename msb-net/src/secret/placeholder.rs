//! What stands for a value inside the guest.

use std::fmt;

use crate::Error;
use crate::error::InvalidSecret;

/// The longest prefix: those of known keys have about a dozen characters.
pub const MAX_PREFIX: usize = 32;

/// The usual prefix.
const PREFIX: &str = "msb_ph_";

/// Characters of the random part: letters and digits only, so that no encoding
/// of headers, URLs, JSON or HTML changes them.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Random bytes in a placeholder; each makes a character of five bits.
pub(crate) const RANDOM: usize = 24;

/// What stands for a value inside the guest: random, so that it cannot be guessed
/// or met by chance, and worth nothing elsewhere.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Placeholder(Box<str>);

impl Placeholder {
    /// Makes one from random bytes, which must be new for each sandbox and secret.
    /// Without a prefix it begins with `msb_ph_`.
    ///
    /// # Errors
    ///
    /// The prefix is too long or has other characters than letters, digits, `-`,
    /// `_` and `.`.
    pub fn new(prefix: &str, random: [u8; RANDOM]) -> Result<Self, Error> {
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if prefix.len() > MAX_PREFIX || !prefix.bytes().all(good) {
            let name = String::new();
            let reason = InvalidSecret::Prefix { max: MAX_PREFIX };
            return Err(Error::Secret { name, reason });
        }
        let random = random.map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
        let text = prefix.chars().chain(random).collect::<String>();
        Ok(Self(text.into()))
    }

    /// Returns the text.
    pub const fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the text's bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
