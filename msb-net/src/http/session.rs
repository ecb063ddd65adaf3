//! What happens to the requests of one connection, whatever version of HTTP they
//! are in: judged, given what secrets they may have, and their responses cleared
//! of them.
//!
//! A connection belongs to one host. A request to another one is refused, so
//! nothing that was judged for one host reaches another through a connection that
//! is used again.

use std::sync::Arc;

use super::head::{Fault, Fields, Request, Response};
use crate::Name;
use crate::dns;
use crate::policy::{self, Action, Asked, Claim, Names, Policy};
use crate::secret::coding::{Coding, Corrupt, Decoders};
use crate::secret::substitute::{self, Grant, Refused, Substituter};
use crate::secret::{MAX_KNOWN, Placeholder, Scrubber, SecretValue};

/// Fields by which a request asks to be taken for one of another method.
const OVERRIDES: &[&str] = &[
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
];

/// The most notes that wait; each exchange makes a few.
const MAX_NOTES: usize = 256;

/// What is worth telling of an exchange. A value is never among it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// A rule, or the preset, refused a request.
    Denied {
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// Who decided, in words.
        by: String,
    },
    /// A tunnel through a proxy may be asked for.
    Tunnel {
        /// The port it leads to; the host is the session's.
        port: u16,
        /// Who decided, in words.
        by: String,
    },
    /// A request was refused because of what it is.
    Refused {
        /// Its method, if it has one.
        method: String,
        /// Its path.
        path: String,
        /// Why, in words.
        why: String,
    },
    /// The host is not who it should be, or speaks no TLS.
    Untrusted {
        /// Why, in words.
        why: String,
    },
    /// The guest's program does not accept the certificate of the sandbox: it has
    /// trusted authorities of its own, or expects one certificate (pinning).
    Pinned {
        /// What it said.
        why: String,
    },
    /// The flow passes unread: its host is on the list of those that are left alone.
    Passed,
    /// A secret's source has no value, so that its placeholder goes as it is.
    NoValue {
        /// The secret's name.
        secret: String,
    },
    /// A request got the value of a secret.
    SecretUsed {
        /// The secret's name.
        secret: String,
        /// The request's method.
        method: String,
        /// Its path.
        path: String,
    },
}

/// An answer that is given in place of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: u16,
    /// The content, `application/problem+json` (RFC 9457).
    pub body: String,
}

impl Problem {
    fn new(status: u16, title: &str, detail: &str) -> Self {
        let escape = |text: &str| {
            let mut out = String::new();
            for c in text.chars() {
                match c {
                    '"' | '\\' => out.extend(['\\', c]),
                    c if c.is_control() => out.push(' '),
                    c => out.push(c),
                }
            }
            out
        };
        let (title, detail) = (escape(title), escape(detail));
        let body = format!(
            "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{status},\"detail\":\"{detail}\"}}\n"
        );
        Self { status, body }
    }

    /// The answer to a request that cannot be understood in one way only.
    pub fn of_fault(fault: Fault) -> Self {
        let status = match fault {
            Fault::TooLarge => 431,
            Fault::Version => 505,
            Fault::Expectation => 417,
            _ => 400,
        };
        Self::new(status, "Refused by the sandbox", &fault.to_string())
    }

    /// The answer in place of a server's that could not be passed on.
    pub fn bad_gateway(detail: &str) -> Self {
        Self::new(502, "No answer from the host", detail)
    }
}

/// What was decided about a request.
#[derive(Debug)]
pub enum Decision {
    /// It goes on, changed as it had to be.
    Forward(Option<substitute::Body>),
    /// It is answered here.
    Answer(Problem),
}

/// Why a tunnel is not asked for.
enum Barred {
    /// By whom it was denied, in words.
    Denied(String),
    /// Why, in words.
    Refused(String),
}

/// What one connection is.
pub struct Context {
    /// The host it belongs to: the server's certificate is for it, or for
    /// connections without TLS, the request named it.
    pub host: Name,
    /// Names that the resolver bound to the address.
    pub bound: Vec<Name>,
    /// The flow that carries it.
    pub flow: policy::Flow,
    /// Whether it is inside TLS.
    pub secure: bool,
    /// Whether tunnels may be asked for: whoever drives this looks into them.
    pub tunnels: bool,
    /// The policy.
    pub policy: Arc<Policy>,
}

