//! Events as lines of JSON.
//!
//! One object per line, its members in this order. `time` is in seconds since
//! 1970, UTC; every line has it and `event`.
//!
//! | `event` | further members |
//! |---|---|
//! | `allow`, `deny` | `flow` (if it may open), `direction` (`in`, `out`), `proto` (`tcp`, `udp`, `icmp`), `address`, `port` (not for icmp), `name` (that the resolver gave the address), `claim` (the name the client gave), `inspect` (true: decided again once the client spoke), `rule` (from 1, if a rule decided), `by` (in words), `refusal` (why it is denied although the policy allows it) |
//! | `query` | `name`, `type`, `server` (whom the guest meant to ask), `code`, `from` (`upstream`, `cache`, `gateway`) and `addresses` (how many) if it was answered, `filtered` (records taken out), `refusal` (why it was not answered), `rule`, `by` (if the policy was asked), `duration` (seconds) |
//! | `closed` | `flow`, `ended`, `sent`, `received` (payload bytes, seen from the guest), `duration` (seconds) |
//! | `request-deny`, `request-refuse` | `method`, `path`, `by` or `reason` (in words), `flow`, `host` |
//! | `tunnel` | `method` (`CONNECT`), `path` (the port, behind a colon), `by` (in words: it may be asked for), `flow`, `host` |
//! | `secret` | `secret` (its name: a request got the value), `method`, `path`, `flow`, `host` |
//! | `untrusted`, `pinned` | `reason`, `flow`, `host`: the server, or the client, did not accept a certificate |
//! | `passed` | `flow`, `host`: it is left alone, as it was said to be, and not taken apart |
//! | `no-value` | `secret`, `flow`, `host`: its source has none |
//! | `dropped` | `reason`, `count` (frames) |
//! | `lost` | `count` (events nobody took in time) |
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use msb_net::gateway::Event;
//! use msb_net::journal::Entry;
//! use msb_net::policy::Policy;
//!
//! let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
//! let entry = Entry { at, event: Event::Lost(3) };
//! let line = entry.to_json(&Policy::default());
//! assert_eq!(line, r#"{"time":1.500000,"event":"lost","count":3}"#);
//! ```

use std::fmt::{Display, Write as _};
use std::time::SystemTime;

use crate::dns::Outcome;
use crate::gateway::Event;
use crate::http::session::Note;
use crate::policy::{Action, Decider, Direction, Policy, Transport};

/// An event and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub at: SystemTime,
    /// What.
    pub event: Event,
}

impl Entry {
    /// Writes the entry as one line of JSON, without the line's end. The policy
    /// is the one that decided; it puts the deciding rule into words.
    pub fn to_json(&self, policy: &Policy) -> String {
        let mut line = Object::new();
        let since = self.at.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        line.seconds("time", since);
        describe(&mut line, &self.event, policy);
        line.finish()
    }
}

fn describe(line: &mut Object, event: &Event, policy: &Policy) {
    match event {
        Event::Decided {
            flow,
            facts,
            name,
            claim,
            verdict,
            refusal,
        } => {
            let denied = verdict.action == Action::Deny || refusal.is_some();
            line.text("event", if denied { "deny" } else { "allow" });
            if let Some(flow) = flow {
                line.number("flow", flow.number());
            }
            flow_facts(line, facts.direction, facts.transport);
            line.text("address", facts.address);
            if let Transport::Tcp(port) | Transport::Udp(port) = facts.transport {
                line.number("port", port.into());
            }
            if let Some(name) = name {
                line.text("name", name);
            }
            if let Some(claim) = claim {
                line.text("claim", claim);
            }
            if verdict.inspect {
                line.literal("inspect", "true");
            }
            decider(line, &verdict.by, policy);
            if let Some(refusal) = refusal {
                line.text("refusal", refusal);
            }
        }
        Event::Query {
            name,
            kind,
            server,
            verdict,
            outcome,
            duration,
        } => {
            line.text("event", "query");
            line.text("name", name);
            line.text("type", kind);
            line.text("server", server);
            query_outcome(line, outcome);
            if let Some(verdict) = verdict {
                decider(line, &verdict.by, policy);
            }
            line.seconds("duration", *duration);
        }
        Event::Closed {
            flow,
            ended,
            sent,
            received,
            duration,
        } => {
            line.text("event", "closed");
            line.number("flow", flow.number());
            line.text("ended", ended);
            line.number("sent", *sent);
            line.number("received", *received);
            line.seconds("duration", *duration);
        }
        Event::Request { flow, host, note } => {
            request(line, note);
            line.number("flow", flow.number());
            if let Some(host) = host {
                line.text("host", host);
            }
        }
        Event::Dropped { reason, count } => {
            line.text("event", "dropped");
            line.text("reason", reason);
            line.number("count", *count);
        }
        Event::Lost(count) => {
            line.text("event", "lost");
            line.number("count", *count);
        }
    }
}

