//! The world outside of the guests: an authority that vouches for servers, and the search for
//! values in all that guests and those who take them over could reach.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::lab::{Lab, finish};

/// An authority that is none of the host's.
pub(crate) struct Outside {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Outside {
    pub(crate) fn new() -> Self {
        Self::named("outside")
    }

    /// Another one: who is called the same is taken for the same with another key.
    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("certificate");
        let dir = tempfile::tempdir().expect("tempdir");
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            base64(issuer.der())
        );
        std::fs::write(dir.path().join("ca.pem"), pem).expect("write");
        Self { issuer, dir }
    }

    pub(crate) fn pem(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn config(&self, names: &[&str]) -> Arc<ServerConfig> {
        let params = CertificateParams::new(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .expect("names");
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key);
        Arc::new(config.expect("configuration"))
    }
}

/// Serves connections, one after the other, for as long as the test's process lives; returns
/// the port of this host's loopback.
pub(crate) fn listen(serve: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.expect("accept"));
        }
    });
    port
}

/// A value in all the forms that are searched for. Of base64 that is what does not depend
/// on other bytes than the value's.
pub(crate) fn forms(value: &str) -> Vec<String> {
    let own = |whole: String| whole[4..whole.len() - 4].to_owned();
    let base64 = shifted(value).into_iter().map(own);
    plain(value).into_iter().chain(base64).collect()
}

/// A value as servers send it back.
pub(crate) fn reflection(value: &str) -> String {
    let mut all = plain(value);
    all.extend(shifted(value));
    all.join(" ")
}

fn plain(value: &str) -> Vec<String> {
    let bytes = value.as_bytes();
    vec![
        value.to_owned(),
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
        bytes.iter().map(|byte| format!("%{byte:02X}")).collect(),
        bytes.iter().map(|byte| format!("%{byte:02x}")).collect(),
        bytes.iter().map(|byte| format!("\\u{byte:04x}")).collect(),
        value.replace('/', "\\/"),
        value
            .replace('/', "%2F")
            .replace('+', "%2B")
            .replace('=', "%3D"),
    ]
}

/// Base64 and its form for URLs, at each alignment.
fn shifted(value: &str) -> Vec<String> {
    let whole = ["", "a", "ab"].map(|before| base64(format!("{before}{value}").as_bytes()));
    let urls = whole.clone();
    let urls = urls.map(|whole| whole.replace('+', "-").replace('/', "_"));
    whole.into_iter().chain(urls).collect()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place > group.len() {
                '='
            } else {
                letter.into()
            });
        }
    }
    text
}

/// Whether any of the forms is in a file, or in one of a folder.
pub(crate) fn holds(file: &Path, forms: &[String]) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["-a", "-q", "-F", "-r"]);
    for form in forms {
        grep.args(["-e", form]);
    }
    let status = grep.arg(file).status().expect("grep");
    assert!(status.code().is_some_and(|code| code < 2), "{status}");
    status.success()
}

/// Writes the memory of a process to a file, without what is all zero.
pub(crate) fn dump(pid: u32, to: &Path) {
    const PIECE: usize = 1 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("mem");
    let mut out = std::fs::File::create(to).expect("create");
    let (zero, mut piece) = (vec![0; PIECE], vec![0; PIECE]);
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').expect("a map");
        if !rest.starts_with("rw") {
            continue;
        }
        let (begin, end) = range.split_once('-').expect("a range");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        let (mut at, end) = (address(begin), address(end));
        while at < end {
            let room = PIECE.min((end - at) as usize);
            memory.seek(SeekFrom::Start(at)).expect("seek");
            if memory.read_exact(&mut piece[..room]).is_ok() && piece[..room] != zero[..room] {
                out.write_all(&piece[..room]).expect("write");
            }
            at += room as u64;
        }
    }
}

pub(crate) fn inspect(lab: &Lab, name: &str) -> serde_json::Value {
    let told = finish(&mut lab.msb(["inspect", name]), b"").success();
    serde_json::from_str(&told).expect("JSON")
}
