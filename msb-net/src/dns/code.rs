//! The numbers of the DNS that events show, and how a query ended.

use std::fmt;

/// The type of a resource record (RFC 1035, 3.2.2, and its registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKind(pub u16);

impl RecordKind {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// What a query says of itself (EDNS), not of a name.
    pub(crate) const OPT: Self = Self(41);

    /// Tells whether no record has this type: it asks for something else, a zone
    /// or everything there is (RFC 6895, 3.1).
    pub(crate) const fn is_meta(self) -> bool {
        matches!(self.0, 0 | 41 | 128..=255)
    }
}

/// The types that are written by name; others as RFC 3597, 5, has it.
const KINDS: &[(u16, &str)] = &[
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (10, "NULL"),
    (12, "PTR"),
    (15, "MX"),
    (16, "TXT"),
    (28, "AAAA"),
    (33, "SRV"),
    (35, "NAPTR"),
    (39, "DNAME"),
    (43, "DS"),
    (44, "SSHFP"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (52, "TLSA"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
    (257, "CAA"),
];

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KINDS.iter().find(|(number, _)| *number == self.0) {
            Some((_, word)) => f.write_str(word),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// What a resolver says of a query as a whole (RFC 1035, 4.1.1; RFC 6895, 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    /// Nothing is wrong.
    pub const NO_ERROR: Self = Self(0);
    /// The query cannot be read.
    pub const FORMAT_ERROR: Self = Self(1);
    /// The resolver failed.
    pub const SERVER_FAILURE: Self = Self(2);
    /// There is no such name.
    pub const NO_SUCH_NAME: Self = Self(3);
    /// That kind of query is not answered.
    pub const NOT_IMPLEMENTED: Self = Self(4);
    /// The resolver does not want to.
    pub const REFUSED: Self = Self(5);
    /// The version of EDNS is unknown (RFC 6891, 9).
    pub const BAD_VERSION: Self = Self(16);
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NO_ERROR => f.write_str("NOERROR"),
            Self::FORMAT_ERROR => f.write_str("FORMERR"),
            Self::SERVER_FAILURE => f.write_str("SERVFAIL"),
            Self::NO_SUCH_NAME => f.write_str("NXDOMAIN"),
            Self::NOT_IMPLEMENTED => f.write_str("NOTIMP"),
            Self::REFUSED => f.write_str("REFUSED"),
            Self::BAD_VERSION => f.write_str("BADVERS"),
            Self(number) => write!(f, "RCODE{number}"),
        }
    }
}

/// Where an answer is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A server was asked.
    Upstream,
    /// A server was asked before.
    Cache,
    /// The gateway knows by itself.
    Gateway,
}

/// How a query ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// With an answer.
    Answered {
        /// The code it has.
        code: Rcode,
        /// Where it is from.
        source: Source,
        /// The addresses in it.
        addresses: u16,
        /// Records that were taken out: addresses the name may not have, and
        /// services that lead to a denied name.
        filtered: u16,
    },
    /// Without one.
    Unanswered(Unanswered),
}

/// Why a query got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unanswered {
    /// The policy denies the name.
    Denied,
    /// The name leads to one that the policy denies.
    Alias,
    /// The only addresses of the name are ones it may not have.
    Rebinding,
    /// No host can have such a name, and so no rule can speak of it.
    OddName,
    /// It is not a plain question about one name.
    Unsupported,
    /// Too many names of one domain were asked for: a name that is asked for is
    /// a message to whoever owns the domain.
    TooManyNames,
    /// Too many queries wait for answers.
    Busy,
    /// The gateway was given no server to ask.
    NoServer,
    /// No server answered.
    TimedOut,
    /// What the servers said cannot be read.
    Unreadable,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upstream => "upstream",
            Self::Cache => "cache",
            Self::Gateway => "gateway",
        })
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::Alias => "alias",
            Self::Rebinding => "rebinding",
            Self::OddName => "odd-name",
            Self::Unsupported => "unsupported",
            Self::TooManyNames => "too-many-names",
            Self::Busy => "busy",
            Self::NoServer => "no-server",
            Self::TimedOut => "timed-out",
            Self::Unreadable => "unreadable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_name_are_still_shown() {
        assert_eq!(RecordKind::AAAA.to_string(), "AAAA");
        assert_eq!(RecordKind(65_280).to_string(), "TYPE65280");
        assert_eq!(Rcode::NO_SUCH_NAME.to_string(), "NXDOMAIN");
        assert_eq!(Rcode(23).to_string(), "RCODE23");
    }

    #[test]
    fn transfers_and_their_kin_are_no_records() {
        for kind in [0, 41, 249, 250, 251, 252, 255] {
            assert!(RecordKind(kind).is_meta(), "{kind}");
        }
        for kind in [1, 28, 43, 46, 64, 65, 257, 65_535] {
            assert!(!RecordKind(kind).is_meta(), "{kind}");
        }
    }
}
