//! The host's side of the setup phase against a scripted agent.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use bytes::BytesMut;
use msb_guest_agent::message::{
    self, AgentHello, AgentMessage, Configured, Entropy, GuestConfig, HostMessage,
    PROTOCOL_VERSION, RootSpec, SetupFailure, Upper,
};
use msb_guest_agent::wire::{Frame, FrameDecoder, Kind, StreamId};
use msb_guest_agent::{Error, setup};

/// Answers each request with the next of `answers`, then hangs up; returns the
/// requests.
fn scripted(answers: Vec<AgentMessage>) -> (UnixStream, JoinHandle<Vec<HostMessage>>) {
    let (host, mut agent) = UnixStream::pair().unwrap();
    let script = thread::spawn(move || {
        let mut decoder = FrameDecoder::new();
        let mut requests = Vec::new();
        for answer in answers {
            let mut request = Vec::new();
            loop {
                let Some(frame) = decoder.next_frame().unwrap() else {
                    let mut buffer = [0; 1000];
                    let n = agent.read(&mut buffer).unwrap();
                    decoder.extend(&buffer[..n]);
                    continue;
                };
                request.extend_from_slice(&frame.payload);
                if frame.kind == Kind::Control {
                    break;
                }
            }
            requests.push(message::decode(&request).unwrap());
            let payload = message::encode(&answer).into();
            let frame = Frame::new(Kind::Control, StreamId::CONTROL, payload).unwrap();
            let mut out = BytesMut::new();
            frame.encode(&mut out);
            agent.write_all(&out).unwrap();
        }
        requests
    });
    (host, script)
}

fn config() -> GuestConfig {
    GuestConfig {
        entropy: Entropy(vec![7; 32].into()),
        wall_clock_ns: 1,
        hostname: "box".into(),
        machine_id: [3; 16],
        root: RootSpec {
            lower: "root".into(),
            upper: Upper::Tmpfs { size: None },
        },
        // Longer than one frame.
        env: vec![vec![b'x'; 100_000].into()],
        user: None,
        workdir: None,
        network: None,
        trust: None,
    }
}

fn configured() -> Configured {
    Configured {
        entropy_bits: 256,
        boot_id: "b".into(),
        wall_clock_ns: 1,
        hostname: "box".into(),
        machine_id: [3; 16],
        uid: 0,
        gid: 0,
        resumed: false,
        mac: None,
    }
}

#[test]
fn hello_prepare_configure() {
    let hello = AgentHello {
        version: PROTOCOL_VERSION,
    };
    let (mut host, script) = scripted(vec![
        AgentMessage::Hello(hello.clone()),
        AgentMessage::Prepared,
        AgentMessage::Prepared,
        AgentMessage::Configured(Box::new(configured())),
    ]);
    assert_eq!(setup::hello(&mut host).unwrap(), hello);
    setup::prepare(&mut host, None).unwrap();
    let (root, read_ahead) = (config().root, vec!["/bin/sh".into()]);
    setup::mount_root(&mut host, root.clone(), read_ahead.clone()).unwrap();
    assert_eq!(setup::configure(&mut host, config()).unwrap(), configured());
    let expected = [
        HostMessage::Hello {
            version: PROTOCOL_VERSION,
        },
        HostMessage::Prepare { network: None },
        HostMessage::MountRoot { root, read_ahead },
        HostMessage::Configure(Box::new(config())),
    ];
    assert_eq!(script.join().unwrap(), expected);
}

#[test]
fn a_version_mismatch_names_both() {
    let failure = SetupFailure::Version {
        host: PROTOCOL_VERSION,
        agent: 9,
    };
    let answers = [
        AgentMessage::Failed(failure.clone()),
        AgentMessage::Hello(AgentHello { version: 9 }),
    ];
    for answer in answers {
        let (mut host, script) = scripted(vec![answer]);
        let error = setup::hello(&mut host).unwrap_err();
        assert_eq!(error, Error::Setup(failure.clone()));
        let text = error.to_string();
        assert!(
            text.contains(&format!("version {PROTOCOL_VERSION}")) && text.contains("version 9"),
            "{text}"
        );
        assert!(error.hint().is_some());
        script.join().unwrap();
    }
}

#[test]
fn an_unconfirmed_identity_is_an_error() {
    let lies = [
        Configured {
            entropy_bits: 0,
            ..configured()
        },
        Configured {
            hostname: "other".into(),
            ..configured()
        },
        Configured {
            machine_id: [4; 16],
            ..configured()
        },
        Configured {
            mac: Some([2, 0, 0, 0, 0, 1]),
            ..configured()
        },
        Configured {
            boot_id: String::new(),
            ..configured()
        },
    ];
    for lie in lies {
        let (mut host, script) = scripted(vec![AgentMessage::Configured(Box::new(lie))]);
        assert!(setup::configure(&mut host, config()).is_err());
        script.join().unwrap();
    }
}

#[test]
fn wrong_answers_and_hang_ups_are_errors() {
    let (mut host, script) = scripted(vec![AgentMessage::Prepared, AgentMessage::Prepared]);
    assert!(matches!(
        setup::hello(&mut host),
        Err(Error::Unexpected { .. })
    ));
    assert!(matches!(
        setup::configure(&mut host, config()),
        Err(Error::Unexpected { .. })
    ));
    script.join().unwrap();
    assert!(matches!(
        setup::hello(&mut host),
        Err(Error::LinkClosed { .. } | Error::LinkIo { .. })
    ));
}

#[test]
fn a_guest_that_says_nothing_did_not_answer_in_time() {
    let (mut host, _silent) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let error = setup::hello(&mut host).unwrap_err().to_string();
    assert!(error.ends_with("it did not answer in time"), "{error}");
}
