//! How long until forks of a running interpreter run code, and what holding and saving cost.
//!
//! The interpreter has 200 MB of state. It looks at its host name all the time; where that is
//! another one it has been forked, uses something of its state, and notes when that was. And it
//! answers requests through a pipe, which a shell in the fork has to be started for.
//!
//! Two ends are measured: when the interpreter itself has run code in every fork, by what it
//! has noted, and when every fork has answered with its own name and something of its state. The
//! clock of a fork is behind by what it took to set it. That is found out by asking: between its
//! time in the answer and the arrival of that lie at least so much.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail, ensure};
use msb_benches::conditions::Conditions;
use msb_benches::program;
use msb_benches::report::{self, Row, Unit};
use msb_sdk::{EngineKind, ExecEvent, Home, Images, Sandbox, Snapshots};
use tempfile::TempDir;

/// How the image is called in the bench's own store.
const IMAGE: &str = "bench/python:latest";

/// The interpreter's program: its state, and a loop.
const PROGRAM: &str = "
import os, select, time
data = bytearray(b'0123456789abcdef' * (200 * 1000 * 1000 // 16))
os.mkfifo('/ask'); os.mkfifo('/answer')
ask = os.open('/ask', os.O_RDWR)
print('ready', flush=True)
name, state, began = os.uname().nodename, data[199999999], 0
while True:
    asked = select.select([ask], [], [], 0.02)[0]
    if os.uname().nodename != name:
        name, state, began = os.uname().nodename, data[199999999], time.time_ns()
    if asked:
        os.read(ask, 1)
        answer = os.open('/answer', os.O_WRONLY)
        os.write(answer, f'{name} {len(data)} {state} {began} {time.time_ns()}\\n'.encode())
        os.close(answer)
";

/// Has a fork answer: its name, and a little of the state.
const ASK: &str = "printf . > /ask; read line < /answer; echo \"$line\"";

/// Goal for ten forks that run code, in milliseconds.
const TEN: f64 = 600.0;

fn main() -> Result<()> {
    msb_sdk::supervisor_hook();
    let conditions = Conditions::look()?;
    program::require(&["qemu-system-x86_64"])?;
    let scratch = conditions.scratch()?;
    let home = home(&conditions, &scratch)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let rounds = conditions.rounds(2, 10);
    let rows = runtime.block_on(measure(&conditions, &home, rounds))?;
    println!("\n{}", report::table(&rows));
    report::write(&conditions.kept("fork.json"), &conditions.json(), &rows)
}

async fn measure(conditions: &Conditions, home: &Home, rounds: usize) -> Result<Vec<Row>> {
    let layout = conditions.image("python")?;
    Images::open(home)?.import(&layout, IMAGE, |_| ()).await?;
    let builder = Sandbox::builder("bench").image(IMAGE).home(home.clone());
    let sandbox = builder.engine(EngineKind::Qemu).create().await?;
    let words = ["-c", PROGRAM];
    let mut python = sandbox
        .exec_with(msb_sdk::ExecOptions::new("python3", words))
        .await?;
    let begun = python.recv().await;
    ensure!(
        begun == Some(ExecEvent::Stdout("ready\n".into())),
        "{begun:?}"
    );
    check(&sandbox, sandbox.spec().name.clone()).await?;

    let mut rows = Vec::new();
    let only = std::env::var("MSB_BENCH_FORKS").ok();
    let only = only.map(|only| only.parse::<usize>()).transpose()?;
    for (count, name) in [
        (1, "1 fork of 200 MB of Python: runs code"),
        (10, "10 forks: all run code"),
        (50, "50 forks: all run code"),
    ] {
        if only.is_some_and(|only| only != count) {
            continue;
        }
        let mut all = Row::new(name, Unit::Ms);
        let mut ran = Row::new("  of it: until the interpreter has run code", Unit::Ms);
        if count == 10 {
            ran = ran.at_most(TEN);
        }
        let mut made = Row::new("  of it: fork()", Unit::Ms);
        for _ in 0..rounds {
            let (begin, time) = (Instant::now(), now()?);
            let forks = sandbox.fork(count).await?;
            made.push_time(begin.elapsed());
            let forks: Vec<_> = forks
                .into_iter()
                .map(|fork| {
                    tokio::spawn(async move {
                        check(&fork, fork.spec().name.clone()).await?;
                        Ok::<Sandbox, anyhow::Error>(fork)
                    })
                })
                .collect();
            let mut checked = Vec::with_capacity(count);
            for fork in forks {
                checked.push(fork.await??);
            }
            all.push_time(begin.elapsed());
            let mut last = 0;
            for fork in &checked {
                last = last.max(began(fork).await?);
            }
            ran.push_time(Duration::from_nanos(last.saturating_sub(time)));
            for fork in checked {
                fork.kill().await?;
            }
        }
        rows.extend([all, ran, made]);
    }
    if only.is_none() {
        rows.extend(keep(&sandbox, home, rounds).await?);
    }
    sandbox.kill().await?;
    Ok(rows)
}

/// Snapshots that stay, and holding.
async fn keep(sandbox: &Sandbox, home: &Home, rounds: usize) -> Result<Vec<Row>> {
    let mut save = Row::new("snapshot(), written out with digests", Unit::Ms);
    let mut create = Row::new("from_snapshot(): runs code", Unit::Ms);
    let mut pause = Row::new("pause()", Unit::Ms);
    let mut resume = Row::new("resume()", Unit::Ms);
    for _ in 0..rounds {
        let begin = Instant::now();
        sandbox.snapshot("bench").await?;
        save.push_time(begin.elapsed());
        let begin = Instant::now();
        let copy = Sandbox::from_snapshot("bench").home(home.clone());
        let copy = copy.create().await?;
        check(&copy, copy.spec().name.clone()).await?;
        create.push_time(begin.elapsed());
        copy.kill().await?;
        Snapshots::open(home).remove("bench")?;
        let begin = Instant::now();
        sandbox.pause().await?;
        pause.push_time(begin.elapsed());
        let begin = Instant::now();
        sandbox.resume().await?;
        resume.push_time(begin.elapsed());
    }
    Ok(vec![save, create, pause, resume])
}

async fn check(sandbox: &Sandbox, name: String) -> Result<[u64; 2]> {
    let output = sandbox.exec("/bin/sh", ["-c", ASK]).await?;
    let said = output.stdout()?;
    let times = said.strip_prefix(&format!("{name} 200000000 102 "));
    let mut times = times.into_iter().flat_map(str::split_whitespace);
    let mut next = || times.next().and_then(|time| time.parse().ok());
    match (next(), next()) {
        (Some(began), Some(answered)) => Ok([began, answered]),
        _ => bail!("{output:?} is not what {name} says"),
    }
}

/// When a fork's interpreter has begun to run code, at the latest, in nanoseconds of this
/// host's clock.
async fn began(fork: &Sandbox) -> Result<u64> {
    let mut latest = u64::MAX;
    // The shell is faster by and by, and so the bound closer.
    for _ in 0..3 {
        let [began, answered] = check(fork, fork.spec().name.clone()).await?;
        latest = latest.min(began + now()?.saturating_sub(answered));
    }
    Ok(latest)
}

fn now() -> Result<u64> {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::try_from(time.as_nanos())?)
}

/// A home of the bench's own.
fn home(conditions: &Conditions, scratch: &TempDir) -> Result<Home> {
    let path = scratch.path().join("home");
    fs::create_dir_all(&path)?;
    symlink(conditions.guest()?, path.join("guest"))?;
    Ok(Home::at(path)?)
}
