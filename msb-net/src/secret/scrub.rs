//! Takes values out of what a guest receives.
//!
//! A [`Scrubber`] reads a stream in any pieces. Where a value begins, in any form
//! that [`pattern`](super) knows, the placeholder in the same form is written
//! instead. What could be the beginning of one is held back, and nothing else:
//! an event of a stream whose last byte begins no value passes at once.

use zeroize::{Zeroize as _, Zeroizing};

use super::pattern::{Form, Match, Pattern};
use super::{Placeholder, SecretValue};

/// Elements of a value that may be shown when the other side pauses in the middle
/// of what could be one. A byte that merely looks like the first of a value must
/// not keep a dialogue waiting for ever.
const MAX_SHOWN: usize = 3;

/// One secret's patterns.
struct Entry {
    patterns: Vec<Pattern>,
    placeholder: Placeholder,
}

/// Replaces values by their placeholders in a stream.
///
/// Memory is bounded by the longest value: what is held back is never longer than
/// one escaped form of it.
pub struct Scrubber {
    entries: Vec<Entry>,
    /// Which two bytes may begin a pattern, one bit for each pair.
    pairs: Zeroizing<Vec<u64>>,
    /// Which bytes may begin a pattern, for the last one of a piece.
    firsts: [bool; 256],
    /// What was not written yet, behind what was.
    held: Zeroizing<Vec<u8>>,
    /// How many of the held bytes are written or replaced already.
    covered: usize,
    /// Values become as many asterisks.
    blanking: bool,
}

impl Scrubber {
    /// A scrubber of these values. With none it passes everything.
    pub fn new<'a>(secrets: impl IntoIterator<Item = (&'a SecretValue, &'a Placeholder)>) -> Self {
        let entry = |(value, placeholder): (&SecretValue, &Placeholder)| Entry {
            patterns: Form::ALL
                .map(|form| Pattern::new(form, value.expose()))
                .into(),
            placeholder: placeholder.clone(),
        };
        let entries: Vec<_> = secrets.into_iter().map(entry).collect();
        let mut scrubber = Self {
            entries,
            pairs: Zeroizing::new(vec![0; 1024]),
            firsts: [false; 256],
            held: Zeroizing::new(Vec::new()),
            covered: 0,
            blanking: false,
        };
        scrubber.index();
        scrubber
    }

    /// Puts asterisks in place of values, as many as there were bytes: for what has
    /// lengths in front that would have to change.
    #[must_use]
    pub fn blanking(mut self) -> Self {
        self.blanking = true;
        self
    }

    /// Puts placeholders in place of values again, from here on.
    pub fn replacing(&mut self) {
        self.blanking = false;
    }

    /// Tells whether there is nothing to look for.
    pub fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// Fills the tables from the patterns.
    fn index(&mut self) {
        const ESCAPES: [u8; 3] = [b'%', b'\\', b'&'];
        let (pairs, firsts) = (&mut self.pairs, &mut self.firsts);
        let mut set = |first: u8, second: u8| {
            let pair = usize::from(first) << 8 | usize::from(second);
            pairs[pair / 64] |= 1 << (pair % 64);
        };
        for pattern in self.entries.iter().flat_map(|entry| &entry.patterns) {
            for first in (0..=255).filter(|byte| pattern.accepts(0, *byte)) {
                firsts[usize::from(first)] = true;
                for second in 0..=255 {
                    let broken = matches!(second, b'\r' | b'\n');
                    if pattern.accepts(1, second) || broken || ESCAPES.contains(&second) {
                        set(first, second);
                    }
                }
            }
            for escape in ESCAPES {
                firsts[usize::from(escape)] = true;
                for second in 0..=255 {
                    set(escape, second);
                }
            }
        }
    }

    /// Reads a piece and writes what can be written.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        if self.is_idle() {
            return out.extend_from_slice(input);
        }
        self.held.extend_from_slice(input);
        self.scan(false, out);
    }

    /// Writes what was held back: the stream is over. The scrubber can be used for
    /// another one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.scan(true, out);
        self.held.zeroize();
        self.covered = 0;
    }

    /// The other side pauses. What is held back is written if it is too little to
    /// be worth anything; should it be a value's beginning, the rest still is
    /// replaced.
    pub fn pause(&mut self, out: &mut Vec<u8>) {
        let all = self.held.len();
        let weak = |at: usize| {
            let text = &self.held[at..];
            let found = |pattern: &Pattern| match pattern.compare(text, false) {
                Match::Partial(elements) => elements,
                _ => 0,
            };
            let patterns = self.entries.iter().flat_map(|entry| &entry.patterns);
            patterns.map(found).max().unwrap_or(0) <= MAX_SHOWN
        };
        if self.covered < all && (self.covered..all).all(weak) {
            out.extend_from_slice(&self.held[self.covered..]);
            self.covered = all;
        }
    }

    /// Returns how many bytes are held back.
    pub fn pending(&self) -> usize {
        self.held.len() - self.covered
    }

    fn may_begin(&self, at: usize) -> bool {
        match self.held[at..] {
            [first, second, ..] => {
                let pair = usize::from(first) << 8 | usize::from(second);
                self.pairs[pair / 64] >> (pair % 64) & 1 == 1
            }
            [first] => self.firsts[usize::from(first)],
            [] => false,
        }
    }

    fn scan(&mut self, whole: bool, out: &mut Vec<u8>) {
        let mut at = 0;
        while at < self.held.len() {
            if !self.may_begin(at) {
                at += 1;
                continue;
            }
            match self.find(at, whole) {
                Found::Nothing => at += 1,
                Found::Perhaps => break,
                Found::Value(length, entry, pattern) => {
                    if self.blanking {
                        let from = at.max(self.covered);
                        out.extend_from_slice(&self.held[self.covered..from]);
                        out.resize(out.len() + (at + length).saturating_sub(from), b'*');
                    } else if at >= self.covered {
                        out.extend_from_slice(&self.held[self.covered..at]);
                        let entry = &self.entries[entry];
                        let found = &self.held[at..at + length];
                        entry.patterns[pattern].replace(found, entry.placeholder.as_bytes(), out);
                    } else if self.covered < at + length {
                        // The rest of a value whose beginning is written, or which
                        // overlaps the one before.
                        out.extend_from_slice(b"*");
                    }
                    self.covered = self.covered.max(at + length);
                    at += 1;
                }
            }
        }
        if self.covered < at {
            out.extend_from_slice(&self.held[self.covered..at]);
            self.covered = at;
        }
        self.held[..at].zeroize();
        self.held.drain(..at);
        self.covered -= at;
    }

    /// The longest value that begins here, if one does.
    fn find(&self, at: usize, whole: bool) -> Found {
        let mut found = Found::Nothing;
        let mut longest = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            for (number, pattern) in entry.patterns.iter().enumerate() {
                let end = self.held.len().min(at + pattern.longest());
                match pattern.compare(&self.held[at..end], whole || end < self.held.len()) {
                    Match::No => {}
                    Match::Partial(_) => return Found::Perhaps,
                    Match::Full(length) if length > longest => {
                        longest = length;
                        found = Found::Value(length, index, number);
                    }
                    Match::Full(_) => {}
                }
            }
        }
        found
    }
}

enum Found {
    Nothing,
    /// More bytes are needed to say.
    Perhaps,
    /// This many bytes are this pattern of this secret.
    Value(usize, usize, usize),
}

impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scrubber({} secrets)", self.entries.len())
    }
}
