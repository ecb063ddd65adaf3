//! Which servers this host asks for names.
//!
//! Read resolv.conf(5). A stub resolver on the host's loopback is as good as any:
//! it is this process that asks it, and not the guest.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use crate::Error;
use crate::dns::PORT;
use crate::gateway::MAX_RESOLVERS;

/// The host's configuration.
const PATH: &str = "/etc/resolv.conf";

/// So much of the configuration is read, in bytes; that of a host has some hundred.
const MAX_TEXT: u64 = 64 * 1024;

/// Lists the servers this host asks for names, for
/// [`Config::resolvers`](crate::gateway::Config::resolvers): those of
/// `/etc/resolv.conf`, or, where there is no such file, the one on this host.
///
/// # Errors
///
/// The file is there and cannot be read.
///
/// ```
/// use msb_net::gateway::Config;
/// use msb_net::policy::Policy;
///
/// let mut config = Config::new(Policy::public_only(), 0x5eed);
/// config.resolvers = msb_net::shell::host_resolvers()?;
/// # Ok::<(), msb_net::Error>(())
/// ```
pub fn host_resolvers() -> Result<Vec<SocketAddr>, Error> {
    match read() {
        Ok(text) => Ok(servers(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(servers("")),
        Err(error) => Err(Error::system(format!("read {PATH}"), &error)),
    }
}

fn read() -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(PATH)?.take(MAX_TEXT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes the servers out of a configuration. Lines that say something else, or
/// name a server that cannot be reached from here, are passed over.
fn servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), Some(address)) => server(address),
                _ => None,
            }
        })
        .take(MAX_RESOLVERS)
        .collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

/// Reads an address, which may have a zone (RFC 4007, 11).
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT));
    };
    let zone = match zone.parse() {
        Ok(number) => number,
        // What the system calls the interface.
        Err(_) => interface(zone)?,
    };
    let address = SocketAddrV6::new(address.parse().ok()?, PORT, 0, zone);
    Some(address.into())
}

/// Finds the number of an interface.
fn interface(name: &str) -> Option<u32> {
    // A name that leads out of the folder is none.
    let plain = !name.contains('/') && !matches!(name, "" | "." | "..");
    let path = format!("/sys/class/net/{name}/ifindex");
    let text = plain.then(|| std::fs::read_to_string(path).ok())??;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Vec<String> {
        servers(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_are_taken_in_order() {
        let text = "# a comment\nsearch example.com\n\nnameserver 127.0.0.53\n\
                    nameserver\t2001:db8::1  # theirs\nnameserver fe80::1%2\noptions edns0\n";
        let expected = ["127.0.0.53:53", "[2001:db8::1]:53", "[fe80::1%2]:53"];
        assert_eq!(listed(text), expected);
    }

    #[test]
    fn a_zone_may_be_an_interface() {
        assert_eq!(listed("nameserver fe80::1%lo"), ["[fe80::1%1]:53"]);
        for odd in ["nosuch0", "", "..", "../lo", "lo/../lo"] {
            assert_eq!(server(&format!("fe80::1%{odd}")), None, "{odd:?}");
        }
    }

    #[test]
    fn what_is_no_server_is_passed_over() {
        for text in [
            "",
            "nameserver",
            "nameserver example.com",
            ";nameserver 1.1.1.1",
            "\0",
        ] {
            assert_eq!(listed(text), ["127.0.0.1:53"], "{text:?}");
        }
        let many = "nameserver 192.0.2.1\n".repeat(1000);
        assert_eq!(listed(&many).len(), MAX_RESOLVERS);
    }
}
