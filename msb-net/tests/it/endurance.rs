//! Many requests and large bodies through a gateway that reads them, in a jail: nothing is
//! lost, and nothing grows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::intercepted::servers::Outside;
use crate::jail::held;
use crate::world::{World, done};

const HOST: &str = "a.example";

/// At a time, of which a gateway holds two descriptors each while they are open.
const CONNECTIONS: usize = 100;

/// nginx in the world, as a.example.
struct Nginx(Child);

impl Nginx {
    fn start(world: &World) -> Self {
        let folder = world.folder.path();
        Outside::new("known").write(HOST, folder);
        std::fs::create_dir(folder.join("up")).expect("a folder");
        let shown = folder.display();
        let config = format!(
            "daemon off; master_process off; worker_processes 1; user root;
            pid {shown}/nginx.pid; error_log {shown}/nginx.log;
            events {{ worker_connections 1000; }}
            http {{ access_log off; keepalive_requests 1000000; client_max_body_size 0;
            client_body_temp_path {shown}/b; proxy_temp_path {shown}/p;
            fastcgi_temp_path {shown}/f; uwsgi_temp_path {shown}/u; scgi_temp_path {shown}/s;
            server {{ listen 1.1.1.1:443 ssl http2; root {shown};
            ssl_certificate {shown}/leaf.pem; ssl_certificate_key {shown}/leaf.key;
            location /up {{ dav_methods PUT; }}
            location = / {{ return 200 \"hello\\n\"; }} }} }}"
        );
        let path = folder.join("nginx.conf");
        std::fs::write(&path, config).expect("its configuration");
        let nginx = world.world.command("nginx").arg("-c").arg(path).spawn();
        Self(nginx.expect("nginx runs"))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A jail whose requests are read, for a script that begins when it is told to. It waits
/// for the server.
fn jail(world: &World, script: &str) -> Command {
    let waiting = format!(
        "until curl -sk --connect-to ::1.1.1.1: https://{HOST}/; do sleep 0.1; done
        {script}"
    );
    let mut command = world.host.command(world.example("jail"));
    command.args(["--resolver", "1.1.1.1", "--extra-roots"]);
    command.arg(world.folder.path().join("ca.pem"));
    command.args(["--rule", "deny http DELETE any", "--"]);
    command.args(["bash", "-c", &waiting]);
    command
}

/// What a gateway holds once the connections of a round are gone: their client ends a moment
/// before they do. If they stay, what it holds after some seconds.
fn at_rest(pid: u32) -> (usize, u64) {
    let mut now = held(pid);
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(100));
        let before = std::mem::replace(&mut now, held(pid));
        if now.0 == before.0 && now.0 < CONNECTIONS / 2 {
            break;
        }
    }
    now
}

#[test]
fn ten_thousand_requests_over_a_hundred_connections_leave_nothing_behind() {
    const ROUNDS: usize = 5;
    let script = format!(
        "ask() {{ h2load -n 10000 -c {CONNECTIONS} --connect-to=1.1.1.1:443 $1 https://{HOST}/ | grep ^requests:; }}
        while read -r; do ask --h1; ask --max-concurrent-streams=4; done"
    );
    let world = World::new();
    let _nginx = Nginx::start(&world);
    let mut child = jail(&world, &script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("a pipe");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut line = || lines.next().expect("it goes on").expect("text");
    assert_eq!(line(), "hello");
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        input.write_all(b"\n").expect("it is read");
        for _ in 0..2 {
            assert_eq!(
                line(),
                "requests: 10000 total, 10000 started, 10000 done, 10000 succeeded, 0 failed, 0 errored, 0 timeout"
            );
        }
        rounds.push(at_rest(child.id()));
    }
    drop(input);
    assert!(child.wait().expect("it ends").success());
    // What the first ones take is taken once.
    let (settled, last) = (rounds[1], rounds[ROUNDS - 1]);
    assert!(last.0 <= settled.0 + 2, "descriptors: {rounds:?}");
    assert!(last.1 <= settled.1 + 8 * 1024, "memory in KiB: {rounds:?}");
}

#[test]
fn a_gibibyte_passes_both_ways_unchanged() {
    let world = World::new();
    let folder = world.folder.path();
    let _nginx = Nginx::start(&world);
    for (version, mebibytes) in [("--http1.1", 1024), ("--http2", 256)] {
        let make = format!(
            "head -c {mebibytes}M /dev/zero | openssl enc -aes-128-ctr -K 07 -iv 07 2>/dev/null \\
            | tee {}/large | sha256sum",
            folder.display()
        );
        let sum = done(Command::new("sh").args(["-c", &make])).stdout;
        let script = format!(
            "ask() {{ curl -sSfk {version} --connect-to ::1.1.1.1: https://{HOST}/\"$@\"; }}
            ask large | sha256sum
            ask up/large -T {}/large",
            folder.display()
        );
        let child = jail(&world, &script)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{version}: {output:?}");
        let expected = [b"hello\n", &sum[..]].concat();
        assert_eq!(output.stdout, expected, "{version}: what came down");
        let came = std::fs::File::open(folder.join("up/large")).expect("it came up");
        let came = done(Command::new("sha256sum").stdin(came)).stdout;
        assert_eq!(came, sum, "{version}: what came up");
        std::fs::remove_file(folder.join("up/large")).expect("it can be removed");
    }
}
