//! HTTP with guarded connections: who may be connected to is decided on the
//! resolved addresses of every single connection.
//!
//! No proxy is used, whatever the environment says: behind one, the addresses
//! that are connected to could not be checked.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::address::{Place, place};
use crate::{Error, Result, Timeouts};

/// A registry's headers are small; 64 KiB leave room for long redirects.
const MAX_HEADERS: usize = 64 << 10;

/// Two agents with connections of their own.
#[derive(Debug)]
pub(crate) struct Transport {
    /// Connects to the registry the user named, wherever it is.
    pub(crate) direct: Agent,
    /// Connects to where the registry sends us, within its bounds.
    pub(crate) guarded: Agent,
}

impl Transport {
    pub(crate) fn new(registry: &str, plain: bool, timeouts: &Timeouts) -> Result<Transport> {
        let roots = if plain {
            None
        } else {
            Some(system_roots(registry)?)
        };
        let origin = Arc::new(Mutex::new(None));
        let agent = |role| {
            let mut tls = TlsConfig::builder();
            if let Some(roots) = &roots {
                tls = tls.root_certs(RootCerts::Specific(Arc::clone(roots)));
            }
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .proxy(None)
                .user_agent(concat!("msb/", env!("CARGO_PKG_VERSION")))
                .max_response_header_size(MAX_HEADERS)
                .input_buffer_size(128 << 10)
                .timeout_resolve(Some(timeouts.connect))
                .timeout_connect(Some(timeouts.connect))
                .timeout_recv_response(Some(timeouts.idle))
                .timeout_per_read(Some(timeouts.idle))
                .timeout_per_write(Some(timeouts.idle))
                .tls_config(tls.build())
                .build();
            let resolver = Guard {
                role,
                origin: Arc::clone(&origin),
                inner: DefaultResolver::default(),
                known: Mutex::new(None),
            };
            Agent::with_parts(config, DefaultConnector::default(), resolver)
        };
        Ok(Transport {
            direct: agent(Role::Direct),
            guarded: agent(Role::Guarded),
        })
    }
}

/// The certificates that the system trusts.
fn system_roots(registry: &str) -> Result<Arc<Vec<Certificate<'static>>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(Error::Tls {
            registry: registry.to_owned(),
            reason: "the system has no trusted certificates; install the package ca-certificates"
                .to_owned(),
        });
    }
    Ok(Arc::new(
        found
            .certs
            .iter()
            .map(|der| Certificate::from_der(der).to_owned())
            .collect(),
    ))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Direct,
    Guarded,
}

/// Resolves names and drops the addresses that may not be connected to.
struct Guard {
    role: Role,
    /// Where the registry itself is, once it has been resolved.
    origin: Arc<Mutex<Option<Place>>>,
    inner: DefaultResolver,
    /// The last answer. Every request resolves, also on a connection that
    /// stands, and each time takes a thread.
    known: Mutex<Option<Known>>,
}

/// How long an answer of the resolver is used: a pull asks several times in a
/// row, a retry after a pause should ask anew.
const FRESH: Duration = Duration::from_secs(5);

/// An answer of the resolver.
struct Known {
    authority: String,
    addresses: Vec<SocketAddr>,
    until: Instant,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.role).finish()
    }
}

/// The error of a connection that was not made.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refused {}

impl Guard {
    fn may_connect(
        &self,
        plain: bool,
        origin: Option<Place>,
        address: SocketAddr,
    ) -> Result<(), Refused> {
        let target = place(address.ip());
        if plain && target != Place::Loopback {
            let reason = format!(
                "plain HTTP is for this machine's own addresses, and {} is not one",
                address.ip()
            );
            return Err(Refused { reason });
        }
        // Before the registry was ever resolved nothing is known about it.
        let origin = origin.unwrap_or(Place::Public);
        if self.role == Role::Guarded && !origin.may_lead_to(target) {
            return Err(Refused {
                reason: format!("{} is {}", address.ip(), target.describe()),
            });
        }
        Ok(())
    }
}

impl Guard {
    /// All addresses of the host, allowed or not.
    fn addresses(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<Vec<SocketAddr>, ureq::Error> {
        let scheme = uri.scheme_str().unwrap_or_default();
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let authority = format!("{scheme}://{host}");
        let now = Instant::now();
        let lock = || {
            self.known
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        };
        if let Some(known) = &*lock()
            && known.authority == authority
            && now < known.until
        {
            return Ok(known.addresses.clone());
        }
        let addresses = self.inner.resolve(uri, config, timeout)?.to_vec();
        *lock() = Some(Known {
            authority,
            addresses: addresses.clone(),
            until: now + FRESH,
        });
        Ok(addresses)
    }
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let resolved = self.addresses(uri, config, timeout)?;
        let mut origin = self
            .origin
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.role == Role::Direct {
            *origin = farthest(*origin, &resolved);
        }
        let plain = uri.scheme_str() == Some("http");
        let mut allowed = self.empty();
        let mut refused = None;
        for &address in &resolved {
            match self.may_connect(plain, *origin, address) {
                Ok(()) => allowed.push(address),
                Err(reason) => refused = Some(reason),
            }
        }
        match refused {
            Some(refused) if allowed.is_empty() => Err(ureq::Error::Other(Box::new(refused))),
            _ => Ok(allowed),
        }
    }
}

