//! HTTP/2 between two connections (RFC 9113), with the `h2` crate at both ends.
//!
//! Each request of the guest becomes one of the server's connection that belongs to
//! this flow, and a task. Windows are opened as far as the other side takes what
//! came, so that whoever is slow stops the other, and nothing else.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Connection;
use super::corked::Corked;
use super::relay::PAUSE;
use super::watched::Watched;
use crate::http::body::drop_from_trailer;
use crate::http::head::{
    Fault, Field, Fields, MAX_FIELDS, MAX_HEAD, Request, Response, check_fields, is_length,
    strip_hop_by_hop,
};
use crate::http::outgoing::Outgoing;
use crate::http::session::{Decision, Note, Problem, ResponseBody, Session};
use crate::secret::substitute::{Body, Refusal};

/// Requests under way on one connection: what servers allow.
const MAX_STREAMS: u32 = 128;

/// Bytes of one body that may be on their way.
const WINDOW: u32 = 256 * 1024;

/// Bytes of all bodies of a connection that may be on their way.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What the library reads of a head. One that is larger it answers by itself; one that
/// is larger than [`MAX_HEAD`] is read and refused here, and told of.
const HEAD_ROOM: u32 = 2 * MAX_HEAD as u32;

/// What the streams of a connection share.
struct Streams {
    connection: Rc<Connection>,
    session: RefCell<Session>,
}

/// Why a stream ended early: what its end is to be told.
struct Broken(Reason);

/// Whose end of an upload stopped it.
enum Stopped {
    ByGuest(Broken),
    ByServer,
    /// What is in the body must not be sent.
    Here(Refusal),
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self(error.reason().unwrap_or(Reason::INTERNAL_ERROR))
    }
}

/// Serves the connection until the guest ends it, or the server.
pub(super) async fn run(
    connection: Connection,
    session: Session,
    guest: impl AsyncRead + AsyncWrite + Unpin + 'static,
    server: impl AsyncRead + AsyncWrite + Unpin + 'static,
) {
    let connection = Rc::new(connection);
    let teller = Rc::clone(&connection);
    let corked = Corked::new(guest);
    let guest = Watched::new(corked.clone(), move |reason| {
        let (method, path) = (String::new(), String::new());
        let why = format!("it breaks the protocol of HTTP/2: {}", reason.description());
        teller.note(Note::Refused { method, path, why });
    });
    let client = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD as u32)
        .handshake::<_, Bytes>(server);
    let accept = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEAD_ROOM)
        .handshake::<_, Bytes>(guest);
    let Ok(((requests, driver), mut guest)) = tokio::try_join!(client, accept) else {
        let (method, path) = (String::new(), String::new());
        let why = "the connection does not begin as HTTP/2 does".into();
        return connection.note(Note::Refused { method, path, why });
    };
    let mut driver = tokio::task::spawn_local(driver);
    let streams = Rc::new(Streams {
        connection,
        session: RefCell::new(session),
    });
    let mut closing = false;
    loop {
        tokio::select! {
            next = poll_fn(|cx| {
                let next = guest.poll_accept(cx);
                // All that there is to say was said.
                if next.is_pending() && let Poll::Ready(Err(_)) = corked.poll_uncork(cx) {
                    return Poll::Ready(None);
                }
                next
            }) => {
                let Some(Ok((request, respond))) = next else { break };
                let (streams, requests) = (Rc::clone(&streams), requests.clone());
                tokio::task::spawn_local(async move {
                    streams.exchange(requests, request, respond).await;
                });
            }
            // The server goes: requests under way end as they do, no new ones come.
            _ = &mut driver, if !closing => {
                closing = true;
                guest.graceful_shutdown();
            }
        }
    }
}

impl Streams {
    /// Serves one request.
    async fn exchange(
        &self,
        requests: SendRequest<Bytes>,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (parts, upload) = request.into_parts();
        let decided = match read_request(&parts) {
            Ok(mut request) => {
                let decision = self.session.borrow_mut().request(&mut request);
                match decision {
                    Decision::Forward(body) => Ok((request, body)),
                    Decision::Answer(problem) => Err(problem),
                }
            }
            Err(fault) => Err(self.session.borrow_mut().fault(fault)),
        };
        self.tell();
        let result = match decided {
            Ok((request, body)) => {
                self.forward(requests, (request, body), upload, &mut respond)
                    .await
            }
            Err(problem) => answer(&mut respond, &problem),
        };
        if let Err(Broken(reason)) = result {
            respond.send_reset(reason);
        }
        self.tell();
    }

