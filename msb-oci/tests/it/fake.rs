//! A registry on loopback that does what a test scripts.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// With the query.
    pub(crate) path: String,
    /// `name: value`, the name in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What is answered; the connection is closed afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
    /// Announced instead of the body's length.
    pub(crate) length: Option<u64>,
    /// The body comes byte by byte, with a pause before each.
    pub(crate) trickles: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
            length: None,
            trickles: false,
        }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply::new(200, body)
    }

    pub(crate) fn redirect(to: &str) -> Reply {
        Reply::new(307, "").with(format!("Location: {to}"))
    }

    pub(crate) fn trickling(mut self) -> Reply {
        self.trickles = true;
        self
    }

    pub(crate) fn with(mut self, header: impl Into<String>) -> Reply {
        self.headers.push(header.into());
        self
    }
}

/// A server that runs as long as its value lives.
pub(crate) struct Fake {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler = Arc::new(handler);
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
                std::thread::spawn(move || serve(&stream, &*handler, &log));
            }
        });
        Fake { address, seen }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had this in their path.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.path.contains(part))
            .count()
    }
}

fn serve(stream: &TcpStream, handler: &dyn Fn(&Request) -> Reply, log: &Mutex<Vec<Request>>) {
    let Some(request) = read_request(stream) else {
        return;
    };
    log.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    let length = reply.length.unwrap_or(reply.body.len() as u64);
    let mut head = format!(
        "HTTP/1.1 {} Reply\r\nContent-Length: {length}\r\nConnection: close\r\n",
        reply.status
    );
    for header in &reply.headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    let mut out = stream;
    // A client that hangs up early is part of the tests.
    if reply.trickles {
        let _ = out.write_all(head.as_bytes());
        for byte in &reply.body {
            // The pause is the misbehaviour, and far below any time limit.
            std::thread::sleep(std::time::Duration::from_millis(10));
            if out.write_all(&[*byte]).is_err() {
                return;
            }
        }
        return;
    }
    let _ = out
        .write_all(head.as_bytes())
        .and_then(|()| out.write_all(&reply.body));
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ")?;
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    Some(Request { path, headers })
}