fn decider(line: &mut Object, by: &Decider, policy: &Policy) {
    if let Decider::Rule(index) = by {
        line.number("rule", *index as u64 + 1);
    }
    line.text("by", policy.describe(by));
}

fn query_outcome(line: &mut Object, outcome: &Outcome) {
    match outcome {
        Outcome::Answered {
            code,
            source,
            addresses,
            filtered,
        } => {
            line.text("code", code);
            line.text("from", source);
            line.number("addresses", (*addresses).into());
            if *filtered > 0 {
                line.number("filtered", (*filtered).into());
            }
        }
        Outcome::Unanswered(why) => line.text("refusal", why),
    }
}

fn request(line: &mut Object, note: &Note) {
    let mut told = |event: &str, parts: &[(&str, &String)]| {
        line.text("event", event);
        for (key, text) in parts {
            line.text(key, text);
        }
    };
    match note {
        Note::Denied { method, path, by } => {
            told(
                "request-deny",
                &[("method", method), ("path", path), ("by", by)],
            );
        }
        Note::Tunnel { port, by } => {
            let (method, path) = ("CONNECT".into(), format!(":{port}"));
            let parts = [("method", &method), ("path", &path), ("by", by)];
            told("tunnel", &parts);
        }
        Note::Refused { method, path, why } => {
            let parts = [("method", method), ("path", path), ("reason", why)];
            told("request-refuse", &parts);
        }
        Note::SecretUsed {
            secret,
            method,
            path,
        } => {
            let parts = [("secret", secret), ("method", method), ("path", path)];
            told("secret", &parts);
        }
        Note::Untrusted { why } => told("untrusted", &[("reason", why)]),
        Note::Pinned { why } => told("pinned", &[("reason", why)]),
        Note::Passed => told("passed", &[]),
        Note::NoValue { secret } => told("no-value", &[("secret", secret)]),
    }
}

fn flow_facts(line: &mut Object, direction: Direction, transport: Transport) {
    line.text(
        "direction",
        match direction {
            Direction::Out => "out",
            Direction::In => "in",
        },
    );
    line.text(
        "proto",
        match transport {
            Transport::Tcp(_) => "tcp",
            Transport::Udp(_) => "udp",
            Transport::Icmp => "icmp",
        },
    );
}

/// A JSON object being written (RFC 8259): members in the order given.
struct Object(String);

impl Object {
    fn new() -> Self {
        Self("{".into())
    }

    fn literal(&mut self, key: &str, value: impl Display) {
        let comma = if self.0.len() > 1 { "," } else { "" };
        // Writing to a string does not fail.
        let _ = write!(self.0, "{comma}\"{key}\":{value}");
    }

    fn number(&mut self, key: &str, value: u64) {
        self.literal(key, value);
    }

    fn seconds(&mut self, key: &str, value: std::time::Duration) {
        let (whole, micros) = (value.as_secs(), value.subsec_micros());
        self.literal(key, format_args!("{whole}.{micros:06}"));
    }

