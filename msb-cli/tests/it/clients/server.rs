//! A server that plays every host: HTTP/1.1 and HTTP/2 behind TLS on one port of the
//! loopback, with what the clients need: echoes of credentials, streams that wait for their
//! reader, a WebSocket, gRPC and a git repository.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::outside::reflection;

/// Tokens of a stream of server-sent events.
pub(crate) const TOKENS: [&str; 4] = ["one ", "two ", "three ", "four"];

pub(crate) struct Server {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// One permit for each token whose reader has told that it came.
    acknowledged: Semaphore,
    /// Where a redirection leads.
    elsewhere: Mutex<String>,
    /// The credential that is good at present.
    accepted: Mutex<String>,
    repository: PathBuf,
}

/// What a server saw of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) version: &'static str,
    pub(crate) path: String,
    /// The credential itself, out of whatever it stood in.
    pub(crate) credential: String,
}

struct Asked {
    version: &'static str,
    method: String,
    path: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

struct Reply {
    status: u16,
    fields: Vec<(&'static str, String)>,
    pieces: mpsc::Receiver<Vec<u8>>,
    trailers: Vec<(&'static str, String)>,
}

impl Asked {
    fn field(&self, name: &str) -> &str {
        let own = self.fields.iter().find(|(own, _)| own == name);
        own.map_or("", |(_, value)| value)
    }

    fn credential(&self) -> String {
        let field = match self.field("x-api-key") {
            "" => self.field("authorization"),
            key => key,
        };
        match field.split_once(' ') {
            Some(("Basic", encoded)) => {
                let user = STANDARD.decode(encoded).expect("base64");
                let user = String::from_utf8(user).expect("text");
                user.split_once(':').expect("a password").1.to_owned()
            }
            Some((_, credential)) => credential.to_owned(),
            None => field.to_owned(),
        }
    }
}

impl Reply {
    fn new(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        sender.try_send(body.into()).expect("it is empty");
        let fields = vec![("content-type", kind.to_owned())];
        Self {
            status,
            fields,
            pieces,
            trailers: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }
}

impl Server {
    /// Serves for as long as the test's process lives, with `repository` at `/repo.git`.
    pub(crate) fn start(config: &ServerConfig, repository: &Path) -> Self {
        let mut config = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("address").port();
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            acknowledged: Semaphore::new(0),
            elsewhere: Mutex::default(),
            accepted: Mutex::default(),
            repository: repository.to_owned(),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let acceptor = TlsAcceptor::from(Arc::new(config));
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, own) = (acceptor.clone(), Arc::clone(&own));
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, own).await;
                        }
                    });
                }
            });
        });
        Self { port, shared }
    }

    pub(crate) fn redirect_to(&self, url: String) {
        *self.shared.elsewhere.lock().expect("no panic") = url;
    }

    pub(crate) fn accept_only(&self, credential: &str) {
        credential.clone_into(&mut self.shared.accepted.lock().expect("no panic"));
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }
}

async fn serve(stream: TlsStream<TcpStream>, shared: Arc<Shared>) {
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(serve_h2(request, respond, Arc::clone(&shared)));
        }
    } else {
        // Whoever goes away in the middle of something is none of the test's business.
        let _ = serve_h1(stream, &shared).await;
    }
}

async fn serve_h2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    shared: Arc<Shared>,
) {
    let (parts, mut upload) = request.into_parts();
    let mut body = Vec::new();
    while let Some(Ok(piece)) = upload.data().await {
        body.extend_from_slice(&piece);
        let _ = upload.flow_control().release_capacity(piece.len());
    }
    let fields = parts.headers.iter();
    let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
    let asked = Asked {
        version: "h2",
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().expect("a path").to_string(),
        fields: fields
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect(),
        body,
    };
    let mut reply = answer(asked, &shared).await;
    let mut response = http::Response::builder().status(reply.status);
    for (name, value) in &reply.fields {
        response = response.header(*name, value);
    }
    let Ok(mut out) = respond.send_response(response.body(()).expect("a head"), false) else {
        return;
    };
    while let Some(piece) = reply.pieces.recv().await {
        if out.send_data(piece.into(), false).is_err() {
            return;
        }
    }
    let mut trailers = http::HeaderMap::new();
    for (name, value) in reply.trailers {
        trailers.insert(name, value.parse().expect("a value"));
    }
    let _ = out.send_trailers(trailers);
}

