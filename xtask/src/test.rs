//! `cargo xtask test`: sets up and runs every test.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::run::{cargo, check, step, target_dir, workspace_root};
use crate::{guest, host, images};

/// The features that tests need; none changes what the code does without it.
pub(crate) const FEATURES: &str = "msb-guest-agent/agent,msb-sdk/blocking";

/// Prepares the machine and runs all tests, or those whose name holds a filter.
pub(crate) fn test(filters: &[String]) -> Result<()> {
    host::install(host::FOR_TEST)?;
    let bundle = guest::bundle()?;
    let images = images::prepare()?;
    images::prepare_clients(&images)?;
    if filters.is_empty() {
        step("the example that embeds", build_embedding)?;
    }
    step("tests", || run_tests(&bundle, &images, filters))?;
    if filters.is_empty() {
        step("documentation tests", || {
            check(with_environment(
                cargo().args([
                    "test",
                    "--quiet",
                    "--workspace",
                    "--doc",
                    "--features",
                    FEATURES,
                ]),
                &bundle,
                &images,
            ))
        })?;
    }
    Ok(())
}

/// Builds the example outside of the workspace, as the test that runs it does: a test that has
/// to build all of its dependencies first takes longer than a test may.
fn build_embedding() -> Result<()> {
    let example = workspace_root().join("examples/embed");
    std::fs::copy(
        workspace_root().join("Cargo.lock"),
        example.join("Cargo.lock"),
    )?;
    check(
        cargo()
            .args(["build", "--quiet", "--manifest-path"])
            .arg(example.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", target_dir().join("embedding"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0"),
    )
}

/// cargo-nextest runs the same tests in parallel processes; it is used where
/// it is installed, and plain `cargo test` elsewhere.
fn run_tests(bundle: &Path, images: &Path, filters: &[String]) -> Result<()> {
    let nextest = cargo()
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|out| out.status.success());
    // Tests run some of the examples, which have to be programs for that, not tests.
    let mut examples = cargo();
    examples.args(["build", "--workspace", "--examples", "--features", FEATURES]);
    check(with_environment(&mut examples, bundle, images))?;
    let mut command = cargo();
    if nextest {
        command.args(["nextest", "run", "--no-fail-fast"]);
    } else {
        command.args(["test", "--no-fail-fast"]);
    }
    command.args([
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--features",
        FEATURES,
    ]);
    check(with_environment(command.args(filters), bundle, images))
}

fn with_environment<'a>(command: &'a mut Command, bundle: &Path, images: &Path) -> &'a mut Command {
    command
        .env("MSB_GUEST", bundle)
        .env("MSB_TEST_IMAGES", images)
        .env("CARGO_TARGET_DIR", target_dir())
}
