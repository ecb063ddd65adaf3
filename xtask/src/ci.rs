//! `cargo xtask ci`: exactly what CI runs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run::{cargo, check, check_quiet, step, target_dir};
use crate::{kvm_lab, test, tidy};

const DENY_VERSION: &str = "0.20.2";

/// The cheap checks first, then the tests.
pub(crate) fn ci() -> Result<()> {
    step("formatting", || {
        check(cargo().args(["fmt", "--all", "--check"]))
    })?;
    step("tidy", tidy::tidy)?;
    step("lints", || {
        check(built(
            cargo()
                .args([
                    "clippy",
                    "--quiet",
                    "--workspace",
                    "--all-targets",
                    "--features",
                    test::FEATURES,
                ])
                .args(["--", "-D", "warnings"]),
        ))
    })?;
    step("documentation", || {
        check(
            built(cargo().args([
                "doc",
                "--quiet",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ]))
            .env("RUSTDOCFLAGS", "-D warnings"),
        )
    })?;
    step("packages", || {
        check_quiet(built(
            cargo()
                .args([
                    "package",
                    "--quiet",
                    "--workspace",
                    "--no-verify",
                    "--allow-dirty",
                ])
                .args([
                    "--exclude",
                    "xtask",
                    "--exclude",
                    "msb-fuzz",
                    "--exclude",
                    "msb-benches",
                ]),
        ))
    })?;
    step("deny", deny)?;
    test::test(&[])?;
    kvm_lab::run(&[])
}

fn built(command: &mut Command) -> &mut Command {
    command.env("CARGO_TARGET_DIR", target_dir())
}

/// Licences, sources, bans: the checks that need no advisory database.
fn deny() -> Result<()> {
    let tool = deny_tool()?;
    // It looks at the dependencies of every platform, also those never built here.
    check(cargo().args(["fetch", "--quiet", "--locked"]))?;
    check(Command::new(tool).args([
        "--offline",
        "--log-level",
        "warn",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// cargo-deny, built once into `target/tools`.
fn deny_tool() -> Result<PathBuf> {
    let root = target_dir().join("tools");
    let tool = root.join("bin/cargo-deny");
    if !tool.exists() {
        step("build cargo-deny", || {
            check(
                cargo()
                    .args([
                        "install",
                        "cargo-deny",
                        "--locked",
                        "--quiet",
                        "--version",
                        DENY_VERSION,
                        "--root",
                    ])
                    .arg(&root)
                    .env("CARGO_TARGET_DIR", target_dir().join("tools-build")),
            )
        })?;
    }
    Ok(tool)
}
