//! Stacks that have forgotten what they wait for.
//!
//! Read RFC 9293, 3.8.6.1. A guest that is short of memory drops what it had room for,
//! closes its window over it, and has nothing to say when there is room again: it is
//! the sender who must ask. The stack does not, in two cases: when its bytes are due to
//! be repeated while the window is closed, it drops the timer and sets no other; and
//! when the window opens, it takes what had been under way for sent. And where it does
//! ask, it waits longer each time, beginning with what it had waited for other reasons:
//! minutes, on a link where a second is long. So it is told once more what the guest
//! said last, until it has something to send, or waits for something again.
//!
//! An end (FIN) that was lost is repeated by the stack's timer alone, which waits a second
//! at first and twice as long each time. It is told that this time has passed already.

use std::time::Duration;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::outbox::{HOP_LIMIT, Outbox};
use super::stack::Stack;

/// How long bytes that nobody waits for may be merely late: the link has no detours, but
/// the guest may be busy. Twice as long after each reminder that was of no use: a program
/// may have stopped reading for hours. Several of them fit into the time after which a guest
/// counts as gone.
const PATIENCE: Duration = Duration::from_millis(50);
const MAX_PATIENCE: Duration = Duration::from_secs(15);

/// The least for which the stack's own timer is not waited for.
const MIN_WAIT: Duration = Duration::from_millis(500);

/// What is remembered of a flow.
pub(super) struct Memory {
    heard: Option<Heard>,
    /// Since when its stack waits for nothing, or too long.
    lost_since: Option<Duration>,
    patience: Duration,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            heard: None,
            lost_since: None,
            patience: PATIENCE,
        }
    }
}

/// What the guest said last.
#[derive(Clone, Copy)]
struct Heard {
    /// Behind the last byte that it sent.
    end: TcpSeqNumber,
    ack: TcpSeqNumber,
    /// As it was in the segment, not scaled.
    window: u16,
}

/// What came of a look at a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reminder {
    /// It needs none.
    Unneeded,
    /// It needs one, if nothing happens until then.
    At(Duration),
    /// It got one, and may have something to send.
    Given,
}

impl Memory {
    /// Notes what a segment of the guest says.
    pub(super) fn hear(&mut self, segment: &TcpPacket<&[u8]>) {
        if !segment.ack() || segment.syn() || segment.rst() {
            return;
        }
        if self
            .heard
            .is_none_or(|heard| heard.ack < segment.ack_number())
        {
            self.lost_since = None;
            self.patience = PATIENCE;
        }
        let end = segment.seq_number() + segment.segment_len();
        let known = self.heard.map_or(end, |heard| heard.end);
        self.heard = Some(Heard {
            end: if end > known { end } else { known },
            ack: segment.ack_number(),
            window: segment.window_len(),
        });
    }
}

impl Stack {
    /// Reminds a stack of what the guest owes it, if it has forgotten, and some time has
    /// passed.
    pub(super) fn remind(&mut self, now: Duration, outbox: &mut Outbox) -> Reminder {
        let Some(heard) = self.memory.heard.filter(|_| self.is_lost(now)) else {
            self.memory.lost_since = None;
            return Reminder::Unneeded;
        };
        let ending = self.ending();
        let patience = match self.deadline(now) {
            None => self.memory.patience,
            Some(_) => self.memory.patience.max(MIN_WAIT),
        };
        let at = *self.memory.lost_since.get_or_insert(now) + patience;
        if now < at {
            return Reminder::At(at);
        }
        self.memory.lost_since = None;
        self.memory.patience = (2 * self.memory.patience).min(MAX_PATIENCE);
        if ending {
            if let Some(due) = self.deadline(now) {
                self.transmit(due, outbox);
            }
            return Reminder::Given;
        }
        // Behind a closed window it hears of a little room, and sends that much to see.
        // Where its bytes had been under way it repeats the first of them when it hears
        // the same three times, counted from when it heard of another window.
        let window = heard.window.max(1);
        let other = if window == 1 { 2 } else { window - 1 };
        for window in [other, window, window, window, window] {
            if self.is_lost(now)
                && let Some(packet) = self.repetition(Heard { window, ..heard })
            {
                self.receive(now, &packet, outbox);
            }
        }
        Reminder::Given
    }

    /// Tells whether there is something that the guest did not acknowledge, and the stack
    /// waits for nothing but the guest, or for too long.
    fn is_lost(&mut self, now: Duration) -> bool {
        let wait = self.memory.patience.max(MIN_WAIT);
        match self.deadline(now) {
            None => self.socket().send_queue() > 0,
            Some(at) => (self.socket().send_queue() > 0 || self.ending()) && at > now + wait,
        }
    }

    /// What the guest said, as a packet of its own.
    fn repetition(&mut self, heard: Heard) -> Option<Vec<u8>> {
        let (far, guest) = (
            self.socket().local_endpoint()?,
            self.socket().remote_endpoint()?,
        );
        let segment = TcpRepr {
            src_port: guest.port,
            dst_port: far.port,
            control: TcpControl::None,
            seq_number: heard.end,
            ack_number: Some(heard.ack),
            window_len: heard.window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let (protocol, length) = (IpProtocol::Tcp, segment.buffer_len());
        let header = IpRepr::new(guest.addr, far.addr, protocol, length, HOP_LIMIT);
        let mut packet = vec![0; header.buffer_len()];
        let checks = ChecksumCapabilities::default();
        header.emit(&mut packet[..], &checks);
        let mut rest = TcpPacket::new_unchecked(&mut packet[header.header_len()..]);
        segment.emit(&mut rest, &guest.addr, &far.addr, &checks);
        Some(packet)
    }
}
