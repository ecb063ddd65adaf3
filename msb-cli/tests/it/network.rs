//! The network of a sandbox: what its policy lets through, what it does not, and what
//! can be seen of both. Everything stays on this host's loopback.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::lab::{BUSYBOX, Lab, PYTHON, Run, children, finish, signal, until, wait};

/// A server on loopback that answers every request with its greeting.
struct Server {
    port: u16,
    /// The first line of each request.
    requests: Receiver<String>,
}

impl Server {
    fn start(greeting: &'static str) -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into(), greeting)
    }

    fn on(address: IpAddr, greeting: &'static str) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("listen");
        let port = listener.local_addr().expect("address").port();
        let (sender, requests) = channel();
        // It lives as long as the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).expect("read");
                let head = String::from_utf8_lossy(&request[..length]).into_owned();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{greeting}",
                    greeting.len()
                );
                let _ = stream.write_all(answer.as_bytes());
                let _ = sender.send(head.lines().next().unwrap_or_default().to_owned());
            }
        });
        Self { port, requests }
    }

    fn allow(&self) -> String {
        format!("allow tcp {} host", self.port)
    }
}

/// `msb run -q FLAGS… IMAGE -- sh -c SCRIPT`
fn run(lab: &Lab, flags: &[&str], script: &str) -> Run {
    let mut command = lab.msb(["run", "-q"]);
    command
        .args(flags)
        .args([BUSYBOX, "--", "sh", "-c", script]);
    finish(&mut command, b"")
}

fn fetch(target: &str, server: &Server) -> String {
    format!("busybox wget -q -O - http://{target}:{}/path", server.port)
}

#[test]
fn connections_beyond_their_limit_are_refused() {
    let lab = Lab::shared();
    let server = Server::start("once");
    let allow = server.allow();
    let flags = [
        "--net",
        "none",
        "--net-rule",
        &allow,
        "--opens",
        "1",
        "--net-log",
        "-",
    ];
    let fetch = fetch("192.168.127.1", &server);
    // Many at once: not all of them can have a second of their own.
    let script = format!("for i in 1 2 3 4 5 6 7 8; do {fetch} & done; wait");
    let run = run(&lab, &flags, &script);
    let served = run.stdout.matches("once").count();
    assert!((1..8).contains(&served), "{run:?}");
    assert!(run.stderr.contains("rate-limit"), "{run:?}");
}

#[test]
fn the_host_is_reached_where_a_rule_allows_it() {
    let lab = Lab::shared();
    let targets = [
        ("host.msb.internal", IpAddr::from(Ipv4Addr::LOCALHOST)),
        ("192.168.127.1", Ipv4Addr::LOCALHOST.into()),
        ("[fd6d:7362::1]", Ipv6Addr::LOCALHOST.into()),
    ];
    for (target, address) in targets {
        let server = Server::on(address, "hello from the host");
        let allow = server.allow();
        let flags = ["--net", "none", "--net-rule", &allow, "--net-log", "-"];
        let fetched = run(&lab, &flags, &fetch(target, &server));
        assert!(fetched.stderr.contains("net: allow tcp "), "{fetched:?}");
        assert!(fetched.stderr.contains("net: closed flow "), "{fetched:?}");
        assert_eq!(fetched.success(), "hello from the host", "{target}");
        let request = server.requests.recv().expect("a request");
        assert!(request.starts_with("GET /path"), "{request}");
    }
}

#[test]
fn the_host_is_not_reached_otherwise_and_that_is_seen() {
    let lab = Lab::shared();
    let server = Server::start("not for you");
    let blocked = format!("deny tcp {} host", server.port);
    let cases: [&[&str]; 4] = [
        &[],
        &["--net", "none"],
        &["--net-rule", "allow tcp 1 host"],
        &["--net", "allow-all", "--net-rule", &blocked],
    ];
    for flags in cases {
        let mut flags = flags.to_vec();
        flags.extend(["--net-log", "-", "--json"]);
        let fetched = run(&lab, &flags, &fetch("host.msb.internal", &server));
        assert_eq!(fetched.code, Some(1), "{fetched:?}");
        assert!(fetched.stderr.contains("refused"), "{fetched:?}");
        let line = fetched.stderr.lines().find(|line| line.starts_with('{'));
        let event: serde_json::Value =
            serde_json::from_str(line.expect("an event")).expect("a line of JSON");
        assert_eq!(event["event"], "deny", "{event}");
        assert_eq!(event["port"], server.port, "{event}");
        assert_eq!(event["address"], "192.168.127.1", "{event}");
    }
    assert!(server.requests.try_recv().is_err(), "nothing came through");
}

