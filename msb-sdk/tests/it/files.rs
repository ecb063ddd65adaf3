//! The guest's files, one by one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb_sdk::{Error, FileFault, FileKind, WriteOptions};

use crate::lab;

/// Why an operation failed, and at which path.
#[track_caller]
fn fault<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (FileFault, String) {
    match outcome {
        Err(Error::File { fault, path, .. }) => (fault, path.display().to_string()),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn content_goes_up_and_down() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let fs = sandbox.fs();
    fs.write("/tmp/input.txt", b"some data").await?;
    assert_eq!(fs.read_to_string("/tmp/input.txt").await?, "some data");
    let seen = sandbox
        .shell("cat /tmp/input.txt; echo from-inside > /tmp/out")
        .await?;
    assert_eq!(seen.stdout()?, "some data");
    assert_eq!(fs.read("/tmp/out").await?, b"from-inside\n");

    let big: Vec<u8> = (0..5_000_000u32).map(|n| (n / 3) as u8).collect();
    fs.write("/tmp/big", &big).await?;
    assert!(fs.read("/tmp/big").await? == big);
    let mut part = fs
        .open_read_at("/tmp/big", 3_000_000, Some(100_000))
        .await?;
    assert_eq!(part.metadata().size, 5_000_000);
    let mut read = Vec::new();
    while let Some(bytes) = part.next().await? {
        read.extend_from_slice(&bytes);
    }
    assert!(read == big[3_000_000..3_100_000]);

    let mut writer = fs
        .open_write_with("/tmp/big", WriteOptions::new().at(4))
        .await?;
    writer.write(b"****").await?;
    writer.finish().await?;
    let options = WriteOptions::new().append().permissions(0o600);
    let mut writer = fs.open_write_with("/tmp/big", options).await?;
    writer.write(b"end").await?;
    writer.write(b"").await?;
    writer.finish().await?;
    let changed = fs.read("/tmp/big").await?;
    assert_eq!(changed.len(), big.len() + 3);
    assert_eq!(&changed[..10], b"\0\0\0\x01****\x02\x03");
    assert_eq!(fs.stat("/tmp/big").await?.permissions, 0o600);
    // A reader that stops in the middle leaves nothing behind.
    let mut reader = fs.open_read("/tmp/big").await?;
    assert!(reader.next().await?.is_some());
    drop(reader);
    assert_eq!(fs.read("/tmp/input.txt").await?, b"some data");
    sandbox.stop_and_wait().await?;
    Ok(())
}

pub(crate) async fn a_gigabyte_streams_both_ways() -> anyhow::Result<()> {
    const PIECE: usize = 4 << 20;
    const PIECES: usize = 256;
    let sandbox = lab::builder(lab::BUSYBOX)
        .await?
        .disk_mib(1600)
        .create()
        .await?;
    let fs = sandbox.fs();
    let piece = |number: usize| {
        let mut piece = vec![number as u8; PIECE];
        piece[..8].copy_from_slice(&(number as u64).to_le_bytes());
        piece
    };
    let mut writer = fs.open_write("/big").await?;
    for number in 0..PIECES {
        writer.write(piece(number)).await?;
    }
    writer.finish().await?;
    assert_eq!(fs.stat("/big").await?.size, (PIECE * PIECES) as u64);
    let mut reader = fs.open_read("/big").await?;
    let (mut number, mut got) = (0, Vec::with_capacity(PIECE));
    while let Some(bytes) = reader.next().await? {
        got.extend_from_slice(&bytes);
        while got.len() >= PIECE {
            assert!(got[..PIECE] == piece(number), "piece {number}");
            got.drain(..PIECE);
            number += 1;
        }
    }
    assert_eq!((number, got.len()), (PIECES, 0));
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn a_hundred_thousand_entries() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let fs = sandbox.fs();
    // Made by copying in: a shell would take minutes for it here.
    let host = tempfile::tempdir()?;
    let folder = host.path().join("many");
    std::fs::create_dir(&folder)?;
    for number in 0..100_000 {
        std::fs::File::create(folder.join(format!("file-{number}")))?;
    }
    let odd = OsStr::from_bytes(b"new\nline \xff");
    std::fs::write(folder.join(odd), "odd")?;
    fs.copy_in(&folder, "/tmp/many").await?;
    let entries = fs.list("/tmp/many").await?;
    assert_eq!(entries.len(), 100_001);
    let found = entries.iter().find(|entry| entry.name == odd);
    assert_eq!(found.map(|entry| entry.metadata.size), Some(3));
    let path = Path::new("/tmp/many").join(odd);
    assert_eq!(fs.read(&path).await?, b"odd");
    fs.rename(&path, "/tmp/many/even").await?;
    fs.remove_all("/tmp/many").await?;
    assert!(!fs.exists("/tmp/many").await?);
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn operations_and_their_faults() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::BUSYBOX)
        .await?
        .workdir("/app")
        .create()
        .await?;
    let fs = sandbox.fs();
    fs.mkdir("/srv").await?;
    fs.mkdir_all("/srv/a/b").await?;
    fs.write("/srv/a/b/f", "12345").await?;
    fs.copy("/srv/a/b/f", "/srv/copy").await?;
    fs.symlink("a/b", "/srv/link").await?;
    assert_eq!(fs.read("/srv/link/f").await?, b"12345");
    assert_eq!(fs.read_link("/srv/link").await?, Path::new("a/b"));
    assert_eq!(fs.lstat("/srv/link").await?.kind, FileKind::Symlink);
    assert!(fs.stat("/srv/link").await?.is_dir());
    fs.chmod("/srv/copy", 0o750).await?;
    fs.chown("/srv/copy", Some(12), Some(34)).await?;
    fs.lchown("/srv/link", Some(56), None).await?;
    fs.truncate("/srv/copy", 3).await?;
    let seen = sandbox
        .shell("cat /srv/copy; stat -c ' %a %u %g' /srv/copy; stat -c %u /srv/link")
        .await?;
    assert_eq!(seen.stdout()?, "123 750 12 34\n56\n");
    // A relative path begins where programs begin.
    fs.write("relative", "x").await?;
    assert!(fs.exists("/app/relative").await?);
    // A symlink to an absolute path means one inside of the guest.
    fs.symlink("/srv/a", "/app/abs").await?;
    fs.symlink("../../../../srv/a", "/app/up").await?;
    assert_eq!(fs.read("/app/abs/b/f").await?, b"12345");
    assert_eq!(fs.read("/app/up/b/f").await?, b"12345");
    fs.rename("/srv/copy", "/srv/renamed").await?;
    fs.remove("/srv/renamed").await?;

    let name = |text: &str| text.to_owned();
    assert_eq!(
        fault(fs.read("/srv/none").await),
        (FileFault::NotFound, name("/srv/none"))
    );
    assert_eq!(fault(fs.read("/srv").await).0, FileFault::IsAFolder);
    assert_eq!(fault(fs.list("/srv/a/b/f").await).0, FileFault::NotAFolder);
    assert_eq!(fault(fs.mkdir("/srv").await).0, FileFault::AlreadyExists);
    assert_eq!(fault(fs.remove("/srv").await).0, FileFault::NotEmpty);
    let device = FileFault::NotAFile(FileKind::CharDevice);
    assert_eq!(fault(fs.read("/dev/zero").await).0, device);
    fs.symlink("loop", "/srv/loop").await?;
    assert_eq!(fault(fs.read("/srv/loop").await).0, FileFault::Symlink);
    assert!(matches!(
        fault(fs.remove_all("/").await).0,
        FileFault::InvalidPath(_)
    ));
    assert!(matches!(
        fault(fs.read("/a\0b").await).0,
        FileFault::InvalidPath(_)
    ));
    fs.write("/srv/latin", b"\xe4").await?;
    assert_eq!(
        fault(fs.read_to_string("/srv/latin").await).0,
        FileFault::NotUtf8
    );
    let message = fs.read("/srv/none").await.expect_err("missing").to_string();
    assert_eq!(
        message,
        "cannot read /srv/none in the sandbox: there is no such file or folder"
    );
    // The workload has no way to hold it up.
    sandbox.shell("mkfifo /srv/fifo").await?;
    assert_eq!(
        fault(fs.read("/srv/fifo").await).0,
        FileFault::NotAFile(FileKind::Fifo)
    );
    fs.remove_all("/srv").await?;
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn users_have_their_rights() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let root = sandbox.fs();
    root.write("/secret", "s").await?;
    root.chmod("/secret", 0o600).await?;
    root.mkdir("/open").await?;
    root.chmod("/open", 0o1777).await?;
    let user = sandbox.fs().as_user("1234:5678");
    assert_eq!(
        fault(user.read("/secret").await).0,
        FileFault::PermissionDenied
    );
    assert_eq!(
        fault(user.write("/new", "").await).0,
        FileFault::PermissionDenied
    );
    assert_eq!(
        fault(user.remove("/secret").await).0,
        FileFault::PermissionDenied
    );
    user.write("/open/mine", "m").await?;
    let made = root.stat("/open/mine").await?;
    assert_eq!((made.uid, made.gid), (1234, 5678));
    let nobody = sandbox.fs().as_user("no-such-user");
    assert!(matches!(
        fault(nobody.read("/secret").await).0,
        FileFault::BadUser(_)
    ));
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn a_full_disk_is_told() -> anyhow::Result<()> {
    let sandbox = lab::builder(lab::BUSYBOX)
        .await?
        .disk_mib(32)
        .create()
        .await?;
    let fs = sandbox.fs();
    let (fault, path) = fault(fs.write("/full", vec![1; 64 << 20]).await);
    assert_eq!((fault, path.as_str()), (FileFault::NoSpace, "/full"));
    // It can be dealt with.
    fs.remove("/full").await?;
    fs.write("/small", "fits").await?;
    sandbox.kill().await?;
    Ok(())
}
