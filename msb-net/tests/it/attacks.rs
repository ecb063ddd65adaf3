//! What a hostile guest tries. Two sealed namespaces: whatever leaves the host is seen.
//!
//! Each attempt must be refused at once, leave an event, and send nothing into the world
//! but what the policy lets pass.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use msb_net::gateway::Config;
use msb_net::shell::{Events, Link, Network, Options};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr,
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::guest::{Guest, pieces};
use crate::names::{ask, fetch, page, serve};
use crate::world::World;

const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 9]);
const GUEST: &str = "192.168.127.2:5000";
const GUEST_V6: &str = "[fd6d:7362::2]:5000";

/// A guest on a host whose every packet is seen.
struct Lair {
    world: World,
    guest: Guest,
    network: Network,
    events: Events,
    wire: OwnedFd,
}

impl Lair {
    fn new(policy: &str) -> Self {
        let world = World::new();
        let at: (IpAddr, u16) = (Ipv4Addr::new(1, 1, 1, 1).into(), 53);
        let (datagrams, streams, wire) = world.world.enter(move || {
            let datagrams = UdpSocket::bind(at).expect("a free port");
            let streams = TcpListener::bind(at).expect("a free port");
            let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            // ETH_P_ALL, in network order.
            let all = rustix::net::Protocol::from_raw(0x300.try_into().expect("not zero"));
            let wire = rustix::net::socket_with(family, kind, flags, Some(all));
            (datagrams, streams, wire.expect("a socket that sees all"))
        });
        serve(datagrams, streams);
        let mut config = Config::new(policy.parse().expect("a policy"), 7);
        config.resolvers = vec![at.into()];
        config.guest_mac = Some(MAC.0);
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let options = Options::new(config.clone());
        // The driver's thread, and so its sockets, are where it is started.
        let (network, events) = world
            .host
            .enter(move || Network::spawn(options, Link::stream(ours)).expect("it starts"));
        let guest = Guest::new(&config, theirs);
        Self {
            world,
            guest,
            network,
            events,
            wire,
        }
    }

    /// Whether a connection is refused, which is at once.
    fn is_refused(&mut self, to: &str, from: u16) -> bool {
        let flow = self.guest.connect(to.parse().expect("an address"), from);
        self.guest.until(flow, |socket| {
            (!socket.is_open() || socket.may_send()).then(|| !socket.is_open())
        })
    }

    /// Ends it all; returns what was told, and where packets of the host went.
    fn end(self) -> (Vec<String>, BTreeSet<String>) {
        let Self {
            network,
            mut events,
            wire,
            world,
            ..
        } = self;
        let policy = network.policy().clone();
        network.stop();
        let mut told = Vec::new();
        while let Some(entry) = events.blocking_recv() {
            told.push(entry.to_json(&policy));
        }
        let mut buffer = [0; 65_536];
        let mut seen = BTreeSet::new();
        while let Ok((_, length)) = rustix::net::recv(&wire, &mut buffer[..], RecvFlags::empty()) {
            seen.extend(destination(&buffer[..length]));
        }
        drop(world);
        (told, seen)
    }
}

/// Where a packet goes that the host sent; nothing for neighbours' talk.
fn destination(frame: &[u8]) -> Option<String> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let (from, to, protocol, payload): (IpAddr, IpAddr, _, _) = match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            let (from, to) = (packet.src_addr(), packet.dst_addr());
            (
                from.into(),
                to.into(),
                packet.next_header(),
                packet.payload(),
            )
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            let (from, to) = (packet.src_addr(), packet.dst_addr());
            (
                from.into(),
                to.into(),
                packet.next_header(),
                packet.payload(),
            )
        }
        _ => return None,
    };
    let host: [IpAddr; 2] = [
        [11, 0, 0, 2].into(),
        "2600:b::2".parse().expect("an address"),
    ];
    if !host.contains(&from) || to.is_multicast() {
        return None;
    }
    let port = payload
        .get(2..4)
        .map(|port| u16::from_be_bytes([port[0], port[1]]));
    match protocol {
        IpProtocol::Icmpv6 => None,
        IpProtocol::Tcp | IpProtocol::Udp => {
            Some(format!("{protocol} {}", SocketAddr::new(to, port?)))
        }
        other => Some(format!("{other} {to}")),
    }
}

