//! `cargo xtask demo`: from a fresh clone to a program running in a microVM.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::registry::Registry;
use crate::run::{cargo, check, step, target_dir};
use crate::{guest, host, images};

const GREETING: &str = "print('Hello from a microVM!')";

/// Sets up, builds, makes an image, serves it, and runs it as a user would.
pub(crate) fn demo() -> Result<()> {
    let mut parts = Parts::default();
    parts.time("system packages", || host::install(host::FOR_DEMO))?;
    parts.time("guest kernel and agent", || guest::bundle().map(drop))?;
    parts.time("msb", || {
        step("build msb", || {
            check(
                cargo()
                    .args(["build", "--release", "--package", "msb-cli"])
                    .env("CARGO_TARGET_DIR", target_dir()),
            )
        })
    })?;
    let images = parts.time("image", images::prepare)?;
    let registry_dir = target_dir().join("demo/registry");
    let registry = Registry::start(&registry_dir)?;
    let reference = parts.time("push to the registry", || {
        images::push(&images, "python", &registry, "python:3.11")
    })?;

    let msb = |args: &[&str]| {
        eprintln!("$ msb {}", args.join(" "));
        let mut command = Command::new(target_dir().join("release/msb"));
        check(
            command
                .args(args)
                .env("MSB_HOME", target_dir().join("demo/home")),
        )
    };
    parts.time("msb pull", || msb(&["pull", &reference]))?;
    let run = ["run", reference.as_str(), "--", "python3", "-c", GREETING];
    parts.time("msb run (first: makes the template)", || msb(&run))?;
    parts.time("msb run (again)", || msb(&run))?;
    parts.time("msb run … /bin/true", || {
        msb(&["run", &reference, "--", "/bin/true"])
    })?;
    msb(&["image", "rm", &reference])?;
    parts.print();
    Ok(())
}

#[derive(Default)]
struct Parts(Vec<(&'static str, Duration)>);

impl Parts {
    fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let value = work()?;
        self.0.push((name, start.elapsed()));
        Ok(value)
    }

    fn print(&self) {
        println!("\nHow long each part took:");
        for (name, time) in &self.0 {
            println!("  {name:<36} {:>8.2} s", time.as_secs_f64());
        }
    }
}
