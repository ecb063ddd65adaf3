//! A bound on how slowly a registry may send.
//!
//! A time limit for single reads is not enough: a byte now and then keeps a
//! pull waiting for ever, with all the locks it holds.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Bytes per second below which a transfer is given up: a fifth of what an
/// old modem did.
const MIN_RATE: u64 = 1 << 10;

/// The error of a transfer that was given up.
#[derive(Debug, thiserror::Error)]
#[error("it sends less than {MIN_RATE} bytes per second")]
pub(super) struct TooSlow;

/// Whether a read failed because of the rate.
pub(super) fn is_too_slow(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<TooSlow>())
}

/// A reader that fails when a whole window brings too little. The window
/// should be as long as a single read may take.
pub(super) struct Paced<R> {
    inner: R,
    window: Duration,
    pace: Pace,
}

impl<R: Read> Paced<R> {
    pub(super) fn new(inner: R, window: Duration) -> Paced<R> {
        let pace = Pace::default();
        Paced {
            inner,
            window,
            pace,
        }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begin = Instant::now();
        let read = self.inner.read(buffer)?;
        if read > 0 && !self.pace.keeps(begin.elapsed(), read as u64, self.window) {
            return Err(io::Error::other(TooSlow));
        }
        Ok(read)
    }
}

/// A window so far: only the time that was spent waiting for the peer counts.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes a read; false if a window is over that brought too few bytes.
    fn keeps(&mut self, waited: Duration, bytes: u64, window: Duration) -> bool {
        self.waited += waited;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.waited < window {
            return true;
        }
        let enough = self.bytes >= MIN_RATE.saturating_mul(self.waited.as_secs());
        *self = Pace::default();
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use std::time::Duration;

    const WINDOW: Duration = Duration::from_secs(30);

    /// Whether a transfer goes on for an hour in which so many bytes come every
    /// so many seconds.
    fn lasts(bytes: u64, every: u64) -> bool {
        let mut pace = Pace::default();
        (1..3600 / every).all(|_| pace.keeps(Duration::from_secs(every), bytes, WINDOW))
    }

    #[test]
    fn drops_are_not_a_stream() {
        assert!(!lasts(1, 1));
        assert!(!lasts(1, 29));
        assert!(!lasts(1000, 1));
        assert!(lasts(1100, 1));
        assert!(lasts(60 << 10, 29));
        assert!(lasts(1 << 20, 1));
    }
}
