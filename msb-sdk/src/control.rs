//! What the SDK and a sandbox's supervisor say to each other.
//!
//! They share one socket with the guest's streams: these messages are JSON in
//! control frames, everything else belongs to the agent protocol and is passed
//! on. A control frame of the guest never reaches the SDK, so that a guest
//! can't speak for its supervisor.
//!
//! The creator's socket is a pair; it begins with the [`Launch`] and hears about the
//! start. If the sandbox is to live on, the creator then says that it has heard of it. Whoever comes later connects to a socket in the sandbox's folder, and is told
//! [`FromSupervisor::Ready`] first.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use msb_guest_agent::wire::{Frame, Kind, StreamId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::event::TimedLife;
use crate::machine::{MachineAnswer, MachineRequest, Source};
use crate::metrics::HostMetrics;
use crate::port::{PortAnswer, PortRequest, PublishedPort};
use crate::progress::VmStep;
use crate::secret::Values;
use crate::session::{SessionAnswer, SessionRequest};
use crate::spec::SandboxSpec;

/// From the SDK to the supervisor, after the [`Launch`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// Shut the guest down in order; kill it after the grace period.
    Stop {
        /// How long programs have to end themselves.
        grace_ms: u32,
    },
    /// Kill the guest at once.
    Kill,
    /// Tell what the network does: what it has done since the start, and what it will do.
    WatchNetwork,
    /// Offer ports of the guest on the host, or no longer. Each is answered, in order.
    Ports(PortRequest),
    /// Do something with the machine. Each is answered, in order.
    Machine(MachineRequest),
    /// Tell what becomes of the sandbox and its programs: since the start, and from now on.
    WatchLife,
    /// Say what the host sees of what the sandbox uses. Each is answered, in order.
    Metrics,
    /// Something about programs that nobody listens to. Each is answered, in order.
    Sessions(SessionRequest),
}

/// What to start: everything the supervisor needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) spec: SandboxSpec,
    /// Digest of the image's manifest: what the reference meant to the caller.
    pub(crate) image: String,
    pub(crate) home: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// Whether the sandbox ends with its creator.
    pub(crate) attached: bool,
    /// Whether it stays when it is stopped.
    pub(crate) keep: bool,
    /// Whether it has never run: if it does not start, nothing of it stays.
    pub(crate) fresh: bool,
    /// The snapshot that it goes on from, instead of starting from its image.
    pub(crate) source: Option<Source>,
}

/// From the supervisor to the SDK.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromSupervisor {
    /// What is being done.
    Progress(VmStep),
    /// The guest is configured; programs can be run.
    Ready(Ready),
    /// The sandbox could not be started. Nothing follows.
    Failed {
        reason: String,
        hint: Option<String>,
    },
    /// What the network did, once somebody asked: a line of its journal.
    Network { line: String },
    /// What became of the sandbox or a program in it, once somebody asked.
    Life(TimedLife),
    /// What came of the next request about ports.
    Ports(PortAnswer),
    /// What came of the next request about the machine.
    Machine(MachineAnswer),
    /// What the host sees of what the sandbox uses.
    Metrics(HostMetrics),
    /// What came of the next request about programs that nobody listens to.
    Sessions(SessionAnswer),
    /// A piece of what was kept of the output of such a program. No credit is given for it.
    Kept {
        /// As the client numbers it.
        stream: u32,
        channel: u8,
        /// In base64.
        data: String,
    },
    /// The sandbox has ended and is cleaned up. Nothing follows.
    Ended {
        /// Why, in words.
        reason: String,
        /// Whether that is what was asked for.
        asked: bool,
    },
}

/// How the start went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) engine: String,
    pub(crate) hardware: bool,
    pub(crate) vmm_pid: u32,
    /// From the VMM's start to the agent's first answer.
    pub(crate) agent: Duration,
    /// From the agent's first answer to a configured guest.
    pub(crate) configured: Duration,
    /// Where the host listens for each port of the guest.
    pub(crate) ports: Vec<PublishedPort>,
}

/// The longest launch message, in bytes: more environment than a kernel takes, and a
/// policy that blocks a million names.
const MAX_LAUNCH: usize = 64 << 20;

/// The most of a reason that is passed on, in bytes. Some of it may be the guest's words.
const MAX_REASON: usize = 4 << 10;

