//! The two ends against each other, and each against a hostile peer.

use std::collections::BTreeMap;

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::fuzzing;
use crate::message::{
    self, AgentMessage, ExecRequest, ExitStatus, HostMessage, Request, ResetCode, Signal,
    StreamCommand, StreamEvent,
};
use crate::wire::{Channel, Kind, MAX_DATA, StreamId, put_frame, put_message};

const EXITED: StreamEvent = StreamEvent::Exited(ExitStatus::Code(0));
const STARTED: StreamEvent = StreamEvent::Started { pid: 1 };

fn request() -> Request {
    Request::Exec(ExecRequest::default())
}

/// Passes all output both ways and returns what each end made of it.
fn exchange(
    host: &mut HostEndpoint,
    guest: &mut GuestEndpoint,
) -> (Vec<HostEvent>, Vec<GuestEvent>) {
    let (mut to_host, mut to_guest) = (Vec::new(), Vec::new());
    while !host.output().is_empty() || !guest.output().is_empty() {
        guest.handle_input(host.output());
        host.consume_output(host.output().len());
        while let Some(event) = guest.poll_event().unwrap() {
            to_guest.push(event);
        }
        host.handle_input(guest.output());
        guest.consume_output(guest.output().len());
        while let Some(event) = host.poll_event().unwrap() {
            to_host.push(event);
        }
    }
    (to_host, to_guest)
}

/// Both ends with one stream that has started.
fn connected() -> (HostEndpoint, GuestEndpoint, StreamId) {
    let (mut host, mut guest) = (HostEndpoint::new(), GuestEndpoint::new());
    let stream = host.open(&request()).unwrap();
    exchange(&mut host, &mut guest);
    guest.event(stream, &STARTED).unwrap();
    exchange(&mut host, &mut guest);
    (host, guest, stream)
}

#[test]
fn a_stream_from_open_to_close() {
    let (mut host, mut guest) = (HostEndpoint::new(), GuestEndpoint::new());
    let stream = host.open(&request()).unwrap();
    let (_, seen) = exchange(&mut host, &mut guest);
    let request = request();
    assert_eq!(seen, [GuestEvent::Opened { stream, request }]);

    guest.event(stream, &STARTED).unwrap();
    guest.send(stream, Channel::Stderr, b"e").unwrap();
    host.send(stream, b"in").unwrap();
    host.finish(stream).unwrap();
    let (_, seen) = exchange(&mut host, &mut guest);
    let data = b"in"[..].into();
    assert_eq!(
        seen,
        [
            GuestEvent::Data { stream, data },
            GuestEvent::Eof { stream }
        ]
    );

    guest.event(stream, &EXITED).unwrap();
    let (seen, _) = exchange(&mut host, &mut guest);
    let eof = |channel| HostEvent::Eof { stream, channel };
    let expected = [
        eof(Channel::Stdout),
        eof(Channel::Stderr),
        HostEvent::Stream {
            stream,
            event: EXITED,
        },
        HostEvent::Closed {
            stream,
            reset: None,
        },
    ];
    assert_eq!(seen, expected);
    assert_eq!((host.open_streams(), guest.open_streams()), (0, 0));
    assert_eq!(host.send(stream, b"x"), Err(Error::NotOpen { stream }));
    assert_eq!(guest.event(stream, &EXITED), Err(Error::NotOpen { stream }));
}

#[test]
fn control_messages_and_commands_pass() {
    let (mut host, mut guest, stream) = connected();
    let (signal, group) = (Signal::INT, false);
    let command = StreamCommand::Signal { signal, group };
    host.command(stream, &command).unwrap();
    host.control(&HostMessage::Ping { token: 3 });
    guest.control(&AgentMessage::Pong { token: 3 });
    let (to_host, to_guest) = exchange(&mut host, &mut guest);
    assert_eq!(
        to_host,
        [HostEvent::Control(AgentMessage::Pong { token: 3 })]
    );
    let control = GuestEvent::Control(HostMessage::Ping { token: 3 });
    assert_eq!(to_guest, [GuestEvent::Command { stream, command }, control]);
}

