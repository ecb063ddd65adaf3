//! The policy text.
//!
//! ```text
//! file    = { [ line ] [ "#" anything ] newline }
//! line    = "preset" ( "public-only" | "allow-all" | "none" )
//!         | "block" NAME { NAME }
//!         | rule | expect
//! rule    = ( "allow" | "deny" ) [ "in" | "out" ] [ proto [ ports ] ] [ target ]
//! proto   = "tcp" | "udp" | "icmp" | "dns"
//! rule    = ( "allow" | "deny" ) "http" [ ports ] [ METHOD { "," METHOD } | "*" ] [ whom ]
//! whom    = ( "any" [ PATH ] | ( [ "domain" ] NAME | "suffix" NAME ) [ PATH ] [ "at" set ] )
//!           [ "with" fields ] [ "without" fields ]
//! fields  = FIELD { "," FIELD }
//! ports   = port { "," port }          port = NUMBER [ "-" NUMBER ]
//! target  = "any" | set | ( [ "domain" ] NAME | "suffix" NAME ) [ "at" set ]
//! set     = IP | CIDR | group
//! expect  = "expect" ( "allow" | "deny" ) ( "dns" NAME | request
//!           | [ "in" | "out" ] flow )
//! request = "http" METHOD NAME PATH [ "at" IP ] [ "with" fields ]
//! flow    = ( ( "tcp" | "udp" ) NUMBER | "icmp" )
//!           ( "host" | IP | NAME [ "at" IP ] ) [ "sni" NAME | "no-sni" ]
//! ```
//!
//! Words are separated by blanks and are case-sensitive, names are not. A text
//! without a `preset` line denies what it does not allow.

mod request;

use std::net::IpAddr;
use std::str::FromStr;

use super::decide::SOME_PUBLIC;
use super::expect::{Document, Expectation, Subject};
use super::{
    Action, Addresses, Direction, Flow, Pattern, Policy, Ports, Preset, Protocol, Rule, Target,
    Transport,
};
use crate::addr::{Cidr, Group};
use crate::error::{InvalidCidr, SyntaxError, excerpt};
use crate::{Error, Name};

const STATEMENTS: &[&str] = &["allow", "deny", "preset", "block", "expect"];
const PROTOCOLS: &[&str] = &["tcp", "udp", "icmp", "dns", "http"];
const TARGETS: &[&str] = &["any", "domain", "suffix"];

impl FromStr for Document {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut document = Self {
            policy: Policy::none(),
            expectations: Vec::new(),
        };
        let mut preset_line = None;
        // An editor on another system may have left a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, line) in text.lines().enumerate() {
            let mut words = Words::new(line, index + 1);
            let Some(word) = words.next() else { continue };
            match word.text {
                "preset" => {
                    if let Some(first) = preset_line.replace(index + 1) {
                        return Err(words.error(word, format!("line {first} has a preset already")));
                    }
                    document.policy.preset = preset(&mut words)?;
                }
                "block" => loop {
                    let suffix = words.name()?;
                    document.policy.block(suffix)?;
                    if words.peek().is_none() {
                        break;
                    }
                },
                "expect" => document.expectations.push(expectation(&mut words)?),
                _ => {
                    let Some(action) = action(word.text) else {
                        return Err(words.unexpected(Some(word), "a statement", STATEMENTS));
                    };
                    document.policy.push(rule(action, &mut words)?)?;
                }
            }
            words.end()?;
        }
        Ok(document)
    }
}

impl FromStr for Rule {
    type Err = Error;

    /// Reads one rule, as on a command line.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(at) = text.find(['\n', '\r']) {
            let words = Words::new(&text[..at], 1);
            return Err(words.unexpected(None, "a single rule on one line", &[]));
        }
        let mut words = Words::new(text, 1);
        let rule = whole_rule(&mut words)?;
        words.end()?;
        Ok(rule)
    }
}

/// A rule from its first word on.
pub(super) fn whole_rule(words: &mut Words<'_>) -> Result<Rule, Error> {
    let word = words.next();
    let Some(action) = word.and_then(|word| action(word.text)) else {
        return Err(words.unexpected(word, "a rule", &["allow", "deny"]));
    };
    rule(action, words)
}

