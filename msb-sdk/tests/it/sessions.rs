//! Programs that are let go of and come back to; programs in a sandbox without memory.

use msb_sdk::{Error, ExecEvent, ExecOptions, Sandbox, Trouble};

use crate::lab;

/// More than there is credit for in either direction.
const MUCH: usize = 600_000;

pub(crate) async fn a_program_goes_on_while_nobody_listens() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let script = format!("echo begun; yes | head -c {MUCH}; echo; touch /tmp/done; wc -c; exit 9");
    let options = ExecOptions::new("sh", ["-c", &script]).stdin();
    let mut run = sandbox.exec_with(options).await?;
    // Some of what is under way is not read: its credit is given all the same.
    let Some(ExecEvent::Stdout(first)) = run.recv().await else {
        panic!("it writes");
    };
    assert!(first.starts_with(b"begun\n"));
    let id = run.detach().await?;
    while let Some(event) = run.recv().await {
        assert!(matches!(event, ExecEvent::Stdout(_)), "{event:?}");
    }
    drop(run);
    while sandbox.fs().stat("/tmp/done").await.is_err() {}
    let [listed] = &sandbox.sessions().await?[..] else {
        panic!("there is one");
    };
    assert_eq!((listed.id, listed.ended), (id, false));
    assert!(listed.command.starts_with("sh -c echo begun"), "{listed:?}");

    // From another process, as it were.
    let handle = Sandbox::list_in(&lab::home()).await?;
    assert!(handle.iter().any(|one| one.name == sandbox.spec().name));
    let there = msb_sdk::SandboxHandle::find(&lab::home(), &sandbox.spec().name).await?;
    let there = there.connect().await?;
    let run = there.attach(id).await?;
    assert!(there.attach(id).await.is_err(), "somebody has it");
    assert!(there.sessions().await?.is_empty());
    let stdin = run.stdin();
    let input = tokio::spawn(async move {
        stdin.write(vec![b'x'; MUCH]).await?;
        stdin.close();
        Ok::<_, Error>(())
    });
    let output = run.output().await?;
    input.await??;
    assert_eq!(output.status().code(), 9);
    let text = output.stdout()?;
    assert!(
        text.ends_with(&format!("\n{MUCH}\n")),
        "{}",
        &text[text.len() - 40..]
    );
    // What was dropped ended anywhere, also within a line.
    assert!(text.trim_start().starts_with("y\ny\n"), "{}", &text[..40]);
    assert!((200_000..300_000).contains(&text.len()), "{}", text.len());

    // Its end is kept, too; a program that has ended can't be let go of.
    let script = "mkfifo /tmp/go; echo on; read line < /tmp/go; echo went";
    let mut run = sandbox.shell_stream(script).await?;
    assert_eq!(run.recv().await, Some(ExecEvent::Stdout("on\n".into())));
    let id = run.detach().await?;
    sandbox.shell("echo > /tmp/go").await?;
    while !sandbox.sessions().await?[0].ended {}
    let output = sandbox.attach(id).await?.output().await?;
    assert_eq!(output.stdout()?, "went\n");
    let mut run = sandbox.shell_stream("true").await?;
    assert!(run.wait().await?.success());
    assert!(run.detach().await.is_err());
    // It may be in the middle of much that is read.
    for chunks in 1..=8 {
        let mut run = sandbox.shell_stream("exec yes").await?;
        let mut read = 0;
        while read < chunks * 100_000 {
            let Some(ExecEvent::Stdout(data)) = run.recv().await else {
                panic!("it writes");
            };
            read += data.len();
        }
        let id = run.detach().await?;
        while run.recv().await.is_some() {}
        let mut run = sandbox.attach(id).await?;
        while read < (chunks + 10) * 100_000 {
            let Some(ExecEvent::Stdout(data)) = run.recv().await else {
                panic!("it goes on");
            };
            read += data.len();
        }
        run.kill();
    }
    // Who comes back and drops it ends it.
    let mut run = sandbox
        .shell_stream("trap '' HUP; echo on; sleep 1000")
        .await?;
    assert_eq!(run.recv().await, Some(ExecEvent::Stdout("on\n".into())));
    let id = run.detach().await?;
    let pid = run.pid();
    drop(sandbox.attach(id).await?);
    let gone = format!("while kill -0 {pid} 2>/dev/null; do :; done");
    assert!(sandbox.shell(gone).await?.status().success());
    sandbox.stop_and_wait().await?;
    Ok(())
}

pub(crate) async fn memory_that_ran_out_is_an_error_of_its_own() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::PYTHON)
        .await?
        .memory_mib(256)
        .create()
        .await?;
    let hog = "x = []\nwhile True: x.append(bytearray(1 << 20))";
    let error = sandbox.exec("python3", ["-c", hog]).await;
    assert!(
        matches!(&error, Err(Error::OutOfMemory { program }) if program == "python3"),
        "{error:?}"
    );
    assert_eq!(error.err().map(|error| error.exit_code()), Some(137));
    let output = sandbox.shell(format!("python3 -c '{hog}'; exit 4")).await?;
    assert_eq!(output.status().code(), 4);
    let [trouble @ Trouble::OutOfMemory { killed: 1.., .. }] = output.troubles() else {
        panic!("{:?}", output.troubles());
    };
    let text = sandbox.explain(trouble);
    assert!(text.contains("256 MiB"), "{text}");
    sandbox.stop_and_wait().await?;
    Ok(())
}
