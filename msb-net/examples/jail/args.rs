//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use crate::cli::ResolverArgs;
use crate::cli::capture::CaptureArgs;
use crate::cli::policy::PolicyArgs;

/// Runs a program whose only way to the network is a gateway with a policy.
///
/// The program runs as the caller, in a network of its own: one interface,
/// net0, and behind it a gateway that decides about every packet. Name servers
/// are those of the gateway. Files are the caller's.
///
/// The exit status is the program's; 128 + N if signal N ended it; 127 if it was
/// not found, 126 if it could not be executed, 125 if the jail failed.
#[derive(Parser)]
#[command(name = "jail", max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    #[command(flatten)]
    pub(crate) resolver: ResolverArgs,
    /// Offers a port of the program on this host, on 127.0.0.1 unless BIND says
    /// otherwise; HOST 0 is any free port, and both ports may be ranges
    #[arg(short, long, value_name = "[BIND:]HOST:GUEST[/udp]")]
    pub(crate) publish: Vec<String>,
    /// Writes each decision as a line of JSON to FILE, or to standard error if
    /// FILE is "-"
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) capture: CaptureArgs,
    /// Where rules about requests have TLS read, trusts the certificate authorities in
    /// FILE (PEM) as well
    #[arg(long, value_name = "FILE")]
    pub(crate) extra_roots: Option<PathBuf>,
    /// The largest IP packet on the program's interface
    #[arg(long, value_name = "BYTES", default_value_t = 65_520,
          value_parser = clap::value_parser!(u16).range(1280..=65_520))]
    pub(crate) mtu: u16,
    /// The most the program may send each second
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) upload: Option<u64>,
    /// The most the program may receive each second
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) download: Option<u64>,
    /// The most connections and datagram flows that may be opened each second
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) opens: Option<u32>,
    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}

impl Args {
    /// Reads the arguments of this process; help and mistakes end it.
    pub(crate) fn read() -> anyhow::Result<Self> {
        Self::try_parse().map_err(|error| {
            // Mistakes must not look like an exit status of the program.
            let _ = error.print();
            std::process::exit(if error.use_stderr() { 125 } else { 0 })
        })
    }
}
