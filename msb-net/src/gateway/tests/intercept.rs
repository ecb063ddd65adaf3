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
    // What is no HTTP is no request to any host.
    let policy = "preset allow-all\ndeny http DELETE any";
    let (taken, passed, _) = said(policy, Some(Intercept::default()), 22, SSH);
    assert!(taken.is_empty() && passed);
}
