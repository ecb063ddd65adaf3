//! `msb self`: msb goes, with what it made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use msb_sdk::{Error, Home, Sandbox, SandboxStatus, Status};

use crate::args::{SelfArgs, SelfCommand};
use crate::installed::{self, Installed, failed};
use crate::{Failure, terminal};

/// What msb makes in its home. Nothing else in there is touched: `MSB_HOME` may be any folder.
const OWN: &[&str] = &[
    "blobs",
    "images",
    "installed",
    "kvm.json",
    "sandboxes",
    "snapshots",
    "templates",
];

/// What is in the folder of a guest bundle.
const BUNDLE: [&str; 2] = ["vmlinux", "initramfs.cpio"];

/// Runs a command about msb itself.
pub(crate) async fn run(args: SelfArgs) -> Result<u8, Failure> {
    let yes = match args.command {
        SelfCommand::Doctor(doctor) => return super::doctor::run(doctor.format).await,
        SelfCommand::Uninstall { yes } => yes,
    };
    let plan = Plan::new().await?;
    plan.tell()?;
    if !yes && !terminal::confirmed("to remove it all the same: `msb self uninstall --yes`")? {
        terminal::complain("nothing was removed");
        return Ok(1);
    }
    plan.carry_out().await?;
    Ok(0)
}

/// What is removed.
struct Plan {
    home: Home,
    sandboxes: Vec<SandboxStatus>,
    commands: Vec<Installed>,
    program: PathBuf,
}

impl Plan {
    async fn new() -> Result<Self, Failure> {
        let home = Home::from_env()?;
        let program = std::env::current_exe();
        Ok(Self {
            sandboxes: Sandbox::list_in(&home).await?,
            commands: installed::list(&home)?,
            program: program.map_err(|error| failed("find", Path::new("msb"), &error))?,
            home,
        })
    }

    fn tell(&self) -> Result<(), Failure> {
        terminal::say("This removes:")?;
        for sandbox in &self.sandboxes {
            let (name, status) = (&sandbox.name, sandbox.status);
            terminal::say(&format!("  the sandbox {name} ({status}) with its files"))?;
        }
        for command in &self.commands {
            terminal::say(&format!("  the command {}", command.script.display()))?;
        }
        for path in self.state() {
            terminal::say(&format!("  {}", path.display()))?;
        }
        terminal::say(&format!("  {}", self.program.display()))
    }

    /// Files and folders of the home, and guest bundles that were put there for this msb.
    fn state(&self) -> Vec<PathBuf> {
        let home = self.home.path();
        let own = OWN.iter().map(|name| home.join(name));
        let prefix = self
            .program
            .ancestors()
            .nth(2)
            .map(|prefix| prefix.join("lib/msb"));
        let bundles = prefix.into_iter().chain([home.join("guest")]);
        let bundles = bundles.flat_map(|folder| BUNDLE.map(|name| folder.join(name)));
        let all = own.chain(bundles);
        all.filter(|path| fs::symlink_metadata(path).is_ok())
            .collect()
    }

    async fn carry_out(self) -> Result<(), Failure> {
        for sandbox in &self.sandboxes {
            remove(&self.home, sandbox).await?;
        }
        for command in &self.commands {
            installed::remove(&self.home, &command.name)?;
        }
        for path in self.state() {
            let folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
            let removed = if folder {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path, &error));
                }
                _ => {}
            }
        }
        // They stay if something else is in them.
        let _ = fs::remove_dir(self.home.path().join("guest"));
        let _ = fs::remove_dir(self.home.path());
        // Last: until here, the command can be given again.
        fs::remove_file(&self.program).map_err(|error| failed("remove", &self.program, &error))
    }
}

async fn remove(home: &Home, sandbox: &SandboxStatus) -> Result<(), Failure> {
    if sandbox.status == Status::Unreadable {
        // Its folder goes with the others; nobody can say what it is.
        return Ok(());
    }
    let gone = |error: Error| match error {
        Error::NotRunning { .. } | Error::NoSandbox { .. } => Ok(()),
        error => Err(Failure::from(error)),
    };
    let handle = match msb_sdk::SandboxHandle::find(home, &sandbox.name).await {
        Ok(handle) => handle,
        Err(error) => return gone(error),
    };
    handle.kill().await.or_else(gone)?;
    handle.remove().await.or_else(gone)
}
