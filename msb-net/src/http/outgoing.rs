//! Bytes that wait to be written, of which some may be values of secrets.
//!
//! A vector that grows leaves copies of what was in it behind, in memory that was
//! given back. This one overwrites what may be a value before it lets go of it.

use std::fmt;
use std::ops::Deref;

use zeroize::Zeroize as _;

/// Where bytes are written to.
pub trait Put {
    /// Writes bytes behind those that are there.
    fn put(&mut self, bytes: &[u8]);
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The room that is made first: a request or two.
const FIRST_ROOM: usize = 4096;

/// Bytes on their way out, in order.
#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    /// How many of them were written.
    start: usize,
    /// Up to where there may be values.
    hot: usize,
}

impl Outgoing {
    /// Tells that what was put in until now may hold values.
    pub fn mark(&mut self) {
        self.hot = self.bytes.len();
    }

    /// Lets go of bytes that were written.
    pub fn take(&mut self, length: usize) {
        self.start = self.bytes.len().min(self.start + length);
        if self.start >= self.hot {
            self.wipe();
        }
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.take(self.len());
    }

    fn wipe(&mut self) {
        self.bytes[..self.hot].zeroize();
        self.hot = 0;
    }
}

impl Put for Outgoing {
    fn put(&mut self, bytes: &[u8]) {
        let needed = self.len() + bytes.len();
        if self.bytes.len() + bytes.len() > self.bytes.capacity() {
            let mut larger = Vec::with_capacity(FIRST_ROOM.max(2 * needed));
            larger.extend_from_slice(self);
            let hot = self.hot.saturating_sub(self.start);
            self.wipe();
            (self.bytes, self.start, self.hot) = (larger, 0, hot);
        }
        self.bytes.extend_from_slice(bytes);
    }
}

impl Deref for Outgoing {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl AsRef<[u8]> for Outgoing {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl fmt::Debug for Outgoing {
    /// Shows how much there is: it may be a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_may_be_a_value_is_overwritten_once_it_is_written() {
        let mut out = Outgoing::default();
        out.put(b"value");
        out.mark();
        out.put(b"rest");
        out.take(3);
        assert_eq!(&out.bytes[..5], b"value", "two of its bytes still wait");
        out.take(3);
        assert_eq!((&out.bytes[..5], &*out), (&[0; 5][..], &b"est"[..]));
        out.take(9);
        assert_eq!((out.bytes.len(), out.hot), (0, 0));
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in prop::collection::vec((0usize..5000, 0usize..6000, any::<bool>()), 0..40)) {
            let (mut out, mut model, mut next) = (Outgoing::default(), Vec::new(), 0u8);
            for (put, take, mark) in steps {
                let bytes: Vec<u8> = (0..put).map(|_| { next = next.wrapping_add(1); next }).collect();
                out.put(&bytes);
                model.extend_from_slice(&bytes);
                if mark {
                    out.mark();
                }
                out.take(take);
                model.drain(..take.min(model.len()));
                prop_assert_eq!(&*out, &model[..]);
            }
        }
    }
}
