//! What sandboxes use, and what happens to them.

use std::time::{Duration, SystemTime};

use msb_sdk::{
    Activity, ExecOptions, LifeEvent, NetworkActivity, NetworkPolicy, Sandbox, SandboxEvent,
    SandboxWatch,
};

use crate::lab;

/// Longer than anything here takes: a bound against hangs.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn a_load_changes_the_figures() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::BUSYBOX)
        .await?
        .disk_mib(256)
        .create()
        .await?;
    let before = sandbox.metrics().await?;
    let guest = before.guest.clone().expect("it answers");
    assert_eq!((before.cpu_percent, guest.cpus), (None, 1));
    assert!(guest.memory_used < guest.memory_total, "{guest:?}");
    assert!(guest.memory_total <= 512 << 20, "{guest:?}");
    assert!(guest.root_used < guest.root_total, "{guest:?}");
    assert!(before.host.memory_resident > 1 << 20, "{before:?}");
    assert!(before.host.disk_allocated.is_some(), "{before:?}");

    // Two processes, one of which takes the processor; a file on the disk; what is kept in
    // memory; a query.
    let script = "sleep 1000 & dd if=/dev/urandom of=/file bs=1M count=20 2>/dev/null; sync; \
        dd if=/dev/zero of=/dev/shm/held bs=1M count=60 2>/dev/null; \
        nslookup msb.invalid >/dev/null 2>&1; echo begun; while :; do :; done";
    let mut load = sandbox
        .exec_with(ExecOptions::new("sh", ["-c", script]))
        .await?;
    assert!(load.recv().await.is_some());
    let mut samples = sandbox.metrics_stream(Duration::from_millis(200));
    assert_eq!(samples.next().await?.cpu_percent, None);
    let after = samples.next().await?;
    let used = after.guest.clone().expect("it answers");
    assert!(
        after.cpu_percent.is_some_and(|percent| percent > 1.0),
        "{after:?}"
    );
    assert!(after.host.cpu_time > before.host.cpu_time, "{after:?}");
    assert!(used.cpu_time > guest.cpu_time, "{used:?}");
    assert_eq!(used.processes, guest.processes + 2);
    assert!(
        used.memory_used > guest.memory_used + (50 << 20),
        "{used:?}"
    );
    assert!(used.root_used > guest.root_used + (19 << 20), "{used:?}");
    assert!(
        used.disk_written > guest.disk_written + (19 << 20),
        "{used:?}"
    );
    assert!(
        after.host.disk_allocated > before.host.disk_allocated,
        "{after:?}"
    );
    assert!(after.host.memory_resident > before.host.memory_resident + (50 << 20));
    let (sent, received) = (before.host.network, after.host.network);
    assert!(received.sent_frames > sent.sent_frames, "{received:?}");
    assert!(
        received.received_bytes > sent.received_bytes,
        "{received:?}"
    );

    let processes = sandbox.processes().await?;
    let commands: Vec<_> = processes
        .iter()
        .map(|one| one.command.to_string())
        .collect();
    assert!(commands.contains(&"sleep 1000".into()), "{commands:?}");
    let busy = processes.iter().find(|one| one.state == b'R');
    assert!(
        busy.is_some_and(|one| one.pid == load.pid()),
        "{processes:?}"
    );
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn a_paused_sandbox_has_the_hosts_figures_only() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    sandbox.pause().await?;
    let metrics = sandbox.metrics().await?;
    assert_eq!(metrics.guest, None);
    assert!(metrics.host.memory_resident > 0);
    sandbox.resume().await?;
    assert!(sandbox.metrics().await?.guest.is_some());
    sandbox.kill().await?;
    Ok(())
}

fn life(event: &SandboxEvent) -> Option<&LifeEvent> {
    match &event.activity {
        Activity::Life(event) => Some(event),
        _ => None,
    }
}

