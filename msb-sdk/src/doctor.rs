//! What works on this host, what does not, and why.

use std::path::Path;

use msb_vmm::{Engine, EngineKind, EngineOptions, Isolation};

use rustix::fs::Access;

use crate::error::Error;
use crate::home::{GuestBundle, Home, unusable};
use crate::supervisor;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It works.
    Good,
    /// It does not, and there is something in its stead.
    Limited,
    /// It does not, and sandboxes can't run without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// One line of why.
    pub detail: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

/// Looks at everything that running a sandbox depends on.
#[must_use]
pub fn examine(home: &Home) -> Vec<Finding> {
    let mut findings = vec![state_folder(home), guest(home)];
    findings.extend(engine());
    findings.extend(confinement());
    findings.push(disks());
    findings
}

fn state_folder(home: &Home) -> Finding {
    let name = "state";
    match home.store() {
        Ok(_) => match writable(home.path()) {
            Ok(()) => good(name, home.path().display().to_string()),
            Err(error) => missing(name, error.to_string(), error.hint()),
        },
        Err(error) => missing(name, error.to_string(), error.hint()),
    }
}

/// A store that is there already can be opened on a read-only file system, too.
fn writable(path: &Path) -> Result<(), Error> {
    rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|errno| unusable(path, errno.into()))
}

fn guest(home: &Home) -> Finding {
    match GuestBundle::find(home) {
        Ok(bundle) => good("guest", bundle.kernel.display().to_string()),
        Err(error) => missing("guest", error.to_string(), error.hint()),
    }
}

fn engine() -> [Finding; 2] {
    let kvm = Engine::probe();
    let hardware = if kvm.isolation() == Isolation::Hardware {
        good("kvm", kvm.to_string())
    } else {
        limited("kvm", kvm.to_string(), None)
    };
    let mut options = EngineOptions::default();
    options.kvm = Some(kvm);
    let engine = match Engine::choose(options) {
        Ok(engine) => {
            let what = match (engine.kind(), Engine::krun_version()) {
                (EngineKind::Krun, Some(version)) => format!("libkrun {version}, built in"),
                _ => engine.program().display().to_string(),
            };
            let (kind, isolation) = (engine.kind(), engine.isolation());
            good("engine", format!("{kind} ({what}), isolation: {isolation}"))
        }
        Err(error) => missing("engine", error.to_string(), error.hint().map(Into::into)),
    };
    [hardware, engine]
}

/// What keeps a VMM in its place. A host may lack any of it; the others still hold.
fn confinement() -> Vec<Finding> {
    let found = match msb_vmm::examine_confinement() {
        Ok(found) => found,
        Err(error) => return vec![missing("confinement", error.to_string(), None)],
    };
    let namespaces = match found.namespaces {
        Ok(()) => good("namespaces", "a VMM sees no process, network or mount of the host".into()),
        Err(why) => limited(
            "namespaces",
            format!("a VMM shares the host's: {why}"),
            Some("allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns".into()),
        ),
    };
    let landlock = match found.landlock {
        Ok(version) => good(
            "landlock",
            format!("version {version}: a VMM opens its own files only"),
        ),
        Err(why) => limited(
            "landlock",
            format!("a VMM can open the files of its user: {why}"),
            Some("use a kernel of version 5.13 or later, with lsm=landlock".into()),
        ),
    };
    let calls = match found.system_calls {
        Ok(()) => good("seccomp", "a VMM makes the system calls of a list".into()),
        Err(why) => limited(
            "seccomp",
            format!("a VMM can make any system call: {why}"),
            None,
        ),
    };
    let memory = match found.memory {
        Ok(()) => good("memory", "a VMM can't change memory that others share".into()),
        Err(why) => limited(
            "memory",
            format!("a VMM that was taken over could change what others see of memory that they share: {why}"),
            Some("use a kernel of version 5.9 or later, and no other listener for system calls around msb".into()),
        ),
    };
    let limits = match found.limits {
        Ok(()) => good(
            "cgroups",
            "a VMM has limits on memory, threads and processor time".into(),
        ),
        Err(why) => limited(
            "cgroups",
            format!("the host does not limit a VMM's memory, threads and processor time, or not all of them: {why}"),
            Some("run msb where control groups (version 2) are delegated to the user, as in a session of systemd's".into()),
        ),
    };
    vec![namespaces, landlock, calls, memory, limits]
}

/// Disks are formatted by mke2fs; without one, changes stay in guest memory.
fn disks() -> Finding {
    let program = supervisor::mke2fs();
    if program.is_absolute() {
        good("disks", program.display().to_string())
    } else {
        let hint = "install e2fsprogs".to_owned();
        limited(
            "disks",
            "mke2fs is missing: --disk can't be used".into(),
            Some(hint),
        )
    }
}

fn good(name: &'static str, detail: String) -> Finding {
    Finding {
        name,
        state: State::Good,
        detail,
        hint: None,
    }
}

fn limited(name: &'static str, detail: String, hint: Option<String>) -> Finding {
    Finding {
        name,
        state: State::Limited,
        detail,
        hint,
    }
}

fn missing(name: &'static str, detail: String, hint: Option<String>) -> Finding {
    Finding {
        name,
        state: State::Missing,
        detail,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_cannot_be_written_is_no_home() {
        let error = writable(Path::new("/proc/self")).expect_err("nobody writes there");
        assert!(error.to_string().contains("/proc/self"), "{error}");
        let dir = tempfile::tempdir().expect("tempdir");
        writable(dir.path()).expect("a folder of one's own");
    }

    #[test]
    fn a_home_that_cannot_be_made_is_found_missing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("write");
        let home = Home::at(file.join("home")).expect("home");
        let findings = examine(&home);
        let state = findings
            .iter()
            .find(|finding| finding.name == "state")
            .expect("state");
        assert_eq!(state.state, State::Missing);
        assert!(state.detail.contains("file"), "{}", state.detail);
    }
}
