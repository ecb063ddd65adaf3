//! The rate of the host's time stamp counter.
//!
//! A guest under TCG reads the host's counter, and has nothing to measure it by: the
//! board has no timer whose rate is fixed, which saves half a second of busy waiting.
//! So the rate is measured here and said on the kernel command line.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys;

/// How long a measurement takes. With readings good to some 50 ns, the error is about
/// 10 parts per million: that of an ordinary quartz.
const SPAN: Duration = Duration::from_millis(5);

/// How often each end of the span is read; the quickest reading counts.
const READINGS: usize = 8;

/// Measurements of one counter differ by less: parts per million.
const CLOSE: u64 = 200;

/// A rate in kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TscRate(u32);

impl TscRate {
    /// Measures the rate, once in a process.
    pub(crate) fn measured() -> TscRate {
        static RATE: OnceLock<TscRate> = OnceLock::new();
        *RATE.get_or_init(measure)
    }

    /// Returns the rate in kHz.
    pub(crate) fn khz(self) -> u32 {
        self.0
    }

    /// Whether two measurements may be of the same counter.
    pub(crate) fn is_close_to(self, other: TscRate) -> bool {
        u64::from(self.0.abs_diff(other.0)) * 1_000_000 <= u64::from(other.0) * CLOSE
    }
}

fn measure() -> TscRate {
    let (ticks, time) = reading();
    thread::sleep(SPAN);
    let (later_ticks, later_time) = reading();
    let nanos = later_time.duration_since(time).as_nanos().max(1);
    let khz = u128::from(later_ticks.wrapping_sub(ticks)) * 1_000_000 / nanos;
    TscRate(u32::try_from(khz).unwrap_or(u32::MAX))
}

/// Reads both clocks at the same moment, as far as that goes.
fn reading() -> (u64, Instant) {
    let read = |_| {
        let before = sys::time_stamp();
        let time = Instant::now();
        let after = sys::time_stamp();
        (
            after.wrapping_sub(before),
            before.wrapping_add(after.wrapping_sub(before) / 2),
            time,
        )
    };
    let best = (0..READINGS).map(read).min_by_key(|reading| reading.0);
    best.map_or_else(
        || (sys::time_stamp(), Instant::now()),
        |(_, ticks, time)| (ticks, time),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        assert!(measure().is_close_to(TscRate(measure().0)) || measure().is_close_to(measure()));
        assert!(TscRate::measured().khz() > 100_000);
    }

    #[test]
    fn close_is_a_matter_of_parts_per_million() {
        assert!(TscRate(2_600_000).is_close_to(TscRate(2_600_520)));
        assert!(!TscRate(2_600_000).is_close_to(TscRate(2_601_000)));
        assert!(!TscRate(0).is_close_to(TscRate(2_601_000)));
        assert!(TscRate(u32::MAX).is_close_to(TscRate(u32::MAX)));
    }
}
