//! Secrets that a guest uses and does not have: with the clients and servers that there are,
//! and a search of all that the guest can reach. Everything stays on this host's loopback.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::lab::{Kept, Lab, PYTHON, finish, text, wait};

const VALUE: &str = "s3cr3t-v4lue/with+odd=chars";

/// The host's variable that holds the value.
const VARIABLE: &str = "MSB_TEST_SECRET";

/// What the guest's programs begin with: how to ask a server, by the name it plays.
const CLIENT: &str = r#"
import http.client, os, ssl, sys
with open("/etc/hosts", "a") as hosts:
    hosts.write("192.168.127.1 a.example b.example\n")
def ask(host, port, verify=True, tls=True, method="GET", path="/"):
    context = ssl.create_default_context() if verify else ssl._create_unverified_context()
    if tls:
        client = http.client.HTTPSConnection(host, int(port), context=context)
    else:
        client = http.client.HTTPConnection(host, int(port))
    client.request(method, path, headers={"Authorization": "Bearer " + os.environ["TOKEN"]})
    answer = client.getresponse()
    print(host, answer.status, dict(answer.getheaders()), answer.read().decode(), flush=True)
"#;

/// An authority that is none of the host's.
struct Outside {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Outside {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "outside");
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

    fn pem(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn config(&self, name: &str) -> Arc<ServerConfig> {
        let params = CertificateParams::new([name.to_owned()]).expect("name");
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

/// A server that reflects the credential of a request in every way.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(config: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("address").port();
        let seen = Arc::default();
        let shared = Arc::clone(&seen);
        // It lives as long as the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accept");
                match &config {
                    None => serve(stream, &shared),
                    Some(config) => {
                        let tls = ServerConnection::new(Arc::clone(config)).expect("TLS");
                        serve(StreamOwned::new(tls, stream), &shared);
                    }
                }
            }
        });
        Self { port, seen }
    }

    fn credentials(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }
}

fn serve(mut stream: impl Read + Write, seen: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = text(&head);
    let field = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then_some(value)
    });
    let own = field.unwrap_or("").trim_start_matches("Bearer ").to_owned();
    let body = reflection(&own);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nX-Echo: {own}\r\nSet-Cookie: t={own}\r\nLocation: https://x/?t={own}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    seen.lock().expect("no panic").push(own);
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.flush();
}

/// A value in all the forms that are searched for. Of base64 that is what does not depend
/// on other bytes than the value's.
fn forms(value: &str) -> Vec<String> {
    let own = |whole: String| whole[4..whole.len() - 4].to_owned();
    let base64 = shifted(value).into_iter().map(own);
    plain(value).into_iter().chain(base64).collect()
}

/// A value as servers send it back.
fn reflection(value: &str) -> String {
    let mut all = plain(value);
    all.extend(shifted(value));
    all.join(" ")
}

fn plain(value: &str) -> Vec<String> {
    let bytes = value.as_bytes();
    vec![
        value.to_owned(),
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        bytes.iter().map(|byte| format!("%{byte:02X}")).collect(),
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

/// Whether any of the forms is in a file.
fn holds(file: &Path, forms: &[String]) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["-a", "-q", "-F"]);
    for form in forms {
        grep.args(["-e", form]);
    }
    let status = grep.arg(file).status().expect("grep");
    assert!(status.code().is_some_and(|code| code < 2), "{status}");
    status.success()
}

