//! Pins the bytes of each message. A test that fails here means that the
//! protocol changed: append variants, or raise `PROTOCOL_VERSION`.

use std::fmt::Debug;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

/// `message` is encoded as `hex` (spaces do not count), and decoded back.
// By value: the tables below read better.
#[allow(clippy::needless_pass_by_value)]
fn pin<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: T, hex: &str) {
    let bytes = encode(&message);
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, hex.replace(' ', ""), "{message:?}");
    assert_eq!(decode::<T>(&bytes).as_ref(), Some(&message));
    assert_eq!(
        decode::<T>(&[&bytes[..], &[0]].concat()),
        None,
        "trailing byte"
    );
    if let Some(short) = bytes.len().checked_sub(1) {
        assert_eq!(decode::<T>(&bytes[..short]), None, "last byte missing");
    }
}

fn config(upper: Upper) -> GuestConfig {
    GuestConfig {
        entropy: Entropy(vec![0xee; 2].into()),
        wall_clock_ns: 300,
        hostname: "h".into(),
        machine_id: [0xab; 16],
        root: RootSpec {
            lower: "vda".into(),
            upper,
        },
        env: vec!["A=1".into()],
        user: Some("u".into()),
        workdir: Some("/w".into()),
        network: None,
        trust: None,
    }
}

#[test]
fn host_messages() {
    pin(HostMessage::Hello { version: 1 }, "00 01");
    pin(HostMessage::Prepare { network: None }, "01 00");
    let settings = NetworkSettings {
        mtu: 300,
        addresses: vec![Address {
            address: [192, 0, 2, 2].into(),
            prefix: 24,
        }],
        gateways: vec!["2001:db8::1".parse().unwrap()],
        resolvers: vec![[192, 0, 2, 1].into()],
        search: vec!["s".into()],
        hosts: vec![Host {
            address: [192, 0, 2, 1].into(),
            name: "n".into(),
        }],
    };
    let network = NetworkSpec::new([2, 0, 0, 0, 0, 1], &settings);
    assert_eq!(network.settings(), Some(settings));
    let bytes = "020000000001 2c ac02 01 00 c0000202 18 01 01 20010db8000000000000000000000001 \
                 01 00 c0000201 01 0173 01 00 c0000201 016e";
    pin(
        HostMessage::Prepare {
            network: Some(network),
        },
        &format!("01 01 {bytes}"),
    );
    let root = RootSpec {
        lower: "vda".into(),
        upper: Upper::Tmpfs { size: None },
    };
    let read_ahead = vec!["/a".into()];
    let mount = HostMessage::MountRoot { root, read_ahead };
    pin(mount, "06 03766461 00 00 01 022f61");
    let id = "ab".repeat(16);
    let head = format!("02 02eeee ac02 0168 {id} 03766461");
    let tail = "01 03413d31 01 0175 01 022f77 00 00";
    let configure = |upper| HostMessage::Configure(Box::new(config(upper)));
    pin(
        configure(Upper::Tmpfs { size: None }),
        &format!("{head} 00 00 {tail}"),
    );
    pin(
        configure(Upper::Tmpfs { size: Some(5) }),
        &format!("{head} 00 01 05 {tail}"),
    );
    pin(
        configure(Upper::Disk("vdb".into())),
        &format!("{head} 01 03766462 {tail}"),
    );
    let trust = TrustSpec {
        authority: "a".into(),
        fallback: "f".into(),
    };
    pin(trust, "0161 0166");
    pin(HostMessage::Ping { token: 128 }, "03 8001");
    pin(HostMessage::Sync { token: 1 }, "04 01");
    pin(HostMessage::Shutdown { grace_ms: 1000 }, "05 e807");
    pin(HostMessage::Freeze, "07");
    pin(HostMessage::Thaw, "08");
    let other = configure(Upper::Tmpfs { size: None });
    let HostMessage::Configure(other) = other else {
        unreachable!("it was made so")
    };
    let tail = &format!("{head} 00 00 {tail}")[2..];
    pin(HostMessage::Become(other), &format!("09{tail}"));
    let wall_clock_ns = 128;
    pin(HostMessage::SetClock { wall_clock_ns }, "0a 8001");
}

