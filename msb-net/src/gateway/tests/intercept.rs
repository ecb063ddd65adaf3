//! Which flows are taken apart, and which are refused because they would have to be.

use super::*;
use crate::policy::Pattern;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const SSH: &[u8] = b"SSH-2.0-OpenSSH_9.2\r\n";

/// Says something to a server; returns what was taken apart, whether the server got
/// it, and why it was refused if it was.
fn said(
    policy: &str,
    intercept: Option<Intercept>,
    port: u16,
    said: &[u8],
) -> (Vec<Intercepted>, bool, Option<Refusal>) {
    let mut config = Config::new(policy.parse().unwrap(), 7);
    config.intercept = intercept;
    let mut sim = Sim::new(config, 7);
    sim.serve(port, Behaviour::Echo);
    let handle = sim.connect(&format!("1.1.1.1:{port}"), 40_000);
    sim.run();
    sim.socket(handle).send_slice(said).unwrap();
    sim.run();
    let refusal = sim.events.iter().find_map(|event| match event {
        Event::Decided { refusal, .. } => *refusal,
        _ => None,
    });
    let passed = sim.upstream().received == said;
    (sim.intercepted, passed, refusal)
}

fn for_host(host: &str) -> Option<Intercept> {
    let hosts = vec![Pattern::Domain(host.parse().unwrap())];
    Some(Intercept {
        hosts,
        ..Intercept::default()
    })
}

#[test]
fn the_host_that_is_named_is_taken_apart_and_no_other() {
    let (taken, ..) = said("preset allow-all", for_host("a.example"), 80, GET);
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].host, Some("a.example".parse().unwrap()));
    assert!(!taken[0].secure);
    let (taken, passed, _) = said("preset allow-all", for_host("b.example"), 80, GET);
    assert!(taken.is_empty() && passed);
    let (taken, passed, _) = said("preset allow-all", for_host("a.example"), 22, SSH);
    assert!(taken.is_empty() && passed);
    let (taken, passed, _) = said("preset allow-all", None, 80, GET);
    assert!(taken.is_empty() && passed);
}

#[test]
fn passing_through_is_for_hosts_without_rules() {
    let passthrough = vec![Pattern::Domain("a.example".parse().unwrap())];
    let all = Some(Intercept {
        all: true,
        passthrough,
        ..Intercept::default()
    });
    let (taken, passed, _) = said("preset allow-all", all.clone(), 80, GET);
    assert!(taken.is_empty() && passed);
    let hosts = for_host("a.example").map(|own| Intercept {
        passthrough: own.hosts.clone(),
        ..own
    });
    let (taken, passed, _) = said("preset allow-all", hosts, 80, GET);
    assert!(taken.is_empty() && passed);
    let rule = "preset allow-all\ndeny http GET a.example/x";
    let (taken, ..) = said(rule, all, 80, GET);
    assert_eq!(taken.len(), 1);
}

#[test]
fn requests_that_nobody_reads_do_not_pass() {
    for policy in [
        "preset allow-all\ndeny http GET a.example/x",
        "preset allow-all\ndeny http DELETE any",
    ] {
        let (taken, passed, refusal) = said(policy, None, 80, GET);
        assert!(taken.is_empty() && !passed);
        assert_eq!(refusal, Some(Refusal::Unread));
        let (taken, ..) = said(policy, Some(Intercept::default()), 80, GET);
        assert_eq!(taken.len(), 1);
    }
    for disguised in [
        "\r\nDELETE / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "X / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "X\t/ HTTP/1.1\r\n",
    ] {
        for port in [80, 3128] {
            let policy = "preset allow-all\ndeny http DELETE any";
            let all = Some(Intercept::default());
            let (taken, ..) = said(policy, all, port, disguised.as_bytes());
            assert_eq!(taken.len(), 1, "{disguised:?}");
        }
    }
    // What is no HTTP is no request to any host.
    let policy = "preset allow-all\ndeny http DELETE any";
    let (taken, passed, _) = said(policy, Some(Intercept::default()), 22, SSH);
    assert!(taken.is_empty() && passed);
}

