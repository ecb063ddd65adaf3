//! A guest whose root has taken over the agent: it says on the agent's link what it likes.

use std::time::Duration;

use bytes::BytesMut;
use msb_guest_agent::message::{self, AgentMessage, ByteString, Trouble};
use msb_guest_agent::wire::{Frame, Kind, StreamId};
use msb_sdk::{Activity, Error, LifeEvent, Sandbox, SandboxHandle};

use crate::lab;

/// Longer than anything here takes: a bound against hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Takes the agent's end of its link from it (`pidfd_getfd(2)`) and writes a file to it.
const SAY: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
agent = libc.syscall(434, 1, 0)
for number in range(64):
    fd = libc.syscall(438, agent, number, 0)
    if fd < 0 or "/vport" not in os.readlink(f"/proc/self/fd/{fd}"):
        continue
    with open(sys.argv[1], "rb") as file:
        left = file.read()
    while left:
        try:
            left = left[os.write(fd, left):]
        except BlockingIOError:
            pass
    sys.exit(0)
sys.exit("there is no link")
"#;

async fn say(sandbox: &Sandbox, bytes: &[u8]) -> anyhow::Result<()> {
    sandbox.fs().write("/tmp/said", bytes).await?;
    let said = sandbox.exec("python3", ["-c", SAY, "/tmp/said"]).await?;
    anyhow::ensure!(said.status().success(), "{}", said.stderr()?);
    Ok(())
}

/// A frame of the control stream.
fn control(message: &AgentMessage) -> anyhow::Result<BytesMut> {
    let payload = message::encode(message).into();
    let mut out = BytesMut::new();
    Frame::new(Kind::Control, StreamId::CONTROL, payload)?.encode(&mut out);
    Ok(out)
}

fn killed(program: &[u8]) -> AgentMessage {
    AgentMessage::Trouble(Trouble::OutOfMemory {
        killed: 1,
        program: Some(ByteString(program.to_vec())),
    })
}

pub(crate) async fn what_it_says_of_trouble_is_checked() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::PYTHON).await?.create().await?;
    let mut events = sandbox.events();
    // A name that no program has, then one that a terminal would obey.
    let mut said = control(&killed(&[b'x'; 65]))?;
    said.extend_from_slice(&control(&killed(b"\x1b[2Jmine\n"))?);
    say(&sandbox, &said).await?;
    let reason = loop {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await?;
        let event = event.expect("it runs");
        if let Activity::Life(LifeEvent::Trouble { reason, .. }) = event.activity {
            break reason;
        }
    };
    assert!(reason.contains("\\x1b[2Jmine\\n was killed"), "{reason}");
    let handle = SandboxHandle::find(&lab::home(), &sandbox.spec().name).await?;
    let troubles = handle.status().await?.troubles;
    assert_eq!((troubles.len(), troubles[0].count), (1, 1), "{troubles:?}");
    assert_eq!(troubles[0].message, reason);

    // As much of it as it can say is not written down each time, nor kept.
    let mut said = BytesMut::new();
    for _ in 0..10_000 {
        said.extend_from_slice(&control(&killed(b"again"))?);
    }
    say(&sandbox, &said).await?;
    assert!(sandbox.exec("true", [""; 0]).await?.status().success());
    let troubles = handle.status().await?.troubles;
    assert!((1..=8).contains(&troubles.len()), "{}", troubles.len());
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn bytes_that_are_no_frames_end_it() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::PYTHON).await?.create().await?;
    // The answer may be cut off by it.
    let _ = say(&sandbox, &[0xff; 64]).await;
    match sandbox.exec("true", [""; 0]).await {
        Err(Error::Gone { reason }) => {
            assert!(reason.contains("the guest broke the protocol"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}
