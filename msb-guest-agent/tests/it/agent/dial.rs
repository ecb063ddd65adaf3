//! Connections to services on loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener};
use std::thread;

use msb_guest_agent::message::ResetCode;

use crate::agent::harness::Agent;

/// Of `include/uapi/asm-generic/errno.h`.
const ECONNREFUSED: i32 = 111;

#[test]
fn bytes_go_both_ways_and_each_end_ends_for_itself() {
    for address in [
        Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        // Says everything and ends before it listens to anything.
        let service = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(&vec![b'a'; 3_000_000]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).unwrap();
            heard
        });
        let mut agent = Agent::start();
        let stream = agent.dial(port);
        agent.until(|agent| agent.stdout(stream).len() == 3_000_000);
        agent.send(stream, &vec![b'b'; 2_000_000]);
        agent.finish(stream);
        agent.until(|agent| agent.is_closed(stream));
        assert_eq!(agent.was_reset(stream), None);
        assert_eq!(service.join().unwrap(), vec![b'b'; 2_000_000]);
    }
}

#[test]
fn nobody_listens() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut agent = Agent::start();
    let stream = agent.dial(port);
    agent.until(|agent| agent.is_closed(stream));
    assert_eq!(agent.not_connected(stream), Some(ECONNREFUSED));
}

#[test]
fn a_connection_that_is_given_up_is_reset() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut agent = Agent::start();
    agent.ping();
    let before = agent.descriptors();
    let stream = agent.dial(listener.local_addr().unwrap().port());
    let (mut client, _) = listener.accept().unwrap();
    agent.send(stream, b"hello");
    client.read_exact(&mut [0; 5]).unwrap();
    agent.reset(stream, ResetCode::Cancelled);
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // And the other way round.
    let stream = agent.dial(listener.local_addr().unwrap().port());
    let (client, _) = listener.accept().unwrap();
    agent.send(stream, b"never read");
    // Closing with bytes unread makes a reset.
    while client.peek(&mut [0]).unwrap() == 0 {}
    drop(client);
    agent.until(|agent| agent.is_closed(stream));
    assert!(agent.was_reset(stream).is_some());
    agent.ping();
    assert_eq!(agent.descriptors(), before);
}