/// Writes the memory of a process to a file, without what is all zero.
fn dump(pid: u32, to: &Path) {
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

fn inspect(lab: &Lab, name: &str) -> serde_json::Value {
    let told = finish(&mut lab.msb(["inspect", name]), b"").success();
    serde_json::from_str(&told).expect("JSON")
}

#[test]
fn the_server_gets_the_value_and_the_guest_never_does() {
    let lab = Lab::with_python();
    let outside = Outside::new();
    let [named, other] =
        ["a.example", "b.example"].map(|host| Server::start(Some(outside.config(host))));
    let plain = Server::start(None);
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| dir.path().join(name);
    let ports = [&named, &other, &plain].map(|server| server.port.to_string());
    let script = format!(
        "{CLIENT}\n\
         ask('a.example', {0}, path='/x')\n\
         ask('a.example', {0}, method='DELETE')\n\
         ask('b.example', {1}, verify=False)\n\
         ask('a.example', {2}, tls=False)\n\
         print('token', os.environ['TOKEN'], flush=True)\n\
         sys.stdin.read()\n",
        ports[0], ports[1], ports[2]
    );
    let name = format!("secret-{}", std::process::id());
    let secret = format!("TOKEN=env:{VARIABLE}@a.example,prefix=sk-");
    let mut command = lab.msb(["run", "-q", "--rm", "--name", &name, "-m", "256M"]);
    command
        .args([
            "--net",
            "allow-all",
            "--net-rule",
            "deny http DELETE a.example",
        ])
        .args(["--secret", &secret, "--net-log", "-", "--pcap"])
        .arg(at("pcap"))
        .arg("--tls-ca")
        .arg(outside.pem())
        .args([PYTHON, "--", "python3", "-c", &script])
        .env(VARIABLE, VALUE);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let input = child.stdin.take();
    let mut output = BufReader::new(child.stdout.take().expect("stdout"));
    let (mut said, mut line) = (String::new(), String::new());
    while output.read_line(&mut line).expect("a line") > 0 && !line.starts_with("token") {
        said.push_str(&std::mem::take(&mut line));
    }
    let Some(own) = line.trim_end().strip_prefix("token ") else {
        panic!("{said} {}", text(&wait(child).stderr));
    };

    // While it runs: the memory of the guest, and of whom it could take over.
    let told = inspect(&lab, &name);
    assert_eq!(told[0]["spec"]["secrets"][0]["hosts"][0], "a.example");
    let pid = |key: &str| told[0][key].as_u64().expect("a process id") as u32;
    dump(pid("vmm_pid"), &at("memory"));
    let folder = lab.home().join("sandboxes").join(&name);
    for file in ["sandbox.json", "state.json", "log"] {
        assert!(!holds(&folder.join(file), &forms(VALUE)), "{file}");
    }
    for process in ["vmm_pid", "supervisor_pid"] {
        for file in ["environ", "cmdline"] {
            let file = PathBuf::from(format!("/proc/{}/{file}", pid(process)));
            assert!(!holds(&file, &forms(VALUE)), "{}", file.display());
        }
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid("supervisor_pid")));
    let limits = limits.expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    assert!(
        core.is_some_and(|line| line.split_whitespace().nth(4) == Some("1")),
        "{core:?}"
    );
    drop(input);
    let ended = wait(child);
    let log = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{log}");

    assert_eq!(named.credentials(), [VALUE], "{said} {log}");
    assert_eq!(other.credentials(), [own]);
    assert_eq!(plain.credentials(), [own]);
    assert!(own.starts_with("sk-"), "{own}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("a.example 200") && lines[0].contains(own),
        "{said}"
    );
    assert!(
        lines[1].contains("403") && lines[1].contains("application/problem+json"),
        "{said}"
    );
    assert!(lines[1].contains("rule 1"), "{said}");
    std::fs::write(at("said"), format!("{said}{log}{told}")).expect("write");
    for file in ["memory", "pcap", "said"] {
        for form in forms(VALUE) {
            assert!(
                !holds(&at(file), std::slice::from_ref(&form)),
                "{form} in {file}"
            );
        }
    }
    // The search finds what is there.
    assert!(holds(&at("memory"), &forms(own)) && holds(&at("said"), &forms(own)));
    assert!(
        log.contains("net: secret TOKEN: GET a.example/x, flow "),
        "{log}"
    );
    assert!(
        log.contains("net: deny request DELETE a.example/, flow "),
        "{log}"
    );
}