/// A name server on loopback that knows one address for every name.
fn name_server() -> String {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let address = socket.local_addr().expect("address").to_string();
    // It lives as long as the test's process.
    thread::spawn(move || {
        let mut query = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut query).expect("receive");
            // The question ends with a root label, a type and a class (RFC 1035, 4.1.2).
            let labels = query[12..length].iter().position(|byte| *byte == 0);
            let end = 12 + labels.expect("a name") + 5;
            let is_a = query[end - 4..end - 2] == [0, 1];
            let mut answer = query[..end].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 8, 8, 1, 2];
                answer.extend_from_slice(&record);
            }
            socket.send_to(&answer, from).expect("send");
        }
    });
    address
}

#[test]
fn names_are_resolved_as_the_policy_allows() {
    let lab = Lab::shared();
    let server = name_server();
    let blocked = [
        "--dns",
        &server,
        "--block-domain",
        ".evil.example",
        "--net-log",
        "-",
    ];
    let found = run(&lab, &blocked, "busybox nslookup good.example");
    assert!(found.stdout.contains("8.8.1.2"), "{found:?}");
    assert!(
        found.stderr.contains("net: query A good.example: "),
        "{found:?}"
    );
    assert_eq!(found.code, Some(0), "{found:?}");
    let refused = run(&lab, &blocked, "busybox nslookup sub.evil.example");
    assert!(!refused.stdout.contains("8.8.1.2"), "{refused:?}");
    assert!(refused.stderr.contains("evil.example"), "{refused:?}");
    assert_ne!(refused.code, Some(0), "{refused:?}");
}

#[test]
fn a_policy_file_and_the_command_line_go_together() {
    let lab = Lab::shared();
    let server = Server::start("by the file");
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("policy");
    let log = dir.path().join("log");
    std::fs::write(&file, format!("preset none\n{}\n", server.allow())).expect("write");
    let [file, log] = [&file, &log].map(|path| path.to_str().expect("utf-8"));
    let flags = ["--policy", file, "--net-log", log];
    let fetched = run(&lab, &flags, &fetch("192.168.127.1", &server));
    assert_eq!(fetched.stderr, "");
    assert_eq!(fetched.success(), "by the file");
    let logged = std::fs::read_to_string(log).expect("read");
    assert!(logged.contains("net: allow tcp 192.168.127.1:"), "{logged}");
    // Rules of the command line come first.
    let flags = ["--policy", file, "--net-rule", "deny host"];
    assert_eq!(
        run(&lab, &flags, &fetch("192.168.127.1", &server)).code,
        Some(1)
    );
}

/// The frames of a capture, each with whether the guest sent it.
fn frames(mut file: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"));
    assert_eq!(word(file), 0x0a0d_0d0a, "it begins with a section");
    let mut frames = Vec::new();
    while !file.is_empty() {
        let (block, rest) = file.split_at(word(&file[4..]) as usize);
        assert_eq!(block[4..8], block[block.len() - 4..], "lengths agree");
        if word(block) == 6 {
            let length = word(&block[20..]) as usize;
            let direction = word(&block[28 + length.next_multiple_of(4) + 4..]);
            frames.push((block[28..28 + length].to_vec(), direction == 1));
        }
        file = rest;
    }
    frames
}