#[test]
fn agent_messages() {
    pin(AgentMessage::Hello(AgentHello { version: 1 }), "00 01");
    pin(AgentMessage::Prepared, "01");
    let configured = Configured {
        entropy_bits: 256,
        boot_id: "b".into(),
        wall_clock_ns: 1,
        hostname: "h".into(),
        machine_id: [0xab; 16],
        uid: 2,
        gid: 3,
        resumed: true,
        mac: None,
    };
    let id = "ab".repeat(16);
    pin(
        AgentMessage::Configured(Box::new(configured)),
        &format!("02 8002 0162 01 0168 {id} 02 03 01 00"),
    );
    let failed = AgentMessage::Failed;
    pin(
        failed(SetupFailure::Version { host: 1, agent: 2 }),
        "03 00 01 02",
    );
    pin(failed(SetupFailure::Refused("r".into())), "03 01 0172");
    let (what, reason) = ("w".to_owned(), "r".to_owned());
    pin(
        failed(SetupFailure::Invalid { what, reason }),
        "03 02 0177 0172",
    );
    let seen = vec!["s".into()];
    let disk = "d".into();
    pin(
        failed(SetupFailure::DiskMissing { disk, seen }),
        "03 03 0164 01 0173",
    );
    let mount = SetupFailure::Mount {
        what: "w".into(),
        target: "t".into(),
        errno: Errno(2),
    };
    pin(failed(mount), "03 04 0177 0174 04");
    let (user, reason) = ("u".to_owned(), "r".to_owned());
    pin(
        failed(SetupFailure::User { user, reason }),
        "03 05 0175 0172",
    );
    let (step, errno) = ("s".to_owned(), Errno(1));
    pin(failed(SetupFailure::Step { step, errno }), "03 06 0173 02");
    pin(AgentMessage::Pong { token: 7 }, "04 07");
    pin(AgentMessage::Synced { token: 7 }, "05 07");
    pin(AgentMessage::ShutdownDone { clean: true }, "06 01");
    pin(AgentMessage::Frozen, "07");
    pin(AgentMessage::Thawed, "08");
    pin(AgentMessage::ClockSet, "09");
    let program = Some("sh".into());
    let trouble = Trouble::OutOfMemory { killed: 2, program };
    pin(AgentMessage::Trouble(trouble), "0a 00 02 01 02 7368");
    let (size, files) = (300, true);
    let trouble = Trouble::DiskFull { size, files };
    pin(AgentMessage::Trouble(trouble), "0a 01 ac02 01");
    let trouble = Trouble::DiskFailed { count: 1 };
    pin(AgentMessage::Trouble(trouble), "0a 02 01");
}