/// A frame of the guest.
fn frame(mac: EthernetAddress, ip: &IpRepr, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let kind = match ip {
        IpRepr::Ipv4(_) => EthernetProtocol::Ipv4,
        IpRepr::Ipv6(_) => EthernetProtocol::Ipv6,
    };
    let header = EthernetRepr {
        src_addr: mac,
        dst_addr: EthernetAddress([2, 0x6d, 0x73, 0x62, 0, 1]),
        ethertype: kind,
    };
    let mut bytes = vec![0; 14 + ip.buffer_len()];
    header.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    ip.emit(&mut bytes[14..], &ChecksumCapabilities::default());
    fill(&mut bytes[14 + ip.header_len()..]);
    bytes
}

fn ends(from: &str, to: &str) -> (SocketAddr, SocketAddr) {
    (
        from.parse().expect("an address"),
        to.parse().expect("an address"),
    )
}

fn datagram_by(mac: EthernetAddress, from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(from, to);
    let (source, target): (IpAddress, IpAddress) = (from.ip().into(), to.ip().into());
    let ip = IpRepr::new(source, target, IpProtocol::Udp, 8 + payload.len(), 64);
    frame(mac, &ip, |bytes| {
        let ports = UdpRepr {
            src_port: from.port(),
            dst_port: to.port(),
        };
        ports.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &source,
            &target,
            payload.len(),
            |body| body.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

pub(crate) fn datagram(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    datagram_by(MAC, from, to, payload)
}

pub(crate) fn syn(from: &str, to: &str) -> Vec<u8> {
    let (from, to) = ends(from, to);
    let segment = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (source, target): (IpAddress, IpAddress) = (from.ip().into(), to.ip().into());
    let ip = IpRepr::new(source, target, IpProtocol::Tcp, segment.buffer_len(), 64);
    frame(MAC, &ip, |bytes| {
        let mut packet = TcpPacket::new_unchecked(bytes);
        segment.emit(
            &mut packet,
            &source,
            &target,
            &ChecksumCapabilities::default(),
        );
    })
}

pub(crate) fn echo(to: &str, data: &[u8]) -> Vec<u8> {
    let message = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: 1,
        data,
    };
    let to: IpAddr = to.parse().expect("an address");
    let from = IpAddr::from([192, 168, 127, 2]);
    let length = message.buffer_len();
    let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmp, length, 64);
    frame(MAC, &ip, |bytes| {
        let mut packet = Icmpv4Packet::new_unchecked(bytes);
        message.emit(&mut packet, &ChecksumCapabilities::default());
    })
}

/// Tells whether one line has all of these.
fn tells(lines: &[String], parts: &[&str]) -> bool {
    let has = |line: &String| parts.iter().all(|part| line.contains(part));
    lines.iter().any(has)
}

fn set(places: &[&str]) -> BTreeSet<String> {
    places.iter().map(|place| (*place).to_owned()).collect()
}

/// The first bytes of a TLS client that wants to reach `name`.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client
        .write_tls(&mut bytes)
        .expect("it has something to say");
    bytes
}

const NAMED: &str = "preset none\nallow tcp 80,443 web.example\nallow dns evil.example\n\
    allow dns alias.example\nblock ads.example";

