//! One running command: its process, its pipes or terminal, and what is still
//! to be passed between them and the link.
//!
//! # When a command has ended
//!
//! It has ended when its first process has. Others may still hold its output
//! open (`sh -c 'sleep 1000 &'`); they are neither killed nor waited for. What
//! is in the pipes at that moment is passed on, then the end is reported.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bytes::{Buf, Bytes};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::{self, LocalModes, SpecialCodeIndex, Winsize};

use super::groups::Group;
use super::orphan::Orphan;
use super::sys;
use super::users::User;
use super::world::World;
use crate::endpoint::GuestEndpoint;
use crate::message::{ExecError, ExecRequest, ExitStatus, Signal, StreamCommand, TtySize};
use crate::wire::{Channel, StreamId};

/// What a terminal can hold when its session has ended; a bound, because
/// background processes may go on writing.
const TERMINAL_BUFFER: usize = 64 * 1024;

/// A command that was started and whose end was not reported yet.
#[derive(Debug)]
pub(super) struct Exec {
    stream: StreamId,
    pid: i32,
    status: Option<ExitStatus>,
    input: Input,
    outputs: Vec<Output>,
    terminal: Option<Rc<OwnedFd>>,
    /// Where it and its descendants run, unless they go elsewhere.
    group: Option<Group>,
    /// How often a disk had failed when it began.
    pub(super) disk_failures: u32,
}

#[derive(Debug)]
struct Input {
    fd: Option<Rc<OwnedFd>>,
    queue: VecDeque<Bytes>,
    /// The host sent everything; what is left is in `queue`.
    ended: bool,
    /// The last byte passed on, for the end of file of a terminal.
    last: u8,
}

#[derive(Debug)]
struct Output {
    channel: Channel,
    fd: Rc<OwnedFd>,
    /// After the end of the process: how much is still to be passed on.
    left: Option<usize>,
}

impl Exec {
    /// Starts the command of a new stream.
    pub(super) fn start(
        stream: StreamId,
        request: &ExecRequest,
        world: &World,
        group: Option<Group>,
    ) -> Result<Exec, ExecError> {
        let user = world.user(request)?;
        let procs = group.as_ref().map(Group::processes);
        let mut exec = match request.tty {
            Some(size) => Exec::start_on_terminal(stream, request, size, (&user, procs), world)?,
            None => Exec::start_on_pipes(stream, request, (&user, procs), world)?,
        };
        exec.group = group;
        Ok(exec)
    }

    fn start_on_pipes(
        stream: StreamId,
        request: &ExecRequest,
        (user, group): (&User, Option<BorrowedFd<'_>>),
        world: &World,
    ) -> Result<Exec, ExecError> {
        let pipe = || {
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|errno| resources("make a pipe", errno))
        };
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        let input = if request.stdin {
            let (read, write) = pipe()?;
            rustix::fs::fcntl_setfl(&write, OFlags::WRONLY | OFlags::NONBLOCK)
                .map_err(|errno| resources("set up a pipe", errno))?;
            Some((read, write))
        } else {
            None
        };
        let stdin = input
            .as_ref()
            .map_or(world.null(), |(read, _)| read.as_fd());
        let stdio = [stdin, out_write.as_fd(), err_write.as_fd()];
        let pid = world.spawn(request, user, group, stdio)?;
        let output = |channel, fd| Output {
            channel,
            fd: Rc::new(fd),
            left: None,
        };
        let outputs = vec![
            output(Channel::Stdout, out_read),
            output(Channel::Stderr, err_read),
        ];
        let input = input.map(|(_, write)| Rc::new(write));
        Ok(Exec::new(stream, pid, input, outputs, None))
    }

