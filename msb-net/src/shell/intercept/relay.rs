//! HTTP/1 between two streams.

use std::io::{self, Cursor};
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Chain, ReadHalf, WriteHalf,
};

use super::Connection;
use crate::http::relay::{End, Relay};
use crate::http::session::Session;

/// How long a server may pause in the middle of what could be a secret before what
/// is too little of one is passed on.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;

/// What one step of writing did.
enum Put {
    Written(usize),
    Flushed,
    Shut,
}

/// Does the next step: writes, or sees to it that what was written is sent, or ends
/// the stream. One that is given up in the middle has done nothing.
async fn put(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], owed: bool) -> io::Result<Put> {
    if !bytes.is_empty() {
        let length = to.write(bytes).await?;
        return match length {
            0 => Err(io::ErrorKind::WriteZero.into()),
            length => Ok(Put::Written(length)),
        };
    }
    if owed {
        to.flush().await?;
        return Ok(Put::Flushed);
    }
    to.shutdown().await?;
    Ok(Put::Shut)
}

/// A tunnel that the server has opened: where it leads, and both its ends, for reading and
/// for writing.
pub(super) struct Opened<G, H, S, T> {
    pub(super) port: u16,
    pub(super) guest: (G, H),
    pub(super) server: (S, T),
}

/// One end of a stream, and what was read of it already.
type Rest<S> = Chain<Cursor<Vec<u8>>, ReadHalf<S>>;

type Tunnel<G, S> = Opened<Rest<G>, WriteHalf<G>, Rest<S>, WriteHalf<S>>;

/// Relays until either side ends, or the server opens a tunnel.
pub(super) async fn run<G: AsyncRead + AsyncWrite, S: AsyncRead + AsyncWrite>(
    connection: &Connection,
    session: Session,
    guest: G,
    server: S,
) -> Option<Tunnel<G, S>> {
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let mut relay = Relay::new(session);
    let (mut up, mut down) = (vec![0; PIECE], vec![0; PIECE]);
    // Written, and perhaps kept by TLS.
    let (mut guest_owed, mut server_owed, mut server_shut) = (false, false, false);
    loop {
        connection.tell(relay.session());
        if relay.session().take_stale() {
            connection.renew(relay.session()).await;
        }
        if relay.end().is_some() && relay.to_guest.is_empty() && !guest_owed {
            break;
        }
        let shut = relay.server_is_done() && !server_shut;
        tokio::select! {
            read = from_guest.read(&mut up), if relay.wants_guest() => match read {
                Ok(length @ 1..) => relay.from_guest(&up[..length]),
                Ok(0) | Err(_) => relay.guest_ended(),
            },
            read = from_server.read(&mut down), if relay.wants_server() => match read {
                Ok(length @ 1..) => relay.from_server(&down[..length]),
                Ok(0) | Err(_) => relay.server_ended(),
            },
            put = put(&mut to_guest, &relay.to_guest, guest_owed),
                if !relay.to_guest.is_empty() || guest_owed => match put {
                    Ok(Put::Written(length)) => {
                        relay.to_guest.take(length);
                        guest_owed = true;
                        relay.written();
                    }
                    Ok(_) => guest_owed = false,
                    Err(_) => return None,
                },
            put = put(&mut to_server, &relay.to_server, server_owed),
                if !relay.to_server.is_empty() || server_owed || shut => match put {
                    Ok(Put::Written(length)) => {
                        relay.to_server.take(length);
                        server_owed = true;
                        relay.written();
                    }
                    Ok(Put::Flushed) => server_owed = false,
                    Ok(Put::Shut) => server_shut = true,
                    // What it said before is still to be read.
                    Err(_) => {
                        relay.to_server.clear();
                        (server_owed, server_shut) = (false, true);
                        relay.written();
                    }
                },
            () = tokio::time::sleep(PAUSE), if relay.holds_back() => relay.pause(),
            else => break,
        }
    }
    if relay.end() == Some(End::Finished) {
        // Whoever does not hear it has gone already.
        let _ = to_guest.shutdown().await;
        let _ = to_server.shutdown().await;
    }
    let (port, guest, server) = relay.into_tunnel()?;
    Some(Opened {
        port,
        guest: (Cursor::new(guest).chain(from_guest), to_guest),
        server: (Cursor::new(server).chain(from_server), to_server),
    })
}
