//! What the network tells of: decisions, ends of flows, dropped frames.
//!
//! An event travels as the line of JSON that msb-net writes, and is read here. Whoever
//! passes lines on so passes on all of them, also members that this version does not know.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::waiting::{Countable, Waiting, Watcher, waiting};

/// Events that may wait for whoever listens. Flows that a guest opens in vain make one
/// each, so somebody who does not listen holds a few hundred KiB and no more.
const MAX_WAITING: usize = 1024;

/// Something that the sandbox's network did.
///
/// Its [`Display`](fmt::Display) is one line for people.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NetworkEvent {
    /// When.
    pub at: SystemTime,
    /// What.
    pub activity: NetworkActivity,
    json: String,
}

/// What a [`NetworkEvent`] tells of.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum NetworkActivity {
    /// A flow may open, or go on.
    Allow(Decision),
    /// A flow was refused.
    Deny(Decision),
    /// The guest asked for a name.
    Query(Query),
    /// A flow that had been allowed is over.
    Closed {
        /// The flow's number.
        flow: u64,
        /// How it ended, in a word.
        ended: String,
        /// Bytes from the guest that were passed on.
        sent: u64,
        /// Bytes that were passed to the guest.
        received: u64,
        /// How long it was there, in seconds.
        duration: f64,
    },
    /// A request got the value of a secret.
    #[serde(rename = "secret")]
    SecretUsed {
        /// The secret's name.
        secret: String,
        /// Where the request went, and which it was.
        #[serde(flatten)]
        request: Request,
    },
    /// A secret's source has no value: its placeholder goes as it is.
    #[serde(rename = "no-value")]
    NoValue {
        /// The secret's name.
        secret: String,
        /// The host whose requests would have got it.
        host: Option<String>,
    },
    /// A flow passes unread: its host is one of [`tls_passthrough`].
    ///
    /// [`tls_passthrough`]: crate::SandboxBuilder::tls_passthrough
    Passed {
        /// The flow's number.
        flow: u64,
        /// The host.
        host: Option<String>,
    },
    /// A request was refused by a rule.
    #[serde(rename = "request-deny")]
    RequestDenied {
        /// Which request.
        #[serde(flatten)]
        request: Request,
        /// What decided, in words.
        by: String,
    },
    /// A tunnel through a proxy may be asked for.
    Tunnel {
        /// Where it leads: the host, and as path the port behind a colon.
        #[serde(flatten)]
        request: Request,
        /// What decided, in words.
        by: String,
    },
    /// A request was refused because of what it is.
    #[serde(rename = "request-refuse")]
    RequestRefused {
        /// Which request.
        #[serde(flatten)]
        request: Request,
        /// Why, in words.
        reason: String,
    },
    /// A server is not who it should be; nothing was sent to it.
    Untrusted {
        /// Its name.
        host: Option<String>,
        /// Why, in words.
        reason: String,
    },
    /// A program of the guest does not accept the sandbox's certificates.
    Pinned {
        /// Whom it wanted to reach.
        host: Option<String>,
        /// What it said.
        reason: String,
    },
    /// Frames of the guest were dropped.
    Dropped {
        /// Why, in a word.
        reason: String,
        /// How many.
        count: u64,
    },
    /// Events are missing here: nobody took them in time.
    Lost {
        /// How many.
        count: u64,
    },
    /// Something that this version has no type for; [`NetworkEvent::json`] has it all.
    #[serde(other)]
    Other,
}

/// A request inside of a flow. A value is never part of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Request {
    /// The number of its flow.
    pub flow: u64,
    /// The host that it is for, if that is known.
    pub host: Option<String>,
    /// Its method; empty if it has none.
    pub method: String,
    /// Its path.
    pub path: String,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or_default();
        write!(f, "{} {host}{}, flow {}", self.method, self.path, self.flow)
    }
}

/// What was decided about a flow.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Decision {
    /// The flow's number, if it may open.
    pub flow: Option<u64>,
    /// `out` for a flow that the guest opens, `in` for one to a published port.
    pub direction: String,
    /// `tcp`, `udp` or `icmp`.
    pub proto: String,
    /// The other end.
    pub address: IpAddr,
    /// Its port, where the protocol has such.
    pub port: Option<u16>,
    /// The name that was resolved to the address, if one was.
    pub name: Option<String>,
    /// The name that the guest's program claims to speak to, once that is known.
    pub claim: Option<String>,
    /// The rule that decided, counted from 1, if one did.
    pub rule: Option<u64>,
    /// What decided, in words.
    pub by: String,
    /// Why the flow was refused although the policy allows it.
    pub refusal: Option<String>,
}

