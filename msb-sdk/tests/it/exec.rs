//! Programs and what they are given.

use std::time::Duration;

use msb_sdk::{Error, ExecEvent, ExecOptions, Resource};

use crate::lab;

pub(crate) async fn programs_have_input_limits_and_time() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let counted = ExecOptions::new("wc", ["-c"]).input(vec![b'x'; 600_000]);
    let output = sandbox.exec_with(counted).await?.output().await?;
    assert_eq!(output.stdout()?.trim(), "600000");

    let options = ExecOptions::new("sh", ["-c", "ulimit -n; ulimit -f; ulimit -c"])
        .limit(Resource::Descriptors, Some(77))
        .limit(Resource::FileSize, Some(512 * 1024))
        .limit(Resource::CoreFile, Some(0));
    let output = sandbox.exec_with(options).await?.output().await?;
    assert_eq!(output.stdout()?, "77\n1024\n0\n");

    let forever = || ExecOptions::new("sh", ["-c", "echo begun; sleep 1000"]);
    let short = Duration::from_millis(300);
    let run = sandbox.exec_with(forever().timeout(short)).await?;
    match run.output().await {
        Err(Error::TimedOut { program, after }) => {
            assert_eq!((program.as_str(), after), ("sh", short));
        }
        other => panic!("{other:?}"),
    }
    let mut run = sandbox.exec_with(forever().timeout(short)).await?;
    let mut last = None;
    while let Some(event) = run.recv().await {
        last = Some(event);
    }
    assert_eq!(last, Some(ExecEvent::TimedOut { after: short }));

    // One that is killed says so itself.
    let mut run = sandbox.exec_with(forever()).await?;
    assert_eq!(run.recv().await, Some(ExecEvent::Stdout("begun\n".into())));
    run.kill();
    assert_eq!(run.wait().await?.code(), 137);

    // None of the sleepers is left.
    let count = "ps | grep -c '[s]leep 1000'";
    assert_eq!(sandbox.shell(count).await?.stdout()?, "0\n");

    let mut orphan = sandbox.exec_with(forever()).await?;
    assert!(orphan.recv().await.is_some());
    sandbox.kill().await?;
    assert!(matches!(orphan.recv().await, Some(ExecEvent::Lost { .. })));
    assert_eq!(orphan.recv().await, None);
    Ok(())
}

pub(crate) async fn a_realtime_task_leaves_the_rest_some_time() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::PYTHON).await?.create().await?;
    let script = "import os\n\
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))\n\
        os.write(1, b'realtime')\n\
        while True: pass";
    let options = ExecOptions::new("python3", ["-c", script]);
    let mut spinner = sandbox.exec_with(options).await?;
    assert_eq!(
        spinner.recv().await,
        Some(ExecEvent::Stdout("realtime".into()))
    );
    // There is one processor, and it is taken.
    let output = sandbox.exec("echo", ["alive"]).await?;
    assert_eq!(output.stdout()?, "alive\n");
    spinner.kill();
    assert_eq!(spinner.wait().await?.code(), 137);
    Ok(())
}

pub(crate) async fn a_shell_is_the_images() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let output = sandbox
        .shell("echo $((6 * 7)); echo err >&2; exit 3")
        .await?;
    assert_eq!(output.stdout()?, "42\n");
    assert_eq!(output.stderr()?, "err\n");
    assert_eq!(output.status().code(), 3);
    let mut run = sandbox.shell_stream("echo one").await?;
    let mut events = Vec::new();
    while let Some(event) = run.recv().await {
        events.push(event);
    }
    assert!(
        matches!(events[..], [ExecEvent::Stdout(_), ExecEvent::Exited(_)]),
        "{events:?}"
    );
    sandbox.kill().await?;
    Ok(())
}
