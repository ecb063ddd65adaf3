//! Passes frames between the creator and the agent, until the sandbox ends.
//!
//! Two directions, each with one frame in hand: a side that does not read
//! stops the other side's sender, and nothing piles up here. Flow control of
//! the streams is between the two ends.
//!
//! A guest that stops reading can't hold the sandbox: the creator's end of the
//! socket is watched while its frames wait.
//!
//! Both sides are checked: the guest's control frames stop here, and bytes
//! that are no frames end the sandbox.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use bytes::BytesMut;
use msb_guest_agent::message::{self, AgentMessage, HostMessage};
use msb_guest_agent::wire::{Frame, FrameDecoder, Kind, StreamId};
use msb_vmm::Vm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::{Mutex, mpsc, watch};

use super::dial;
use super::network::Wire;
use crate::control::{self, ToSupervisor};
use crate::port::PortRequest;

/// How much is read at once, and passed on at once.
const CHUNK: usize = 128 * 1024;

/// What an orderly shutdown may take beyond the programs' grace: flushing disks.
const FLUSH_TIME: Duration = Duration::from_secs(10);

/// Relays until the creator goes, the creator says so, or the machine ends.
/// The machine is gone when this returns. Says why, and whether it was asked for.
pub(super) fn run(
    creator: StdStream,
    agent: StdStream,
    mut vm: Vm,
    wire: &mut Wire,
) -> io::Result<(String, bool)> {
    creator.set_nonblocking(true)?;
    agent.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (why, asked) = runtime.block_on(async {
        let mut creator = UnixStream::from_std(creator)?;
        let mut agent = UnixStream::from_std(agent)?;
        // Borrowed halves: the last word to the creator is said after the relay.
        let (from_creator, to_creator) = creator.split();
        let (from_agent, to_agent) = agent.split();
        let to_agent = Mutex::new(to_agent);
        let (dials, dialling) = StdStream::pair()?;
        dials.set_nonblocking(true)?;
        let mut dials = UnixStream::from_std(dials)?;
        let (from_dials, to_dials) = dials.split();
        let refused = wire.take_refused();
        // Set when the agent says that everything is flushed.
        let (done, shutdown_done) = watch::channel(false);
        // Set when the creator wants to know what the network does.
        let (watched, wanted) = watch::channel(false);
        let (ports, requests) = mpsc::channel(MAX_REQUESTS);
        let messages = Messages {
            wire,
            wanted,
            requests,
        };
        let asks = Asks { watched, ports };
        let hosts = Hosts {
            creator: to_creator,
            dials: to_dials,
        };
        io::Result::Ok(tokio::select! {
            end = downwards(from_creator, &to_agent, shutdown_done, asks) => end,
            end = sideways(from_dials, &to_agent) => end,
            end = upwards(from_agent, hosts, done, messages) => end,
            () = dial(dialling, refused) => asked("its ports are served by nobody"),
        })
    })?;
    drop(runtime);
    // A machine whose port has closed is on its way out, and its exit says why.
    // One that stays all the same is not waited for.
    if asked || !ends_soon(&vm) {
        let _ = vm.kill();
    }
    let exit = if why.is_empty() {
        vm.wait().map(|exit| exit.to_string())
    } else {
        Ok(why)
    };
    drop(vm);
    Ok((exit.unwrap_or_else(|error| error.to_string()), asked))
}