/// The requests of one connection.
pub struct Session {
    context: Context,
    grants: Arc<[Grant]>,
    /// All values that are taken out of responses: also those of before.
    known: Vec<(Arc<SecretValue>, Placeholder)>,
    notes: Vec<Note>,
    /// A server did not accept a credential: values should be read again.
    stale: bool,
}

impl Session {
    /// A session with the secrets of its host: those without a value are for other
    /// hosts, and only looked for.
    pub fn new(context: Context, grants: Arc<[Grant]>) -> Self {
        let mut session = Self {
            context,
            grants: Arc::new([]),
            known: Vec::new(),
            notes: Vec::new(),
            stale: false,
        };
        session.renew(grants);
        session
    }

    /// Takes values that were read again. Those of before stay secret.
    pub fn renew(&mut self, grants: Arc<[Grant]>) {
        for grant in grants.iter() {
            for value in grant.former.iter().chain(&grant.value) {
                self.know(value, &grant.placeholder);
            }
        }
        self.grants = grants;
    }

    /// Takes a value out of responses from here on.
    fn know(&mut self, value: &Arc<SecretValue>, placeholder: &Placeholder) {
        if self.known.iter().any(|(own, _)| own == value) {
            return;
        }
        let same = |(_, own): &&(_, _)| own == placeholder;
        if self.known.iter().filter(same).count() >= MAX_KNOWN {
            let oldest = self.known.iter().position(|known| same(&known));
            self.known.remove(oldest.unwrap_or(0));
        }
        self.known.push((Arc::clone(value), placeholder.clone()));
    }

    /// Returns the host.
    pub fn host(&self) -> &Name {
        &self.context.host
    }

