//! Sandboxes that are held, saved while they run, and forked.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;

use msb_sdk::{
    EngineKind, Error, ExecEvent, ExecHandle, ExecOptions, NetworkPolicy, Sandbox, Secret,
    Snapshots, Status,
};

use crate::{guide, lab};

/// A shell that goes on for as long as the guest does, and does what comes through a pipe.
const RESIDENT: &str = "mkfifo /ask /answer; n=0; echo there; \
     while read line < /ask; do n=$((n + 1)); eval \"$line\" > /answer; done";

async fn resident(sandbox: &Sandbox) -> anyhow::Result<ExecHandle> {
    let mut resident = sandbox.shell_stream(RESIDENT).await?;
    assert_eq!(
        resident.recv().await,
        Some(ExecEvent::Stdout("there\n".into()))
    );
    Ok(resident)
}

/// Has the resident shell do something.
async fn ask(sandbox: &Sandbox, line: &str) -> anyhow::Result<String> {
    let script = format!("echo '{line}' > /ask; cat /answer");
    Ok(sandbox.shell(script).await?.stdout()?.trim().to_owned())
}

async fn say(sandbox: &Sandbox, script: &str) -> anyhow::Result<String> {
    let output = sandbox.shell(script).await?;
    anyhow::ensure!(output.status().success(), "{script}: {output:?}");
    Ok(output.stdout()?.trim().to_owned())
}

/// A script that waits for a condition, and fails where it never comes.
fn until(condition: &str) -> String {
    format!("i=0; until {condition}; do i=$((i + 1)); [ $i -lt 20000 ] || exit 9; done")
}

/// Seconds since the Unix epoch.
fn now() -> anyhow::Result<u64> {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(since_epoch.as_secs())
}

/// What must be different in any two sandboxes.
const IDENTITY: &str = "hostname; cat /etc/hostname /etc/machine-id /sys/class/net/eth0/address; \
     ip addr show eth0 | grep 'inet 192\\|fd6d'; cat /proc/sys/kernel/random/uuid; \
     head -c 16 /dev/urandom | od -An -tx1";

pub(crate) async fn forks_go_on_as_others() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let _resident = resident(&sandbox).await?;
    let mut echo = sandbox
        .exec_with(ExecOptions::new("cat", [""; 0]).stdin())
        .await?;
    ask(&sandbox, "secret=$(cat /proc/sys/kernel/random/uuid)").await?;
    let secret = ask(&sandbox, "echo $secret").await?;
    let before = say(&sandbox, "hostname; cat /etc/machine-id; ip addr show eth0").await?;

    let forks = sandbox.fork(3).await?;
    let mut seen = HashSet::new();
    let identity = say(&sandbox, IDENTITY).await?;
    assert_eq!(identity.lines().count(), 8, "{identity}");
    seen.extend(identity.lines().skip(1).map(str::to_owned));
    let mut last = identity;
    for fork in &forks {
        // The shell is the same, and counts on where it was.
        assert_eq!(ask(fork, "echo $n $secret").await?, format!("3 {secret}"));
        let identity = say(fork, IDENTITY).await?;
        for line in identity.lines().skip(1) {
            assert!(
                seen.insert(line.to_owned()),
                "{line} in\n{identity}\n{last}"
            );
        }
        assert!(identity.starts_with(&format!("{}\n", fork.spec().name)));
        let hosts = say(fork, "cat /etc/hosts").await?;
        assert!(hosts.contains(&format!("localhost {}\n", fork.spec().name)));
        assert!(!hosts.contains(&format!("localhost {}\n", sandbox.spec().name)));
        let kept = "ip -4 addr show eth0 | grep -c 'inet '; ip route | grep -c '^default'; \
                    ip -4 addr show eth0 | grep -c 192.168.127.2/; echo $HOSTNAME";
        let expected = format!("1\n1\n0\n{}", fork.spec().name);
        assert_eq!(say(fork, kept).await?, expected);
        // Its clock is right, whenever it was saved.
        let earliest = now()? - 1;
        let clock: u64 = say(fork, "date +%s").await?.parse()?;
        assert!((earliest..=now()? + 1).contains(&clock), "{clock}");
        last = identity;
    }
    // They are apart.
    ask(&forks[0], "secret=mine; echo").await?;
    assert_eq!(ask(&forks[1], "echo $secret").await?, secret);
    assert_eq!(
        ask(&sandbox, "echo $n $secret").await?,
        format!("3 {secret}")
    );

    // The first one is who it was, and its streams are where they were.
    let after = say(&sandbox, "hostname; cat /etc/machine-id; ip addr show eth0").await?;
    assert_eq!(after, before);
    let stdin = echo.stdin();
    stdin.write("still here").await?;
    assert_eq!(
        echo.recv().await,
        Some(ExecEvent::Stdout("still here".into()))
    );
    // A fork is a sandbox like any other: it can be forked.
    let fork = forks.into_iter().next().expect("three");
    let grandchild = fork.fork(1).await?.remove(0);
    fork.kill().await?;
    assert_eq!(ask(&grandchild, "echo $secret").await?, "mine");
    Ok(())
}

