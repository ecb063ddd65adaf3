//! What ran out or broke in a sandbox: words for it that say what to do, and what is kept of it.

use std::path::Path;

use msb_guest_agent::message::Trouble;
use serde::{Deserialize, Serialize};

use crate::record::now;
use crate::spec::SandboxSpec;

/// With less than this a file system of the host is full.
const FULL: u64 = 1 << 20;

/// Says what ran out or broke in a sandbox, and what to do about it. `home` is where its disk
/// lies.
pub(crate) fn explain(trouble: &Trouble, spec: &SandboxSpec, home: &Path) -> String {
    match trouble {
        Trouble::OutOfMemory { .. } => format!(
            "{trouble} (the sandbox has {} MiB; --memory gives it more)",
            spec.memory_mib
        ),
        Trouble::DiskFull { .. } if spec.disk_mib.is_some() => {
            format!("{trouble} (a sandbox with a larger --disk has more)")
        }
        Trouble::DiskFull { .. } => format!(
            "{trouble} (it is in the sandbox's memory, {} MiB; --disk gives it a disk)",
            spec.memory_mib
        ),
        Trouble::DiskFailed { .. } if is_full(home) => {
            format!("{trouble} (this host's disk is full: {})", home.display())
        }
        _ => trouble.to_string(),
    }
}

/// Whether the host has no room where the sandbox's disk lies.
pub(crate) fn is_full(home: &Path) -> bool {
    rustix::fs::statvfs(home)
        .is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) < FULL)
}

/// What is kept of a kind of trouble.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TroubleNote {
    pub(crate) kind: String,
    /// The last one, in words.
    pub(crate) message: String,
    pub(crate) count: u64,
    /// When the last one was, in milliseconds since the Unix epoch.
    pub(crate) at: u64,
}

/// Takes note of trouble; `true` when that is to be written down. The guest can cause as much
/// as it likes: of each kind the first is written, the second, the fourth and so on.
pub(crate) fn note(notes: &mut Vec<TroubleNote>, trouble: &Trouble, message: String) -> bool {
    let kind = kind(trouble);
    let at = now();
    if let Some(note) = notes.iter_mut().find(|note| note.kind == kind) {
        (note.message, note.at) = (message, at);
        note.count = note.count.saturating_add(1);
        return note.count.is_power_of_two();
    }
    notes.push(TroubleNote {
        kind: kind.to_owned(),
        message,
        count: 1,
        at,
    });
    true
}

/// The kind's name in files and for programs.
pub(crate) fn kind(trouble: &Trouble) -> &'static str {
    match trouble {
        Trouble::OutOfMemory { .. } => "out-of-memory",
        Trouble::DiskFull { .. } => "disk-full",
        Trouble::DiskFailed { .. } => "disk-failed",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_in_trouble_costs_little() {
        let mut notes = Vec::new();
        let failed = Trouble::DiskFailed { count: 1 };
        let written = (0..1000).filter(|_| note(&mut notes, &failed, "x".into()));
        assert_eq!(written.count(), 10);
        let (killed, program) = (1, None);
        let killed = Trouble::OutOfMemory { killed, program };
        assert!(note(&mut notes, &killed, "y".into()));
        let counts: Vec<_> = notes.iter().map(|note| (&*note.kind, note.count)).collect();
        assert_eq!(counts, [("disk-failed", 1000), ("out-of-memory", 1)]);
    }

    #[test]
    fn words_say_what_to_do() {
        let mut spec = SandboxSpec::new("one".into());
        let home = Path::new("/");
        let (size, files) = (64 << 20, false);
        let full = Trouble::DiskFull { size, files };
        assert!(explain(&full, &spec, home).contains("--disk gives it a disk"));
        spec.disk_mib = Some(64);
        let text = explain(&full, &spec, home);
        assert!(text.contains("64 MiB (a sandbox with a larger"), "{text}");
        let (killed, program) = (3, None);
        let text = explain(&Trouble::OutOfMemory { killed, program }, &spec, home);
        assert!(
            text.contains("3 processes") && text.contains("--memory"),
            "{text}"
        );
    }
}