#[test]
fn under_a_list_of_names_there_is_no_other_way_out() {
    let mut lair = Lair::new(NAMED);
    // The address, before anybody resolved it; resolvers over TLS, HTTPS and QUIC; and names
    // that are not on the list, or lead elsewhere.
    let closed = ["1.1.1.1:443", "8.8.8.8:443", "8.8.8.8:853", "[2606::1]:443"];
    for (from, to) in (40_000..).zip(closed) {
        assert!(lair.is_refused(to, from), "{to}");
    }
    for to in ["8.8.8.8:443", "8.8.8.8:853", "1.1.1.1:443", "1.1.1.1:4500"] {
        lair.guest.inject(&datagram(GUEST, to, b"x"));
    }
    let names = ["other.example.", "evil.example.", "alias.example."];
    for (from, name) in (41_000..).zip(names) {
        let answer = ask(&mut lair.guest, from, name);
        assert!(answer.answers.is_empty(), "{name}: {answer:?}");
    }
    // Resolvers of its own choice, over either transport: it is the gateway who answers.
    let answer = ask(&mut lair.guest, 42_000, "web.example.");
    assert_eq!(answer.answers.len(), 1);
    // Now the address is open, for that name; a port over and an address beside are not.
    let closed = ["1.1.1.1:8443", "1.1.1.2:443", "[::ffff:1.1.1.2]:443"];
    for (from, to) in (43_000..).zip(closed) {
        assert!(lair.is_refused(to, from), "{to}");
    }
    // QUIC would hide the name.
    lair.guest.inject(&datagram(GUEST, "1.1.1.1:443", b"x"));
    lair.guest.inject(&echo("1.1.1.1", &[b'x'; 1400]));
    // A packet that is answered says that those before it are done with.
    assert!(lair.is_refused("1.1.1.9:443", 44_000));

    let (told, seen) = lair.end();
    for parts in [
        &["deny", "\"tcp\",\"address\":\"1.1.1.1\",\"port\":443"][..],
        &["deny", "\"tcp\",\"address\":\"8.8.8.8\",\"port\":443"],
        &["deny", "\"tcp\",\"address\":\"8.8.8.8\",\"port\":853"],
        &["deny", "\"tcp\",\"address\":\"2606::1\",\"port\":443"],
        &["deny", "\"udp\",\"address\":\"8.8.8.8\",\"port\":443"],
        &["deny", "\"udp\",\"address\":\"8.8.8.8\",\"port\":853"],
        &["deny", "\"udp\",\"address\":\"1.1.1.1\",\"port\":443"],
        &["deny", "\"address\":\"1.1.1.1\",\"port\":4500"],
        &["\"name\":\"other.example\"", "\"refusal\":\"denied\""],
        &["\"name\":\"evil.example\"", "\"refusal\":\"rebinding\""],
        &["\"name\":\"alias.example\"", "\"refusal\":\"alias\""],
        &[
            "\"name\":\"web.example\"",
            "\"server\":\"8.8.8.8:53\"",
            "NOERROR",
        ],
        &["deny", "\"port\":8443", "\"name\":\"web.example\""],
        &["deny", "\"address\":\"1.1.1.2\",\"port\":443"],
        &["deny", "\"icmp\",\"address\":\"1.1.1.1\""],
    ] {
        assert!(tells(&told, parts), "{parts:?} in\n{}", told.join("\n"));
    }
    assert_eq!(seen, set(&["UDP 1.1.1.1:53"]));
}

#[test]
fn a_tunnel_of_queries_leads_nowhere_under_a_list_of_names() {
    let mut lair = Lair::new("preset none\nallow tcp 443 web.example");
    for number in 0..200u32 {
        // A query for 60 bytes of somebody's data, by hand.
        let label = format!("{number:060x}");
        let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 60];
        query.extend_from_slice(label.as_bytes());
        query.extend_from_slice(b"\x01t\x04evil\x07example\x00\x00\x10\x00\x01");
        let to = if number % 2 == 0 {
            "9.9.9.9:53"
        } else {
            "192.168.127.1:53"
        };
        lair.guest.inject(&datagram(GUEST, to, &query));
    }
    assert!(lair.is_refused("1.1.1.1:443", 40_000));
    let (told, seen) = lair.end();
    let denied = |line: &&String| line.contains(".t.evil.example\"") && line.contains("denied");
    assert_eq!(told.iter().filter(denied).count(), 200);
    assert_eq!(seen, set(&[]));
}

