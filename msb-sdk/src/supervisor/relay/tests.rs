//! Clients against an agent that is played.

use super::*;
use msb_guest_agent::wire::MAX_PAYLOAD;

/// Clients and the other ends of what they ask.
fn clients() -> (Arc<Clients>, Asked) {
    let relay = Relay::new().expect("a relay");
    let Relay {
        runtime,
        clients,
        asked,
    } = relay;
    runtime.shutdown_background();
    (clients, asked)
}

fn frame(kind: Kind, stream: u32, len: usize) -> BytesMut {
    let frame = Frame::new(kind, StreamId(stream), vec![0; len].into()).expect("frame");
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out
}

/// A guest whose agent was taken over may stop reading its port.
#[tokio::test]
async fn a_guest_that_does_not_read_cannot_outlive_its_creator() {
    let (clients, mut asked) = clients();
    let (mut creator, theirs) = UnixStream::pair().expect("pair");
    let (agent, _never_read) = UnixStream::pair().expect("pair");
    let chunks = asked.agent.take().expect("chunks");
    tokio::spawn(write(chunks, agent.into_split().1));
    clients.serve(theirs, true, &[]);
    creator
        .write_all(&frame(Kind::Open, 1, 0))
        .await
        .expect("write");
    let stuck = Duration::from_millis(200);
    let out = frame(Kind::Data, 1, MAX_PAYLOAD);
    while let Ok(written) = tokio::time::timeout(stuck, creator.write_all(&out)).await {
        written.expect("the relay reads");
    }
    let limit = Duration::from_secs(10);
    // Nor does whoever comes to end it wait for the guest.
    let (mut other, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, false, &[]);
    let kill = control::encode(&control::ToSupervisor::Kill);
    other.write_all(&kill).await.expect("write");
    let end = tokio::time::timeout(limit, asked.ends.recv())
        .await
        .expect("it is killed");
    assert_eq!(end, Some(super::asked("killed")));

    creator.shutdown().await.expect("hang up");
    let end = tokio::time::timeout(limit, asked.ends.recv())
        .await
        .expect("it ends");
    assert_eq!(end, Some(super::asked("its creator ended")));
}

#[tokio::test]
async fn a_client_that_goes_takes_its_programs_along_and_nothing_else() {
    let (clients, mut asked) = clients();
    let mut chunks = asked.agent.take().expect("chunks");
    let (mut stays, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, false, b"");
    let (mut goes, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, false, b"hello");
    let mut greeting = [0; 5];
    goes.read_exact(&mut greeting).await.expect("a greeting");
    assert_eq!(&greeting, b"hello");

    stays
        .write_all(&frame(Kind::Open, 1, 0))
        .await
        .expect("write");
    assert_eq!(chunks.recv().await, Some(frame(Kind::Open, 1, 0)));
    goes.write_all(&frame(Kind::Open, 1, 0))
        .await
        .expect("write");
    assert_eq!(chunks.recv().await, Some(frame(Kind::Open, 2, 0)));
    drop(goes);
    assert_eq!(chunks.recv().await, Some(frame(Kind::Reset, 2, 1)));
    let answer = Frame::new(Kind::Event, StreamId(1), vec![7].into()).expect("frame");
    clients.deliver(answer).expect("it is open");
    let mut got = [0; 10];
    stays.read_exact(&mut got).await.expect("an answer");
    assert_eq!(got[9], 7);
    assert!(asked.ends.try_recv().is_err());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go_and_stops_nobody() {
    let (clients, mut asked) = clients();
    let mut chunks = asked.agent.take().expect("chunks");
    let (mut lazy, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, false, b"");
    lazy.write_all(&frame(Kind::Open, 1, 0))
        .await
        .expect("write");
    chunks.recv().await.expect("it was passed on");
    // No such amount can be under way in one stream; the guest cheats.
    for _ in 0..2048 {
        let data = Frame::new(Kind::Data, StreamId(1), vec![0; MAX_PAYLOAD].into());
        clients.deliver(data.expect("frame")).expect("it is open");
    }
    assert_eq!(chunks.recv().await, Some(frame(Kind::Reset, 1, 1)));
}

#[tokio::test]
async fn nonsense_of_a_client_ends_its_connection_only() {
    let (clients, mut asked) = clients();
    let (mut client, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, false, b"");
    client.write_all(&[0xff; 64]).await.expect("write");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("it is closed");
    assert!(asked.ends.try_recv().is_err());
    // One that the sandbox belongs to takes it along.
    let (mut owner, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, true, b"");
    owner
        .write_all(&frame(Kind::Data, 9, 2))
        .await
        .expect("write");
    let (reason, asked) = asked.ends.recv().await.expect("an end");
    assert!(!asked && reason.contains("protocol"), "{reason}");
}
