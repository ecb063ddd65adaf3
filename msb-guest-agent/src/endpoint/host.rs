//! The host's end of the link.

use bytes::{Bytes, BytesMut};

use super::mux::Mux;
use super::stream::{Incoming, Side};
use crate::error::Error;
use crate::message::{
    self, AgentMessage, HostMessage, Request, ResetCode, StreamCommand, StreamEvent,
};
use crate::wire::{Channel, Kind, StreamId};

/// What the guest said.
#[derive(Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An answer on the control stream.
    Control(AgentMessage),
    /// Something happened to a stream.
    Stream {
        /// The stream.
        stream: StreamId,
        /// What happened.
        event: StreamEvent,
    },
    /// Output of a stream; to be acknowledged with [`HostEndpoint::consumed`].
    Data {
        /// The stream.
        stream: StreamId,
        /// [`Channel::Stdout`] or [`Channel::Stderr`].
        channel: Channel,
        /// Never empty.
        data: Bytes,
    },
    /// No more output on this channel.
    Eof {
        /// The stream.
        stream: StreamId,
        /// [`Channel::Stdout`] or [`Channel::Stderr`].
        channel: Channel,
    },
    /// Stdin has credit again after [`HostEndpoint::send`] took less than all.
    Writable {
        /// The stream.
        stream: StreamId,
    },
    /// The stream is over and its id is no longer valid: after its last event
    /// (`reset` is `None`), or because the guest gave it up.
    Closed {
        /// The stream.
        stream: StreamId,
        /// Why it was given up, if it was.
        reset: Option<ResetCode>,
    },
}

/// The host's end of the link; see the [module](super) for how it is used.
///
/// ```
/// use msb_guest_agent::endpoint::{GuestEndpoint, GuestEvent, HostEndpoint, HostEvent};
/// use msb_guest_agent::message::{ExecRequest, ExitStatus, Request, StreamEvent};
///
/// let (mut host, mut guest) = (HostEndpoint::new(), GuestEndpoint::new());
/// let stream = host.open(&Request::Exec(ExecRequest {
///     argv: vec!["/bin/true".into()],
///     ..ExecRequest::default()
/// }))?;
///
/// guest.handle_input(host.output());
/// assert!(matches!(guest.poll_event()?, Some(GuestEvent::Opened { .. })));
/// guest.event(stream, &StreamEvent::Started { pid: 7 })?;
/// guest.event(stream, &StreamEvent::Exited(ExitStatus::Code(0)))?;
///
/// host.handle_input(guest.output());
/// let event = StreamEvent::Started { pid: 7 };
/// assert_eq!(host.poll_event()?, Some(HostEvent::Stream { stream, event }));
/// # Ok::<(), msb_guest_agent::Error>(())
/// ```
#[derive(Debug)]
pub struct HostEndpoint {
    mux: Mux,
}

impl Default for HostEndpoint {
    fn default() -> HostEndpoint {
        HostEndpoint::new()
    }
}

impl HostEndpoint {
    /// Makes the host's end of a link on which the setup phase is over.
    pub fn new() -> HostEndpoint {
        HostEndpoint {
            mux: Mux::new(Side::Host),
        }
    }

