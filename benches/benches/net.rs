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
//! `MSB_BENCH_NET` chooses what is measured: the words of one of its parts, which commas
//! separate, must all be words of a row's name.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context as _, Result};
use msb_benches::conditions::Conditions;
use msb_benches::net::{
    BRIDGED, CONTENDERS, Contender, Idle, Lab, Load, Programs, Running, Servers, Way,
};
use msb_benches::program;
use msb_benches::report::{self, Unit};
use msb_benches::versus::{self, Better, Versus};
use msb_benches::wanted::Wanted;
use serde_json::Value;

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

/// How wide the rows' names are shown.
const WIDTH: usize = 58;

/// Where results are kept, among those of the other benchmarks.
const FILE: &str = "net.json";

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
        conditions: &conditions,
        programs: Programs {
            jail: conditions.example("jail")?,
            gateway: conditions.example("gateway")?,
        },
        lab,
        time: Duration::from_secs(if conditions.quick { 1 } else { 2 }),
        rounds: conditions.rounds(1, 3),
        wanted: Wanted::read("MSB_BENCH_NET"),
        lines: RefCell::default(),
    };
    for mtu in MTUS {
        bench.traffic(mtu, &CONTENDERS, "")?;
    }
    bench.rest()?;
    let bridged: Vec<_> = BRIDGED.into_iter().filter(|own| own.is_there()).collect();
    bench.traffic(BRIDGED_MTU, &bridged, ", bridged")?;
    println!("written to {}", conditions.kept(FILE).display());
    Ok(())
}

struct Bench<'a> {
    conditions: &'a Conditions,
    programs: Programs,
    lab: Lab,
    /// How long one measurement takes.
    time: Duration,
    rounds: usize,
    wanted: Wanted,
    /// What was measured, for the file.
    lines: RefCell<Vec<Value>>,
}

impl Bench<'_> {
    /// Shows a row and keeps it, so that a run that is cut short tells of what it did.
    fn tell(&self, versus: &Versus) -> Result<()> {
        println!("{}", versus::line(versus, WIDTH));
        let mut lines = self.lines.borrow_mut();
        lines.push(versus.json());
        report::keep_lines(&self.conditions.kept(FILE), &self.conditions.json(), &lines)
    }

    fn start(&self, contender: Contender, mtu: u16) -> Result<Running> {
        contender.start(&self.lab, &self.programs, mtu)
    }

    /// All loads with one MTU. What is measured is called so at the end.
    fn traffic(&self, mtu: u16, contenders: &[Contender], end: &str) -> Result<()> {
        let small: &[_] = if mtu == MTUS[1] { &[] } else { &SMALL };
        let all = BULK.iter().chain(std::iter::once(&UDP_DOWN)).chain(small);
        let mut running = Vec::new();
        for (name, load) in all {
            let name = format!("{name}, MTU {mtu}{end}");
            if !self.wanted.has(&name) {
                continue;
            }
            if running.is_empty() {
                for contender in contenders {
                    running.push((*contender, self.start(*contender, mtu)?));
                }
                let names: Vec<_> = contenders.iter().map(|own| own.name()).collect();
                println!("\n{}", versus::head(&names, WIDTH));
            }
            self.rounds(&name, *load, &running)?;
        }
        Ok(())
    }

    /// One load, in turn for each contender, some rounds.
    fn rounds(&self, name: &str, load: Load, running: &[(Contender, Running)]) -> Result<()> {
        let names: Vec<_> = running.iter().map(|(own, _)| own.name()).collect();
        let (unit, better) = match load {
            Load::Tcp(..) | Load::Udp(_) => (Unit::Gigabits, Better::More),
            Load::PingPong => (Unit::Micros, Better::Less),
            _ => (Unit::PerSecond, Better::More),
        };
        let mut figure = Versus::new(name, unit, better, &names);
        let name = format!("  processor time, {name}");
        let mut cost = Versus::new(&name, Unit::SecondsPerGigabyte, Better::Less, &names);
        // Some give up only after a long wait: once is enough.
        let mut failed = vec![false; running.len()];
        // Some are busy long after their load has ended, at the cost of who is next.
        for (_, gateway) in running {
            gateway.hold()?;
        }
        for _ in 0..self.rounds {
            for (number, (contender, gateway)) in running.iter().enumerate() {
                if failed[number] {
                    continue;
                }
                let _held = gateway.let_go()?;
                let before = gateway.cpu()?;
                let value = match load.run(&self.lab, &gateway.guest, self.time) {
                    Ok(value) => value,
                    Err(error) => {
                        println!("{} failed: {error:#}", contender.name());
                        failed[number] = true;
                        continue;
                    }
                };
                figure.push(number, value);
                let gigabytes = value / 8.0 * self.time.as_secs_f64();
                cost.push(number, (gateway.cpu()? - before) / gigabytes);
            }
        }
        self.tell(&figure)?;
        if matches!(load, Load::Tcp(_, 1)) {
            self.tell(&cost)?;
        }
        Ok(())
    }

    /// The memory of gateways that have just started and carry idle connections, and the
    /// processor time they take when nothing happens.
    fn rest(&self) -> Result<()> {
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
        if !self.wanted.has("memory and processor time with idle flows") {
            return Ok(());
        }
        println!(
            "\n{}",
            versus::head(&CONTENDERS.map(Contender::name), WIDTH)
        );
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
        results.iter().try_for_each(|result| self.tell(result))
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