impl FromStr for Preset {
    type Err = Error;

    /// Reads `public-only`, `allow-all` or `none`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut words = Words::new(text, 1);
        let preset = preset(&mut words)?;
        words.end()?;
        Ok(preset)
    }
}

fn action(word: &str) -> Option<Action> {
    [Action::Allow, Action::Deny]
        .into_iter()
        .find(|action| action.as_str() == word)
}

pub(super) fn preset(words: &mut Words<'_>) -> Result<Preset, Error> {
    let word = words.next();
    Preset::ALL
        .into_iter()
        .find(|preset| word.is_some_and(|word| word.text == preset.as_str()))
        .ok_or_else(|| words.unexpected(word, "a preset", &Preset::ALL.map(Preset::as_str)))
}

fn rule(action: Action, words: &mut Words<'_>) -> Result<Rule, Error> {
    let direction = direction(words);
    let proto_word = words.peek();
    let protocol = Protocol::ALL
        .into_iter()
        .filter(|protocol| *protocol != Protocol::Any)
        .find(|protocol| words.take(protocol.as_str()))
        .unwrap_or(Protocol::Any);
    let ports = match words.peek() {
        Some(word) if looks_like_ports(word.text) => {
            if !matches!(protocol, Protocol::Tcp | Protocol::Udp | Protocol::Http) {
                let message = "ports need `tcp`, `udp` or `http` in front of them";
                return Err(words.error(word, message.into()));
            }
            words.next();
            ports(word, words)?
        }
        _ => Vec::new(),
    };
    let target_word = words.peek();
    let mut requests = None;
    let target = match target_word {
        _ if protocol == Protocol::Http => {
            let (own, target) = request::requests(words)?;
            requests = Some(own);
            target
        }
        Some(_) => target(words)?,
        None => Target::Any,
    };
    let place = target_word.or(proto_word).unwrap_or(words.here());
    match (&target, protocol, direction) {
        (Target::Addresses(_), Protocol::Dns, _) => {
            Err(words.error(place, "a `dns` rule is about names, not addresses".into()))
        }
        (Target::Names { .. }, _, Direction::In) => Err(words.error(
            place,
            "an incoming flow has no name, only an address".into(),
        )),
        (_, Protocol::Http, Direction::In) => Err(words.error(
            place,
            "requests that come in are not read, only where they come from".into(),
        )),
        (_, Protocol::Dns, Direction::In) => Err(words.error(place, "queries only go out".into())),
        _ => Ok(Rule {
            action,
            direction,
            protocol,
            ports,
            target,
            requests,
        }),
    }
}

fn direction(words: &mut Words<'_>) -> Direction {
    if words.take("in") {
        Direction::In
    } else {
        words.take("out");
        Direction::Out
    }
}

/// Digits and the two characters that join them, so never an address or name:
/// those have dots or colons, or letters.
fn looks_like_ports(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        && word
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
}

fn ports(word: Word<'_>, words: &Words<'_>) -> Result<Vec<Ports>, Error> {
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => {
            let message = format!("{:?} is not a port from 1 to 65535", careful(text));
            Err(words.error(word, message))
        }
    };
    word.text
        .split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Ports::new(number(first)?, number(last)?)
                .ok_or_else(|| words.error(word, format!("the range {part} ends before it begins")))
        })
        .collect()
}

fn target(words: &mut Words<'_>) -> Result<Target, Error> {
    let suffix = if words.take("any") {
        return Ok(Target::Any);
    } else if words.take("suffix") {
        true
    } else if words.take("domain") {
        false
    } else {
        let word = words.here();
        if let Some(set) = set(word, words)? {
            words.next();
            return Ok(Target::Addresses(set));
        }
        // A lone word is far more often a typing error than a host name.
        if !word.text.contains('.') {
            let groups = Group::ALL.map(Group::as_str);
            let known = [TARGETS, PROTOCOLS, &groups[..]].concat();
            return Err(words.unexpected(Some(word), "a destination", &known));
        }
        false
    };
    let name = words.name()?;
    let pattern = if suffix {
        Pattern::Suffix(name)
    } else {
        Pattern::Domain(name)
    };
    let at = set_behind_at(words)?;
    Ok(Target::Names { pattern, at })
}

