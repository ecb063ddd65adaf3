//! Servers that play the named host, and the authority that vouches for them.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// An authority that the gateway trusts in these tests.
pub(crate) struct Outside {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a server saw: the heads of its requests.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

impl Outside {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", self.issuer.der())
    }

    /// Writes what a server elsewhere needs, and its clients: `leaf.pem`, `leaf.key`, `ca.pem`.
    pub(crate) fn write(&self, name: &str, folder: &Path) {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        for (file, text) in [
            ("leaf.pem", pem("CERTIFICATE", certificate.der())),
            ("leaf.key", pem("PRIVATE KEY", &key.serialize_der())),
            ("ca.pem", self.pem()),
        ] {
            std::fs::write(folder.join(file), text).unwrap();
        }
    }

    pub(crate) fn config(&self, name: &str, protocol: &[u8]) -> Arc<ServerConfig> {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        self.signed(&params, protocol)
    }

    /// A certificate that was good until a day ago.
    pub(crate) fn expired(&self, name: &str, protocol: &[u8]) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        let day = std::time::Duration::from_secs(24 * 3600);
        let yesterday = std::time::SystemTime::now() - day;
        params.not_before = (yesterday - day).into();
        params.not_after = yesterday.into();
        self.signed(&params, protocol)
    }

    fn signed(&self, params: &CertificateParams, protocol: &[u8]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }
}

/// In lines that every reader takes.
fn pem(what: &str, der: &[u8]) -> String {
    let lines = der.chunks(48).map(|line| base64(line) + "\n");
    let text: String = lines.collect();
    format!("-----BEGIN {what}-----\n{text}-----END {what}-----\n")
}

/// Base64 by hand: the tests' own, to check others against.
pub(crate) fn base64(bytes: &[u8]) -> String {
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

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Serves for as long as the test's process lives.
fn serve<F: Future<Output = ()> + 'static>(
    config: Option<Arc<ServerConfig>>,
    serve: impl Fn(Box<dyn Stream>, Seen) -> F + Send + Copy + 'static,
) -> (u16, Seen) {
    let (listener, port) = listen();
    let seen = Seen::default();
    let shared = Arc::clone(&seen);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (config, seen) = (config.clone(), Arc::clone(&shared));
                tokio::task::spawn_local(async move {
                    match config {
                        None => serve(Box::new(stream), seen).await,
                        Some(config) => {
                            if let Ok(tls) = TlsAcceptor::from(config).accept(stream).await {
                                serve(Box::new(tls), seen).await;
                            }
                        }
                    }
                });
            }
        });
    });
    (port, seen)
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A server of HTTP/1.1 that reflects the Authorization field in every way, and
/// answers 401 to a path that says so.
pub(crate) fn h1(config: Option<Arc<ServerConfig>>) -> (u16, Seen) {
    serve(config, |mut stream, seen| async move {
        let mut input = Vec::new();
        loop {
            while !input.windows(4).any(|four| four == b"\r\n\r\n") {
                let mut piece = [0; 4096];
                match stream.read(&mut piece).await {
                    Ok(length @ 1..) => input.extend_from_slice(&piece[..length]),
                    _ => return,
                }
            }
            let end = input
                .windows(4)
                .position(|four| four == b"\r\n\r\n")
                .unwrap()
                + 4;
            let head: Vec<u8> = input.drain(..end).collect();
            let head = String::from_utf8(head).unwrap();
            let credential = credential(&head);
            let status = if head.starts_with("GET /401") {
                401
            } else {
                200
            };
            seen.lock().unwrap().push(head);
            let body = reflection(&credential);
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} X\r\nX-Echo: {credential}\r\nContent-Length: {length}\r\n\r\n"
            );
            for piece in [head.as_bytes(), body.as_bytes()] {
                for byte in piece {
                    // Each byte in a record of its own.
                    stream.write_all(&[*byte]).await.unwrap();
                    stream.flush().await.unwrap();
                }
            }
        }
    })
}

/// A server that never answers, and keeps every byte it gets.
pub(crate) fn bytes(config: Arc<ServerConfig>) -> (u16, Seen) {
    serve(Some(config), |mut stream, seen| async move {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut piece).await {
            let text = String::from_utf8_lossy(&piece[..length]).into_owned();
            seen.lock().unwrap().push(text);
        }
    })
}

