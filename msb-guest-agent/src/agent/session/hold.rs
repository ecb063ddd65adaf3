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

use std::fs;
use std::io;
use std::path::Path;

use rustix::event::PollFlags;

use super::Session;
use crate::agent::boot::step;
use crate::agent::exec::Exec;
use crate::agent::users::Database;
use crate::agent::{configure, connections, freezer, identity, sys, trust};
use crate::endpoint::{GuestEndpoint, GuestEvent};
use crate::message::{AgentMessage, Configured, GuestConfig, HostMessage, SetupFailure};

impl Session {
    /// Holds everybody until the host says otherwise. `false`: the host is gone.
    pub(super) fn hold(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let frozen = match self.freeze() {
            Ok(frozen) => frozen,
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
        let (Some(cgroups), Some(proc), Some(_)) = (devices.cgroups(), devices.proc(), &self.guest)
        else {
            return Err(SetupFailure::Refused("this is no guest".into()));
        };
        if self.stopping.is_some() {
            return Err(SetupFailure::Refused("the guest is shutting down".into()));
        }
        freezer::freeze(cgroups, proc).map_err(|error| step("hold all processes", &error))
    }

    /// The order is that of `Configure`: entropy first, then the clock. Whoever is held sees
    /// all of it at once.
    fn become_other(&mut self, config: &GuestConfig) -> Result<Configured, SetupFailure> {
        configure::check(config)?;
        let not_held = || SetupFailure::Refused("this is no guest".into());
        let guest = self.guest.as_mut().ok_or_else(not_held)?;
        let devices = self.world.devices();
        let entropy = config.entropy.0.as_bytes();
        sys::reseed(devices.random(), entropy)
            .map_err(|error| step("reseed the random generator", &error))?;
        configure::set_clock(config.wall_clock_ns)
            .map_err(|error| step("set the clock", &error))?;
        let old_name = configure::hostname();
        rustix::system::sethostname(config.hostname.as_bytes())
            .map_err(|errno| step("set the host name", &errno.into()))?;
        if let (Some(cgroups), Some(proc)) = (devices.cgroups(), devices.proc()) {
            // Before the addresses are others: it is by them that they are found.
            let own = guest.network.addresses();
            if connections::any(proc, &own) {
                freezer::processes(cgroups)
                    .and_then(|processes| connections::reset(proc, &processes, &own))
                    .map_err(|error| step("reset connections", &error))?;
            }
        }
        guest.network.apply(config.network.as_ref())?;
        guest.root.rename(config, guest.network.files(), &old_name);
        let trusting = match &config.trust {
            Some(spec) => trust::install(spec)?,
            None => Vec::new(),
        };
        self.world.become_other(config, trusting);
        self.forget_streams();

        let spec = config.user.as_deref().unwrap_or("");
        let user = Database::load().find(spec);
        let user = user.map_err(|reason| SetupFailure::User {
            user: spec.into(),
            reason,
        })?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|error| step("read the boot id", &error))?;
        Ok(Configured {
            entropy_bits: entropy.len() as u32 * 8,
            boot_id: boot_id.trim_end().into(),
            wall_clock_ns: configure::read_clock(),
            hostname: configure::hostname(),
            // What programs see. A root without one has none to be told apart by.
            machine_id: identity::machine_id(Path::new("/")).unwrap_or(config.machine_id),
            uid: user.uid,
            gid: user.gid,
            resumed: true,
            mac: config.network.as_ref().map(|network| network.mac),
        })
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

/// Sets the clock as the host says.
pub(super) fn set_clock(wall_clock_ns: u64) -> AgentMessage {
    match configure::set_clock(wall_clock_ns) {
        Ok(()) => AgentMessage::ClockSet,
        Err(error) => AgentMessage::Failed(step("set the clock", &error)),
    }
}