#[test]
fn a_capture_holds_what_went_over_the_link() {
    let lab = Lab::shared();
    let server = Server::start("seen on the way");
    let dir = tempfile::tempdir().expect("tempdir");
    let mut command = lab.msb(["run", "-q", "--pcap", "capture", "--net-rule"]);
    // A name is meant where msb was started, not where its supervisor works.
    command.current_dir(dir.path());
    command.args([&server.allow(), BUSYBOX, "--", "sh", "-c"]);
    command.arg(fetch("192.168.127.1", &server));
    assert_eq!(finish(&mut command, b"").success(), "seen on the way");
    let file = dir.path().join("capture");
    let mode = std::fs::metadata(&file)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let frames = frames(&std::fs::read(&file).expect("read"));
    let seen = |text: &str, by_guest| {
        let holds = |frame: &[u8]| {
            frame
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        let mut kept = frames.iter().filter(|(_, guests)| *guests == by_guest);
        kept.any(|(frame, _)| holds(frame))
    };
    assert!(seen("GET /path", true) && !seen("GET /path", false));
    assert!(seen("seen on the way", false) && !seen("seen on the way", true));
}

#[test]
fn a_capture_that_cannot_be_written_is_named() {
    let lab = Lab::shared();
    for file in ["/nonexistent/capture", "/dev/null", "/"] {
        let refused = run(&lab, &["--pcap", file], "echo ran");
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert_eq!(refused.stdout, "");
        let said = format!("cannot write {file}: ");
        assert!(refused.stderr.contains(&said), "{refused:?}");
    }
}

#[test]
fn mistakes_in_policies_are_shown_with_their_place() {
    let lab = Lab::shared();
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("policy");
    std::fs::write(&file, "preset none\nallow tcp 80 a..b\n").expect("write");
    let file = file.to_str().expect("utf-8");
    let npm = "allow http GET registry.npmjs.org/@types/**";
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--policy", file], &[file, "line 2, column 14", "a..b"]),
        (
            &["--policy", "/nonexistent/policy"],
            &["/nonexistent/policy"],
        ),
        (
            &["--net-rule", "alow tcp 25"],
            &["alow tcp 25", "column 1", "hint: did you mean `allow`?"],
        ),
        // What may be a credential is not repeated.
        (
            &["--net-rule", "allow me:hunter2@a.example"],
            &["line 1, column 7", "hint: rules are words"],
        ),
        (&["--net-rule", "allow out key=hunter2"], &["column 11"]),
        (
            &["--net-rule", "deny http GET any/? with key=hunter2"],
            &["column 15"],
        ),
        (&["--block-domain", "a..b"], &["a..b"]),
        // An '@' is no mistake.
        (&["--net-rule", npm, "--block-domain", "a..b"], &["a..b"]),
        (&["--net", "some"], &["some", "public-only"]),
        (&["--net", "none", "--policy", file], &["--net", "--policy"]),
    ];
    for (flags, parts) in cases {
        let refused = run(&lab, flags, "echo ran");
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert_eq!(refused.stdout, "");
        for part in parts {
            assert!(refused.stderr.contains(part), "{part:?} in {refused:?}");
        }
        assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
    }
}

/// Starts a guest that serves, and returns where its port is.
fn serve(lab: &Lab, ports: &str, script: &str) -> (Child, SocketAddr) {
    let mut command = lab.msb(["run", "-p", ports, BUSYBOX, "--", "sh", "-c", script]);
    published(&mut command)
}

/// Starts a guest, and returns where its port 80 is.
fn published(command: &mut Command) -> (Child, SocketAddr) {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("spawn");
    let mut words = BufReader::new(child.stderr.take().expect("stderr")).lines();
    let place = words.find_map(|line| {
        let line = line.expect("a line");
        let place = line.strip_prefix("port 80 of the guest is at ")?;
        Some(place.parse().expect("an address"))
    });
    (child, place.expect("it is said where the port is"))
}

/// Tells whether what listens there sends back what it is sent.
fn echoes(place: SocketAddr) -> bool {
    let Ok(mut client) = TcpStream::connect(place) else {
        return false;
    };
    let mut echo = [0; 4];
    client.write_all(b"ping").is_ok() && client.read_exact(&mut echo).is_ok() && echo == *b"ping"
}

#[test]
fn a_published_port_reaches_the_guest() {
    let lab = Lab::shared();
    let (mut child, place) = serve(&lab, "0:80", "while :; do busybox nc -l -p 80 -e cat; done");
    assert!(place.ip().is_loopback(), "{place}");
    until("the guest serves", || echoes(place));
    // Who takes the port again is told so, and by whom it is not.
    let again = format!("{}:80", place.port());
    let taken = finish(
        &mut lab.msb(["run", "-q", "-p", &again, BUSYBOX, "--", "true"]),
        b"",
    );
    assert_eq!(taken.code, Some(125), "{taken:?}");
    assert!(
        taken.stderr.contains(&place.port().to_string()),
        "{taken:?}"
    );
    child.kill().expect("kill");
    let _ = wait(child);
    until("the port is free again", || {
        TcpListener::bind(place).is_ok()
    });
}

#[test]
fn a_service_on_one_address_of_the_guest_is_reached_too() {
    for at in ["127.0.0.1:80", "[::1]:80", "[fd6d:7362::2]:80"] {
        reached_at(at);
    }
}

fn reached_at(at: &str) {
    let lab = Lab::shared();
    let script = format!(
        "mkdir /www; seq 1 100000 > /www/numbers; busybox httpd -p {at} -h /www; \
         echo up; sleep 1000"
    );
    let (mut child, place) = serve(&lab, "0:80", &script);
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("stdout"));
    output.read_line(&mut line).expect("the guest serves");
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    for _ in 0..3 {
        let mut client = TcpStream::connect(place).expect("connect");
        let request = b"GET /numbers HTTP/1.0\r\n\r\n";
        client.write_all(request).expect("write");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("read");
        let body = answer.split_once("\r\n\r\n").expect("a head and a body").1;
        assert!(body == numbers, "{at}: {} bytes", body.len());
    }
    child.kill().expect("kill");
    let _ = wait(child);
}

