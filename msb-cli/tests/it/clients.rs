//! The clients that people use, unmodified, in a guest that has no secret: they talk to
//! servers that play the hosts they are made for, and these get the values. The image has
//! what `cargo xtask images` puts into it; everything else stays on this host's loopback.

mod proxy;
mod server;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use self::proxy::Proxy;
use self::server::{Seen, Server, TOKENS};
use crate::lab::{Lab, Run, finish, text, until, wait};
use crate::outside::{Outside, dump, forms, holds, inspect};

const IMAGE: &str = "localhost/clients:test";

/// Each secret's name, the host's variable that holds its value, that, and where it may go.
const SECRETS: [(&str, &str, &str, &str); 3] = [
    (
        "OPENAI_API_KEY",
        "MSB_TEST_OPENAI",
        "sk-0penai/value+one==",
        "api.openai.com,prefix=sk-",
    ),
    (
        "ANTHROPIC_API_KEY",
        "MSB_TEST_ANTHROPIC",
        "sk-ant-an0ther/v4lue+two",
        "api.anthropic.com,prefix=sk-ant-",
    ),
    (
        "GIT_TOKEN",
        "MSB_TEST_GIT",
        "ghp_th3-third-v4lue",
        "git.example",
    ),
];

/// The names that servers have in the guest, of which the last is nobody's secret's.
const HOSTS: [&str; 4] = [
    "api.openai.com",
    "api.anthropic.com",
    "git.example",
    "other.example",
];

/// A repository with one file.
fn repository(at: &Path) {
    std::fs::create_dir(at).expect("create");
    std::fs::write(at.join("file"), "cloned\n").expect("write");
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(at)
            .args(["-c", "user.name=t", "-c", "user.email=t@t.example"]);
        let output = git.args(args).output().expect("git");
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    git(&["init", "-q"]);
    git(&["add", "file"]);
    git(&["commit", "-q", "-m", "one"]);
}

/// Checks what one client said.
fn says(said: &str, line: &str) {
    assert!(said.lines().any(|own| own == line), "{line:?} in:\n{said}");
}

