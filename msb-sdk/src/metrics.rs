//! What a sandbox uses: sampled when somebody asks, and at no other time.
//!
//! What the host sees for itself and what the guest says are two things: root in a guest can
//! make its own figures anything.

use std::time::{Duration, SystemTime};

use msb_guest_agent::message::{self, Request, StreamEvent};
use serde::{Deserialize, Serialize};
use tokio::time::{Interval, MissedTickBehavior};

use crate::error::Error;
use crate::link::{Ask, Item, Link};
use crate::record::{Phase, State};
use crate::sandbox::Sandbox;

pub use msb_guest_agent::message::ProcessMetrics;

/// How long a guest may take to say what it uses: one that is busy, under emulation, needs
/// some milliseconds; one that does not answer is no reason to go without the host's figures.
const GUEST_PATIENCE: Duration = Duration::from_secs(5);

/// The shortest time between two samples of a stream: a processor's time is counted in steps
/// of ten milliseconds.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// What a sandbox used at some moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// When this was sampled.
    pub at: SystemTime,
    /// What the host sees.
    pub host: HostMetrics,
    /// What the guest says; `None` while it is paused, or does not answer within seconds.
    pub guest: Option<GuestMetrics>,
    /// Processor use since the sample before, in percent of one of the host's processors;
    /// `None` in a first one.
    pub cpu_percent: Option<f64>,
}

/// What the host sees of a sandbox, whatever its guest says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HostMetrics {
    /// Processor time that the virtual machine took since it was started: the guest's, and
    /// that of emulating what it needs.
    pub cpu_time: Duration,
    /// Memory of the host that the virtual machine has, in bytes, pages that it shares with
    /// others included.
    pub memory_resident: u64,
    /// The same with shared pages divided among those that have them; `None` where the host
    /// does not tell.
    pub memory_proportional: Option<u64>,
    /// What the sandbox's own disk takes on the host, in bytes; `None` if it has none.
    pub disk_allocated: Option<u64>,
    /// What has crossed its network card, as the gateway has counted it.
    pub network: NetworkMetrics,
}

/// What has crossed a sandbox's network card, Ethernet headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkMetrics {
    /// Bytes that the guest sent, also what was then denied.
    pub sent_bytes: u64,
    /// In so many frames.
    pub sent_frames: u64,
    /// Bytes that the guest was sent.
    pub received_bytes: u64,
    /// In so many frames.
    pub received_frames: u64,
}

/// What a guest says of itself. Counters run since its kernel was booted, also where that was
/// the boot of the template that it was copied from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestMetrics {
    /// Its processors.
    pub cpus: u32,
    /// How long they did something, all together.
    pub cpu_time: Duration,
    /// Its memory, in bytes.
    pub memory_total: u64,
    /// What of it is used and could not be had without swapping.
    pub memory_used: u64,
    /// Size of its root file system, in bytes.
    pub root_total: u64,
    /// What of it is taken.
    pub root_used: u64,
    /// Bytes that it read from its disks.
    pub disk_read: u64,
    /// Bytes that it wrote to them.
    pub disk_written: u64,
    /// Its processes, without the kernel's.
    pub processes: u32,
}

impl From<message::GuestMetrics> for GuestMetrics {
    fn from(said: message::GuestMetrics) -> Self {
        Self {
            cpus: said.cpus,
            cpu_time: Duration::from_millis(said.cpu_ms),
            memory_total: said.memory_total,
            memory_used: said.memory_total.saturating_sub(said.memory_available),
            root_total: said.root_total,
            root_used: said.root_used,
            disk_read: said.disk_read,
            disk_written: said.disk_written,
            processes: said.processes,
        }
    }
}

impl Metrics {
    /// Notes the use of the processor since an earlier sample.
    fn since(&mut self, earlier: &Self) {
        let wall = self.at.duration_since(earlier.at).unwrap_or_default();
        let used = self.host.cpu_time.saturating_sub(earlier.host.cpu_time);
        if !wall.is_zero() {
            self.cpu_percent = Some(100.0 * used.as_secs_f64() / wall.as_secs_f64());
        }
    }
}