#[test]
fn no_form_of_an_internal_address_is_public() {
    let mut lair = Lair::new("preset public-only");
    let places = [
        "10.9.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "192.168.127.1",
        "192.168.127.255",
        // Where clouds tell secrets, and their kin.
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        // 10.9.0.1 and 169.254.169.254 in other clothes: mapped, translated, NAT64, 6to4,
        // Teredo, ISATAP.
        "::ffff:10.9.0.1",
        "::ffff:0:10.9.0.1",
        "::10.9.0.1",
        "64:ff9b::10.9.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a09:1::1",
        "2002:a9fe:a9fe::",
        "2001:0:101:101:0:0:f5f6:fffe",
        "2001:0:a9fe:a9fe::fefe:fefe",
        "2001:4860::5efe:10.9.0.1",
        "fd12::1",
        "fe80::1",
        "::1",
    ];
    for place in places {
        let to = SocketAddr::new(place.parse().expect("an address"), 80).to_string();
        let guest = if place.contains(':') { GUEST_V6 } else { GUEST };
        lair.guest.inject(&syn(guest, &to));
        lair.guest.inject(&datagram(guest, &to, b"x"));
        if !place.contains(':') {
            lair.guest.inject(&echo(place, b"x"));
        }
    }
    assert!(lair.is_refused("10.9.9.9:80", 50_000));
    let (told, seen) = lair.end();
    for place in places {
        for protocol in ["tcp", "udp"] {
            let protocol = format!("\"proto\":\"{protocol}\"");
            let address: IpAddr = place.parse().expect("an address");
            let address = format!("\"address\":\"{address}\"");
            let parts = ["\"event\":\"deny\"", &protocol, &address];
            assert!(tells(&told, &parts), "{parts:?} in\n{}", told.join("\n"));
        }
    }
    assert_eq!(seen, set(&[]));
}

#[test]
fn forged_and_broken_frames_reach_nobody() {
    let mut lair = Lair::new("preset allow-all");
    let stranger = EthernetAddress([2, 0, 0, 0, 0, 8]);
    let whole = datagram(GUEST, "1.1.1.1:9", &[7; 64]);
    let mut overlapping = pieces(&whole, 40);
    let mut second = Ipv4Packet::new_unchecked(&mut overlapping[1][14..]);
    second.set_frag_offset(32);
    second.fill_checksum();
    let attacks = [
        (
            "spoofed-mac",
            vec![datagram_by(stranger, GUEST, "1.1.1.1:9", b"x")],
        ),
        (
            "spoofed-address",
            vec![datagram("192.168.127.7:5000", "1.1.1.1:9", b"x")],
        ),
        (
            "spoofed-address",
            vec![datagram("11.0.0.2:5000", "1.1.1.1:9", b"x")],
        ),
        (
            "spoofed-address",
            vec![datagram("[2600:b::2]:5000", "[2606::1]:9", b"x")],
        ),
        ("spoofed-address", vec![syn("1.1.1.1:5000", "1.1.1.1:80")]),
        (
            "multicast",
            vec![datagram(GUEST, "255.255.255.255:67", b"x")],
        ),
        ("multicast", vec![datagram(GUEST, "224.0.0.251:5353", b"x")]),
        ("multicast", vec![datagram(GUEST_V6, "[ff02::1]:9", b"x")]),
        (
            "multicast",
            vec![datagram(GUEST_V6, "[::ffff:224.0.0.1]:9", b"x")],
        ),
        ("multicast", vec![syn(GUEST, "239.0.0.1:80")]),
        ("overlap", overlapping),
    ];
    for (_, frames) in &attacks {
        for frame in frames {
            lair.guest.inject(frame);
        }
    }
    // A port nobody serves, of a place that is there.
    assert!(lair.is_refused("1.1.1.1:80", 40_000));
    let (told, seen) = lair.end();
    for (reason, _) in &attacks {
        let expected = |part: &str| part == *reason;
        let count = attacks.iter().filter(|(part, _)| expected(part)).count() as u64;
        let counted = told.iter().filter_map(|line| {
            let part = format!("\"reason\":\"{reason}\",\"count\":");
            let number = line.split(&part).nth(1)?.trim_end_matches('}');
            number.parse::<u64>().ok()
        });
        assert!(
            counted.sum::<u64>() >= count,
            "{reason} in\n{}",
            told.join("\n")
        );
    }
    assert_eq!(seen, set(&["TCP 1.1.1.1:80"]));
}