#[test]
fn unmodified_clients_use_secrets_that_the_guest_does_not_have() {
    let lab = Lab::shared();
    lab.import("clients", IMAGE);
    let outside = Outside::new();
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| dir.path().join(name);
    repository(&at("repo"));
    let server = Server::start(&outside.config(&HOSTS[..3]), &at("repo").join(".git"));
    let other = Server::start(&outside.config(&HOSTS[3..]), &at("repo"));
    server.redirect_to(format!("https://other.example:{}/stolen", other.port));

    let name = format!("clients-{}", std::process::id());
    let mut command = lab.msb([
        "run", "-q", "--rm", "--name", &name, "-m", "1G", "--cpus", "2", "--disk", "1G",
    ]);
    command
        .args(["--net", "allow-all", "--net-log"])
        .arg(at("log"));
    command
        .arg("--pcap")
        .arg(at("pcap"))
        .arg("--tls-ca")
        .arg(outside.pem());
    for (secret, variable, value, hosts) in SECRETS {
        command
            .arg("--secret")
            .arg(format!("{secret}=env:{variable}@{hosts}"));
        command.env(variable, value);
    }
    let scripts = [
        ("shell", "sh", include_str!("clients/shell.sh")),
        ("python", "python3", include_str!("clients/python.py")),
        ("node", "node", include_str!("clients/node.mjs")),
    ];
    let mut names = String::from("192.168.127.1");
    for host in HOSTS {
        names.push_str(&format!(" {host}"));
    }
    let begin = format!("echo {names} >> /etc/hosts; echo ready; cat");
    let mut child = command
        .args([IMAGE, "--", "sh", "-c", &begin])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let input = child.stdin.take();
    until("it runs", || {
        let ready = [
            "exec",
            &name,
            "--",
            "grep",
            "-q",
            "other.example",
            "/etc/hosts",
        ];
        finish(&mut lab.msb(ready), b"").code == Some(0)
    });
    let proxy = Proxy::start();
    let ports = [server.port, proxy.port].map(|port| port.to_string());
    let mut said = String::new();
    for (script, program, content) in scripts {
        let file = format!("/tmp/{script}.mjs");
        let put = ["exec", "-i", &name, "--", "sh", "-c", "cat > $0", &file];
        finish(&mut lab.msb(put), content.as_bytes()).success();
        let run = ["exec", &name, "--", program, &file, &ports[0], &ports[1]];
        let Run {
            code,
            stdout,
            stderr,
        } = finish(&mut lab.msb(run), b"");
        assert_eq!(code, Some(0), "{script}: {stdout}{stderr}");
        said.push_str(&stdout);
        said.push_str(&stderr);
    }
    // All that the guest can tell of itself.
    let look = "ps=$(cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'); echo \"$ps\"";
    let look = ["exec", &name, "--", "sh", "-c", look];
    let processes = finish(&mut lab.msb(look), b"").success();
    let told = inspect(&lab, &name);
    let vmm = told[0]["vmm_pid"].as_u64().expect("a process id");
    dump(u32::try_from(vmm).expect("a process id"), &at("memory"));
    // All that is written of it: the disk, too, with the guest's files, and its memory.
    let mark = "echo this client was here > /mark; sync";
    finish(&mut lab.msb(["exec", &name, "--", "sh", "-c", mark]), b"").success();
    finish(&mut lab.msb(["snapshot", "create", &name, &name]), b"").success();
    let home = lab.home();
    let kept = ["sandboxes", "snapshots"].map(|kind| home.join(kind).join(&name));
    let all: Vec<_> = SECRETS
        .iter()
        .flat_map(|(_, _, value, _)| forms(value))
        .collect();
    for folder in &kept {
        assert!(!holds(folder, &all), "a value is in {}", folder.display());
    }
    assert!(holds(&kept[1], &["this client was here".into()]));
    assert!(holds(&kept[1], &["OPENAI_API_KEY=sk-".into()]));
    finish(&mut lab.msb(["snapshot", "rm", &name]), b"").success();
    drop(input);
    let ended = wait(child);
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));

    for line in [
        "curl 1 1.1",
        "curl 1 2",
        "curl-basic 1",
        "curl-gzip 1",
        "curl-gzip-raw 1",
        "curl-error 1 500",
        "curl-cookie 1",
        "curl-redirect 1",
        "curl-proxy 1",
        "git cloned",
        "requests-proxy 200 True",
        "requests 200 True True",
        "requests-basic 200 True",
        "httpx HTTP/1.1 200 True",
        "httpx HTTP/2 200 True",
        "openai True",
        "openai-stream 4 one two three four",
        "anthropic True",
        "anthropic-stream 4 one two three four",
        "grpc {'*'} ['the last'] True",
        &format!("websocket {} hello", SECRETS[0].2.len()),
        "fetch 200 true true",
        "node-openai true",
        "node-openai-stream 4 one two three four",
    ] {
        says(&said, line);
    }
    assert_eq!(TOKENS.len(), 4);
    servers_saw_values(&server.seen(), &other.seen(), &processes);
    let log = std::fs::read_to_string(at("log")).expect("the log");
    for part in [
        "net: secret OPENAI_API_KEY: POST api.openai.com/v1/chat/completions, flow ",
        "net: secret ANTHROPIC_API_KEY: POST api.anthropic.com/v1/messages, flow ",
        "net: secret GIT_TOKEN: POST git.example/repo.git/git-upload-pack, flow ",
        "net: secret OPENAI_API_KEY: POST api.openai.com/echo.Echo/Say, flow ",
    ] {
        assert!(log.contains(part), "{part} in:\n{log}");
    }
    std::fs::write(at("said"), format!("{said}{processes}{told}")).expect("write");
    std::fs::write(at("proxy"), proxy.seen()).expect("write");
    for file in ["memory", "pcap", "proxy", "said", "log"] {
        assert!(!holds(&at(file), &all), "a value is in {file}");
    }
    // The search finds what is there.
    assert!(holds(&at("memory"), &["OPENAI_API_KEY=sk-".into()]));
    let asked = format!("CONNECT api.openai.com:{} HTTP/1.1\r\n", ports[0]);
    let asked_twice = String::from_utf8_lossy(&proxy.seen())
        .matches(&asked)
        .count()
        == 2;
    assert!(asked_twice);
}

/// Every request that had a placeholder had a value where it came to, and only there.
fn servers_saw_values(seen: &[Seen], other: &[Seen], processes: &str) {
    let values = SECRETS.map(|(_, _, value, _)| value);
    for request in seen {
        let own = &*request.credential;
        let without = ["/acknowledge", "/repo.git/info/refs"];
        let none = own.is_empty() && without.iter().any(|path| request.path.starts_with(path));
        assert!(none || values.contains(&own), "{request:?}");
    }
    for (version, path, value) in [
        ("h1", "/echo", values[0]),
        ("h2", "/echo", values[0]),
        ("h2", "/echo.Echo/Say", values[0]),
        ("h1", "/ws", values[0]),
        ("h1", "/v1/messages", values[1]),
    ] {
        let same = |own: &Seen| own.version == version && own.path == path;
        let found = seen.iter().any(|own| same(own) && own.credential == value);
        assert!(found, "{version} {path} in {seen:?}");
    }
    let is_git = |own: &&Seen| own.path.starts_with("/repo.git/git-upload-pack");
    assert!(
        seen.iter()
            .filter(is_git)
            .all(|own| own.credential == values[2])
    );
    assert!(seen.iter().any(|own| is_git(&own)));
    // Who was redirected to got what the guest has.
    let stolen: Vec<_> = other.iter().map(|own| &*own.credential).collect();
    assert_eq!(stolen.len(), 1, "{other:?}");
    let line = format!("OPENAI_API_KEY={}", stolen[0]);
    assert!(processes.lines().any(|own| own == line), "{stolen:?}");
    assert!(other[0].path.contains(stolen[0]), "{other:?}");
}

