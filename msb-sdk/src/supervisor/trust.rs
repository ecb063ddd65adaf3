//! Certificates: whom the network trusts in the guest's place, and whom the guest trusts.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use base64::Engine as _;
use msb_guest_agent::message::{ByteString, TrustSpec};

use super::start::Failure;

/// The longest file of authorities that is read: a whole store has half of it at most.
const MAX_FILE: u64 = 1 << 20;

/// Characters of a line of PEM.
const LINE: usize = 64;

/// Reads the authorities that servers are verified with, beside the host's.
pub(super) fn extra(files: &[PathBuf]) -> Result<String, Failure> {
    let mut pem = String::new();
    for file in files {
        let failed = |error: std::io::Error| Failure {
            reason: format!("cannot read the authorities in {}: {error}", file.display()),
            hint: Some("it must be a file of certificates in PEM".into()),
        };
        let open = File::open(file).map_err(failed)?;
        open.take(MAX_FILE)
            .read_to_string(&mut pem)
            .map_err(failed)?;
        pem.push('\n');
    }
    Ok(pem)
}

/// What the agent is told. The fallback is what this host trusts.
pub(super) fn spec(authority: &str) -> TrustSpec {
    let mut fallback = String::new();
    for certificate in rustls_native_certs::load_native_certs().certs {
        let before = fallback.len();
        append(&mut fallback, &certificate);
        if fallback.len() > TrustSpec::MAX_FALLBACK {
            fallback.truncate(before);
            break;
        }
    }
    TrustSpec {
        authority: authority.into(),
        fallback: ByteString::from(fallback),
    }
}

fn append(pem: &mut String, certificate: &[u8]) {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = &text[..];
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        // Writing to a string cannot fail.
        let _ = writeln!(pem, "{line}");
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
}