/// How many bytes a server in the world got.
fn listen(world: &World, at: &str) -> Arc<AtomicUsize> {
    let at: SocketAddr = at.parse().expect("an address");
    let listener = world
        .world
        .enter(move || TcpListener::bind(at).expect("a free port"));
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    counted.fetch_add(length, Ordering::SeqCst);
                }
            });
        }
    });
    count
}

#[test]
fn a_name_is_read_however_its_bytes_come() {
    // In one segment, byte by byte, in packets cut to pieces, and both.
    for (step, cut) in [
        (usize::MAX, None),
        (1, None),
        (usize::MAX, Some(24)),
        (7, Some(8)),
    ] {
        let mut lair = Lair::new(NAMED);
        let got = listen(&lair.world, "1.1.1.1:443");
        lair.world.serve("1.1.1.1:80", page);
        assert_eq!(
            ask(&mut lair.guest, 41_000, "web.example.").answers.len(),
            1
        );
        if let Some(size) = cut {
            lair.guest.cut(size);
        }
        for (from, name, passes) in [
            (42_000, "other.example", false),
            (42_001, "web.example", true),
        ] {
            let bytes = hello(name);
            // Each piece takes a while.
            let step = if passes { step.max(40) } else { step };
            let to = "1.1.1.1:443".parse().expect("an address");
            let flow = lair.guest.connect(to, from);
            let mut sent = 0;
            let passed = lair.guest.until(flow, |socket| {
                if !socket.is_open() {
                    return Some(false);
                }
                // One piece at a time is under way.
                if socket.may_send() && sent < bytes.len() && socket.send_queue() == 0 {
                    let end = bytes.len().min(sent.saturating_add(step));
                    sent += socket.send_slice(&bytes[sent..end]).expect("it is taken");
                }
                (got.load(Ordering::SeqCst) == bytes.len()).then_some(true)
            });
            assert_eq!(passed, passes, "{name} by {step}, {cut:?}");
            assert_eq!(
                got.load(Ordering::SeqCst),
                if passes { bytes.len() } else { 0 }
            );
        }
        assert_eq!(
            fetch(&mut lair.guest, 43_000, "1.1.1.1:80", "other.example"),
            b""
        );
        let page = fetch(&mut lair.guest, 43_001, "1.1.1.1:80", "web.example");
        assert!(page.ends_with(b"hello\n"));
        let (told, _) = lair.end();
        for port in ["443", "80"] {
            let port = format!("\"port\":{port},");
            let parts = ["\"event\":\"deny\"", &port, "\"claim\":\"other.example\""];
            assert!(tells(&told, &parts), "{parts:?} in\n{}", told.join("\n"));
        }
    }
}

