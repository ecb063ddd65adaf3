//! Gives network to every VMM that speaks the stream framing: QEMU, libkrun,
//! passt's clients.
//!
//! ```text
//! cargo run -p msb-net --example gateway -- --listen /run/net.sock --policy FILE --events -
//! qemu-system-x86_64 … -netdev stream,id=n,addr.type=unix,addr.path=/run/net.sock -device virtio-net-device,netdev=n
//! ```
//!
//! Each connection is one guest and has a gateway of its own. The guest must use
//! the addresses that are shown when the gateway starts. It serves until SIGINT or
//! SIGTERM, and then removes its socket.

#[path = "../cli/mod.rs"]
mod cli;
mod socket;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use msb_net::gateway::Config;
use msb_net::shell::{Events, Link, Network, Options};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::ResolverArgs;
use crate::cli::capture::CaptureArgs;
use crate::cli::journal::Journal;
use crate::cli::policy::PolicyArgs;
use crate::socket::Socket;

/// Guests at once: each may use as much memory as its limits allow, and has a
/// thread.
const MAX_GUESTS: usize = 256;

/// How long nobody is accepted after somebody could not be.
const BREATH: Duration = Duration::from_millis(100);

/// Gives network to every VMM that connects to a socket: QEMU's
/// `-netdev stream`, libkrun, passt's clients.
#[derive(Parser)]
#[command(name = "gateway", max_term_width = 100)]
struct Args {
    /// Where VMMs connect
    #[arg(long, value_name = "SOCKET")]
    listen: PathBuf,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    resolver: ResolverArgs,
    /// Writes each decision as a line of JSON to FILE, or to standard error if
    /// FILE is "-"
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    #[command(flatten)]
    capture: CaptureArgs,
    /// The largest IP packet on the guests' links
    #[arg(long, value_name = "BYTES", default_value_t = 65_520,
          value_parser = clap::value_parser!(u16).range(1280..=65_520))]
    mtu: u16,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    cli::raise_descriptors();
    cli::give_back_memory();
    let mut config = cli::config(args.policy.read()?, &args.resolver)?;
    config.mtu = args.mtu;
    let journal = Journal::open(args.events.as_deref())?;
    // A place where none can be written is told of before the first guest comes.
    drop(args.capture.open(1)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(args, &config, &journal))
}

async fn serve(args: &Args, config: &Config, journal: &Journal) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let socket = Socket::listen(&args.listen)?;
    println!(
        "listening on {}; guests use {} and {}, gateways {} and {}, MTU {}",
        args.listen.display(),
        config.guest_v4,
        config.guest_v6,
        config.gateway_v4,
        config.gateway_v6,
        config.mtu
    );
    let (stop, stopping) = watch::channel(());
    let mut guests = JoinSet::new();
    let mut count = 0;
    loop {
        tokio::select! {
            stream = socket.accept(), if guests.len() < MAX_GUESTS => {
                count += 1;
                // What is wrong with one guest, or at one moment, ends no other's network.
                let started = stream.and_then(|stream| start(args, config, count, stream));
                match started {
                    Ok((network, events)) => {
                        let guest = Guest {
                            number: count,
                            journal: journal.clone(),
                            stopping: stopping.clone(),
                        };
                        guests.spawn(guest.serve(network, events));
                    }
                    Err(error) => {
                        eprintln!("guest {count}: {error:#}");
                        // Whoever waits to be accepted waits on if there is no descriptor.
                        tokio::time::sleep(BREATH).await;
                    }
                }
            }
            Some(_) = guests.join_next() => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    drop(stop);
    while guests.join_next().await.is_some() {}
    Ok(())
}

fn start(
    args: &Args,
    config: &Config,
    guest: u64,
    stream: UnixStream,
) -> anyhow::Result<(Network, Events)> {
    // No two guests share a seed: sequence numbers of one say nothing about those of
    // another.
    let config = cli::config(config.policy.clone(), &args.resolver)?;
    let mut options = Options::new(Config {
        mtu: args.mtu,
        ..config
    });
    options.capture = args.capture.open(guest)?;
    let link = Link::stream(stream.into_std()?);
    Network::spawn(options, link).context("cannot start a gateway")
}

/// One connection.
struct Guest {
    number: u64,
    journal: Journal,
    stopping: watch::Receiver<()>,
}

impl Guest {
    /// Writes what happens, until the guest is gone or everything stops.
    async fn serve(mut self, network: Network, mut events: Events) {
        let mut network = Some(network);
        let policy = network.as_ref().map(|network| network.policy().clone());
        let policy = policy.unwrap_or_default();
        loop {
            tokio::select! {
                entry = events.recv() => match entry {
                    Some(entry) => self.journal.write(|| {
                        let line = entry.to_json(&policy);
                        format!("{{\"guest\":{},{}", self.number, &line[1..])
                    }),
                    None => return,
                },
                // An error says that the sender is gone: the sign to stop. What
                // the gateway still has to tell is read first.
                _ = self.stopping.changed(), if network.is_some() => drop(network.take()),
            }
        }
    }
}
