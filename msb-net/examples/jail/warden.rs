//! The outside: starts the inside, runs the gateway, and waits for the program.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::task::Poll;

use anyhow::{Context as _, anyhow, bail};
use msb_net::gateway::Config;
use msb_net::publish::Publish;
use msb_net::shell::{Link, Network, Options};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::cli::journal::Journal;
use crate::cli::{self, Hinted};
use crate::inside::{self, Plan};
use crate::line::Line;

/// What a shell adds to the number of a signal.
const BY_SIGNAL: i32 = 128;

/// Runs the program in the jail; returns its exit status.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut config = cli::config(args.policy.read()?, &args.resolver)?;
    config.mtu = args.mtu;
    config.guest_loopback = true;
    config.limits.upload = args.upload;
    config.limits.download = args.download;
    config.limits.opens = args.opens;
    let publish = ports(&args.publish)?;
    let journal = Journal::open(args.events.as_deref())?;
    // One thread: the gateway has its own, and this one only waits.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut options = Options::new(config);
    options.capture = args.capture.open(1)?;
    if let Some(path) = &args.extra_roots {
        let shown = path.display();
        let roots = std::fs::read_to_string(path);
        options.interception.extra_roots = roots.with_context(|| format!("cannot read {shown}"))?;
    }
    let status = runtime.block_on(supervise(args, options, &publish, &journal))?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| BY_SIGNAL + signal));
    Ok(ExitCode::from(code.unwrap_or(125) as u8))
}

async fn supervise(
    args: &Args,
    options: Options,
    publish: &[Publish],
    journal: &Journal,
) -> anyhow::Result<ExitStatus> {
    let (line, theirs) = Line::pair()?;
    let mut child = Command::new("/proc/self/exe")
        .arg0(inside::NAME)
        .args(&args.command)
        .stdin(theirs.into_descriptor())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start this program again")?;
    let pid = child.id().context("the inside ended")? as i32;
    let tap = match settle_in(&line, pid, &plan(&options.config)) {
        Ok(tap) => tap,
        Err(error) => {
            // It said why, or it is waiting for a word that will not come.
            let _ = child.kill().await;
            return Err(error);
        }
    };
    // The program has the caller's limit: it may rely on low numbers.
    cli::raise_descriptors();
    cli::give_back_memory();
    let (network, mut events) = Network::spawn(options, Link::tap_with_offload(tap))?;
    for publish in publish {
        offer(&network, publish)?;
    }
    let policy = network.policy().clone();
    let journal = journal.clone();
    // Events that nobody listens to cost nothing.
    let wanted = args.events.is_some();
    let writer = wanted.then(|| {
        std::thread::spawn(move || {
            while let Some(entry) = events.blocking_recv() {
                journal.write(|| entry.to_json(&policy));
            }
        })
    });
    // Before the program runs: from then on they are meant for it.
    let mut signals = Signals::new()?;
    line.send("go", None)?;
    let status = wait(&mut child, pid, &mut signals).await?;
    network.stop();
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    Ok(status)
}

fn ports(texts: &[String]) -> anyhow::Result<Vec<Publish>> {
    let read = |text: &String| text.parse().context("--publish");
    texts.iter().map(read).collect()
}

/// Publishes ports, and says which they are where nobody knew.
fn offer(network: &Network, publish: &Publish) -> anyhow::Result<()> {
    let publication = network.publish(publish)?;
    for ((asked, _), (bound, guest)) in publish.pairs().zip(publication.ports()) {
        if asked.port() == 0 {
            eprintln!("jail: {bound} is port {guest} of the program");
        }
    }
    Ok(())
}

fn plan(config: &Config) -> Plan {
    let root = rustix::process::geteuid().is_root();
    let group = rustix::process::getegid().as_raw();
    Plan {
        mtu: config.mtu,
        guest_v4: config.guest_v4,
        gateway_v4: config.gateway_v4,
        guest_v6: config.guest_v6,
        gateway_v6: config.gateway_v6,
        // The largest number that the setting can hold.
        ping_groups: if root {
            (0, i32::MAX as u32)
        } else {
            (group, group)
        },
    }
}

