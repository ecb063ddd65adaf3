use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use bytes::BytesMut;

use super::*;
use crate::record::{self, MAX_DEPTH, TreeRecord};

fn options() -> UnpackOptions {
    UnpackOptions {
        permissions: 0o777,
        owner: None,
        folder: false,
        max_bytes: 1 << 20,
        max_entries: 1000,
    }
}

fn folder(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn pack(parent: &Path, name: &str) -> Result<Vec<u8>, TreeError> {
    let mut out = Vec::new();
    let mut sink = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        true
    };
    let name = CString::new(name).unwrap();
    let report = Packer::new(&mut sink).pack(folder(parent).as_fd(), &name)?;
    assert!(report.entries + report.skipped > 0);
    Ok(out)
}

fn unpack(
    parent: &Path,
    name: &str,
    tree: &[u8],
    options: UnpackOptions,
) -> Result<Report, TreeError> {
    let mut unpacker = Unpacker::new(folder(parent), name.as_bytes(), options);
    for piece in tree.chunks(7000) {
        unpacker.feed(piece)?;
    }
    unpacker.finish()
}

fn records(records: &[TreeRecord]) -> BytesMut {
    let mut out = BytesMut::new();
    for record in records {
        record::put(&mut out, record);
    }
    out
}

fn plain(kind: FileKind, permissions: u32, size: u64) -> Metadata {
    Metadata {
        kind,
        permissions,
        uid: 0,
        gid: 0,
        size,
        modified: 86_400,
        modified_nanos: 5,
        links: 1,
    }
}

fn enter(name: &str) -> TreeRecord {
    TreeRecord::Enter {
        name: name.into(),
        metadata: plain(FileKind::Folder, 0o755, 0),
    }
}

fn file(name: &str, permissions: u32, size: u64) -> TreeRecord {
    TreeRecord::File {
        name: name.into(),
        metadata: plain(FileKind::File, permissions, size),
        id: None,
    }
}

fn link_to(name: &str, target: &str) -> TreeRecord {
    TreeRecord::Symlink {
        name: name.into(),
        metadata: plain(FileKind::Symlink, 0o777, 0),
        target: target.into(),
    }
}

fn fault(result: Result<Report, TreeError>) -> FileFault {
    match result.unwrap_err() {
        TreeError::File(error) => error.fault,
        TreeError::Stopped => panic!("stopped"),
    }
}

