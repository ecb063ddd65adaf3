//! Clients of published ports whose service listens on the guest's loopback address.
//!
//! The gateway hands over clients whom the guest refused. Each gets a stream of the agent,
//! which connects inside the guest. To the relay they are one client more.

use std::net::TcpStream as StdStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use msb_guest_agent::endpoint::HostEndpoint;
use msb_guest_agent::message::{Request, StreamEvent};
use msb_guest_agent::wire::{Channel, StreamId};
use msb_net::shell::Fallback;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::link::{Ask, Item, Link};

/// Clients that may wait until they are taken over; further ones are reset.
const MAX_WAITING: usize = 64;

/// Connections at once: as many streams are left for programs.
const MAX_DIALS: usize = 256;

/// How much is read of a client at once.
const CHUNK: usize = 64 * 1024;

/// A client and the guest's port that it wants.
pub(super) type Client = (OwnedFd, u16);

/// The gateway's end.
pub(super) struct Handover(mpsc::Sender<Client>);

/// Makes both ends of the way from the gateway to [`serve`].
pub(super) fn channel() -> (Handover, mpsc::Receiver<Client>) {
    let (sender, clients) = mpsc::channel(MAX_WAITING);
    (Handover(sender), clients)
}

impl Fallback for Handover {
    fn take(&mut self, client: OwnedFd, port: u16) {
        if let Err(error) = self.0.try_send((client, port)) {
            let (client, _) = error.into_inner();
            reset(&StdStream::from(client));
        }
    }
}

/// Serves clients for as long as the sandbox lives. `socket` is the relay's.
pub(super) async fn serve(socket: UnixStream, mut clients: mpsc::Receiver<Client>) {
    let Ok(link) = Link::with(socket, HostEndpoint::new()) else {
        return;
    };
    let places = Arc::new(Semaphore::new(MAX_DIALS));
    while let Some((client, port)) = clients.recv().await {
        let client = StdStream::from(client);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            reset(&client);
            continue;
        };
        let link = link.clone();
        tokio::spawn(async move {
            if let Ok(client) = TcpStream::from_std(client) {
                connect(&link, client, port).await;
            }
            drop(place);
        });
    }
    // The network has ended; what is open goes on until the relay does.
    std::future::pending::<()>().await;
}

/// So that the client sees that the connection failed, and not that it ended.
fn reset(client: &StdStream) {
    // If it can't be, it is closed all the same.
    let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
}

/// One client, from its connection to its end.
async fn connect(link: &Link, mut client: TcpStream, port: u16) {
    let opened = link.open(Request::Dial { port }).await;
    let served = match opened {
        Ok((stream, mut items)) => {
            let connected = items.recv().await;
            if matches!(connected, Some(Item::Event(StreamEvent::Connected))) {
                let (read, write) = client.split();
                let both = async {
                    tokio::try_join!(
                        up(link, stream, read),
                        down(link, stream, &mut items, write)
                    )
                };
                let done = both.await.is_ok();
                if !done {
                    link.ask(Ask::Reset { stream });
                }
                done
            } else {
                false
            }
        }
        Err(_) => false,
    };
    if !served {
        let _ = client.set_zero_linger();
    }
}

/// One side broke the connection off.
struct Broken;

/// From the client to the guest.
async fn up(link: &Link, stream: StreamId, mut client: ReadHalf<'_>) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if client.read_buf(&mut buffer).await.map_err(|_| Broken)? == 0 {
            link.ask(Ask::Finish { stream });
            return Ok(());
        }
        let data: Bytes = buffer.split().freeze();
        let (reply, sent) = oneshot::channel();
        link.ask(Ask::Send {
            stream,
            data,
            reply,
        });
        sent.await.map_err(|_| Broken)?.map_err(|_| Broken)?;
    }
}

/// From the guest to the client.
async fn down(
    link: &Link,
    stream: StreamId,
    items: &mut mpsc::UnboundedReceiver<Item>,
    mut client: WriteHalf<'_>,
) -> Result<(), Broken> {
    loop {
        match items.recv().await {
            Some(Item::Data(channel @ Channel::Stdout, data)) => {
                client.write_all(&data).await.map_err(|_| Broken)?;
                link.ask(Ask::Consumed {
                    stream,
                    channel,
                    len: data.len(),
                });
            }
            // The guest's end of sending is the client's end of receiving.
            Some(Item::Eof(Channel::Stdout)) => drop(client.shutdown().await),
            Some(Item::Eof(_)) => {}
            Some(Item::Event(StreamEvent::HungUp)) => return Ok(()),
            Some(Item::Data(..) | Item::Event(_) | Item::Kept(..) | Item::Reset(_)) | None => {
                return Err(Broken);
            }
        }
    }
}