#[test]
fn requests_longer_than_a_frame_pass_and_too_long_ones_do_not() {
    let long = |n: usize| {
        let argv = vec![vec![b'x'; n].into()];
        Request::Exec(ExecRequest {
            argv,
            ..ExecRequest::default()
        })
    };
    let (mut host, mut guest) = (HostEndpoint::new(), GuestEndpoint::new());
    let stream = host.open(&long(1_000_000)).unwrap();
    let (_, seen) = exchange(&mut host, &mut guest);
    let request = long(1_000_000);
    assert_eq!(seen, [GuestEvent::Opened { stream, request }]);
    let error = host.open(&long(message::MAX_MESSAGE)).unwrap_err();
    assert!(matches!(error, Error::RequestTooLong { .. }));
    assert!(error.hint().is_some());
}

#[test]
fn credit_runs_out_and_comes_back() {
    let (mut host, mut guest, stream) = connected();
    let data = vec![1; INITIAL_WINDOW as usize + 1];
    let n = guest.send(stream, Channel::Stdout, &data).unwrap();
    assert_eq!(n, INITIAL_WINDOW as usize);
    assert_eq!(guest.send(stream, Channel::Stdout, &data).unwrap(), 0);
    assert_eq!(
        guest.capacity(stream, Channel::Stderr),
        INITIAL_WINDOW as usize
    );
    exchange(&mut host, &mut guest);
    host.consumed(stream, Channel::Stdout, 100_000);
    let (_, seen) = exchange(&mut host, &mut guest);
    let channel = Channel::Stdout;
    assert_eq!(seen, [GuestEvent::Writable { stream, channel }]);
    assert_eq!(guest.capacity(stream, Channel::Stdout), 100_000);
    // What was never delivered gives no credit.
    host.consumed(stream, Channel::Stdout, usize::MAX);
    exchange(&mut host, &mut guest);
    assert_eq!(
        guest.capacity(stream, Channel::Stdout),
        INITIAL_WINDOW as usize
    );
}

#[test]
fn a_reset_crosses_what_is_under_way() {
    let (mut host, mut guest, stream) = connected();
    guest.send(stream, Channel::Stdout, b"late").unwrap();
    guest.event(stream, &EXITED).unwrap();
    host.send(stream, b"late, too").unwrap();
    host.reset(stream, ResetCode::Cancelled);
    let (to_host, to_guest) = exchange(&mut host, &mut guest);
    assert_eq!((to_host, to_guest), (vec![], vec![]));
    assert_eq!((host.open_streams(), guest.open_streams()), (0, 0));

    let (mut host, mut guest, stream) = connected();
    host.reset(stream, ResetCode::Cancelled);
    let (_, to_guest) = exchange(&mut host, &mut guest);
    let reset = Some(ResetCode::Cancelled);
    assert_eq!(to_guest, [GuestEvent::Closed { stream, reset }]);
    guest.handle_input(&[]);
    guest.consumed(stream, 5);
    assert!(guest.output().is_empty());
}

#[test]
fn streams_are_bounded_on_both_sides() {
    let (mut host, mut guest) = (HostEndpoint::new(), GuestEndpoint::new());
    for _ in 0..MAX_STREAMS {
        host.open(&request()).unwrap();
    }
    let max = MAX_STREAMS;
    assert_eq!(host.open(&request()), Err(Error::TooManyStreams { max }));
    exchange(&mut host, &mut guest);
    // A relay can pass on more than one host would open: they are refused.
    let extra = StreamId(900_000);
    let mut bytes = BytesMut::new();
    put_message(&mut bytes, Kind::Open, extra, &message::encode(&request()));
    guest.handle_input(&bytes);
    assert_eq!(guest.poll_event(), Ok(None));
    let mut expected = BytesMut::new();
    let refused = [ResetCode::Refused as u8];
    put_frame(&mut expected, Kind::Reset, extra, &[&refused]);
    assert_eq!(guest.output(), &expected[..]);
    assert_eq!(guest.open_streams(), MAX_STREAMS);
}

