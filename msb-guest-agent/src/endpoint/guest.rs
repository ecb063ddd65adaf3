//! The guest's end of the link.

use bytes::{Bytes, BytesMut};

use super::mux::Mux;
use super::stream::{Incoming, Side};
use crate::error::Error;
use crate::message::{
    self, AgentMessage, HostMessage, Request, ResetCode, StreamCommand, StreamEvent,
};
use crate::wire::{Channel, Kind, StreamId};

/// What the host said.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// A message on the control stream.
    Control(HostMessage),
    /// A new stream.
    Opened {
        /// The stream.
        stream: StreamId,
        /// What it is for.
        request: Request,
    },
    /// Something is to be done to a stream.
    Command {
        /// The stream.
        stream: StreamId,
        /// What is to be done.
        command: StreamCommand,
    },
    /// Input; to be acknowledged with [`GuestEndpoint::consumed`].
    Data {
        /// The stream.
        stream: StreamId,
        /// Never empty.
        data: Bytes,
    },
    /// No more input.
    Eof {
        /// The stream.
        stream: StreamId,
    },
    /// The channel has credit again after [`GuestEndpoint::send`] took less
    /// than all.
    Writable {
        /// The stream.
        stream: StreamId,
        /// [`Channel::Stdout`] or [`Channel::Stderr`].
        channel: Channel,
    },
    /// The host gave the stream up; its id is no longer valid.
    Closed {
        /// The stream.
        stream: StreamId,
        /// Why, when it said why.
        reset: Option<ResetCode>,
    },
}

/// The guest's end of the link; see the [module](super) for how it is used.
#[derive(Debug)]
pub struct GuestEndpoint {
    mux: Mux,
}

impl Default for GuestEndpoint {
    fn default() -> GuestEndpoint {
        GuestEndpoint::new()
    }
}

impl GuestEndpoint {
    /// Makes the guest's end of a link on which the setup phase is over.
    pub fn new() -> GuestEndpoint {
        GuestEndpoint {
            mux: Mux::new(Side::Guest),
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
    /// When the host broke the protocol. Every later call returns the same.
    pub fn poll_event(&mut self) -> Result<Option<GuestEvent>, Error> {
        let Some(incoming) = self.mux.poll()? else {
            return Ok(None);
        };
        match interpret(incoming) {
            Ok(event) => Ok(Some(event)),
            Err(error) => Err(self.mux.fail(error)),
        }
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
    pub fn control(&mut self, message: &AgentMessage) {
        self.mux.control(&message::encode(message));
    }

    /// Reports what happened to a stream. The last event ends both output
    /// channels and closes the stream.
    ///
    /// # Errors
    /// [`Error::NotOpen`].
    pub fn event(&mut self, stream: StreamId, event: &StreamEvent) -> Result<(), Error> {
        if let StreamEvent::Exited(_) | StreamEvent::HungUp = event {
            self.mux.finish(stream, Channel::Stdout)?;
            self.mux.finish(stream, Channel::Stderr)?;
        }
        self.mux
            .message(Kind::Event, stream, &message::encode(event))?;
        if event.is_last() {
            self.mux.close(stream);
        }
        Ok(())
    }

    /// Sends as much of `data` as there is credit for and returns how much that
    /// was. When it was not all, [`GuestEvent::Writable`] follows.
    ///
    /// # Errors
    /// [`Error::NotOpen`], also after [`finish`](GuestEndpoint::finish).
    pub fn send(
        &mut self,
        stream: StreamId,
        channel: Channel,
        data: &[u8],
    ) -> Result<usize, Error> {
        self.mux.send(stream, channel, data)
    }

    /// How many bytes [`send`](GuestEndpoint::send) would take now. When none,
    /// [`GuestEvent::Writable`] follows once it would.
    pub fn capacity(&mut self, stream: StreamId, channel: Channel) -> usize {
        self.mux.capacity(stream, channel)
    }

    /// Ends an output channel. A second call does nothing.
    ///
    /// # Errors
    /// [`Error::NotOpen`].
    pub fn finish(&mut self, stream: StreamId, channel: Channel) -> Result<(), Error> {
        self.mux.finish(stream, channel)
    }

    /// Gives credit back: `n` bytes of input were taken by their consumer.
    /// Does nothing when the stream is over.
    pub fn consumed(&mut self, stream: StreamId, n: usize) {
        self.mux.consumed(stream, Channel::Stdin, n);
    }

    /// Gives a stream up.
    pub fn reset(&mut self, stream: StreamId, code: ResetCode) {
        self.mux.reset(stream, code);
    }

    /// Number of streams that are open.
    pub fn open_streams(&self) -> usize {
        self.mux.open_streams()
    }
}

fn interpret(incoming: Incoming) -> Result<GuestEvent, Error> {
    Ok(match incoming {
        Incoming::Message(stream, kind, payload) => {
            interpret_message(stream, kind, &payload).ok_or(Error::Message { kind, stream })?
        }
        Incoming::Data(stream, _, data) => GuestEvent::Data { stream, data },
        Incoming::Eof(stream, _) => GuestEvent::Eof { stream },
        Incoming::Writable(stream, channel) => GuestEvent::Writable { stream, channel },
        Incoming::Closed(stream, reset) => GuestEvent::Closed { stream, reset },
    })
}

fn interpret_message(stream: StreamId, kind: Kind, payload: &[u8]) -> Option<GuestEvent> {
    Some(match kind {
        Kind::Control => GuestEvent::Control(message::decode(payload)?),
        Kind::Open => GuestEvent::Opened {
            stream,
            request: message::decode(payload)?,
        },
        _ => GuestEvent::Command {
            stream,
            command: message::decode(payload)?,
        },
    })
}