#[test]
fn a_port_that_is_used_again_is_judged_anew() {
    let mut lair = Lair::new(NAMED);
    let got = listen(&lair.world, "1.1.1.1:443");
    assert_eq!(
        ask(&mut lair.guest, 41_000, "web.example.").answers.len(),
        1
    );
    let to = "1.1.1.1:443".parse().expect("an address");
    let allowed = hello("web.example");
    let mut expected = 0;
    for reset in [false, true] {
        let first = lair.guest.connect(to, 42_000);
        expected += allowed.len();
        lair.guest
            .until(first, |socket| {
                socket.can_send().then(|| socket.send_slice(&allowed))
            })
            .expect("it is taken");
        lair.guest.until(first, |socket| {
            (got.load(Ordering::SeqCst) == expected).then(|| match reset {
                true => socket.abort(),
                false => socket.close(),
            })
        });
        lair.guest.until(first, |socket| {
            let over = matches!(socket.state(), State::Closed | State::TimeWait);
            over.then(|| socket.abort())
        });
        // The same four ends, at once, and another name.
        let second = lair.guest.connect(to, 42_000);
        let denied = hello("other.example");
        let mut sent = false;
        lair.guest.until(second, |socket| {
            if socket.can_send() && !sent {
                sent = true;
                socket.send_slice(&denied).expect("it is taken");
            }
            (!socket.is_open()).then_some(())
        });
        assert!(sent, "it was connected");
        assert_eq!(got.load(Ordering::SeqCst), expected);
    }
    let (told, _) = lair.end();
    let denied = |line: &&String| {
        line.contains("\"event\":\"deny\"") && line.contains("\"claim\":\"other.example\"")
    };
    assert_eq!(told.iter().filter(denied).count(), 2, "{told:#?}");
}

/// What is in a tunnel, or in pieces too small to be judged, is not looked for by the
/// addresses on the outside.
#[test]
fn neither_tunnels_nor_the_smallest_pieces_get_past_the_rules() {
    let mut lair = Lair::new("preset none\nallow tcp 80 1.1.1.1\nallow udp 9 1.1.1.1");
    let inner = datagram(GUEST, "9.9.9.9:9", b"x");
    let (source, target): (IpAddress, IpAddress) = (
        IpAddr::from([192, 168, 127, 2]).into(),
        IpAddr::from([1, 1, 1, 1]).into(),
    );
    // IPv4 in IPv4, IPv6 in IPv4, GRE, ESP, SCTP.
    let tunnels = [4, 41, 47, 50, 132].map(|protocol| {
        let ip = IpRepr::new(source, target, protocol.into(), inner.len() - 14, 64);
        frame(MAC, &ip, |bytes| bytes.copy_from_slice(&inner[14..]))
    });
    // A packet to elsewhere behind one tag of a virtual network, and behind two.
    let tagged = [1, 2].map(|tags| {
        let (addresses, packet) = inner.split_at(12);
        [addresses, &[0x81, 0, 0, 1].repeat(tags), packet].concat()
    });
    for bytes in tunnels.iter().chain(&tagged) {
        lair.guest.inject(bytes);
    }
    // The port is in the first piece, what opens a connection in the second (RFC 1858).
    let denied = "1.1.1.1:4444";
    for piece in pieces(&syn(GUEST, denied), 8) {
        lair.guest.inject(&piece);
    }
    for piece in pieces(&datagram(GUEST, denied, &[7; 64]), 8) {
        lair.guest.inject(&piece);
    }
    assert!(lair.is_refused("9.9.9.9:80", 40_000));
    let (told, seen) = lair.end();
    for protocol in ["tcp", "udp"] {
        let protocol = format!("\"proto\":\"{protocol}\"");
        let parts = ["\"event\":\"deny\"", &protocol, "\"port\":4444"];
        assert!(tells(&told, &parts), "{parts:?} in\n{}", told.join("\n"));
    }
    let dropped = |line: &String| {
        let count = line.split("\"unknown-protocol\",\"count\":").nth(1)?;
        count.trim_end_matches('}').parse::<usize>().ok()
    };
    let dropped: usize = told.iter().filter_map(dropped).sum();
    assert_eq!(dropped, tunnels.len() + tagged.len(), "{told:#?}");
    assert_eq!(seen, set(&[]));
}
