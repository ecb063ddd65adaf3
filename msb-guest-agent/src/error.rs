//! Everything that can go wrong on the link, grouped by who is at fault.

use crate::message::SetupFailure;
use crate::wire::{Channel, Kind, MAX_PAYLOAD, StreamId};

/// Why the link, or a call on one of its ends, failed.
///
/// All variants but those of the last two groups mean that the peer broke the
/// protocol: the link cannot be used any more and is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // The peer: bytes that are no frame.
    /// The length field of a frame is out of bounds.
    #[error("frame announces {len} bytes, allowed are 5 to {}", MAX_PAYLOAD + 5)]
    FrameLength {
        /// What the field said.
        len: usize,
    },
    /// No such kind of frame.
    #[error("frame of unknown kind {kind:#04x}")]
    FrameKind {
        /// The kind byte.
        kind: u8,
    },
    /// A control frame on a stream, or a stream's frame on the control stream.
    #[error("{kind:?} frame on {stream}")]
    FrameStream {
        /// Kind of the frame.
        kind: Kind,
        /// Where it stood.
        stream: StreamId,
    },

    // The peer: frames that may not stand here.
    /// The payload of a frame has the wrong size or content for its kind.
    #[error("{kind:?} frame on {stream} with a malformed payload")]
    Payload {
        /// Kind of the frame.
        kind: Kind,
        /// Where it stood.
        stream: StreamId,
    },
    /// A typed message cannot be decoded.
    #[error("{kind:?} message on {stream} cannot be decoded")]
    Message {
        /// Kind of the frame that ended the message.
        kind: Kind,
        /// Where it stood.
        stream: StreamId,
    },
    /// A message in parts is longer than any legal message.
    #[error("message on {stream} is longer than {max} bytes")]
    MessageTooLong {
        /// Where it stood.
        stream: StreamId,
        /// The bound.
        max: usize,
    },
    /// A frame of this kind is not sent by this side, or not now.
    #[error("{kind:?} frame on {stream} not allowed: {reason}")]
    Unexpected {
        /// Kind of the frame.
        kind: Kind,
        /// Where it stood.
        stream: StreamId,
        /// Why not.
        reason: &'static str,
    },
    /// More data than the receiver had given credit for.
    #[error("{len} bytes on {channel} of {stream}, but only {credit} bytes of credit")]
    CreditExceeded {
        /// The stream.
        stream: StreamId,
        /// Its channel.
        channel: Channel,
        /// Bytes in the frame.
        len: usize,
        /// Bytes allowed.
        credit: u32,
    },
    /// A grant would make the window larger than any legal window.
    #[error("credit for {channel} of {stream} grows beyond the largest window")]
    WindowOverflow {
        /// The stream.
        stream: StreamId,
        /// Its channel.
        channel: Channel,
    },

    // The other side said no.
    /// The guest refused or failed a setup request.
    #[error("guest setup failed: {0}")]
    Setup(SetupFailure),
    /// The link ended in the middle of an exchange.
    #[error("the link to the guest ended while {during}")]
    LinkClosed {
        /// What was being done.
        during: &'static str,
    },
    /// Reading or writing the link failed.
    #[error("the link to the guest failed while {during}: {}", told(*kind))]
    LinkIo {
        /// What was being done.
        during: &'static str,
        /// What kind of failure.
        kind: std::io::ErrorKind,
    },

    // The caller.
    /// No such stream, or it is closed already.
    #[error("{stream} is not open")]
    NotOpen {
        /// The stream.
        stream: StreamId,
    },
    /// As many streams are open as may be.
    #[error("{max} streams are open, no more are allowed")]
    TooManyStreams {
        /// The bound.
        max: usize,
    },
    /// A frame's payload is too long to be sent.
    #[error("payload of {len} bytes, the largest is {max}")]
    PayloadTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A request is too long to be sent.
    #[error("request of {len} bytes, the largest is {max}")]
    RequestTooLong {
        /// Bytes after encoding.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
}

impl Error {
    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::Setup(failure) => failure.hint(),
            Error::RequestTooLong { .. } => {
                Some("pass large inputs through a file or stdin, not as arguments or environment")
            }
            Error::TooManyStreams { .. } => Some("wait for running commands to end"),
            _ => None,
        }
    }
}
/// Words for a failure of the link: a read that gave up waiting is called otherwise by
/// the system.
fn told(kind: std::io::ErrorKind) -> String {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match kind {
        WouldBlock | TimedOut => "it did not answer in time".into(),
        kind => std::io::Error::from(kind).to_string(),
    }
}