async fn serve_h1(stream: TlsStream<TcpStream>, shared: &Arc<Shared>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(asked) = read_h1(&mut stream).await? else {
            return Ok(());
        };
        if asked.field("upgrade") == "websocket" {
            return websocket(asked, stream, shared).await;
        }
        let mut reply = answer(asked, shared).await;
        let mut head = format!(
            "HTTP/1.1 {} X\r\ntransfer-encoding: chunked\r\n",
            reply.status
        );
        for (name, value) in &reply.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await?;
        while let Some(piece) = reply.pieces.recv().await {
            if piece.is_empty() {
                continue;
            }
            stream
                .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                .await?;
            stream.write_all(&piece).await?;
            stream.write_all(b"\r\n").await?;
            stream.flush().await?;
        }
        stream.write_all(b"0\r\n\r\n").await?;
        stream.flush().await?;
    }
}

async fn read_h1(stream: &mut BufReader<TlsStream<TcpStream>>) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (
        words.next().expect("a method"),
        words.next().expect("a path"),
    );
    let mut asked = Asked {
        version: "h1",
        method,
        path,
        fields: Vec::new(),
        body: Vec::new(),
    };
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        asked
            .fields
            .push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut length = asked.field("content-length").parse().unwrap_or(0);
    let chunked = asked.field("transfer-encoding") == "chunked";
    loop {
        if chunked {
            line.clear();
            stream.read_line(&mut line).await?;
            length = usize::from_str_radix(line.trim_end(), 16).expect("a length");
        }
        let mut piece = vec![0; length];
        stream.read_exact(&mut piece).await?;
        asked.body.extend_from_slice(&piece);
        if chunked {
            stream.read_line(&mut line).await?;
        }
        if !chunked || length == 0 {
            return Ok(Some(asked));
        }
    }
}

async fn answer(asked: Asked, shared: &Arc<Shared>) -> Reply {
    let credential = asked.credential();
    see(&asked, &credential, shared);
    let body = String::from_utf8_lossy(&asked.body).into_owned();
    let streams = body.contains("\"stream\":true") || body.contains("\"stream\": true");
    let path = asked.path.split('?').next().unwrap_or("").to_owned();
    if asked.field("content-type").starts_with("application/grpc") {
        return grpc(&credential);
    }
    match path.as_str() {
        "/echo" => Reply::new(200, "text/html", reflection(&credential))
            .with("x-echo", &credential)
            .with("set-cookie", format!("token={credential}")),
        "/gzip" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            std::io::Write::write_all(&mut gzip, reflection(&credential).as_bytes())
                .expect("memory");
            Reply::new(200, "text/plain", gzip.finish().expect("memory"))
                .with("content-encoding", "gzip")
        }
        "/error" => Reply::new(
            500,
            "application/json",
            format!("{{\"error\":\"{credential}\"}}"),
        ),
        "/redirect" => {
            let place = shared.elsewhere.lock().expect("no panic").clone();
            Reply::new(302, "text/plain", "")
                .with("location", format!("{place}?token={credential}"))
        }
        "/accepted" => {
            let good = *shared.accepted.lock().expect("no panic") == credential;
            Reply::new(if good { 200 } else { 401 }, "text/plain", "")
        }
        "/acknowledge" => {
            shared.acknowledged.add_permits(1);
            Reply::new(200, "text/plain", "")
        }
        "/v1/chat/completions" if streams => stream(openai_events(), shared),
        "/v1/chat/completions" => Reply::new(200, "application/json", openai(&credential)),
        "/v1/messages" if streams => stream(anthropic_events(), shared),
        "/v1/messages" => Reply::new(200, "application/json", anthropic(&credential)),
        "/repo.git/info/refs" | "/repo.git/git-upload-pack" if credential.is_empty() => {
            Reply::new(401, "text/plain", "").with("www-authenticate", "Basic realm=\"r\"")
        }
        "/repo.git/info/refs" => {
            let refs = git(&["--advertise-refs"], b"", shared).await;
            let begin = b"001e# service=git-upload-pack\n0000".to_vec();
            let kind = "application/x-git-upload-pack-advertisement";
            Reply::new(200, kind, [begin, refs].concat())
        }
        "/repo.git/git-upload-pack" => {
            let pack = git(&[], &unpacked(&asked), shared).await;
            Reply::new(200, "application/x-git-upload-pack-result", pack)
        }
        _ => Reply::new(404, "text/plain", asked.method),
    }
}

fn see(asked: &Asked, credential: &str, shared: &Shared) {
    shared.seen.lock().expect("no panic").push(Seen {
        version: asked.version,
        path: asked.path.clone(),
        credential: credential.to_owned(),
    });
}