#[test]
fn stream_messages() {
    let request = ExecRequest {
        argv: vec!["a".into(), "b".into()],
        env: vec!["A=1".into()],
        cwd: Some("/".into()),
        user: Some("u".into()),
        tty: Some(TtySize { rows: 1, cols: 300 }),
        stdin: true,
        limits: vec![Limit {
            resource: Resource::Descriptors,
            soft: Some(300),
            hard: None,
        }],
    };
    pin(
        Request::Exec(request),
        "00 02 0161 0162 01 03413d31 01 012f 01 0175 01 01 ac02 01 01 04 01 ac02 00",
    );
    pin(
        Request::Exec(ExecRequest::default()),
        "00 00 00 00 00 00 00 00",
    );
    let (signal, group) = (Signal::KILL, true);
    pin(StreamCommand::Signal { signal, group }, "00 09 01");
    pin(
        StreamCommand::Resize(TtySize { rows: 2, cols: 3 }),
        "01 02 03",
    );
    pin(StreamEvent::Started { pid: 300 }, "00 ac02");
    pin(StreamEvent::Exited(ExitStatus::Code(3)), "01 00 03");
    pin(StreamEvent::Connected, "03");
    pin(StreamEvent::NotConnected(Errno(111)), "04 de01");
    pin(StreamEvent::HungUp, "05");
    pin(Request::Dial { port: 300 }, "01 ac02");
    let killed = ExitStatus::Signal {
        signal: 9,
        core_dumped: false,
    };
    pin(StreamEvent::Exited(killed), "01 01 09 00");
    pin(
        StreamEvent::Troubled {
            status: killed,
            troubles: vec![Trouble::OutOfMemory {
                killed: 1,
                program: None,
            }],
        },
        "0a 01 09 00 01 00 01 00",
    );
    let failed = StreamEvent::Failed;
    let program = || ByteString::from("p");
    pin(
        failed(ExecError::NotFound { program: program() }),
        "02 00 0170",
    );
    let denied = ExecError::NotExecutable {
        program: program(),
        errno: Errno(13),
    };
    pin(failed(denied), "02 01 0170 1a");
    let (user, reason) = ("u".to_owned(), "r".to_owned());
    pin(
        failed(ExecError::BadUser { user, reason }),
        "02 02 0175 0172",
    );
    let (path, errno) = ("/".into(), Errno(2));
    pin(
        failed(ExecError::BadWorkdir { path, errno }),
        "02 03 012f 04",
    );
    let reason = "r".to_owned();
    pin(failed(ExecError::Invalid { reason }), "02 04 0172");
    let (step, errno) = ("s".to_owned(), Errno(11));
    pin(
        failed(ExecError::Resources { step, errno }),
        "02 05 0173 16",
    );
}

#[test]
fn file_messages() {
    let (path, to) = (|| ByteString::from("/a"), || ByteString::from("/b"));
    let pin_request = |operation, hex: &str| {
        let user = None;
        let request = FileRequest { operation, user };
        pin(Request::File(request), &format!("02 {hex} 00"));
    };
    use FileOperation as Op;
    let (offset, len) = (300, Some(1));
    let read = Op::Read {
        path: path(),
        offset,
        len,
    };
    pin_request(read, "00 022f61 ac02 01 01");
    for (mode, hex) in [
        (WriteMode::Replace, "00"),
        (WriteMode::CreateNew, "01"),
        (WriteMode::Append, "02"),
        (WriteMode::At(300), "03 ac02"),
    ] {
        let write = Op::Write {
            path: path(),
            mode,
            permissions: Some(1),
        };
        pin_request(write, &format!("01 022f61 {hex} 01 01"));
    }
    pin_request(Op::List { path: path() }, "02 022f61");
    let follow = true;
    let stat = Op::Stat {
        path: path(),
        follow,
    };
    pin_request(stat, "03 022f61 01");
    let make = Op::MakeFolder {
        path: path(),
        permissions: None,
        parents: true,
    };
    pin_request(make, "04 022f61 00 01");
    let recursive = true;
    let remove = Op::Remove {
        path: path(),
        recursive,
    };
    pin_request(remove, "05 022f61 01");
    let (from, at) = (path(), to());
    pin_request(Op::Rename { from, to: at }, "06 022f61 022f62");
    let (from, at) = (path(), to());
    pin_request(Op::Copy { from, to: at }, "07 022f61 022f62");
    let (target, at) = (path(), to());
    pin_request(Op::Symlink { target, path: at }, "08 022f61 022f62");
    pin_request(Op::ReadLink { path: path() }, "09 022f61");
    let permissions = 300;
    let chmod = Op::SetPermissions {
        path: path(),
        permissions,
    };
    pin_request(chmod, "0a 022f61 ac02");
    let chown = Op::SetOwner {
        path: path(),
        uid: Some(1),
        gid: None,
        follow,
    };
    pin_request(chown, "0b 022f61 01 01 00 01");
    let size = 300;
    let truncate = Op::Truncate { path: path(), size };
    pin_request(truncate, "0c 022f61 ac02");
    pin_request(Op::Pack { path: path() }, "0d 022f61");
    let owner = Some((1, 2));
    let unpack = Op::Unpack {
        path: path(),
        owner,
    };
    pin_request(unpack, "0e 022f61 01 01 02");
}

