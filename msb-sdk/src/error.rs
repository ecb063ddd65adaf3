//! What can go wrong, grouped by who can do something about it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use msb_guest_agent::message::ExecError;

use crate::fs::FileFault;

use crate::port::PublishedPort;

/// Everything the SDK fails with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- the caller -------------------------------------------------------
    /// A name that no sandbox can have.
    #[error("{name:?} is not a name for a sandbox: {reason}")]
    InvalidName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A setting outside what a sandbox can have.
    #[error("{setting} cannot be {value}: {reason}")]
    InvalidSetting {
        /// Which setting.
        setting: &'static str,
        /// Its value as given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A mistake in a file that describes a sandbox.
    #[error("{}:{line}:{column}: {message}", path.display())]
    SpecFile {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// Where in the line, in characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
        /// What may have been meant.
        hint: Option<String>,
    },
    /// A sandbox of this name is running.
    #[error("a sandbox named {name:?} is running already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A sandbox of this name is stopped and kept.
    #[error("there is a sandbox named {name:?} already")]
    NameKept {
        /// The name.
        name: String,
    },
    /// There is no sandbox of this name.
    #[error("there is no sandbox named {name:?}")]
    NoSandbox {
        /// The name.
        name: String,
    },
    /// The sandbox does not run.
    #[error("the sandbox {name:?} does not run")]
    NotRunning {
        /// The name.
        name: String,
    },
    /// The sandbox runs, but does not take requests: it is being started or stopped.
    #[error("the sandbox {name:?} is being started or stopped")]
    Busy {
        /// The name.
        name: String,
    },
    /// The image of a sandbox is not here any more.
    #[error("the image {image} that the sandbox was made from is gone")]
    ImageGone {
        /// The image's reference.
        image: String,
    },
    /// A newer msb has written the state; it was not touched.
    #[error("{} is of version {version}, and this msb knows {known}", path.display())]
    NewerState {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The newest version that is known.
        known: u32,
    },
    /// The state is damaged; it was not touched.
    #[error("{} is damaged: {reason}", path.display())]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing says what to run.
    #[error("the image {image} names no command to run")]
    NoCommand {
        /// The image's reference.
        image: String,
    },
    /// What the network is to be like has a mistake.
    #[error("{0}")]
    Network(#[from] msb_net::Error),
    /// A rule has a mistake.
    #[error("network rule {rule:?}: {source}")]
    PolicyRule {
        /// The rule as given, cut to a length fit for showing.
        rule: String,
        /// What is wrong with it, and where.
        source: msb_net::Error,
    },
    /// A file that was named can't be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A policy file has a mistake.
    #[error("{}: {source}", path.display())]
    PolicyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        source: msb_net::Error,
    },
    /// A port that is not published cannot be taken back.
    #[error("{port} is not published")]
    NotPublished {
        /// The port as given.
        port: PublishedPort,
    },
    /// More ports than a sandbox may have published.
    #[error("a sandbox publishes at most {max} ports")]
    TooManyPorts {
        /// The limit.
        max: usize,
    },
    /// A secret cannot be used.
    #[error("the secret {name:?} cannot be used: {problem}")]
    Secret {
        /// Its name.
        name: String,
        /// What is wrong with it; never its value.
        problem: SecretProblem,
    },
    /// This program can't be its sandboxes' supervisor.
    #[error("no program can supervise the sandbox")]
    NoSupervisor,

    // --- the host ---------------------------------------------------------
    /// No place for state is known.
    #[error("there is no folder for msb's state: neither MSB_HOME nor HOME is set")]
    NoHome,
    /// The state folder can't be used.
    #[error("cannot use {}", path.display())]
    Home {
        /// The folder or file concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The guest's kernel or initramfs is not there.
    #[error(
        "the guest kernel and initramfs are not built or not installed; looked in {}",
        list(searched)
    )]
    NoGuest {
        /// Where they were looked for.
        searched: Vec<PathBuf>,
    },
    /// The supervisor process could not be started or reached.
    #[error("cannot start the sandbox's supervisor")]
    Supervisor {
        /// What the system said.
        source: io::Error,
    },
    /// The virtual machine did not start. The reason comes from the supervisor.
    #[error("cannot start the sandbox: {reason}")]
    Start {
        /// Why.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },

    /// Something could not be done with the sandbox's machine, or with a snapshot.
    #[error("{reason}")]
    Machine {
        /// Why.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },

    /// Something on this host listens on the port.
    #[error("cannot publish port {} on {}: something on this host uses it", host.port(), host.ip())]
    PortTaken {
        /// Where it was to be published.
        host: SocketAddr,
    },
    /// The host can't listen on a port, for another reason.
    #[error("{reason}")]
    Port {
        /// What was tried, and what the system said.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },

    // --- registries and images --------------------------------------------
    /// The image could not be had.
    #[error(transparent)]
    Image(#[from] msb_oci::Error),

    // --- the guest --------------------------------------------------------
    /// The program did not start in the guest.
    #[error("cannot run it in the sandbox: {reason}")]
    Exec {
        /// The program's name as given.
        program: String,
        /// Why.
        reason: ExecError,
    },
    /// The program did not end in its time, and was killed.
    #[error("{program} timed out after {after:?} and was killed")]
    TimedOut {
        /// The program's name as given.
        program: String,
        /// How long it had.
        after: std::time::Duration,
    },
    /// The program, or one that it ran, was killed because memory ran out.
    #[error("{program} was killed: the sandbox is out of memory")]
    OutOfMemory {
        /// The program's name as given.
        program: String,
    },
    /// An operation on the guest's files failed.
    #[error("cannot {operation} {} in the sandbox: {fault}", shown(path))]
    File {
        /// What was to be done, such as `read`.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        fault: FileFault,
    },
    /// A file of this host could not be copied from or to.
    #[error("cannot copy {}: {fault}", shown(path))]
    HostFile {
        /// The file.
        path: PathBuf,
        /// Why.
        fault: FileFault,
    },
    /// The program wrote more than can be collected.
    #[error("the program wrote more than {max} bytes")]
    OutputTooLong {
        /// The most that is collected.
        max: usize,
    },
    /// The guest did not answer in time.
    #[error("the guest of {name} does not answer")]
    NoAnswer {
        /// The sandbox.
        name: String,
    },
    /// The sandbox ended while something waited for it.
    #[error("the sandbox ended: {reason}")]
    Gone {
        /// Why, as far as it is known.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it, when there is something.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::InvalidName { .. } => {
                "use 1 to 64 letters, digits, '.', '_' and '-', starting with a letter or digit"
            }
            Self::NameTaken { name } => {
                return Some(format!(
                    "use it, as with `msb exec {name}`, remove it with `msb rm -f {name}`, or choose another name"
                ));
            }
            Self::NameKept { name } => {
                return Some(format!(
                    "start it with `msb start {name}`, remove it with `msb rm {name}`, or choose another name"
                ));
            }
            Self::NoSandbox { .. } => "`msb ls` lists those that there are",
            Self::NotRunning { name } => return Some(format!("start it: `msb start {name}`")),
            Self::ImageGone { .. } => "remove the sandbox and create it again",
            Self::Busy { .. } => "try again in a moment",
            Self::NewerState { .. } => "use the newer msb",
            Self::DamagedState { .. } => "remove the sandbox: `msb rm -f NAME`",
            Self::NoCommand { .. } => "give one after `--`",
            Self::Secret { name, problem } => return problem.hint(name),
            Self::NoSupervisor => {
                "call msb_sdk::supervisor_hook() first thing in main, or install msb on PATH"
            }
            Self::NoAnswer { name } => {
                return Some(format!("see what it does: `msb ls`, `msb metrics {name}`"));
            }
            Self::OutOfMemory { .. } => "give the sandbox more memory: --memory, or memory_mib",
            Self::OutputTooLong { .. } => "read its output as it comes, with exec_with",
            Self::NoHome => "set MSB_HOME to a folder that you may write to",
            Self::Home { source, .. } => return home_hint(source),
            Self::NoGuest { .. } => {
                "run `cargo xtask guest`, or set MSB_GUEST to the folder that holds vmlinux"
            }
            Self::Start { hint, .. }
            | Self::Machine { hint, .. }
            | Self::Port { hint, .. }
            | Self::SpecFile { hint, .. } => {
                return hint.clone();
            }
            Self::PortTaken { .. } => "name another port, or 0 for any that is free",
            Self::NotPublished { .. } => "Sandbox::ports tells which are",
            Self::Image(msb_oci::Error::NotInStore { .. }) => {
                "`msb image ls` lists those that there are, `msb pull` fetches others"
            }
            Self::Image(error) => return error.hint(),
            Self::Network(source)
            | Self::PolicyRule { source, .. }
            | Self::PolicyFile { source, .. } => return source.hint(),
            Self::Exec { reason, .. } => return reason.hint().map(Into::into),
            Self::File { fault, .. } | Self::HostFile { fault, .. } => {
                return fault.hint().map(Into::into);
            }
            Self::Unreadable { .. } => "name a file that is there and that this user may read",
            Self::InvalidSetting { .. }
            | Self::TooManyPorts { .. }
            | Self::Supervisor { .. }
            | Self::TimedOut { .. }
            | Self::Gone { .. } => {
                return None;
            }
        };
        Some(text.to_owned())
    }

    /// The exit code that container tools give this failure: 127 for a program
    /// that is not there, 126 for one that can't be executed, 137 for one that was killed,
    /// 125 otherwise; and 124, as `timeout(1)`, for one whose time was up.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exec { reason, .. } => exec_exit_code(reason),
            Self::TimedOut { .. } => 124,
            Self::OutOfMemory { .. } => 137,
            _ => 125,
        }
    }

    pub(crate) fn gone(reason: impl Into<String>) -> Self {
        Self::Gone {
            reason: reason.into(),
        }
    }
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretProblem {
    /// It may go nowhere.
    #[error("it has no host that may get its value")]
    NoHost,
    /// Nothing says what its value is.
    #[error("it has no value: none was given, and none is kept")]
    NotGiven,
    /// The variable that it is read from is not set.
    #[error("the variable that it is read from is not set here")]
    NoVariable,
    /// The file that it is read from cannot be read.
    #[error("the file that it is read from cannot be read: {0}")]
    Unreadable(io::Error),
    /// A host that may get its value is none.
    #[error("one of its hosts is no name of a host")]
    Host,
    /// The sandbox has no secret of this name.
    #[error("the sandbox has no such secret")]
    Unknown,
    /// Another secret or variable of the sandbox has its name.
    #[error("the sandbox has another variable of this name")]
    NameTaken,
    /// Its name, value or placeholder are none.
    #[error("{}", reason(.0))]
    Invalid(msb_net::Error),
}