    /// Takes bytes that were read from the link.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        self.mux.decoder().extend(bytes);
    }

    /// Gives the buffer to read from the link into, appending only.
    pub fn input_mut(&mut self) -> &mut BytesMut {
        self.mux.decoder().buffer_mut()
    }

    /// Says what the input meant, one event at a time.
    ///
    /// # Errors
    /// When the guest broke the protocol. Every later call returns the same.
    pub fn poll_event(&mut self) -> Result<Option<HostEvent>, Error> {
        while let Some(incoming) = self.mux.poll()? {
            match self.interpret(incoming) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => return Err(self.mux.fail(error)),
            }
        }
        Ok(None)
    }

    fn interpret(&mut self, incoming: Incoming) -> Result<Option<HostEvent>, Error> {
        Ok(Some(match incoming {
            Incoming::Message(stream, kind, payload) => {
                return self.interpret_message(stream, kind, &payload);
            }
            Incoming::Data(stream, channel, data) => HostEvent::Data {
                stream,
                channel,
                data,
            },
            Incoming::Eof(stream, channel) => HostEvent::Eof { stream, channel },
            Incoming::Writable(stream, _) => HostEvent::Writable { stream },
            Incoming::Closed(stream, reset) => HostEvent::Closed { stream, reset },
        }))
    }

    fn interpret_message(
        &mut self,
        stream: StreamId,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Option<HostEvent>, Error> {
        let undecodable = Error::Message { kind, stream };
        if kind == Kind::Control {
            let message = message::decode(payload).ok_or(undecodable)?;
            return Ok(Some(HostEvent::Control(message)));
        }
        let event: StreamEvent = message::decode(payload).ok_or(undecodable)?;
        let wanted = self.mux.note_event(stream, event.is_last())?;
        Ok(wanted.then_some(HostEvent::Stream { stream, event }))
    }

    /// Bytes that are to be written to the link.
    pub fn output(&self) -> &[u8] {
        self.mux.output()
    }

    /// Drops the first `n` bytes of the output, which were written.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn consume_output(&mut self, n: usize) {
        self.mux.consume_output(n);
    }

    /// Sends a control message.
    pub fn control(&mut self, message: &HostMessage) {
        self.mux.control(&message::encode(message));
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`Error::TooManyStreams`], [`Error::RequestTooLong`], or the error that
    /// ended the link.
    pub fn open(&mut self, request: &Request) -> Result<StreamId, Error> {
        self.mux.open(&message::encode(request))
    }

    /// Takes an id for a stream whose program was started on another link, and whose frames
    /// will come on this one. Nothing is sent. Its output has all of its credit; its input
    /// has none until [`resume_input`](HostEndpoint::resume_input).
    ///
    /// # Errors
    /// As [`open`](HostEndpoint::open).
    pub fn adopt(&mut self) -> Result<StreamId, Error> {
        let stream = self.mux.adopt()?;
        self.mux.resume_input(stream, 0, true);
        Ok(stream)
    }

    /// Says how many bytes of input an adopted stream takes, and whether it takes any at all.
    pub fn resume_input(&mut self, stream: StreamId, credit: u32, open: bool) {
        self.mux.resume_input(stream, credit, open);
    }

    /// Forgets a stream that goes on on another link. Nothing is sent, and no frame of it may
    /// come any more.
    pub fn hand_over(&mut self, stream: StreamId) {
        self.mux.hand_over(stream);
    }

    /// Sends a command to an open stream.
    ///
    /// # Errors
    /// [`Error::NotOpen`].
    pub fn command(&mut self, stream: StreamId, command: &StreamCommand) -> Result<(), Error> {
        self.mux
            .message(Kind::Command, stream, &message::encode(command))
    }

    /// Sends as much of `data` to stdin as there is credit for and returns how
    /// much that was. When it was not all, [`HostEvent::Writable`] follows.
    ///
    /// # Errors
    /// [`Error::NotOpen`], also after [`finish`](HostEndpoint::finish).
    pub fn send(&mut self, stream: StreamId, data: &[u8]) -> Result<usize, Error> {
        self.mux.send(stream, Channel::Stdin, data)
    }

    /// How many bytes [`send`](HostEndpoint::send) would take now. When none,
    /// [`HostEvent::Writable`] follows once it would.
    pub fn capacity(&mut self, stream: StreamId) -> usize {
        self.mux.capacity(stream, Channel::Stdin)
    }

    /// Ends stdin. A second call does nothing.
    ///
    /// # Errors
    /// [`Error::NotOpen`].
    pub fn finish(&mut self, stream: StreamId) -> Result<(), Error> {
        self.mux.finish(stream, Channel::Stdin)
    }

    /// Gives credit back: the final consumer has taken `n` bytes of output.
    /// Does nothing when the stream is over.
    pub fn consumed(&mut self, stream: StreamId, channel: Channel, n: usize) {
        self.mux.consumed(stream, channel, n);
    }

    /// Gives a stream up: its command is killed, nothing more is reported.
    pub fn reset(&mut self, stream: StreamId, code: ResetCode) {
        self.mux.reset(stream, code);
    }

    /// Number of streams that are open.
    pub fn open_streams(&self) -> usize {
        self.mux.open_streams()
    }
}
