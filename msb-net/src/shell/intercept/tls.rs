//! Both TLS connections of an intercepted flow.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};

use crate::error::excerpt;
use crate::{Error, Name};

/// What the gateway can read inside TLS.
pub(super) const H2: &[u8] = b"h2";
pub(super) const H1: &[u8] = b"http/1.1";

/// Makes the configurations of both sides.
pub(super) struct Configs {
    provider: Arc<CryptoProvider>,
    extra: Vec<CertificateDer<'static>>,
    only_extra: bool,
    /// Read when first needed: a host has a hundred and more.
    client: OnceLock<Option<ClientConfig>>,
}

impl Configs {
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        roots: &str,
        only_extra: bool,
    ) -> Result<Self, Error> {
        let failed = |reason: &str| Error::System {
            doing: "read the extra certificate authorities".into(),
            reason: excerpt(reason),
            hint: Some("they must be PEM, with BEGIN CERTIFICATE lines".into()),
        };
        let extra = CertificateDer::pem_slice_iter(roots.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| failed(&error.to_string()))?;
        // One that was left out in silence would be missed much later.
        let mut store = RootCertStore::empty();
        for (number, certificate) in extra.iter().enumerate() {
            store.add(certificate.clone()).map_err(|error| {
                failed(&format!("number {} cannot be used: {error}", number + 1))
            })?;
        }
        Ok(Self {
            provider,
            extra,
            only_extra,
            client: OnceLock::new(),
        })
    }

    /// The client's side, with the protocols to offer. `None` when there is no
    /// authority that could be trusted.
    pub(super) fn client(&self, protocols: Vec<Vec<u8>>) -> Option<Arc<ClientConfig>> {
        let base = self.client.get_or_init(|| self.base());
        let mut config = base.clone()?;
        config.alpn_protocols = protocols;
        Some(Arc::new(config))
    }

    fn base(&self) -> Option<ClientConfig> {
        let mut roots = RootCertStore::empty();
        if !self.only_extra {
            // What cannot be read is not trusted.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        roots.add_parsable_certificates(self.extra.iter().cloned());
        let provider = Arc::clone(&self.provider);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().ok()?;
        let builder = builder.with_webpki_verifier(verifier.build().ok()?);
        Some(builder.with_no_client_auth())
    }

    /// The server's side, with the one protocol that the real server chose.
    pub(super) fn server(
        &self,
        key: Arc<CertifiedKey>,
        protocol: Option<Vec<u8>>,
    ) -> Option<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_safe_default_protocol_versions().ok()?;
        let resolver = Arc::new(Fixed(key));
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = protocol.into_iter().collect();
        // Each connection has a configuration of its own: there is none to come back to.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Some(Arc::new(config))
    }
}

/// One certificate for whoever asks: the name was checked before.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

pub(super) fn server_name(host: &Name) -> Option<ServerName<'static>> {
    ServerName::try_from(host.as_str().to_owned()).ok()
}

/// The protocols that a client offers and the gateway can read; `None` when it
/// offers only others.
pub(super) fn protocols<'a>(
    offered: Option<impl Iterator<Item = &'a [u8]>>,
) -> Option<Vec<Vec<u8>>> {
    let Some(offered) = offered else {
        return Some(Vec::new());
    };
    let known: Vec<_> = offered
        .filter(|protocol| matches!(*protocol, H2 | H1))
        .map(<[u8]>::to_vec)
        .collect();
    (!known.is_empty()).then_some(known)
}

/// The record that ends a handshake and says why (RFC 8446, 6).
pub(super) fn alert(description: AlertDescription) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [ALERT, 3, 3, 0, 2, FATAL, description.into()]
}

/// What a guest's client is told when the server could not be verified.
pub(super) fn alert_for(error: &std::io::Error) -> AlertDescription {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => AlertDescription::CertificateExpired,
            CertificateError::UnknownIssuer => AlertDescription::UnknownCA,
            CertificateError::Revoked => AlertDescription::CertificateRevoked,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                AlertDescription::UnrecognisedName
            }
            _ => AlertDescription::BadCertificate,
        },
        Some(rustls::Error::AlertReceived(description)) => *description,
        _ => AlertDescription::HandshakeFailure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_that_cannot_be_used_are_refused() {
        let configs = |roots: &str| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            Configs::new(provider, roots, false).map(drop)
        };
        configs("").unwrap();
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let half = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        for roots in [junk, half] {
            let error = configs(roots).unwrap_err().to_string();
            assert!(error.contains("authorities"), "{error}");
        }
        assert!(configs(junk).unwrap_err().to_string().contains("number 1"));
    }
}
