//! A session that is held: between `Freeze` and `Thaw` the agent answers the host, and
//! everybody else stands still.
//!
//! ```text
//! running ─Freeze─► held ─Thaw─► running                       the guest that was saved
//!                    └─(saved, restored)─Become─► held ─Thaw─► running       another one
//! ```
//!
//! The host reads until `Frozen`, and is silent before: so nothing is on the link in either
//! direction when the guest is saved. One that becomes another has a link to another host,
//! on which nothing of the old streams exists.

use std::io;
use std::path::Path;

use rustix::event::PollFlags;

use super::Session;
use crate::agent::boot::step;
use crate::agent::connections::Connections;
use crate::agent::exec::Exec;
use crate::agent::identity::{self, Used};
use crate::agent::users::Database;
use crate::agent::{configure, freezer, sys, trust};
use crate::endpoint::{GuestEndpoint, GuestEvent};
use crate::message::{AgentMessage, Configured, GuestConfig, HostMessage, SetupFailure};

/// What a guest that is held has ready for the one that goes on from it: that one translates
/// all that it executes anew, and does only what depends on who it is.
pub(super) struct Ahead {
    /// Whether this guest has become another one by it.
    spent: bool,
    connections: Connections,
    files: Used<'static>,
    /// A user by name, and the ids.
    user: Option<(String, (u32, u32))>,
}

