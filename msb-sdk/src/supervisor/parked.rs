//! A stream that nobody listens to: its program goes on, and the last of its output is kept.
//!
//! The program gets credit for all that it writes, so that it is never held up; what does not
//! fit is dropped from the oldest on.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use msb_guest_agent::wire::{Frame, Kind};

use crate::record::now;
use crate::session::About;

/// The most output that is kept of one program, in bytes: some screens of text.
const MAX_KEPT: usize = 256 * 1024;

/// Output is gathered into pieces of about this size, so that a program that writes byte by
/// byte costs no more memory than another.
const PIECE: usize = 4096;

/// What a piece costs besides its bytes: a program that takes turns between its outputs makes
/// many short ones.
const PIECE_COST: usize = 64;

/// Frames other than data: the ends of both outputs and the end of the program.
const MAX_FRAMES: usize = 8;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) about: About,
    /// Milliseconds since the Unix epoch.
    pub(super) since: u64,
    /// The number of a channel, and what came on it.
    pieces: VecDeque<(u8, BytesMut)>,
    /// What they cost.
    kept: usize,
    frames: Vec<Frame>,
    /// Credit that is still to be given to each output.
    owed: [u32; 2],
}

impl Parked {
    /// `owed` is what the one that listened has not given.
    pub(super) fn new(about: About, owed: [u32; 2]) -> Self {
        Self {
            about,
            since: now(),
            pieces: VecDeque::new(),
            kept: 0,
            frames: Vec::new(),
            owed,
        }
    }

    /// Takes a frame of the agent.
    pub(super) fn take(&mut self, frame: Frame) {
        if frame.kind != Kind::Data {
            if self.frames.len() < MAX_FRAMES {
                self.frames.push(frame);
            }
            return;
        }
        let Some((channel, data)) = frame.payload.split_first() else {
            return;
        };
        let Some(output) = output(*channel) else {
            return;
        };
        if data.is_empty() {
            return;
        }
        self.owed[output] = self.owed[output].saturating_add(data.len() as u32);
        match self.pieces.back_mut() {
            Some((last, piece)) if last == channel && piece.len() + data.len() <= PIECE => {
                piece.extend_from_slice(data);
            }
            _ => {
                self.pieces.push_back((*channel, BytesMut::from(data)));
                self.kept += PIECE_COST;
            }
        }
        self.kept += data.len();
        while self.kept > MAX_KEPT {
            let Some((_, oldest)) = self.pieces.pop_front() else {
                return;
            };
            self.kept -= oldest.len() + PIECE_COST;
        }
    }

    /// Whether credit is to be given.
    pub(super) fn owes(&self) -> bool {
        self.owed != [0, 0]
    }

    /// The credit that is to be given now, as the payloads of frames.
    pub(super) fn grants(&mut self) -> impl Iterator<Item = Bytes> + use<> {
        let owed = std::mem::take(&mut self.owed);
        let owed = owed.into_iter().enumerate().filter(|(_, owed)| *owed > 0);
        owed.map(|(output, owed)| {
            let mut payload = vec![output as u8 + FIRST_OUTPUT];
            payload.extend_from_slice(&owed.to_le_bytes());
            payload.into()
        })
    }

    /// What was kept: output in pieces, with the numbers of their channels, and other frames.
    pub(super) fn unpack(self) -> (About, VecDeque<(u8, BytesMut)>, Vec<Frame>) {
        (self.about, self.pieces, self.frames)
    }
}

/// The number of the first channel that is output.
const FIRST_OUTPUT: u8 = msb_guest_agent::wire::Channel::Stdout as u8;

/// Which output a channel is.
pub(super) fn output(channel: u8) -> Option<usize> {
    let output = usize::from(channel.checked_sub(FIRST_OUTPUT)?);
    (output < 2).then_some(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_guest_agent::wire::{Channel, StreamId};

    fn data(channel: Channel, bytes: &[u8]) -> Frame {
        let payload = [&[channel as u8], bytes].concat();
        Frame::new(Kind::Data, StreamId(1), payload.into()).expect("frame")
    }

    fn parked() -> Parked {
        let command = "sh".into();
        Parked::new(About { command, pid: 7 }, [0, 5])
    }

    #[test]
    fn all_output_gets_credit_and_the_last_of_it_is_kept() {
        let mut parked = parked();
        for number in 0..2 * MAX_KEPT {
            parked.take(data(Channel::Stdout, &[(number % 251) as u8]));
        }
        parked.take(data(Channel::Stderr, b"end"));
        let grants: Vec<Bytes> = parked.grants().collect();
        let out = [&[1][..], &(2 * MAX_KEPT as u32).to_le_bytes()].concat();
        let err = [&[2][..], &8u32.to_le_bytes()].concat();
        assert_eq!(grants, [out, err]);
        assert_eq!(parked.grants().count(), 0, "once");
        let (_, pieces, _) = parked.unpack();
        let kept: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
        assert!(kept <= MAX_KEPT && kept > MAX_KEPT - 2 * PIECE, "{kept}");
        assert!(pieces.len() < 2 * MAX_KEPT / PIECE);
        assert_eq!(pieces.back().expect("last").1, &b"end"[..]);
        let last = ((2 * MAX_KEPT - 1) % 251) as u8;
        assert_eq!(pieces[pieces.len() - 2].1.last(), Some(&last));
    }

    #[test]
    fn turns_between_the_outputs_and_frames_without_data_cost_no_more() {
        let mut parked = parked();
        for _ in 0..MAX_KEPT {
            for channel in [Channel::Stdout, Channel::Stderr] {
                parked.take(data(channel, b""));
                parked.take(data(channel, b"x"));
            }
        }
        parked.take(data(Channel::Stdin, b"no output"));
        let (_, pieces, _) = parked.unpack();
        assert_eq!(pieces.len(), MAX_KEPT / (PIECE_COST + 1));
        assert!(pieces.iter().all(|(_, piece)| piece == &b"x"[..]));
    }

    #[test]
    fn ends_are_kept_in_their_order() {
        let mut parked = parked();
        for kind in [Kind::Eof, Kind::Event, Kind::Close] {
            let payload = Bytes::from_static(&[1]);
            parked.take(Frame::new(kind, StreamId(1), payload).expect("frame"));
        }
        let (_, _, frames) = parked.unpack();
        let kinds: Vec<Kind> = frames.iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, [Kind::Eof, Kind::Event, Kind::Close]);
    }
}
