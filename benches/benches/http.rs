//! What it costs that requests are read: through `msb-net`, which reads them because a
//! rule is about requests, through the same path without such a rule, and through
//! mitmproxy, with the same server and loads, in turn.
//!
//! Ours runs as the example `jail`, with a user-mode network between; mitmproxy is
//! spoken to directly. All verify the server and speak TLS on both sides.
//!
//! `MSB_BENCH_HTTP` chooses what is measured: the words of one of its parts, which commas
//! separate, must all be words of a row's name.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use msb_benches::conditions::Conditions;
use msb_benches::http::{Load, Mitmproxy, Server, Version};
use msb_benches::net::Lab;
use msb_benches::program;
use msb_benches::report::{self, Unit};
use msb_benches::versus::{self, Better, Versus};
use msb_benches::wanted::Wanted;

const LOADS: [(&str, Load, Unit, Better); 3] = [
    ("requests", Load::Requests, Unit::PerSecond, Better::More),
    ("download", Load::Download, Unit::MibPerSecond, Better::More),
    ("one request", Load::Latency, Unit::Micros, Better::Less),
];

const VERSIONS: [(&str, Version); 2] = [("HTTP/1.1", Version::One), ("HTTP/2", Version::Two)];

fn main() -> Result<()> {
    let conditions = Conditions::look()?;
    program::require(&[
        "h2load", "ip", "nginx", "nsenter", "openssl", "python3", "setpriv",
    ])?;
    let scratch = conditions.scratch()?;
    let mitmdump = Mitmproxy::install(&conditions.kept("mitmproxy"))?;
    let jail = conditions.example("jail")?;
    let lab = Lab::new()?;
    let server = Server::start(&lab, scratch.path())?;
    let _proxy = Mitmproxy::start(&lab, &mitmdump, &server)?;
    let bench = Bench {
        jail,
        lab,
        server,
        time: Duration::from_secs(if conditions.quick { 1 } else { 5 }),
    };
    let wanted = Wanted::read("MSB_BENCH_HTTP");
    let mut results = Vec::new();
    for (version_name, version) in VERSIONS {
        for (name, load, unit, better) in LOADS {
            let name = format!("{name}, {version_name}");
            if !wanted.has(&name) {
                continue;
            }
            println!("measuring {name} …");
            let mut against = Versus::new(&name, unit, better, &["read", "mitmproxy"]);
            let name = format!("{name}, as not read");
            let mut cost = Versus::new(&name, unit, better, &["read", "not read"]);
            for _ in 0..conditions.rounds(1, 3) {
                let read = load.run(&mut bench.jailed(load, version, true))?;
                against.push(0, read);
                cost.push(0, read);
                cost.push(1, load.run(&mut bench.jailed(load, version, false))?);
                against.push(1, load.run(&mut bench.proxied(load, version))?);
            }
            results.extend([against, cost]);
        }
    }
    let (against, cost): (Vec<_>, Vec<_>) = results
        .into_iter()
        .enumerate()
        .partition(|(n, _)| n % 2 == 0);
    let [against, cost] = [against, cost].map(|part| {
        let part = part.into_iter().map(|(_, versus)| versus);
        part.collect::<Vec<_>>()
    });
    println!("\n{}\n{}", versus::table(&against), versus::table(&cost));
    let lines: Vec<_> = against.iter().chain(&cost).map(Versus::json).collect();
    report::write_lines(&conditions.kept("http.json"), &conditions.json(), &lines)
}

struct Bench {
    jail: PathBuf,
    lab: Lab,
    server: Server,
    time: Duration,
}

impl Bench {
    /// A load behind our gateway, which reads requests or not.
    fn jailed(&self, load: Load, version: Version, read: bool) -> Command {
        let mut command = self.lab.host.command(&self.jail);
        command.args(["--resolver", "1.1.1.1", "--extra-roots"]);
        command.arg(self.server.authority());
        if read {
            command.args(["--rule", "deny http DELETE any"]);
        }
        command.args(["--", "h2load"]);
        command.args(load.arguments(version, Server::address(), self.time));
        command
    }

    fn proxied(&self, load: Load, version: Version) -> Command {
        let mut command = self.lab.host.command("h2load");
        command.args(load.arguments(version, Mitmproxy::address(), self.time));
        command
    }
}