/// The words that events begin with, as in their JSON.
fn word(event: &SandboxEvent) -> String {
    let json: serde_json::Value = serde_json::from_str(&event.json()).expect("JSON");
    assert_eq!(json["sandbox"], event.sandbox);
    json["event"].as_str().expect("a word").to_owned()
}

pub(crate) async fn a_life_is_told_of() -> anyhow::Result<()> {
    let home = lab::home();
    let mut watch = Sandbox::watch_in(&home, SystemTime::now()).await?;
    let builder = lab::builder(lab::BUSYBOX)
        .await?
        .network(NetworkPolicy::none());
    let sandbox = builder.create_detached().await?;
    let name = sandbox.spec().name.clone();
    let _removed = lab::LivesOn(name.clone());
    sandbox.exec("true", [""; 0]).await?;
    let timed = ExecOptions::new("sleep", ["1000"]).timeout(Duration::from_millis(50));
    assert!(sandbox.exec_with(timed).await?.wait().await.is_err());
    // Denied, which the network tells of.
    sandbox.shell("nslookup msb.invalid || true").await?;
    sandbox.pause().await?;
    sandbox.resume().await?;
    let handle = msb_sdk::SandboxHandle::find(&home, &name).await?;

    // Somebody who comes late hears of it all the same.
    let mut own = sandbox.events();
    let mut heard = Vec::new();
    while heard.last().is_none_or(|last| last != "resumed") {
        let event = tokio::time::timeout(PATIENCE, own.recv())
            .await?
            .expect("it runs");
        if life(&event).is_some() {
            heard.push(word(&event));
        }
    }
    let begin = ["created", "started", "exec-started", "exec-ended"];
    assert_eq!(heard[..4], begin, "{heard:?}");
    handle.stop().await?;
    let mut last = None;
    while let Some(event) = tokio::time::timeout(PATIENCE, own.recv()).await? {
        last = Some(event);
    }
    let last = last.expect("an end");
    assert!(
        matches!(life(&last), Some(LifeEvent::Stopped { .. })),
        "{last:?}"
    );
    drop(sandbox);

    // A second life, which is killed once it was seen to begin.
    let again = handle.start().await?;
    let mut seen = Seen::default();
    seen.until(&mut watch, &name, |words| {
        words.ends_with(&["stopped".into(), "started".into()])
    })
    .await?;
    let supervisor = handle.status().await?.pids.expect("it runs").0;
    let pid = rustix::process::Pid::from_raw(i32::try_from(supervisor)?).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    handle.wait().await;
    drop(again);
    handle.remove().await?;
    let removed = |words: &[String]| words.last().is_some_and(|last| last == "removed");
    seen.until(&mut watch, &name, removed).await?;
    let all = [
        "created", "started", "paused", "resumed", "stopping", "stopped", "started", "failed",
        "removed",
    ];
    assert_eq!(seen.words, all);
    let queries = &seen.queries;
    assert!(
        queries.iter().any(|name| name.starts_with("msb.invalid")),
        "{queries:?}"
    );
    Ok(())
}

/// What a watch has told of one sandbox.
#[derive(Default)]
struct Seen {
    /// Its life, without its programs.
    words: Vec<String>,
    /// Names that it asked for.
    queries: Vec<String>,
}

impl Seen {
    async fn until(
        &mut self,
        watch: &mut SandboxWatch,
        name: &str,
        enough: impl Fn(&[String]) -> bool,
    ) -> anyhow::Result<()> {
        while !enough(&self.words) {
            let event = tokio::time::timeout(PATIENCE, watch.recv()).await?;
            let event = event.expect("it goes on");
            match &event.activity {
                // Another test's.
                _ if event.sandbox != name => {}
                Activity::Network(event) => {
                    if let NetworkActivity::Query(query) = &event.activity {
                        self.queries.push(query.name.clone());
                    }
                }
                _ if life(&event).is_some_and(LifeEvent::is_exec) => {}
                _ => self.words.push(word(&event)),
            }
        }
        Ok(())
    }
}
