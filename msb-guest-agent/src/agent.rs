//! The agent: PID 1 of the guest.
//!
//! ```text
//! kernel ─► boot: /dev, /sys, port ─► setup: Hello, Prepare … ─► Configure
//!                                                                   │
//! power off ◄─ unmount ◄─ processes ended ◄─ Shutdown ◄─ session ◄──┘
//! ```
//!
//! Single-threaded and event-driven; without work it executes no instruction.
//! It trusts the host, which can do anything to the guest anyway, but does not
//! panic on what it says; and it trusts nothing the workload does. The kernel
//! protects PID 1 from signals and the OOM killer. Root inside the guest can
//! still harm it, and gains nothing: the guest as a whole is untrusted.

mod boot;
mod configure;
mod connections;
mod dial;
mod disks;
mod exec;
mod file;
mod freezer;
mod groups;
mod identity;
mod kernel_log;
mod link;
mod metrics;
mod netlink;
mod network;
mod orphan;
mod pressure;
mod read_ahead;
mod root;
mod rtnetlink;
mod session;
mod stage;
mod sys;
mod trust;
mod users;
mod world;

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use rustix::system::RebootCommand;

use self::boot::Booted;
use self::link::Link;
use self::session::{End, Session};
use self::stage::Devices;
use self::world::World;
use crate::message::{AgentMessage, Entropy, GuestConfig, RootSpec, Upper};

/// How long processes may take to end when the host has vanished.
const ORPHAN_GRACE: Duration = Duration::from_secs(1);

/// Runs the agent: as PID 1 the whole of it, otherwise [`attached`] to the
/// socket that is standard input.
pub fn run() -> ExitCode {
    if rustix::process::getpid().is_init() {
        let error = match init() {
            Ok(never) => match never {},
            Err(error) => error,
        };
        // The end of PID 1 is a kernel panic; this line says why.
        let _ = std::fs::write("/dev/kmsg", format!("msb-guest-agent: {error}\n"));
        power_off();
        return ExitCode::FAILURE;
    }
    let result = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(io::Error::from)
        .and_then(attached);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msb-guest-agent: serving the socket on standard input: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves the session phase on a socket, as an ordinary process: commands run
/// where this process runs. For tests and for trying things out.
///
/// # Errors
/// When the socket fails or the host breaks the protocol.
pub fn attached(socket: OwnedFd) -> io::Result<()> {
    sys::default_signals();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let config = GuestConfig {
        entropy: Entropy(Default::default()),
        wall_clock_ns: 0,
        hostname: "attached".into(),
        machine_id: [0; 16],
        root: RootSpec {
            lower: "".into(),
            upper: Upper::Tmpfs { size: None },
        },
        env: Vec::new(),
        user: Some(format!("{}:{}", uid.as_raw(), gid.as_raw())),
        workdir: None,
        network: None,
        trust: None,
    };
    let world = World::new(&config, Vec::new(), Devices::open()?);
    let mut session = Session::new(Link::new(socket)?, world, None)?;
    match session.run()? {
        End::Shutdown => session.farewell(&AgentMessage::ShutdownDone { clean: true }),
        End::HostGone => Ok(()),
    }
}

/// What PID 1 does. It ends with the guest, or in an error.
fn init() -> io::Result<std::convert::Infallible> {
    let Booted { link, world, guest } = boot::boot()?;
    let mut session = Session::new(link, world, Some(guest))?;
    let host_gone = match session.run() {
        Ok(End::Shutdown) => false,
        Ok(End::HostGone) => true,
        Err(error) => {
            let _ = std::fs::write("/dev/kmsg", format!("msb-guest-agent: {error}\n"));
            true
        }
    };
    if host_gone {
        // Nobody is there to say so to, but the disk may be used again.
        session.abandon(ORPHAN_GRACE);
    }
    let clean = session.unmount().is_ok();
    if !host_gone {
        // If it cannot be said, the end of the guest says it.
        let _ = session.farewell(&AgentMessage::ShutdownDone { clean });
    }
    power_off();
    Err(io::Error::other("the guest did not power off"))
}

/// Ends the guest. There is no ACPI: the restart that the kernel falls back to
/// is a triple fault, on which the hypervisor exits.
fn power_off() {
    let _ = rustix::system::reboot(RebootCommand::Restart);
}