/// Where the registry is: the farthest of its addresses counts, those of
/// earlier answers included. A registry on the internet does not become a
/// neighbour by listing one, nor by changing its answer.
fn farthest(known: Option<Place>, resolved: &[SocketAddr]) -> Option<Place> {
    let places = resolved.iter().map(|address| place(address.ip()));
    places.max().max(known)
}

#[cfg(test)]
mod tests {
    use super::super::address::Place;
    use super::{Guard, Role, farthest};
    use ureq::unversioned::resolver::DefaultResolver;

    fn allowed(role: Role, plain: bool, origin: Place, address: &str) -> bool {
        let guard = Guard {
            role,
            origin: std::sync::Arc::default(),
            inner: DefaultResolver::default(),
            known: std::sync::Mutex::default(),
        };
        guard
            .may_connect(plain, Some(origin), address.parse().unwrap())
            .is_ok()
    }

    #[test]
    fn the_registry_itself_may_be_anywhere_but_plain_http_stays_here() {
        assert!(allowed(Role::Direct, false, Place::Private, "10.0.0.1:443"));
        assert!(allowed(
            Role::Direct,
            true,
            Place::Loopback,
            "127.0.0.1:5000"
        ));
        assert!(!allowed(Role::Direct, true, Place::Private, "10.0.0.1:80"));
    }

    #[test]
    fn an_answer_is_for_its_host_and_judged_each_time() {
        use ureq::unversioned::resolver::Resolver;
        use ureq::unversioned::transport::NextTimeout;
        let guard = Guard {
            role: Role::Guarded,
            origin: std::sync::Arc::default(),
            inner: DefaultResolver::default(),
            known: std::sync::Mutex::default(),
        };
        let config = ureq::config::Config::default();
        let resolve =
            |uri: &str| guard.resolve(&uri.parse().unwrap(), &config, NextTimeout::default());
        for _ in 0..2 {
            assert_eq!(
                resolve("https://8.8.8.8/").unwrap()[..],
                ["8.8.8.8:443".parse().unwrap()]
            );
        }
        assert!(resolve("https://10.0.0.1/").is_err());
        assert!(resolve("http://8.8.8.8/").is_err());
        assert_eq!(
            resolve("https://8.8.8.8:5000/").unwrap()[..],
            ["8.8.8.8:5000".parse().unwrap()]
        );
        *guard.origin.lock().unwrap() = Some(Place::Private);
        assert_eq!(resolve("https://10.0.0.1/").unwrap().len(), 1);
        *guard.origin.lock().unwrap() = Some(Place::Public);
        assert!(resolve("https://10.0.0.1/").is_err());
    }

    #[test]
    fn a_registry_does_not_come_nearer() {
        let at = |address: &str| vec![address.parse().unwrap()];
        let public = farthest(None, &at("8.8.8.8:443"));
        assert_eq!(public, Some(Place::Public));
        assert_eq!(farthest(public, &at("127.0.0.1:443")), Some(Place::Public));
        let both = ["10.0.0.1:443", "8.8.8.8:443"].map(|address| address.parse().unwrap());
        assert_eq!(farthest(None, &both), Some(Place::Public));
        assert_eq!(farthest(None, &at("10.0.0.1:443")), Some(Place::Private));
    }

    #[test]
    fn nobody_is_led_into_the_users_network() {
        for address in [
            "127.0.0.1:1",
            "10.0.0.1:1",
            "169.254.169.254:80",
            "[::1]:1",
            "[::ffff:10.0.0.1]:1",
            "[fe80::1]:1",
        ] {
            assert!(
                !allowed(Role::Guarded, false, Place::Public, address),
                "{address}"
            );
        }
        assert!(allowed(Role::Guarded, false, Place::Public, "8.8.8.8:443"));
        assert!(allowed(
            Role::Guarded,
            false,
            Place::Private,
            "10.0.0.1:443"
        ));
        assert!(!allowed(
            Role::Guarded,
            false,
            Place::Private,
            "127.0.0.1:443"
        ));
        assert!(!allowed(
            Role::Guarded,
            false,
            Place::Loopback,
            "169.254.169.254:80"
        ));
    }
}
