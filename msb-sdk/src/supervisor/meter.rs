//! What the host sees of the sandbox: read when a client asks.
//!
//! Reading: `proc(5)`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use msb_net::shell::TrafficMeter;

use crate::metrics::{HostMetrics, NetworkMetrics};

/// Bytes of a block in what a file is said to take.
const BLOCK: u64 = 512;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    /// The virtual machine's process. It is the supervisor's child, and so its number is
    /// nobody else's before it was waited for.
    pub(super) vmm: u32,
    /// The sandbox's own disk.
    pub(super) disk: Option<PathBuf>,
    pub(super) traffic: TrafficMeter,
}

impl Meter {
    /// Reads everything. What can't be read is zero, or `None`.
    pub(super) fn read(&self) -> HostMetrics {
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.vmm));
        let rollup = file("smaps_rollup").unwrap_or_default();
        let disk = self.disk.as_ref().and_then(|disk| fs::metadata(disk).ok());
        let traffic = self.traffic.read();
        HostMetrics {
            cpu_time: cpu_time(&file("stat").unwrap_or_default()),
            memory_resident: resident(&file("statm").unwrap_or_default()),
            memory_proportional: kib(&rollup, "Pss:"),
            disk_allocated: disk.map(|disk| disk.blocks() * BLOCK),
            network: NetworkMetrics {
                sent_bytes: traffic.sent_bytes,
                sent_frames: traffic.sent_frames,
                received_bytes: traffic.received_bytes,
                received_frames: traffic.received_frames,
            },
        }
    }
}

/// `pid (name) state … utime stime …`, in ticks.
fn cpu_time(stat: &str) -> Duration {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // Numbered from 3 in the manual: 14 and 15.
    let times = rest.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    let second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(ticks.saturating_mul(1000) / second)
}

/// `size resident …`, in pages.
fn resident(statm: &str) -> u64 {
    let pages = statm.split_ascii_whitespace().nth(1);
    let pages: u64 = pages.and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages.saturating_mul(rustix::param::page_size() as u64)
}

/// The bytes of a line `Key: 123 kB`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_process_and_its_disk() {
        let disk = tempfile::NamedTempFile::new().expect("a file");
        fs::write(disk.path(), vec![1; 100_000]).expect("write");
        let meter = Meter {
            vmm: std::process::id(),
            disk: Some(disk.path().to_owned()),
            traffic: TrafficMeter::default(),
        };
        let before = meter.read();
        assert!(before.memory_resident > 1 << 20, "{before:?}");
        let shared = before.memory_proportional.expect("one's own is told");
        assert!(shared <= before.memory_resident + (64 << 20), "{before:?}");
        assert!(before.disk_allocated.is_some_and(|bytes| bytes >= 100_000));
        // The work takes as many ticks as it has to.
        let begun = std::time::Instant::now();
        while meter.read().cpu_time == before.cpu_time {
            assert!(begun.elapsed() < Duration::from_secs(60), "no time passes");
        }
    }

    #[test]
    fn nonsense_is_nothing() {
        for text in ["", "1 (x", ") S", "1 (x) S a b c d e f g h i j k l m", "9"] {
            assert_eq!(cpu_time(text), Duration::ZERO, "{text}");
            assert_eq!(resident(text), 0, "{text}");
            assert_eq!(kib(text, "Pss:"), None, "{text}");
        }
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 50 1";
        assert_eq!(cpu_time(stat), Duration::from_millis(1500));
    }
}
