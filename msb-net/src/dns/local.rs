//! Names that are answered without asking anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Body, Note, Rcode, RecordKind};
use crate::Name;

/// The name of the gateway's own addresses, which stand for the host.
pub(crate) const HOST_NAME: &str = "host.msb.internal";

/// How long a guest may remember what the gateway says of itself, in seconds.
const TTL: u32 = 60;

/// Names of which nobody upstream knows anything, or must not be asked, each with
/// all that is below it and the reason.
const NOWHERE: &[(&str, &str)] = &[
    ("msb.internal", "only host.msb.internal exists there"),
    ("invalid", "no name is below invalid (RFC 6761)"),
    ("onion", "onion names are not in the DNS (RFC 7686)"),
    ("local", "local names are asked for by multicast (RFC 6762)"),
    // They would lead around this resolver, to the one it asks.
    (
        "resolver.arpa",
        "this resolver has no other form (RFC 9462)",
    ),
    (
        "use-application-dns.net",
        "names are resolved here, not by the browser",
    ),
];

/// Ends of names that are in no public tree, and so mean something else to each who
/// resolves them: RFC 6761, RFC 8375, what is kept for private use, and what is taken for it
/// (RFC 6762, appendix G).
const PRIVATE: &[&str] = &[
    "localhost",
    "localdomain",
    // What some files of hosts call loopback.
    "localdomain4",
    "localdomain6",
    "internal",
    "home.arpa",
    "test",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    // Ends of names in clusters, which their resolvers complete.
    "svc",
    "cluster",
    "consul",
    // A cloud's word for the machine itself.
    "metadata.goog",
];

/// Tells whether a name leads, if anywhere, to the inside of whoever resolves it: to that
/// host, to its network, to the cloud's metadata.
pub(crate) fn is_inside(name: &Name) -> bool {
    let under = |suffix: &str| name.suffixes().any(|own| own == suffix);
    let single = !name.as_str().contains('.');
    single
        || PRIVATE
            .iter()
            .chain(NOWHERE.iter().map(|(own, _)| own))
            .any(|own| under(own))
}

/// Answers for a name that nobody else is asked about.
pub(crate) fn local(name: &Name, kind: RecordKind, gateway: (Ipv4Addr, Ipv6Addr)) -> Option<Body> {
    let under = |suffix: &str| name.suffixes().any(|own| own == suffix);
    let (v4, v6) = if name.as_str() == HOST_NAME {
        gateway
    } else if under("localhost") {
        // RFC 6761, 6.3: the guest itself.
        (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
    } else {
        let (_, why) = NOWHERE.iter().find(|(suffix, _)| under(suffix))?;
        let note = Note::new(Note::BLOCKED, (*why).into());
        return Some(Body::empty(Rcode::NO_SUCH_NAME, Some(note)));
    };
    let addresses: &[IpAddr] = match kind {
        RecordKind::A => &[v4.into()],
        RecordKind::AAAA => &[v6.into()],
        _ => &[],
    };
    Some(Body::addresses(addresses, TTL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(name: &str) -> Option<Rcode> {
        let gateway = (Ipv4Addr::new(192, 168, 127, 1), Ipv6Addr::LOCALHOST);
        let body = local(&name.parse().unwrap(), RecordKind::A, gateway);
        body.map(|body| body.code)
    }

    #[test]
    fn names_without_a_public_owner_are_the_inside() {
        for name in [
            "localhost",
            "a.localhost",
            "localhost.localdomain",
            "host.msb.internal",
            "metadata.google.internal",
            "metadata.goog",
            "printer.local",
            "db",
            "db.corp",
            "localhost6.localdomain6",
            "kubernetes.default.svc",
            "vault.service.consul",
            "nas.home.arpa",
        ] {
            assert!(is_inside(&name.parse().unwrap()), "{name}");
        }
        for name in [
            "a.example",
            "localhost.example",
            "corp.com",
            "x.home.example",
        ] {
            assert!(!is_inside(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn some_names_are_nobody_elses_business() {
        for name in ["host.msb.internal", "localhost", "a.localhost"] {
            assert_eq!(code(name), Some(Rcode::NO_ERROR), "{name}");
        }
        for name in ["printer.local", "x.msb.internal", "_dns.resolver.arpa"] {
            assert_eq!(code(name), Some(Rcode::NO_SUCH_NAME), "{name}");
        }
        for name in [
            "example.com",
            "db.corp.internal",
            "notlocal",
            "localhost.example",
        ] {
            assert_eq!(code(name), None, "{name}");
        }
    }
}
