//! What happens to a sandbox: its life, its programs, its network.
//!
//! Nobody but a sandbox's supervisor knows all of it, and it keeps the last few thousand
//! events in memory. There is no log of them: with the supervisor they are gone.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::link::{Ask, End, Link, SUPERVISOR_KILLED};
use crate::network::{NetworkEvent, NetworkEvents};
use crate::sandbox::Sandbox;
use crate::waiting::{Countable, Waiting, Watcher, waiting};

/// Events that may wait for whoever listens: what programs that are started all the time
/// make in some seconds.
const MAX_WAITING: usize = 1024;

/// Something that happened to a sandbox, or in it.
///
/// Its [`Display`](fmt::Display) is one line for people.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SandboxEvent {
    /// When.
    pub at: SystemTime,
    /// To which sandbox.
    pub sandbox: String,
    /// What.
    pub activity: Activity,
}

/// What a [`SandboxEvent`] tells of.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activity {
    /// Its life, and its programs.
    Life(LifeEvent),
    /// Its network, and its secrets.
    Network(NetworkEvent),
}

/// A turn in the life of a sandbox, or of a program in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LifeEvent {
    /// It was made.
    Created {
        /// From this image.
        image: String,
    },
    /// It runs.
    Started {
        /// On this engine.
        engine: String,
    },
    /// It is held.
    Paused,
    /// It goes on.
    Resumed,
    /// It was saved.
    Snapshotted {
        /// Under this name.
        snapshot: String,
    },
    /// It was copied for others to go on from.
    Forked,
    /// It is asked to end.
    Stopping,
    /// It has ended in order.
    Stopped {
        /// Because of what.
        reason: String,
    },
    /// It was ended at once, as somebody had asked.
    Killed,
    /// It has ended, or has not started, and nobody wanted that.
    Failed {
        /// Why, as far as it is known.
        reason: String,
    },
    /// It is gone with its files. Only [`Sandbox::watch`] tells of this.
    Removed,
    /// A program was started in it.
    ExecStarted {
        /// The program, as it was asked for.
        program: String,
        /// Its process id in the guest.
        pid: u32,
    },
    /// A program has ended.
    ExecEnded {
        /// The program, as it was asked for.
        program: String,
        /// Its process id in the guest.
        pid: u32,
        /// Its exit code, as a shell has it; `None` when nobody wanted it any more and it was
        /// killed.
        code: Option<u8>,
        /// How it ended, in words.
        reason: String,
    },
    /// Something ran out or broke in it.
    Trouble {
        /// `out-of-memory`, `disk-full` or `disk-failed`.
        trouble: String,
        /// In words, with what to do about it.
        reason: String,
    },
    /// Events are missing here: nobody took them in time.
    Lost {
        /// How many.
        count: u64,
    },
    /// Something that this version has no type for.
    #[serde(other)]
    Other,
}

impl LifeEvent {
    /// Whether the sandbox has ended with it.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Stopped { .. } | Self::Killed | Self::Failed { .. }
        )
    }

    /// Whether it is about a program.
    #[must_use]
    pub fn is_exec(&self) -> bool {
        matches!(self, Self::ExecStarted { .. } | Self::ExecEnded { .. })
    }
}

impl fmt::Display for LifeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { image } => write!(f, "created from {image}"),
            Self::Started { engine } => write!(f, "started on {engine}"),
            Self::Paused => f.write_str("paused"),
            Self::Resumed => f.write_str("resumed"),
            Self::Snapshotted { snapshot } => write!(f, "saved as {snapshot}"),
            Self::Forked => f.write_str("forked"),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped { reason } => write!(f, "stopped: {reason}"),
            Self::Killed => f.write_str("killed"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
            Self::Removed => f.write_str("removed"),
            Self::ExecStarted { program, pid } => write!(f, "exec {pid} started: {program}"),
            Self::ExecEnded {
                program,
                pid,
                reason,
                ..
            } => write!(f, "exec {pid} ended: {program}: {reason}"),
            Self::Trouble { reason, .. } => f.write_str(reason),
            Self::Lost { count } => write!(f, "lost {count} events"),
            Self::Other => f.write_str("something else"),
        }
    }
}

/// A turn and its time, as the supervisor tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimedLife {
    /// Microseconds since the Unix epoch.
    pub(crate) at: u64,
    pub(crate) event: LifeEvent,
}

impl TimedLife {
    /// One of this moment.
    pub(crate) fn now(event: LifeEvent) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at = since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0));
        Self { at, event }
    }

    pub(crate) fn of(self, sandbox: &str) -> SandboxEvent {
        SandboxEvent {
            at: UNIX_EPOCH + Duration::from_micros(self.at),
            sandbox: sandbox.to_owned(),
            activity: Activity::Life(self.event),
        }
    }
}

