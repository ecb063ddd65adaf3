//! Certificates: whom the network trusts in the guest's place, and whom the guest trusts.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

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
        pem.push_str(&authorities(file).map_err(failed)?);
        pem.push('\n');
    }
    Ok(pem)
}

/// Reads a file that must hold a certificate at least. Whether they can be used is seen by
/// whoever uses them.
fn authorities(file: &Path) -> io::Result<String> {
    let odd = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut pem = String::new();
    let open = File::open(file)?;
    // Another one would have the start wait, or have no end.
    if !open.metadata()?.is_file() {
        return Err(odd("it is not a file"));
    }
    open.take(MAX_FILE + 1).read_to_string(&mut pem)?;
    if pem.len() as u64 > MAX_FILE {
        return Err(odd("it is longer than 1 MiB"));
    }
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        return Err(odd("there is no certificate in it"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_and_so_is_half_of_one() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("ca.pem");
        let good = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, good).expect("write");
        assert_eq!(
            extra(std::slice::from_ref(&path)).ok(),
            Some(format!("{good}\n"))
        );
        let long = good.repeat(MAX_FILE as usize / good.len() + 1);
        for (text, part) in [
            ("", "no certificate"),
            ("junk", "no certificate"),
            (&long, "1 MiB"),
        ] {
            std::fs::write(&path, text).expect("write");
            let failure = extra(std::slice::from_ref(&path)).expect_err("a failure");
            assert!(failure.reason.contains(part), "{}", failure.reason);
        }
        let folder = extra(&[folder.path().to_owned()]).expect_err("a failure");
        assert!(folder.reason.contains("not a file"), "{}", folder.reason);
    }
}
