//! What happened, for as many as want to know: what the network did, and what became of the
//! sandbox and its programs.
//!
//! There is a list of each, which forgets its oldest events. Everybody who wants them has a place in
//! it and goes on from there at their own pace: a slow one misses some and is told how many,
//! and stops neither the network nor anybody else.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::control::{self, FromSupervisor};
use crate::event::{LifeEvent, TimedLife};
use crate::network::NetworkEvent;
use crate::waiting::Countable;

/// The most events that are kept: some minutes of a busy guest.
const MAX_EVENTS: usize = 4096;

/// The most that they take, in bytes; names in them are the guest's choice.
const MAX_BYTES: usize = 1 << 20;

/// How much of them is passed on at once, in bytes.
const PIECE: usize = 64 << 10;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Journal {
    /// Says how many are missing, as a message to clients.
    lost: fn(u64) -> BytesMut,
    events: VecDeque<Bytes>,
    bytes: usize,
    /// How many were forgotten.
    forgotten: u64,
}

/// How far somebody has read: all that came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Journal {
    /// For what the network does.
    pub(super) fn of_network() -> Self {
        Self::new(|count| {
            let line = NetworkEvent::lost(count).json().to_owned();
            control::encode(&FromSupervisor::Network { line })
        })
    }

    /// For what becomes of the sandbox and its programs.
    pub(super) fn of_life() -> Self {
        Self::new(|count| {
            let event = TimedLife::now(LifeEvent::Lost { count });
            control::encode(&FromSupervisor::Life(event))
        })
    }

    fn new(lost: fn(u64) -> BytesMut) -> Self {
        Self {
            lost,
            events: VecDeque::new(),
            bytes: 0,
            forgotten: 0,
        }
    }

    /// Adds an event, which is a message to clients.
    pub(super) fn add(&mut self, message: impl Into<Bytes>) {
        let message = message.into();
        self.bytes += message.len();
        self.events.push_back(message);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.events.pop_front() else {
                return;
            };
            self.bytes -= oldest.len();
            self.forgotten += 1;
        }
    }

    /// Whether there is anything that was not read.
    pub(super) fn has_more(&self, place: Place) -> bool {
        place.0 < self.forgotten + self.events.len() as u64
    }

    /// Puts a piece of what was not read yet into `out`.
    pub(super) fn read(&self, place: &mut Place, out: &mut BytesMut) {
        if place.0 < self.forgotten {
            out.extend_from_slice(&(self.lost)(self.forgotten - place.0));
            place.0 = self.forgotten;
        }
        let read = usize::try_from(place.0 - self.forgotten).unwrap_or(usize::MAX);
        let end = out.len() + PIECE;
        for event in self.events.iter().skip(read) {
            if out.len() > end {
                return;
            }
            out.extend_from_slice(event);
            place.0 += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use msb_guest_agent::wire::FrameDecoder;

    use super::*;

    fn event(number: u64) -> BytesMut {
        let line =
            format!("{{\"time\":1.0,\"event\":\"dropped\",\"reason\":\"x\",\"count\":{number}}}");
        control::encode(&FromSupervisor::Network { line })
    }

    /// Everything that a place has not seen, in pieces.
    fn all(journal: &Journal, place: &mut Place) -> Vec<String> {
        let mut decoder = FrameDecoder::new();
        while journal.has_more(*place) {
            let mut out = BytesMut::new();
            journal.read(place, &mut out);
            assert!(out.len() <= 2 * PIECE);
            decoder.extend(&out);
        }
        let mut lines = Vec::new();
        while let Some(frame) = decoder.next_frame().expect("frames") {
            match control::decode(&frame) {
                Some(FromSupervisor::Network { line }) => lines.push(line),
                other => panic!("{other:?}"),
            }
        }
        lines
    }

    #[test]
    fn everybody_reads_everything_at_their_own_pace() {
        let mut journal = Journal::of_network();
        let (mut early, mut late) = (Place::default(), Place::default());
        for number in 0..2000 {
            journal.add(event(number));
            if number == 1000 {
                assert_eq!(all(&journal, &mut early).len(), 1001);
            }
        }
        assert_eq!(all(&journal, &mut early).len(), 999);
        let lines = all(&journal, &mut late);
        assert_eq!(lines.len(), 2000);
        assert!(lines[1999].contains("1999"));
        assert!(!journal.has_more(late));
    }

    #[test]
    fn whoever_is_slow_is_told_how_many_are_missing() {
        let mut journal = Journal::of_network();
        let mut slow = Place::default();
        journal.add(event(0));
        all(&journal, &mut slow);
        for number in 1..=10_000 {
            journal.add(event(number));
        }
        let lines = all(&journal, &mut slow);
        assert!(lines.len() <= MAX_EVENTS + 1);
        assert!(lines[0].contains("\"lost\""), "{}", lines[0]);
        let missing = 10_000 - (lines.len() as u64 - 1);
        assert!(
            lines[0].contains(&format!("\"count\":{missing}}}")),
            "{}",
            lines[0]
        );
        assert!(lines.last().expect("lines").contains("10000"));
    }

    #[test]
    fn long_events_take_no_more_room_than_short_ones() {
        let mut journal = Journal::of_network();
        for _ in 0..100 {
            journal.add(vec![0; 60_000]);
        }
        assert!(journal.bytes <= MAX_BYTES);
    }
}
