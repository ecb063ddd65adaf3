//! A secret's value, and where it comes from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::Error;
use crate::error::InvalidSecret;

/// The shortest value. A shorter one would be found in its encoded forms where it
/// is not, and is no secret either.
pub const MIN_VALUE: usize = 8;

/// The longest value: a service account's key file has 2.5 KiB, and what a scrubber
/// holds back grows with it.
pub const MAX_VALUE: usize = 8 * 1024;

/// A value in memory that is overwritten when it is dropped. It is never shown and
/// cannot be copied by accident.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Takes a value. One line's end behind it is not part of it, as files and
    /// programs put one there.
    ///
    /// # Errors
    ///
    /// It is shorter than [`MIN_VALUE`] or longer than [`MAX_VALUE`].
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let reason = match bytes.len() {
            0..MIN_VALUE => InvalidSecret::TooShort { min: MIN_VALUE },
            MIN_VALUE..=MAX_VALUE => return Ok(Self(Zeroizing::new(bytes.to_vec()))),
            _ => InvalidSecret::TooLong { max: MAX_VALUE },
        };
        let name = String::new();
        Err(Error::Secret { name, reason })
    }

    /// Returns the value itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Tells whether the value can stand in a header field (RFC 9110, 5.5).
    pub fn fits_header(&self) -> bool {
        let good = |byte: &u8| *byte == b'\t' || *byte >= 0x20 && *byte != 0x7f;
        self.0.iter().all(good)
    }
}

impl PartialEq for SecretValue {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for SecretValue {}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// Where a value comes from. All but a literal are read again for each connection
/// and after a 401, so that what was rotated is used.
#[derive(Debug)]
pub enum Source {
    /// This value.
    Literal(Arc<SecretValue>),
    /// An environment variable of whoever runs the driver.
    Env(String),
    /// A file.
    File(PathBuf),
    /// The output of a program: its path or name, and its arguments.
    Command(Vec<String>),
}