#[test]
fn a_kept_sandbox_is_given_its_secrets_again() {
    let lab = Lab::with_python();
    let outside = Outside::new();
    let server = Server::start(Some(outside.config("a.example")));
    let name = format!("kept-secret-{}", std::process::id());
    let _kept = Kept {
        lab: &lab,
        name: name.clone(),
    };
    let msb = |args: &[&str], input: &str| finish(&mut lab.msb(args), input.as_bytes());
    let pem = outside.pem();
    let pem = pem.to_str().expect("UTF-8");
    msb(
        &[
            "create",
            "-q",
            "--name",
            &name,
            "--net",
            "allow-all",
            "--tls-ca",
            pem,
            "--secret",
            "TOKEN=stdin@a.example",
            PYTHON,
        ],
        &format!("{VALUE}\n"),
    )
    .success();
    let script = format!("{CLIENT}\nask('a.example', {})\n", server.port);
    let ask = || msb(&["exec", &name, "--", "python3", "-c", &script], "").success();
    let bundle = "print(open('/etc/ssl/certs/ca-certificates.crt').read())";
    let read = || msb(&["exec", &name, "--", "python3", "-c", bundle], "").success();
    assert!(ask().starts_with("a.example 200"));
    // The image has no bundle; from now on it has the guest's own, as a package would make.
    let make = "mkdir -p /etc/ssl/certs && cp $SSL_CERT_FILE /etc/ssl/certs/ca-certificates.crt; \
                echo $SSL_CERT_FILE";
    let made = msb(&["exec", &name, "--", "sh", "-c", make], "").success();
    assert_eq!(made, "/.msb/trust/bundle.pem\n");
    let before = read();
    // What could not be started again is not stopped.
    let refused = msb(&["restart", "-t", "1", &name], "");
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(ask().starts_with("a.example 200"));
    msb(&["stop", "-t", "1", &name], "").success();

    let refused = msb(&["start", &name], "");
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("--secret TOKEN=stdin"),
        "{refused:?}"
    );
    let short = msb(&["start", "--secret", "TOKEN=stdin", &name], "short");
    assert!(short.stderr.contains("shorter"), "{short:?}");
    let unknown = msb(&["start", "--secret", "TOKNE=stdin", &name], VALUE);
    assert!(unknown.stderr.contains("no such secret"), "{unknown:?}");
    let mut start = lab.msb(["start", "--secret", "TOKEN=stdin", &name]);
    start.env("ANOTHER", format!("Bearer {VALUE}"));
    finish(&mut start, VALUE.as_bytes()).success();
    let told = msb(&["inspect", &name], "").success();
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let environ = format!("/proc/{}/environ", told[0]["supervisor_pid"]);
    let environ = std::fs::read(environ).expect("environment");
    assert!(!String::from_utf8_lossy(&environ).contains(VALUE));
    let told = msb(
        &["exec", &name, "--", "sh", "-c", "echo $SSL_CERT_FILE"],
        "",
    )
    .success();
    assert_eq!(told, "/etc/ssl/certs/ca-certificates.crt\n");
    // Another authority in the place of the old one.
    let after = read();
    let count = |text: &str| text.matches("# msb sandbox: its own authority").count();
    assert_eq!((count(&before), count(&after)), (1, 1));
    assert_ne!(before, after);
    assert!(ask().starts_with("a.example 200"));
    assert_eq!(server.credentials(), [VALUE; 3]);
}

#[test]
fn secrets_that_cannot_be_used_are_refused_with_a_remedy() {
    let lab = Lab::shared();
    for (flag, part) in [
        ("TOKEN=env:MSB_TEST_UNSET@a.example", "set MSB_TEST_UNSET"),
        ("TOKEN=file:/nowhere/token@a.example", "/nowhere/token"),
        ("TOKEN=hunter2hunter2@a.example", "TOKEN=file:PATH"),
        ("TOKEN=env:PATH", "@api.example.com"),
        ("TOKEN=env:PATH@a_.b..c", "a_.b..c"),
        ("PATH=env:PATH@a.example", "another variable"),
    ] {
        let run = ["run", "-q", "-e", "PATH=/bin", "--secret", flag];
        let mut command = lab.msb(run.into_iter().chain([crate::lab::BUSYBOX, "--", "true"]));
        let refused = finish(command.env_remove("MSB_TEST_UNSET"), b"");
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
    }
}