impl SandboxEvent {
    /// The event as one line of JSON: `time` (seconds since 1970), `sandbox`, `event`, and
    /// what there is to say of it. Events of the network are as
    /// [`NetworkEvent::json`](crate::NetworkEvent::json) has them.
    #[must_use]
    pub fn json(&self) -> String {
        let sandbox = serde_json::Value::from(self.sandbox.as_str());
        let rest = match &self.activity {
            Activity::Network(event) => event.json().to_owned(),
            Activity::Life(event) => {
                let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
                let event = serde_json::to_string(event).unwrap_or_default();
                let event = event.strip_prefix('{').unwrap_or_default();
                format!("{{\"time\":{:.6},{event}", since.as_secs_f64())
            }
        };
        let rest = rest.strip_prefix('{').unwrap_or_default();
        format!("{{\"sandbox\":{sandbox},{rest}")
    }
}

impl fmt::Display for SandboxEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.activity {
            Activity::Life(event) => write!(f, "{} {event}", self.sandbox),
            Activity::Network(event) => write!(f, "{} net: {event}", self.sandbox),
        }
    }
}

/// The sending end of turns that wait for whoever listens.
pub(crate) type LifeWatcher = Watcher<TimedLife>;

impl Countable for TimedLife {
    fn lost(count: u64) -> Self {
        Self::now(LifeEvent::Lost { count })
    }
}

impl Countable for SandboxEvent {
    /// Of no sandbox: nobody knows whose they were.
    fn lost(count: u64) -> Self {
        TimedLife::lost(count).of("")
    }
}

/// The events of a sandbox, from its start on: [`Sandbox::events`].
#[derive(Debug)]
pub struct SandboxEvents {
    sandbox: String,
    /// No handle: whoever listens keeps no sandbox alive.
    end: watch::Receiver<Option<End>>,
    life: Option<Waiting<TimedLife>>,
    network: Option<NetworkEvents>,
    /// Its end was told of.
    ended: bool,
}

impl SandboxEvents {
    pub(crate) fn new(link: &Link, sandbox: &str) -> Self {
        let (watcher, life) = waiting(MAX_WAITING);
        link.ask(Ask::WatchLife(watcher));
        let (watcher, network) = NetworkEvents::new();
        link.ask(Ask::WatchNetwork(watcher));
        Self {
            sandbox: sandbox.to_owned(),
            end: link.end(),
            life: Some(life),
            network: Some(network),
            ended: false,
        }
    }

    /// Waits for the next event; `None` when the sandbox has ended and all were taken. The
    /// last one says how it ended. Nothing is lost when this is given up.
    pub async fn recv(&mut self) -> Option<SandboxEvent> {
        loop {
            let (life, network) = (&mut self.life, &mut self.network);
            tokio::select! {
                biased;
                event = from_network(network), if network.is_some() => match event {
                    Some(event) => return Some(SandboxEvent {
                        at: event.at,
                        sandbox: self.sandbox.clone(),
                        activity: Activity::Network(event),
                    }),
                    None => self.network = None,
                },
                event = from_life(life), if life.is_some() => match event {
                    Some(event) => {
                        self.ended |= event.event.is_end();
                        return Some(event.of(&self.sandbox));
                    }
                    None => self.life = None,
                },
                else => return self.last().await,
            }
        }
    }

    /// A supervisor that was killed could not say so.
    async fn last(&mut self) -> Option<SandboxEvent> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let end = self.end.wait_for(Option::is_some).await.ok()?.clone();
        let reason = end.filter(|end| end.reason == SUPERVISOR_KILLED)?.reason;
        Some(TimedLife::now(LifeEvent::Failed { reason }).of(&self.sandbox))
    }
}

async fn from_network(events: &mut Option<NetworkEvents>) -> Option<NetworkEvent> {
    events.as_mut()?.recv().await
}

async fn from_life(events: &mut Option<Waiting<TimedLife>>) -> Option<TimedLife> {
    events.as_mut()?.recv().await
}

impl Sandbox {
    /// What happens to the sandbox and in it, since its start: its life, its programs, its
    /// network and secrets. As much as some thousand events wait until this is called; if
    /// there were more, an event says how many are missing.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: msb_sdk::Sandbox) {
    /// let mut events = sandbox.events();
    /// while let Some(event) = events.recv().await {
    ///     println!("{event}");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn events(&self) -> SandboxEvents {
        SandboxEvents::new(&self.link, &self.spec.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_of_json() {
        let event = LifeEvent::ExecEnded {
            program: "sh \"x\"".into(),
            pid: 7,
            code: Some(1),
            reason: "exit code 1".into(),
        };
        let at = 1_500_000;
        let event = TimedLife { at, event }.of("app");
        assert_eq!(
            event.json(),
            r#"{"sandbox":"app","time":1.500000,"event":"exec-ended","program":"sh \"x\"","pid":7,"code":1,"reason":"exit code 1"}"#
        );
        let paused = TimedLife {
            at,
            event: LifeEvent::Paused,
        }
        .of("app");
        assert_eq!(
            paused.json(),
            r#"{"sandbox":"app","time":1.500000,"event":"paused"}"#
        );
        assert_eq!(paused.to_string(), "app paused");
        let other: LifeEvent = serde_json::from_str(r#"{"event":"newer","x":1}"#).expect("JSON");
        assert_eq!(other, LifeEvent::Other);
    }
}
