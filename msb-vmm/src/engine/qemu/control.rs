//! What can be done with a machine that runs: hold it, let it go on, save it.
//!
//! A running machine has its memory copy-on-write, which QEMU can only save as a whole, with
//! everything that the machine shares with others. So QEMU saves the devices alone, in the
//! way that Xen has it done, and the memory is saved by [`crate::snapshot`].

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{Value, json};

use super::launch::PATIENCE;
use super::qmp::Connection;
use crate::error::{ControlError, Error};
use crate::machine::{Disk, Machine};

/// The number that a descriptor is given in QEMU.
const FD_SET: u32 = 1;

/// What a machine keeps in memory and on disks, for whoever saves it.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The file that is mapped copy-on-write.
    pub(crate) base: File,
    pub(crate) disks: Vec<Disk>,
    /// What a machine has to be like to go on from the saved one.
    pub(crate) kind: String,
}

impl Memory {
    pub(super) fn new(base: &File, machine: &Machine, kind: &str) -> Result<Self, Error> {
        let base = base.try_clone().map_err(|source| Error::Os {
            action: "duplicate a descriptor",
            source,
        })?;
        Ok(Memory {
            base,
            disks: machine.disks.clone(),
            kind: kind.to_owned(),
        })
    }
}

/// The control connection of a machine that runs.
#[derive(Debug)]
pub(crate) struct Control {
    qmp: Connection,
    memory: Option<Memory>,
}

impl Control {
    pub(super) fn new(qmp: Connection, memory: Option<Memory>) -> Self {
        Control { qmp, memory }
    }

    pub(crate) fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        self.qmp.socket()
    }

    /// Drops events that a guest has caused and nobody waits for.
    pub(crate) fn drain(&mut self) -> Result<(), ControlError> {
        self.qmp.drain()
    }

    /// Holds all processors. What the devices were doing is done when this returns.
    pub(crate) fn pause(&mut self) -> Result<(), ControlError> {
        self.execute("stop", &Value::Null)
    }

    /// Lets the processors go on.
    pub(crate) fn resume(&mut self) -> Result<(), ControlError> {
        self.execute("cont", &Value::Null)
    }

    fn execute(&mut self, command: &'static str, arguments: &Value) -> Result<(), ControlError> {
        self.qmp.renew(Instant::now() + PATIENCE);
        self.qmp.drain()?;
        self.qmp.execute(command, arguments).map(drop)
    }

    /// Writes the state of the devices of a machine that is held to `to`, which is open for
    /// writing only. A machine that goes on from it runs.
    pub(crate) fn save_devices(&mut self, to: &File) -> Result<(), ControlError> {
        self.qmp.renew(Instant::now() + PATIENCE);
        self.qmp.drain()?;
        let set = json!({ "fdset-id": FD_SET });
        self.qmp.send_fd("add-fd", &set, to.as_fd())?;
        self.qmp.reply("add-fd")?;
        // Not `live`: it would take the disks for another machine's.
        let arguments = json!({ "filename": format!("/dev/fdset/{FD_SET}"), "live": false });
        let saved = self.qmp.execute("xen-save-devices-state", &arguments);
        self.qmp.execute("remove-fd", &set)?;
        saved.map(drop)
    }
}
