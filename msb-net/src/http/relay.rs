//! A connection of HTTP/1 between a guest and a server.
//!
//! Bytes go in from both ends, bytes come out for both ends; what is between them
//! is parsed, judged and written anew. No byte of a request is passed on before its
//! head was read whole and allowed.
//!
//! ```text
//!   guest     Head ──► Body ──► Done ─┐       one exchange at a time: what a
//!              │ refused: answered    │       client sends ahead waits
//!   server    Idle ──► Head ──► Body ─┴─► both Head and Idle again, or closed
//!                        ├ 101 ──► Tunnel, both ways
//!                        └ CONNECT: over, and what follows is another's
//! ```
//!
//! Whoever drives it reads from the guest while [`Relay::wants_guest`], from the
//! server while [`Relay::wants_server`], writes what is in
//! [`to_guest`](Relay::to_guest) and [`to_server`](Relay::to_server), and closes both
//! once [`Relay::end`] says so and all was written. Bodies are never kept: memory is
//! bounded by a few buffers, whatever passes.

use super::body::{BodyReader, BodyWriter, Step};
use super::head::{
    self, Fault, Fields, Framing, MAX_HEAD, Request, RequestHead, ResponseHead, strip_hop_by_hop,
};
use super::outgoing::{Outgoing, Put as _};
use super::session::{Decision, Problem, ResponseBody, Session};
use crate::secret::Scrubber;
use crate::secret::substitute::{Body, MAX_WHOLE_BODY, Refusal};

/// The most bytes that wait to be parsed: a head, and what came with it.
const MAX_INPUT: usize = 2 * MAX_HEAD;

/// The most bytes that wait to be written before no more are read.
const MAX_OUTPUT: usize = 256 * 1024;

/// Bytes of a body that are worked on at once: a chunk for the other side.
const PIECE: usize = 32 * 1024;

/// Bytes that wait to be parsed.
#[derive(Default)]
struct Input {
    bytes: Vec<u8>,
    read: usize,
    ended: bool,
}

impl Input {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    fn take(&mut self, length: usize) {
        self.read += length;
        if self.read == self.bytes.len() {
            self.bytes.clear();
            self.read = 0;
        } else if self.read > MAX_INPUT {
            self.bytes.drain(..self.read);
            self.read = 0;
        }
    }

    fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }
}

/// Where the guest is.
enum Up {
    Head,
    /// A body that is read whole, as its length changes.
    Whole(BodyReader, Box<(Body, Request, Outgoing)>),
    Body(BodyReader, Option<Box<Body>>, BodyWriter),
    /// The body of a request that was answered here.
    Drain(BodyReader),
    Done,
    Tunnel,
    Closed,
}

/// Where the server is.
enum Down {
    Idle,
    Head,
    Body(BodyReader, ResponseBody, BodyWriter),
    Tunnel(Option<Box<Scrubber>>),
    Closed,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In good order.
    Finished,
    /// In the middle of a message: the guest must not take it for a whole one.
    Broken,
    /// A proxy opened a tunnel: what follows is no part of this connection.
    Tunnel,
}

/// The exchange under way.
#[derive(Default)]
struct Exchange {
    method: String,
    path: String,
    /// The guest speaks HTTP/1.0.
    old: bool,
    /// The connection ends with it.
    last: bool,
    /// The guest asked for WebSocket.
    upgrade: bool,
}

/// A connection of HTTP/1. See the [module](self) for how to drive it.
pub struct Relay {
    session: Session,
    guest: Input,
    server: Input,
    /// What is to be written to the guest.
    pub to_guest: Outgoing,
    /// What is to be written to the server.
    pub to_server: Outgoing,
    up: Up,
    down: Down,
    exchange: Exchange,
    end: Option<End>,
}

