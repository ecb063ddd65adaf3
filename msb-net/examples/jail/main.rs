//! Runs a program whose only way to the network is a gateway with a policy.
//!
//! ```text
//! cargo run -p msb-net --example jail -- --policy FILE -- CMD…
//! cargo run -p msb-net --example jail -- --rule "deny tcp 25" --events - -- curl https://example.org
//! ```
//!
//! No privileges are needed where the system allows user namespaces and
//! `/dev/net/tun`. How it works:
//!
//! ```text
//! jail ──────────────► the same program again, in new user, network and mount namespaces
//!   │ writes id maps ◄─── "map"
//!   │                     mounts resolv.conf, makes a TAP device, addresses, routes
//!   │ runs a gateway ◄─── "tap", and its descriptor
//!   └─ "go" ────────────► executes CMD
//! ```
//!
//! | file | what |
//! |---|---|
//! | `args.rs` | the command line |
//! | `warden.rs` | the outside: starts the inside, runs the gateway, waits |
//! | `inside.rs` | the inside, up to the program |
//! | `line.rs` | what both say to each other |
//! | `netlink.rs` | interface, addresses, routes |
//! | `kernel.rs` | the two system calls that have no safe form |
//!
//! It is the network that is jailed, and nothing else: files, and sockets in the
//! file system, are those of the caller.

mod args;
#[path = "../cli/mod.rs"]
mod cli;
mod inside;
mod kernel;
mod line;
mod netlink;
mod warden;

use std::process::ExitCode;

fn main() -> ExitCode {
    if inside::was_asked_for() {
        return inside::run();
    }
    match args::Args::read().and_then(|args| warden::run(&args)) {
        Ok(status) => status,
        Err(error) => cli::fail(&error),
    }
}
