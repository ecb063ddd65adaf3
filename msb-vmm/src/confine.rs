//! What keeps a VMM in its place, whichever engine it is.
//!
//! Done now: the child gets an empty environment, no descriptor but those of its
//! devices, `no_new_privs`, its own process group, no core dumps, and dies with the
//! process that started it. Namespaces, Landlock and system call filters belong
//! here too; what an engine can do on its own (QEMU's `-sandbox`) is with the engine.

use std::os::fd::RawFd;
use std::process::Command;

use crate::sys::{self, ChildSetup};

/// Prepares `command` to run a VMM that keeps exactly the descriptors `inherit`,
/// besides its standard ones.
///
/// The child is tied to the *thread* that spawns it: see [`crate::engine::launcher`].
pub(crate) fn apply(command: &mut Command, inherit: Vec<RawFd>) {
    command.env_clear();
    sys::before_exec(
        command,
        ChildSetup {
            parent: std::process::id(),
            inherit,
        },
    );
}