/// A server that sends one line back, and closes.
pub(crate) fn lines() -> (u16, Seen) {
    serve(None, |mut stream, seen| async move {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            match stream.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(_) => return,
            }
        }
        stream.write_all(&line).await.unwrap();
        seen.lock().unwrap().push(String::from_utf8(line).unwrap());
    })
}

/// A server of HTTP/1.1 that answers every head as a function says.
pub(crate) fn script(config: Arc<ServerConfig>, answer: fn(&str) -> Vec<u8>) -> (u16, Seen) {
    serve(Some(config), move |mut stream, seen| async move {
        let mut input = Vec::new();
        loop {
            let end = input.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                let head: Vec<u8> = input.drain(..end + 4).collect();
                let head = String::from_utf8(head).unwrap();
                let text = answer(&head);
                seen.lock().unwrap().push(head);
                if stream.write_all(&text).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                continue;
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await {
                Ok(length @ 1..) => input.extend_from_slice(&piece[..length]),
                _ => return,
            }
        }
    })
}

/// A proxy that opens every tunnel to one port of this host, with a greeting in front if
/// there is one; what went to it and through it.
pub(crate) fn proxy(to: u16, greeting: &'static [u8]) -> (u16, Seen) {
    serve(None, move |mut stream, seen| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        seen.lock().unwrap().push(String::from_utf8(head).unwrap());
        let answer = b"HTTP/1.0 200 Connection established\r\n\r\n";
        stream
            .write_all(&[answer, greeting].concat())
            .await
            .unwrap();
        let address = (Ipv4Addr::LOCALHOST, to);
        let far = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut from_far, mut to_far) = far.into_split();
        let (mut from_near, mut to_near) = tokio::io::split(stream);
        let up = async {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = from_near.read(&mut piece).await {
                let text = String::from_utf8_lossy(&piece[..length]).into_owned();
                seen.lock().unwrap().push(text);
                if to_far.write_all(&piece[..length]).await.is_err() {
                    break;
                }
            }
            let _ = to_far.shutdown().await;
        };
        let down = async {
            let _ = tokio::io::copy(&mut from_far, &mut to_near).await;
            let _ = to_near.shutdown().await;
        };
        tokio::join!(up, down);
    })
}

pub(crate) fn credential(head: &str) -> String {
    let line = head
        .lines()
        .find(|line| line.starts_with("authorization: "));
    line.map_or("none", |line| &line["authorization: Bearer ".len()..])
        .into()
}

pub(crate) fn reflection(credential: &str) -> String {
    let shifted = |by: &str| base64(format!("{by}{credential}").as_bytes());
    let hex: String = credential
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let percent: String = credential
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect();
    format!(
        "{credential} {} {} {} {hex} {percent}",
        shifted(""),
        shifted("a"),
        shifted("ab")
    )
}

/// A server of HTTP/2 that does the same, with the credential in the trailer too.
pub(crate) fn h2(config: Arc<ServerConfig>) -> (u16, Seen) {
    serve(Some(config), |stream, seen| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let held = Rc::new(Notify::new());
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let (seen, held) = (Arc::clone(&seen), Rc::clone(&held));
            tokio::task::spawn_local(async move {
                let (parts, mut upload) = request.into_parts();
                let mut length = 0;
                while let Some(Ok(piece)) = upload.data().await {
                    length += piece.len();
                    let _ = upload.flow_control().release_capacity(piece.len());
                }
                let credential = parts.headers.get("authorization");
                let credential = credential.map_or("none", |value| value.to_str().unwrap());
                let credential = credential.trim_start_matches("Bearer ").to_owned();
                let line = format!("{} {} {length} {credential}", parts.method, parts.uri);
                seen.lock().unwrap().push(line);
                let path = parts.uri.path();
                match path {
                    "/hold" => held.notified().await,
                    "/release" => held.notify_one(),
                    _ => {}
                }
                let status = if path == "/401" { 401 } else { 200 };
                let response = http::Response::builder().status(status);
                let response = response.header("x-echo", &credential);
                let bodiless = parts.method == http::Method::HEAD;
                let mut body = respond
                    .send_response(response.body(()).unwrap(), bodiless)
                    .unwrap();
                if bodiless {
                    return;
                }
                for byte in reflection(&credential).into_bytes() {
                    body.send_data(Bytes::copy_from_slice(&[byte]), false)
                        .unwrap();
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", credential.parse().unwrap());
                body.send_trailers(trailers).unwrap();
            });
        }
    })
}
