//! `cargo xtask tidy`: rules about the tree that no other tool checks.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::run::{capture, cargo};

/// A Rust file longer than this is more than one thing.
const MAX_LINES: usize = 800;

/// Which workspace crates each published crate may depend on (DESIGN 1).
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("msb-vmm", &[]),
    ("msb-net", &[]),
    ("msb-oci", &[]),
    ("msb-fs", &[]),
    ("msb-guest-agent", &[]),
    (
        "msb-sdk",
        &["msb-vmm", "msb-net", "msb-oci", "msb-fs", "msb-guest-agent"],
    ),
    ("msb-cli", &["msb-sdk"]),
];

/// The only entries at the top of the tree, dotfiles aside.
const TOP_LEVEL: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "deny.toml",
    "docs",
    "examples",
    "fuzz",
    "msb-cli",
    "msb-fs",
    "msb-guest-agent",
    "msb-net",
    "msb-oci",
    "msb-sdk",
    "msb-vmm",
    "rustfmt.toml",
    "xtask",
];

/// File names that say nothing about what is in them.
const EMPTY_NAMES: &[&str] = &[
    "util.rs",
    "utils.rs",
    "common.rs",
    "helper.rs",
    "helpers.rs",
    "misc.rs",
    "types.rs",
];

/// Reports every breach at once.
pub(crate) fn tidy() -> Result<()> {
    let mut breaches = Vec::new();
    dependency_direction(&mut breaches)?;
    tracked_files(&mut breaches)?;
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("{} breaches:\n{}", breaches.len(), breaches.join("\n"))
}

fn dependency_direction(breaches: &mut Vec<String>) -> Result<()> {
    let metadata = capture(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let allowed: BTreeMap<_, _> = MAY_DEPEND_ON.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            // Tests of a crate may play the other side with its real code.
            let for_tests = dependency["kind"] == "dev";
            if target.starts_with("msb-") && !for_tests && !allowed.contains(&target) {
                breaches.push(format!("{name} must not depend on {target}"));
            }
        }
    }
    Ok(())
}

fn tracked_files(breaches: &mut Vec<String>) -> Result<()> {
    let list = capture(Command::new("git").args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        let top = path.split('/').next().unwrap_or_default();
        if !top.starts_with('.') && !TOP_LEVEL.contains(&top) {
            breaches.push(format!(
                "{path}: not a place for files (see DESIGN: top level)"
            ));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if EMPTY_NAMES.contains(&name) {
            breaches.push(format!("{path}: the name says nothing"));
        }
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        if path.ends_with(".rs") && text.lines().count() > MAX_LINES {
            breaches.push(format!(
                "{path}: {} lines, more than {MAX_LINES}",
                text.lines().count()
            ));
        }
        // Split, so that this file does not name them itself.
        let machine_paths = [
            concat!("/wo", "rk/"),
            concat!("/ro", "ot/."),
            concat!("/tmp/", "target-"),
            concat!("/tmp/", "guest/"),
        ];
        for (number, line) in text.lines().enumerate() {
            if machine_paths.iter().any(|found| line.contains(found)) {
                breaches.push(format!(
                    "{path}:{}: a path of somebody's machine",
                    number + 1
                ));
            }
        }
    }
    Ok(())
}