/// Leads the inside up to the point where it has a network but for the gateway.
/// Returns the gateway's end.
fn settle_in(line: &Line, pid: i32, plan: &Plan) -> anyhow::Result<OwnedFd> {
    // A closed standard input is none.
    let stdin = match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) {
        Ok(stdin) => stdin,
        Err(_) => File::open("/dev/null")?.into(),
    };
    line.send(&plan.to_string(), Some(stdin.as_fd()))?;
    hear(line, "map")?;
    map_ids(pid)?;
    line.send("mapped", None)?;
    hear(line, "tap")?.context("no device came from the inside")
}

/// Waits for one word, or for what went wrong.
fn hear(line: &Line, word: &str) -> anyhow::Result<Option<OwnedFd>> {
    let message = line.receive()?.context("the inside ended early")?;
    if message.text == word {
        return Ok(message.descriptor);
    }
    let mut lines = message.text.split('\n');
    match (lines.next(), lines.next(), lines.next()) {
        (Some("error"), Some(message), Some("")) => Err(anyhow!("{message}")),
        (Some("error"), Some(message), Some(hint)) => Err(Hinted {
            message: message.into(),
            hint: hint.into(),
        }
        .into()),
        _ => bail!("the inside says {:?} in place of {word:?}", message.text),
    }
}

/// Says who the inside's users are: everybody when root asks, and the caller
/// alone otherwise.
fn map_ids(pid: i32) -> anyhow::Result<()> {
    let user = rustix::process::geteuid();
    let group = rustix::process::getegid();
    let folder = Path::new("/proc").join(pid.to_string());
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if user.is_root() {
        // Root in a container may itself be mapped: hand on what is there.
        write("uid_map", &everybody("/proc/self/uid_map")?)?;
        write("gid_map", &everybody("/proc/self/gid_map")?)
    } else {
        let (user, group) = (user.as_raw(), group.as_raw());
        write("setgroups", "deny")?;
        write("uid_map", &format!("{user} {user} 1\n"))?;
        write("gid_map", &format!("{group} {group} 1\n"))
    }
}

/// The map that leaves every id of this process's namespace as it is.
fn everybody(path: &str) -> io::Result<String> {
    let own = std::fs::read_to_string(path)?;
    let mut map = String::new();
    for line in own.lines() {
        let mut words = line.split_whitespace();
        if let (Some(first), Some(_), Some(count)) = (words.next(), words.next(), words.next()) {
            map += &format!("{first} {first} {count}\n");
        }
    }
    Ok(map)
}

/// The signals that are passed on.
struct Signals([(Signal, tokio::signal::unix::Signal); 6]);

impl Signals {
    fn new() -> io::Result<Self> {
        let kept = |own: Signal| {
            let stream = signal(SignalKind::from_raw(own.as_raw()));
            stream.map(|stream| (own, stream))
        };
        Ok(Self([
            kept(Signal::INT)?,
            kept(Signal::QUIT)?,
            kept(Signal::TERM)?,
            kept(Signal::HUP)?,
            kept(Signal::USR1)?,
            kept(Signal::USR2)?,
        ]))
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            let mut each = self.0.iter_mut();
            let came = each.find_map(|(own, stream)| {
                let came = stream.poll_recv(context).is_ready();
                came.then_some(*own)
            });
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Waits for the program, and passes on signals meanwhile.
async fn wait(child: &mut Child, pid: i32, signals: &mut Signals) -> anyhow::Result<ExitStatus> {
    loop {
        let passed_on = tokio::select! {
            status = child.wait() => return Ok(status?),
            signal = signals.next() => signal,
        };
        // What is typed goes to the program as well: it must not come twice.
        let typed = matches!(passed_on, Signal::INT | Signal::QUIT) && in_foreground();
        if let Some(pid) = Pid::from_raw(pid).filter(|_| !typed) {
            // It may just have ended; the next turn sees that.
            let _ = rustix::process::kill_process(pid, passed_on);
        }
    }
}

/// Tells whether the terminal's signals go to the group of this process.
fn in_foreground() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else {
        return false;
    };
    rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}
