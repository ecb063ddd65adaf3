//! Published ports: clients of the host, a guest on a stream socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use msb_net::Error;
use msb_net::gateway::{Config, Ended};
use msb_net::policy::Policy;
use msb_net::shell::{Fallback, Link, Network, Options};
use smoltcp::socket::udp;

use crate::guest::Guest;
use crate::network::{connected, ending};

fn publish(network: &Network, text: &str) -> (msb_net::shell::Publication, SocketAddr) {
    let publish = text.parse().expect("a published port");
    let publication = network.publish(&publish).expect("the port is free");
    let address = publication.ports()[0].0;
    (publication, address)
}

/// What a client gets who says hello.
fn client(address: SocketAddr) -> std::thread::JoinHandle<std::io::Result<String>> {
    std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"hello")?;
        let mut got = String::new();
        stream.read_to_string(&mut got)?;
        Ok(got)
    })
}

#[test]
fn clients_reach_a_service_of_the_guest() {
    let (_, mut guest, network, mut events) = connected("preset none");
    let (_, address) = publish(&network, "0:80");
    let service = guest.listen(80);
    let client = client(address);
    guest.until(service, |socket| {
        let mut got = Vec::new();
        let _ = socket.recv(|bytes| {
            got.extend_from_slice(bytes);
            (bytes.len(), ())
        });
        (got == b"hello").then(|| {
            socket.send_slice(b"world").expect("there is room");
            socket.close();
        })
    });
    guest.until(service, |socket| {
        (!socket.is_open() || !socket.is_active()).then_some(())
    });
    assert_eq!(
        client
            .join()
            .expect("the client ends")
            .expect("it is served"),
        "world"
    );
    assert_eq!(ending(&mut events), (Ended::Finished, 5, 5));
}

#[test]
fn a_port_nobody_serves_is_reset_and_a_denied_one_too() {
    for policy in ["preset none", "deny in host"] {
        let (_, mut guest, network, _events) = connected(policy);
        let (_, address) = publish(&network, "0:80");
        let other = guest.listen(81);
        let client = client(address);
        // The guest runs, and refuses.
        while !client.is_finished() {
            let mut turns = 0;
            guest.until(other, |_| {
                turns += 1;
                (turns > 3).then_some(())
            });
        }
        let error = client
            .join()
            .expect("the client ends")
            .expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{policy}");
    }
}

#[test]
fn datagrams_reach_a_service_of_the_guest_and_come_back() {
    let (_, mut guest, network, _events) = connected("preset none");
    let (_, address) = publish(&network, "0:53/udp");
    let service = guest.receive(53);
    let clients = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"));
    for (number, client) in clients.iter().enumerate() {
        client
            .send_to(&[number as u8], address)
            .expect("it is sent");
    }
    let mut answered = 0;
    guest.until_socket(service, |socket: &mut udp::Socket<'static>| {
        while let Ok((bytes, from)) = socket.recv() {
            let answer = [bytes[0] + 100];
            socket.send_slice(&answer, from).expect("there is room");
            answered += 1;
        }
        (answered == 2).then_some(())
    });
    for (number, client) in clients.iter().enumerate() {
        let mut buffer = [0; 10];
        client.set_nonblocking(true).expect("it is a socket");
        // The guest must run meanwhile: it looks for the gateway's address first.
        let (length, from) = guest.until_socket(service, |_: &mut udp::Socket<'static>| {
            client.recv_from(&mut buffer).ok()
        });
        assert_eq!(
            (&buffer[..length], from),
            (&[number as u8 + 100][..], address)
        );
    }
}

#[test]
fn a_port_in_use_is_named_and_one_given_up_is_free() {
    let (_, _guest, network, _events) = connected("preset none");
    let (publication, address) = publish(&network, "0:80");
    let text = format!("{}:80", address.port());
    let again = text.parse().expect("a published port");
    let Err(error) = network.publish(&again) else {
        panic!("{address} is published twice");
    };
    let port = address.port();
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot publish port {port} on 127.0.0.1"))
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains(&port.to_string()))
    );
    network.unpublish(&publication);
    drop(TcpListener::bind(address).expect("it is free again"));
    network.publish(&again).expect("it is free again");
    let range = Error::Publish {
        text: "1-2:1-3".into(),
        reason: msb_net::error::InvalidPublish::UnequalRanges,
    };
    assert_eq!("1-2:1-3".parse::<msb_net::publish::Publish>(), Err(range));
}

