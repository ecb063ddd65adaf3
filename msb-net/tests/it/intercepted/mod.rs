//! Requests between a guest and real TLS servers, and secrets in them.

mod ambiguous;
mod answers;
mod conformance;
mod frames;
mod rotation;
pub(crate) mod servers;
mod states;
mod tunnels;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::Bytes;
use msb_net::gateway::{Config, Event};
use msb_net::http::session::Note;
use msb_net::policy::Pattern;
use msb_net::secret::{Secret, SecretValue, Source};
use msb_net::shell::{Events, Link, Network, Options};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use self::servers::{Outside, base64, reflection};
use crate::guest::Guest;

const VALUE: &str = "s3cr3t-v4lue/with+odd=chars";

/// A network whose guest has the secret of a.example.
struct World {
    config: Config,
    guest: Option<Guest>,
    network: Network,
    events: Events,
}

fn world(policy: &str, outside: &Outside, secret: Option<Secret>) -> World {
    sparing(policy, outside, secret, &[])
}

/// The same, with hosts that are to be left alone.
fn sparing(policy: &str, outside: &Outside, secret: Option<Secret>, hosts: &[&str]) -> World {
    let config = Config::new(policy.parse().expect("a policy"), 7);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut options = Options::new(config.clone());
    options.interception.extra_roots = outside.pem();
    options.interception.only_extra_roots = true;
    options.interception.secrets.extend(secret);
    let spared = |host: &&str| Pattern::Domain(host.parse().expect("a name"));
    options.interception.passthrough = hosts.iter().map(spared).collect();
    let (network, events) = Network::spawn(options, Link::stream(ours)).expect("it starts");
    let guest = Some(Guest::new(&config, theirs));
    World {
        config,
        guest,
        network,
        events,
    }
}

fn secret(source: Source) -> Option<Secret> {
    let secret = Secret::new("TOKEN", source).unwrap();
    Some(secret.allow_host("a.example".parse().unwrap()))
}

fn literal() -> Option<Secret> {
    let value = SecretValue::new(VALUE.as_bytes()).unwrap();
    secret(Source::Literal(Arc::new(value)))
}

impl World {
    /// A connection of the guest's, as a stream: the guest runs on a thread until it
    /// is over.
    fn connect(&mut self, port: u16) -> UnixStream {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut guest = self.guest.take().expect("one connection for each world");
        let to = SocketAddr::new(self.config.gateway_v4.into(), port);
        std::thread::spawn(move || {
            let flow = guest.connect(to, 40_000);
            let mut ended = false;
            guest.until(flow, |socket| {
                let mut piece = [0; 16_384];
                while socket.can_send() && !ended {
                    let room = piece
                        .len()
                        .min(socket.send_capacity() - socket.send_queue());
                    match far.read(&mut piece[..room]) {
                        Ok(0) if room > 0 => {
                            socket.close();
                            ended = true;
                        }
                        Ok(length) => {
                            assert_eq!(socket.send_slice(&piece[..length]), Ok(length));
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(_) => {
                            socket.abort();
                            ended = true;
                        }
                    }
                }
                while socket.can_recv() {
                    let take = |bytes: &mut [u8]| match far.write(bytes) {
                        Ok(length) => (length, length),
                        Err(_) => (0, 0),
                    };
                    if socket.recv(take) == Ok(0) {
                        break;
                    }
                }
                let over = !socket.may_recv()
                    && !socket.can_recv()
                    && socket.state() != smoltcp::socket::tcp::State::SynSent;
                over.then(|| {
                    let _ = far.shutdown(std::net::Shutdown::Both);
                })
            });
        });
        near
    }

    fn placeholder(&self) -> String {
        let [(name, own)] = self.network.placeholders() else {
            panic!("one secret");
        };
        assert_eq!(name, "TOKEN");
        own.to_string()
    }

    /// What the guest's programs trust.
    fn client(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        let pem = self.network.ca_pem().expect("there is an authority");
        client(pem, protocol)
    }

    fn notes(self) -> Vec<Note> {
        let Self {
            network,
            mut events,
            ..
        } = self;
        network.stop();
        let mut notes = Vec::new();
        while let Some(entry) = events.blocking_recv() {
            if let Event::Request { note, .. } = entry.event {
                notes.push(note);
            }
        }
        notes
    }

    /// Waits for what is worth telling.
    fn note(&mut self) -> Note {
        while let Some(entry) = self.events.blocking_recv() {
            let line = entry.to_json(self.network.policy());
            assert!(!line.contains(VALUE), "{line}");
            if let Event::Request { note, .. } = entry.event {
                return note;
            }
        }
        panic!("the network ended");
    }
}

fn client(roots: &str, protocol: &[u8]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(roots.as_bytes()).unwrap();
    store.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// Runs a client of the guest.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::UnixStream>;

async fn connect(
    stream: UnixStream,
    config: Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<Tls> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(config).connect(name, stream).await
}

/// One exchange of HTTP/1.1; returns head and body as they came.
async fn exchange(stream: &mut (impl servers::Stream + ?Sized), request: String) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await.unwrap();
        got.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&got);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert!(length > 0, "it ended early: {text}");
            continue;
        };
        let head = head.to_ascii_lowercase();
        let length_of = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let whole = match length_of {
            Some(length) => body.len() >= length.parse().unwrap(),
            None => body.ends_with("0\r\n\r\n"),
        };
        if whole || length == 0 {
            return text.into_owned();
        }
    }
}

