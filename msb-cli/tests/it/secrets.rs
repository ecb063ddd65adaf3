//! Secrets that a guest uses and does not have: with the clients and servers that there are,
//! and a search of all that the guest can reach. Everything stays on this host's loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::lab::{Kept, Lab, PYTHON, finish, text, wait};
use crate::outside::{Outside, dump, forms, holds, inspect, listen, reflection};

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

/// A server that reflects the credential of a request in every way.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(config: Option<Arc<ServerConfig>>) -> Self {
        let seen = Arc::default();
        let shared = Arc::clone(&seen);
        let port = listen(move |stream| match &config {
            None => serve(stream, &shared),
            Some(config) => {
                let tls = ServerConnection::new(Arc::clone(config)).expect("TLS");
                serve(StreamOwned::new(tls, stream), &shared);
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

#[test]
fn the_server_gets_the_value_and_the_guest_never_does() {
    let lab = Lab::with_python();
    let outside = Outside::new();
    let [named, other] =
        ["a.example", "b.example"].map(|host| Server::start(Some(outside.config(&[host]))));
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
    // Buffers of connections that are over are given back.
    let environ = PathBuf::from(format!("/proc/{}/environ", pid("supervisor_pid")));
    assert!(holds(&environ, &["GLIBC_TUNABLES=glibc.malloc".into()]));
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

/// The guest trusts nobody but whoever vouches for the server: it sees that one's certificate.
#[test]
fn a_host_that_is_left_alone_gets_no_value() {
    const SCRIPT: &str = r#"
import http.client, os, ssl, sys
with open("/etc/hosts", "a") as hosts:
    hosts.write("192.168.127.1 a.example\n")
context = ssl.create_default_context(cadata=sys.argv[2])
client = http.client.HTTPSConnection("a.example", int(sys.argv[1]), context=context)
client.request("GET", "/", headers={"Authorization": "Bearer " + os.environ["TOKEN"]})
print(client.getresponse().status, os.environ["TOKEN"])
"#;
    let lab = Lab::with_python();
    let outside = Outside::new();
    let server = Server::start(Some(outside.config(&["a.example"])));
    let pem = std::fs::read_to_string(outside.pem()).expect("the authority");
    let secret = format!("TOKEN=env:{VARIABLE}@a.example");
    let mut command = lab.msb(["run", "-q", "-m", "256M", "--net", "allow-all", "--tls-ca"]);
    command.arg(outside.pem()).args(["--secret", &secret]);
    command.args(["--tls-passthrough", "a.example", "--net-log", "-", PYTHON]);
    command.args([
        "--",
        "python3",
        "-c",
        SCRIPT,
        &server.port.to_string(),
        &pem,
    ]);
    let run = finish(command.env(VARIABLE, VALUE), b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    let token = run.stdout.trim_end().strip_prefix("200 ").expect("200");
    assert_eq!(server.credentials(), [token]);
    assert!(token.starts_with("msb_ph_"), "{token}");
    let told = "net: pass a.example, flow ";
    assert!(run.stderr.contains(told), "{run:?}");
}

/// A resolver in the guest, which nobody else sees, says that every host is where the
/// attacker listens.
const RESOLVER: &str = r#"
import http.client, os, socket, ssl, sys, threading
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
def answer():
    while True:
        query, client = server.recvfrom(512)
        end = query.index(0, 12) + 5
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\xa8\x7f\1" if query[end - 4:end - 2] == b"\0\1" else b""
        count = b"\0\1" if record else b"\0\0"
        server.sendto(query[:2] + b"\x81\x80\0\1" + count + b"\0\0\0\0" + query[12:end] + record, client)
threading.Thread(target=answer, daemon=True).start()
open("/etc/resolv.conf", "w").write("nameserver 127.0.0.1\n")
print(socket.gethostbyname("a.example"), flush=True)
def ask(port, tls=True):
    if tls:
        anybody = ssl._create_unverified_context()
        client = http.client.HTTPSConnection("a.example", int(port), context=anybody)
    else:
        client = http.client.HTTPConnection("a.example", int(port))
    try:
        client.request("GET", "/", headers={"Authorization": "Bearer " + os.environ["TOKEN"]})
        print(client.getresponse().status, flush=True)
    except ssl.SSLError as error:
        print(error.reason, flush=True)
"#;

/// What the guest's resolver says counts for nothing: neither over TLS, whose server is
/// verified, nor without, where the value goes to addresses that the gateway's resolver gave.
#[test]
fn a_resolver_of_the_guests_own_leads_no_value_away() {
    let lab = Lab::with_python();
    let (outside, nobody) = (Outside::new(), Outside::named("nobody"));
    let stranger = Server::start(Some(nobody.config(&["a.example"])));
    let other = Server::start(Some(outside.config(&["b.example"])));
    let (right, plain) = (
        Server::start(Some(outside.config(&["a.example"]))),
        Server::start(None),
    );
    let script = format!(
        "{RESOLVER}\nask({})\nask({})\nask({})\nask({}, tls=False)\nprint(os.environ['TOKEN'])\n",
        stranger.port, other.port, right.port, plain.port
    );
    let mut command = lab.msb(["run", "-q", "-m", "256M", "--net", "allow-all", "--tls-ca"]);
    let secret = format!("TOKEN=env:{VARIABLE}@a.example,http=allow");
    command.arg(outside.pem()).args(["--secret", &secret]);
    command.args([PYTHON, "--", "python3", "-c", &script]);
    let run = finish(command.env(VARIABLE, VALUE), b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    let lines: Vec<_> = run.stdout.lines().collect();
    let expected = [
        "192.168.127.1",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_UNRECOGNIZED_NAME",
        "200",
        "200",
    ];
    assert_eq!(lines[..5], expected, "{run:?}");
    assert_eq!(stranger.credentials(), [""; 0]);
    assert_eq!(other.credentials(), [""; 0]);
    // Whoever has the host's certificate is the host, wherever it is.
    assert_eq!(right.credentials(), [VALUE]);
    assert_eq!(plain.credentials(), [lines[5]]);
}

#[test]
fn a_kept_sandbox_is_given_its_secrets_again() {
    let lab = Lab::with_python();
    let outside = Outside::new();
    let server = Server::start(Some(outside.config(&["a.example"])));
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
    let restart = ["restart", "-t", "1", "--secret", "TOKEN=stdin", &name];
    msb(&restart, VALUE).success();
    assert!(ask().starts_with("a.example 200"));
    // Who gives a value is not told that it was taken when it was not.
    let running = msb(&["start", "--secret", "TOKEN=stdin", &name], VALUE);
    assert_eq!(running.code, Some(125), "{running:?}");
    assert!(running.stderr.contains("msb restart"), "{running:?}");
    msb(&["start", &name], "").success();
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
    assert_eq!(server.credentials(), [VALUE; 4]);
}

/// What was given to the first one is given again, and its placeholder is worth nothing in
/// those that go on from it.
#[test]
fn forks_have_placeholders_of_their_own() {
    let lab = Lab::with_python();
    let outside = Outside::new();
    let server = Server::start(Some(outside.config(&["a.example"])));
    let name = format!("forked-secret-{}", std::process::id());
    let kept = |name: String| Kept { lab: &lab, name };
    let first = kept(name.clone());
    let forks = [1, 2].map(|number| kept(format!("{name}-{number}")));
    let later = kept(format!("{name}-later"));
    let msb = |args: &[&str], input: &str| finish(&mut lab.msb(args), input.as_bytes());
    let pem = outside.pem();
    let pem = pem.to_str().expect("UTF-8");
    let secret = ["--secret", "TOKEN=stdin@a.example"];
    let create = [
        "run",
        "-q",
        "-d",
        "--rm",
        "--name",
        &name,
        "--net",
        "allow-all",
        "--tls-ca",
        pem,
    ];
    let rest = [PYTHON, "--", "sleep", "1000"];
    msb(&[&create[..], &secret, &rest].concat(), VALUE).success();
    let begin = format!("{CLIENT}\nopen('/old', 'w').write(os.environ['TOKEN'])\n");
    msb(&["exec", &name, "--", "python3", "-c", &begin], "").success();

    let refused = msb(&["fork", &name, "2"], "");
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("--secret TOKEN=stdin"),
        "{refused:?}"
    );
    let forked = msb(&["fork", "--secret", "TOKEN=stdin", &name, "2"], VALUE).success();
    assert_eq!(forked, format!("{}\n{}\n", forks[0].name, forks[1].name));
    let snapshot = format!("{name}-snapshot");
    msb(&["snapshot", "create", &name, &snapshot], "").success();
    let go_on = [
        "run",
        "-q",
        "-d",
        "--from-snapshot",
        &snapshot,
        "--name",
        &later.name,
    ];
    let went_on = msb(&[&go_on[..], &["--secret", "TOKEN=stdin"]].concat(), VALUE);
    msb(&["snapshot", "rm", &snapshot], "").success();
    went_on.success();

    let script = format!(
        "{CLIENT}\nprint(os.environ['TOKEN'])\nask('a.example', {0})\n\
         os.environ['TOKEN'] = open('/old').read()\nask('a.example', {0})\n",
        server.port
    );
    let mut placeholders = Vec::new();
    for sandbox in [&first, &forks[0], &forks[1], &later] {
        let said = msb(&["exec", &sandbox.name, "--", "python3", "-c", &script], "").success();
        assert!(
            !forms(VALUE).iter().any(|form| said.contains(form)),
            "{said}"
        );
        let placeholder = said.lines().next().expect("a line").to_owned();
        assert!(!placeholders.contains(&placeholder), "{placeholders:?}");
        placeholders.push(placeholder);
    }
    let old = &*placeholders[0];
    let expected = [VALUE, VALUE, VALUE, old, VALUE, old, VALUE, old];
    assert_eq!(server.credentials(), expected);
}

#[test]
fn secrets_that_cannot_be_used_are_refused_with_a_remedy() {
    let lab = Lab::shared();
    for (flag, part) in [
        (
            "TOKEN=env:MSB_TEST_UNSET@a.example",
            "TOKEN=env:… is not set",
        ),
        ("TOKEN=file:/nowhere/token@a.example", "TOKEN=file:… cannot"),
        ("TOKEN=hunter2hunter2@a.example", "NAME=file:PATH"),
        ("TOKEN=env:PATH", "@api.example.com"),
        ("TOKEN=env:PATH@a_.b..c", "names such as api.example.com"),
        ("PATH=env:PATH@a.example", "another variable"),
        ("TOKEN=file:/dev/zero@a.example", "not a file"),
        (
            "TOKEN=env:PATH@a.example,header=host",
            "header=authorization",
        ),
        ("TOKEN=env:PATH@a.example,path=v1", "path=/v1"),
        (
            "TOKEN=env:PATH@a.example,hunter2 hunter2",
            "TOKEN=… has a host",
        ),
        ("sk-hunter2=env:PATH@a.example", "no name of a variable"),
        (
            "TOKEN=env:PATH@a.example,hunter2=hunter2",
            "elsewhere=block",
        ),
    ] {
        let run = ["run", "-q", "-e", "PATH=/bin", "--secret", flag];
        let mut command = lab.msb(run.into_iter().chain([crate::lab::BUSYBOX, "--", "true"]));
        let refused = finish(command.env_remove("MSB_TEST_UNSET"), b"");
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
    }
}

/// What is mistyped in a file may be a value, too.
#[test]
fn a_file_with_a_value_in_the_wrong_place_is_refused_without_it() {
    let lab = Lab::shared();
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("sandbox.yaml");
    let hosts = "hosts: [a.example]";
    for (secret, part) in [
        ("source: hunter2hunter2".to_owned(), "there is no value"),
        (
            format!("source: {{env: hunter2}}\n  {hosts}"),
            "the variable",
        ),
        (format!("source: {{file: hunter2}}\n  {hosts}"), "the file"),
        (
            "source: given\n  hosts: [hunter2+]".into(),
            "name of a host",
        ),
        (
            format!("source: given\n  {hosts}\n  value: hunter2"),
            "no key",
        ),
        (format!("source: given\n  {hosts}\n  hunter2: 1"), "no key"),
        (
            format!("source: given\n  {hosts}\n  headers: [hunter2/]"),
            "header fields",
        ),
        (
            format!("source: given\n  {hosts}\n  methods: [hunter2/]"),
            "methods",
        ),
        (format!("source: given\n  {hosts}\n  path: hunter2"), "path"),
        (
            format!("source: given\n  {hosts}\n  prefix: hunter2/"),
            "prefix",
        ),
        (
            format!("source: given\n  {hosts}\n- name: hunter2/\n  source: given\n  {hosts}"),
            "a name has",
        ),
    ] {
        let text = format!(
            "image: {}\nsecrets:\n- name: TOKEN\n  {secret}\n",
            crate::lab::BUSYBOX
        );
        std::fs::write(&file, &text).expect("write");
        let mut command = lab.msb(["run", "-q", "-f"]);
        let refused = finish(command.arg(&file).args(["--", "true"]), b"");
        assert_eq!(refused.code, Some(125), "{text}: {refused:?}");
        assert!(refused.stderr.contains(part), "{text}: {refused:?}");
        assert!(!refused.stderr.contains("hunter2"), "{text}: {refused:?}");
    }
}