impl Sandbox {
    /// What the sandbox uses now.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: msb_sdk::Sandbox) -> Result<(), msb_sdk::Error> {
    /// let metrics = sandbox.metrics().await?;
    /// println!("{} bytes sent", metrics.host.network.sent_bytes);
    /// if let Some(guest) = metrics.guest {
    ///     println!("{} of {} bytes of memory", guest.memory_used, guest.memory_total);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Gone`] when the sandbox has ended.
    pub async fn metrics(&self) -> Result<Metrics, Error> {
        // Who is held answers nobody.
        let dir = self.home.sandboxes().join(&self.spec.name);
        let paused = matches!(State::read(&dir), Ok(Some(state)) if state.phase == Phase::Paused);
        let host = self.link.host_metrics().await?;
        let guest = match paused {
            true => None,
            false => guest(&self.link, false).await?,
        };
        Ok(Metrics {
            at: SystemTime::now(),
            host,
            guest: guest.map(GuestMetrics::from),
            cpu_percent: None,
        })
    }

    /// Samples now and after each `interval`, which is 20 ms at the least. Nothing is sampled
    /// while nobody waits for it: somebody who is slow gets fewer samples, not older ones.
    /// Must be called in a tokio runtime.
    #[must_use]
    pub fn metrics_stream(&self, interval: Duration) -> MetricsStream<'_> {
        let mut ticks = tokio::time::interval(interval.max(MIN_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        MetricsStream {
            sandbox: self,
            ticks,
            last: None,
        }
    }

    /// The processes of the guest, by their ids: of more than 256 those that have used the
    /// most processor time. It is the guest's word.
    ///
    /// # Errors
    /// [`Error::Gone`] when the sandbox has ended, [`Error::NoAnswer`] when the guest does not
    /// say.
    pub async fn processes(&self) -> Result<Vec<ProcessMetrics>, Error> {
        let said = guest(&self.link, true).await?;
        let said = said.ok_or_else(|| Error::NoAnswer {
            name: self.spec.name.clone(),
        })?;
        // An agent that was taken over may say more than it was asked for.
        let mut processes = said.top;
        processes.truncate(message::GuestMetrics::MAX_TOP);
        for process in &mut processes {
            let command = &mut process.command.0;
            command.truncate(message::GuestMetrics::MAX_COMMAND);
        }
        Ok(processes)
    }
}

/// Samples of a sandbox; see [`Sandbox::metrics_stream`].
#[derive(Debug)]
pub struct MetricsStream<'a> {
    sandbox: &'a Sandbox,
    ticks: Interval,
    last: Option<Metrics>,
}

impl MetricsStream<'_> {
    /// Waits for the next sample. All but the first have [`Metrics::cpu_percent`].
    ///
    /// # Errors
    /// [`Error::Gone`] when the sandbox has ended.
    pub async fn next(&mut self) -> Result<Metrics, Error> {
        self.ticks.tick().await;
        let mut metrics = self.sandbox.metrics().await?;
        if let Some(last) = &self.last {
            metrics.since(last);
        }
        self.last = Some(metrics.clone());
        Ok(metrics)
    }
}

/// Asks the guest; `None` when it does not answer.
async fn guest(link: &Link, processes: bool) -> Result<Option<message::GuestMetrics>, Error> {
    let (stream, mut items) = link.open(Request::Metrics { processes }).await?;
    match tokio::time::timeout(GUEST_PATIENCE, items.recv()).await {
        Ok(Some(Item::Event(StreamEvent::Metrics(said)))) => Ok(Some(*said)),
        Ok(Some(_)) => Ok(None),
        Ok(None) => Err(link.gone().await),
        Err(_) => {
            link.ask(Ask::Reset { stream });
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_of_the_time_between_two_samples() {
        let at = |seconds, cpu_millis| Metrics {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            host: HostMetrics {
                cpu_time: Duration::from_millis(cpu_millis),
                ..HostMetrics::default()
            },
            guest: None,
            cpu_percent: None,
        };
        let percent = |earlier: Metrics, mut later: Metrics| {
            later.since(&earlier);
            later.cpu_percent
        };
        assert_eq!(percent(at(10, 1000), at(12, 4000)), Some(150.0));
        assert_eq!(percent(at(10, 1000), at(12, 1000)), Some(0.0));
        // A clock that was set back, and a machine that was started anew.
        assert_eq!(percent(at(10, 1000), at(9, 2000)), None);
        assert_eq!(percent(at(10, 1000), at(12, 0)), Some(0.0));
    }
}