    /// Takes out what is worth telling.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Tells, once, that values should be read again.
    pub fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    fn note(&mut self, note: Note) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(note);
        }
    }

    /// Notes and answers a request that cannot be read.
    pub fn fault(&mut self, fault: Fault) -> Problem {
        let (method, path) = (String::new(), String::new());
        let why = fault.to_string();
        self.note(Note::Refused { method, path, why });
        Problem::of_fault(fault)
    }

    fn refuse(&mut self, request: &Request, status: u16, why: &str) -> Decision {
        self.note(Note::Refused {
            method: request.method.clone(),
            path: request.path().into(),
            why: why.into(),
        });
        Decision::Answer(Problem::new(status, "Refused by the sandbox", why))
    }

    /// Judges a request and changes it into what the server gets.
    pub fn request(&mut self, request: &mut Request) -> Decision {
        if request.method == "CONNECT" && self.context.tunnels {
            return self.connect(request);
        }
        if !self.is_for_host(&request.authority) {
            let why = format!("this connection is to {}", self.context.host);
            return self.refuse(request, 421, &why);
        }
        if request.method == "CONNECT" || request.method == "TRACE" {
            let why = "a trace, or a tunnel within TLS or another tunnel, would not be seen";
            return self.refuse(request, 405, why);
        }
        if let Some(problem) = self.denied(request) {
            return Decision::Answer(problem);
        }
        limit_codings(&mut request.fields);
        let (method, path) = (request.method.clone(), request.path().to_owned());
        let grants = Arc::clone(&self.grants);
        let mut substituter = Substituter::new(&grants, &method, &path);
        match fill(&mut substituter, request) {
            Ok(body) => {
                let used: Vec<_> = substituter.used().to_vec();
                self.used(&used, &method, &path);
                Decision::Forward(body)
            }
            Err(refusal) => Decision::Answer(self.refusal(refusal, &method, &path)),
        }
    }

    /// Notes and answers a request that a secret keeps from being sent.
    pub fn refusal(&mut self, refusal: substitute::Refusal, method: &str, path: &str) -> Problem {
        let (refused, index) = refusal;
        let secret = self
            .grants
            .get(index)
            .map_or("", |grant| grant.secret.name());
        let why = format!("secret {secret}: {refused}");
        let status = match refused {
            Refused::Encoded | Refused::Binary => 415,
            Refused::Unfit | Refused::Misuse => 403,
        };
        let problem = Problem::new(status, "Refused by the sandbox", &why);
        let (method, path) = (method.into(), path.into());
        self.note(Note::Refused { method, path, why });
        problem
    }

    /// Judges a request for a tunnel: as its end would be, if the guest connected to it. It
    /// goes to a proxy, which is nobody's host, so it gets no value.
    fn connect(&mut self, request: &mut Request) -> Decision {
        let Some((host, port)) = tunnel_end(&request.authority) else {
            return self.refuse(request, 400, "a tunnel leads to a host and a port");
        };
        if host != self.context.host {
            let why = format!("this connection is to {}", self.context.host);
            return self.refuse(request, 421, &why);
        }
        let by = match self.judge_tunnel(&request.fields, &host, port) {
            Ok(by) => by,
            Err(Barred::Denied(by)) => return Decision::Answer(self.deny(request, by)),
            Err(Barred::Refused(why)) => return self.refuse(request, 403, &why),
        };
        let mut grants = self.grants.to_vec();
        grants.iter_mut().for_each(|grant| grant.value = None);
        let mut substituter = Substituter::new(&grants, "CONNECT", "");
        for field in &request.fields.0 {
            if let Err(refusal) = substituter.header(&field.name, &field.value) {
                let problem = self.refusal(refusal, "CONNECT", request.path());
                return Decision::Answer(problem);
            }
        }
        request.fields.remove("content-length");
        // As it was judged: some readers take a number for octal.
        request.authority = format!("{host}:{port}");
        *request.target = request.authority.clone();
        self.note(Note::Tunnel { port, by });
        Decision::Forward(None)
    }

    /// Asks the policy about a tunnel: whether the server may be asked for one, and whether
    /// it may lead there. Says who allowed that.
    fn judge_tunnel(&self, fields: &Fields, host: &Name, port: u16) -> Result<String, Barred> {
        let Context {
            bound,
            flow,
            policy,
            ..
        } = &self.context;
        let fields: Vec<_> = fields.0.iter().map(|field| field.name.as_str()).collect();
        // It has no path: a rule about some is not about it, unless it says so.
        let asked = |path| Asked {
            methods: &["CONNECT"],
            path,
            fields: &fields,
        };
        let denied = |verdict: &policy::Verdict| match verdict.action {
            Action::Deny => Err(Barred::Denied(policy.describe(&verdict.by))),
            Action::Allow => Ok(()),
        };
        let claim = Claim::None;
        let server = Names { bound, claim };
        let verdict = policy.decide_request(flow, &server, &asked("/"));
        denied(&verdict)?;
        let named = policy.is_about_method(&verdict.by, "CONNECT");
        if policy.is_about_server(flow, bound) && !named {
            let why = "a rule is about the requests that the proxy may get, and none says CONNECT";
            return Err(Barred::Refused(why.into()));
        }
        let end = policy::Flow::by_name(port);
        let bound = std::slice::from_ref(host);
        let claim = Claim::Pending;
        let verdict = policy.decide(&end, &Names { bound, claim });
        denied(&verdict)?;
        if dns::is_inside(host) && !policy.is_about_inside(&verdict.by) {
            let why = format!("{host} is no public name, and no rule with names allows it");
            return Err(Barred::Refused(why));
        }
        let claim = Claim::Name(host);
        let asked = policy.decide_request(&end, &Names { bound, claim }, &asked("*"));
        if policy.is_about_method(&asked.by, "CONNECT") {
            denied(&asked)?;
        }
        Ok(policy.describe(&verdict.by))
    }

    /// Notes which secrets a request got.
    pub fn used(&mut self, used: &[usize], method: &str, path: &str) {
        let mut told = Vec::new();
        for index in used.iter().filter_map(|index| self.grants.get(*index)) {
            let name = index.secret.name().to_owned();
            if !told.contains(&name) {
                told.push(name);
            }
        }
        for secret in told {
            let (method, path) = (method.to_owned(), path.to_owned());
            self.note(Note::SecretUsed {
                secret,
                method,
                path,
            });
        }
    }

    fn is_for_host(&self, authority: &str) -> bool {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => (host, Some(port)),
            _ => (authority, None),
        };
        let policy::Transport::Tcp(own) = self.context.flow.transport else {
            return false;
        };
        let usual = if self.context.secure { 443 } else { 80 };
        // Behind another port than the usual one many clients leave it out.
        let port_fits = match port.map(str::parse::<u16>) {
            None => true,
            Some(Ok(port)) => port == own || port == usual,
            Some(Err(_)) => false,
        };
        port_fits && Name::new(host).is_ok_and(|host| host == self.context.host)
    }

    fn denied(&mut self, request: &Request) -> Option<Problem> {
        let Context {
            host,
            bound,
            flow,
            policy,
            ..
        } = &self.context;
        let (claim, fields) = (Claim::Name(host), &request.fields.0);
        // The flow may have been let in by the name of a proxy, for a tunnel that was not
        // opened.
        if self.context.tunnels {
            let verdict = policy.decide(flow, &Names { bound, claim });
            if verdict.action == Action::Deny {
                let by = policy.describe(&verdict.by);
                return Some(self.deny(request, by));
            }
        }
        if !policy.has_request_rules() {
            return None;
        }
        let mut methods = vec![request.method.clone()];
        for field in fields {
            // Some servers take one spelling for the other.
            if OVERRIDES.contains(&&field.name.replace('_', "-")[..]) {
                let value = String::from_utf8_lossy(&field.value);
                methods.push(value.trim().to_ascii_uppercase());
            }
        }
        let methods: Vec<_> = methods.iter().map(String::as_str).collect();
        let fields = fields.iter().map(|field| field.name.as_str());
        let asked = Asked {
            methods: &methods,
            path: &request.target,
            fields: &fields.collect::<Vec<_>>(),
        };
        let verdict = policy.decide_request(flow, &Names { bound, claim }, &asked);
        if verdict.action == Action::Allow {
            return None;
        }
        let by = policy.describe(&verdict.by);
        Some(self.deny(request, by))
    }

    fn deny(&mut self, request: &Request, by: String) -> Problem {
        let problem = Problem::new(403, "Denied by policy", &by);
        let (method, path) = (request.method.clone(), request.path().to_owned());
        self.note(Note::Denied { method, path, by });
        problem
    }

    /// A scrubber of all values that this connection's server could know.
    fn scrubber(&self) -> Scrubber {
        Scrubber::new(self.known.iter().map(|(value, own)| (&**value, own)))
    }

    /// Changes the head of a response into what the guest gets, and says what is to
    /// be done with its body.
    ///
    /// # Errors
    ///
    /// The body has a coding that cannot be undone.
    pub fn response(&mut self, response: &mut Response) -> Result<ResponseBody, Problem> {
        self.stale |= response.status == 401 && !self.known.is_empty();
        // It would lead around this gateway.
        response.fields.remove("alt-svc");
        if self.known.is_empty() {
            return Ok(ResponseBody::Plain);
        }
        let mut scrubber = self.scrubber();
        scrub_fields(&mut scrubber, &mut response.fields);
        let codings: Vec<_> = response.fields.all("content-encoding").collect();
        let codings = codings.join(&b","[..]);
        let text = String::from_utf8_lossy(&codings).into_owned();
        let decoders = Coding::list(&text).and_then(|list| Decoders::new(&list));
        let hidden = response
            .fields
            .words("grpc-encoding")
            .any(|word| word != "identity");
        let Some(decoders) = decoders.filter(|_| !hidden) else {
            let why = "its content coding cannot be undone to take secrets out";
            return Err(Problem::bad_gateway(why));
        };
        response.fields.remove("content-encoding");
        let kind = response.fields.all("content-type").last();
        let is_text = |kind| substitute::is_text(&String::from_utf8_lossy(kind));
        if !kind.is_none_or(is_text) {
            scrubber = scrubber.blanking();
        }
        Ok(ResponseBody::Scrubbed(Box::new((decoders, scrubber))))
    }

    /// A scrubber for what follows a change of protocol, if there is anything to
    /// scrub: it must not change lengths.
    pub fn tunnel(&self) -> Option<Scrubber> {
        let some = !self.known.is_empty();
        some.then(|| self.scrubber().blanking())
    }
}