/// Sends each piece only when the reader has told that it has the one before.
fn stream(pieces: Vec<(String, bool)>, shared: &Arc<Shared>) -> Reply {
    let (sender, receiver) = mpsc::channel(1);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        for (piece, acknowledged) in pieces {
            if sender.send(piece.into_bytes()).await.is_err() {
                return;
            }
            if acknowledged {
                shared.acknowledged.acquire().await.expect("open").forget();
            }
        }
    });
    let mut reply = Reply::new(200, "text/event-stream", "");
    reply.pieces = receiver;
    reply
}

fn openai(credential: &str) -> String {
    format!(
        r#"{{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"you are {credential}","refusal":null}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}}}"#
    )
}

fn openai_events() -> Vec<(String, bool)> {
    let event = |token: &str| {
        format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{token}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let mut events: Vec<_> = TOKENS.iter().map(|token| (event(token), true)).collect();
    events.push(("data: [DONE]\n\n".into(), false));
    events
}

fn anthropic(credential: &str) -> String {
    format!(
        r#"{{"id":"m","type":"message","role":"assistant","model":"m","content":[{{"type":"text","text":"you are {credential}"}}],"stop_reason":"end_turn","stop_sequence":null,"usage":{{"input_tokens":1,"output_tokens":1}}}}"#
    )
}

fn anthropic_events() -> Vec<(String, bool)> {
    let event =
        |kind: &str, rest: &str| format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{rest}}}\n\n");
    let start = r#","message":{"id":"m","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}"#;
    let block = r#","index":0,"content_block":{"type":"text","text":""}"#;
    let mut events = vec![
        (event("message_start", start), false),
        (event("content_block_start", block), false),
    ];
    for token in TOKENS {
        let rest = format!(r#","index":0,"delta":{{"type":"text_delta","text":"{token}"}}"#);
        events.push((event("content_block_delta", &rest), true));
    }
    let stop =
        r#","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":1}"#;
    events.push((event("content_block_stop", r#","index":0"#), false));
    events.push((event("message_delta", stop), false));
    events.push((event("message_stop", ""), false));
    events
}

/// Two messages and a trailer, with the credential in all of them.
fn grpc(credential: &str) -> Reply {
    let message = |text: &str| {
        let length = u32::try_from(text.len()).expect("short").to_be_bytes();
        [&[0], &length[..], text.as_bytes()].concat()
    };
    let messages = [message(credential), message("the last")].concat();
    let mut reply = Reply::new(200, "application/grpc", messages);
    reply.trailers = vec![
        ("grpc-status", "0".into()),
        ("x-trailer", credential.to_owned()),
    ];
    reply
}

/// A body as git compresses it.
fn unpacked(asked: &Asked) -> Vec<u8> {
    if asked.field("content-encoding") != "gzip" {
        return asked.body.clone();
    }
    let mut body = Vec::new();
    let mut gzip = flate2::read::GzDecoder::new(&*asked.body);
    std::io::Read::read_to_end(&mut gzip, &mut body).expect("gzip");
    body
}

async fn git(more: &[&str], input: &[u8], shared: &Shared) -> Vec<u8> {
    let mut child = tokio::process::Command::new("git")
        .args(["upload-pack", "--stateless-rpc"])
        .args(more)
        .arg(&shared.repository)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git");
    let mut stdin = child.stdin.take().expect("stdin");
    // It ends without reading all of it when it has heard enough.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    child.wait_with_output().await.expect("git").stdout
}

/// Answers each text frame of a client with what it says, and before that with the
/// credential (RFC 6455, 5).
async fn websocket(
    asked: Asked,
    mut stream: BufReader<TlsStream<TcpStream>>,
    shared: &Shared,
) -> std::io::Result<()> {
    const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let credential = asked.credential();
    see(&asked, &credential, shared);
    let key = format!("{}{MAGIC}", asked.field("sec-websocket-key"));
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    let accept = STANDARD.encode(digest);
    let head = format!(
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let frame = |text: &[u8]| {
        let length = u8::try_from(text.len()).expect("short");
        [&[0x81, length], text].concat()
    };
    stream.write_all(&frame(credential.as_bytes())).await?;
    stream.flush().await?;
    loop {
        let mut head = [0; 6];
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        stream.read_exact(&mut payload).await?;
        for (place, byte) in payload.iter_mut().enumerate() {
            *byte ^= head[2 + place % 4];
        }
        if head[0] & 0x0f == 8 {
            return stream.shutdown().await;
        }
        stream.write_all(&frame(&payload)).await?;
        stream.flush().await?;
    }
}