/// A thread of the agent writes a file meanwhile: nothing is opened ahead of such a fork.
pub(crate) async fn a_fork_in_the_middle_of_a_transfer_is_another_one() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let mut writer = sandbox.fs().open_write("/big").await?;
    let piece = vec![7; 1 << 20];
    writer.write(&piece).await?;
    let fork = sandbox.fork(1).await?.remove(0);
    let (first, second) = (say(&sandbox, IDENTITY).await?, say(&fork, IDENTITY).await?);
    let name = &fork.spec().name;
    assert!(second.starts_with(&format!("{name}\n{name}\n")), "{second}");
    assert_eq!(second.lines().count(), first.lines().count());
    for line in second.lines() {
        assert!(!first.lines().any(|other| other == line), "{line}");
    }
    writer.write(&piece).await?;
    writer.finish().await?;
    assert_eq!(say(&sandbox, "wc -c < /big").await?, "2097152");
    Ok(())
}

/// The peer of the first sandbox does not hear of its fork, and a fork does not speak to it.
pub(crate) async fn connections_are_the_first_ones() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let port = sandbox.publish("0:80").await?.remove(0);
    let listens = |port: &str| until(&format!("cat /proc/net/tcp* | grep -q ':{port} .* 0A '"));
    let served = "mkfifo /never; exec 4<>/never; nc -l -p 80 <&4 > /got; echo $? > /ended";
    let _served = sandbox.shell_stream(served).await?;
    say(&sandbox, &listens("0050")).await?;
    let mut peer = TcpStream::connect(port.host)?;
    peer.write_all(b"before ")?;
    say(&sandbox, &until("grep -q before /got")).await?;
    // Another one stays within the guest.
    let inner = "sleep 1000 | nc -l -p 81 > /inner";
    let _inner = sandbox.shell_stream(inner).await?;
    say(&sandbox, &listens("0051")).await?;
    let _holding = sandbox
        .shell_stream("(echo inner; sleep 1000) | nc 127.0.0.1 81")
        .await?;
    say(&sandbox, &until("grep -q inner /inner")).await?;

    // And one waits until somebody takes it, whom the guest can't find by its descriptors.
    let waits = sandbox.publish("0:82").await?.remove(0);
    let late = "nc -l -p 82 <&4 > /late & echo $! > /pid; wait $!; echo $? > /left";
    let late = format!("mkfifo /idle; exec 4<>/idle; {late}");
    let _late = sandbox.shell_stream(late).await?;
    say(&sandbox, &listens("0052")).await?;
    say(&sandbox, "kill -STOP $(cat /pid)").await?;
    let mut waiting = TcpStream::connect(waits.host)?;
    waiting.write_all(b"not ")?;
    let waits = until("cat /proc/net/tcp* | grep -q ':0052 .* 01 '");
    say(&sandbox, &waits).await?;

    let fork = sandbox.fork(1).await?.remove(0);
    // The program finds its connection gone.
    say(&fork, &until("[ -s /ended ]")).await?;
    assert_eq!(say(&fork, "cat /got").await?, "before");
    say(&fork, "kill -CONT $(cat /pid)").await?;
    say(&fork, &until("[ -s /left ]")).await?;
    // The inner one is as it was: the end that listened is connected.
    let open = "cat /proc/net/tcp* | grep -c ':0051 .* 01 '";
    assert_eq!(say(&fork, open).await?, "1");

    peer.write_all(b"after")?;
    let after = until("grep -q after /got");
    say(&sandbox, &format!("{after}; [ ! -e /ended ]")).await?;
    waiting.write_all(b"taken")?;
    let taken = until("grep -q 'not taken' /late");
    let taken = format!("kill -CONT $(cat /pid); {taken}; [ ! -e /left ]");
    say(&sandbox, &taken).await?;
    drop(fork);
    peer.shutdown(std::net::Shutdown::Write)?;
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest)?;
    Ok(())
}

