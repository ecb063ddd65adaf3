//! What the tests stand on: the home and images that `cargo xtask test` prepares.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use msb_sdk::{Home, Images, Sandbox, SandboxBuilder, SandboxHandle};

/// The small image's name.
pub(crate) const BUSYBOX: &str = "localhost/busybox:test";

/// The Debian and python3 image's name.
pub(crate) const PYTHON: &str = "localhost/python:test";

/// Runs a test in a runtime of its own.
pub(crate) fn run<F: Future<Output = anyhow::Result<()>>>(test: fn() -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    if let Err(error) = runtime.block_on(test()) {
        panic!("{error:?}");
    }
}

/// A folder that the task which runs the tests prepares.
pub(crate) fn prepared(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run the tests with `cargo xtask test`"),
    }
}

/// The home that all tests share.
pub(crate) fn home() -> Home {
    Home::at(prepared("MSB_TEST_IMAGES").join("home")).expect("home")
}

/// Describes a sandbox of an image that is imported if need be, under a name of its own.
pub(crate) async fn builder(image: &str) -> anyhow::Result<SandboxBuilder> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let layout = if image == BUSYBOX {
        "busybox"
    } else {
        "python"
    };
    let images = Images::open(&home())?;
    if !images.list().await?.iter().any(|one| {
        one.references()
            .iter()
            .any(|name| name.to_string() == image)
    }) {
        let from = prepared("MSB_TEST_IMAGES").join(layout);
        images.import(&from, image, |_| {}).await?;
    }
    let name = format!(
        "it-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    Ok(Sandbox::builder(name).image(image).home(home()).cpus(1))
}

/// A sandbox that lives on: removed at the end of its test, also when that failed.
pub(crate) struct LivesOn(pub(crate) String);

impl Drop for LivesOn {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.0);
        // Not in the test's own runtime, which is busy with this.
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let handle = SandboxHandle::find(&home(), &name).await?;
                // One that does not run needs no end.
                let _ = handle.kill().await;
                handle.remove().await?;
                anyhow::Ok(())
            })
        });
        // Usually it is removed already.
        let _ = removing.join();
    }
}

/// Starts a sandbox of the small image.
pub(crate) async fn sandbox() -> anyhow::Result<Sandbox> {
    Ok(builder(BUSYBOX).await?.create().await?)
}