/// The body of a chunked response.
fn unchunked(text: &str) -> String {
    let (_, mut rest) = text.split_once("\r\n\r\n").unwrap();
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&more[..size]);
        rest = &more[size + 2..];
    }
    body
}

/// No part of the value is there, in any of the forms that the servers use.
fn assert_clean(text: &str) {
    let hex: String = VALUE.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = VALUE.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for form in [VALUE, &hex, &percent] {
        assert!(!text.contains(form), "{form} in {text}");
    }
    for before in ["", "a", "ab"] {
        let whole = base64(format!("{before}{VALUE}").as_bytes());
        let own = &whole[4..whole.len() - 4];
        assert!(!text.contains(own), "{own} in {text}");
    }
}

#[test]
fn over_http1_the_server_gets_the_value_and_the_guest_placeholders() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h1(Some(outside.config("a.example", b"http/1.1")));
    let mut world = world("preset allow-all", &outside, literal());
    let own = world.placeholder();
    let (stream, config) = (world.connect(port), world.client(b"http/1.1"));
    let answers = run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        let certificate = &tls.get_ref().1.peer_certificates().unwrap()[0];
        assert!(certificate.windows(9).any(|name| name == b"a.example"));
        let mut answers = Vec::new();
        for host in ["a.example", "a.example", "b.example"] {
            let request =
                format!("GET /x HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {own}\r\n\r\n");
            answers.push(exchange(&mut tls, request).await);
        }
        answers
    });
    let heads = seen.lock().unwrap();
    assert_eq!(heads.len(), 2, "none for another host");
    for head in heads.iter() {
        assert!(
            head.contains(&format!("authorization: Bearer {VALUE}\r\n")),
            "{head}"
        );
    }
    for answer in &answers[..2] {
        assert_clean(answer);
        assert!(answer.contains(&format!("x-echo: {own}\r\n")), "{answer}");
        let body = unchunked(answer);
        let expected = reflection(&own);
        assert!(body.starts_with(&format!("{own} ")), "{body}");
        let (hex, percent) = (expected.split(' ').nth(4), body.split(' ').nth(5));
        assert_eq!(body.split(' ').nth(4), hex);
        assert_eq!(percent, Some(&own[..]), "a placeholder needs no escapes");
    }
    assert!(answers[2].starts_with("HTTP/1.1 421 "), "{}", answers[2]);
    drop(heads);
    let notes = world.notes();
    let used = |note: &&Note| matches!(note, Note::SecretUsed { secret, .. } if secret == "TOKEN");
    assert_eq!(notes.iter().filter(used).count(), 2, "{notes:?}");
}