/// A sandbox with a secret and a connection that it has made itself: the server of that hears
/// of no fork, each of which finds it reset and is somebody else in all that can tell.
pub(crate) async fn a_connection_to_the_outside_stays_the_first_ones() -> anyhow::Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let port = server.local_addr()?.port();
    let secret = Secret::env("TOKEN").from_command(["echo", "a value that nobody sees"]);
    let builder = lab::builder(lab::BUSYBOX).await?;
    let builder = builder.network(NetworkPolicy::allow_all());
    let sandbox = builder.secret(secret.allow_host("a.example"));
    let sandbox = sandbox.create().await?;
    let client = format!(
        "mkfifo /say; exec 4<>/say; nc 192.168.127.1 {port} <&4 > /heard; echo $? > /ended"
    );
    let _client = sandbox.shell_stream(client).await?;
    let mut peer = server.accept()?.0;
    peer.write_all(b"before ")?;
    say(&sandbox, &until("grep -q before /heard")).await?;

    let identity = format!("{IDENTITY}; echo $TOKEN");
    let first = say(&sandbox, &identity).await?;
    let placeholder = first.lines().last().unwrap_or_default();
    assert!(placeholder.len() > 16, "{first}");
    let mut seen: HashSet<String> = first.lines().map(str::to_owned).collect();
    let forks = sandbox.fork(3).await?;
    for fork in &forks {
        say(fork, &until("[ -s /ended ]")).await?;
        assert_eq!(say(fork, "cat /heard").await?, "before");
        let open = format!("! grep -i ' {:08X}:{port:04X} ' /proc/net/tcp", 0x017F_A8C0);
        say(fork, &open).await?;
        let identity = say(fork, &identity).await?;
        // The name is in two places.
        for line in identity.lines().skip(1) {
            assert!(
                seen.insert(line.to_owned()),
                "{line} in\n{identity}\n{first}"
            );
        }
    }
    // The same in a sandbox that goes on: in both directions, and the server knows one client.
    peer.write_all(b"after")?;
    let after = until("grep -q 'before after' /heard");
    say(
        &sandbox,
        &format!("{after}; [ ! -e /ended ]; echo mine > /say"),
    )
    .await?;
    let mut heard = [0; 5];
    peer.read_exact(&mut heard)?;
    assert_eq!(&heard, b"mine\n");
    server.set_nonblocking(true)?;
    assert!(server.accept().is_err(), "a fork has called");
    Ok(())
}