/// Waits a moment for the machine's process to end by itself.
fn ends_soon(vm: &Vm) -> bool {
    let mut watched = [PollFd::new(vm, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 2,
        tv_nsec: 0,
    };
    matches!(poll(&mut watched, Some(&limit)), Ok(1..))
}

/// Requests about ports that may wait for the network; its creator waits with further ones.
const MAX_REQUESTS: usize = 16;

type End = (String, bool);

fn asked(why: &str) -> End {
    (why.to_owned(), true)
}

/// From the creator to the agent.
async fn downwards(
    mut creator: ReadHalf<'_>,
    agent: &Mutex<WriteHalf<'_>>,
    mut shut_down: watch::Receiver<bool>,
    asks: Asks,
) -> End {
    let mut decoder = FrameDecoder::new();
    let mut out = BytesMut::new();
    loop {
        decoder.buffer_mut().reserve(CHUNK);
        match creator.read_buf(decoder.buffer_mut()).await {
            Ok(0) | Err(_) => return asked("its creator ended"),
            Ok(_) => {}
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) if frame.stream.is_control() => match control::decode(&frame) {
                    Some(ToSupervisor::Stop { grace_ms }) => {
                        shutdown(agent, &mut shut_down, grace_ms).await;
                        return asked("stopped");
                    }
                    Some(ToSupervisor::WatchNetwork) => drop(asks.watched.send_replace(true)),
                    Some(ToSupervisor::Ports(request)) => tokio::select! {
                        // If the other direction has ended, so does this one.
                        _ = asks.ports.send(request) => {}
                        () = hung_up(&creator) => return asked("its creator ended"),
                    },
                    None => {
                        return (
                            "its creator sent something else than a request".into(),
                            false,
                        );
                    }
                },
                Ok(Some(frame)) if frame.stream.is_second() => {
                    return (
                        "its creator used a stream that is not its own".into(),
                        false,
                    );
                }
                Ok(Some(frame)) => frame.encode(&mut out),
                Ok(None) => break,
                Err(error) => return (format!("its creator broke the protocol: {error}"), false),
            }
        }
        tokio::select! {
            written = put(agent, &out) => if written.is_err() {
                // The machine is ending; the other direction says so.
                hung_up(&creator).await;
                return asked("its creator ended");
            },
            () = hung_up(&creator) => return asked("its creator ended"),
        }
        out.clear();
    }
}

/// Writes whole frames, which two sides send.
async fn put(agent: &Mutex<WriteHalf<'_>>, frames: &[u8]) -> io::Result<()> {
    agent.lock().await.write_all(frames).await
}

/// From the connections to the guest's loopback to the agent.
async fn sideways(mut dials: ReadHalf<'_>, agent: &Mutex<WriteHalf<'_>>) -> End {
    let mut decoder = FrameDecoder::new();
    let mut out = BytesMut::new();
    loop {
        decoder.buffer_mut().reserve(CHUNK);
        let read = dials.read_buf(decoder.buffer_mut()).await;
        while let Ok(Some(frame)) = decoder.next_frame() {
            frame.encode(&mut out);
        }
        // Whoever makes the connections gives up only if the guest says what makes no sense.
        if !matches!(read, Ok(1..)) {
            return ("the guest broke the protocol".into(), false);
        }
        if put(agent, &out).await.is_err() {
            // The machine is ending; the other direction says so.
            std::future::pending::<()>().await;
        }
        out.clear();
    }
}

/// Makes the connections.
async fn dial(socket: StdStream, refused: Option<mpsc::Receiver<dial::Client>>) {
    match refused {
        Some(clients) => dial::serve(socket, clients).await,
        None => std::future::pending().await,
    }
}

/// Waits until the creator has closed its end, whatever is still to be read from it.
async fn hung_up(creator: &ReadHalf<'_>) {
    // Nobody sends urgent data here: what is left to wait for is the end.
    while let Ok(ready) = creator.ready(Interest::PRIORITY).await {
        if ready.is_read_closed() {
            return;
        }
    }
}

/// Asks the agent to shut down and waits until it has, within bounds.
async fn shutdown(agent: &Mutex<WriteHalf<'_>>, done: &mut watch::Receiver<bool>, grace_ms: u32) {
    let message = message::encode(&HostMessage::Shutdown { grace_ms });
    let Ok(frame) = Frame::new(Kind::Control, StreamId::CONTROL, message.into()) else {
        return;
    };
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    let limit = Duration::from_millis(u64::from(grace_ms)) + FLUSH_TIME;
    let _ = tokio::time::timeout(limit, async {
        if put(agent, &out).await.is_ok() {
            let _ = done.wait_for(|done| *done).await;
        }
    })
    .await;
}