/// In each case but the first the client, or who answers it, is not as it should be.
#[test]
fn values_go_to_nobody_else() {
    const VALUE: &str = "s3cr3t-v4lue-of-one-host";
    let lab = Lab::shared();
    lab.import("clients", IMAGE);
    let (outside, nobody) = (Outside::new(), Outside::named("nobody"));
    let nowhere = Path::new("/nowhere");
    let named = Server::start(&outside.config(&["a.example"]), nowhere);
    let other = Server::start(&outside.config(&["b.example"]), nowhere);
    let stranger = Server::start(&nobody.config(&["a.example"]), nowhere);
    let ports = [&named, &other, &stranger].map(|server| server.port.to_string());
    let pem = std::fs::read_to_string(outside.pem()).expect("the authority");
    let mut command = lab.msb([
        "run",
        "-q",
        "--net",
        "allow-all",
        "--net-log",
        "-",
        "--tls-ca",
    ]);
    command.arg(outside.pem());
    command.args(["--secret", "TOKEN=env:MSB_TEST_SECRET@a.example"]);
    command.env("MSB_TEST_SECRET", VALUE);
    command.args([
        IMAGE,
        "--",
        "python3",
        "-c",
        include_str!("clients/misuse.py"),
    ]);
    let run = finish(command.args(&ports).arg(&pem), b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    let lines: Vec<_> = run.stdout.lines().collect();
    let expected = [
        "right 200",
        "another Host 421",
        // Its requests are not read: it has what the guest has.
        "another name 200",
        "another server TLSV1_UNRECOGNIZED_NAME",
        "a stranger TLSV1_ALERT_UNKNOWN_CA",
        "pinned not verified",
        "coalesced ('200', '421')",
    ];
    assert_eq!(lines[..expected.len()], expected, "{run:?}");
    let token = lines[expected.len()]
        .strip_prefix("token ")
        .expect("a token");
    let credentials = |server: &Server| -> Vec<String> {
        server
            .seen()
            .into_iter()
            .map(|seen| seen.credential)
            .collect()
    };
    assert_eq!(credentials(&named), [VALUE, token, VALUE]);
    for server in [&other, &stranger] {
        assert_eq!(credentials(server), [""; 0]);
    }
    for part in [
        "net: refuse request GET a.example/echo, flow ",
        "net: a.example cannot be trusted: ",
        "net: the guest's program trusts others for a.example: ",
    ] {
        assert!(run.stderr.contains(part), "{part} in {}", run.stderr);
    }
    assert!(!format!("{run:?}").contains(VALUE));
}

#[test]
fn values_are_read_anew_with_requests_under_way() {
    const VALUES: [&str; 2] = ["the-first-value", "the-second-value"];
    const CONNECTIONS: usize = 4;
    let lab = Lab::shared();
    lab.import("clients", IMAGE);
    let outside = Outside::new();
    for source in ["file", "cmd"] {
        let server = Server::start(&outside.config(&["a.example"]), Path::new("/nowhere"));
        server.accept_only(VALUES[0]);
        let token = tempfile::NamedTempFile::new().expect("tempfile");
        let path = token.path().to_str().expect("UTF-8");
        std::fs::write(path, VALUES[0]).expect("write");
        let source = match source {
            "file" => format!("file:{path}"),
            _ => format!("cmd:cat {path}"),
        };
        let mut command = lab.msb(["run", "-q", "-i", "--net", "allow-all", "--tls-ca"]);
        command
            .arg(outside.pem())
            .arg("--secret")
            .arg(format!("TOKEN={source}@a.example"));
        let names = "echo 192.168.127.1 a.example >> /etc/hosts; exec python3 -c \"$@\"";
        command.args([IMAGE, "--", "sh", "-c", names, "sh"]);
        command.arg(include_str!("clients/rotation.py"));
        let arguments = [server.port.to_string(), CONNECTIONS.to_string()];
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn");
        let mut input = child.stdin.take().expect("stdin");
        let mut output = BufReader::new(child.stdout.take().expect("stdout"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        server.accept_only(VALUES[1]);
        std::fs::write(path, VALUES[1]).expect("write");
        input.write_all(b"go\n").expect("write");
        let said: Vec<_> = output.lines().map(|line| line.expect("a line")).collect();
        let ended = wait(child);
        assert_eq!(
            ended.status.code(),
            Some(0),
            "{line}{}",
            text(&ended.stderr)
        );
        // One refusal at most for each connection, and then the new value.
        assert_eq!(said, ["200 401 200"; CONNECTIONS], "{source}");
        let seen: Vec<_> = server
            .seen()
            .into_iter()
            .map(|seen| seen.credential)
            .collect();
        let count = |value| seen.iter().filter(|own| *own == value).count();
        assert_eq!(
            VALUES.map(count),
            [2 * CONNECTIONS, CONNECTIONS],
            "{seen:?}"
        );
    }
}
