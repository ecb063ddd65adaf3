//! What `net` measures with: namespaces, gateways in them, servers and loads.
//!
//! ```text
//!   guest: loads ── TAP ── gateway: host 11.0.0.2 ── veth ── 11.0.0.1, 1.1.1.1: servers, world
//! ```
//!
//! Nothing here is joined to a network: the addresses are made up, and the
//! namespaces end with the benchmark. Every load is bounded in time and number.

mod bridge;
mod contender;
mod lab;
mod load;
mod servers;

pub use self::contender::{BRIDGED, CONTENDERS, Contender, LetGo, Programs, Running};
pub use self::lab::{Lab, Namespace};
pub use self::load::{Idle, Load, Way};
pub use self::servers::Servers;

use std::net::{Ipv4Addr, SocketAddrV4};

/// The servers' address: a public one, so that every policy's public preset allows it.
const SERVER: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

const HTTP: u16 = 80;
const HTTP2: u16 = 81;
/// Sends back what comes.
const ECHO: u16 = 7;
/// Closes every connection at once.
const CLOSER: u16 = 9;
const IPERF: u16 = 5201;

/// Every name below it has an address.
const DOMAIN: &str = "bench.example";

fn server(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(SERVER, port)
}
