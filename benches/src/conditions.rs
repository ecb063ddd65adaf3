//! What a benchmark finds on this machine: files, tools, load.
//!
//! | variable | default | what it is |
//! |---|---|---|
//! | `MSB_GUEST` | `guest` in cargo's target folder | the guest bundle |
//! | `MSB_TEST_IMAGES` | `test-images` in cargo's target folder | OCI layouts |
//! | `MSB_BENCH_QUICK` | unset | `1`: few rounds, to see that everything works |

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program;

/// Above this load (processes that want to run, of the last minute) per
/// processor, figures are of little use.
const QUIET_LOAD: f64 = 0.75;

/// Where things lie, and how often to measure.
#[derive(Debug)]
pub struct Conditions {
    /// Whether only few rounds are wanted.
    pub quick: bool,
    /// Processors of this machine.
    pub processors: usize,
    /// Load average of the last minute when the benchmark began.
    pub load: f64,
    target: PathBuf,
}

impl Conditions {
    /// Looks around, and warns when other work runs on this machine.
    ///
    /// # Errors
    /// When `/proc` can't be read or the scratch folder can't be made.
    pub fn look() -> Result<Self> {
        let load = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
        let load: f64 = load.split(' ').next().unwrap_or_default().parse()?;
        let workspace = workspace();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => workspace.join(dir),
            None => workspace.join("target"),
        };
        fs::create_dir_all(target.join("bench")).context("cannot make target/bench")?;
        let conditions = Self {
            quick: env::var_os("MSB_BENCH_QUICK").is_some_and(|value| value == "1"),
            processors: std::thread::available_parallelism()?.get(),
            load,
            target,
        };
        println!(
            "{} processors, load average {:.2}{}",
            conditions.processors,
            conditions.load,
            if conditions.quick {
                ", quick: few rounds, figures mean little"
            } else {
                ""
            }
        );
        if load > QUIET_LOAD * conditions.processors as f64 {
            println!("WARNING: other work runs on this machine; the times below include it");
        }
        Ok(conditions)
    }

    /// The conditions for a JSON report.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "kind": "conditions",
            "processors": self.processors,
            "load": self.load,
            "quick": self.quick,
        })
    }

    /// `quick` rounds or `full` ones.
    #[must_use]
    pub fn rounds(&self, quick: usize, full: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// The folder with `vmlinux` and `initramfs.cpio`.
    ///
    /// # Errors
    /// When it is not there, saying what makes it.
    pub fn guest(&self) -> Result<PathBuf> {
        let dir = self.folder("MSB_GUEST", "guest");
        for file in ["vmlinux", "initramfs.cpio"] {
            if !dir.join(file).is_file() {
                bail!(
                    "there is no guest bundle in {}: {file} is missing\nhint: run `cargo xtask guest`, or set MSB_GUEST",
                    dir.display()
                );
            }
        }
        Ok(dir)
    }

    /// The OCI layout of a test image.
    ///
    /// # Errors
    /// When it is not there, saying what makes it.
    pub fn image(&self, name: &str) -> Result<PathBuf> {
        let dir = self.folder("MSB_TEST_IMAGES", "test-images").join(name);
        if !dir.join("index.json").is_file() {
            bail!(
                "there is no image layout {}\nhint: run `cargo xtask images`, or set MSB_TEST_IMAGES",
                dir.display()
            );
        }
        Ok(dir)
    }

    /// Builds the release `msb`, which takes no time when nothing has changed.
    ///
    /// # Errors
    /// When it does not build.
    pub fn msb(&self) -> Result<PathBuf> {
        println!("building msb …");
        self.build(&["--package", "msb-cli"])?;
        Ok(self.target.join("release/msb"))
    }

    /// Builds a release example of msb-net.
    ///
    /// # Errors
    /// When it does not build.
    pub fn example(&self, name: &str) -> Result<PathBuf> {
        println!("building {name} …");
        self.build(&["--package", "msb-net", "--example", name])?;
        Ok(self.target.join("release/examples").join(name))
    }

    fn build(&self, what: &[&str]) -> Result<()> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // What cargo says of this package is not said of that one: ring's build script
        // would be run again for it, and all that depends on ring built again.
        for (name, _) in env::vars_os() {
            let bytes = name.as_encoded_bytes();
            if bytes.starts_with(b"CARGO_PKG_") || bytes.starts_with(b"CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        program::check(
            command
                .args(["build", "--quiet", "--release"])
                .args(what)
                .env("CARGO_TARGET_DIR", &self.target)
                .current_dir(workspace()),
        )
    }

    /// A file or folder that is kept from run to run.
    #[must_use]
    pub fn kept(&self, name: &str) -> PathBuf {
        self.target.join("bench").join(name)
    }

    /// A folder that is removed when it is dropped.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn scratch(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix("scratch-")
            .tempdir_in(self.target.join("bench"))
            .context("cannot make a scratch folder in target/bench")
    }

    fn folder(&self, variable: &str, default: &str) -> PathBuf {
        match env::var_os(variable).filter(|value| !value.is_empty()) {
            Some(dir) => workspace().join(dir),
            None => self.target.join(default),
        }
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
}
