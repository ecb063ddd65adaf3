//! What a guest's network can do, through `msb-net` and through others of its
//! kind, with the same host, servers and loads, in turn:
//!
//! - those that are given a TAP device: the example `jail`, `slirp4netns`, `pasta`;
//! - those that speak the framing of QEMU's sockets, behind the same bridge to a TAP
//!   device: the example `gateway`, `passt`, and gvisor-tap-vsock (`gvproxy`) where it
//!   is installed: Debian has it since 13.
//!
//! Peers have the settings they are usually fast with. Ours has its default policy,
//! so every flow is judged.
//!
//! `MSB_BENCH_NET=words` measures only what has one of these words in its name.

use std::time::Duration;

use anyhow::{Context as _, Result};
use msb_benches::conditions::Conditions;
use msb_benches::net::{
    BRIDGED, CONTENDERS, Contender, Idle, Lab, Load, Programs, Running, Servers, Way,
};
use msb_benches::program;
use msb_benches::report::{self, Unit};
use msb_benches::versus::{self, Better, Versus};

/// The largest packet that each of them can have, and that of most networks.
const MTUS: [u16; 2] = [65_520, 1500];

/// Behind the bridge: QEMU 7.2 carries no packets of 65,520 bytes from one of its back
/// ends to the other.
const BRIDGED_MTU: u16 = 32_000;

/// Idle connections whose memory is measured.
const IDLE: [usize; 2] = [1000, 10_000];

/// With so many of them the gateway's rest is measured.
const AT_REST: usize = IDLE[0];

/// Bulk data is measured at each MTU, and the processor time it costs with it.
const BULK: [(&str, Load); 7] = [
    ("TCP up, 1 flow", Load::Tcp(Way::Up, 1)),
    ("TCP down, 1 flow", Load::Tcp(Way::Down, 1)),
    ("TCP up, 8 flows", Load::Tcp(Way::Up, 8)),
    ("TCP down, 8 flows", Load::Tcp(Way::Down, 8)),
    ("TCP up, 64 flows", Load::Tcp(Way::Up, 64)),
    ("TCP down, 64 flows", Load::Tcp(Way::Down, 64)),
    ("UDP up, 1,400 bytes", Load::Udp(Way::Up)),
];

const UDP_DOWN: (&str, Load) = ("UDP down, 1,400 bytes", Load::Udp(Way::Down));

/// The rest is not measured at the small MTU: the packets are small.
const SMALL: [(&str, Load); 7] = [
    ("connects, 8 at a time", Load::Connects),
    ("HTTP requests, 64 connections kept", Load::KeepAlive(64)),
    (
        "HTTP requests, 2,000 connections kept",
        Load::KeepAlive(2000),
    ),
    ("HTTP requests, a connection each", Load::NewConnections),
    ("HTTP/2 requests, 8 × 32 streams", Load::Http2),
    ("DNS queries, 100 names", Load::Dns),
    ("1 byte there and back", Load::PingPong),
];

fn main() -> Result<()> {
    let conditions = Conditions::look()?;
    program::require(&[
        "dnsmasq",
        "dnsperf",
        "h2load",
        "ip",
        "iperf3",
        "nginx",
        "nsenter",
        "passt",
        "pasta",
        "qemu-system-x86_64",
        "setpriv",
        "slirp4netns",
        "sysctl",
        "unshare",
        "wrk",
    ])?;
    let scratch = conditions.scratch()?;
    let lab = Lab::new()?;
    let _servers = Servers::start(&lab, scratch.path())?;
    let bench = Bench {
        programs: Programs {
            jail: conditions.example("jail")?,
            gateway: conditions.example("gateway")?,
        },
        lab,
        time: Duration::from_secs(if conditions.quick { 1 } else { 3 }),
        rounds: conditions.rounds(1, 3),
        wanted: std::env::var("MSB_BENCH_NET").unwrap_or_default(),
    };
    let mut results = Vec::new();
    for mtu in MTUS {
        results.extend(bench.traffic(mtu, &CONTENDERS, "")?);
    }
    results.extend(bench.rest()?);
    println!("\n{}", versus::table(&results));
    let bridged: Vec<_> = BRIDGED.into_iter().filter(|own| own.is_there()).collect();
    let bridged = bench.traffic(BRIDGED_MTU, &bridged, ", bridged")?;
    println!("\n{}", versus::table(&bridged));
    results.extend(bridged);
    let lines: Vec<_> = results.iter().map(Versus::json).collect();
    report::write_lines(&conditions.kept("net.json"), &conditions.json(), &lines)
}