/// What is wrong, without the name that is told already.
fn reason(error: &msb_net::Error) -> String {
    match error {
        msb_net::Error::Secret { reason, .. } => reason.to_string(),
        other => other.to_string(),
    }
}

impl SecretProblem {
    fn hint(&self, name: &str) -> Option<String> {
        Some(match self {
            Self::Unknown => "`msb inspect` shows those that it has".into(),
            Self::NoHost => "name the hosts that may get it, such as @api.example.com".into(),
            Self::NotGiven => format!(
                "give it: `--secret {name}=stdin`; in a program with SandboxHandle::start_with, \
                 Sandbox::fork_with or SnapshotBuilder::secret_value"
            ),
            Self::NoVariable => {
                "name a variable that is set, or another source: a file, a program".into()
            }
            Self::Unreadable(_) => "name a file that this user may read".into(),
            Self::Host => {
                "write names such as api.example.com, or .example.com for all below it".into()
            }
            Self::NameTaken => "leave the variable out: the guest has a placeholder in it".into(),
            Self::Invalid(msb_net::Error::Secret {
                reason: msb_net::error::InvalidSecret::TooShort { .. },
                ..
            }) => "a longer one: whatever else reads the same would be taken for it".into(),
            Self::Invalid(source) => return source.hint(),
        })
    }
}