/// One connection may carry requests to many hosts: those behind such a beginning would
/// not be seen.
#[test]
fn a_request_that_names_no_host_hides_none_behind_it() {
    let policy = "preset allow-all\ndeny http DELETE a.example";
    for first in [
        &b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nDELETE / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0DELETE / HTTP/1.1\r\n",
        &[b"GET / HTTP/1.1\r\nX: ", &[b'x'; 20_000][..]].concat(),
    ] {
        for port in [80, 3128] {
            let (taken, ..) = said(policy, Some(Intercept::default()), port, first);
            assert_eq!(taken.len(), 1);
            assert_eq!(taken[0].host, None);
            let (taken, passed, _) = said(policy, None, port, first);
            assert!(taken.is_empty() && !passed);
        }
    }
}

/// Says something byte by byte; returns what was taken apart, what the server got, and
/// the events.
fn spelt(policy: &str, said: &[u8]) -> (Vec<Intercepted>, Vec<u8>, Vec<Event>) {
    let mut config = Config::new(policy.parse().unwrap(), 7);
    config.intercept = Some(Intercept::default());
    let mut sim = Sim::new(config, 7);
    sim.serve(3128, Behaviour::Echo);
    let handle = sim.connect("1.1.1.1:3128", 40_000);
    sim.run();
    for byte in said {
        // Once refused, the guest's socket takes no more.
        let _ = sim.socket(handle).send_slice(&[*byte]);
        sim.run_until(sim.now + Duration::from_millis(1));
    }
    let got = sim.upstream().received.clone();
    (sim.intercepted, got, sim.events)
}

/// What may become a request with a method that is not known is not kept waiting, and yet
/// no server gets such a line.
#[test]
fn a_line_in_pieces_passes_until_it_is_that_of_a_request() {
    let policy = "preset allow-all\ndeny http DELETE any";
    for passing in [
        &b"hello"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"LOGIN me\r\nX / HTTP/1.1\r\n",
        b"X /x\0 HTTP/1.1",
    ] {
        let (taken, got, _) = spelt(policy, passing);
        assert!(taken.is_empty());
        assert_eq!(got, passing);
    }
    for (said, least) in [
        (
            &b"X / HTTP/1.1\r\nHost: a.example\r\n\r\n"[..],
            &b"X / HTTP"[..],
        ),
        (b"\r\nX\t/\thttp/1.1\r\n\r\n", b"\r\nX\t/\thttp"),
    ] {
        let (taken, got, events) = spelt(policy, said);
        assert!(taken.is_empty());
        assert_eq!(got, least);
        let told = |event: &Event| {
            let unread = Some(Refusal::Unread);
            matches!(event, Event::Decided { flow: None, refusal, .. } if *refusal == unread)
        };
        assert_eq!(events.iter().filter(|event| told(event)).count(), 1);
        let denied = |event: &Event| {
            let Event::Closed { ended, .. } = event else {
                return false;
            };
            *ended == Ended::Denied
        };
        assert!(events.iter().any(denied));
    }
    let behind = b"\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    assert_eq!(spelt(policy, behind).0.len(), 1);
}

/// Whoever answers a greeting with an empty line speaks no HTTP.
#[test]
fn an_empty_line_behind_a_greeting_is_not_kept_waiting() {
    let policy = "preset allow-all\ndeny http DELETE any";
    let mut config = Config::new(policy.parse().unwrap(), 7);
    config.intercept = Some(Intercept::default());
    let mut sim = Sim::new(config, 7);
    sim.serve(23, Behaviour::Serve(b"press return\r\n".to_vec()));
    let handle = sim.connect("1.1.1.1:23", 40_000);
    sim.run();
    sim.socket(handle).send_slice(b"\r\n").unwrap();
    sim.run();
    assert_eq!(sim.upstream().received, b"\r\n");
}
