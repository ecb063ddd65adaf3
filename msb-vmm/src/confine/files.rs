//! Landlock: which files, ports and processes a VMM reaches.
//!
//! Read: the kernel's `Documentation/userspace-api/landlock.rst`. The rules are made in the
//! parent, the child only takes them on.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::io::Errno;

use super::Grants;

/// The newest interface whose rights are known here; an older kernel gets those it has.
const NEWEST: ABI = ABI::V6;

/// Makes a set of rules that allows `grants`, writing `also`, and nothing else.
pub(super) fn ruleset(grants: &Grants, also: &[PathBuf]) -> Result<OwnedFd, Errno> {
    if version() == 0 {
        return Err(Errno::NOSYS);
    }
    let set: Option<OwnedFd> = build(grants, also).map_err(|_| Errno::INVAL)?.into();
    set.ok_or(Errno::OPNOTSUPP)
}

fn build(grants: &Grants, also: &[PathBuf]) -> Result<RulesetCreated, RulesetError> {
    let mut set = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    for (paths, access) in [
        (&*grants.execute, AccessFs::Execute | AccessFs::ReadFile),
        (&*grants.read, read),
        (&*grants.write, write),
        (also, write),
    ] {
        for path in paths {
            set = allow(set, path, access)?;
        }
    }
    Ok(set)
}

/// Allows a file or a folder; what is not there needs no rule.
fn allow(
    set: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(file) = PathFd::new(path) else {
        return Ok(set);
    };
    let access = if path.is_dir() {
        access
    } else {
        // A right that only folders have is an error for a file.
        access & AccessFs::from_file(NEWEST)
    };
    set.add_rule(PathBeneath::new(file, access))
}

/// Returns the version of the kernel's interface; 0 without one.
pub(super) fn version() -> u32 {
    crate::sys::landlock_version()
}