/// Reads where a named host must be, if that is said.
fn set_behind_at(words: &mut Words<'_>) -> Result<Option<Addresses>, Error> {
    Ok(if words.take("at") {
        let word = words.next();
        let groups = Group::ALL.map(Group::as_str);
        match word.map(|word| set(word, words)).transpose()?.flatten() {
            Some(set) => Some(set),
            None => return Err(words.unexpected(word, "addresses", &groups)),
        }
    } else {
        None
    })
}

/// Reads an address, block or group; `None` when the word is none of them.
fn set(word: Word<'_>, words: &Words<'_>) -> Result<Option<Addresses>, Error> {
    if let Some(group) = Group::from_word(word.text) {
        return Ok(Some(Addresses::Group(group)));
    }
    match word.text.parse::<Cidr>() {
        Ok(cidr) => Ok(Some(Addresses::Cidr(cidr))),
        Err(InvalidCidr::NotAnAddress) if !word.text.contains([':', '/']) => Ok(None),
        Err(error) => {
            let hint = match error {
                InvalidCidr::BitsBelowPrefix { meant } => Some(format!("did you mean {meant}?")),
                _ => None,
            };
            let message = format!("{:?} is not an address block: {error}", careful(word.text));
            Err(words.error_with(word, message, hint))
        }
    }
}

pub(super) fn expectation(words: &mut Words<'_>) -> Result<Expectation, Error> {
    let word = words.next();
    let Some(action) = word.and_then(|word| action(word.text)) else {
        return Err(words.unexpected(word, "an action", &["allow", "deny"]));
    };
    let line = words.line;
    let subject = if words.take("dns") {
        Subject::Query(words.name()?)
    } else if words.take("http") {
        request::subject(words)?
    } else {
        flow(words)?
    };
    Ok(Expectation {
        line,
        action,
        subject,
    })
}

fn flow(words: &mut Words<'_>) -> Result<Subject, Error> {
    let direction = direction(words);
    let protocol = words.next();
    let transport = match protocol.map(|word| word.text) {
        Some("tcp") => Transport::Tcp(words.port()?),
        Some("udp") => Transport::Udp(words.port()?),
        Some("icmp") => Transport::Icmp,
        _ => return Err(words.unexpected(protocol, "a protocol", PROTOCOLS)),
    };
    let is_host = words.take("host");
    let mut name = None;
    let address = if is_host {
        SOME_PUBLIC
    } else if let Some(address) = words.peek().and_then(|word| word.text.parse().ok()) {
        words.next();
        address
    } else {
        name = Some(words.name()?);
        if words.take("at") {
            words.address()?
        } else {
            SOME_PUBLIC
        }
    };
    let sni = if words.take("sni") {
        Some(Some(words.name()?))
    } else if words.take("no-sni") {
        Some(None)
    } else {
        // An ordinary client says whom it wants.
        match transport {
            Transport::Tcp(_) => name.clone().map(Some),
            _ => None,
        }
    };
    Ok(Subject::Flow {
        flow: Flow {
            direction,
            transport,
            address,
            is_host,
        },
        name,
        claim: sni,
    })
}

/// A word and where it stands.
#[derive(Clone, Copy)]
struct Word<'a> {
    text: &'a str,
    /// In bytes, from 0.
    offset: usize,
}

/// The words of one line.
pub(super) struct Words<'a> {
    source: &'a str,
    line: usize,
    /// Where in the line `source` begins, from 1, in characters.
    column: usize,
    position: usize,
    /// Where the comment begins.
    end: usize,
}

impl<'a> Words<'a> {
    fn new(source: &'a str, line: usize) -> Self {
        Self::at(source, line, 1)
    }

    pub(super) fn at(source: &'a str, line: usize, column: usize) -> Self {
        Self {
            source,
            line,
            column,
            position: 0,
            end: source.find('#').unwrap_or(source.len()),
        }
    }

