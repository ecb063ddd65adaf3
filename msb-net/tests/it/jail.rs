//! The jail, with real programs in it.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::{World, done};

/// A jail with these arguments on the host.
fn jail(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.host.command(world.example("jail"));
    command.args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Status, standard output, standard error.
fn told(output: &Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Answers one request with a small page.
fn page(stream: &mut TcpStream) {
    let mut request = [0; 4096];
    if stream.read(&mut request).is_ok() {
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
    }
}

#[test]
fn a_jailed_program_reaches_what_the_policy_names_and_nothing_else() {
    const ATTEMPTS: &str = "
        for url in 1.1.1.1 10.9.0.1 169.254.169.254 '[2606::1]' 11.0.0.2 127.0.0.1; do
            echo \"$url: $(curl -g -s -m 20 http://$url/ || echo no)\"
        done";
    let world = World::new();
    for at in [
        "1.1.1.1:80",
        "10.9.0.1:80",
        "169.254.169.254:80",
        "[2606::1]:80",
    ] {
        world.serve(at, page);
    }
    let events = world.folder.path().join("events");
    let output = done(
        jail(&world, &["--rule", "deny tcp 80 2606::1", "--events"])
            .arg(&events)
            .args(["sh", "-c", ATTEMPTS]),
    );
    assert_eq!(
        text(&output.stdout),
        "1.1.1.1: hello\n10.9.0.1: no\n169.254.169.254: no\n[2606::1]: no\n11.0.0.2: no\n127.0.0.1: no\n"
    );
    let events = std::fs::read_to_string(events).expect("events were written");
    for (event, address) in [
        ("allow", "1.1.1.1"),
        ("deny", "10.9.0.1"),
        ("deny", "169.254.169.254"),
        ("deny", "2606::1"),
        ("deny", "11.0.0.2"),
    ] {
        let told = |line: &str| {
            line.contains(&format!("\"event\":\"{event}\""))
                && line.contains(&format!("\"address\":\"{address}\""))
        };
        assert!(events.lines().any(told), "{event} {address} in\n{events}");
    }
}

#[test]
fn a_jail_needs_no_privileges() {
    let world = World::new();
    world.serve("1.1.1.1:80", page);
    // The device may be root's alone: here is one for everybody, seen only here.
    let node = world.folder.path().join("tun");
    done(
        world
            .host
            .command("mknod")
            .arg("-m666")
            .arg(&node)
            .args(["c", "10", "200"]),
    );
    done(
        world
            .host
            .command("mount")
            .arg("--bind")
            .arg(&node)
            .arg("/dev/net/tun"),
    );
    let mut command = world.host.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(world.example("jail"));
    command.args([
        "sh",
        "-c",
        "id -u; id -g; curl -s -m 20 http://1.1.1.1/; grep -v '^#' /etc/resolv.conf",
    ]);
    let output = done(&mut command);
    assert_eq!(
        text(&output.stdout),
        "65534\n65534\nhello\nnameserver 192.168.127.1\n"
    );
}

#[test]
fn the_jail_ends_as_its_program_does() {
    let world = World::new();
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["--mtu", "3", "true"], 125),
        (&["--polcy", "file", "true"], 125),
        (&["--", "sh", "-c", "exit 8"], 8),
        (&["--net", "al", "true"], 125),
    ] {
        let output = jail(&world, command).output().expect("it starts");
        let (status, _, error) = told(&output);
        assert_eq!(status, Some(code), "{command:?}: {error}");
    }
}

