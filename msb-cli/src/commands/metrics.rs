//! `msb metrics` and `msb top`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use msb_sdk::{Metrics, ProcessMetrics, Sandbox, Status};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::args::{FormatArg, MetricsArgs, TopArgs};
use crate::session::forwarded_signals;
use crate::size::human;
use crate::{Failure, table, terminal};

/// Between the two samples that one look at the processor takes.
const GLANCE: Duration = Duration::from_millis(500);

/// Moves to the terminal's upper left corner and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Samples by name.
type Latest = BTreeMap<String, Metrics>;

/// Prints what sandboxes use, once or until it is interrupted.
pub(crate) async fn run(args: MetricsArgs) -> Result<u8, Failure> {
    if args.watch {
        let mut signals = forwarded_signals();
        return tokio::select! {
            end = watch(&args) => end,
            Some(number) = signals.recv() => Ok(128 + number),
        };
    }
    let mut looks = JoinSet::new();
    for name in names(&args).await? {
        let sandbox = match Sandbox::get(&name).await {
            Ok(handle) => handle.connect().await,
            Err(error) => Err(error),
        };
        match sandbox {
            Ok(sandbox) => drop(looks.spawn(glance(name, sandbox))),
            // One that was not asked for by name may have ended meanwhile.
            Err(error) if !args.names.is_empty() => return Err(error.into()),
            Err(_) => {}
        }
    }
    let mut latest = Latest::new();
    while let Some(look) = looks.join_next().await {
        match look.map_err(|error| Failure::Usage {
            message: error.to_string(),
            hint: None,
        })? {
            Ok((name, metrics)) => drop(latest.insert(name, metrics)),
            Err(error) if !args.names.is_empty() => return Err(error.into()),
            Err(_) => {}
        }
    }
    match args.format {
        FormatArg::Table => drop(terminal::pass(table_of(&latest))?),
        FormatArg::Json => {
            let list = latest.iter().map(describe).collect();
            terminal::say(&Value::Array(list).to_string())?;
        }
    }
    Ok(0)
}

/// Two samples, of which the second tells of the time between.
async fn glance(name: String, sandbox: Sandbox) -> Result<(String, Metrics), msb_sdk::Error> {
    let mut samples = sandbox.metrics_stream(GLANCE);
    samples.next().await?;
    Ok((name, samples.next().await?))
}

/// The sandboxes that are named, else those that run.
async fn names(args: &MetricsArgs) -> Result<Vec<String>, Failure> {
    if !args.names.is_empty() {
        return Ok(args.names.clone());
    }
    let all = Sandbox::list().await?.into_iter();
    let running = all.filter(|one| matches!(one.status, Status::Running | Status::Paused));
    Ok(running.map(|one| one.name).collect())
}

/// Prints samples until all sandboxes that were named have ended.
async fn watch(args: &MetricsArgs) -> Result<u8, Failure> {
    let latest = Arc::new(Mutex::new(Latest::new()));
    let mut watched = BTreeMap::new();
    let mut ticks = tokio::time::interval(args.interval);
    let drawn = terminal::stdout_is_terminal();
    let mut first = true;
    loop {
        ticks.tick().await;
        watched.retain(|_, task: &mut tokio::task::JoinHandle<()>| !task.is_finished());
        for name in names(args).await? {
            if watched.contains_key(&name) || !(first || args.names.is_empty()) {
                continue;
            }
            match connect(&name).await {
                Ok(sandbox) => {
                    let task = follow(sandbox, args.interval, Arc::clone(&latest));
                    watched.insert(name, tokio::spawn(task));
                }
                Err(error) if first && !args.names.is_empty() => return Err(error.into()),
                Err(_) => {}
            }
        }
        first = false;
        if !args.names.is_empty() && watched.is_empty() {
            return Ok(0);
        }
        let now = latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let text = match args.format {
            FormatArg::Json => {
                // Each sample once.
                latest
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clear();
                now.iter()
                    .map(|one| format!("{}\n", describe(one)))
                    .collect()
            }
            FormatArg::Table if drawn => format!("{CLEAR}{}", table_of(&now)),
            FormatArg::Table => table_of(&now),
        };
        if !terminal::pass(&text)? {
            return Ok(0);
        }
    }
}

async fn connect(name: &str) -> Result<Sandbox, msb_sdk::Error> {
    Sandbox::get(name).await?.connect().await
}