/// Hands clients to a test.
struct Agent(mpsc::Sender<(OwnedFd, u16)>);

impl Fallback for Agent {
    fn take(&mut self, client: OwnedFd, port: u16) {
        self.0.send((client, port)).expect("the test waits");
    }
}

#[test]
fn a_client_whom_the_guest_refuses_is_handed_over() {
    let config = Config::new(Policy::none(), 7);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (sender, clients) = mpsc::channel();
    let mut options = Options::new(config.clone());
    options.fallback = Some(Box::new(Agent(sender)));
    let (network, _events) = Network::spawn(options, Link::stream(ours)).expect("it starts");
    let mut guest = Guest::new(&config, theirs);
    let (_, address) = publish(&network, "0:80");
    let other = guest.listen(81);
    let client = client(address);
    let (taken, port) = guest.until(other, |_| clients.try_recv().ok());
    assert_eq!(port, 80);
    let mut taken = TcpStream::from(taken);
    taken.set_nonblocking(false).expect("it is a socket");
    let mut got = [0; 5];
    taken
        .read_exact(&mut got)
        .expect("nothing was taken from it");
    assert_eq!(&got, b"hello");
    taken.write_all(b"from loopback").expect("it is open");
    drop(taken);
    assert_eq!(
        client
            .join()
            .expect("the client ends")
            .expect("it is served"),
        "from loopback"
    );
}

#[test]
fn a_service_on_ipv6_only_is_reached_by_clients_of_both_families() {
    let (config, mut guest, network, mut events) = connected("preset none");
    for text in ["0:80", "[::1]:0:80"] {
        let (publication, address) = publish(&network, text);
        let service = guest.listen_at((config.guest_v6, 80).into());
        let client = client(address);
        guest.until(service, |socket| {
            let mut got = Vec::new();
            let _ = socket.recv(|bytes| {
                got.extend_from_slice(bytes);
                (bytes.len(), ())
            });
            (got == b"hello").then(|| {
                socket.send_slice(b"world").expect("there is room");
                socket.close();
            })
        });
        guest.until(service, |socket| {
            (!socket.is_open() || !socket.is_active()).then_some(())
        });
        let got = client.join().expect("the client ends");
        assert_eq!(got.expect("it is served"), "world", "{text}");
        assert_eq!(ending(&mut events), (Ended::Finished, 5, 5));
        network.unpublish(&publication);
    }
}

#[test]
fn datagrams_reach_a_service_on_ipv6_only_once_it_is_known() {
    let (config, mut guest, network, _events) = connected("preset none");
    let (_, address) = publish(&network, "[::1]:0:53/udp");
    let service = guest.receive_at((config.guest_v6, 53).into());
    let client = UdpSocket::bind("[::1]:0").expect("a port");
    client.set_nonblocking(true).expect("it is a socket");
    // The first may be lost: a client that gets no answer asks again.
    let mut buffer = [0; 10];
    let (length, from) = guest.until_socket(service, |socket: &mut udp::Socket<'static>| {
        client.send_to(b"who?", address).expect("it is sent");
        if let Ok((bytes, from)) = socket.recv() {
            assert_eq!(bytes, b"who?");
            // Until the gateway's address is found, answers wait.
            let _ = socket.send_slice(b"me", from);
        }
        client.recv_from(&mut buffer).ok()
    });
    assert_eq!((&buffer[..length], from), (&b"me"[..], address));
}

#[test]
fn all_of_ipv4_and_all_of_ipv6_can_have_the_same_port() {
    let (_, _guest, network, _events) = connected("preset none");
    let (_, four) = publish(&network, "0.0.0.0:0:80");
    let (_, six) = publish(&network, &format!("[::]:{}:80", four.port()));
    assert_eq!(four.port(), six.port());
}
