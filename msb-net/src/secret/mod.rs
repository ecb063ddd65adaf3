//! Secrets that a guest uses without having them.
//!
//! The guest holds a [`Placeholder`]. On the way to the hosts that a [`Secret`]
//! names it becomes the value ([`substitute`]); on the way back every appearance
//! of the value, whatever common encoding it is in, becomes the placeholder again
//! ([`scrub`], inside compressed bodies with [`coding`]).
//!
//! Nothing here does I/O: where a value comes from is said by a [`Source`], and
//! read by the driver. What is not here either: which connection leads to which
//! host, and whether that is proven.
//!
//! ```
//! use msb_net::secret::{Placeholder, Scrubber, Secret, SecretValue, Source};
//!
//! let secret = Secret::new("TOKEN", Source::Env("TOKEN".into()))?
//!     .allow_host("api.example.com".parse()?);
//! let placeholder = Placeholder::new(&secret.placeholder_prefix, [7; 24])?;
//! let value = SecretValue::new(b"hunter2hunter2")?;
//! let mut scrubber = Scrubber::new([(&value, &placeholder)]);
//! let mut shown = Vec::new();
//! scrubber.push(b"you said aHVudGVyMmh1bn", &mut shown);
//! scrubber.push(b"RlcjI= and hunter2hunter2.", &mut shown);
//! scrubber.finish(&mut shown);
//! assert!(!shown.windows(7).any(|part| part == b"hunter2"));
//! assert!(shown.ends_with(format!("{placeholder}.").as_bytes()));
//! # Ok::<(), msb_net::Error>(())
//! ```

pub mod coding;
mod pattern;
mod placeholder;
pub mod scrub;
pub mod substitute;
#[cfg(test)]
mod tests;
mod value;

pub use self::placeholder::{MAX_PREFIX, Placeholder};
pub use self::scrub::Scrubber;
pub use self::value::{MAX_VALUE, MIN_VALUE, SecretValue, Source};
use crate::error::InvalidSecret;
use crate::policy::Pattern;
use crate::{Error, Name};

/// The most secrets of one sandbox: each costs a few comparisons for every byte
/// that might begin one of its forms.
pub const MAX_SECRETS: usize = 64;

/// Values of one secret that are looked for in responses, the present one among them: each
/// costs as much as a secret.
pub const MAX_KNOWN: usize = 4;

/// The longest name of a secret, which is that of an environment variable.
const MAX_SECRET_NAME: usize = 128;

/// Which header fields a value may be put into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Headers {
    /// Every one that a request may carry a credential in: all but those that say
    /// how the message is framed and where it goes.
    #[default]
    All,
    /// These, in lower case.
    Named(Vec<String>),
}

/// What happens to a request that carries a placeholder to where its value may
/// not go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnMisuse {
    /// It goes on as it is: a placeholder is worth nothing.
    #[default]
    Keep,
    /// It is refused.
    Block,
}

/// One secret: where its value is from and where it may go.
#[derive(Debug)]
pub struct Secret {
    name: String,
    /// Where the value comes from.
    pub source: Source,
    /// The hosts whose requests get the value.
    pub hosts: Vec<Pattern>,
    /// The header fields that get it.
    pub headers: Headers,
    /// Whether the query of a request's target gets it.
    pub query: bool,
    /// Whether the body of a request gets it.
    pub body: bool,
    /// The methods whose requests get it; none means all.
    pub methods: Vec<String>,
    /// What a request's path must begin with, in whole segments.
    pub path: Option<String>,
    /// Whether requests without TLS get it.
    pub plain_http: bool,
    /// What happens to the placeholder elsewhere.
    pub on_misuse: OnMisuse,
    /// What the placeholder begins with, for programs that check the form of a
    /// key; empty for the usual `msb_ph_`.
    pub placeholder_prefix: String,
}

impl Secret {
    /// A secret that goes nowhere yet.
    ///
    /// # Errors
    ///
    /// The name is none of an environment variable.
    pub fn new(name: &str, source: Source) -> Result<Self, Error> {
        let first = name.bytes().next();
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.len() > MAX_SECRET_NAME
            || !first.is_some_and(|byte| good(byte) && !byte.is_ascii_digit())
            || !name.bytes().all(good)
        {
            return Err(Error::Secret {
                name: crate::error::excerpt(name),
                reason: InvalidSecret::Name,
            });
        }
        Ok(Self {
            name: name.into(),
            source,
            hosts: Vec::new(),
            headers: Headers::All,
            query: false,
            body: false,
            methods: Vec::new(),
            path: None,
            plain_http: false,
            on_misuse: OnMisuse::Keep,
            placeholder_prefix: String::new(),
        })
    }

    /// Checks that where its value is to be put there can be one.
    ///
    /// # Errors
    ///
    /// A header field, a method or the path is none that any request has, so that the
    /// secret would never be used.
    pub fn check(&self) -> Result<(), Error> {
        let failed = |reason| {
            let name = self.name.clone();
            Err(Error::Secret { name, reason })
        };
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let is_token = |text: &str| !text.is_empty() && text.bytes().all(token);
        if let Headers::Named(names) = &self.headers {
            for own in names {
                let usual = is_token(own) && !own.bytes().any(|byte| byte.is_ascii_uppercase());
                if !usual || !self.covers_header(own) {
                    return failed(InvalidSecret::Header);
                }
            }
        }
        for own in &self.methods {
            if !is_token(own) || ["CONNECT", "TRACE"].contains(&own.as_str()) {
                return failed(InvalidSecret::Method);
            }
        }
        if let Some(own) = &self.path
            && !self.covers(self.methods.first().map_or("GET", String::as_str), own)
        {
            return failed(InvalidSecret::Path);
        }
        Ok(())
    }

    /// Lets requests to this host have the value.
    #[must_use]
    pub fn allow_host(mut self, host: Name) -> Self {
        self.hosts.push(Pattern::Domain(host));
        self
    }

    /// Returns the name, which is also that of the guest's environment variable.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells whether the value may go to this host at all.
    pub fn is_for(&self, host: &Name) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// Tells whether a request of this method and path may have the value.
    pub fn covers(&self, method: &str, path: &str) -> bool {
        let method_fits = self.methods.is_empty() || self.methods.iter().any(|own| own == method);
        let path_fits = self.path.as_ref().is_none_or(|own| {
            let own = own.trim_end_matches('/');
            let readings = crate::http::path::readings(path);
            !readings.is_empty()
                && readings.iter().all(|reading| {
                    reading
                        .strip_prefix(own)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
        });
        method_fits && path_fits
    }

    /// Tells whether a header field of this name, in lower case, may have the value.
    pub fn covers_header(&self, field: &str) -> bool {
        /// What says how a message is framed or where it goes is no place for a
        /// credential, and changing it would change the message.
        const NEVER: &[&str] = &[
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "upgrade",
            "te",
            "trailer",
            "expect",
            "keep-alive",
            "accept-encoding",
            "content-encoding",
        ];
        match &self.headers {
            _ if NEVER.contains(&field) => false,
            Headers::All => true,
            Headers::Named(names) => names.iter().any(|name| name == field),
        }
    }
}
