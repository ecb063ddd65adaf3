//! Why a command did not succeed, where it is not the command's own affair: memory, the disk.
//!
//! What is asked of the kernel when a command ends can be relied on: it counts those that it
//! kills before it kills them, and it logs that a disk failed before a program hears of it.

use std::time::Instant;

use rustix::fs::statvfs;

use super::Session;
use crate::agent::exec::Exec;
use crate::agent::groups::{self, Group, Groups};
use crate::agent::kernel_log::KernelLog;
use crate::agent::sys;
use crate::message::{AgentMessage, ExecError, ExecRequest, ExitStatus, StreamEvent, Trouble};
use crate::wire::StreamId;

/// With less than this a file system is full: a program that fails for want of room has
/// taken what there was.
const FULL: u64 = 64 * 1024;

impl Session {
    /// Starts a command in a group of its own.
    pub(super) fn start(
        &mut self,
        stream: StreamId,
        request: &ExecRequest,
    ) -> Result<Exec, ExecError> {
        let group = self.groups.as_mut().and_then(Groups::take);
        let mut exec = Exec::start(stream, request, &self.world, group)?;
        exec.disk_failures = self.disk_failures();
        Ok(exec)
    }

    /// Takes back where a command ran.
    pub(super) fn leave_group(&mut self, exec: &mut Exec) {
        if let (Some(groups), Some(group)) = (&mut self.groups, exec.take_group()) {
            groups.put(group);
        }
    }

    /// What is said of a command that has ended.
    pub(super) fn last_event(&mut self, exec: &Exec, status: ExitStatus) -> StreamEvent {
        if status.success() || self.guest.is_none() {
            return StreamEvent::Exited(status);
        }
        let troubles = self.troubles(exec);
        if troubles.is_empty() {
            return StreamEvent::Exited(status);
        }
        StreamEvent::Troubled { status, troubles }
    }

    fn troubles(&mut self, exec: &Exec) -> Vec<Trouble> {
        self.read_kernel_log();
        let mut troubles = Vec::new();
        let killed = exec.group().map_or(0, Group::killed);
        if killed > 0 {
            let program = None;
            troubles.push(Trouble::OutOfMemory { killed, program });
        }
        let count = self.disk_failures() - exec.disk_failures;
        if count > 0 {
            troubles.push(Trouble::DiskFailed { count });
        }
        if let Some(full) = full() {
            self.endpoint.control(&AgentMessage::Trouble(full.clone()));
            troubles.push(full);
        }
        troubles
    }

    /// Looks whether commands only read themselves in again, if it is time, and ends that.
    pub(super) fn relieve(&mut self) {
        let thrashing = self
            .pressure
            .as_mut()
            .is_some_and(|pressure| pressure.look(Instant::now()));
        let (Some(groups), Some(proc)) = (&self.groups, self.world.devices().proc()) else {
            return;
        };
        let Some((pid, number)) = thrashing.then(|| groups.largest(proc)).flatten() else {
            return;
        };
        let program = groups::program(proc, pid);
        if sys::kill(pid, libc::SIGKILL).is_err() {
            return;
        }
        let groups = self.execs.values_mut().filter_map(Exec::group_mut);
        for group in groups.filter(|group| group.number() == number) {
            group.note_killed();
        }
        let killed = Trouble::OutOfMemory { killed: 1, program };
        self.endpoint.control(&AgentMessage::Trouble(killed));
    }

    fn disk_failures(&self) -> u32 {
        self.kernel_log.as_ref().map_or(0, KernelLog::failures)
    }

    /// Passes on what the kernel tells of.
    pub(super) fn read_kernel_log(&mut self) {
        let Some(log) = &mut self.kernel_log else {
            return;
        };
        for trouble in log.read() {
            self.endpoint.control(&AgentMessage::Trouble(trouble));
        }
    }
}

/// Whether the root's file system has no room.
fn full() -> Option<Trouble> {
    let found = statvfs("/").ok()?;
    let size = found.f_blocks.saturating_mul(found.f_frsize);
    let files = found.f_files > 0 && found.f_favail == 0;
    let bytes = size > 0 && found.f_bavail.saturating_mul(found.f_frsize) < FULL;
    (files || bytes).then_some(Trouble::DiskFull {
        size,
        files: !bytes,
    })
}
