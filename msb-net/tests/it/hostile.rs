//! Frames of a guest that means harm, as fast as they can be written, while one of its
//! connections goes on.
//!
//! With `MSB_HOSTILE_FRAMES` set to a number, so many are sent.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use msb_net::gateway::Config;
use msb_net::policy::Policy;

use crate::attacks::{datagram, echo, syn};
use crate::gateway_example::listening;
use crate::guest::{Guest, pieces};
use crate::world::World;

/// Enough to fill every table once.
const FRAMES: u64 = 40_000;

/// Frames between two looks at the connection.
const BURST: u64 = 500;

/// What the process may take at most, in KiB: what its limits add up to for flows that
/// move nothing, and much less than a copy of each frame.
const MEMORY: u64 = 256 * 1024;

/// A small generator (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20
    }

    fn frame(&mut self) -> Vec<u8> {
        let number = self.next();
        let port = 1024 + (number >> 8) % 38_000;
        let from = format!("192.168.127.2:{port}");
        let to = format!(
            "1.1.{}.{}:{}",
            number % 7,
            number % 251,
            1 + (number >> 4) % 60_000
        );
        let mut frame = match number % 8 {
            0 | 1 => syn(&from, &to),
            2 => datagram(&from, &to, &[7; 200]),
            3 => datagram(&from, "9.9.9.9:53", &number.to_be_bytes().repeat(4)),
            4 => echo("1.1.1.1", &number.to_be_bytes()),
            // Pieces of which there are never all.
            5 => {
                let mut frame = pieces(&datagram(&from, &to, &[7; 4000]), 1400).remove(1);
                let mut packet = smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]);
                packet.set_ident(number as u16);
                packet.fill_checksum();
                frame
            }
            6 => (0..number % 200).map(|_| self.next() as u8).collect(),
            _ => syn(
                "[fd6d:7362::2]:1024",
                &format!("[2606::{:x}]:80", number % 60_000),
            ),
        };
        // Every other one is broken somewhere behind the link header.
        if number & 0x1000 != 0 && frame.len() > 20 {
            let at = 12 + self.next() as usize % (frame.len() - 12);
            frame[at] ^= self.next() as u8;
        }
        frame
    }
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// The most memory that the process ever had, in KiB.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.0.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }
}

#[test]
fn a_flood_of_hostile_frames_takes_bounded_memory_and_starves_nobody() {
    let frames = match std::env::var("MSB_HOSTILE_FRAMES") {
        Ok(number) => number.parse().expect("a number"),
        Err(_) => FRAMES,
    };
    let world = World::new();
    let at: std::net::SocketAddr = "1.1.1.1:80".parse().expect("an address");
    let listener = world
        .world
        .enter(move || TcpListener::bind(at).expect("a free port"));
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("a client");
        let mut bytes = [0; 1000];
        while let Ok(length @ 1..) = peer.read(&mut bytes) {
            peer.write_all(&bytes[..length]).expect("it is taken");
        }
    });
    let socket = world.folder.path().join("socket");
    let mut command = world.host.command(world.example("gateway"));
    command
        .arg("--listen")
        .arg(&socket)
        .args(["--net", "allow-all"]);
    // Nobody reads the events.
    let child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn();
    let mut gateway = Running(child.expect("it starts"));
    listening(&mut gateway.0);

    let stream = UnixStream::connect(&socket).expect("it takes guests");
    let mut guest = Guest::new(&Config::new(Policy::none(), 1), stream);
    let flow = guest.connect(at, 40_000);
    guest.until(flow, |socket| socket.may_send().then_some(()));
    let mut dice = Dice(0x5eed);
    let mut sent = 0;
    while sent < frames {
        for _ in 0..BURST {
            guest.inject(&dice.frame());
        }
        sent += BURST;
        let word = sent.to_be_bytes();
        guest.until(flow, |socket| socket.send_slice(&word).ok());
        let mut answer = [0; 8];
        let mut got = 0;
        guest.until(flow, |socket| {
            got += socket.recv_slice(&mut answer[got..]).expect("it is open");
            (got == answer.len()).then_some(())
        });
        assert_eq!(answer, word);
    }
    let memory = gateway.memory();
    assert!(memory < MEMORY, "{memory} KiB");
    if frames != FRAMES {
        eprintln!("{sent} frames, at most {memory} KiB");
    }
    drop(guest);
    drop(gateway);
    server.join().expect("the server ended");
}