/// Sends datagrams back, to a service that listens at `$0`.
const DATAGRAM_ECHO: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
service = socket.socket(family, socket.SOCK_DGRAM)
service.bind((sys.argv[1], 80))
print('up', flush=True)
while True:
    data, client = service.recvfrom(65536)
    service.sendto(data, client)
";

#[test]
fn a_datagram_service_on_one_address_of_the_guest_is_reached_too() {
    let lab = Lab::with_python();
    for at in ["127.0.0.1", "192.168.127.2", "fd6d:7362::2"] {
        let mut command = lab.msb(["run", "-p", "0:80/udp", PYTHON, "--", "python3", "-c"]);
        command.args([DATAGRAM_ECHO, at]);
        let (mut child, place) = published(&mut command);
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("stdout"));
        output.read_line(&mut line).expect("the guest serves");
        assert_eq!(line, "up\n", "{at}");
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        client.connect(place).expect("connect");
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a socket");
        // The first one arrives, too, and after it large ones.
        for length in [1, 1400, 40_000] {
            let datagram = vec![length as u8; length];
            client.send(&datagram).expect("send");
            let mut answer = [0; 65_536];
            let got = client.recv(&mut answer).expect("an answer");
            assert!(answer[..got] == datagram, "{at}: {got} bytes");
        }
        child.kill().expect("kill");
        let _ = wait(child);
    }
}

#[test]
fn a_client_of_a_port_that_nobody_serves_is_reset() {
    let lab = Lab::shared();
    let (mut child, place) = serve(&lab, "0:80", "echo up; sleep 1000");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("stdout"));
    output.read_line(&mut line).expect("the guest runs");
    let mut client = TcpStream::connect(place).expect("connect");
    let error = client.read(&mut [0]).expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    child.kill().expect("kill");
    let _ = wait(child);
}

#[test]
fn ports_that_make_no_sense_are_named() {
    let lab = Lab::shared();
    for (ports, part) in [
        ("80", "80"),
        ("1:2/sctp", "sctp"),
        ("1-2:3", "1-2:3"),
        ("1:0", "1:0"),
    ] {
        let refused = finish(&mut lab.msb(["run", "-q", "-p", ports, BUSYBOX]), b"");
        assert_eq!(refused.code, Some(125), "{refused:?}");
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
}

#[test]
fn every_sandbox_has_a_card_of_its_own_with_the_same_settings() {
    let lab = Lab::shared();
    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /etc/resolv.conf; \
                  busybox ip -o addr show dev eth0; busybox ip route; busybox ip -6 route";
    let [one, other] = [(); 2].map(|()| run(&lab, &[], script).success());
    let (mac, settings) = one.split_once('\n').expect("lines");
    let (other_mac, other_settings) = other.split_once('\n').expect("lines");
    assert_ne!(mac, other_mac);
    assert_eq!(settings, other_settings);
    for part in [
        "65520",
        "nameserver 192.168.127.1",
        "192.168.127.2/24",
        "fd6d:7362::2/64",
        "default via 192.168.127.1 dev eth0",
        "default via fd6d:7362::1 dev eth0",
    ] {
        assert!(settings.contains(part), "{part:?} in {settings}");
    }
    // Addresses are in use, not being probed for.
    assert!(!settings.contains("tentative"), "{settings}");
}

#[test]
fn the_supervisor_and_its_sockets_end_with_the_sandbox() {
    let lab = Lab::shared();
    let server = Server::start("");
    let allow = server.allow();
    let script = "busybox nc host.msb.internal $0 </dev/null; echo up; sleep 1000";
    let mut command = lab.msb(["run", "-q", "--net-rule", &allow, BUSYBOX, "--", "sh", "-c"]);
    command.args([script, &server.port.to_string()]);
    let child = command.stdout(std::process::Stdio::null()).spawn();
    let child = child.expect("spawn");
    until("the supervisor runs", || !children(child.id()).is_empty());
    let supervisor = children(child.id())[0];
    server.requests.recv().expect("the guest connected");
    signal(child.id(), "KILL");
    let _ = wait(child);
    until("the supervisor has ended", || {
        !crate::lab::alive(supervisor)
    });
}