#[test]
fn a_tree_comes_back_with_modes_links_holes_and_times() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("a");
    fs::create_dir(&source).unwrap();
    fs::create_dir(source.join("locked")).unwrap();
    fs::write(source.join("locked/inner"), "inner").unwrap();
    fs::write(source.join("tool"), vec![7; 200_000]).unwrap();
    fs::hard_link(source.join("tool"), source.join("zz-again")).unwrap();
    symlink("../elsewhere", source.join("link")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"line\nbreak \xff");
    fs::write(source.join(odd), "").unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 30).unwrap();
    fs::set_permissions(source.join("tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(source.join("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 42);
    fs::File::open(source.join("tool"))
        .unwrap()
        .set_modified(old)
        .unwrap();

    let tree = pack(dir.path(), "a").unwrap();
    let report = unpack(dir.path(), "b", &tree, options()).unwrap();
    let made = dir.path().join("b");
    assert_eq!(report.entries, 8);
    assert_eq!(report.skipped, 0);
    let tool = fs::metadata(made.join("tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o751, "no set-user-id");
    assert_eq!(tool.modified().unwrap(), old);
    assert_eq!(
        tool.ino(),
        fs::metadata(made.join("zz-again")).unwrap().ino()
    );
    assert_eq!(fs::read(made.join("tool")).unwrap(), vec![7; 200_000]);
    assert_eq!(
        fs::read_link(made.join("link")).unwrap(),
        Path::new("../elsewhere")
    );
    assert_eq!(fs::read(made.join("locked/inner")).unwrap(), b"inner");
    assert_eq!(
        fs::metadata(made.join("locked")).unwrap().mode() & 0o777,
        0o555
    );
    assert!(made.join(odd).exists());
    let sparse = fs::metadata(made.join("sparse")).unwrap();
    assert_eq!(sparse.len(), 1 << 40);
    assert!(sparse.blocks() * 512 < 1 << 20, "it is sparse");
    // A second time over the first.
    unpack(dir.path(), "b", &tree, options()).unwrap();
    fs::set_permissions(source.join("locked"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(made.join("locked"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_single_file_takes_the_targets_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one"), "content").unwrap();
    let tree = pack(dir.path(), "one").unwrap();
    unpack(dir.path(), "two", &tree, options()).unwrap();
    assert_eq!(fs::read(dir.path().join("two")).unwrap(), b"content");
}

#[test]
fn a_folder_is_packed_as_itself() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("file"), "in it").unwrap();
    let tree = pack(from.path(), ".").unwrap();
    unpack(to.path(), "new", &tree, options()).unwrap();
    assert_eq!(fs::read(to.path().join("new/file")).unwrap(), b"in it");
    unpack(to.path(), ".", &tree, options()).unwrap();
    assert_eq!(fs::read(to.path().join("file")).unwrap(), b"in it");
}

#[test]
fn symlinks_that_a_tree_brings_lead_it_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    // A folder of the name of a symlink that came before, in the same tree and in a later one.
    let planted = records(&[enter("x"), link_to("l", "../../outside"), TreeRecord::Leave]);
    unpack(&target, "x", &planted, options()).unwrap();
    let through = records(&[
        enter("x"),
        enter("l"),
        file("victim", 0o644, 0),
        TreeRecord::Leave,
        TreeRecord::Leave,
    ]);
    let system = fault(unpack(&target, "x", &through, options()));
    assert!(
        matches!(system, FileFault::System(Errno(libc_errno)) if libc_errno == 20 || libc_errno == 40)
    );
    // A file in the place of a symlink replaces that, and is not written through it.
    let over = records(&[enter("x"), file("l", 0o644, 3), TreeRecord::Leave]);
    unpack(&target, "x", &over, options()).unwrap();
    assert!(fs::symlink_metadata(target.join("x/l")).unwrap().is_file());
    assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_file_that_has_another_name_elsewhere_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), "mine").unwrap();
    fs::create_dir(dir.path().join("t")).unwrap();
    fs::hard_link(dir.path().join("mine"), dir.path().join("t/f")).unwrap();
    let tree = records(&[enter("t"), file("f", 0o600, 2), TreeRecord::Leave]);
    unpack(dir.path(), "t", &tree, options()).unwrap();
    assert_eq!(fs::read(dir.path().join("mine")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path().join("t/f")).unwrap(), b"\0\0");
}

#[test]
fn a_folder_that_is_there_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("t")).unwrap();
    fs::set_permissions(dir.path().join("t"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(dir.path().join("t/kept"), "kept").unwrap();
    let tree = records(&[
        enter("t"),
        enter("new"),
        TreeRecord::Leave,
        TreeRecord::Leave,
    ]);
    for name in ["t", "."] {
        unpack(dir.path(), name, &tree, options()).unwrap();
    }
    let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().mode() & 0o777;
    assert_eq!(
        (mode("t"), mode("t/new"), mode("new")),
        (0o711, 0o755, 0o755)
    );
    assert_eq!(fs::read(dir.path().join("t/kept")).unwrap(), b"kept");
}

#[test]
fn what_cannot_be_copied_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("a");
    fs::create_dir(&source).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let here = folder(&source);
    rustix::fs::mknodat(&here, "fifo", fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let tree = pack(dir.path(), "a").unwrap();
    let report = unpack(dir.path(), "b", &tree, options()).unwrap();
    assert_eq!((report.entries, report.skipped), (1, 2));
    let mut named: Vec<_> = report
        .skipped_named
        .iter()
        .map(|one| one.path.to_string())
        .collect();
    named.sort();
    assert_eq!(named, ["b/fifo", "b/socket"]);
    assert_eq!(fs::read_dir(dir.path().join("b")).unwrap().count(), 0);
}

#[test]
fn bounds_hold() {
    let dir = tempfile::tempdir().unwrap();
    let few = UnpackOptions {
        max_entries: 2,
        ..options()
    };
    let tree = records(&[
        enter("t"),
        file("a", 0o600, 0),
        file("b", 0o600, 0),
        TreeRecord::Leave,
    ]);
    assert!(matches!(
        fault(unpack(dir.path(), "t", &tree, few)),
        FileFault::TooMuch(_)
    ));
    let small = UnpackOptions {
        max_bytes: 10,
        ..options()
    };
    let mut tree = records(&[
        file("a", 0o600, 11),
        TreeRecord::Data { offset: 0, len: 11 },
    ]);
    tree.extend_from_slice(&[1; 11]);
    assert!(matches!(
        fault(unpack(dir.path(), "f", &tree, small)),
        FileFault::TooMuch(_)
    ));
    let cut = records(&[enter("t"), file("a", 0o600, 0)]);
    assert!(matches!(
        fault(unpack(dir.path(), "t", &cut, options())),
        FileFault::BadTree(_)
    ));
    let stranger = TreeRecord::Link {
        name: "l".into(),
        id: 3,
    };
    let tree = records(&[enter("t"), stranger, TreeRecord::Leave]);
    assert!(matches!(
        fault(unpack(dir.path(), "t", &tree, options())),
        FileFault::BadTree(_)
    ));
}

#[test]
fn where_a_folder_is_wanted_nothing_else_is_made() {
    let wanted = UnpackOptions {
        folder: true,
        ..options()
    };
    let target = tempfile::tempdir().unwrap();
    for other in [link_to("x", "/etc"), file("x", 0o644, 0)] {
        let refused = unpack(target.path(), "new", &records(&[other]), wanted.clone());
        assert_eq!(fault(refused), rustix::io::Errno::NOTDIR.into());
        assert!(!target.path().join("new").is_symlink() && !target.path().join("new").exists());
    }
    let inside = [enter("x"), link_to("y", "/etc"), TreeRecord::Leave];
    unpack(target.path(), "new", &records(&inside), wanted).unwrap();
    assert!(target.path().join("new/y").is_symlink());
}

#[test]
fn deep_trees_are_refused_by_whoever_packs_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut path = dir.path().to_owned();
    for _ in 0..=MAX_DEPTH {
        path.push("d");
    }
    fs::create_dir_all(&path).unwrap();
    match pack(dir.path(), "d").unwrap_err() {
        TreeError::File(error) => assert_eq!(error.fault, FileFault::TooDeep(MAX_DEPTH as u32)),
        TreeError::Stopped => panic!("stopped"),
    }
}

#[test]
fn whoever_takes_records_can_stop() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("big"), vec![1; 1 << 20]).unwrap();
    let mut sink = |_: &[u8]| false;
    let packed = Packer::new(&mut sink).pack(folder(dir.path()).as_fd(), c"big");
    assert_eq!(packed, Err(TreeError::Stopped));
}