#[test]
fn over_http2_too_with_trailers_and_large_bodies() {
    const SIZE: usize = 3_000_000;
    let outside = Outside::new("known");
    let (port, seen) = servers::h2(outside.config("a.example", b"h2"));
    let mut world = world(
        "preset allow-all\ndeny http a.example/admin/**",
        &outside,
        literal(),
    );
    let own = world.placeholder();
    let (stream, config) = (world.connect(port), world.client(b"h2"));
    run(async {
        let tls = connect(stream, config, "a.example").await.unwrap();
        let (mut requests, driver) = h2::client::handshake(tls).await.unwrap();
        tokio::task::spawn_local(driver);
        for (host, path, status) in [
            ("a.example", "/x", 200),
            ("a.example", "/admin/x", 403),
            ("a.example", "/x/%2e%2e/admin", 403),
            ("b.example", "/x", 421),
        ] {
            let request = http::Request::post(format!("https://{host}{path}"))
                .header("authorization", format!("Bearer {own}"));
            let request = request.body(()).unwrap();
            requests = requests.ready().await.unwrap();
            let (response, mut upload) = requests.send_request(request, false).unwrap();
            tokio::task::spawn_local(async move {
                let mut left = if status == 200 { SIZE } else { 0 };
                while left > 0 {
                    upload.reserve_capacity(left);
                    let room = std::future::poll_fn(|cx| upload.poll_capacity(cx)).await;
                    let now = room.unwrap().unwrap().min(left);
                    upload.send_data(vec![b'x'; now].into(), false).unwrap();
                    left -= now;
                }
                let _ = upload.send_data(Bytes::new(), true);
            });
            let response = response.await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{host}{path}");
            let (parts, mut body) = response.into_parts();
            let mut text = format!("{:?}", parts.headers);
            while let Some(piece) = body.data().await {
                text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
            }
            if status == 200 {
                assert_eq!(parts.headers["x-echo"], own);
                let trailers = body.trailers().await.unwrap().expect("trailers");
                assert_eq!(trailers["grpc-status"], own);
            }
            assert_clean(&text);
        }
    });
    let expected = format!("POST https://a.example/x {SIZE} {VALUE}");
    assert_eq!(*seen.lock().unwrap(), [expected]);
    let notes = world.notes();
    let denied = |note: &&Note| matches!(note, Note::Denied { by, .. } if by.contains("rule 1"));
    assert_eq!(notes.iter().filter(denied).count(), 2, "{notes:?}");
}

#[test]
fn a_server_that_is_not_the_host_gets_nothing() {
    let (outside, stranger) = (Outside::new("known"), Outside::new("stranger"));
    let h1 = b"http/1.1";
    for (config, alert) in [
        (
            stranger.config("a.example", h1),
            AlertDescription::UnknownCA,
        ),
        (
            outside.config("b.example", h1),
            AlertDescription::UnrecognisedName,
        ),
        (
            outside.expired("a.example", h1),
            AlertDescription::CertificateExpired,
        ),
    ] {
        let (port, seen) = servers::h1(Some(config));
        let mut world = world("preset allow-all", &outside, literal());
        let (stream, config) = (world.connect(port), world.client(b"http/1.1"));
        let error = run(connect(stream, config, "a.example")).expect_err("no connection");
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        assert_eq!(inner, Some(&rustls::Error::AlertReceived(alert)), "{error}");
        assert!(matches!(world.note(), Note::Untrusted { .. }));
        assert!(seen.lock().unwrap().is_empty());
    }
}

/// Asks a server for something with the placeholder: it shows its own certificate, and gets
/// what the guest has.
fn goes_unread(stream: UnixStream, outside: &Outside, host: &str, own: &str, seen: &servers::Seen) {
    let config = client(&outside.pem(), b"http/1.1");
    run(async {
        let tls = connect(stream, config, host).await;
        let mut tls = tls.expect("the server's own certificate");
        let request =
            format!("GET / HTTP/1.1\r\nhost: a.example\r\nauthorization: Bearer {own}\r\n\r\n");
        exchange(&mut tls, request).await;
    });
    let head = seen.lock().unwrap().pop().expect("a request");
    assert!(head.contains(own) && !head.contains(VALUE), "{head}");
}

#[test]
fn other_hosts_are_not_taken_apart_and_get_the_placeholder() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h1(Some(outside.config("b.example", b"http/1.1")));
    let mut world = world("preset allow-all", &outside, literal());
    let own = world.placeholder();
    goes_unread(world.connect(port), &outside, "b.example", &own, &seen);
    assert_eq!(world.notes(), []);
}