    fn tell(&self) {
        self.connection.tell(&mut self.session.borrow_mut());
    }

    async fn forward(
        &self,
        requests: SendRequest<Bytes>,
        (request, body): (Request, Option<Body>),
        upload: RecvStream,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Broken> {
        let (method, path) = (request.method.clone(), request.path().to_owned());
        let ends = upload.is_end_stream();
        let changes = body.as_ref().is_some_and(Body::changes_length);
        let Some(outgoing) = write_request(request, changes && !ends) else {
            let problem = self.session.borrow_mut().fault(Fault::Malformed);
            return answer(respond, &problem);
        };
        let Ok(mut requests) = requests.ready().await else {
            return answer(respond, &Problem::bad_gateway("it takes no more requests"));
        };
        let (response, sending) = requests.send_request(outgoing, ends)?;
        let sending_body = async {
            if ends {
                return Ok(());
            }
            let mut body = body;
            let stopped = send_up(upload, sending, &mut body).await;
            let used = body.as_ref().map_or(&[][..], Body::used);
            self.session.borrow_mut().used(used, &method, &path);
            match stopped {
                // It may have said all that it has to say.
                Err(Stopped::ByServer) => Ok(()),
                other => other,
            }
        };
        let mut response = response;
        let answering = async {
            while let Some(Ok(early)) = poll_fn(|cx| response.poll_informational(cx)).await {
                self.pass_on_early(&early, respond)?;
            }
            let response = match response.await {
                Ok(response) => response,
                Err(error) if error.is_reset() => return Err(error.into()),
                Err(_) => {
                    let problem = Problem::bad_gateway("it closed the connection");
                    return answer(respond, &problem);
                }
            };
            self.pass_on(response, respond).await
        };
        // A response may come, and end, while the request is still on its way.
        let (mut sending_body, mut answering) = (Box::pin(sending_body), Box::pin(answering));
        tokio::select! {
            sent = &mut sending_body => match sent {
                Err(Stopped::ByGuest(broken)) => Err(broken),
                Err(Stopped::Here(refusal)) => {
                    drop(answering);
                    let problem = self.session.borrow_mut().refusal(refusal, &method, &path);
                    answer(respond, &problem)
                }
                _ => answering.await,
            },
            answered = &mut answering => answered,
        }
    }

    /// Passes on what comes ahead of a response: 100, 103.
    fn pass_on_early(
        &self,
        early: &http::Response<()>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Broken> {
        let mut head = Response {
            status: early.status().as_u16(),
            fields: read_fields(early.headers()),
        };
        strip_hop_by_hop(&mut head.fields);
        if self.session.borrow_mut().response(&mut head).is_err() {
            return Ok(());
        }
        let mut outgoing = http::Response::new(());
        *outgoing.status_mut() = early.status();
        *outgoing.headers_mut() =
            write_fields(head.fields).ok_or(Broken(Reason::PROTOCOL_ERROR))?;
        Ok(respond.send_informational(outgoing)?)
    }

    async fn pass_on(
        &self,
        response: http::Response<RecvStream>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Broken> {
        let (parts, mut body) = response.into_parts();
        let mut head = Response {
            status: parts.status.as_u16(),
            fields: read_fields(&parts.headers),
        };
        strip_hop_by_hop(&mut head.fields);
        let change = self.session.borrow_mut().response(&mut head);
        let stale = self.session.borrow_mut().take_stale();
        if stale {
            // Who is told to come again with another credential will have it.
            let grants = self.connection.grants().await;
            self.session.borrow_mut().renew(grants);
        }
        let mut change = match change {
            Ok(change) => change,
            Err(problem) => return answer(respond, &problem),
        };
        let ends = body.is_end_stream();
        if change.changes_length() && !ends {
            head.fields.remove("content-length");
        }
        let mut outgoing = http::Response::new(());
        *outgoing.status_mut() = parts.status;
        *outgoing.headers_mut() =
            write_fields(head.fields).ok_or(Broken(Reason::PROTOCOL_ERROR))?;
        let mut sending = respond.send_response(outgoing, ends)?;
        if ends {
            return Ok(());
        }
        let result = send_down(&mut body, &mut sending, &mut change).await;
        if let Err(Broken(reason)) = &result {
            sending.send_reset(*reason);
        }
        result
    }
}

/// Sends a body to the server.
async fn send_up(
    mut from: RecvStream,
    mut to: SendStream<Bytes>,
    body: &mut Option<Body>,
) -> Result<(), Stopped> {
    let by_guest = |error: h2::Error| Stopped::ByGuest(error.into());
    let by_server = |_: Broken| Stopped::ByServer;
    while let Some(piece) = from.data().await {
        let piece = piece.map_err(by_guest)?;
        let length = piece.len();
        let piece = match body {
            Some(body) => {
                let mut out = Outgoing::default();
                let pushed = body.push(&piece, &mut out);
                out.mark();
                pushed.map_err(Stopped::Here)?;
                Bytes::from_owner(out)
            }
            None => piece,
        };
        send(&mut to, piece).await.map_err(by_server)?;
        let released = from.flow_control().release_capacity(length);
        released.map_err(by_guest)?;
    }
    if let Some(body) = body {
        let mut out = Outgoing::default();
        let finished = body.finish(&mut out);
        out.mark();
        finished.map_err(Stopped::Here)?;
        let rest = Bytes::from_owner(out);
        send(&mut to, rest).await.map_err(by_server)?;
    }
    let last = trailers(&mut from).await.map_err(Stopped::ByGuest)?;
    finish(&mut to, last).map_err(by_server)
}

/// Sends a body to the guest.
async fn send_down(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    change: &mut ResponseBody,
) -> Result<(), Broken> {
    loop {
        let next = if change.holds_back() {
            match tokio::time::timeout(PAUSE, from.data()).await {
                Ok(next) => next,
                Err(_) => {
                    let mut out = Vec::new();
                    change.pause(&mut out);
                    send(to, out.into()).await?;
                    from.data().await
                }
            }
        } else {
            from.data().await
        };
        let Some(piece) = next else { break };
        let piece = piece?;
        let length = piece.len();
        let piece = if change.changes_length() {
            let mut out = Vec::new();
            let pushed = change.push(&piece, &mut out);
            pushed.map_err(|_| Broken(Reason::INTERNAL_ERROR))?;
            out.into()
        } else {
            piece
        };
        send(to, piece).await?;
        from.flow_control().release_capacity(length)?;
    }
    let mut last = trailers(from).await?.unwrap_or_default();
    let mut out = Vec::new();
    let finished = change.finish(&mut last, &mut out);
    send(to, out.into()).await?;
    finished.map_err(|_| Broken(Reason::INTERNAL_ERROR))?;
    finish(to, Some(last))
}

async fn trailers(from: &mut RecvStream) -> Result<Option<Fields>, Broken> {
    let headers = from.trailers().await?;
    Ok(headers.map(|headers| {
        let mut fields = read_fields(&headers);
        drop_from_trailer(&mut fields);
        fields
    }))
}

/// Sends a piece as the window opens.
async fn send(to: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), Broken> {
    while !piece.is_empty() {
        to.reserve_capacity(piece.len());
        let capacity = match poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(capacity) => capacity?,
            None => return Err(Broken(Reason::CANCEL)),
        };
        let now = piece.split_to(capacity.min(piece.len()));
        if !now.is_empty() {
            to.send_data(now, false)?;
        }
    }
    Ok(())
}

/// Ends a body, with trailers if there are any.
fn finish(to: &mut SendStream<Bytes>, trailers: Option<Fields>) -> Result<(), Broken> {
    match trailers.filter(|fields| !fields.0.is_empty()) {
        Some(fields) => {
            let headers = write_fields(fields).ok_or(Broken(Reason::PROTOCOL_ERROR))?;
            to.send_trailers(headers)?;
        }
        None => to.send_data(Bytes::new(), true)?,
    }
    Ok(())
}

fn answer(respond: &mut SendResponse<Bytes>, problem: &Problem) -> Result<(), Broken> {
    let mut outgoing = http::Response::new(());
    let status = http::StatusCode::from_u16(problem.status);
    *outgoing.status_mut() = status.unwrap_or(http::StatusCode::BAD_GATEWAY);
    let headers = outgoing.headers_mut();
    let kind = HeaderValue::from_static("application/problem+json");
    headers.insert(http::header::CONTENT_TYPE, kind);
    let mut sending = respond.send_response(outgoing, false)?;
    sending.send_data(Bytes::from(problem.body.clone()), true)?;
    Ok(())
}

/// Reads what RFC 9113, 8.3.1, says about requests: the authority is the Host.
fn read_request(parts: &http::request::Parts) -> Result<Request, Fault> {
    let authority = parts.uri.authority().map(ToString::to_string);
    let hosts: Vec<_> = parts.headers.get_all(http::header::HOST).iter().collect();
    let authority = match (authority, &hosts[..]) {
        (Some(authority), []) => authority,
        (Some(authority), [host]) if host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            authority
        }
        (None, [host]) => host.to_str().map_err(|_| Fault::Host)?.to_owned(),
        _ => return Err(Fault::Host),
    };
    if authority.contains('@')
        || parts
            .uri
            .scheme_str()
            .is_some_and(|scheme| scheme != "https")
    {
        return Err(Fault::Host);
    }
    let target = match parts.uri.path_and_query() {
        Some(target) => target.as_str().to_owned(),
        None if parts.method == Method::CONNECT => authority.clone(),
        None => return Err(Fault::Target),
    };
    let lower = parts
        .method
        .as_str()
        .bytes()
        .any(|b| b.is_ascii_lowercase());
    let whole = target == "*" && parts.method == Method::OPTIONS;
    let rooted = target.starts_with('/') || whole || parts.method == Method::CONNECT;
    if lower || !rooted || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(Fault::Target);
    }
    let length = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    let size: usize = parts.headers.iter().map(length).sum();
    if parts.headers.len() > MAX_FIELDS || size + target.len() > MAX_HEAD {
        return Err(Fault::TooLarge);
    }
    let mut fields = read_fields(&parts.headers);
    // What only HTTP/1 has must not come (RFC 9113, 8.2.2).
    let foreign = ["connection", "transfer-encoding", "upgrade", "keep-alive"];
    if foreign.iter().any(|name| fields.all(name).next().is_some()) {
        return Err(Fault::Malformed);
    }
    let lengths: Vec<_> = fields.all("content-length").collect();
    if lengths.len() > 1 || !lengths.iter().all(|length| is_length(length)) {
        return Err(Fault::Length);
    }
    check_fields(&fields)?;
    strip_hop_by_hop(&mut fields);
    fields.remove("host");
    Ok(Request {
        method: parts.method.as_str().into(),
        authority,
        target: target.into(),
        fields,
    })
}

