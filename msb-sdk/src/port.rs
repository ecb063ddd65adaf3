//! Ports of the guest that the host offers.
//!
//! Whoever has the sandbox asks, its supervisor has the sockets. Requests are answered in
//! the order in which they were made.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

pub use msb_net::publish::Protocol as PortProtocol;
use msb_net::publish::Publish;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The most ports of one sandbox at a time: each takes a descriptor of its supervisor, and
/// all of them are told in one message.
pub(crate) const MAX_PORTS: usize = 1024;

/// A port of the guest, and where the host listens for it.
///
/// ```
/// use msb_sdk::PublishedPort;
///
/// let port: PublishedPort = "127.0.0.1:8080:80".parse()?;
/// assert_eq!((port.host.port(), port.guest), (8080, 80));
/// # Ok::<(), msb_sdk::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublishedPort {
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// Of both.
    pub protocol: PortProtocol,
}

impl fmt::Display for PublishedPort {
    /// Writes it as it is asked for: `BIND:HOST:GUEST[/udp]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.protocol {
            PortProtocol::Tcp => Ok(()),
            PortProtocol::Udp => f.write_str("/udp"),
        }
    }
}

impl FromStr for PublishedPort {
    type Err = Error;

    /// Reads one port, not a range, whose place on the host is known.
    fn from_str(text: &str) -> Result<Self, Error> {
        let publish: Publish = text.parse()?;
        let mut pairs = publish.pairs();
        match (pairs.next(), pairs.next()) {
            (Some((host, guest)), None) if host.port() != 0 => Ok(Self {
                host,
                guest,
                protocol: publish.protocol(),
            }),
            _ => Err(Error::InvalidSetting {
                setting: "a published port",
                value: publish.to_string(),
                reason: "it is one port of the host, not a range and not any that is free".into(),
            }),
        }
    }
}

impl TryFrom<String> for PublishedPort {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<PublishedPort> for String {
    fn from(port: PublishedPort) -> Self {
        port.to_string()
    }
}

/// What is asked of the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PortRequest {
    /// Offer ports, as `[BIND:]HOST:GUEST[/udp]`; all of a range or none.
    Publish { ports: String },
    /// Offer one no longer.
    Unpublish { port: PublishedPort },
    /// Tell which are offered.
    List,
}

/// The ports that the request was about, or why it was not done.
pub(crate) type PortAnswer = Result<Vec<PublishedPort>, PortFailure>;

/// Why a request was not done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PortFailure {
    /// Something else on the host listens there.
    Taken { host: SocketAddr },
    /// The system refuses it.
    Refused {
        reason: String,
        hint: Option<String>,
    },
    /// It is not offered.
    NotPublished { port: PublishedPort },
    /// There would be more than [`MAX_PORTS`].
    TooMany,
}

impl From<PortFailure> for Error {
    fn from(failure: PortFailure) -> Self {
        match failure {
            PortFailure::Taken { host } => Self::PortTaken { host },
            PortFailure::Refused { reason, hint } => Self::Port { reason, hint },
            PortFailure::NotPublished { port } => Self::NotPublished { port },
            PortFailure::TooMany => Self::TooManyPorts { max: MAX_PORTS },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{self, FromSupervisor};

    #[test]
    fn a_port_is_read_as_it_is_written() {
        for text in ["127.0.0.1:8080:80", "[::1]:53:5353/udp", "0.0.0.0:1:65535"] {
            let port: PublishedPort = text.parse().expect(text);
            assert_eq!(port.to_string(), text);
        }
        for text in ["0:80", "1-2:1-2", "8080", "[::1]:0:1/udp"] {
            assert!(text.parse::<PublishedPort>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_longest_list_fits_into_a_frame() {
        let longest = "[fd00:1111:2222:3333:4444:5555:6666:7777]:65535:65535/udp";
        let port: PublishedPort = longest.parse().expect("a port");
        control::encode(&FromSupervisor::Ports(Ok(vec![port; MAX_PORTS])));
    }
}