/// What came of a query for a name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Query {
    /// The name.
    pub name: String,
    /// The kind of record asked for, such as `A`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code of the answer, in a word, if there was one.
    pub code: Option<String>,
    /// Who answered: `upstream`, `cache` or `gateway`.
    pub from: Option<String>,
    /// How many addresses are in the answer.
    pub addresses: Option<u64>,
    /// Why it was not answered.
    pub refusal: Option<String>,
    /// What decided, in words, if the policy was asked.
    pub by: Option<String>,
}

/// A line of the journal.
#[derive(Deserialize)]
struct Line {
    time: f64,
    #[serde(flatten)]
    activity: NetworkActivity,
}

impl NetworkEvent {
    /// Reads a line of msb-net's journal.
    pub(crate) fn parse(json: String) -> Option<Self> {
        let line: Line = serde_json::from_str(&json).ok()?;
        let since = Duration::try_from_secs_f64(line.time).ok()?;
        Some(Self {
            at: SystemTime::UNIX_EPOCH.checked_add(since)?,
            activity: line.activity,
            json,
        })
    }

    /// The event as one line of JSON; the documentation of `msb_net::journal` lists its
    /// members.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }
}

impl fmt::Display for NetworkEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.activity {
            NetworkActivity::Allow(decision) => write!(f, "allow {decision}"),
            NetworkActivity::Deny(decision) => write!(f, "deny {decision}"),
            NetworkActivity::Query(query) => write!(f, "query {query}"),
            NetworkActivity::Closed {
                flow,
                ended,
                sent,
                received,
                duration,
            } => write!(
                f,
                "closed flow {flow}: {ended}, {sent} bytes sent, {received} received, {duration:.3} s"
            ),
            NetworkActivity::SecretUsed { secret, request } => {
                write!(f, "secret {secret}: {request}")
            }
            NetworkActivity::NoValue { secret, host } => {
                let host = host.as_deref().unwrap_or("a host");
                write!(f, "secret {secret}: no value for {host}")
            }
            NetworkActivity::Passed { flow, host } => {
                let host = host.as_deref().unwrap_or("a host");
                write!(f, "pass {host}, flow {flow}: it is not to be taken apart")
            }
            NetworkActivity::RequestDenied { request, by } => {
                write!(f, "deny request {request}: {by}")
            }
            NetworkActivity::Tunnel { request, by } => {
                write!(f, "allow tunnel {request}: {by}")
            }
            NetworkActivity::RequestRefused { request, reason } => {
                write!(f, "refuse request {request}: {reason}")
            }
            NetworkActivity::Untrusted { host, reason } => {
                let host = host.as_deref().unwrap_or("a server");
                write!(f, "{host} cannot be trusted: {reason}")
            }
            NetworkActivity::Pinned { host, reason } => {
                let host = host.as_deref().unwrap_or("a server");
                write!(f, "the guest's program trusts others for {host}: {reason}")
            }
            NetworkActivity::Dropped { reason, count } => {
                write!(f, "dropped {count} frames: {reason}")
            }
            NetworkActivity::Lost { count } => write!(f, "lost {count} events"),
            NetworkActivity::Other => f.write_str(&self.json),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.direction == "in" { "from " } else { "" };
        write!(f, "{} {from}", self.proto)?;
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.address, port))?,
            None => write!(f, "{}", self.address)?,
        }
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        if let Some(claim) = self
            .claim
            .as_ref()
            .filter(|claim| Some(*claim) != self.name.as_ref())
        {
            write!(f, " as {claim}")?;
        }
        if let Some(flow) = self.flow {
            write!(f, ", flow {flow}")?;
        }
        match &self.refusal {
            Some(refusal) => write!(f, ": refused ({refusal}) although {}", self.by),
            None => write!(f, ": {}", self.by),
        }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.kind, self.name)?;
        match (&self.refusal, &self.code) {
            (Some(refusal), _) => f.write_str(refusal)?,
            (None, Some(code)) => {
                write!(f, "{code}, {} addresses", self.addresses.unwrap_or(0))?;
                if let Some(from) = &self.from {
                    write!(f, ", from {from}")?;
                }
            }
            (None, None) => f.write_str("no answer")?,
        }
        match &self.by {
            Some(by) => write!(f, " ({by})"),
            None => Ok(()),
        }
    }
}

