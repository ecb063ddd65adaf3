//! The state that an end keeps of one stream, and what its peer's frames mean.

use bytes::Bytes;

use super::INITIAL_WINDOW;
use crate::message::ResetCode;
use crate::wire::{Channel, Kind, StreamId};

/// Which end of the link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Host,
    Guest,
}

impl Side {
    pub(super) fn sends(self, channel: Channel) -> bool {
        (channel == Channel::Stdin) == (self == Side::Host)
    }
}

/// What a frame from the peer meant.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(StreamId, Kind, Bytes),
    Data(StreamId, Channel, Bytes),
    Eof(StreamId, Channel),
    Writable(StreamId, Channel),
    Closed(StreamId, Option<ResetCode>),
}

/// One direction of one channel.
#[derive(Debug)]
pub(super) struct Flow {
    /// Sending: bytes we may still send. Receiving: bytes the peer may.
    pub(super) credit: u32,
    /// Receiving: delivered, not yet reported as consumed.
    pub(super) delivered: u32,
    /// Receiving: consumed, not yet granted again.
    pub(super) owed: u32,
    /// Sending: a caller was told to wait for credit.
    pub(super) starved: bool,
    pub(super) eof: bool,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) flows: [Flow; 3],
    pub(super) parts: Vec<u8>,
    /// Guest: parts of the request came, the request itself did not yet.
    pub(super) opening: bool,
    pub(super) local_done: bool,
    pub(super) started: bool,
    pub(super) ended: bool,
}

impl Stream {
    pub(super) fn new(opening: bool) -> Stream {
        let flow = || Flow {
            credit: INITIAL_WINDOW,
            delivered: 0,
            owed: 0,
            starved: false,
            eof: false,
        };
        Stream {
            flows: [flow(), flow(), flow()],
            parts: Vec::new(),
            opening,
            local_done: false,
            started: false,
            ended: false,
        }
    }
}
