//! Whole lives of sandboxes: how many a second, fifty at once, and what programs in them cost.
//!
//! Beside it is QEMU with the same machine and no guest in it, started and ended:
//! what the engine takes by itself. It is no peer, and nothing else here starts virtual machines.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use msb_benches::conditions::Conditions;
use msb_benches::floor;
use msb_benches::report::{self, Row, Unit};
use msb_sdk::{EngineKind, Home, Images, Sandbox, SandboxHandle};
use msb_vmm::{Engine, EngineOptions};
use tokio::task::JoinSet;

/// How the image is called in the bench's own store.
const IMAGE: &str = "bench/busybox:latest";

/// What sandboxes have unless they say otherwise.
const MEMORY_MIB: u64 = 512;

/// Sandboxes that are there at once.
const MANY: usize = 50;

/// Goal for a program in a running sandbox, in milliseconds.
const EXEC: f64 = 10.0;

fn main() -> Result<()> {
    msb_sdk::supervisor_hook();
    let conditions = Conditions::look()?;
    let scratch = conditions.scratch()?;
    let path = scratch.path().join("home");
    fs::create_dir_all(&path)?;
    symlink(conditions.guest()?, path.join("guest"))?;
    let home = Home::at(path)?;
    let mut options = EngineOptions::default();
    options.kind = Some(EngineKind::Qemu);
    let engine = Engine::choose(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let rows = runtime.block_on(async {
        let layout = conditions.image("busybox")?;
        Images::open(&home)?.import(&layout, IMAGE, |_| {}).await?;
        // The first makes the template.
        create(&home, "first").await?.kill().await?;
        let mut rows = lives(&conditions, &home, &engine).await?;
        rows.extend(execs(&conditions, &home).await?);
        rows.extend(many(&conditions, &home).await?);
        anyhow::Ok(rows)
    })?;
    println!("\n{}", report::table(&rows));
    report::write(&conditions.kept("life.json"), &conditions.json(), &rows)
}

async fn create(home: &Home, name: &str) -> Result<Sandbox> {
    let builder = Sandbox::builder(name).image(IMAGE).home(home.clone());
    Ok(builder.engine(EngineKind::Qemu).create().await?)
}

async fn exec_true(sandbox: &Sandbox) -> Result<()> {
    let output = sandbox.exec("/bin/true", [""; 0]).await?;
    ensure!(output.status().success(), "/bin/true: {output:?}");
    Ok(())
}

/// Sandboxes that are made, run a program and are ended, one after the other and several at a
/// time.
async fn lives(conditions: &Conditions, home: &Home, engine: &Engine) -> Result<Vec<Row>> {
    let total = conditions.rounds(4, 32);
    let mut all = Vec::new();
    for at_once in [1, 4] {
        let name = format!("create, exec, kill: {at_once} at a time");
        let mut rate = Row::new(name, Unit::PerSecond);
        let mut alone = Row::new("  QEMU without a guest", Unit::PerSecond);
        let mut ratio = Row::new("  ratio", Unit::Ratio);
        for round in 0..conditions.rounds(1, 3) {
            let begin = Instant::now();
            let mut workers = JoinSet::new();
            for worker in 0..at_once {
                let home = home.clone();
                workers.spawn(async move {
                    for turn in 0..total / at_once {
                        let sandbox =
                            create(&home, &format!("life-{round}-{worker}-{turn}")).await?;
                        exec_true(&sandbox).await?;
                        sandbox.kill().await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(done) = workers.join_next().await {
                done??;
            }
            rate.push(per_second(total, begin.elapsed()));

            let begin = Instant::now();
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..at_once)
                    .map(|_| {
                        scope.spawn(|| {
                            for _ in 0..total / at_once {
                                floor::qemu_alone(engine, MEMORY_MIB)?;
                            }
                            anyhow::Ok(())
                        })
                    })
                    .collect();
                let ended = workers
                    .into_iter()
                    .map(|worker| worker.join().expect("no panic"));
                ended.collect::<Result<()>>()
            })?;
            alone.push(per_second(total, begin.elapsed()));
        }
        ratio.push(rate.median() / alone.median());
        all.extend([rate, alone, ratio]);
    }
    Ok(all)
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Programs in one sandbox.
async fn execs(conditions: &Conditions, home: &Home) -> Result<Vec<Row>> {
    let sandbox = std::sync::Arc::new(create(home, "execs").await?);
    let total = conditions.rounds(20, 400);
    let mut latency = Row::new("exec of /bin/true", Unit::Ms).at_most(EXEC);
    let mut rate = Row::new("  one after the other", Unit::PerSecond);
    let begin = Instant::now();
    for _ in 0..total {
        let begin = Instant::now();
        exec_true(&sandbox).await?;
        latency.push_time(begin.elapsed());
    }
    rate.push(per_second(total, begin.elapsed()));
    let mut together = Row::new("  eight at a time", Unit::PerSecond);
    let begin = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..8 {
        let sandbox = std::sync::Arc::clone(&sandbox);
        workers.spawn(async move {
            for _ in 0..total / 8 {
                exec_true(&sandbox).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    together.push(per_second(total / 8 * 8, begin.elapsed()));
    let sandbox = std::sync::Arc::into_inner(sandbox).context("nobody else has it")?;
    sandbox.kill().await?;
    Ok(vec![latency, rate, together])
}

/// Fifty sandboxes that live on: each step for all of them.
async fn many(conditions: &Conditions, home: &Home) -> Result<Vec<Row>> {
    let count = if conditions.quick { 5 } else { MANY };
    let row = |what: &str| Row::new(format!("{count} sandboxes: {what}"), Unit::Seconds);
    let (mut made, mut listed) = (row("all run"), row("listed"));
    let (mut ran, mut measured) = (row("a program in each"), row("metrics of each"));
    let mut memory = Row::new("  memory of each on the host (PSS)", Unit::Mib);
    let (mut stopped, mut gone) = (row("stopped in order"), row("removed"));
    for _ in 0..conditions.rounds(1, 2) {
        let begin = Instant::now();
        let names = (0..count).map(|number| format!("many-{number}"));
        let starts = names.map(|name| {
            let home = home.clone();
            async move {
                let builder = Sandbox::builder(name).image(IMAGE).home(home);
                Ok(builder.engine(EngineKind::Qemu).create_detached().await?)
            }
        });
        let sandboxes = all(starts).await?;
        made.push_time(begin.elapsed());

        let begin = Instant::now();
        let running = Sandbox::list_in(home).await?;
        listed.push_time(begin.elapsed());
        ensure!(running.len() == count, "{} are listed", running.len());

        let begin = Instant::now();
        let execs = sandboxes.into_iter().map(|sandbox| async move {
            exec_true(&sandbox).await?;
            Ok(sandbox)
        });
        let sandboxes = all(execs).await?;
        ran.push_time(begin.elapsed());

        let begin = Instant::now();
        for sandbox in &sandboxes {
            let metrics = sandbox.metrics().await?;
            let share = metrics.host.memory_proportional;
            memory.push(share.context("no PSS here")? as f64 / f64::from(1 << 20));
        }
        measured.push_time(begin.elapsed());
        drop(sandboxes);

        let begin = Instant::now();
        let stops = running.iter().map(|one| {
            let (home, name) = (home.clone(), one.name.clone());
            async move {
                let handle = SandboxHandle::find(&home, &name).await?;
                handle.stop().await?;
                Ok(handle)
            }
        });
        let handles = all(stops).await?;
        stopped.push_time(begin.elapsed());
        let begin = Instant::now();
        for handle in handles {
            handle.remove().await?;
        }
        gone.push_time(begin.elapsed());
        let left = Sandbox::list_in(home).await?;
        ensure!(left.is_empty(), "{} are left", left.len());
    }
    Ok(vec![made, listed, ran, measured, memory, stopped, gone])
}

/// Does all of it at once.
async fn all<T: Send + 'static>(
    work: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
) -> Result<Vec<T>> {
    let mut tasks = JoinSet::new();
    for one in work {
        tasks.spawn(one);
    }
    let mut done = Vec::new();
    while let Some(one) = tasks.join_next().await {
        done.push(one??);
    }
    Ok(done)
}