/// What `end` says to frames of a hostile peer on stream 1, the last of which
/// must be refused.
macro_rules! refused {
    ($end:expr, $(($kind:ident, $payload:expr)),+) => {{
        let mut bytes = BytesMut::new();
        $(put_frame(&mut bytes, Kind::$kind, StreamId(1), &[&$payload]);)+
        let mut end = $end;
        end.handle_input(&bytes);
        loop {
            match end.poll_event() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("not refused"),
                Err(error) => {
                    assert_eq!(end.poll_event(), Err(error.clone()), "the first error is final");
                    break error;
                }
            }
        }
    }};
}

fn open_guest() -> GuestEndpoint {
    let (_, guest, stream) = connected();
    assert_eq!(stream, StreamId(1));
    guest
}

fn open_host() -> HostEndpoint {
    connected().0
}

#[test]
fn a_hostile_host_is_refused() {
    let data = vec![0; MAX_DATA + 1];
    let window = |n: u32| [&[1][..], &n.to_le_bytes()].concat();
    let error = refused!(
        open_guest(),
        (Data, data),
        (Data, data),
        (Data, data),
        (Data, data),
        (Data, data)
    );
    assert!(matches!(
        error,
        Error::CreditExceeded {
            len: MAX_DATA,
            credit: 4,
            ..
        }
    ));
    let error = refused!(open_guest(), (Window, window(MAX_WINDOW)));
    assert!(matches!(error, Error::WindowOverflow { .. }));
    for payload in [
        window(0),
        vec![1, 0],
        vec![0, 1, 0, 0, 0],
        vec![9, 1, 0, 0, 0],
    ] {
        let error = refused!(open_guest(), (Window, payload));
        assert!(matches!(error, Error::Payload { .. }));
    }
    for payload in [&[][..], &[0], &[1, b'x'], &[3, b'x']] {
        let error = refused!(open_guest(), (Data, payload));
        assert!(matches!(error, Error::Payload { .. }));
    }
    refused!(open_guest(), (Eof, [0]), (Eof, [0]));
    refused!(open_guest(), (Eof, [0]), (Data, [0, 1]));
    refused!(open_guest(), (Open, message::encode(&request())));
    refused!(open_guest(), (Event, message::encode(&EXITED)));
    refused!(open_guest(), (Part, [1]));
    refused!(open_guest(), (Close, [1]));
    refused!(open_guest(), (Close, []), (Close, []));
    refused!(open_guest(), (Reset, [0]), (Data, [0, 1]));
    let error = refused!(open_guest(), (Command, [77]));
    assert!(matches!(error, Error::Message { .. }));
    for kind in ["Data", "Eof", "Window", "Close", "Command"] {
        let error = match kind {
            "Data" => refused!(GuestEndpoint::new(), (Data, [0, 1])),
            "Eof" => refused!(GuestEndpoint::new(), (Eof, [0])),
            "Window" => refused!(GuestEndpoint::new(), (Window, window(1))),
            "Close" => refused!(GuestEndpoint::new(), (Close, [])),
            _ => refused!(GuestEndpoint::new(), (Command, [])),
        };
        assert!(
            matches!(error, Error::Unexpected { .. }),
            "{kind} before Open"
        );
    }
    refused!(GuestEndpoint::new(), (Part, []));
    refused!(GuestEndpoint::new(), (Part, [1]), (Data, [0, 1]));
}

#[test]
fn a_hostile_guest_is_refused() {
    let exited = message::encode(&EXITED);
    let started = message::encode(&STARTED);
    refused!(HostEndpoint::new(), (Open, message::encode(&request())));
    refused!(HostEndpoint::new(), (Event, exited));
    refused!(open_host(), (Command, [1, 0, 0]));
    refused!(open_host(), (Event, started));
    refused!(open_host(), (Event, exited), (Event, exited));
    refused!(open_host(), (Event, exited), (Data, [1, 1]));
    refused!(open_host(), (Close, []));
    refused!(open_host(), (Data, [0, 1]));
    refused!(open_host(), (Part, [1]), (Data, [1, 1]));
    refused!(open_host(), (Part, [0]), (Event, [0]));
    let mut host = HostEndpoint::new();
    host.open(&request()).unwrap();
    refused!(host, (Data, [1, 1]));
}