impl Session {
    /// Holds everybody until the host says otherwise. `false`: the host is gone.
    pub(super) fn hold(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let frozen = match self.freeze() {
            Ok(held) => held,
            Err(failure) => {
                self.endpoint.control(&AgentMessage::Failed(failure));
                return Ok(true);
            }
        };
        self.endpoint.control(&AgentMessage::Frozen);
        loop {
            while let Some(event) = self.next_event()? {
                let GuestEvent::Control(message) = event else {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a stream was used while everybody is held",
                    ));
                };
                if let HostMessage::Thaw = message {
                    drop(frozen);
                    // Only a copy is in a hurry.
                    self.ahead.take_if(|ahead| !ahead.spent);
                    self.endpoint.control(&AgentMessage::Thawed);
                    return Ok(true);
                }
                let answer = self.answer_held(message);
                self.endpoint.control(&answer);
            }
            if !self.flush_all()? || !self.link.wait(PollFlags::IN)? {
                return Ok(false);
            }
            let Some(bytes) = self.link.read(buffer)? else {
                return Ok(false);
            };
            self.endpoint.handle_input(bytes);
        }
    }

    fn answer_held(&mut self, message: HostMessage) -> AgentMessage {
        match message {
            HostMessage::Become(config) => match self.become_other(&config) {
                Ok(configured) => AgentMessage::Configured(Box::new(configured)),
                // It may be half another: nothing but its end helps.
                Err(failure) => AgentMessage::Failed(failure),
            },
            HostMessage::SetClock { wall_clock_ns } => set_clock(wall_clock_ns),
            HostMessage::Ping { token } => AgentMessage::Pong { token },
            _ => AgentMessage::Failed(SetupFailure::Refused("everybody is held".into())),
        }
    }

    fn freeze(&mut self) -> Result<freezer::Frozen, SetupFailure> {
        let devices = self.world.devices();
        let (Some(cgroups), Some(proc), Some(guest)) =
            (devices.cgroups(), devices.proc(), &mut self.guest)
        else {
            return Err(SetupFailure::Refused("this is no guest".into()));
        };
        if self.stopping.is_some() {
            return Err(SetupFailure::Refused("the guest is shutting down".into()));
        }
        let frozen = freezer::freeze(cgroups, proc);
        let frozen = frozen.map_err(|error| step("hold all processes", &error))?;
        guest.network.prepare_move();
        let connections = guest.sockets.find(&guest.network.addresses());
        let connections = connections.map_err(|error| step("find connections", &error))?;
        // Threads of this process are not held: what they are about to change is found later.
        let quiet = self.files.idle();
        let open = if quiet { Used::open } else { Used::unopened };
        self.ahead = Some(Ahead {
            spent: false,
            connections,
            files: open(Path::new("/")),
            user: quiet.then(|| self.default_user()).flatten(),
        });
        Ok(frozen)
    }

    /// Whom commands run as by default, by name and ids, if the name can be looked up while
    /// everybody is held.
    fn default_user(&self) -> Option<(String, (u32, u32))> {
        let root = Path::new("/");
        let name = self.world.default_user();
        let known = ["etc/passwd", "etc/group"]
            .iter()
            .all(|file| identity::is_on(root, file));
        let ids = known.then(|| find_user(name).ok()).flatten()?;
        Some((name.to_owned(), ids))
    }

    /// The order is that of `Configure`: entropy first, then the clock. Whoever is held sees
    /// all of it at once.
    fn become_other(&mut self, config: &GuestConfig) -> Result<Configured, SetupFailure> {
        configure::check(config)?;
        let refused = |reason: &str| SetupFailure::Refused(reason.into());
        let guest = self.guest.as_mut();
        let guest = guest.ok_or_else(|| refused("this is no guest"))?;
        let ahead = self.ahead.as_mut().filter(|ahead| !ahead.spent);
        let ahead = ahead.ok_or_else(|| refused("it is another already"))?;
        ahead.spent = true;
        let devices = self.world.devices();
        let entropy = config.entropy.0.as_bytes();
        sys::reseed(devices.random(), entropy)
            .map_err(|error| step("reseed the random generator", &error))?;
        configure::set_clock(config.wall_clock_ns)
            .map_err(|error| step("set the clock", &error))?;
        let old_name = configure::hostname();
        rustix::system::sethostname(config.hostname.as_bytes())
            .map_err(|errno| step("set the host name", &errno.into()))?;
        // Before the addresses are others: they say so to whoever they are from.
        let reset = guest.sockets.reset(&std::mem::take(&mut ahead.connections));
        reset.map_err(|error| step("reset connections", &error))?;
        guest.network.apply(config.network.as_ref())?;
        // An image may have /etc read-only or as a file: its own affair.
        let _ = ahead.files.rename(config, guest.network.files(), &old_name);
        let trusting = match &config.trust {
            Some(spec) => trust::install(spec)?,
            None => Vec::new(),
        };
        let boot_id = guest.boot_id.clone();
        self.world.become_other(config, trusting);
        let spec = config.user.as_deref().unwrap_or("");
        let (uid, gid) = match &ahead.user {
            Some((known, ids)) if known == spec => *ids,
            _ => find_user(spec)?,
        };
        let configured = Configured {
            entropy_bits: entropy.len() as u32 * 8,
            boot_id,
            wall_clock_ns: configure::read_clock(),
            hostname: configure::hostname(),
            // What programs see. A root without one has none to be told apart by.
            machine_id: ahead.files.machine_id().unwrap_or(config.machine_id),
            uid,
            gid,
            resumed: true,
            mac: config.network.as_ref().map(|network| network.mac),
        };
        self.forget_streams();
        Ok(configured)
    }

    /// Lets go of what belongs to the host that the link led to.
    fn forget_streams(&mut self) {
        self.endpoint = GuestEndpoint::new();
        self.by_pid.clear();
        let mut execs = std::mem::take(&mut self.execs);
        for exec in execs.values_mut() {
            self.leave_group(exec);
        }
        let orphans = execs.into_values().filter_map(Exec::into_orphan);
        self.orphans.extend(orphans);
        for (_, dial) in std::mem::take(&mut self.dials) {
            dial.abandon();
        }
        self.files.abandon_all();
        self.syncs.waiting.clear();
        if let Some(running) = &mut self.syncs.running {
            running.clear();
        }
    }

    /// Writes everything that there is to say. `false`: the host is gone.
    fn flush_all(&mut self) -> io::Result<bool> {
        while !self.endpoint.output().is_empty() {
            if !self.flush()? {
                return Ok(false);
            }
            if !self.endpoint.output().is_empty() && !self.link.wait(PollFlags::OUT)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The ids of a user.
fn find_user(spec: &str) -> Result<(u32, u32), SetupFailure> {
    let user = Database::load().find(spec);
    let ids = user.map(|user| (user.uid, user.gid));
    ids.map_err(|reason| SetupFailure::User {
        user: spec.into(),
        reason,
    })
}

/// Sets the clock as the host says.
pub(super) fn set_clock(wall_clock_ns: u64) -> AgentMessage {
    match configure::set_clock(wall_clock_ns) {
        Ok(()) => AgentMessage::ClockSet,
        Err(error) => AgentMessage::Failed(step("set the clock", &error)),
    }
}
