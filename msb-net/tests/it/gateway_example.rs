//! The gateway for VMMs: its socket, and that it ends.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use msb_net::gateway::Config;
use msb_net::policy::Policy;
use rustix::process::{Pid, Signal, kill_process};

use crate::guest::Guest;
use crate::world::example;

fn start(socket: &Path, more: &[&str]) -> Child {
    Command::new(example("gateway"))
        .arg("--listen")
        .arg(socket)
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// Waits until it says that it listens.
pub(crate) fn listening(child: &mut Child) {
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert!(line.starts_with("listening on "), "{line:?}");
}

#[test]
fn it_serves_guests_replaces_a_stale_socket_and_ends_when_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let events = folder.path().join("events");
    // Nobody listens any more; the file is still there.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let mut gateway = start(
        &socket,
        &["--net", "none", "--events", events.to_str().expect("text")],
    );
    listening(&mut gateway);

    let config = Config::new(Policy::none(), 1);
    let mut guests: Vec<_> = (0..2)
        .map(|_| {
            Guest::new(
                &config,
                std::os::unix::net::UnixStream::connect(&socket).expect("it takes guests"),
            )
        })
        .collect();
    for guest in &mut guests {
        let flow = guest.connect("192.0.2.1:443".parse().expect("an address"), 40_000);
        guest.until(flow, |socket| (!socket.is_open()).then_some(()));
    }
    let second = start(&socket, &[]).wait_with_output().expect("it ends");
    assert_eq!(second.status.code(), Some(125));
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(error.contains("somebody listens"), "{error}");

    // With guests still there.
    let pid = Pid::from_raw(gateway.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("it runs");
    let status = gateway.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(!socket.exists(), "the socket is removed");
    let events = std::fs::read_to_string(events).expect("events were written");
    for guest in [1, 2] {
        let start = format!("{{\"guest\":{guest},\"time\":");
        let told = |line: &str| line.starts_with(&start) && line.contains("\"event\":\"deny\"");
        assert!(events.lines().any(told), "guest {guest} in\n{events}");
    }
}
