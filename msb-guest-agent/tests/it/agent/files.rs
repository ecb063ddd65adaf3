//! Operations on files, by an agent that is an ordinary process.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use msb_guest_agent::message::{
    ByteString, Entry, Errno, FileAnswer, FileError, FileFault, FileKind, FileOperation as Op,
    Metadata, ResetCode, WriteMode,
};
use msb_guest_agent::record::RecordDecoder;

use super::harness::Agent;

const NOT_FOUND: i32 = 2;
const EXISTS: i32 = 17;
const NOT_A_FOLDER: i32 = 20;
const IS_A_FOLDER: i32 = 21;
const DENIED: i32 = 13;
const NOT_EMPTY: i32 = 39;

fn bytes(path: impl AsRef<Path>) -> ByteString {
    path.as_ref().as_os_str().as_bytes().into()
}

fn read(path: impl AsRef<Path>) -> Op {
    Op::Read {
        path: bytes(path),
        offset: 0,
        len: None,
    }
}

fn write(path: impl AsRef<Path>, mode: WriteMode) -> Op {
    Op::Write {
        path: bytes(path),
        mode,
        permissions: None,
    }
}

fn remove(path: impl AsRef<Path>, recursive: bool) -> Op {
    Op::Remove {
        path: bytes(path),
        recursive,
    }
}

fn make(path: impl AsRef<Path>, parents: bool) -> Op {
    Op::MakeFolder {
        path: bytes(path),
        permissions: None,
        parents,
    }
}

fn put(agent: &mut Agent, operation: Op, content: &[u8]) -> Result<FileAnswer, FileError> {
    let stream = agent.open_file(operation, None);
    agent.send(stream, content);
    agent.finish(stream);
    agent.file_done(stream).0
}

fn errno(outcome: Result<FileAnswer, FileError>) -> i32 {
    match outcome.unwrap_err().fault {
        FileFault::System(Errno(errno)) => errno,
        other => panic!("{other:?}"),
    }
}

fn stat(agent: &mut Agent, path: impl AsRef<Path>, follow: bool) -> Metadata {
    let path = bytes(path);
    match agent.file(Op::Stat { path, follow }).0.unwrap() {
        FileAnswer::Metadata(metadata) => metadata,
        other => panic!("{other:?}"),
    }
}

#[test]
fn content_is_written_and_read_whole_and_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let path = dir.path().join("file");
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7) as u8).collect();
    put(&mut agent, write(&path, WriteMode::Replace), &content).unwrap();
    assert!(fs::read(&path).unwrap() == content);
    let (answer, back) = agent.file(read(&path));
    assert_eq!(answer, Ok(FileAnswer::Done));
    assert!(back == content);

    put(&mut agent, write(&path, WriteMode::Replace), b"0123456789").unwrap();
    put(&mut agent, write(&path, WriteMode::At(4)), b"xy").unwrap();
    put(&mut agent, write(&path, WriteMode::Append), b"end").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123xy6789end");
    let part = Op::Read {
        path: bytes(&path),
        offset: 3,
        len: Some(4),
    };
    assert_eq!(agent.file(part).1, b"3xy6");
    let beyond = Op::Read {
        path: bytes(&path),
        offset: 1 << 40,
        len: None,
    };
    assert_eq!(agent.file(beyond), (Ok(FileAnswer::Done), Vec::new()));
    assert_eq!(
        errno(put(&mut agent, write(&path, WriteMode::CreateNew), b"")),
        EXISTS
    );
    let size = 5;
    agent
        .file(Op::Truncate {
            path: bytes(&path),
            size,
        })
        .0
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123x");
    // Files of the kernel have no size and are read all the same.
    assert!(
        agent
            .file(read("/proc/self/status"))
            .1
            .starts_with(b"Name:")
    );
}

#[test]
fn a_reader_that_stops_holds_nobody_else_and_its_stream_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let path = dir.path().join("big");
    fs::File::create(&path).unwrap().set_len(1 << 33).unwrap();
    let before = agent.descriptors();
    let stream = agent.open_file(read(&path), None);
    agent.hold(stream);
    agent.until(|agent| agent.stdout(stream).len() >= 256 * 1024);
    assert_eq!(agent.opened(stream).unwrap().size, 1 << 33);
    let small = dir.path().join("small");
    put(&mut agent, write(&small, WriteMode::Replace), b"quick").unwrap();
    assert_eq!(agent.file(read(&small)).1, b"quick");
    assert!(agent.resident() < 64 << 20);
    agent.reset(stream, ResetCode::Cancelled);
    agent.until(|agent| agent.descriptors() <= before);
}