/// With a disk, that is saved as well.
pub(crate) async fn a_snapshot_is_gone_on_from_as_often_as_needed() -> anyhow::Result<()> {
    let name = format!("it-snapshot-{}", std::process::id());
    let home = lab::home();
    let snapshots = Snapshots::open(&home);
    let sandbox = lab::builder(lab::BUSYBOX)
        .await?
        .disk_mib(64)
        .create()
        .await?;
    let _resident = resident(&sandbox).await?;
    say(&sandbox, "echo first > /root/file").await?;
    sandbox.snapshot(&name).await?;
    let again = sandbox.snapshot(&name).await.expect_err("it is taken");
    assert!(again.to_string().contains("exists already"), "{again}");
    say(&sandbox, "echo later > /root/file").await?;
    let parent = sandbox.spec().name.clone();
    sandbox.kill().await?;

    let listed = snapshots.list();
    let listed = listed.iter().find(|it| it.name == name).expect("listed");
    assert_eq!(listed.sandbox.as_ref(), Some(&parent));
    assert_eq!(listed.damage, None);
    let restore = || {
        Sandbox::from_snapshot(&name)
            .home(home.clone())
            .env("NEW", "1")
    };
    let (one, two) = tokio::try_join!(restore().create(), restore().create())?;
    assert_ne!(one.spec().name, two.spec().name);
    for (sandbox, n) in [(&one, 1), (&two, 1), (&one, 2)] {
        assert_eq!(ask(sandbox, "echo $n").await?, n.to_string());
        assert_eq!(say(sandbox, "cat /root/file; echo $NEW").await?, "first\n1");
    }
    say(&one, "echo one > /root/file; sync").await?;
    assert_eq!(say(&two, "cat /root/file").await?, "first");

    // One byte is enough.
    let ram = home.path().join("snapshots").join(&name).join("ram");
    let file = fs::File::options().write(true).open(&ram)?;
    file.write_all_at(b"?", file.metadata()?.len() / 2)?;
    drop(file);
    let refused = restore().create().await.expect_err("it is damaged");
    assert!(refused.to_string().contains("damaged"), "{refused}");
    assert!(refused.hint().is_some());
    // Those that run are not disturbed, and it is told of.
    assert_eq!(ask(&two, "echo $n").await?, "2");
    let listed = snapshots.list();
    let listed = listed.iter().find(|it| it.name == name).expect("listed");
    assert!(listed.damage.is_some());
    snapshots.remove(&name)?;
    let gone = restore().create().await.expect_err("it is removed");
    assert!(gone.to_string().contains("no snapshot"), "{gone}");
    Ok(())
}

async fn forks(sandbox: &Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    // Others that go on from here; this one goes on, too.
    for fork in sandbox.fork(3).await? {
        println!("{}", fork.exec("hostname", [""; 0]).await?.stdout()?);
    }
    // The same for later: it stays until it is removed.
    sandbox.snapshot("warm").await?;
    let copy = Sandbox::from_snapshot("warm")
        .home(sandbox.home().clone())
        .env("MODE", "test")
        .create()
        .await?;
    copy.kill().await?;
    let snapshots = Snapshots::open(sandbox.home());
    for snapshot in snapshots.list() {
        println!("{}: {} bytes", snapshot.name, snapshot.bytes);
    }
    snapshots.remove("warm")?;
    // Nothing is executed in it until it is resumed.
    sandbox.pause().await?;
    sandbox.resume().await?;
    Ok(())
}

/// The example of the guide, run. It is here as it is there.
pub(crate) async fn the_guide_to_snapshots_holds() -> anyhow::Result<()> {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/snapshots.md");
    let guide = fs::read_to_string(guide)?;
    guide::check(&guide, include_str!("forks.rs"), "```rust,no_run\n", 1);
    forks(&lab::sandbox().await?)
        .await
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(())
}

/// What all threads of a process have run, in nanoseconds.
fn cpu_time(pid: u32) -> anyhow::Result<u64> {
    let mut all = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let ran = text.split(' ').next().unwrap_or_default();
        all += ran.parse::<u64>().unwrap_or(0);
    }
    Ok(all)
}

