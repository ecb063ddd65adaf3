//! What the flags of a new sandbox come to.

use std::fs::File;
use std::io;
use std::path::Path;

use msb_sdk::{
    EngineKind, Error, Home, Images, Isolation, PullPolicy, Sandbox, SandboxBuilder, SandboxSpec,
};

use crate::Failure;
use crate::args::{
    EngineArg, IsolationArg, NetworkArgs, PullArg, ReplaceArgs, SandboxArgs, TlsInterceptArg,
};
use crate::commands::{rm, stop};
use crate::progress::Display;
use crate::{network, secret};

/// How often a sandbox that others make, start or remove at the same time is looked for.
const MAX_ATTEMPTS: usize = 5;

/// What a file says, or the defaults; name and image of the command line go ahead.
pub(crate) fn spec(
    file: Option<&Path>,
    name: Option<&str>,
    image: Option<&str>,
) -> Result<SandboxSpec, Failure> {
    let mut spec = match file {
        Some(file) => SandboxSpec::from_file(file)?,
        None => SandboxSpec::default(),
    };
    if let Some(name) = name {
        name.clone_into(&mut spec.name);
    }
    if let Some(image) = image {
        image.clone_into(&mut spec.image);
    }
    match file {
        Some(file) if spec.image.is_empty() => Err(Failure::Usage {
            message: format!("{} names no image", file.display()),
            hint: Some("add a line such as `image: python:3.12`".into()),
        }),
        _ => Ok(spec),
    }
}

/// Puts what the flags say over a description.
pub(crate) fn builder(
    mut spec: SandboxSpec,
    args: &SandboxArgs,
    network: &NetworkArgs,
) -> Result<SandboxBuilder, Failure> {
    if let Some(cpus) = args.cpus {
        spec.cpus = cpus;
    }
    if let Some(memory) = args.memory {
        spec.memory_mib = memory;
    }
    let limits = &mut spec.network_limits;
    limits.upload = network.upload.or(limits.upload);
    limits.download = network.download.or(limits.download);
    limits.opens = network.opens.or(limits.opens);
    spec.network = network::policy(network, spec.network)?;
    let mut builder = SandboxBuilder::from(spec).pull(pull_policy(args.pull));
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

fn pull_policy(arg: PullArg) -> PullPolicy {
    match arg {
        PullArg::Missing => PullPolicy::Missing,
        PullArg::Always => PullPolicy::Always,
        PullArg::Never => PullPolicy::Never,
    }
}

/// Removes a sandbox that has the name of a new one, where that is asked for: not before the new
/// one's description holds and its image is here.
pub(crate) async fn make_room(
    builder: &SandboxBuilder,
    args: &SandboxArgs,
    replace: &ReplaceArgs,
) -> Result<(), Failure> {
    let Some(grace) = replace.grace() else {
        return Ok(());
    };
    let spec = builder.spec();
    spec.validate()?;
    let images = Images::open(&Home::from_env()?)?;
    let display = Display::new(&spec.image, args.quiet);
    let shown = display.clone();
    let show = move |event| shown.pull(&event);
    let image = images.pull(&spec.image, pull_policy(args.pull), show).await;
    display.finish();
    image?;
    match Sandbox::get(&spec.name).await {
        Err(Error::NoSandbox { .. }) => return Ok(()),
        other => stop::end(&other?, grace, grace.is_zero()).await?,
    }
    rm::remove(&spec.name, true).await
}

/// Connects to a sandbox. With a file, one that does not run is started, and one that there is
/// not is made.
pub(crate) async fn open(name: &str, file: Option<&Path>, quiet: bool) -> Result<Sandbox, Failure> {
    let Some(file) = file else {
        return Ok(Sandbox::get(name).await?.connect().await?);
    };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let error = match open_once(name, file, quiet).await {
            Err(Failure::Sandbox(error)) => error,
            other => return other,
        };
        let overtaken = matches!(
            error,
            Error::NameTaken { .. }
                | Error::NameKept { .. }
                | Error::NoSandbox { .. }
                | Error::NotRunning { .. }
        );
        if !overtaken || attempt == MAX_ATTEMPTS {
            return Err(error.into());
        }
    }
}

async fn open_once(name: &str, file: &Path, quiet: bool) -> Result<Sandbox, Failure> {
    let handle = match Sandbox::get(name).await {
        Err(Error::NoSandbox { .. }) => {
            let spec = spec(Some(file), Some(name), None)?;
            let display = Display::new(&spec.image, quiet);
            let shown = display.clone();
            let builder = SandboxBuilder::from(spec).on_progress(move |step| shown.show(&step));
            let sandbox = builder.create_detached().await;
            display.finish();
            return Ok(sandbox?);
        }
        other => other?,
    };
    match handle.connect().await {
        Err(Error::NotRunning { .. }) => Ok(handle.start().await?),
        other => Ok(other?),
    }
}

/// A variable from `KEY=VALUE`, or from `KEY` with the value that it has here. As container
/// tools do it, what is not set here is not set there.
pub(crate) fn variable(entry: &str) -> Option<(String, String)> {
    match entry.split_once('=') {
        Some((key, value)) => Some((key.to_owned(), value.to_owned())),
        None => Some((entry.to_owned(), std::env::var(entry).ok()?)),
    }
}

/// Makes a name up for a sandbox that has none, which replaces nothing.
pub(crate) fn name(spec: &mut SandboxSpec, replace: &ReplaceArgs) -> Result<(), Failure> {
    if !spec.name.is_empty() {
        return Ok(());
    }
    if replace.grace().is_some() {
        return Err(Failure::Usage {
            message: "a sandbox without a name replaces none".into(),
            hint: Some("say which one: --name NAME".into()),
        });
    }
    spec.name = unique_name()?;
    Ok(())
}

/// A name that no other sandbox of this host has: 64 random bits.
fn unique_name() -> Result<String, Failure> {
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