#[test]
fn entries_are_bytes_and_many() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let odd = OsStr::from_bytes(b"new\nline \xff\xfe");
    fs::write(dir.path().join(odd), "12345").unwrap();
    for number in 0..3000 {
        fs::write(dir.path().join(format!("entry-{number}")), "").unwrap();
    }
    symlink("/nowhere", dir.path().join("link")).unwrap();
    let path = bytes(dir.path());
    let (answer, out) = agent.file(Op::List { path });
    answer.unwrap();
    let mut decoder = RecordDecoder::default();
    decoder.extend(&out);
    let mut entries = Vec::new();
    while let Some(entry) = decoder.next_record::<Entry>().unwrap() {
        entries.push(entry);
    }
    assert_eq!(entries.len(), 3002);
    let find = |name: &[u8]| entries.iter().find(|entry| entry.name.as_bytes() == name);
    assert_eq!(find(odd.as_bytes()).unwrap().metadata.size, 5);
    assert_eq!(find(b"link").unwrap().metadata.kind, FileKind::Symlink);
    let file = dir.path().join("entry-1");
    assert_eq!(
        errno(agent.file(Op::List { path: bytes(file) }).0),
        NOT_A_FOLDER
    );
}

#[test]
fn metadata_follows_symlinks_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "12345").unwrap();
    agent
        .file(Op::Symlink {
            target: "file".into(),
            path: bytes(&link),
        })
        .0
        .unwrap();
    let (link_is, file_is) = (
        stat(&mut agent, &link, false),
        stat(&mut agent, &link, true),
    );
    assert_eq!(
        (link_is.kind, file_is.kind),
        (FileKind::Symlink, FileKind::File)
    );
    assert_eq!((file_is.size, file_is.links), (5, 1));
    let target = agent.file(Op::ReadLink { path: bytes(&link) }).0.unwrap();
    assert_eq!(target, FileAnswer::Target("file".into()));
    let permissions = 0o4711;
    agent
        .file(Op::SetPermissions {
            path: bytes(&link),
            permissions,
        })
        .0
        .unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o4711
    );
    let missing = Op::Stat {
        path: bytes(dir.path().join("missing")),
        follow: true,
    };
    assert_eq!(errno(agent.file(missing).0), NOT_FOUND);
}

#[test]
fn folders_are_made_and_removed_and_nothing_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let deep = dir.path().join("a/b//c/");
    assert_eq!(errno(agent.file(make(&deep, false)).0), NOT_FOUND);
    agent.file(make(&deep, true)).0.unwrap();
    agent.file(make(&deep, true)).0.unwrap();
    assert_eq!(errno(agent.file(make(&deep, false)).0), EXISTS);
    assert!(deep.is_dir());
    fs::create_dir(dir.path().join("keep")).unwrap();
    fs::write(dir.path().join("keep/file"), "").unwrap();
    symlink("../../keep", dir.path().join("a/b/out")).unwrap();
    let a = dir.path().join("a");
    assert_eq!(errno(agent.file(remove(&a, false)).0), NOT_EMPTY);
    agent.file(remove(&a, true)).0.unwrap();
    assert!(!a.exists());
    assert!(dir.path().join("keep/file").exists());
    assert_eq!(errno(agent.file(remove(&a, true)).0), NOT_FOUND);
    symlink("keep", dir.path().join("link")).unwrap();
    agent.file(remove(dir.path().join("link"), true)).0.unwrap();
    assert!(dir.path().join("keep/file").exists());
    let file = dir.path().join("keep/file/x");
    assert_eq!(errno(agent.file(make(file, true)).0), NOT_A_FOLDER);
}