#[test]
fn file_answers() {
    let metadata = Metadata {
        kind: FileKind::Symlink,
        permissions: 0o777,
        uid: 1,
        gid: 2,
        size: 300,
        modified: -1,
        modified_nanos: 5,
        links: 6,
    };
    let hex = "02 ff03 01 02 ac02 01 05 06";
    pin(StreamEvent::FileOpened(metadata), &format!("06 {hex}"));
    pin(StreamEvent::FileDone(FileAnswer::Done), "07 00");
    let answer = FileAnswer::Metadata(metadata);
    pin(StreamEvent::FileDone(answer), &format!("07 01 {hex}"));
    let answer = FileAnswer::Target("t".into());
    pin(StreamEvent::FileDone(answer), "07 02 0174");
    let entry = Entry {
        name: b"\xff\n"[..].into(),
        metadata,
    };
    pin(entry, &format!("02ff0a {hex}"));
    let failed = |fault, hex: &str| {
        let path = "/a".into();
        let error = FileError { path, fault };
        pin(StreamEvent::FileFailed(error), &format!("08 022f61 {hex}"));
    };
    failed(FileFault::System(Errno(2)), "00 04");
    failed(FileFault::NotAFile(FileKind::Fifo), "01 03");
    failed(FileFault::BadPath("p".into()), "02 0170");
    failed(FileFault::BadUser("u".into()), "03 0175");
    failed(FileFault::TooDeep(300), "04 ac02");
    failed(FileFault::BadTree("t".into()), "05 0174");
    failed(FileFault::TooMuch("m".into()), "06 016d");
}

#[test]
fn metrics() {
    pin(Request::Metrics { processes: true }, "03 01");
    let process = ProcessMetrics {
        pid: 7,
        parent: 1,
        uid: 300,
        state: b'S',
        threads: 2,
        cpu_ms: 3,
        memory: 4,
        command: "c".into(),
    };
    let metrics = GuestMetrics {
        cpus: 1,
        cpu_ms: 300,
        memory_total: 2,
        memory_available: 3,
        root_total: 4,
        root_used: 5,
        disk_read: 6,
        disk_written: 7,
        processes: 8,
        top: vec![process],
    };
    let hex = "09 01 ac02 02 03 04 05 06 07 08 01 07 01 ac02 53 02 03 04 0163";
    pin(StreamEvent::Metrics(Box::new(metrics)), hex);
}

#[test]
fn signals_out_of_range_are_not_decoded() {
    for number in [0, 65, 255] {
        assert_eq!(decode::<StreamCommand>(&[0, number, 0]), None);
        assert!(Signal::try_from(number).is_err());
    }
}

#[test]
fn secrets_are_not_shown_and_errors_read_well() {
    let shown = format!("{:?}", config(Upper::Tmpfs { size: None }));
    assert!(shown.contains("Entropy(2 bytes)"), "{shown}");
    let error = ExecError::NotExecutable {
        program: "/bin/x".into(),
        errno: Errno(13),
    };
    assert_eq!(
        error.to_string(),
        "/bin/x: cannot be executed: Permission denied (os error 13)"
    );
    assert_eq!(
        ExitStatus::Signal {
            signal: 200,
            core_dumped: false
        }
        .shell_code(),
        255
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_decode_to_something_that_encodes_or_to_nothing(
        bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
            if let Some(message) = decode::<T>(bytes) {
                assert_eq!(decode::<T>(&encode(&message)), Some(message));
            }
        }
        check::<HostMessage>(&bytes);
        check::<AgentMessage>(&bytes);
        check::<Request>(&bytes);
        check::<StreamEvent>(&bytes);
        check::<StreamCommand>(&bytes);
    }
}
