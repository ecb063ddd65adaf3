//! A connection of HTTP/2 whose guest sends any frames.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::authority::Authority;
use super::tls::Configs;
use super::vault::Vault;
use super::{Connection, Shared, Sink, h2};
use crate::gateway::{FlowId, Intercepted};
use crate::policy::{Flow, Policy};

/// What a guest sends behind its settings: nothing panics, the connection ends when the
/// guest does, and what a server gets is requests to its host that are allowed.
pub fn http2_frames(data: &[u8]) {
    /// Both windows are larger, so that nobody waits for the other.
    const PIPE: usize = 1 << 20;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let (Ok(runtime), Some(connection)) = (runtime, connection()) else {
        return;
    };
    let data = &data[..data.len().min(PIPE / 2)];
    let work = async {
        let (guest, near) = tokio::io::duplex(PIPE);
        let (far, server) = tokio::io::duplex(PIPE);
        let serving = tokio::task::spawn_local(serve(server));
        let session = connection.session().await;
        let sending = async {
            let (mut reader, mut writer) = tokio::io::split(guest);
            tokio::task::spawn_local(async move {
                let mut bytes = [0; 4096];
                while matches!(reader.read(&mut bytes).await, Ok(1..)) {}
            });
            let start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            let _ = writer.write_all(&[start, data].concat()).await;
            let _ = writer.shutdown().await;
        };
        tokio::join!(sending, h2::run(connection, session, near, far));
        if serving.is_finished() {
            serving.await.expect("a server gets what it may get");
        }
    };
    tokio::task::LocalSet::new().block_on(&runtime, work);
}

fn connection() -> Option<Connection> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let policy: Arc<Policy> = Arc::new("deny http any/denied/**\npreset allow-all".parse().ok()?);
    let (sender, _) = mpsc::unbounded_channel();
    let waiting = Arc::default();
    let shared = Rc::new(Shared {
        policy,
        vault: Vault::new(Vec::new()).ok()?,
        intercept: None,
        authority: RefCell::new(Authority::new(Arc::clone(&provider)).ok()?),
        configs: Configs::new(provider, "", true).ok()?,
        events: Sink { sender, waiting },
        lost: Cell::new(0),
    });
    let host: crate::Name = "a.example".parse().ok()?;
    let own = Intercepted {
        flow: FlowId(1),
        facts: Flow::tcp([1, 1, 1, 1].into(), 443),
        host: Some(host.clone()),
        bound: Vec::new(),
        secure: true,
    };
    Some(Connection {
        shared,
        own,
        host,
        tunnelled: false,
    })
}

/// A server that answers every request, and looks at it.
async fn serve(stream: tokio::io::DuplexStream) {
    let Ok(mut connection) = ::h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let uri = request.uri();
        assert_eq!(uri.host(), Some("a.example"));
        assert!(!uri.path().starts_with("/denied"), "{uri}");
        for name in ["connection", "transfer-encoding", "upgrade", "host"] {
            assert!(!request.headers().contains_key(name), "{name}");
        }
        tokio::task::spawn_local(async move {
            let response = http::Response::new(());
            if let Ok(mut body) = respond.send_response(response, false) {
                let _ = body.send_data(Bytes::from_static(b"good"), true);
            }
        });
    }
}