fn exec_exit_code(reason: &ExecError) -> u8 {
    match reason {
        ExecError::NotFound { .. } => 127,
        ExecError::NotExecutable { .. } => 126,
        _ => 125,
    }
}

fn home_hint(source: &io::Error) -> Option<String> {
    let text = match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make it writable for this user, or set MSB_HOME to another folder"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space (`msb image rm`), or set MSB_HOME to a folder on another disk"
        }
        io::ErrorKind::NotADirectory => {
            "a file is in the way; remove it or set MSB_HOME to another folder"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

/// A path as one line of text. The guest chooses names, and may put into them what a terminal
/// obeys.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().any(char::is_control) {
        text.escape_debug().to_string()
    } else {
        text.into_owned()
    }
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    shown.join(", ")
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_guest_chose_do_not_reach_the_terminal_as_they_are() {
        let error = Error::File {
            operation: "read",
            path: "/tmp/\u{1b}[2J\nmsb: all is well".into(),
            fault: FileFault::NotFound,
        };
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "{text:?}");
        assert!(text.contains(r"/tmp/\u{1b}[2J\nmsb"), "{text}");
        let plain = Error::HostFile {
            path: "/tmp/ä b".into(),
            fault: FileFault::NotFound,
        };
        assert!(plain.to_string().starts_with("cannot copy /tmp/ä b: "));
    }
}