/// Sends the launch message: its length as u32 LE, then JSON. It comes before all
/// frames, because an environment may be longer than one.
/// Behind it come the values of secrets, which are in no JSON.
pub(crate) fn send_launch(
    socket: &mut impl Write,
    launch: &Launch,
    values: &Values,
) -> io::Result<()> {
    let json = serde_json::to_vec(launch)?;
    if json.len() > MAX_LAUNCH {
        let reason = "the sandbox's environment or block list is too long";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    socket.write_all(&(json.len() as u32).to_le_bytes())?;
    socket.write_all(&json)?;
    values.send(socket)
}

/// What a creator says once it knows that its sandbox is ready, ahead of all frames.
const ADOPTED: u8 = 0x06;

/// How long a creator may take to say so: it may be stopped by its user for a while.
const ADOPTION: Duration = Duration::from_secs(60);

/// Takes a sandbox that is to live on.
pub(crate) fn adopt(socket: &mut impl Write) -> io::Result<()> {
    socket.write_all(&[ADOPTED])
}

/// Waits until the creator has taken the sandbox; `false` when it is gone or does not.
pub(crate) fn is_adopted(creator: &mut UnixStream) -> bool {
    let mut said = [0];
    let read = creator
        .set_read_timeout(Some(ADOPTION))
        .and_then(|()| creator.read_exact(&mut said))
        .and_then(|()| creator.set_read_timeout(None));
    read.is_ok() && said == [ADOPTED]
}

/// Reads the launch message, and not a byte more than it.
pub(crate) fn receive_launch(socket: &mut impl Read) -> io::Result<(Launch, Values)> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_LAUNCH {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut json = vec![0; length];
    socket.read_exact(&mut json)?;
    let launch = serde_json::from_slice(&json)?;
    Ok((launch, Values::receive(socket)?))
}

/// A reason, cut so that its message fits into a frame whatever is escaped in it.
pub(crate) fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason
}

/// A message as a frame on the control stream.
pub(crate) fn encode<T: Serialize>(message: &T) -> BytesMut {
    let json = serde_json::to_vec(message).expect("messages of plain data can be encoded");
    let frame = Frame::new(Kind::Control, StreamId::CONTROL, Bytes::from(json))
        .expect("control messages are far shorter than a frame");
    let mut out = BytesMut::with_capacity(frame.encoded_len());
    frame.encode(&mut out);
    out
}

/// Reads a message from a frame of the control stream.
pub(crate) fn decode<T: DeserializeOwned>(frame: &Frame) -> Option<T> {
    if frame.kind != Kind::Control {
        return None;
    }
    serde_json::from_slice(&frame.payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_guest_agent::wire::FrameDecoder;

    #[test]
    fn messages_survive_the_way() {
        let mut decoder = FrameDecoder::new();
        decoder.extend(&encode(&ToSupervisor::Stop { grace_ms: 7 }));
        let frame = decoder.next_frame().expect("frame").expect("whole");
        assert!(matches!(
            decode(&frame),
            Some(ToSupervisor::Stop { grace_ms: 7 })
        ));
        assert!(decode::<FromSupervisor>(&frame).is_none());
    }

    #[test]
    fn a_long_environment_reaches_the_supervisor() {
        let value = "x".repeat(300_000);
        let launch = Launch {
            spec: crate::spec::SandboxSpec {
                env: vec![("BIG".into(), value.clone())],
                ..crate::spec::SandboxSpec::new("demo".into())
            },
            image: String::new(),
            home: "/".into(),
            kernel: "/".into(),
            initramfs: "/".into(),
            attached: true,
            keep: false,
            fresh: true,
            source: None,
        };
        let mut sent = Vec::new();
        send_launch(&mut sent, &launch, &Values::default()).expect("send");
        sent.extend_from_slice(b"the rest");
        let mut socket = sent.as_slice();
        let (received, _) = receive_launch(&mut socket).expect("receive");
        assert_eq!(received.spec.env, [("BIG".to_owned(), value)]);
        assert_eq!(socket, b"the rest");
    }

    #[test]
    fn the_longest_reason_fits_into_a_frame() {
        let reason = cut("\0ä".repeat(100_000));
        encode(&FromSupervisor::Failed { reason, hint: None });
    }
}
