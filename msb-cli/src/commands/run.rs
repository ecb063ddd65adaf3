//! `msb run`: one sandbox, one program, its exit code.

use std::fs::File;
use std::io::{self, Write};

use msb_sdk::{
    EngineKind, Error, ExecEvent, ExecHandle, ExecOptions, ExecStdin, Isolation, NetworkLimits,
    PullPolicy, Sandbox, SandboxBuilder, Signal,
};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::Failure;
use crate::args::{EngineArg, IsolationArg, PullArg, RunArgs};
use crate::network::{self, NetLog};
use crate::progress::Display;
use crate::terminal::{self, RawMode};

/// How much of standard input is read at once.
const STDIN_CHUNK: usize = 64 * 1024;

/// The exit code of a program whose reader went away: as if ended by SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;

/// Signals to this process that are the program's to deal with.
const FORWARDED: [(SignalKind, u8); 4] = [
    (SignalKind::interrupt(), 2),
    (SignalKind::terminate(), 15),
    (SignalKind::hangup(), 1),
    (SignalKind::quit(), 3),
];

/// After so many signals to a program that does not end, the sandbox is ended.
const PATIENCE: u32 = 3;

/// Runs the program and returns its exit code.
pub(crate) async fn run(args: RunArgs) -> Result<u8, Failure> {
    let piped = !terminal::stdin_is_terminal();
    if args.tty && args.interactive && piped {
        return Err(Failure::Usage {
            message: "-i -t needs a terminal, and standard input is none".into(),
            hint: Some("leave out -t".into()),
        });
    }
    let builder = builder(&args)?;
    let log = NetLog::open(&args.network)?;
    let mut signals = forwarded_signals();
    let display = Display::new(&args.image, args.quiet);
    let shown = display.clone();
    let sandbox = tokio::select! {
        sandbox = builder.on_progress(move |step| shown.show(&step)).create() => sandbox,
        Some(number) = signals.recv() => {
            display.finish();
            // The supervisor, if there is one already, ends with us.
            return Ok(128 + number);
        }
    };
    display.finish();
    let sandbox = sandbox?;
    if !args.quiet {
        for port in &sandbox.report().ports {
            let (host, guest) = (port.host, port.guest);
            terminal::complain(&format!("port {guest} of the guest is at {host}"));
        }
    }

    let log = log.map(|log| tokio::spawn(log.follow(sandbox.network_events())));
    let interactive = piped || args.interactive;
    let result = program(&sandbox, &args, interactive, signals).await;
    // Nothing of an unnamed sandbox is kept, so there is nothing to flush.
    let ended = sandbox.kill().await;
    if let Some(log) = log {
        // It ends with the sandbox; what it could not write, nobody wants.
        let _ = log.await;
    }
    match (result, ended) {
        (Ok(code), Ok(())) => Ok(code),
        (Err(failure), _) => Err(failure),
        (Ok(_), Err(error)) => Err(error.into()),
    }
}

fn builder(args: &RunArgs) -> Result<SandboxBuilder, Failure> {
    let mut builder = Sandbox::builder(unique_name()?)
        .image(&args.image)
        .cpus(args.cpus)
        .memory_mib(args.memory)
        .pull(match args.pull {
            PullArg::Missing => PullPolicy::Missing,
            PullArg::Always => PullPolicy::Always,
            PullArg::Never => PullPolicy::Never,
        })
        .network(network::policy(&args.network)?)
        .network_limits(NetworkLimits {
            upload: args.network.upload,
            download: args.network.download,
            opens: args.network.opens,
        });
    for server in &args.network.dns {
        builder = builder.resolver(*server);
    }
    if let Some(file) = &args.network.pcap {
        builder = builder.capture(file);
    }
    for ports in &args.network.publish {
        builder = builder.publish(ports);
    }
    for entry in &args.env {
        builder = match entry.split_once('=') {
            Some((key, value)) => builder.env(key, value),
            None => match std::env::var(entry) {
                Ok(value) => builder.env(entry, value),
                // As container tools do: what is not set here is not set there.
                Err(_) => builder,
            },
        };
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

async fn program(
    sandbox: &Sandbox,
    args: &RunArgs,
    interactive: bool,
    mut signals: mpsc::Receiver<u8>,
) -> Result<u8, Failure> {
    let mut options = match args.command.split_first() {
        Some((program, rest)) => ExecOptions::new(program, rest),
        None => sandbox.image_command()?,
    };
    if interactive {
        options = options.stdin();
    }
    if args.tty {
        options = options.tty(terminal::size());
    }
    let handle = tokio::select! {
        handle = sandbox.exec_with(options) => handle?,
        // There is no program yet to deal with it.
        Some(number) = signals.recv() => return Ok(128 + number),
    };
    let raw = if args.tty && interactive {
        RawMode::enter()
    } else {
        None
    };
    if interactive {
        tokio::spawn(feed(handle.stdin()));
    }
    let code = follow(handle, args.tty, signals).await;
    drop(raw);
    code
}

/// Passes output, signals and sizes on until the program has ended.
async fn follow(
    mut handle: ExecHandle,
    tty: bool,
    mut signals: mpsc::Receiver<u8>,
) -> Result<u8, Failure> {
    let mut resized = signal(SignalKind::window_change()).ok();
    let mut asked = 0;
    loop {
        tokio::select! {
            event = handle.recv() => match event {
                Some(ExecEvent::Stdout(data)) => {
                    if let Some(code) = write(&mut io::stdout().lock(), &data, "standard output")? {
                        return Ok(code);
                    }
                }
                Some(ExecEvent::Stderr(data)) => {
                    if let Some(code) = write(&mut io::stderr().lock(), &data, "standard error")? {
                        return Ok(code);
                    }
                }
                Some(ExecEvent::Exited(status)) => return Ok(status.code()),
                Some(ExecEvent::Lost { reason }) => return Err(Error::Gone { reason }.into()),
                Some(_) => {}
                None => return Err(Error::Gone { reason: "the program's end was not reported".into() }.into()),
            },
            Some(number) = signals.recv() => {
                asked += 1;
                if asked > PATIENCE {
                    return Ok(128 + number);
                }
                if let Ok(signal) = Signal::try_from(number) {
                    handle.signal(signal);
                }
            }
            Some(()) = next(&mut resized), if tty => handle.resize(terminal::size()),
        }
    }
}

async fn next(signal: &mut Option<tokio::signal::unix::Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => None,
    }
}

/// Writes all at once; `Some(code)` when nobody reads any more.
fn write(out: &mut impl Write, data: &[u8], name: &str) -> Result<Option<u8>, Failure> {
    match out.write_all(data).and_then(|()| out.flush()) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(BROKEN_PIPE)),
        Err(error) => Err(Failure::Usage {
            message: format!("cannot write to {name}: {error}"),
            hint: None,
        }),
    }
}

/// Feeds standard input to the program.
async fn feed(stdin: ExecStdin) {
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; STDIN_CHUNK];
    loop {
        match input.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if stdin.write(chunk[..count].to_vec()).await.is_err() {
                    return;
                }
            }
        }
    }
    stdin.close();
}

/// The numbers of signals as they come in.
fn forwarded_signals() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(16);
    for (kind, number) in FORWARDED {
        // A signal that can't be watched keeps its default action.
        let Ok(mut stream) = signal(kind) else {
            continue;
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(number).await.is_err() {
                    return;
                }
            }
        });
    }
    receiver
}