    fn start_on_terminal(
        stream: StreamId,
        request: &ExecRequest,
        size: TtySize,
        (user, group): (&User, Option<BorrowedFd<'_>>),
        world: &World,
    ) -> Result<Exec, ExecError> {
        let (master, slave) = world
            .open_terminal()
            .map_err(|error| resources("open a terminal", errno_of(&error)))?;
        // Not being able to give it away only matters to programs that reopen
        // it by name.
        let uid = rustix::fs::Uid::from_raw(user.uid);
        let _ = rustix::fs::fchown(&slave, Some(uid), None);
        let _ = termios::tcsetwinsize(&master, winsize(size));
        let pid = world.spawn(request, user, group, [slave.as_fd(); 3])?;
        let master = Rc::new(master);
        let output = Output {
            channel: Channel::Stdout,
            fd: Rc::clone(&master),
            left: None,
        };
        let input = Some(Rc::clone(&master));
        Ok(Exec::new(stream, pid, input, vec![output], Some(master)))
    }

    fn new(
        stream: StreamId,
        pid: i32,
        input: Option<Rc<OwnedFd>>,
        outputs: Vec<Output>,
        terminal: Option<Rc<OwnedFd>>,
    ) -> Exec {
        Exec {
            stream,
            pid,
            status: None,
            input: Input {
                fd: input,
                queue: VecDeque::new(),
                ended: false,
                last: b'\n',
            },
            outputs,
            terminal,
            group: None,
            disk_failures: 0,
        }
    }

    /// Leaves the command to itself, unless it has ended.
    pub(super) fn into_orphan(self) -> Option<Orphan> {
        let running = self.status.is_none();
        let outputs = self.outputs.into_iter().map(|output| output.fd);
        running.then(|| Orphan::new(self.input.fd.or(self.terminal), outputs))
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Does what the host wants done. Failure means that the process is gone,
    /// which is reported anyway.
    pub(super) fn command(&self, command: StreamCommand) {
        match command {
            StreamCommand::Signal { signal, group } => self.signal(signal, group),
            StreamCommand::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    let _ = termios::tcsetwinsize(terminal, winsize(size));
                }
            }
        }
    }

    /// Sends a signal, unless the process was reaped: its number may be
    /// another's by now.
    pub(super) fn signal(&self, signal: Signal, group: bool) {
        if self.status.is_none() {
            let target = if group { -self.pid } else { self.pid };
            let _ = sys::kill(target, i32::from(signal.number()));
        }
    }

    /// Takes input from the host. Data after the end of stdin is dropped, and
    /// acknowledged so that the host is not kept waiting.
    pub(super) fn take_input(&mut self, data: Bytes, endpoint: &mut GuestEndpoint) {
        if self.input.fd.is_none() {
            endpoint.consumed(self.stream, data.len());
            return;
        }
        self.input.queue.push_back(data);
        self.pump_input(endpoint);
    }

    /// Notes that the host has sent all input.
    pub(super) fn end_input(&mut self, endpoint: &mut GuestEndpoint) {
        self.input.ended = true;
        self.pump_input(endpoint);
    }

    /// Writes as much input as the process takes now.
    pub(super) fn pump_input(&mut self, endpoint: &mut GuestEndpoint) {
        let input = &mut self.input;
        let Some(fd) = input.fd.clone() else { return };
        while let Some(data) = input.queue.front_mut() {
            match rustix::io::write(&fd, data) {
                Ok(n) => {
                    input.last = data[n - 1];
                    data.advance(n);
                    endpoint.consumed(self.stream, n);
                    if data.is_empty() {
                        input.queue.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // Nobody reads any more.
                    let dropped: usize = input.queue.drain(..).map(|data| data.len()).sum();
                    endpoint.consumed(self.stream, dropped);
                    input.fd = None;
                    return;
                }
            }
        }
        if input.ended {
            if let Some(terminal) = &self.terminal {
                type_end_of_file(terminal, input.last);
            }
            input.fd = None;
        }
    }

    /// What input waits for, if anything.
    pub(super) fn input_waiting(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.input.fd.as_ref()?;
        (!self.input.queue.is_empty()).then(|| fd.as_fd())
    }

    /// Channels that may still have output.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (Channel, BorrowedFd<'_>)> {
        let outputs = self.outputs.iter();
        outputs.map(|output| (output.channel, output.fd.as_fd()))
    }

