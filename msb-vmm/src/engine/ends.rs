//! The sockets of a machine: one end of each is ours, the other the VMM's.

use std::io::{self, PipeWriter};
use std::os::unix::net::UnixStream;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::Error;
use crate::machine::Machine;
use crate::vm::{Outputs, Sockets};

/// The VMM's ends.
#[derive(Debug, Default)]
pub(super) struct Theirs {
    /// In the order of the machine's ports.
    pub(super) ports: Vec<UnixStream>,
    pub(super) network: Option<UnixStream>,
}

/// Makes a pair of sockets for each port and for the network card.
pub(super) fn make(machine: &Machine) -> Result<(Sockets, Theirs), Error> {
    let pair = || {
        UnixStream::pair().map_err(|source| Error::Os {
            action: "make a socket pair",
            source,
        })
    };
    let (mut ours, mut theirs) = (Sockets::default(), Theirs::default());
    for port in &machine.ports {
        let (end, other) = pair()?;
        ours.ports.push((port.clone(), end));
        theirs.ports.push(other);
    }
    if machine.network.is_some() {
        let (end, other) = pair()?;
        ours.network = Some(end);
        theirs.network = Some(other);
    }
    Ok((ours, theirs))
}

/// Makes the pipes that a VMM writes to, neither side of which waits: ours, then its standard
/// error and the console of its guest's kernel.
pub(super) fn outputs() -> Result<(Outputs, PipeWriter, PipeWriter), Error> {
    let pipe = || {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        pipe_with(flags).map_err(|error| Error::Os {
            action: "make a pipe",
            source: io::Error::from(error),
        })
    };
    let ((stderr, stderr_theirs), (console, console_theirs)) = (pipe()?, pipe()?);
    let outputs = Outputs {
        stderr: stderr.into(),
        console: console.into(),
    };
    Ok((outputs, stderr_theirs.into(), console_theirs.into()))
}