    fn peek(&self) -> Option<Word<'a>> {
        let rest = &self.source[self.position..self.end];
        let text = rest.split_whitespace().next()?;
        let blank = rest.len() - rest.trim_start().len();
        Some(Word {
            text,
            offset: self.position + blank,
        })
    }

    /// The next word, or an empty one where the line ends.
    fn here(&self) -> Word<'a> {
        self.peek().unwrap_or(Word {
            text: "",
            offset: self.source[..self.end].trim_end().len(),
        })
    }

    fn next(&mut self) -> Option<Word<'a>> {
        let word = self.peek()?;
        self.position = word.offset + word.text.len();
        Some(word)
    }

    /// Goes past the next word if it is `text`.
    fn take(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|word| word.text == text);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn name(&mut self) -> Result<Name, Error> {
        let Some(word) = self.next() else {
            return Err(self.unexpected(None, "a domain name", &[]));
        };
        let hint = word
            .text
            .strip_prefix("*.")
            .or_else(|| word.text.strip_prefix('.'))
            .map(|rest| {
                format!(
                    "a name and all below it is written `suffix {}`",
                    careful(rest)
                )
            });
        Name::new(word.text).map_err(|error| self.error_with(word, error.to_string(), hint))
    }

    fn port(&mut self) -> Result<u16, Error> {
        let word = self.next();
        match word.map(|word| word.text.parse()) {
            Some(Ok(port)) if port > 0 => Ok(port),
            _ => Err(self.unexpected(word, "a port from 1 to 65535", &[])),
        }
    }

    fn address(&mut self) -> Result<IpAddr, Error> {
        let word = self.next();
        match word.map(|word| word.text.parse()) {
            Some(Ok(address)) => Ok(address),
            _ => Err(self.unexpected(word, "an address", &[])),
        }
    }

    pub(super) fn end(&self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(word) => Err(self.unexpected(Some(word), "the end of the line", &[])),
        }
    }

    fn unexpected(&self, word: Option<Word<'_>>, wanted: &str, known: &[&str]) -> Error {
        let place = word.unwrap_or(self.here());
        let found = match word {
            Some(word) => format!("{:?}", careful(word.text)),
            None => "nothing".into(),
        };
        let hint = match nearest(place.text, known) {
            Some(near) => Some(format!("did you mean `{near}`?")),
            None if known.is_empty() => None,
            None => Some(format!("one of: {}", known.join(", "))),
        };
        self.error_with(place, format!("expected {wanted}, found {found}"), hint)
    }

    fn error(&self, word: Word<'_>, message: String) -> Error {
        self.error_with(word, message, None)
    }

    fn error_with(&self, word: Word<'_>, message: String, hint: Option<String>) -> Error {
        Error::Policy(SyntaxError {
            line: self.line,
            column: self.source[..word.offset].chars().count() + self.column,
            message,
            hint,
        })
    }
}

/// Finds the known word that `word` was probably meant to be.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    /// No known word is longer; comparing costs the product of the lengths.
    const MAX_COMPARED: usize = 24;
    if word.is_empty() || word.len() > MAX_COMPARED {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let (distance, near) = known
        .iter()
        .map(|known| (distance(&word, known), *known))
        .min_by_key(|(distance, _)| *distance)?;
    // Two slips in a long word, one in a short one.
    (distance <= 1 + usize::from(near.len() > 4)).then_some(near)
}

/// Edit distance with transpositions of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let differs = usize::from(a[i - 1] != b[j - 1]);
                let mut least = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + differs);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

/// As [`excerpt`], up to where a value may begin that messages do not repeat: a header's,
/// a query's, what stands in front of a host.
pub(super) fn careful(text: &str) -> String {
    let end = match text.find('@') {
        Some(at) => text[..at].find([':', '=']),
        None => text.find('='),
    };
    match end {
        Some(end) => format!("{}…", excerpt(&text[..=end])),
        None if text.contains('@') => "…".into(),
        None => excerpt(text),
    }
}
