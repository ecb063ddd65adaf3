//! Names, resolved by a real server, and what may be reached by them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use msb_net::gateway::{Config, Event, FlowId};
use msb_net::shell::{Dial, HostDialer, Link, Network, Options};

use crate::guest::Guest;
use crate::world::{World, done};

/// The addresses that the names of these tests have.
const ZONE: &[(&str, &str)] = &[
    ("web.example.", "1.1.1.1"),
    ("large.example.", "1.1.1.1"),
    ("evil.example.", "169.254.169.254"),
    ("alias.example.", "ads.example."),
    ("ads.example.", "1.1.1.1"),
];

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// What a server says to a query.
fn reply(query: &[u8], datagram: bool) -> Vec<u8> {
    let query = Message::from_vec(query).expect("a query that can be read");
    let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    message.queries = query.queries.clone();
    let mut asked = query.queries[0].name().clone();
    message.metadata.truncation = datagram && asked == name("large.example.");
    message.metadata.response_code = ResponseCode::NXDomain;
    while let Some((_, value)) = ZONE.iter().find(|(owner, _)| name(owner) == asked) {
        message.metadata.response_code = ResponseCode::NoError;
        let (data, next) = match value.parse() {
            Ok(address) => (RData::A(A(address)), None),
            Err(_) => (RData::CNAME(CNAME(name(value))), Some(name(value))),
        };
        let wanted = query.queries[0].query_type() == RecordType::A || next.is_some();
        if wanted && !message.metadata.truncation {
            message.add_answer(Record::from_rdata(asked.clone(), 60, data));
        }
        match next {
            Some(next) => asked = next,
            None => break,
        }
    }
    message.to_vec().expect("an answer can be written")
}

/// Serves names over UDP and TCP for as long as the test runs.
pub(crate) fn serve(datagrams: UdpSocket, streams: TcpListener) {
    std::thread::spawn(move || {
        let mut query = [0; 4096];
        while let Ok((length, from)) = datagrams.recv_from(&mut query) {
            let _ = datagrams.send_to(&reply(&query[..length], true), from);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = streams.accept() {
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut query).expect("a whole query");
                let reply = reply(&query, false);
                let framed = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
                stream.write_all(&framed).expect("the answer is taken");
            }
        }
    });
}

/// Opens every stream to port 80 at this address of the host instead, so that a
/// test can have servers at public addresses.
struct Detour(SocketAddr);

impl Dial for Detour {
    fn stream(&mut self, flow: FlowId, to: SocketAddr) -> std::io::Result<OwnedFd> {
        let to = if to.port() == 80 { self.0 } else { to };
        HostDialer.stream(flow, to)
    }

    fn datagram(&mut self, flow: FlowId, to: SocketAddr) -> std::io::Result<OwnedFd> {
        HostDialer.datagram(flow, to)
    }
}

fn loopback() -> (UdpSocket, TcpListener, SocketAddr) {
    // A port that is free for both.
    loop {
        let streams = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let at = streams.local_addr().expect("it has an address");
        if let Ok(datagrams) = UdpSocket::bind(at) {
            return (datagrams, streams, at);
        }
    }
}

/// Asks the resolver that the guest believes in, over TCP.
pub(crate) fn ask(guest: &mut Guest, from: u16, asked: &str) -> Message {
    let flow = guest.connect("8.8.8.8:53".parse().expect("an address"), from);
    let mut query = Message::new(from, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(name(asked), RecordType::A));
    let query = query.to_vec().expect("a query can be written");
    let framed = [&(query.len() as u16).to_be_bytes()[..], &query].concat();
    guest
        .until(flow, |socket| {
            socket.can_send().then(|| socket.send_slice(&framed))
        })
        .expect("the query is taken");
    let mut got = Vec::new();
    guest.until(flow, |socket| {
        while socket.can_recv() {
            let take = |bytes: &mut [u8]| {
                got.extend_from_slice(bytes);
                (bytes.len(), ())
            };
            socket.recv(take).expect("bytes");
        }
        let (length, rest) = got.split_first_chunk()?;
        let message = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
        Some(Message::from_vec(message).expect("an answer that can be read"))
    })
}

/// Asks for a page, and returns what came.
pub(crate) fn fetch(guest: &mut Guest, from: u16, to: &str, host: &str) -> Vec<u8> {
    let flow = guest.connect(to.parse().expect("an address"), from);
    let request = format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n");
    let mut got = Vec::new();
    let mut sent = false;
    guest.until(flow, |socket| {
        if socket.can_send() && !sent {
            sent = true;
            socket.send_slice(request.as_bytes()).expect("it is taken");
        }
        while socket.can_recv() {
            let take = |bytes: &mut [u8]| {
                got.extend_from_slice(bytes);
                (bytes.len(), ())
            };
            socket.recv(take).expect("bytes");
        }
        let over = !socket.is_open() || (sent && !socket.may_recv());
        over.then_some(())
    });
    got
}

pub(crate) fn page(stream: &mut TcpStream) {
    let mut request = [0; 4096];
    if stream.read(&mut request).is_ok() {
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
    }
}