fn read_fields(headers: &HeaderMap) -> Fields {
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        Field::new(name.as_str(), value.as_bytes().trim_ascii())
    };
    Fields(headers.iter().map(field).collect())
}

fn write_fields(fields: Fields) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(fields.0.len());
    for field in fields.0 {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        // Not copied, so that it is overwritten when the last who has it lets go.
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(field.value)).ok()?;
        // Credentials are not kept in the compression's table.
        value.set_sensitive(matches!(
            &field.name[..],
            "authorization" | "proxy-authorization" | "cookie" | "x-api-key"
        ));
        headers.append(name, value);
    }
    Some(headers)
}

fn write_request(request: Request, new_length: bool) -> Option<http::Request<()>> {
    let uri = Uri::builder()
        .scheme("https")
        .authority(request.authority.as_str())
        .path_and_query(request.target.as_str())
        .build()
        .ok()?;
    let mut outgoing = http::Request::new(());
    *outgoing.method_mut() = Method::from_bytes(request.method.as_bytes()).ok()?;
    *outgoing.uri_mut() = uri;
    *outgoing.version_mut() = Version::HTTP_2;
    *outgoing.headers_mut() = write_fields(request.fields)?;
    if new_length {
        outgoing.headers_mut().remove(http::header::CONTENT_LENGTH);
    }
    Some(outgoing)
}
