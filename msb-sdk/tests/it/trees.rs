//! Whole trees, in both directions; the guest's are hostile.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use msb_sdk::{CopyOptions, Error, FileFault, Sandbox};

use crate::lab;

/// Runs a script that has to succeed.
async fn prepare(sandbox: &Sandbox, script: impl Into<OsString>) -> anyhow::Result<()> {
    let output = sandbox.shell(script).await?;
    anyhow::ensure!(output.status().success(), "{}", output.stderr()?);
    Ok(())
}

pub(crate) async fn a_tree_goes_in_and_comes_out() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let host = tempfile::tempdir()?;
    let source = host.path().join("source");
    fs::create_dir_all(source.join("bin/empty"))?;
    fs::write(source.join("bin/tool"), "#!/bin/sh\necho tool\n")?;
    fs::set_permissions(source.join("bin/tool"), fs::Permissions::from_mode(0o751))?;
    fs::hard_link(source.join("bin/tool"), source.join("other"))?;
    symlink("bin/tool", source.join("link"))?;
    fs::File::create(source.join("sparse"))?.set_len(8 << 30)?;
    fs::write(source.join("big"), vec![5; 3_000_000])?;

    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket"))?;

    let report = sandbox.fs().copy_in(&source, "/opt").await?;
    assert_eq!(
        (report.entries, report.skipped, report.bytes),
        (8, 1, 3_000_020)
    );
    assert_eq!(report.skipped_entries[0].path, Path::new("source/socket"));
    let script = "/opt/link && stat -c '%a %u %h' /opt/other && stat -c '%s' /opt/sparse \
                  && ls /opt && wc -c < /opt/big";
    let seen = sandbox.shell(script).await?;
    assert_eq!(
        seen.stdout()?,
        format!(
            "tool\n751 0 2\n{}\nbig\nbin\nlink\nother\nsparse\n3000000\n",
            8u64 << 30
        )
    );
    let target = host.path().join("target");
    let report = sandbox.fs().copy_out("/opt", &target).await?;
    assert_eq!((report.entries, report.skipped), (8, 0));
    assert_eq!(fs::read_link(target.join("link"))?, Path::new("bin/tool"));
    let (tool, other) = (
        fs::metadata(target.join("bin/tool"))?,
        fs::metadata(target.join("other"))?,
    );
    assert_eq!((tool.ino(), tool.mode() & 0o7777), (other.ino(), 0o751));
    let sparse = fs::metadata(target.join("sparse"))?;
    assert!(sparse.len() == 8 << 30 && sparse.blocks() * 512 < 1 << 20);
    assert!(fs::read(target.join("big"))? == vec![5; 3_000_000]);
    assert_eq!(
        tool.modified()?,
        fs::metadata(source.join("bin/tool"))?.modified()?
    );

    // A single file, and an owner.
    let options = CopyOptions::default().owner(12, 34);
    sandbox
        .fs()
        .copy_in_with(source.join("big"), "/single", options)
        .await?;
    let seen = sandbox.fs().stat("/single").await?;
    assert_eq!((seen.uid, seen.gid, seen.size), (12, 34, 3_000_000));
    sandbox
        .fs()
        .copy_out("/single", host.path().join("single"))
        .await?;
    assert!(fs::read(host.path().join("single"))? == vec![5; 3_000_000]);
    match sandbox.fs().copy_in(host.path().join("none"), "/x").await {
        Err(Error::HostFile {
            path,
            fault: FileFault::NotFound,
        }) => {
            assert_eq!(path, host.path().join("none"));
        }
        other => panic!("{other:?}"),
    }
    match sandbox.fs().copy_out("/none", host.path().join("x")).await {
        Err(Error::File {
            path,
            fault: FileFault::NotFound,
            ..
        }) => {
            assert_eq!(path, Path::new("/none"));
        }
        other => panic!("{other:?}"),
    }
    assert!(!host.path().join("x").exists());
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn a_hostile_tree_stays_in_its_place() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let host = tempfile::tempdir()?;
    let victim = host.path().join("victim");
    fs::create_dir(&victim)?;
    fs::write(victim.join("file"), "untouched")?;
    let script = format!(
        "mkdir -p /t/dir && cd /t && ln -s / root && ln -s ../victim up && ln -s {} abs \
         && mknod null c 1 3 && mknod disk b 7 0 && mkfifo fifo && cp /bin/busybox suid \
         && chmod 6777 suid && chmod 1777 dir && truncate -s 1099511627776 huge \
         && printf x > \"$(printf 'new\\nline')\" && ln -s /etc/passwd dir/passwd",
        victim.display()
    );
    prepare(&sandbox, script).await?;
    let target = host.path().join("target");
    let report = sandbox.fs().copy_out("/t", &target).await?;
    assert_eq!(report.skipped, 3);
    let mut skipped: Vec<_> = report
        .skipped_entries
        .iter()
        .map(|one| format!("{} {}", one.path.display(), one.kind))
        .collect();
    skipped.sort();
    assert_eq!(
        skipped,
        [
            "target/disk block device",
            "target/fifo fifo",
            "target/null character device"
        ]
    );
    assert_eq!(
        fs::symlink_metadata(target.join("suid"))?.mode() & 0o7777,
        0o777
    );
    assert_eq!(
        fs::symlink_metadata(target.join("dir"))?.mode() & 0o7777,
        0o777
    );
    let huge = fs::metadata(target.join("huge"))?;
    assert!(huge.len() == 1 << 40 && huge.blocks() * 512 < 1 << 20);
    assert!(target.join("new\nline").exists());
    assert_eq!(
        fs::symlink_metadata(target.join("suid"))?.uid(),
        rustix::process::getuid().as_raw()
    );

    // Then folders where its symlinks were: a second copy must not go through them.
    let script = "cd /t && for link in up abs root; do rm $link && mkdir $link && echo evil > $link/file; done";
    prepare(&sandbox, script).await?;
    match sandbox.fs().copy_out("/t", &target).await {
        Err(Error::HostFile { path, fault }) => {
            assert!(path.starts_with(&target), "{path:?}");
            let refused = matches!(fault, FileFault::NotAFolder | FileFault::Symlink);
            assert!(refused, "{fault:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(target.join("suid").exists(), "what was there stays");
    assert_eq!(fs::read(victim.join("file"))?, b"untouched");
    assert_eq!(fs::read_dir(&victim)?.count(), 1);
    let mut names: Vec<_> = fs::read_dir(host.path())?
        .map(|one| one.map(|one| one.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    assert_eq!(names, ["target", "victim"]);

    // Deeper than is followed.
    let script = "mkdir /deep && cd /deep && i=0; while [ $i -lt 300 ]; do mkdir d && cd d; i=$((i+1)); done";
    prepare(&sandbox, script).await?;
    match sandbox
        .fs()
        .copy_out("/deep", host.path().join("deep"))
        .await
    {
        Err(Error::File {
            fault: FileFault::TooDeep(_),
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    assert!(!host.path().join("deep").exists(), "it is removed");
    sandbox.fs().remove_all("/deep").await?;
    sandbox.kill().await?;
    Ok(())
}

pub(crate) async fn a_copy_that_is_too_large_is_removed() -> anyhow::Result<()> {
    let sandbox = lab::sandbox().await?;
    let host = tempfile::tempdir()?;
    let script =
        "mkdir /t && cd /t && dd if=/dev/zero of=big bs=1M count=8 2>/dev/null && touch a b c";
    prepare(&sandbox, script).await?;
    let target = host.path().join("target");
    for options in [
        CopyOptions::default().max_bytes(1 << 20),
        CopyOptions::default().max_entries(2),
    ] {
        match sandbox.fs().copy_out_with("/t", &target, options).await {
            Err(
                error @ Error::HostFile {
                    fault: FileFault::TooMuch(_),
                    ..
                },
            ) => {
                assert!(error.hint().is_some());
            }
            other => panic!("{other:?}"),
        }
        assert!(!target.exists());
    }
    // The sandbox is none the worse for it.
    let report = sandbox.fs().copy_out("/t", &target).await?;
    assert_eq!((report.entries, report.bytes), (5, 8 << 20));
    sandbox.kill().await?;
    Ok(())
}
