//! The certificate authority of one sandbox.
//!
//! Its key is made when the sandbox starts, is never written anywhere, and is gone
//! when the sandbox ends. What it signs is believed inside this sandbox only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::{Error, Name};

/// How far a guest's clock may be behind.
const SKEW: Duration = Duration::from_secs(48 * 3600);

/// How long certificates are valid: longer than any sandbox lives, shorter than the
/// 398 days that clients accept.
const VALIDITY: Duration = Duration::from_secs(300 * 24 * 3600);

/// Certificates that are kept. Past this many the cache starts anew: a sandbox
/// that speaks to so many hosts does not notice.
const MAX_LEAVES: usize = 1024;

/// Names copied from a server's certificate: those of large ones have a hundred.
const MAX_NAMES: usize = 256;

/// The authority and what it signed.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// One key for all certificates: whoever had it could read this sandbox only.
    key: KeyPair,
    provider: Arc<CryptoProvider>,
    leaves: HashMap<(Name, Vec<String>), Arc<CertifiedKey>>,
}

fn failed(error: &rcgen::Error) -> Error {
    let reason = error.to_string();
    Error::System {
        doing: "make a certificate".into(),
        reason,
        hint: None,
    }
}

impl Authority {
    pub(super) fn new(provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "msb sandbox");
        set_validity(&mut params);
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(|error| failed(&error))?;
        Ok(Self {
            issuer,
            key: KeyPair::generate().map_err(|error| failed(&error))?,
            provider,
            leaves: HashMap::new(),
        })
    }

    /// The authority's own certificate, as guests keep such in files.
    pub(super) fn pem(&self) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(self.issuer.der());
        let lines: Vec<_> = text
            .as_bytes()
            .chunks(64)
            .map(String::from_utf8_lossy)
            .collect();
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            lines.join("\n")
        )
    }

    /// A certificate for a host, with the names that the server's own one has.
    pub(super) fn leaf(
        &mut self,
        host: &Name,
        server: &CertificateDer<'_>,
    ) -> Result<Arc<CertifiedKey>, Error> {
        let names = names(server);
        let wanted = (host.clone(), names);
        if let Some(leaf) = self.leaves.get(&wanted) {
            return Ok(Arc::clone(leaf));
        }
        let mut params = CertificateParams::default();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params);
        let own = std::iter::once(host.as_str());
        for name in own.chain(wanted.1.iter().map(String::as_str)) {
            // It was the name of a certificate, so it is text of the right kind.
            if let Ok(text) = name.try_into() {
                params.subject_alt_names.push(SanType::DnsName(text));
            }
        }
        let signed = params
            .signed_by(&self.key, &self.issuer)
            .map_err(|error| failed(&error))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = self.provider.key_provider.load_private_key(key);
        let key = key.map_err(|error| Error::System {
            doing: "load a key".into(),
            reason: error.to_string(),
            hint: None,
        })?;
        let chain = vec![signed.der().clone(), self.issuer.der().clone()];
        let leaf = Arc::new(CertifiedKey::new(chain, key));
        if self.leaves.len() >= MAX_LEAVES {
            self.leaves.clear();
        }
        self.leaves.insert(wanted, Arc::clone(&leaf));
        Ok(leaf)
    }
}

fn set_validity(params: &mut CertificateParams) {
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + VALIDITY).into();
}

/// The names of a server's certificate, without those that no host is called.
fn names(server: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(server) else {
        return Vec::new();
    };
    let is_name = |name: &&str| {
        let plain = name.strip_prefix("*.").unwrap_or(name);
        Name::new(plain).is_ok()
    };
    let names = certificate.valid_dns_names().filter(is_name);
    let mut names: Vec<_> = names.take(MAX_NAMES).map(str::to_ascii_lowercase).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{CertificateError, RootCertStore};

    use super::*;

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    /// A guest whose clock is somewhat wrong believes it, for the names of the server.
    #[test]
    fn certificates_have_the_servers_names_and_bear_with_clocks() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let names = ["a.example", "*.a.example", "c.example"].map(String::from);
        let params = CertificateParams::new(names).unwrap();
        let server = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let host = "a.example".parse().unwrap();
        let mut authority = Authority::new(provider()).unwrap();
        let leaf = authority.leaf(&host, server.der()).unwrap();
        assert!(Arc::ptr_eq(
            &leaf,
            &authority.leaf(&host, server.der()).unwrap()
        ));
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        roots.add(root).unwrap();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = verifier.build().unwrap();
        let now = SystemTime::now();
        let verify = |name: &str, at: SystemTime| {
            let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let (own, rest) = leaf.cert.split_first().unwrap();
            verifier
                .verify_server_cert(own, rest, &name, &[], at)
                .map(drop)
        };
        for name in ["a.example", "x.a.example", "c.example"] {
            for at in [now, now - DAY, now + 100 * DAY] {
                verify(name, at).unwrap();
            }
        }
        let refused = |name, at| match verify(name, at) {
            Err(rustls::Error::InvalidCertificate(error)) => error,
            other => panic!("{other:?}"),
        };
        let (early, late) = (now - 3 * DAY, now + 398 * DAY);
        assert!(matches!(
            refused("b.example", now),
            CertificateError::NotValidForNameContext { .. }
        ));
        assert!(matches!(
            refused("a.example", early),
            CertificateError::NotValidYetContext { .. }
        ));
        assert!(matches!(
            refused("a.example", late),
            CertificateError::ExpiredContext { .. }
        ));
    }
}
