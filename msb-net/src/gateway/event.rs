//! What the gateway tells of: typed, bounded, in order.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::FlowId;
use crate::Name;
use crate::dns::{Outcome, RecordKind};
use crate::http::session::Note;
use crate::policy::{Flow, Verdict};

/// Events that may wait for the driver, a few hundred kilobytes. A guest makes
/// as many as it likes, so the oldest go when nobody takes them.
const MAX_EVENTS: usize = 1024;

/// Something worth a line in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The policy was asked about a flow: when it opened and, if the verdict then
    /// said [`inspect`](Verdict::inspect), again once the client had spoken.
    Decided {
        /// The flow, if it may open.
        flow: Option<FlowId>,
        /// What was known of it.
        facts: Flow,
        /// The name of the destination: of those that the gateway's resolver said
        /// are at its address, the latest.
        name: Option<Name>,
        /// The name the client claims, where that was looked at and there is one.
        claim: Option<Name>,
        /// What the policy says.
        verdict: Verdict,
        /// Why it was refused all the same.
        refusal: Option<Refusal>,
    },
    /// The guest asked for a name, and this is what came of it.
    Query {
        /// The name in lower case, odd bytes written as `\DDD`; `.` is the root.
        name: Arc<str>,
        /// The type of record asked for.
        kind: RecordKind,
        /// Whom the guest meant to ask. It was the gateway that answered.
        server: SocketAddr,
        /// What the policy says, if it was asked.
        verdict: Option<Verdict>,
        /// How it ended.
        outcome: Outcome,
        /// How long it took.
        duration: Duration,
    },
    /// What came of a request, or of a flow that was taken apart to read requests.
    Request {
        /// The flow.
        flow: FlowId,
        /// The host, where one is known.
        host: Option<Name>,
        /// What is worth telling.
        note: Note,
    },
    /// A flow that had been allowed is over.
    Closed {
        /// The flow.
        flow: FlowId,
        /// How it ended.
        ended: Ended,
        /// Payload bytes from the guest that were passed on.
        sent: u64,
        /// Payload bytes that were passed to the guest.
        received: u64,
        /// How long it was there.
        duration: Duration,
    },
    /// Frames were dropped; consecutive ones for the same reason are counted together.
    Dropped {
        /// Why.
        reason: DropReason,
        /// How many.
        count: u64,
    },
    /// This many events are missing here, because nobody took them in time.
    Lost(u64),
}

/// Why the gateway refuses what the policy would allow: what would make it safe,
/// or possible, is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// A rule is about its requests, and they cannot be read: it is no HTTP, nobody is
    /// there who reads them, or the line of the first came in pieces with an unusual method.
    Unread,
    /// It goes to a loopback or unspecified address, or one around such: no host
    /// sends that out, and dialled it would be the host of the gateway.
    Loopback,
    /// It is an echo request, and the host lets this process send none (on Linux,
    /// `net.ipv4.ping_group_range` does not hold any of its groups).
    Echo,
    /// There are as many TCP flows as there may be.
    TooManyFlows,
    /// More flows were opened than may be in a second.
    RateLimit,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ended {
    /// Both sides said what they had to say.
    Finished,
    /// The policy refused the name that the client claims.
    Denied,
    /// One side cut it off, or stopped answering.
    Reset,
    /// The upstream connection could not be opened.
    NotConnected,
    /// The host lets the gateway's process have no more descriptors, or memory.
    HostLimit,
    /// Nothing was sent for a while.
    Idle,
    /// It made room for another one.
    Evicted,
    /// It was open when the network ended.
    Stopped,
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// It is not what its headers say.
    Malformed,
    /// Its sender is not the guest's network card.
    SpoofedMac,
    /// Its source is not the guest's address.
    SpoofedAddress,
    /// It goes to many receivers.
    Multicast,
    /// It is a piece of a packet, and overlaps another piece.
    Overlap,
    /// It is a piece of a packet whose other pieces did not come in time, or too
    /// many such packets did.
    Incomplete,
    /// It is of a protocol that is not passed on.
    UnknownProtocol,
    /// It opens a TCP flow to the gateway's resolver, and there are as many as there may be.
    TooManyFlows,
    /// It is larger than the guest's link allows.
    TooBig,
    /// The driver does not keep up.
    Overload,
    /// It came from a server that was asked, and answers something else.
    StrayAnswer,
    /// There are more of the kind than may be in a second.
    RateLimit,
    /// It is a reply that does not say what the request said.
    ForeignReply,
    /// It needs a socket, and the host lets the gateway's process have no more.
    HostLimit,
}

/// The words that stand for the endings, reasons and refusals in logs.
macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal),* $(,)? }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word,)*
                })
            }
        }
    };
}

words!(Refusal {
    Loopback => "loopback",
    Unread => "unread",
    Echo => "ping-not-permitted",
    TooManyFlows => "too-many-flows",
    RateLimit => "rate-limit",
});

words!(Ended {
    Finished => "finished",
    Denied => "denied",
    Reset => "reset",
    NotConnected => "not-connected",
    HostLimit => "host-limit",
    Idle => "idle",
    Evicted => "evicted",
    Stopped => "stopped",
});

words!(DropReason {
    Malformed => "malformed",
    SpoofedMac => "spoofed-mac",
    SpoofedAddress => "spoofed-address",
    Multicast => "multicast",
    Overlap => "overlap",
    Incomplete => "incomplete",
    UnknownProtocol => "unknown-protocol",
    TooManyFlows => "too-many-flows",
    TooBig => "too-big",
    Overload => "overload",
    RateLimit => "rate-limit",
    ForeignReply => "foreign-reply",
    HostLimit => "host-limit",
    StrayAnswer => "stray-answer",
});

/// The bounded queue.
#[derive(Default)]
pub(super) struct Events {
    queue: VecDeque<Event>,
    lost: u64,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        if self.queue.len() >= MAX_EVENTS {
            self.queue.pop_front();
            self.lost += 1;
        }
        self.queue.push_back(event);
    }

    pub(super) fn dropped(&mut self, why: DropReason) {
        self.dropped_many(why, 1);
    }

    pub(super) fn dropped_many(&mut self, why: DropReason, more: u64) {
        match self.queue.back_mut() {
            Some(Event::Dropped { reason, count }) if *reason == why => *count += more,
            _ => self.push(Event::Dropped {
                reason: why,
                count: more,
            }),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        if self.lost > 0 {
            return Some(Event::Lost(std::mem::take(&mut self.lost)));
        }
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_go_first_and_are_counted() {
        let mut events = Events::default();
        for count in 0..MAX_EVENTS as u64 + 3 {
            events.push(Event::Lost(count));
        }
        assert_eq!(events.pop(), Some(Event::Lost(3)));
        assert_eq!(events.pop(), Some(Event::Lost(3)), "the first that is left");
        assert_eq!(events.queue.len(), MAX_EVENTS - 1);
    }

    #[test]
    fn a_flood_of_drops_is_one_event() {
        let mut events = Events::default();
        for _ in 0..1_000_000 {
            events.dropped(DropReason::Malformed);
        }
        let (reason, count) = (DropReason::Malformed, 1_000_000);
        assert_eq!(events.pop(), Some(Event::Dropped { reason, count }));
        assert_eq!(events.pop(), None);
    }
}