#[test]
fn hosts_that_are_left_alone_show_their_own_certificate_and_get_no_value() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h1(Some(outside.config("a.example", b"http/1.1")));
    let mut direct = sparing("preset allow-all", &outside, literal(), &["a.example"]);
    let own = direct.placeholder();
    goes_unread(direct.connect(port), &outside, "a.example", &own, &seen);
    assert_eq!(direct.notes(), [Note::Passed]);

    let (proxy, _) = servers::proxy(port, b"");
    let mut tunnelled = sparing("preset allow-all", &outside, literal(), &["a.example"]);
    let own = tunnelled.placeholder();
    let stream = tunnels::open(&mut tunnelled, proxy, "a.example:443");
    goes_unread(stream, &outside, "a.example", &own, &seen);
    let notes = tunnelled.notes();
    assert!(
        matches!(&notes[..], [Note::Tunnel { .. }, Note::Passed]),
        "{notes:?}"
    );

    // A rule about its requests comes first.
    let policy = "preset allow-all\ndeny http DELETE a.example";
    let mut read = sparing(policy, &outside, literal(), &["a.example"]);
    let (stream, config) = (read.connect(port), read.client(b"http/1.1"));
    run(connect(stream, config, "a.example")).expect("the certificate of the sandbox");
}

#[test]
fn a_client_with_its_own_authorities_is_told_of() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h1(Some(outside.config("a.example", b"http/1.1")));
    let mut world = world("preset allow-all", &outside, literal());
    let (stream, config) = (world.connect(port), client(&outside.pem(), b"http/1.1"));
    run(connect(stream, config, "a.example")).expect_err("it is not the server's certificate");
    assert!(matches!(world.note(), Note::Pinned { .. }));
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn without_tls_rules_hold_and_no_value_is_sent() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h1(None);
    let mut world = world(
        "preset allow-all\ndeny http DELETE any",
        &outside,
        literal(),
    );
    let own = world.placeholder();
    let stream = world.connect(port);
    stream.set_nonblocking(true).unwrap();
    run(async {
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        for (method, status) in [("GET", "200"), ("DELETE", "403"), ("GET", "200")] {
            let request = format!(
                "{method} / HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {own}\r\n\r\n"
            );
            let answer = exchange(&mut stream, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
        }
    });
    let heads = seen.lock().unwrap();
    assert_eq!(heads.len(), 2);
    assert!(
        heads
            .iter()
            .all(|head| head.contains(&own) && !head.contains(VALUE))
    );
}

#[test]
fn rules_about_requests_let_nothing_else_pass() {
    let outside = Outside::new("known");
    let (port, _) = servers::h1(None);
    let mut world = world("preset allow-all\ndeny http a.example/x", &outside, None);
    let stream = world.connect(port);
    stream.set_nonblocking(true).unwrap();
    run(async {
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        let answer = exchange(&mut stream, "GET /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    });
    assert!(matches!(world.note(), Note::Refused { .. }));
}

#[test]
fn a_value_that_was_changed_is_used_after_a_401() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h1(Some(outside.config("a.example", b"http/1.1")));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "the first value\n").unwrap();
    let mut world = world(
        "preset allow-all",
        &outside,
        secret(Source::File(path.clone())),
    );
    let own = world.placeholder();
    let (stream, config) = (world.connect(port), world.client(b"http/1.1"));
    run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        for target in ["/", "/401", "/"] {
            let request = format!(
                "GET {target} HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {own}\r\n\r\n"
            );
            let answer = exchange(&mut tls, request).await;
            assert!(!answer.contains("value"), "{answer}");
            std::fs::write(&path, "another value!").unwrap();
        }
    });
    let heads = seen.lock().unwrap();
    let values = heads.iter().map(|head| head.contains("another value!"));
    assert_eq!(values.collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn a_program_makes_the_value() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h1(Some(outside.config("a.example", b"http/1.1")));
    let command = ["sh", "-c", "echo made-by-a-program"].map(String::from);
    let mut world = world(
        "preset allow-all",
        &outside,
        secret(Source::Command(command.into())),
    );
    let own = world.placeholder();
    let (stream, config) = (world.connect(port), world.client(b"http/1.1"));
    run(async {
        let mut tls = connect(stream, config, "a.example").await.unwrap();
        let request =
            format!("GET / HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {own}\r\n\r\n");
        exchange(&mut tls, request).await;
    });
    assert!(seen.lock().unwrap()[0].contains("authorization: Bearer made-by-a-program\r\n"));
}
