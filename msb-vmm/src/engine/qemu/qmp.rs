//! QEMU's control protocol: JSON objects, one a line, over an inherited socket.
//!
//! Owns the reading of messages ([`parse`], [`Lines`]: bytes in, messages out) and a
//! blocking [`Connection`] with a deadline. It knows no command; callers name them.
//! Commands are written ahead without waiting for replies: QEMU answers in order. Each has a
//! number that comes back with its reply, so that the reply to one that was given up is not
//! taken for another's.
//!
//! Read first: `docs/interop/qmp-spec.txt` of QEMU.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::Timespec;
use serde_json::Value;

use crate::error::ControlError;

/// The longest message accepted. The greeting is the longest this crate causes, at a
/// few hundred bytes; a VMM that was taken over shall not fill the host's memory.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// Reads of one [`Connection::drain`]: more than events of a second.
const MAX_DRAINED: u32 = 16;

/// A message from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    /// The first message of a connection.
    Greeting,
    /// What came of a command.
    Reply {
        /// The command's number; what QEMU can't read it answers without one.
        id: Option<u64>,
        /// Its result, or its refusal in QEMU's words.
        outcome: Result<Value, String>,
    },
    /// Something happened.
    Event {
        /// What happened.
        name: String,
        /// Details, `Null` where there are none.
        data: Value,
    },
}

/// Parses one line.
///
/// # Errors
///
/// [`ControlError::Malformed`] for all but the four forms of [`Message`].
pub(crate) fn parse(line: &[u8]) -> Result<Message, ControlError> {
    let malformed = |reason: String| ControlError::Malformed { reason };
    let value: Value =
        serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    let Value::Object(mut object) = value else {
        return Err(malformed("not an object".to_owned()));
    };
    let id = object.get("id").and_then(Value::as_u64);
    if let Some(result) = object.remove("return") {
        let outcome = Ok(result);
        return Ok(Message::Reply { id, outcome });
    }
    if let Some(error) = object.remove("error") {
        let reason = error
            .get("desc")
            .and_then(Value::as_str)
            .unwrap_or("no reason given");
        let outcome = Err(reason.chars().take(512).collect());
        return Ok(Message::Reply { id, outcome });
    }
    if let Some(Value::String(name)) = object.remove("event") {
        return Ok(Message::Event {
            name,
            data: object.remove("data").unwrap_or(Value::Null),
        });
    }
    if object.contains_key("QMP") {
        return Ok(Message::Greeting);
    }
    Err(malformed("neither a greeting, reply nor event".to_owned()))
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
    /// Where the search for the next line end goes on.
    searched: usize,
}

impl Lines {
    /// Adds bytes that were read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next message, or `None` when it is not complete yet.
    ///
    /// # Errors
    ///
    /// [`ControlError::TooLong`] when the message outgrows [`MAX_MESSAGE`], else that of [`parse`].
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, ControlError> {
        loop {
            let Some(offset) = self.buffer[self.searched..]
                .iter()
                .position(|&byte| byte == b'\n')
            else {
                self.searched = self.buffer.len();
                return if self.searched > MAX_MESSAGE {
                    Err(ControlError::TooLong { max: MAX_MESSAGE })
                } else {
                    Ok(None)
                };
            };
            let end = self.searched + offset;
            if end > MAX_MESSAGE {
                return Err(ControlError::TooLong { max: MAX_MESSAGE });
            }
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.searched = 0;
            let line = line.trim_ascii();
            if !line.is_empty() {
                return parse(line).map(Some);
            }
        }
    }
}

/// A connection to a VMM's control socket.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    lines: Lines,
    deadline: Instant,
    /// The number of the next command.
    next: u64,
    /// Those of commands whose replies are awaited, in order.
    sent: VecDeque<u64>,
}