/// Host and port of a tunnel's end.
pub(crate) fn tunnel_end(authority: &str) -> Option<(Name, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    Some((Name::new(host).ok()?, port.parse().ok()?))
}

fn fill(
    substituter: &mut Substituter<'_>,
    request: &mut Request,
) -> Result<Option<substitute::Body>, substitute::Refusal> {
    for field in &mut request.fields.0 {
        if let Some(new) = substituter.header(&field.name, &field.value)? {
            field.value = new;
        }
    }
    if let Some(new) = substituter.target(&request.target)? {
        request.target = new;
    }
    let kind = request.fields.all("content-type").last().unwrap_or(b"");
    // Messages of gRPC are compressed one by one.
    let encoded = ["content-encoding", "grpc-encoding"]
        .iter()
        .any(|name| request.fields.words(name).any(|word| word != "identity"));
    substituter.body(&String::from_utf8_lossy(kind), encoded)
}

/// Leaves only those codings to choose from that can be undone.
fn limit_codings(fields: &mut Fields) {
    let known = |word: &String| {
        let name = word.split(';').next().unwrap_or(word).trim();
        name == "identity" || Coding::ALL.iter().any(|(own, _)| *own == name)
    };
    if fields.all("accept-encoding").next().is_some() {
        let words: Vec<_> = fields.words("accept-encoding").filter(known).collect();
        let list = if words.is_empty() {
            "identity".into()
        } else {
            words.join(", ")
        };
        fields.set("accept-encoding", list);
    }
    // Messages inside of a body that are compressed one by one could not be searched.
    if fields.all("grpc-accept-encoding").next().is_some() {
        fields.set("grpc-accept-encoding", "identity");
    }
}

