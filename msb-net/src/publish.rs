//! Which ports of the guest the host offers, in words: `[BIND:]HOST:GUEST[/udp]`.
//!
//! | text | offered |
//! |---|---|
//! | `8080:80` | TCP port 80 of the guest, to this host only, on port 8080 |
//! | `0.0.0.0:8080:80` | the same to everybody |
//! | `[::1]:5353:53/udp` | UDP port 53, on the IPv6 loopback address |
//! | `8000-8009:9000-9009` | ten ports |
//! | `0:80` | port 80, on a port that is free |

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::Error;
use crate::error::{InvalidPublish, excerpt};
use crate::policy::Ports;

/// The most ports in one range: each takes a descriptor.
pub const MAX_RANGE: u16 = 1024;

/// The protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Ports of the guest that the host offers. See the [module](self).
///
/// ```
/// use msb_net::publish::Publish;
///
/// let publish: Publish = "8080:80".parse()?;
/// assert_eq!(publish.to_string(), "127.0.0.1:8080:80");
/// # Ok::<(), msb_net::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Publish {
    protocol: Protocol,
    bind: IpAddr,
    host: Option<Ports>,
    guest: Ports,
}

impl Publish {
    /// One port of the guest on the host's loopback address; `None` is any free port.
    ///
    /// # Errors
    ///
    /// A port is 0.
    pub fn new(protocol: Protocol, host: Option<u16>, guest: u16) -> Result<Self, Error> {
        let one = |port| Ports::new(port, port).filter(|_| port != 0);
        let wrong = || Error::Publish {
            text: format!("{}:{guest}", host.unwrap_or(0)),
            reason: InvalidPublish::NotAPort,
        };
        Ok(Self {
            protocol,
            bind: Ipv4Addr::LOCALHOST.into(),
            host: host.map(|port| one(port).ok_or_else(wrong)).transpose()?,
            guest: one(guest).ok_or_else(wrong)?,
        })
    }

    /// Offers it on another address of the host.
    #[must_use]
    pub const fn bind(mut self, address: IpAddr) -> Self {
        self.bind = address;
        self
    }

    /// Returns the protocol.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns the host's address and port, 0 for any free one, and the guest's
    /// port, of each port in the range.
    pub fn pairs(&self) -> impl Iterator<Item = (std::net::SocketAddr, u16)> {
        let (bind, host) = (self.bind, self.host.map(Ports::first));
        let first = self.guest.first();
        (first..=self.guest.last()).map(move |guest| {
            let host = host.map_or(0, |host| host + (guest - first));
            (std::net::SocketAddr::new(bind, host), guest)
        })
    }
}

impl FromStr for Publish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error::Publish {
            text: excerpt(text),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Publish, InvalidPublish> {
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some(_) => return Err(InvalidPublish::NotAProtocol),
    };
    let (rest, guest) = rest.rsplit_once(':').ok_or(InvalidPublish::NoGuestPort)?;
    let (bind, host) = match rest.rsplit_once(':') {
        Some((bind, host)) => (address(bind)?, host),
        None => (Ipv4Addr::LOCALHOST.into(), rest),
    };
    let guest = range(guest)?;
    let host = match host {
        "0" => None,
        _ => Some(range(host)?),
    };
    let length = |ports: Ports| ports.last() - ports.first();
    if host.is_some_and(|host| length(host) != length(guest)) {
        return Err(InvalidPublish::UnequalRanges);
    }
    if length(guest) >= MAX_RANGE {
        return Err(InvalidPublish::TooMany { max: MAX_RANGE });
    }
    Ok(Publish {
        protocol,
        bind,
        host,
        guest,
    })
}

fn address(text: &str) -> Result<IpAddr, InvalidPublish> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = match inner {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    };
    address.ok_or(InvalidPublish::NotAnAddress)
}

fn range(text: &str) -> Result<Ports, InvalidPublish> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse().ok().filter(|port| digits && *port != 0);
        port.ok_or(InvalidPublish::NotAPort)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ports::new(port(first)?, port(last)?).ok_or(InvalidPublish::EmptyRange)
}

impl fmt::Display for Publish {
    /// Writes it in the grammar it is read in, the address always with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bind {
            IpAddr::V4(bind) => write!(f, "{bind}:")?,
            IpAddr::V6(bind) => write!(f, "[{bind}]:")?,
        }
        match self.host {
            Some(host) => write!(f, "{host}:{}", self.guest)?,
            None => write!(f, "0:{}", self.guest)?,
        }
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_meant_is_offered() {
        for (text, first, count) in [
            ("8080:80", ("127.0.0.1:8080", 80), 1),
            ("8080:80/tcp", ("127.0.0.1:8080", 80), 1),
            ("0.0.0.0:53:5353/udp", ("0.0.0.0:53", 5353), 1),
            ("[::]:1-3:11-13", ("[::]:1", 11), 3),
            ("0:80-81", ("127.0.0.1:0", 80), 2),
            ("64512-65535:1-1024", ("127.0.0.1:64512", 1), 1024),
        ] {
            let publish: Publish = text.parse().unwrap();
            let pairs: Vec<_> = publish.pairs().collect();
            assert_eq!(pairs[0], (first.0.parse().unwrap(), first.1), "{text}");
            assert_eq!(pairs.len(), count, "{text}");
            assert_eq!(publish.to_string().parse::<Publish>().unwrap(), publish);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        use InvalidPublish as Wrong;
        for (text, reason) in [
            ("", Wrong::NoGuestPort),
            ("80", Wrong::NoGuestPort),
            (":80", Wrong::NotAPort),
            ("80:", Wrong::NotAPort),
            ("80:0", Wrong::NotAPort),
            ("+80:80", Wrong::NotAPort),
            ("80:65536", Wrong::NotAPort),
            ("80:80/sctp", Wrong::NotAProtocol),
            ("::1:80:80", Wrong::NotAnAddress),
            ("localhost:80:80", Wrong::NotAnAddress),
            ("[127.0.0.1]:80:80", Wrong::NotAnAddress),
            ("1-2:1-3", Wrong::UnequalRanges),
            ("2-1:2-1", Wrong::EmptyRange),
            ("0:1-1025", Wrong::TooMany { max: MAX_RANGE }),
        ] {
            match text.parse::<Publish>() {
                Err(Error::Publish { reason: found, .. }) => assert_eq!(found, reason, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(Publish::new(Protocol::Tcp, Some(0), 1).is_err());
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "[0-9a-f:./\\[\\]tcpud-]{0,40}") {
            if let Ok(publish) = text.parse::<Publish>() {
                prop_assert_eq!(publish.to_string().parse::<Publish>().unwrap(), publish);
                prop_assert!(publish.pairs().count() <= MAX_RANGE.into());
            }
        }
    }
}