impl Relay {
    /// A relay between a guest and the session's server.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            guest: Input::default(),
            server: Input::default(),
            to_guest: Outgoing::default(),
            to_server: Outgoing::default(),
            up: Up::Head,
            down: Down::Idle,
            exchange: Exchange::default(),
            end: None,
        }
    }

    /// Takes bytes of the guest.
    pub fn from_guest(&mut self, bytes: &[u8]) {
        self.guest.bytes.extend_from_slice(bytes);
        self.advance();
    }

    /// The guest will send no more.
    pub fn guest_ended(&mut self) {
        self.guest.ended = true;
        self.advance();
    }

    /// Takes bytes of the server.
    pub fn from_server(&mut self, bytes: &[u8]) {
        self.server.bytes.extend_from_slice(bytes);
        self.advance();
    }

    /// The server will send no more.
    pub fn server_ended(&mut self) {
        self.server.ended = true;
        self.advance();
    }

    /// Output was written: there may be room for more.
    pub fn written(&mut self) {
        self.advance();
    }

    /// The server pauses: what is held back for no good reason goes to the guest.
    pub fn pause(&mut self) {
        let mut piece = Vec::new();
        match &mut self.down {
            Down::Body(_, body, writer) => {
                body.pause(&mut piece);
                writer.write(&piece, &mut self.to_guest);
            }
            Down::Tunnel(Some(scrubber)) => {
                scrubber.pause(&mut piece);
                self.to_guest.put(&piece);
            }
            _ => {}
        }
    }

    /// Tells whether a pause of the server would change anything.
    pub fn holds_back(&self) -> bool {
        match &self.down {
            Down::Body(_, body, _) => body.holds_back(),
            Down::Tunnel(Some(scrubber)) => scrubber.pending() > 0,
            _ => false,
        }
    }

    /// Tells whether bytes of the guest can be taken.
    pub fn wants_guest(&self) -> bool {
        let room = self.guest.rest().len() < MAX_INPUT && self.to_server.len() < MAX_OUTPUT;
        room && !self.guest.ended && self.end.is_none()
    }

    /// Tells whether bytes of the server can be taken.
    pub fn wants_server(&self) -> bool {
        let room = self.server.rest().len() < MAX_INPUT && self.to_guest.len() < MAX_OUTPUT;
        room && !self.server.ended && self.end.is_none()
    }

    /// Tells whether the server must be told that the guest sends no more.
    pub fn server_is_done(&self) -> bool {
        matches!(self.up, Up::Tunnel) && self.guest.ended && self.guest.is_empty()
    }

    /// Tells how the connection ended, if it did.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// What came behind the end, from guest and server, and the port that the tunnel leads
    /// to, if there is one.
    pub fn into_tunnel(self) -> Option<(u16, Vec<u8>, Vec<u8>)> {
        let port = self.exchange.path.strip_prefix(':')?.parse().ok()?;
        let rest = |mut input: Input| input.bytes.split_off(input.read);
        (self.end == Some(End::Tunnel)).then(|| (port, rest(self.guest), rest(self.server)))
    }

    /// The session, for its notes and new values.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    fn advance(&mut self) {
        while self.end.is_none() && (self.step_up() || self.step_down()) {}
    }

    fn close(&mut self, end: End) {
        self.up = Up::Closed;
        self.down = Down::Closed;
        self.end = Some(end);
    }

    /// Works on the guest's bytes; false when nothing can be done.
    fn step_up(&mut self) -> bool {
        if self.to_server.len() >= MAX_OUTPUT {
            return false;
        }
        match &mut self.up {
            Up::Head => self.request_head(),
            Up::Whole(..) => self.whole_body(),
            Up::Body(..) => self.request_body(),
            Up::Drain(reader) => match reader.step(self.guest.rest()) {
                Ok(Step::Skip(length) | Step::Data(length)) => {
                    self.guest.take(length);
                    true
                }
                Ok(Step::End(length, _)) => {
                    self.guest.take(length);
                    self.up = Up::Done;
                    self.next_exchange();
                    true
                }
                Ok(Step::More) if !self.guest.ended => false,
                Ok(Step::More) | Err(_) => {
                    self.close(End::Finished);
                    false
                }
            },
            Up::Tunnel => {
                let length = self.guest.rest().len();
                self.to_server.put(self.guest.rest());
                self.guest.take(length);
                length > 0
            }
            Up::Done | Up::Closed => false,
        }
    }

    fn request_head(&mut self) -> bool {
        if !matches!(self.down, Down::Idle) {
            return false;
        }
        if self.guest.is_empty() && (self.guest.ended || self.server.ended) {
            self.close(End::Finished);
            return false;
        }
        match head::read_request(self.guest.rest()) {
            Ok(None) if self.guest.ended => {
                self.close(End::Broken);
                false
            }
            Ok(None) => false,
            Ok(Some(head)) => {
                self.guest.take(head.length);
                self.start(head);
                true
            }
            Err(fault) => {
                let problem = self.session.fault(fault);
                self.exchange = Exchange::default();
                self.exchange.last = true;
                self.answer(&problem);
                self.close(End::Finished);
                false
            }
        }
    }

    /// Judges a request and begins to pass it on.
    fn start(&mut self, head: RequestHead) {
        let RequestHead {
            mut request,
            framing,
            old,
            ..
        } = head;
        let expects = request.fields.has_word("expect", "100-continue");
        let last = old || request.fields.has_word("connection", "close");
        let protocol = strip_hop_by_hop(&mut request.fields);
        let upgrade = protocol.as_deref() == Some("websocket") && framing == Framing::None;
        self.exchange = Exchange {
            method: request.method.clone(),
            path: request.path().into(),
            old,
            last,
            upgrade: upgrade && request.method == "GET",
        };
        let body = match self.session.request(&mut request) {
            Decision::Forward(body) => body,
            Decision::Answer(problem) => {
                // Whether a client that was not told to go on sends its body anyway
                // cannot be known.
                self.exchange.last |= expects;
                self.answer(&problem);
                if self.exchange.last {
                    return self.close(End::Finished);
                }
                self.up = Up::Drain(BodyReader::new(framing));
                return;
            }
        };
        if self.exchange.upgrade {
            request.fields.set("connection", "upgrade");
            request.fields.set("upgrade", "websocket");
            if self.session.tunnel().is_some() {
                // What is compressed in frames could not be searched.
                request.fields.remove("sec-websocket-extensions");
            }
        }
        // Some servers take the body of such a request for the next one. One that is to
        // close behind the first reads no further.
        let bodiless = ["GET", "HEAD", "OPTIONS", "DELETE"];
        if framing != Framing::None && bodiless.contains(&&request.method[..]) {
            request.fields.set("connection", "close");
            self.exchange.last = true;
        }
        let reader = BodyReader::new(framing);
        match (body, framing) {
            (Some(body), Framing::Length(length)) if length <= MAX_WHOLE_BODY as u64 => {
                if expects {
                    request.fields.remove("expect");
                    self.to_guest.put(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                self.up = Up::Whole(reader, Box::new((body, request, Outgoing::default())));
            }
            (body, framing) => {
                let body = body.filter(|_| framing != Framing::None);
                let writer = match framing {
                    Framing::Length(_) if !body.as_ref().is_some_and(Body::changes_length) => {
                        BodyWriter::Plain
                    }
                    Framing::None => BodyWriter::Plain,
                    _ => BodyWriter::Chunked,
                };
                if writer == BodyWriter::Chunked {
                    request.fields.remove("content-length");
                    request.fields.set("transfer-encoding", "chunked");
                }
                self.write_request(&request);
                self.up = Up::Body(reader, body.map(Box::new), writer);
            }
        }
        self.down = Down::Head;
    }

    fn write_request(&mut self, request: &Request) {
        let out = &mut self.to_server;
        for part in [&request.method, " ", &request.target, " HTTP/1.1\r\nhost: "] {
            out.put(part.as_bytes());
        }
        out.put(request.authority.as_bytes());
        out.put(b"\r\n");
        head::write_fields(&request.fields, out);
        out.mark();
    }

    fn whole_body(&mut self) -> bool {
        let Up::Whole(reader, own) = &mut self.up else {
            return false;
        };
        let rest = self.guest.rest();
        match reader.step(rest) {
            Ok(Step::Data(length)) => {
                let pushed = own.0.push(&rest[..length], &mut own.2);
                own.2.mark();
                self.guest.take(length);
                pushed.map_err(|refusal| self.refuse_body(refusal)).is_ok()
            }
            Ok(Step::End(..)) => {
                let Up::Whole(_, own) = std::mem::replace(&mut self.up, Up::Done) else {
                    return false;
                };
                let (mut body, mut request, mut bytes) = *own;
                let finished = body.finish(&mut bytes);
                bytes.mark();
                if let Err(refusal) = finished {
                    self.refuse_body(refusal);
                    return false;
                }
                let length = bytes.len().to_string();
                request.fields.set("content-length", length);
                self.write_request(&request);
                self.to_server.put(&bytes);
                self.to_server.mark();
                self.note_used(&body);
                true
            }
            Ok(Step::Skip(_) | Step::More) if !self.guest.ended => false,
            _ => {
                self.close(End::Broken);
                false
            }
        }
    }

    /// Answers a request whose body must not be sent, or not to its end.
    fn refuse_body(&mut self, refusal: Refusal) {
        let Exchange { method, path, .. } = &self.exchange;
        let problem = self.session.refusal(refusal, method, path);
        self.give_up(&problem);
    }

    /// Ends the connection within a request. What the server has of it must not be taken
    /// for a whole one.
    fn give_up(&mut self, problem: &Problem) {
        if matches!(self.down, Down::Head) {
            self.exchange.last = true;
            self.answer(problem);
        }
        self.close(End::Broken);
    }

    fn note_used(&mut self, body: &Body) {
        let Exchange { method, path, .. } = &self.exchange;
        self.session.used(body.used(), method, path);
    }

    fn request_body(&mut self) -> bool {
        let Up::Body(reader, body, writer) = &mut self.up else {
            return false;
        };
        let rest = self.guest.rest();
        let rest = &rest[..rest.len().min(PIECE)];
        match reader.step(rest) {
            Ok(Step::Skip(length)) => {
                self.guest.take(length);
                true
            }
            Ok(Step::Data(length)) => {
                let mut pushed = Ok(());
                match body {
                    Some(body) => {
                        let mut piece = Outgoing::default();
                        pushed = body.push(&rest[..length], &mut piece);
                        piece.mark();
                        writer.write(&piece, &mut self.to_server);
                        self.to_server.mark();
                    }
                    None => writer.write(&rest[..length], &mut self.to_server),
                }
                self.guest.take(length);
                pushed.map_err(|refusal| self.refuse_body(refusal)).is_ok()
            }
            Ok(Step::End(length, trailers)) => {
                let (body, writer) = (body.take(), *writer);
                if let Some(mut body) = body {
                    let mut piece = Outgoing::default();
                    let finished = body.finish(&mut piece);
                    piece.mark();
                    writer.write(&piece, &mut self.to_server);
                    self.to_server.mark();
                    self.note_used(&body);
                    if let Err(refusal) = finished {
                        self.refuse_body(refusal);
                        return false;
                    }
                }
                writer.finish(&trailers, &mut self.to_server);
                self.guest.take(length);
                self.up = Up::Done;
                true
            }
            Ok(Step::More) if !self.guest.ended => false,
            Ok(Step::More) => {
                self.close(End::Broken);
                false
            }
            Err(fault) => {
                let problem = self.session.fault(fault);
                self.give_up(&problem);
                false
            }
        }
    }

    /// Works on the server's bytes; false when nothing can be done.
    fn step_down(&mut self) -> bool {
        if self.to_guest.len() >= MAX_OUTPUT {
            return false;
        }
        match &mut self.down {
            Down::Idle => {
                // An answer to nothing: the next request must not get it.
                if !self.server.is_empty() || self.server.ended && self.guest.is_empty() {
                    self.close(End::Finished);
                }
                false
            }
            Down::Head => self.response_head(),
            Down::Body(..) => self.response_body(),
            Down::Tunnel(scrubber) => {
                let length = self.server.rest().len();
                let mut piece = Vec::new();
                match scrubber {
                    Some(scrubber) => scrubber.push(self.server.rest(), &mut piece),
                    None => self.to_guest.put(self.server.rest()),
                }
                self.server.take(length);
                if let Some(scrubber) = scrubber
                    && self.server.ended
                {
                    scrubber.finish(&mut piece);
                }
                self.to_guest.put(&piece);
                if self.server.ended {
                    self.close(End::Finished);
                }
                length > 0
            }
            Down::Closed => false,
        }
    }

    fn response_head(&mut self) -> bool {
        let waits = matches!(self.up, Up::Whole(..));
        let read = head::read_response(self.server.rest(), &self.exchange.method);
        match read {
            // Nothing was asked yet.
            _ if waits && !self.server.is_empty() => {
                self.fail("it answered before it was asked");
                false
            }
            Ok(None) if !self.server.ended => false,
            Ok(None) => {
                self.fail("it closed the connection");
                false
            }
            Ok(Some(head)) => {
                self.server.take(head.length);
                self.respond(head);
                true
            }
            Err(fault) => {
                self.fail(&fault.to_string());
                false
            }
        }
    }

    /// Answers in place of a server that cannot, and ends the connection.
    fn fail(&mut self, why: &str) {
        self.exchange.last = true;
        self.answer(&Problem::bad_gateway(why));
        self.close(End::Finished);
    }

    /// Begins to pass on a response.
    fn respond(&mut self, head: ResponseHead) {
        let ResponseHead {
            mut response,
            framing,
            old,
            ..
        } = head;
        let closes = old || response.fields.has_word("connection", "close");
        strip_hop_by_hop(&mut response.fields);
        let mut body = match self.session.response(&mut response) {
            Ok(body) => body,
            Err(problem) => {
                self.exchange.last = true;
                self.answer(&problem);
                return self.close(End::Finished);
            }
        };
        if self.exchange.method == "CONNECT" && matches!(response.status, 200..300) {
            // It has no content, whatever it says (RFC 9110, 9.3.6).
            response.fields.remove("content-length");
            self.write_response(response.status, &response.fields);
            return self.close(End::Tunnel);
        }
        if response.status == 101 {
            if !self.exchange.upgrade || self.exchange.old {
                return self.fail("it changed the protocol without being asked");
            }
            response.fields.set("connection", "upgrade");
            response.fields.set("upgrade", "websocket");
            self.write_response(response.status, &response.fields);
            self.up = Up::Tunnel;
            self.down = Down::Tunnel(self.session.tunnel().map(Box::new));
            return;
        }
        if response.status < 200 {
            if !self.exchange.old {
                self.write_response(response.status, &response.fields);
            }
            return;
        }
        self.exchange.last |= closes || framing == Framing::UntilEnd;
        // A response that comes before the request is whole ends the connection.
        self.exchange.last |= !matches!(self.up, Up::Done);
        let plain = matches!(framing, Framing::Length(_)) && !body.changes_length();
        let writer = if plain || framing == Framing::None || self.exchange.old {
            BodyWriter::Plain
        } else {
            response.fields.set("transfer-encoding", "chunked");
            BodyWriter::Chunked
        };
        if !plain && framing != Framing::None {
            response.fields.remove("content-length");
        }
        if framing == Framing::None {
            body = ResponseBody::Plain;
        }
        if self.exchange.last {
            response.fields.set("connection", "close");
        }
        self.write_response(response.status, &response.fields);
        self.down = Down::Body(BodyReader::new(framing), body, writer);
    }

    fn write_response(&mut self, status: u16, fields: &Fields) {
        let version = "HTTP/1.1";
        let line = format!("{version} {status} {}\r\n", reason(status));
        self.to_guest.put(line.as_bytes());
        head::write_fields(fields, &mut self.to_guest);
    }

    fn answer(&mut self, problem: &Problem) {
        let mut fields = Fields::default();
        fields.set("content-type", "application/problem+json");
        fields.set("content-length", problem.body.len().to_string());
        fields.set("cache-control", "no-store");
        if self.exchange.last {
            fields.set("connection", "close");
        }
        self.write_response(problem.status, &fields);
        if self.exchange.method != "HEAD" {
            self.to_guest.put(problem.body.as_bytes());
        }
    }

    fn response_body(&mut self) -> bool {
        let Down::Body(reader, body, writer) = &mut self.down else {
            return false;
        };
        let rest = self.server.rest();
        let rest = &rest[..rest.len().min(PIECE)];
        let mut piece = Vec::new();
        match reader.step(rest) {
            Ok(Step::Skip(length)) => {
                self.server.take(length);
                true
            }
            Ok(Step::Data(length)) => {
                let result = body.push(&rest[..length], &mut piece);
                writer.write(&piece, &mut self.to_guest);
                self.server.take(length);
                if result.is_err() {
                    self.close(End::Broken);
                }
                result.is_ok()
            }
            Ok(Step::More) if !self.server.ended => false,
            Ok(Step::More) if reader.may_end() => self.response_ends(0, Fields::default()),
            Ok(Step::End(length, trailers)) => self.response_ends(length, trailers),
            Ok(Step::More) | Err(_) => {
                self.close(End::Broken);
                false
            }
        }
    }

    fn response_ends(&mut self, length: usize, mut trailers: Fields) -> bool {
        let Down::Body(_, body, writer) = &mut self.down else {
            return false;
        };
        let mut piece = Vec::new();
        let result = body.finish(&mut trailers, &mut piece);
        writer.write(&piece, &mut self.to_guest);
        self.server.take(length);
        if result.is_err() {
            self.close(End::Broken);
            return false;
        }
        writer.finish(&trailers, &mut self.to_guest);
        self.down = Down::Idle;
        self.next_exchange()
    }

    /// Makes way for the next exchange, or ends the connection.
    fn next_exchange(&mut self) -> bool {
        if self.exchange.last {
            self.close(End::Finished);
            return false;
        }
        self.up = Up::Head;
        self.exchange = Exchange::default();
        true
    }
}

/// What people call a status (RFC 9110, 15).
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        409 => "Conflict",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// What a relay of a faulty message would answer; for those who read heads alone.
impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::of_fault(fault)
    }
}

#[cfg(test)]
mod tests;