#[test]
fn files_are_renamed_and_copied_with_their_holes() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let file = fs::File::create(&a).unwrap();
    file.set_len(1 << 32).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"island", 1 << 31).unwrap();
    fs::set_permissions(&a, fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(&b, "longer than what comes").unwrap();
    let copy = |from: &Path, to: &Path| Op::Copy {
        from: bytes(from),
        to: bytes(to),
    };
    agent.file(copy(&a, &b)).0.unwrap();
    let made = fs::metadata(&b).unwrap();
    assert_eq!(
        (made.len(), made.permissions().mode() & 0o777),
        (1 << 32, 0o750)
    );
    assert!(made.blocks() * 512 < 1 << 20, "it is sparse");
    let at = Op::Read {
        path: bytes(&b),
        offset: (1 << 31) - 1,
        len: Some(8),
    };
    assert_eq!(agent.file(at).1, b"\0island\0");
    let same = agent.file(copy(&a, &a)).0.unwrap_err();
    assert!(matches!(same.fault, FileFault::BadPath(_)));
    assert_eq!(
        fs::metadata(&a).unwrap().len(),
        1 << 32,
        "it was left alone"
    );
    let c = dir.path().join("c");
    let (from, to) = (bytes(&a), bytes(&c));
    agent.file(Op::Rename { from, to }).0.unwrap();
    assert!(!a.exists() && c.exists());
    let (from, to) = (bytes(&a), bytes(&c));
    let gone = agent.file(Op::Rename { from, to }).0.unwrap_err();
    assert_eq!(gone.path, bytes(&a), "it is named");
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let fifo = dir.path().join("fifo");
    let here = fs::File::open(dir.path()).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(&here, "fifo", kind, rustix::fs::Mode::RWXU, 0).unwrap();
    let refused = agent.file(read(&fifo)).0.unwrap_err();
    assert_eq!(refused.fault, FileFault::NotAFile(FileKind::Fifo));
    let refused = agent.file(read("/dev/zero")).0.unwrap_err();
    assert_eq!(refused.fault, FileFault::NotAFile(FileKind::CharDevice));
    assert_eq!(errno(agent.file(read(dir.path())).0), IS_A_FOLDER);
    for path in ["", "/tmp/a\0b"] {
        let refused = agent.file(read(path)).0.unwrap_err();
        assert!(matches!(refused.fault, FileFault::BadPath(_)), "{path:?}");
    }
    for path in ["/", "/tmp/..", "."] {
        let refused = agent.file(remove(path, true)).0.unwrap_err();
        assert!(matches!(refused.fault, FileFault::BadPath(_)), "{path:?}");
    }
    let long = "x".repeat(5000);
    assert!(agent.file(read(long)).0.is_err());
    // The agent's own descriptors are nobody's business.
    assert!(agent.file(read("/proc/self/fd/0")).0.is_err());
}

#[test]
fn a_user_has_its_rights_and_no_others() {
    if !rustix::process::getuid().is_root() {
        println!("not root: only root can act as others");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let secret = dir.path().join("secret");
    fs::write(&secret, "s").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let stream = agent.open_file(read(&secret), Some("12345:54321"));
    assert_eq!(errno(agent.file_done(stream).0), DENIED);
    let own = dir.path().join("own");
    let stream = agent.open_file(write(&own, WriteMode::Replace), Some("12345:54321"));
    agent.send(stream, b"mine");
    agent.finish(stream);
    agent.file_done(stream).0.unwrap();
    let made = fs::metadata(&own).unwrap();
    assert_eq!((made.uid(), made.gid()), (12345, 54321));
    // The next one is root again.
    assert_eq!(agent.file(read(&secret)).1, b"s");
    let stream = agent.open_file(read(&own), Some("no-such-user"));
    let refused = agent.file_done(stream).0.unwrap_err();
    assert!(matches!(refused.fault, FileFault::BadUser(_)));
    let owner = Op::SetOwner {
        path: bytes(&own),
        uid: Some(7),
        gid: None,
        follow: true,
    };
    agent.file(owner).0.unwrap();
    let made = fs::metadata(&own).unwrap();
    assert_eq!((made.uid(), made.gid()), (7, 54321));
}

#[test]
fn trees_go_out_and_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    fs::create_dir_all(dir.path().join("a/sub")).unwrap();
    fs::write(dir.path().join("a/sub/file"), vec![9; 700_000]).unwrap();
    let path = bytes(dir.path().join("a"));
    let (answer, tree) = agent.file(Op::Pack { path });
    answer.unwrap();
    let path = bytes(dir.path().join("b"));
    put(&mut agent, Op::Unpack { path, owner: None }, &tree).unwrap();
    assert!(fs::read(dir.path().join("b/sub/file")).unwrap() == vec![9; 700_000]);
    let path = bytes(dir.path().join("c"));
    let cut = put(
        &mut agent,
        Op::Unpack { path, owner: None },
        &tree[..tree.len() - 1],
    );
    assert!(matches!(cut.unwrap_err().fault, FileFault::BadTree(_)));
    let path = bytes(dir.path().join("missing"));
    let (refused, _) = agent.file(Op::Pack { path });
    assert_eq!(errno(refused), NOT_FOUND);
}

#[test]
fn a_shutdown_ends_operations() {
    use msb_guest_agent::message::HostMessage;
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start();
    let stream = agent.open_file(write(dir.path().join("f"), WriteMode::Replace), None);
    agent.until(|agent| agent.opened(stream).is_some());
    agent.control(&HostMessage::Shutdown { grace_ms: 60_000 });
    agent.until(|agent| agent.was_reset(stream).is_some());
    assert!(agent.shut_down());
}