#[test]
fn unfinished_messages_are_bounded() {
    let mut guest = GuestEndpoint::new();
    let part = vec![0; crate::wire::MAX_PAYLOAD];
    let mut sent = 0;
    let error = loop {
        let mut bytes = BytesMut::new();
        let stream = StreamId(1 + (sent / message::MAX_MESSAGE) as u32);
        put_frame(&mut bytes, Kind::Part, stream, &[&part]);
        guest.handle_input(&bytes);
        match guest.poll_event() {
            Ok(event) => assert_eq!(event, None),
            Err(error) => break error,
        }
        sent += part.len();
    };
    assert!(matches!(error, Error::Unexpected { .. }));
    assert_eq!(sent, MAX_ASSEMBLING);
}

/// What the model of `transfer` does next.
#[derive(Clone, Debug)]
enum Step {
    Send(u8, usize),
    Consume(u8, usize),
    Deliver(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1u8..3, 1usize..300_000).prop_map(|(channel, n)| Step::Send(channel, n)),
        (1u8..3, 1usize..300_000).prop_map(|(channel, n)| Step::Consume(channel, n)),
        (0usize..400_000, 0usize..100).prop_map(|(up, down)| Step::Deliver(up, down)),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However output is sent, cut and consumed: every byte arrives once and in
    /// order, and no more than a window is ever outstanding on a channel.
    #[test]
    fn transfer_is_faithful_and_bounded(steps in steps()) {
        let (mut host, mut guest, stream) = connected();
        let mut sent = BTreeMap::from([(1, 0usize), (2, 0)]);
        let mut received = sent.clone();
        let mut consumed = sent.clone();
        for step in steps {
            match step {
                Step::Send(channel, n) => {
                    let total = sent.get_mut(&channel).unwrap();
                    let data: Vec<u8> = (*total..*total + n).map(|i| (i % 251) as u8).collect();
                    let channel = Channel::from_wire(channel).unwrap();
                    *total += guest.send(stream, channel, &data).unwrap();
                }
                Step::Consume(channel, n) => {
                    let n = n.min(received[&channel] - consumed[&channel]);
                    *consumed.get_mut(&channel).unwrap() += n;
                    host.consumed(stream, Channel::from_wire(channel).unwrap(), n);
                }
                Step::Deliver(up, down) => {
                    let n = up.min(guest.output().len());
                    host.handle_input(&guest.output()[..n]);
                    guest.consume_output(n);
                    let n = down.min(host.output().len());
                    guest.handle_input(&host.output()[..n]);
                    host.consume_output(n);
                    while guest.poll_event().unwrap().is_some() {}
                    while let Some(event) = host.poll_event().unwrap() {
                        let HostEvent::Data { channel, data, .. } = event else { continue };
                        let total = received.get_mut(&(channel as u8)).unwrap();
                        for byte in data {
                            prop_assert_eq!(byte, (*total % 251) as u8);
                            *total += 1;
                        }
                    }
                }
            }
            for channel in [1, 2] {
                prop_assert!(sent[&channel] - consumed[&channel] <= INITIAL_WINDOW as usize);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzzing::agent_frames(&bytes);
        fuzzing::agent_endpoint(&bytes);
    }

    /// Well-formed frames in any order: deeper than arbitrary bytes get.
    #[test]
    fn arbitrary_frames_never_panic(
        frames in prop::collection::vec(
            (prop::sample::select(&Kind::ALL[..]), 0u32..5, prop::collection::vec(0u8..4, 0..8)),
            0..40,
        )
    ) {
        let mut bytes = BytesMut::new();
        for (kind, stream, payload) in frames {
            put_frame(&mut bytes, kind, StreamId(stream), &[&payload]);
        }
        fuzzing::agent_frames(&bytes);
        fuzzing::agent_endpoint(&bytes);
    }
}