#[test]
fn the_program_has_the_standard_input() {
    let world = World::new();
    let mut child = jail(&world, &["cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"through")
        .expect("it is read");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(told(&output), (Some(0), "through".into(), String::new()));
}

#[test]
fn signals_are_passed_on_to_the_program() {
    const SCRIPT: &str = "
        trap 'echo hangup' HUP; trap 'echo first' USR1; trap 'echo second' USR2; trap 'exit 3' TERM
        echo ready; while true; do sleep 0.02; done";
    let world = World::new();
    let mut child = jail(&world, &["sh", "-c", SCRIPT])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    assert_eq!(line(), "ready");
    // `nsenter` became the jail.
    let pid = Pid::from_raw(child.id() as i32).expect("a process");
    for (signal, said) in [
        (Signal::HUP, "hangup"),
        (Signal::USR1, "first"),
        (Signal::USR2, "second"),
    ] {
        kill_process(pid, signal).expect("it runs");
        assert_eq!(line(), said);
    }
    kill_process(pid, Signal::TERM).expect("it runs");
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}

/// The gateway's open descriptors, and its resident memory in KiB.
pub(crate) fn held(pid: u32) -> (usize, u64) {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    let memory = number.and_then(|number| number.parse().ok());
    (descriptors.count(), memory.expect("a number"))
}

#[test]
fn connections_one_after_the_other_leave_nothing_behind() {
    // The server speaks first, and ends.
    const SCRIPT: &str = "
        while read -r; do
            for i in {1..500}; do
                read -r word </dev/tcp/1.1.1.1/25 && [ $word = hello ] || exit
            done
            echo done
        done";
    let world = World::new();
    world.serve("1.1.1.1:25", |stream| {
        let _ = stream.write_all(b"hello\n");
    });
    let mut child = jail(&world, &["bash", "-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut input = child.stdin.take().expect("a pipe");
    let mut rounds = (0..3).map(|_| {
        input.write_all(b"\n").expect("it is read");
        let line = lines.next().expect("all went well").expect("text");
        assert_eq!(line, "done");
        held(child.id())
    });
    let first = rounds.next().expect("a round");
    let last = rounds.last().expect("a round");
    assert!(last.0 <= first.0 + 2, "descriptors: {first:?}, {last:?}");
    assert!(last.1 <= first.1 + 1024, "memory: {first:?}, {last:?}");
    drop(input);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn mistakes_are_explained() {
    let world = World::new();
    let policy = world.folder.path().join("policy");
    std::fs::write(&policy, "preset none\nalow tcp 443 1.1.1.1\n").expect("a file");
    let output = jail(&world, &["--policy"])
        .arg(&policy)
        .arg("true")
        .output();
    let (status, _, error) = told(&output.expect("it starts"));
    assert_eq!(status, Some(125));
    let message =
        "line 2, column 1: expected a statement, found \"alow\"\nhint: did you mean `allow`?\n";
    assert!(error.ends_with(message), "{error}");

    // As on a system whose administrator forbids user namespaces.
    let mut forbidden = world.host.command("unshare");
    forbidden.args(["--user", "--map-root-user", "sh", "-c"]);
    forbidden.arg("echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"");
    forbidden.arg("sh").arg(world.example("jail")).arg("true");
    let (status, _, error) = told(&forbidden.output().expect("it starts"));
    assert_eq!(status, Some(125), "{error}");
    assert!(
        error.starts_with("error: cannot make user, network and mount namespaces")
            && error.ends_with("hint: raise the limit: sysctl user.max_user_namespaces=10000\n"),
        "{error}"
    );
}

/// What an independent reader finds in a capture: how many packets went each way.
fn directions(mut file: &[u8]) -> (usize, usize) {
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"));
    let (mut from_guest, mut to_guest) = (0, 0);
    while !file.is_empty() {
        let (block, rest) = file.split_at(word(&file[4..]) as usize);
        if word(block) == 6 {
            // Flags are the last option but for the end of options.
            match word(&block[block.len() - 12..]) {
                1 => from_guest += 1,
                2 => to_guest += 1,
                flags => panic!("flags {flags}"),
            }
        }
        file = rest;
    }
    (from_guest, to_guest)
}

#[test]
fn a_capture_holds_what_crossed_the_link() {
    let world = World::new();
    let path = world.folder.path().join("capture");
    done(
        jail(&world, &["--pcap"])
            .arg(&path)
            // One after the other: ping does not wait long for the last of several.
            .args([
                "sh",
                "-c",
                "for i in 1 2 3; do ping -c1 -W20 192.168.127.1 || exit; done",
            ]),
    );
    let file = std::fs::read(path).expect("a capture was written");
    let (from_guest, to_guest) = directions(&file);
    // Three requests and an address resolution at least, all of them answered.
    assert!(
        from_guest >= 4 && to_guest >= 4,
        "{from_guest} and {to_guest}"
    );
}

#[test]
fn ping_and_traceroute_work_where_the_host_permits_echo_requests() {
    let world = World::new();
    let far = world.beyond();
    let permit = |range: &str| {
        let text = format!("echo '{range}' > /proc/sys/net/ipv4/ping_group_range");
        done(world.host.command("sh").args(["-c", &text]));
    };
    permit("0 0");
    let script = "
        ping -n -c1 -W20 8.8.8.8 | grep -o 'bytes from 8.8.8.8'
        ping -n -c1 -W20 2608::1 | grep -o 'bytes from 2608::1'
        for how in '' -I; do
            traceroute $how -n -q1 -w20 -m5 8.8.8.8 | awk 'NR > 1 { print $1, $2 }'
        done
        ping -n -c1 -W20 10.9.0.1 | grep -o 'Packet filtered'";
    let output =
        done(jail(&world, &["sh", "-c", script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    let path = "1 192.168.127.1\n2 11.0.0.1\n3 8.8.8.8\n";
    assert_eq!(
        text(&output.stdout),
        format!("bytes from 8.8.8.8\nbytes from 2608::1\n{path}{path}Packet filtered\n")
    );
    permit("1 0");
    let output = jail(
        &world,
        &["--events", "-", "ping", "-n", "-c1", "-W20", "8.8.8.8"],
    )
    .output();
    let (status, _, error) = told(&output.expect("it starts"));
    assert_eq!(status, Some(1));
    assert!(
        error.contains("\"refusal\":\"ping-not-permitted\""),
        "{error}"
    );
    drop(far);
}

#[test]
fn the_width_of_the_path_is_the_programs_to_find_out() {
    let world = World::new();
    let far = world.beyond();
    let permit = "echo '0 0' > /proc/sys/net/ipv4/ping_group_range";
    done(world.host.command("sh").args(["-c", permit]));
    // Errors are rare by default, and here each one counts.
    let often = "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit;
        echo 0 > /proc/sys/net/ipv6/icmp/ratelimit";
    for space in [&world.host, &world.world, &far] {
        done(space.command("sh").args(["-c", often]));
    }
    let at: std::net::SocketAddr = "1.1.1.1:9".parse().expect("an address");
    let sink = world
        .world
        .enter(move || UdpSocket::bind(at).expect("a free port"));
    // The host's own link has 1500, and what is behind the next router 1300.
    world.world.ip(&["link", "set", "down1", "mtu", "1300"]);
    far.ip(&["link", "set", "up0", "mtu", "1300"]);
    // What may not be cut to pieces is told of; what may, arrives however long it is,
    // also what only the width of the guest's link kept the kernel from cutting.
    // The host remembers what it heard about the first of them. Kernels bound the errors
    // of all namespaces together, so one that others used up is waited for.
    let script = "
        ping -n -c1 -W20 -M do -s 1400 8.8.8.8 | grep -o 'mtu = [0-9]*'
        ping -n -c1 -W20 -M dont -s 1400 8.8.8.8 | grep -o 'bytes from 8.8.8.8'
        for i in 1 2 3; do head -c 9000 /dev/zero | dd bs=9000 iflag=fullblock status=none; done >/dev/udp/1.1.1.1/9
        for to in 8.8.8.8 2608::1; do
            for try in 1 2 3 4 5; do
                width=$(traceroute --mtu -n -w20 -m5 $to | grep -o 'F=[0-9]*' | tail -n1)
                [ -z \"$width\" ] || break
            done
            echo $width
            for try in 1 2 3 4 5; do
                last=$(traceroute -n -q1 -w20 -m5 $to 4000 | tail -n1 | awk '{ print $1, $2 }')
                [ \"$last\" != \"3 $to\" ] || break
            done
            echo $last
        done";
    let output =
        done(jail(&world, &["bash", "-c", script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    let mut datagram = [0; 10_000];
    let patience = Some(std::time::Duration::from_secs(20));
    sink.set_read_timeout(patience).expect("it is a time");
    for _ in 0..3 {
        assert_eq!(sink.recv(&mut datagram).expect("it came"), 9000);
    }
    assert_eq!(
        text(&output.stdout),
        "mtu = 1300\nbytes from 8.8.8.8\n\
         F=1300\n3 8.8.8.8\n\
         F=1300\n3 2608::1\n"
    );
}

#[test]
fn clients_for_whom_there_is_no_descriptor_are_refused_and_that_is_told() {
    let world = World::new();
    let jail = world.example("jail");
    let mut command = world.host.command("prlimit");
    command.arg("--nofile=64:64").arg(jail);
    command.args(["--publish", "0:80", "--events", "-"]);
    // Nobody answers inside, so clients wait, each with a descriptor.
    command.args(["sh", "-c", "ip link set net0 down; cat"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut lines = std::iter::from_fn(|| Some(lines.next()?.expect("text")));
    let place: SocketAddr = lines
        .find_map(|line| line.strip_prefix("jail: ")?.split(' ').next()?.parse().ok())
        .expect("it says where the port is");
    let clients = world.host.enter(move || {
        let connect = |_| TcpStream::connect(place).expect("the system takes it");
        (0..100).map(connect).collect::<Vec<_>>()
    });
    assert!(lines.any(|line| line.contains("\"host-limit\"")), "told of");
    // The last one does not wait.
    let mut last = &clients[99];
    let error = last.read(&mut [0]).expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    drop(child.stdin.take());
    child.wait().expect("it ends");
}