impl Connection {
    /// Wraps a connected socket. Nothing waits past `deadline`.
    pub(crate) fn new(stream: UnixStream, deadline: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Connection {
            stream,
            lines: Lines::default(),
            deadline,
            next: 0,
            sent: VecDeque::new(),
        })
    }

    /// Gives what follows until `deadline`. Replies to what was said before are not waited
    /// for any more.
    pub(crate) fn renew(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.sent.clear();
    }

    /// Drops messages that have come in: events that nobody waits for. A peer that never
    /// stops talking does not keep the caller: some may be left.
    pub(crate) fn drain(&mut self) -> Result<(), ControlError> {
        let closed = ControlError::Closed {
            waiting_for: "a command",
        };
        for _ in 0..MAX_DRAINED {
            while self.lines.next_message()?.is_some() {}
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(closed),
                Ok(count) => self.lines.push(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(closed),
            }
        }
        Ok(())
    }

    /// The socket, to be watched for messages.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.stream
    }

    /// Writes a command and does not wait for its reply.
    pub(crate) fn send(
        &mut self,
        command: &'static str,
        arguments: &Value,
    ) -> Result<(), ControlError> {
        let text = self.encode(command, arguments);
        self.stream
            .write_all(&text)
            .map_err(|_| ControlError::Closed {
                waiting_for: command,
            })
    }

    /// Writes a command along with a descriptor.
    pub(crate) fn send_fd(
        &mut self,
        command: &'static str,
        arguments: &Value,
        fd: BorrowedFd<'_>,
    ) -> Result<(), ControlError> {
        let text = self.encode(command, arguments);
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        match sendmsg(
            &self.stream,
            &[IoSlice::new(&text)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(sent) if sent == text.len() => Ok(()),
            _ => Err(ControlError::Closed {
                waiting_for: command,
            }),
        }
    }

    fn encode(&mut self, command: &'static str, arguments: &Value) -> Vec<u8> {
        let id = self.next;
        self.next += 1;
        self.sent.push_back(id);
        let mut message = serde_json::json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        let mut text = message.to_string().into_bytes();
        text.push(b'\n');
        text
    }

    /// Waits for the reply to `command`, the oldest one not replied to yet.
    pub(crate) fn reply(&mut self, command: &'static str) -> Result<Value, ControlError> {
        self.reply_and(command, |_| ())
    }

    /// As [`Connection::reply`], and names the events that come before it to `seen`.
    pub(crate) fn reply_and(
        &mut self,
        command: &'static str,
        mut seen: impl FnMut(&str),
    ) -> Result<Value, ControlError> {
        let wanted = self.sent.pop_front();
        loop {
            match self.message(command)? {
                Message::Reply { id, outcome } if id == wanted || is_unread(id, &outcome) => {
                    return outcome.map_err(|reason| ControlError::Refused { command, reason });
                }
                Message::Event { name, .. } => seen(&name),
                // The reply to something that was given up.
                Message::Reply { .. } | Message::Greeting => {}
            }
        }
    }

    /// Writes a command and waits for its reply.
    pub(crate) fn execute(
        &mut self,
        command: &'static str,
        arguments: &Value,
    ) -> Result<Value, ControlError> {
        self.send(command, arguments)?;
        self.reply(command)
    }

    /// Waits for an event that `wanted` picks something out of.
    pub(crate) fn event<T>(
        &mut self,
        waiting_for: &'static str,
        mut wanted: impl FnMut(&str, &Value) -> Option<T>,
    ) -> Result<T, ControlError> {
        loop {
            match self.message(waiting_for)? {
                Message::Event { name, data } => {
                    if let Some(found) = wanted(&name, &data) {
                        return Ok(found);
                    }
                }
                // Everything that was said has been replied to, or given up.
                Message::Greeting | Message::Reply { .. } => {}
            }
        }
    }

    fn message(&mut self, waiting_for: &'static str) -> Result<Message, ControlError> {
        let closed = ControlError::Closed { waiting_for };
        loop {
            if let Some(message) = self.lines.next_message()? {
                return Ok(message);
            }
            // A peer that talks without end is not waited for without end.
            if Instant::now() >= self.deadline {
                return Err(ControlError::TimedOut { waiting_for });
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(closed),
                Ok(count) => self.lines.push(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(waiting_for)?;
                }
                Err(_) => return Err(closed),
            }
        }
    }

    fn wait(&self, waiting_for: &'static str) -> Result<(), ControlError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => Err(ControlError::TimedOut { waiting_for }),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(_) => Err(ControlError::Closed { waiting_for }),
        }
    }
}

/// Whether QEMU could not read what it was told.
fn is_unread(id: Option<u64>, outcome: &Result<Value, String>) -> bool {
    id.is_none() && outcome.is_err()
}

#[cfg(test)]
mod tests;