#[test]
fn what_a_name_resolves_to_is_reached_by_that_name_alone() {
    let (datagrams, streams, server) = loopback();
    serve(datagrams, streams);
    // The first server is not there: what was its port is closed.
    let (gone, _, closed) = loopback();
    drop(gone);
    let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let detour = Detour(web.local_addr().expect("it has an address"));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = web.accept() {
            page(&mut stream);
        }
    });
    let policy = "preset none\nallow tcp 80 web.example\nallow tcp 80 large.example"
        .parse()
        .expect("a policy");
    let mut config = Config::new(policy, 7);
    config.resolvers = vec![closed, server];
    let mut options = Options::new(config.clone());
    options.dialer = Box::new(detour);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (network, mut events) = Network::spawn(options, Link::stream(ours)).expect("it starts");
    let mut guest = Guest::new(&config, theirs);

    assert_eq!(fetch(&mut guest, 40_000, "1.1.1.1:80", "web.example"), b"");
    let answer = ask(&mut guest, 40_001, "web.example.");
    assert_eq!(
        answer.answers[0].data,
        RData::A(A(Ipv4Addr::new(1, 1, 1, 1)))
    );
    let got = fetch(&mut guest, 40_002, "1.1.1.1:80", "web.example");
    assert!(got.ends_with(b"hello\n"));
    // The right address, and another name: both have to be allowed.
    assert_eq!(
        fetch(&mut guest, 40_003, "1.1.1.1:80", "other.example"),
        b""
    );
    let answer = ask(&mut guest, 40_004, "ads.example.");
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    // Comes in pieces that do not fit a datagram.
    let answer = ask(&mut guest, 40_005, "large.example.");
    assert_eq!(answer.answers.len(), 1);
    let got = fetch(&mut guest, 40_006, "1.1.1.1:80", "large.example");
    assert!(got.ends_with(b"hello\n"));

    let policy = network.policy().clone();
    network.stop();
    let mut lines = Vec::new();
    while let Some(entry) = events.blocking_recv() {
        if matches!(entry.event, Event::Query { .. }) {
            lines.push(entry.to_json(&policy));
        }
    }
    for (line, expected) in lines.iter().zip([
        r#""event":"query","name":"web.example","type":"A","server":"8.8.8.8:53","code":"NOERROR","from":"upstream","addresses":1,"rule":1,"by":"rule 1: allow tcp 80 domain web.example","duration":"#,
        r#""event":"query","name":"ads.example","type":"A","server":"8.8.8.8:53","refusal":"denied","by":"no rule matches, and the preset is none","duration":"#,
        r#""name":"large.example","type":"A","server":"8.8.8.8:53","code":"NOERROR","from":"upstream","addresses":1,"rule":2,"#,
    ]) {
        assert!(line.contains(expected), "{line}");
    }
    assert_eq!(lines.len(), 3, "{lines:?}");
}

#[test]
fn programs_find_hosts_by_name_through_the_jail() {
    const ATTEMPTS: &str = "
        try() { echo \"$1: $(shift; curl -s -m 20 \"$@\" || echo no)\"; }
        try early --resolve web.example:80:1.1.1.1 http://web.example/
        try name http://web.example/
        try large http://large.example/
        try evil http://evil.example/
        try alias http://alias.example/
        try other --resolve ads.example:80:1.1.1.1 http://ads.example/
        try nowhere http://nowhere.example/";
    let world = World::new();
    world.serve("1.1.1.1:80", page);
    world.serve("169.254.169.254:80", page);
    let at: (IpAddr, u16) = (Ipv4Addr::new(1, 1, 1, 1).into(), 53);
    let (datagrams, streams) = world.world.enter(move || {
        let datagrams = UdpSocket::bind(at).expect("a free port");
        (datagrams, TcpListener::bind(at).expect("a free port"))
    });
    serve(datagrams, streams);
    let events = world.folder.path().join("events");
    let mut jail = world.host.command(world.example("jail"));
    jail.args(["--resolver", "1.1.1.1", "--net", "none"]);
    for rule in ["web", "large", "evil", "alias"] {
        let rule = format!("allow tcp 80 {rule}.example");
        jail.args(["--rule", &rule]);
    }
    jail.args(["--block-domain", "ads.example", "--events"]);
    let output = done(jail.arg(&events).args(["sh", "-c", ATTEMPTS]));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "early: no\nname: hello\nlarge: hello\nevil: no\nalias: no\nother: no\nnowhere: no\n"
    );
    let events = std::fs::read_to_string(events).expect("events were written");
    for (name, refusal) in [
        ("evil.example", "rebinding"),
        ("alias.example", "alias"),
        ("nowhere.example", "denied"),
    ] {
        let told = |line: &str| {
            line.contains(&format!("\"name\":\"{name}\""))
                && line.contains(&format!("\"refusal\":\"{refusal}\""))
        };
        assert!(events.lines().any(told), "{name} {refusal} in\n{events}");
    }
}