struct Bench {
    programs: Programs,
    lab: Lab,
    /// How long one measurement takes.
    time: Duration,
    rounds: usize,
    /// Words one of which must be in a measurement's name, if there are any.
    wanted: String,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        let mut words = self.wanted.split_whitespace().peekable();
        words.peek().is_none() || words.any(|word| name.contains(word))
    }

    fn start(&self, contender: Contender, mtu: u16) -> Result<Running> {
        contender.start(&self.lab, &self.programs, mtu)
    }

    /// All loads with one MTU. What is measured is called so at the end.
    fn traffic(&self, mtu: u16, contenders: &[Contender], end: &str) -> Result<Vec<Versus>> {
        let small: &[_] = if mtu == MTUS[1] { &[] } else { &SMALL };
        let all = BULK.iter().chain(std::iter::once(&UDP_DOWN)).chain(small);
        let mut results = Vec::new();
        let mut running = Vec::new();
        for (name, load) in all {
            let name = format!("{name}, MTU {mtu}{end}");
            if !self.wants(&name) {
                continue;
            }
            println!("measuring {name} …");
            if running.is_empty() {
                for contender in contenders {
                    running.push((*contender, self.start(*contender, mtu)?));
                }
            }
            results.extend(self.rounds(&name, *load, &running)?);
        }
        Ok(results)
    }

    /// One load, in turn for each contender, some rounds.
    fn rounds(
        &self,
        name: &str,
        load: Load,
        running: &[(Contender, Running)],
    ) -> Result<Vec<Versus>> {
        let names: Vec<_> = running.iter().map(|(own, _)| own.name()).collect();
        let (unit, better) = match load {
            Load::Tcp(..) | Load::Udp(_) => (Unit::Gigabits, Better::More),
            Load::PingPong => (Unit::Micros, Better::Less),
            _ => (Unit::PerSecond, Better::More),
        };
        let mut figure = Versus::new(name, unit, better, &names);
        let name = format!("  processor time, {name}");
        let mut cost = Versus::new(&name, Unit::SecondsPerGigabyte, Better::Less, &names);
        for _ in 0..self.rounds {
            for (number, (contender, gateway)) in running.iter().enumerate() {
                let before = gateway.cpu()?;
                let value = match load.run(&gateway.guest, self.time) {
                    Ok(value) => value,
                    Err(error) => {
                        println!("{} failed: {error:#}", contender.name());
                        continue;
                    }
                };
                figure.push(number, value);
                let gigabytes = value / 8.0 * self.time.as_secs_f64();
                cost.push(number, (gateway.cpu()? - before) / gigabytes);
            }
        }
        let costs = matches!(load, Load::Tcp(_, 1));
        Ok(std::iter::once(figure)
            .chain(costs.then_some(cost))
            .collect())
    }

    /// The memory of gateways that have just started and carry idle connections, and the
    /// processor time they take when nothing happens.
    fn rest(&self) -> Result<Vec<Versus>> {
        let mut results: Vec<_> = IDLE
            .iter()
            .map(|count| {
                versus(
                    &format!("memory with {count} idle flows"),
                    Unit::Mib,
                    Better::Less,
                )
            })
            .collect();
        let name = format!("processor time a second with {AT_REST} idle flows");
        let mut time = versus(&name, Unit::Micros, Better::Less);
        if !self.wants("memory and processor time with idle flows") {
            return Ok(Vec::new());
        }
        println!("measuring memory and rest …");
        for (number, contender) in CONTENDERS.into_iter().enumerate() {
            let gateway = self.start(contender, MTUS[0])?;
            let mut idle = Idle::new(&gateway.guest);
            for (count, result) in IDLE.into_iter().zip(&mut results) {
                match idle.grow(count) {
                    Ok(()) => {
                        if count == AT_REST {
                            time.push(number, self.time_at_rest(&gateway)?);
                        }
                        result.push(number, gateway.memory().context("no memory")?);
                    }
                    Err(error) => {
                        println!("{} failed: {error:#}", contender.name());
                        break;
                    }
                }
            }
        }
        results.push(time);
        Ok(results)
    }

    /// Processor time that a gateway takes in a second when nothing happens.
    fn time_at_rest(&self, gateway: &Running) -> Result<f64> {
        // What opened the connections is answered and acknowledged by then.
        std::thread::sleep(self.time);
        let before = gateway.fine_cpu()?;
        let time = 4 * self.time;
        std::thread::sleep(time);
        Ok((gateway.fine_cpu()? - before) / time.as_secs_f64())
    }
}

fn versus(name: &str, unit: Unit, better: Better) -> Versus {
    Versus::new(name, unit, better, &CONTENDERS.map(Contender::name))
}
