//! What one rule says: its parts and its text.

use std::fmt;

use super::request::{Requests, Shown};
use crate::Name;
use crate::addr::{Cidr, Faces, Group};

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets it pass.
    Allow,
    /// Refuses it, and says so to whoever asked.
    Deny,
}

/// Who opens a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The guest, towards the world.
    Out,
    /// The world, towards a published port of the guest.
    In,
}

/// Which protocol a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Everything, name queries included.
    Any,
    /// TCP flows.
    Tcp,
    /// UDP flows.
    Udp,
    /// Echo requests and their replies, of either IP version.
    Icmp,
    /// Queries to the gateway's resolver, and nothing else.
    Dns,
    /// Requests of HTTP, over TCP flows that carry nothing else.
    Http,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Makes a range; `None` when it would be empty.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// Returns the first port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Returns the last port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Tells whether `port` is in the range.
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// A set of addresses that has a name or a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// A block, or a single address.
    Cidr(Cidr),
    /// A group of the special-use table.
    Group(Group),
}

impl Addresses {
    /// Tells whether the set holds `peer`, on behalf of a rule with `action`:
    /// an allow rule must hold for all that an address stands for, a deny rule
    /// for any of it.
    pub(super) fn hold(&self, peer: &Peer, action: Action) -> bool {
        let each = |face| match self {
            Self::Cidr(cidr) => cidr.contains(face),
            Self::Group(Group::Host) => peer.is_host,
            Self::Group(group) => !peer.is_host && Group::of(face) == *group,
        };
        match action {
            Action::Allow => peer.faces.all(each),
            Action::Deny => peer.faces.any(each),
        }
    }
}

/// The other end of a flow, unwrapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) faces: Faces,
    pub(super) is_host: bool,
}

/// One name, or a name and all below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Exactly this name.
    Domain(Name),
    /// This name and everything below it.
    Suffix(Name),
}

impl Pattern {
    /// Tells whether `name` fits.
    pub fn matches(&self, name: &Name) -> bool {
        match self {
            Self::Domain(own) => own == name,
            Self::Suffix(own) => name.is_under(own),
        }
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Everything.
    Any,
    /// Destinations by address, whatever they are called.
    Addresses(Addresses),
    /// Destinations by name.
    Names {
        /// The names.
        pattern: Pattern,
        /// Where the named host must be. Without it an allow rule means public
        /// addresses, so that an answer pointing inwards opens nothing, and a
        /// deny rule means any.
        at: Option<Addresses>,
    },
}

/// One rule.
///
/// ```
/// use msb_net::policy::Rule;
///
/// let rule: Rule = "allow tcp 80,443 suffix debian.org".parse()?;
/// assert_eq!(rule.to_string(), "allow tcp 80,443 suffix debian.org");
/// # Ok::<(), msb_net::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// Whose flows it is about.
    pub direction: Direction,
    /// Which protocol it is about.
    pub protocol: Protocol,
    /// Which ports; none means all. They are the destination's: with
    /// [`Direction::In`] the guest's.
    pub ports: Vec<Ports>,
    /// Which destinations; with [`Direction::In`], which origins.
    pub target: Target,
    /// With [`Protocol::Http`]: which requests.
    pub requests: Option<Requests>,
}

impl Action {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl Protocol {
    pub(super) const ALL: [Self; 6] = [
        Self::Any,
        Self::Tcp,
        Self::Udp,
        Self::Icmp,
        Self::Dns,
        Self::Http,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Dns => "dns",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Out => "out",
            Self::In => "in",
        })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(cidr) => cidr.fmt(f),
            Self::Group(group) => group.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Addresses(addresses) => addresses.fmt(f),
            Self::Names { pattern, at } => {
                match pattern {
                    Pattern::Domain(name) => write!(f, "domain {name}")?,
                    Pattern::Suffix(name) => write!(f, "suffix {name}")?,
                }
                match at {
                    Some(at) => write!(f, " at {at}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Rule {
    /// Writes the rule in the grammar it is read in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        if self.direction == Direction::In {
            f.write_str(" in")?;
        }
        if self.protocol != Protocol::Any {
            write!(f, " {}", self.protocol.as_str())?;
        }
        for (index, ports) in self.ports.iter().enumerate() {
            write!(f, "{}{ports}", if index == 0 { ' ' } else { ',' })?;
        }
        match &self.requests {
            Some(requests) => Shown(self, requests).fmt(f),
            None => write!(f, " {}", self.target),
        }
    }
}
