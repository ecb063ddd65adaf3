//! Developer tasks: `cargo xtask TASK`. One file per task.
//!
//! Each task does its own set-up, says what it installs, and may be repeated.

mod boot_profile;
mod ci;
mod demo;
mod guest;
mod host;
mod images;
mod kernel;
mod kvm_lab;
mod registry;
mod run;
mod test;
mod tidy;

use std::path::PathBuf;

use anyhow::{Result, bail};

const USAGE: &str = "\
Usage: cargo xtask TASK

Tasks for everybody:
  demo               set up, build, and run a container image in a microVM
  test [FILTER…]     set up, build, and run all tests (or those whose name holds FILTER)

Tasks for developers:
  setup              install the system packages that the tasks need
  kernel [TARBALL]   build the guest kernel (from Debian's linux-source-6.12, or a tarball)
  guest              build the guest bundle: kernel, agent, initramfs
  images             build the container images that the tests use
  kvm-lab [TEST…]    run the engine tests and msb where KVM works: inside an emulated machine
  boot-profile       boot the guest with an instruction counter and print where they go
  tidy               check dependency direction, file sizes and stray paths
  ci                 everything CI runs: formatting, lints, docs, deny, tidy, tests, the KVM lab
";

fn main() {
    if let Err(error) = dispatch() {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

fn dispatch() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    std::env::set_current_dir(run::workspace_root())?;
    match task.as_str() {
        "demo" => demo::demo(),
        "test" => test::test(&rest),
        "setup" => host::install(host::ALL),
        "kernel" => guest::kernel(rest.first().map(PathBuf::from))
            .map(|path| println!("{}", path.display())),
        "guest" => guest::bundle().map(|path| println!("{}", path.display())),
        "images" => {
            let images = images::prepare()?;
            images::prepare_clients(&images)?;
            println!("{}", images.display());
            Ok(())
        }
        "boot-profile" => {
            let bundle = guest::bundle()?;
            let initramfs = bundle.join("initramfs.cpio");
            boot_profile::run(&bundle.join("vmlinux"), Some(initramfs.as_path()))
        }
        "kvm-lab" => kvm_lab::run(&rest),
        "tidy" => tidy::tidy(),
        "ci" => ci::ci(),
        "" | "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task {other:?}\n\n{USAGE}"),
    }
}