    fn text(&mut self, key: &str, value: impl Display) {
        self.literal(key, "\"");
        for character in value.to_string().chars() {
            match character {
                '"' | '\\' => self.0.extend(['\\', character]),
                c if u32::from(c) < 0x20 => {
                    let _ = write!(self.0, "\\u{:04x}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dns::{Rcode, RecordKind, Source, Unanswered};
    use crate::gateway::{DropReason, Ended, FlowId, Refusal};
    use crate::policy::{Flow, Names};

    fn json(event: Event, policy: &Policy) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_764_000_000_000_001);
        Entry { at, event }.to_json(policy)
    }

    #[test]
    fn a_decision_names_the_rule() {
        let policy: Policy = "preset none\nallow tcp 443 1.1.1.1".parse().unwrap();
        let facts = Flow::tcp("1.1.1.1".parse().unwrap(), 443);
        let verdict = policy.decide(&facts, &Names::default());
        let event = Event::Decided {
            flow: Some(FlowId::from_number(7)),
            facts,
            name: Some("b.example".parse().unwrap()),
            claim: Some("a.example".parse().unwrap()),
            verdict,
            refusal: None,
        };
        assert_eq!(
            json(event, &policy),
            r#"{"time":1764000000.000001,"event":"allow","flow":7,"direction":"out","proto":"tcp","address":"1.1.1.1","port":443,"name":"b.example","claim":"a.example","rule":1,"by":"rule 1: allow tcp 443 1.1.1.1"}"#
        );
    }

    #[test]
    fn a_refusal_is_a_denial() {
        let policy = Policy::allow_all();
        let facts = Flow::icmp("1.1.1.1".parse().unwrap());
        let verdict = policy.decide(&facts, &Names::default());
        let refusal = Some(Refusal::Loopback);
        let (flow, name, claim) = (None, None, None);
        let event = Event::Decided {
            flow,
            facts,
            name,
            claim,
            verdict,
            refusal,
        };
        let line = json(event, &policy);
        assert!(line.contains(r#""event":"deny""#), "{line}");
        assert!(line.ends_with(r#""refusal":"loopback"}"#), "{line}");
    }

    #[test]
    fn a_query_says_what_came_of_it() {
        let query = |verdict, outcome| Event::Query {
            name: "a.example".into(),
            kind: RecordKind::AAAA,
            server: "9.9.9.9:53".parse().unwrap(),
            verdict,
            outcome,
            duration: Duration::from_millis(12),
        };
        let answered = Outcome::Answered {
            code: Rcode::NO_ERROR,
            source: Source::Cache,
            addresses: 2,
            filtered: 1,
        };
        let policy = Policy::public_only();
        let verdict = policy.decide_query(&"a.example".parse().unwrap());
        assert_eq!(
            json(query(Some(verdict), answered), &policy),
            r#"{"time":1764000000.000001,"event":"query","name":"a.example","type":"AAAA","server":"9.9.9.9:53","code":"NOERROR","from":"cache","addresses":2,"filtered":1,"by":"no rule matches, and the preset is public-only","duration":0.012000}"#
        );
        let line = json(
            query(None, Outcome::Unanswered(Unanswered::OddName)),
            &policy,
        );
        assert!(
            line.ends_with(r#""refusal":"odd-name","duration":0.012000}"#),
            "{line}"
        );
    }

    #[test]
    fn endings_and_drops_have_their_words() {
        let policy = Policy::default();
        let event = Event::Closed {
            flow: FlowId::from_number(1),
            ended: Ended::NotConnected,
            sent: 1,
            received: 2,
            duration: Duration::from_millis(2_030),
        };
        assert_eq!(
            json(event, &policy),
            r#"{"time":1764000000.000001,"event":"closed","flow":1,"ended":"not-connected","sent":1,"received":2,"duration":2.030000}"#
        );
        let reason = DropReason::SpoofedMac;
        let line = json(Event::Dropped { reason, count: 9 }, &policy);
        assert!(
            line.ends_with(r#""reason":"spoofed-mac","count":9}"#),
            "{line}"
        );
    }

    #[test]
    fn text_is_escaped() {
        let mut object = Object::new();
        object.text("a", "\"\\\n\u{1}ü");
        assert_eq!(object.finish(), r#"{"a":"\"\\\u000a\u0001ü"}"#);
    }
}