impl Countable for NetworkEvent {
    fn lost(count: u64) -> Self {
        let at = SystemTime::now();
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let time = since.unwrap_or_default().as_secs_f64();
        Self {
            at,
            activity: NetworkActivity::Lost { count },
            json: format!("{{\"time\":{time:.6},\"event\":\"lost\",\"count\":{count}}}"),
        }
    }
}

/// The events of a sandbox's network, from its start on: [`Sandbox::network_events`].
///
/// [`Sandbox::network_events`]: crate::Sandbox::network_events
#[derive(Debug)]
pub struct NetworkEvents(Waiting<NetworkEvent>);

/// The sending end of [`NetworkEvents`].
pub(crate) type NetworkWatcher = Watcher<NetworkEvent>;

impl NetworkEvents {
    pub(crate) fn new() -> (NetworkWatcher, Self) {
        let (watcher, events) = waiting(MAX_WAITING);
        (watcher, Self(events))
    }

    /// Waits for the next event; `None` when the sandbox has ended and all were taken.
    pub async fn recv(&mut self) -> Option<NetworkEvent> {
        self.0.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_net::gateway::Event;
    use msb_net::journal::Entry;
    use msb_net::policy::{Flow, Names, Policy};

    fn event(policy: &Policy, address: &str) -> NetworkEvent {
        let facts = Flow::tcp(address.parse().expect("address"), 80);
        let verdict = policy.decide(&facts, &Names::default());
        let event = Event::Decided {
            flow: None,
            facts,
            name: None,
            claim: Some("a.example".parse().expect("name")),
            verdict,
            refusal: None,
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let json = Entry { at, event }.to_json(policy);
        NetworkEvent::parse(json).expect("a line of the journal")
    }

    #[test]
    fn lines_of_the_journal_are_understood() {
        let policy = Policy::public_only();
        let denied = event(&policy, "fd00::1");
        assert_eq!(
            denied.at,
            SystemTime::UNIX_EPOCH + Duration::from_millis(1500)
        );
        assert!(
            matches!(&denied.activity, NetworkActivity::Deny(decision) if decision.port == Some(80))
        );
        assert_eq!(
            denied.to_string(),
            "deny tcp [fd00::1]:80 as a.example: no rule matches, and the preset is public-only"
        );
        let allowed = event(&policy, "1.1.1.1");
        assert!(matches!(allowed.activity, NetworkActivity::Allow(_)));
    }

    #[test]
    fn a_tunnel_is_told_with_where_it_leads() {
        let json = r#"{"time":1.5,"event":"tunnel","method":"CONNECT","path":":443","by":"rule 1","flow":3,"host":"a.example"}"#;
        let event = NetworkEvent::parse(json.to_owned()).expect("an event");
        assert_eq!(
            event.to_string(),
            "allow tunnel CONNECT a.example:443, flow 3: rule 1"
        );
    }

    #[test]
    fn what_is_new_is_passed_on_as_it_is() {
        let json = r#"{"time":1.5,"event":"eclipse","name":"a.example"}"#.to_owned();
        let event = NetworkEvent::parse(json.clone()).expect("an event");
        assert_eq!(event.activity, NetworkActivity::Other);
        assert_eq!((event.json(), event.to_string()), (&*json, json.clone()));
        for bad in ["", "{}", r#"{"time":-1,"event":"lost","count":1}"#] {
            assert!(NetworkEvent::parse(bad.into()).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn nobody_listens_for_a_while_and_learns_how_much_is_missing() {
        let (watcher, mut events) = NetworkEvents::new();
        let one = event(&Policy::none(), "1.1.1.1");
        for _ in 0..MAX_WAITING + 7 {
            assert!(watcher.tell(one.clone()));
        }
        for _ in 0..MAX_WAITING {
            assert_eq!(events.recv().await, Some(one.clone()));
        }
        let lost = events.recv().await.expect("an event");
        assert_eq!(lost.activity, NetworkActivity::Lost { count: 7 });
        let parsed = NetworkEvent::parse(lost.json().to_owned()).expect("it is a line, too");
        assert_eq!(parsed.activity, lost.activity);
        drop(watcher);
        assert_eq!(events.recv().await, None);
    }
}
