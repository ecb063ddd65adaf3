//! What a sandbox begins with.

use std::fs;

use msb_sdk::{Error, Patch};

use crate::lab;

pub(crate) async fn patches_and_scripts_come_first() -> anyhow::Result<()> {
    let host = tempfile::tempdir()?;
    fs::create_dir_all(host.path().join("tree/sub"))?;
    fs::write(host.path().join("tree/sub/leaf"), "leaf")?;
    fs::write(host.path().join("one"), "from the host")?;
    let builder = lab::builder(lab::BUSYBOX)
        .await?
        .patch(Patch::text("/etc/app.conf", "key=value\n").mode(0o600))
        .patch(Patch::bytes("/srv/new/bytes", [0, 255]).owner(7, 8))
        .patch(Patch::file("/srv/file", host.path().join("one")).mode(0o640))
        .patch(Patch::dir("/srv/tree", host.path().join("tree")).owner(9, 10))
        .patch(Patch::mkdir("/app").mode(0o711))
        .patch(Patch::mkdir("/app"))
        .patch(Patch::symlink("/srv/link", "tree/sub"))
        .patch(Patch::symlink("/srv/link", "tree/sub"))
        .patch(Patch::append("/etc/hosts", "127.0.0.1 myapp.local\n"))
        .patch(Patch::remove("/etc/not-executable"))
        .patch(Patch::remove("/never/was"))
        .script("setup", "#!/bin/sh\necho set up by \"$0\" in $PWD\n")
        .script("ls", "#!/bin/sh\necho mine\n")
        .workdir("/app");
    let sandbox = builder.create().await?;
    let script = "cat /etc/app.conf; stat -c '%a' /etc/app.conf; stat -c '%s %u %g' /srv/new/bytes; \
                  cat /srv/file; stat -c ' %a' /srv/file; cat /srv/link/leaf; \
                  stat -c ' %u %g' /srv/tree/sub/leaf; stat -c %a /app; tail -n 1 /etc/hosts; \
                  head -n 1 /etc/hosts | cut -f 1; \
                  test -e /etc/not-executable || echo gone; setup";
    let seen = sandbox.shell(script).await?;
    assert_eq!(
        seen.stdout()?,
        "key=value\n600\n2 7 8\nfrom the host 640\nleaf 9 10\n711\n127.0.0.1 myapp.local\n\
         127.0.0.1\ngone\nset up by /.msb/scripts/setup in /app\n",
        "{}",
        seen.stderr()?
    );
    // It is found ahead of the image's.
    let mine = sandbox.exec("ls", ["/"]).await?;
    assert_eq!(mine.stdout()?, "mine\n");
    sandbox.kill().await?;
    // The image has what it had.
    let other = lab::sandbox().await?;
    assert!(other.fs().exists("/etc/not-executable").await?);
    assert!(!other.fs().exists("/.msb").await?);
    other.kill().await?;
    Ok(())
}

pub(crate) async fn a_patch_that_fails_is_named() -> anyhow::Result<()> {
    let builder = lab::builder(lab::BUSYBOX)
        .await?
        .patch(Patch::text("/bin", "a folder"));
    match builder.create().await {
        Err(Error::Start { reason, .. }) => {
            assert_eq!(
                reason,
                "a patch failed: cannot write /bin in the sandbox: it is a folder"
            );
        }
        other => panic!("{other:?}"),
    }
    let missing = Patch::file("/x", "/no/such/file");
    match lab::builder(lab::BUSYBOX)
        .await?
        .patch(missing)
        .create()
        .await
    {
        Err(Error::Start { reason, .. }) => assert!(reason.contains("/no/such/file"), "{reason}"),
        other => panic!("{other:?}"),
    }
    match lab::builder(lab::BUSYBOX)
        .await?
        .patch(Patch::mkdir("relative"))
        .create()
        .await
    {
        Err(error @ Error::InvalidSetting { .. }) => {
            assert!(error.to_string().contains("relative"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}