/// Takes values out of fields.
pub fn scrub_fields(scrubber: &mut Scrubber, fields: &mut Fields) {
    for field in &mut fields.0 {
        let mut out = Vec::with_capacity(field.value.len());
        scrubber.push(&field.value, &mut out);
        scrubber.finish(&mut out);
        field.value = out.into();
    }
}

/// What is done with the body of a response.
#[derive(Debug)]
pub enum ResponseBody {
    /// It passes as it is.
    Plain,
    /// It is decompressed and searched.
    Scrubbed(Box<(Decoders, Scrubber)>),
}

impl ResponseBody {
    /// Reads a piece and writes what the guest gets.
    ///
    /// # Errors
    ///
    /// It is not what its coding says.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), Corrupt> {
        match self {
            Self::Plain => out.extend_from_slice(piece),
            Self::Scrubbed(own) => {
                let (decoders, scrubber) = &mut **own;
                decoders.push(piece, &mut |bytes| scrubber.push(bytes, out))?;
            }
        }
        Ok(())
    }

    /// Writes the rest, and takes values out of the trailer.
    ///
    /// # Errors
    ///
    /// The body ended in the middle of its coding.
    pub fn finish(&mut self, trailers: &mut Fields, out: &mut Vec<u8>) -> Result<(), Corrupt> {
        if let Self::Scrubbed(own) = self {
            let (decoders, scrubber) = &mut **own;
            scrubber.finish(out);
            scrubber.replacing();
            scrub_fields(scrubber, trailers);
            if !decoders.may_end() {
                return Err(Corrupt);
            }
        }
        Ok(())
    }

    /// The server pauses: what is held back for no good reason is written.
    pub fn pause(&mut self, out: &mut Vec<u8>) {
        if let Self::Scrubbed(own) = self {
            own.1.pause(out);
        }
    }

    /// Tells whether its length may change.
    pub fn changes_length(&self) -> bool {
        matches!(self, Self::Scrubbed(_))
    }

    /// Tells whether anything is held back.
    pub fn holds_back(&self) -> bool {
        matches!(self, Self::Scrubbed(own) if own.1.pending() > 0)
    }
}