    /// Passes on one piece of output, as large as `buffer` and the credit.
    pub(super) fn pump_output(
        &mut self,
        channel: Channel,
        buffer: &mut [u8],
        endpoint: &mut GuestEndpoint,
    ) {
        let Some(place) = self
            .outputs
            .iter()
            .position(|output| output.channel == channel)
        else {
            return;
        };
        let output = &mut self.outputs[place];
        let room = endpoint.capacity(self.stream, channel);
        let room = room
            .min(buffer.len())
            .min(output.left.unwrap_or(usize::MAX));
        let mut ended = output.left == Some(0);
        if room > 0 {
            match rustix::io::read(&output.fd, &mut buffer[..room]) {
                Ok(0) => ended = true,
                Ok(n) => {
                    // There is credit for all of it: `room` saw to that.
                    let _ = endpoint.send(self.stream, channel, &buffer[..n]);
                    if let Some(left) = &mut output.left {
                        *left -= n;
                        ended = *left == 0;
                    }
                }
                Err(Errno::INTR) => {}
                // Nothing more is there: after the end that is all there was.
                Err(Errno::AGAIN) => ended = output.left.is_some(),
                // A terminal says this when nobody has it open any more.
                Err(_) => ended = true,
            }
        }
        if ended {
            self.outputs.remove(place);
            let _ = endpoint.finish(self.stream, channel);
        }
    }

    /// Notes that the process has ended, and passes on what output it left.
    pub(super) fn ended(
        &mut self,
        status: ExitStatus,
        buffer: &mut [u8],
        endpoint: &mut GuestEndpoint,
    ) {
        self.status = Some(status);
        let terminal = self.terminal.is_some();
        let mut channels = Vec::with_capacity(2);
        for output in &mut self.outputs {
            output.left = Some(match rustix::io::ioctl_fionread(&output.fd) {
                Ok(n) if !terminal => n as usize,
                _ => TERMINAL_BUFFER,
            });
            channels.push(output.channel);
        }
        for channel in channels {
            while self.more_now(channel, endpoint) {
                self.pump_output(channel, buffer, endpoint);
            }
        }
    }

    fn more_now(&self, channel: Channel, endpoint: &mut GuestEndpoint) -> bool {
        let output = self.outputs.iter().find(|output| output.channel == channel);
        output.is_some_and(|output| {
            output.left == Some(0) || endpoint.capacity(self.stream, channel) > 0
        })
    }

    /// How it ended, once there is nothing before that to be said.
    pub(super) fn end(&self) -> Option<ExitStatus> {
        self.status.filter(|_| self.outputs.is_empty())
    }

    /// Where it ran.
    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Where it runs, to note something of it.
    pub(super) fn group_mut(&mut self) -> Option<&mut Group> {
        self.group.as_mut()
    }

    /// Gives away where it ran; others of it may still run there.
    pub(super) fn take_group(&mut self) -> Option<Group> {
        self.group.take()
    }
}

/// Ends the input of a terminal as a user would, unless its program reads raw
/// bytes. The character ends a line that was begun, the next one the file.
fn type_end_of_file(terminal: &OwnedFd, last: u8) {
    let Ok(settings) = termios::tcgetattr(terminal) else {
        return;
    };
    if settings.local_modes.contains(LocalModes::ICANON) {
        let end = [settings.special_codes[SpecialCodeIndex::VEOF]; 2];
        let count = if last == b'\n' { 1 } else { 2 };
        let _ = rustix::io::write(terminal, &end[..count]);
    }
}

fn winsize(size: TtySize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn resources(step: &str, errno: Errno) -> ExecError {
    ExecError::Resources {
        step: step.into(),
        errno: crate::message::Errno(errno.raw_os_error()),
    }
}