/// Samples one sandbox until it has ended.
async fn follow(sandbox: Sandbox, interval: Duration, latest: Arc<Mutex<Latest>>) {
    let name = sandbox.spec().name.clone();
    let mut samples = sandbox.metrics_stream(interval);
    while let Ok(metrics) = samples.next().await {
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.insert(name.clone(), metrics);
    }
    let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
    latest.remove(&name);
}

fn table_of(latest: &Latest) -> String {
    let heading = [
        "NAME", "CPU %", "MEMORY", "OF", "HOST MEM", "NET IN", "NET OUT", "READ", "WRITTEN",
        "ROOT", "PROCS",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(latest.iter().map(row));
    table::text(&rows, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
}

fn row((name, metrics): (&String, &Metrics)) -> Vec<String> {
    let (host, guest) = (&metrics.host, metrics.guest.as_ref());
    let said = |read: fn(&msb_sdk::GuestMetrics) -> u64| {
        guest.map_or_else(|| "-".to_owned(), |guest| human(read(guest)))
    };
    let percent = metrics.cpu_percent;
    vec![
        name.clone(),
        percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}")),
        said(|guest| guest.memory_used),
        said(|guest| guest.memory_total),
        human(host.memory_proportional.unwrap_or(host.memory_resident)),
        human(host.network.received_bytes),
        human(host.network.sent_bytes),
        said(|guest| guest.disk_read),
        said(|guest| guest.disk_written),
        said(|guest| guest.root_used),
        guest.map_or_else(|| "-".to_owned(), |guest| guest.processes.to_string()),
    ]
}

/// All of a sample. Keys are added, never renamed.
fn describe((name, metrics): (&String, &Metrics)) -> Value {
    let (host, network) = (&metrics.host, &metrics.host.network);
    let guest = metrics.guest.as_ref().map(|guest| {
        json!({
            "cpus": guest.cpus,
            "cpu_ms": millis(guest.cpu_time),
            "memory_total": guest.memory_total,
            "memory_used": guest.memory_used,
            "root_total": guest.root_total,
            "root_used": guest.root_used,
            "disk_read": guest.disk_read,
            "disk_written": guest.disk_written,
            "processes": guest.processes,
        })
    });
    json!({
        "name": name,
        "at": metrics.at.duration_since(UNIX_EPOCH).ok().map(millis),
        "cpu_percent": metrics.cpu_percent,
        "host": {
            "cpu_ms": millis(host.cpu_time),
            "memory_resident": host.memory_resident,
            "memory_proportional": host.memory_proportional,
            "disk_allocated": host.disk_allocated,
            "network": {
                "sent_bytes": network.sent_bytes,
                "sent_frames": network.sent_frames,
                "received_bytes": network.received_bytes,
                "received_frames": network.received_frames,
            },
        },
        "guest": guest,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `msb top`: the processes of a sandbox.
pub(crate) async fn top(args: TopArgs) -> Result<u8, Failure> {
    let processes = connect(&args.name).await?.processes().await?;
    match args.format {
        FormatArg::Table => {
            let heading = ["PID", "PARENT", "UID", "STATE", "CPU", "MEMORY", "COMMAND"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(processes.iter().map(process_row));
            table::print(&rows, &[0, 1, 2, 4, 5])?;
        }
        FormatArg::Json => {
            let list = processes.iter().map(describe_process).collect();
            terminal::say(&Value::Array(list).to_string())?;
        }
    }
    Ok(0)
}

fn process_row(process: &ProcessMetrics) -> Vec<String> {
    let seconds = process.cpu_ms / 1000;
    let state = state(process);
    vec![
        process.pid.to_string(),
        process.parent.to_string(),
        process.uid.to_string(),
        state.to_string(),
        format!("{}:{:02}", seconds / 60, seconds % 60),
        human(process.memory),
        // What a guest calls its processes must not be what a terminal obeys.
        process.command.to_string(),
    ]
}

fn state(process: &ProcessMetrics) -> char {
    let letter = char::from(process.state);
    if letter.is_ascii_alphabetic() {
        letter
    } else {
        '?'
    }
}

fn describe_process(process: &ProcessMetrics) -> Value {
    json!({
        "pid": process.pid,
        "parent": process.parent,
        "uid": process.uid,
        "state": state(process).to_string(),
        "threads": process.threads,
        "cpu_ms": process.cpu_ms,
        "memory": process.memory,
        "command": String::from_utf8_lossy(process.command.as_bytes()),
    })
}
