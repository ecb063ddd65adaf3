//! Clients against an agent that is played.

use super::*;
use msb_guest_agent::wire::MAX_PAYLOAD;
use tokio::io::AsyncWriteExt;

/// Clients and the other ends of what they ask.
fn clients() -> (Arc<Clients>, Asked) {
    let relay = Relay::new(Meter::default()).expect("a relay");
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
    let (_orders, ordered) = mpsc::channel(1);
    tokio::spawn(machine::write(chunks, ordered, agent.into_split().1));
    clients.serve(theirs, Tie::Ends, &[]);
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
    clients.serve(theirs, Tie::Loose, &[]);
    let kill = control::encode(&control::ToSupervisor::Kill);
    other.write_all(&kill).await.expect("write");
    let end = tokio::time::timeout(limit, asked.ends.recv())
        .await
        .expect("it is killed");
    let end = end.expect("an end");
    assert_eq!((end.reason.as_str(), end.asked), ("killed", true));

    creator.shutdown().await.expect("hang up");
    let end = tokio::time::timeout(limit, asked.ends.recv())
        .await
        .expect("it ends");
    let end = end.expect("an end");
    assert_eq!(
        (end.reason.as_str(), end.asked),
        ("its creator ended", true)
    );
}

#[tokio::test]
async fn a_client_that_goes_takes_its_programs_along_and_nothing_else() {
    let (clients, mut asked) = clients();
    let mut chunks = asked.agent.take().expect("chunks");
    let (mut stays, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, Tie::Loose, b"");
    let (mut goes, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, Tie::Loose, b"hello");
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
    clients.serve(theirs, Tie::Loose, b"");
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
    clients.serve(theirs, Tie::Loose, b"");
    client.write_all(&[0xff; 64]).await.expect("write");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("it is closed");
    assert!(asked.ends.try_recv().is_err());
    // One that the sandbox belongs to takes it along.
    let (mut owner, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, Tie::Ends, b"");
    owner
        .write_all(&frame(Kind::Data, 9, 2))
        .await
        .expect("write");
    let end = asked.ends.recv().await.expect("an end");
    assert!(!end.asked && end.reason.contains("protocol"), "{end:?}");
}

#[tokio::test]
async fn an_owner_that_goes_may_leave_an_end_in_order() {
    let (clients, mut asked) = clients();
    let (owner, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, Tie::Stops, b"");
    drop(owner);
    let stop = asked.stops.recv().await.expect("a stop");
    assert_eq!(stop.why, "its creator ended");
    assert!(asked.ends.try_recv().is_err());
}

/// What a watcher hears until its events end with this one.
async fn hears(watcher: &mut UnixStream, last: u64) -> Vec<String> {
    let mut decoder = FrameDecoder::new();
    let mut lines = Vec::new();
    loop {
        while let Some(frame) = decoder.next_frame().expect("frames") {
            if let Some(FromSupervisor::Network { line }) = control::decode(&frame) {
                lines.push(line);
            }
        }
        let wanted = format!("\"count\":{last}}}");
        if lines.last().is_some_and(|line| line.ends_with(&wanted)) {
            return lines;
        }
        let read = watcher.read_buf(decoder.buffer_mut()).await.expect("read");
        assert!(read > 0, "no more after {:?}", lines.last());
    }
}

#[tokio::test]
async fn a_watcher_that_does_not_read_holds_nobody_back() {
    let (clients, _asked) = clients();
    let event = |number: u64| {
        let line =
            format!("{{\"time\":1.0,\"event\":\"dropped\",\"reason\":\"x\",\"count\":{number}}}");
        control::encode(&FromSupervisor::Network { line })
    };
    let watch = control::encode(&control::ToSupervisor::WatchNetwork);
    clients.add_event(event(0));
    let (mut stalled, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, Tie::Loose, b"");
    stalled.write_all(&watch).await.expect("write");
    let (mut quick, theirs) = UnixStream::pair().expect("pair");
    clients.serve(theirs, Tie::Loose, b"");
    quick.write_all(&watch).await.expect("write");
    // Both hear of what was before them.
    assert_eq!(hears(&mut quick, 0).await.len(), 1);
    for round in 0..20u64 {
        for number in 0..1000 {
            clients.add_event(event(1 + 1000 * round + number));
        }
        let heard = hears(&mut quick, 1000 * (round + 1)).await;
        assert_eq!(heard.len(), 1000);
    }
    let late = hears(&mut stalled, 20_000).await;
    let lost = late.iter().find(|line| line.contains("\"lost\""));
    let lost = lost.and_then(|line| line.trim_end_matches('}').rsplit(':').next());
    let lost: usize = lost.expect("a count").parse().expect("a number");
    assert_eq!(late.len() - 1 + lost, 20_001);
}