/// The forks of a sandbox whose supervisor is killed while it is saved: there are none, and
/// nothing of them is left.
pub(crate) async fn a_supervisor_killed_while_it_forks_leaves_nothing() -> anyhow::Result<()> {
    for step in ["forks/.1.lock", "forks/.1.draft/state", "forks/1"] {
        let sandbox = lab::builder(lab::BUSYBOX)
            .await?
            .disk_mib(64)
            .create()
            .await?;
        let name = sandbox.spec().name.clone();
        let folder = lab::home().path().join("sandboxes").join(&name);
        let status = fs::read_to_string(format!("/proc/{}/status", sandbox.report().vmm_pid))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let supervisor: i32 = parent.unwrap_or_default().trim().parse()?;
        let supervisor = rustix::process::Pid::from_raw(supervisor).expect("it has one");
        let awaited = folder.join(step);
        let killer = std::thread::spawn(move || {
            // A step that is seen too late, or not at all, is another one to be killed at.
            let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !awaited.exists() && std::time::Instant::now() < limit {}
            rustix::process::kill_process(supervisor, rustix::process::Signal::KILL)
        });
        let forked = sandbox.fork(2).await;
        killer.join().expect("no panic")?;
        sandbox.wait().await;
        // Those that there are do not need it.
        for fork in forked.into_iter().flatten() {
            say(&fork, "true").await?;
            fork.kill().await?;
        }
        // The next command removes what the killed one left, once its machine, which goes with
        // it, has let go of the lock.
        let mut looks = 0;
        while folder.exists() {
            looks += 1;
            assert!(looks < 100, "{step}");
            lab::sandbox().await?.kill().await?;
        }
        for number in 1..=2 {
            let fork = folder.with_file_name(format!("{name}-{number}"));
            assert!(!fork.exists(), "{step}: {fork:?}");
        }
    }
    Ok(())
}

pub(crate) async fn a_paused_sandbox_waits() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let name = sandbox.spec().name.clone();
    let handle = msb_sdk::SandboxHandle::find(&lab::home(), &name).await?;
    let _resident = resident(&sandbox).await?;
    let mut busy = sandbox
        .shell_stream("echo busy; while :; do :; done")
        .await?;
    assert_eq!(busy.recv().await, Some(ExecEvent::Stdout("busy\n".into())));
    sandbox.pause().await?;
    assert_eq!(handle.status().await?.status, Status::Paused);
    // The loop takes no time of the host's, while this one takes some.
    let vmm = sandbox.report().vmm_pid;
    let before = cpu_time(vmm)?;
    let own = cpu_time(std::process::id())?;
    while cpu_time(std::process::id())? < own + 500_000_000 {}
    let taken = cpu_time(vmm)? - before;
    assert!(taken < 100_000_000, "{taken} ns while it was held");
    let refused = sandbox.snapshot("never").await.expect_err("it is paused");
    assert!(refused.to_string().contains("paused"), "{refused}");
    let running = tokio::spawn({
        let handle = handle.clone();
        async move { handle.connect().await?.exec("echo", ["ran"]).await }
    });
    sandbox.resume().await?;
    assert_eq!(running.await??.stdout()?, "ran\n");
    assert_eq!(handle.status().await?.status, Status::Running);
    assert_eq!(ask(&sandbox, "echo $n").await?, "1");
    // One that is held can still be stopped in order.
    sandbox.pause().await?;
    sandbox.stop_and_wait().await?;
    assert!(matches!(
        handle.status().await,
        Err(Error::NoSandbox { .. })
    ));
    Ok(())
}

pub(crate) async fn an_engine_that_cannot_says_so() -> anyhow::Result<()> {
    let count = lab::sandbox().await?.fork(0).await;
    assert!(matches!(count, Err(Error::InvalidSetting { .. })));
    // Where krun runs, it is asked; elsewhere that it does not run is told first.
    let krun = lab::builder(lab::BUSYBOX).await?.engine(EngineKind::Krun);
    if let Ok(sandbox) = krun.create().await {
        for refused in [
            sandbox.pause().await,
            sandbox.snapshot("never").await,
            sandbox.fork(1).await.map(drop),
        ] {
            let refused = refused.expect_err("krun can't").to_string();
            assert!(refused.contains("krun does not support"), "{refused}");
        }
    }
    Ok(())
}