/// What the creator wants of the network.
struct Asks {
    watched: watch::Sender<bool>,
    ports: mpsc::Sender<PortRequest>,
}

/// What the network tells the creator: answers, and events once that wants them.
struct Messages<'a> {
    wire: &'a mut Wire,
    wanted: watch::Receiver<bool>,
    requests: mpsc::Receiver<PortRequest>,
}

impl Messages<'_> {
    /// Waits for the next one. Nothing is lost when this is given up.
    async fn next(&mut self) -> BytesMut {
        tokio::select! {
            Some(request) = self.requests.recv() => self.wire.handle(request),
            message = self.wire.message(&mut self.wanted) => message,
        }
    }
}

/// The two that have streams with the agent.
struct Hosts<'a> {
    creator: WriteHalf<'a>,
    dials: WriteHalf<'a>,
}

/// From the agent to the creator and the connections.
async fn upwards(
    mut agent: ReadHalf<'_>,
    mut hosts: Hosts<'_>,
    shut_down: watch::Sender<bool>,
    mut messages: Messages<'_>,
) -> End {
    let mut decoder = FrameDecoder::new();
    let mut out = BytesMut::new();
    let mut for_dials = BytesMut::new();
    loop {
        decoder.buffer_mut().reserve(CHUNK);
        tokio::select! {
            count = agent.read_buf(decoder.buffer_mut()) => match count {
                // The port closes when the machine ends; its process says how.
                Ok(0) | Err(_) => return (String::new(), false),
                Ok(_) => {}
            },
            // Between frames of the agent, never inside of one.
            message = messages.next() => out.extend_from_slice(&message),
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) if frame.stream.is_control() => {
                    if let Some(AgentMessage::ShutdownDone { .. }) = message::decode(&frame.payload)
                    {
                        shut_down.send_replace(true);
                    }
                }
                Ok(Some(frame)) if frame.stream.is_second() => frame.encode(&mut for_dials),
                Ok(Some(frame)) => frame.encode(&mut out),
                Ok(None) => break,
                Err(error) => return (format!("the guest broke the protocol: {error}"), false),
            }
        }
        if hosts.creator.write_all(&out).await.is_err() {
            return asked("its creator ended");
        }
        out.clear();
        // They are always read, whatever waits to be written.
        if hosts.dials.write_all(&for_dials).await.is_err() {
            return ("the guest broke the protocol".into(), false);
        }
        for_dials.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_guest_agent::wire::MAX_PAYLOAD;

    /// A guest whose agent was taken over may stop reading its port.
    #[tokio::test]
    async fn a_guest_that_does_not_read_cannot_outlive_its_creator() {
        let (mut creator, mut theirs) = UnixStream::pair().expect("pair");
        let (mut agent, _never_read) = UnixStream::pair().expect("pair");
        let (_done, shut_down) = watch::channel(false);
        let (watched, _wanted) = watch::channel(false);
        let (ports, _requests) = mpsc::channel(MAX_REQUESTS);
        let asks = Asks { watched, ports };
        let agent = Mutex::new(agent.split().1);
        let relaying = downwards(theirs.split().0, &agent, shut_down, asks);
        let flood = async {
            let payload = vec![0; MAX_PAYLOAD].into();
            let frame = Frame::new(Kind::Data, StreamId(1), payload).expect("frame");
            let mut out = BytesMut::new();
            frame.encode(&mut out);
            let stuck = Duration::from_millis(200);
            while let Ok(written) = tokio::time::timeout(stuck, creator.write_all(&out)).await {
                written.expect("the relay reads");
            }
            creator.shutdown().await.expect("hang up");
        };
        let limit = Duration::from_secs(10);
        let both = async { tokio::join!(relaying, flood).0 };
        let end = tokio::time::timeout(limit, both).await.expect("it ends");
        assert_eq!(end, asked("its creator ended"));
    }
}
