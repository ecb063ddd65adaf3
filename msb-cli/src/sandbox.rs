//! What the flags of a new sandbox come to.

use std::fs::File;
use std::io;

use msb_sdk::{EngineKind, Isolation, NetworkLimits, PullPolicy, Sandbox, SandboxBuilder};

use crate::Failure;
use crate::args::{EngineArg, IsolationArg, NetworkArgs, PullArg, SandboxArgs, TlsInterceptArg};
use crate::{network, secret};

/// Describes a sandbox.
pub(crate) fn builder(
    name: &str,
    image: &str,
    args: &SandboxArgs,
    network: &NetworkArgs,
) -> Result<SandboxBuilder, Failure> {
    let mut builder = Sandbox::builder(name)
        .image(image)
        .cpus(args.cpus)
        .memory_mib(args.memory)
        .pull(match args.pull {
            PullArg::Missing => PullPolicy::Missing,
            PullArg::Always => PullPolicy::Always,
            PullArg::Never => PullPolicy::Never,
        })
        .network(network::policy(network)?)
        .network_limits(NetworkLimits {
            upload: network.upload,
            download: network.download,
            opens: network.opens,
        });
    if let Some(file) = &network.pcap {
        builder = builder.capture(file);
    }
    for server in &network.dns {
        builder = builder.resolver(*server);
    }
    for ports in &network.publish {
        builder = builder.publish(ports);
    }
    for secret in secret::secrets(&network.secret)? {
        builder = builder.secret(secret);
    }
    if let Some(TlsInterceptArg::All) = network.tls_intercept {
        builder = builder.tls_intercept_all();
    }
    for host in &network.tls_passthrough {
        builder = builder.tls_passthrough(host);
    }
    for file in &network.tls_ca {
        builder = builder.tls_authority(file);
    }
    for (key, value) in args.env.iter().filter_map(|entry| variable(entry)) {
        builder = builder.env(key, value);
    }
    if let Some(workdir) = &args.workdir {
        builder = builder.workdir(workdir);
    }
    if let Some(user) = &args.user {
        builder = builder.user(user);
    }
    if let Some(mib) = args.disk {
        builder = builder.disk_mib(mib);
    }
    if let Some(level) = args.min_isolation {
        builder = builder.min_isolation(match level {
            IsolationArg::Hardware => Isolation::Hardware,
            IsolationArg::Emulated => Isolation::Emulated,
        });
    }
    if let Some(engine) = args.engine {
        builder = builder.engine(match engine {
            EngineArg::Krun => EngineKind::Krun,
            EngineArg::Qemu => EngineKind::Qemu,
        });
    }
    Ok(builder)
}

/// A variable from `KEY=VALUE`, or from `KEY` with the value that it has here. As container
/// tools do it, what is not set here is not set there.
pub(crate) fn variable(entry: &str) -> Option<(String, String)> {
    match entry.split_once('=') {
        Some((key, value)) => Some((key.to_owned(), value.to_owned())),
        None => Some((entry.to_owned(), std::env::var(entry).ok()?)),
    }
}

/// A name that no other sandbox of this host has: 64 random bits.
pub(crate) fn unique_name() -> Result<String, Failure> {
    let mut bytes = [0; 8];
    io::Read::read_exact(
        &mut File::open("/dev/urandom").map_err(|error| no_random(&error))?,
        &mut bytes,
    )
    .map_err(|error| no_random(&error))?;
    Ok(format!("run-{:016x}", u64::from_le_bytes(bytes)))
}

fn no_random(error: &io::Error) -> Failure {
    Failure::Usage {
        message: format!("cannot read /dev/urandom: {error}"),
        hint: None,
    }
}
