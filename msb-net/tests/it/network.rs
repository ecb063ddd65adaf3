//! The driver between a guest on a stream socket and real sockets of the host.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use msb_net::gateway::{Config, DropReason, Ended, Event, FlowId};
use msb_net::policy::Policy;
use msb_net::shell::{Dial, Events, Link, Network, Options};

use crate::attacks::datagram;
use crate::guest::Guest;

/// A guest that may reach everything, the host included.
pub(crate) fn connected(policy: &str) -> (Config, Guest, Network, Events) {
    let policy: Policy = policy.parse().expect("the policy is one");
    let config = Config::new(policy, 7);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (network, events) =
        Network::spawn(Options::new(config.clone()), Link::stream(ours)).expect("it starts");
    let guest = Guest::new(&config, theirs);
    (config, guest, network, events)
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it has an address").port();
    (listener, port)
}

/// The ending of the first flow that ends.
pub(crate) fn ending(events: &mut Events) -> (Ended, u64, u64) {
    while let Some(entry) = events.blocking_recv() {
        if let Event::Closed {
            ended,
            sent,
            received,
            ..
        } = entry.event
        {
            return (ended, sent, received);
        }
    }
    panic!("the network stopped before the flow ended");
}

#[test]
fn bytes_pass_both_ways_and_each_half_closes_alone() {
    const SIZE: usize = 3_000_000;
    let (config, mut guest, network, mut events) = connected("preset allow-all");
    let (listener, port) = listener();
    // It answers only once it has everything: the halves must close apart.
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        peer.write_all(&got).unwrap();
    });
    let data: Vec<u8> = (0..SIZE).map(|i| (i / 251 + i % 251) as u8).collect();
    let flow = guest.connect(SocketAddr::new(config.gateway_v4.into(), port), 40_000);
    let (mut sent, mut got) = (0, Vec::new());
    guest.until(flow, |socket| {
        if socket.can_send() && sent < SIZE {
            sent += socket.send_slice(&data[sent..]).unwrap();
            if sent == SIZE {
                socket.close();
            }
        }
        while socket.can_recv() {
            let take = |bytes: &mut [u8]| {
                got.extend_from_slice(bytes);
                (bytes.len(), ())
            };
            socket.recv(take).unwrap();
        }
        (sent == SIZE && !socket.may_recv()).then_some(())
    });
    assert!(got == data, "{} bytes came back", got.len());
    server.join().unwrap();
    let size = SIZE as u64;
    assert_eq!(ending(&mut events), (Ended::Finished, size, size));
    network.stop();
}

#[test]
fn a_closed_port_refuses_the_guest() {
    let (config, mut guest, _network, mut events) = connected("preset allow-all");
    let (listener, port) = listener();
    drop(listener);
    let flow = guest.connect(SocketAddr::new(config.gateway_v4.into(), port), 40_000);
    guest.until(flow, |socket| (!socket.is_open()).then_some(()));
    assert_eq!(ending(&mut events), (Ended::NotConnected, 0, 0));
}

#[test]
fn what_a_peer_said_before_its_reset_arrives() {
    let (config, mut guest, _network, mut events) = connected("preset allow-all");
    let (listener, port) = listener();
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut first = [0; 1];
        peer.read_exact(&mut first).unwrap();
        peer.write_all(b"no").unwrap();
        // Bytes that were not read make the system send a reset.
    });
    let flow = guest.connect(SocketAddr::new(config.gateway_v4.into(), port), 40_000);
    guest.until(flow, |socket| socket.send_slice(b"hello").ok());
    let mut got = Vec::new();
    guest.until(flow, |socket| {
        while socket.can_recv() {
            let take = |bytes: &mut [u8]| {
                got.extend_from_slice(bytes);
                (bytes.len(), ())
            };
            socket.recv(take).unwrap();
        }
        (!socket.is_open()).then_some(())
    });
    server.join().unwrap();
    assert_eq!(got, b"no");
    assert_eq!(ending(&mut events).0, Ended::Reset);
}

#[test]
fn a_denied_flow_is_reset_and_told() {
    let (_, mut guest, network, mut events) = connected("preset none");
    let flow = guest.connect("192.0.2.1:443".parse().unwrap(), 40_000);
    guest.until(flow, |socket| (!socket.is_open()).then_some(()));
    let entry = events.blocking_recv().expect("the decision is told");
    let line = entry.to_json(network.policy());
    assert!(
        line.contains(
            r#""event":"deny","direction":"out","proto":"tcp","address":"192.0.2.1","port":443,"#
        ),
        "{line}"
    );
}

#[test]
fn what_is_open_at_the_end_is_told_of() {
    let (config, mut guest, network, mut events) = connected("preset allow-all");
    let (listener, port) = listener();
    let flow = guest.connect(SocketAddr::new(config.gateway_v4.into(), port), 40_000);
    guest.until(flow, |socket| socket.send_slice(b"hello").ok());
    let (mut peer, _) = listener.accept().unwrap();
    let mut first = [0; 5];
    peer.set_nonblocking(true).unwrap();
    guest.until(flow, |_| peer.read_exact(&mut first).ok());
    network.stop();
    assert_eq!(ending(&mut events), (Ended::Stopped, 5, 0));
    assert_eq!(events.blocking_recv(), None);
}

/// A host that lets nobody have another socket.
struct Exhausted;

impl Dial for Exhausted {
    fn stream(&mut self, _: FlowId, _: SocketAddr) -> std::io::Result<OwnedFd> {
        Err(rustix::io::Errno::MFILE.into())
    }

    fn datagram(&mut self, _: FlowId, _: SocketAddr) -> std::io::Result<OwnedFd> {
        Err(rustix::io::Errno::NFILE.into())
    }
}

#[test]
fn a_host_without_descriptors_refuses_and_that_is_told() {
    let config = Config::new("preset allow-all".parse().expect("a policy"), 7);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut options = Options::new(config.clone());
    options.dialer = Box::new(Exhausted);
    let (_network, mut events) = Network::spawn(options, Link::stream(ours)).expect("it starts");
    let mut guest = Guest::new(&config, theirs);
    let flow = guest.connect("1.1.1.1:80".parse().unwrap(), 40_000);
    guest.until(flow, |socket| (!socket.is_open()).then_some(()));
    assert_eq!(ending(&mut events), (Ended::HostLimit, 0, 0));
    guest.inject(&datagram("192.168.127.2:5000", "1.1.1.1:9", b"x"));
    let dropped = std::iter::from_fn(|| events.blocking_recv())
        .find(|entry| matches!(entry.event, Event::Dropped { .. }));
    let (reason, count) = (DropReason::HostLimit, 1);
    let event = dropped.expect("it is told of").event;
    assert_eq!(event, Event::Dropped { reason, count });
}

#[test]
fn the_network_ends_with_its_link() {
    let (_, guest, _network, mut events) = connected("preset none");
    drop(guest);
    assert_eq!(events.blocking_recv(), None);
}
