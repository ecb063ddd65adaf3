//! Reads the requests of flows: between a guest and the server it was connected to.
//!
//! The driver opens a flow's connection as any other. Once the client's first bytes
//! say that its requests must be read, the connection comes here and the flow gets
//! one end of a socket pair; what belongs between the two runs as tasks on one
//! thread of its own. Flows that need no reading never come near it.
//!
//! With TLS, the server is spoken to and verified first, in the protocol that the
//! client offers too; only then is the client answered, with a certificate that has
//! the server's names. Each flow has its own connection: a request can reach no
//! other server than the one that was dialled for its flow, and no other host than
//! the one that was verified.

mod authority;
mod corked;
#[doc(hidden)]
pub mod fuzzing;
mod h2;
mod relay;
mod tls;
mod tunnel;
mod vault;
mod watched;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustls::AlertDescription;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use self::authority::Authority;
use self::tls::Configs;
use self::vault::Vault;
pub use self::vault::read_file;
use super::Sink;
use crate::gateway::{Event, Intercept, Intercepted};
use crate::http::session::{Context, Note, Session};
use crate::journal::Entry;
use crate::policy::{Pattern, Policy};
use crate::secret::{MAX_SECRETS, Placeholder, Secret};
use crate::{Error, Name};

/// Flows that are taken apart at once: each has buffers of a few hundred kilobytes.
const MAX_INTERCEPTED: usize = 1024;

/// How long both handshakes may take.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// What is done with requests, beside what the policy's rules say of them.
#[derive(Debug, Default)]
pub struct Interception {
    /// The secrets, of which the guest gets placeholders.
    pub secrets: Vec<Secret>,
    /// Certificate authorities to trust beside the host's own, in PEM.
    pub extra_roots: String,
    /// Whether only those are trusted.
    pub only_extra_roots: bool,
    /// Whether all TLS and HTTP is taken apart.
    pub all: bool,
    /// Hosts whose flows are not, unless a rule is about their requests.
    pub passthrough: Vec<Pattern>,
}

/// What the guest has to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Handout {
    /// The authority's certificate.
    pub(super) ca_pem: Option<Arc<str>>,
    /// The secrets' names and what stands for them.
    pub(super) placeholders: Arc<[(String, Placeholder)]>,
}

/// A flow on its way here.
struct Job {
    own: Intercepted,
    guest: StdStream,
    server: OwnedFd,
}

/// The driver's end. When it is dropped, the thread has ended and all connections
/// are closed.
pub(super) struct Interceptor {
    /// Gone only while the thread is waited for.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    running: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections share.
struct Shared {
    policy: Arc<Policy>,
    vault: Vault,
    /// What the gateway looks for, for those who look into tunnels.
    intercept: Option<Intercept>,
    authority: RefCell<Authority>,
    configs: Configs,
    events: Sink,
    lost: Cell<u64>,
}

/// One connection.
struct Connection {
    shared: Rc<Shared>,
    own: Intercepted,
    host: Name,
    /// A proxy carries it, to where only that knows.
    tunnelled: bool,
}

impl Interception {
    /// What the gateway has to look for; `None` when nothing is to be read.
    pub(super) fn wanted(&self, policy: &Policy) -> Option<Intercept> {
        let hosts: Vec<_> = self
            .secrets
            .iter()
            .flat_map(|s| s.hosts.iter().cloned())
            .collect();
        let some = self.all || !hosts.is_empty() || policy.has_request_rules();
        some.then(|| Intercept {
            hosts,
            all: self.all,
            passthrough: self.passthrough.clone(),
        })
    }
}

impl Interceptor {
    /// Starts the thread. It ends with the driver.
    pub(super) fn spawn(
        interception: Interception,
        policy: Arc<Policy>,
        events: Sink,
    ) -> Result<(Self, Handout), Error> {
        if interception.secrets.len() > MAX_SECRETS {
            return Err(Error::TooManySecrets { max: MAX_SECRETS });
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let authority = Authority::new(Arc::clone(&provider))?;
        let roots = &interception.extra_roots;
        let configs = Configs::new(provider, roots, interception.only_extra_roots)?;
        let intercept = interception.wanted(&policy);
        let vault = Vault::new(interception.secrets)?;
        let handout = Handout {
            ca_pem: Some(authority.pem().into()),
            placeholders: vault.placeholders().into(),
        };
        let failed = |doing| move |error: io::Error| Error::system(doing, &error);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // For files, of which one is read at a time.
            .max_blocking_threads(4)
            .build()
            .map_err(failed("start reading requests"))?;
        let (jobs, mut inbox) = mpsc::unbounded_channel::<Job>();
        let running = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&running);
        let work = move || {
            let shared = Rc::new(Shared {
                policy,
                vault,
                intercept,
                authority: RefCell::new(authority),
                configs,
                events,
                lost: Cell::new(0),
            });
            let last = Rc::clone(&shared);
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                while let Some(job) = inbox.recv().await {
                    let (shared, counter) = (Rc::clone(&shared), Arc::clone(&counter));
                    tokio::task::spawn_local(async move {
                        serve(shared, job).await;
                        counter.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            });
            // Connections end here, wherever they are.
            drop(local);
            last.tell_lost();
            // A file that a reading hangs in, on a network's file system for one,
            // is not waited for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name("msb-net-http".into())
            .spawn(work)
            .map_err(failed("start a thread"))?;
        let own = Self {
            jobs: Some(jobs),
            running,
            thread: Some(thread),
        };
        Ok((own, handout))
    }

    /// Takes a flow: the guest's end, and the connection to the server.
    pub(super) fn take(
        &mut self,
        own: Intercepted,
        guest: StdStream,
        server: OwnedFd,
    ) -> io::Result<()> {
        if self.running.fetch_add(1, Ordering::Relaxed) >= MAX_INTERCEPTED {
            self.running.fetch_sub(1, Ordering::Relaxed);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let job = Job { own, guest, server };
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Interceptor {
    fn drop(&mut self) {
        // The thread ends when there can be no more jobs.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by its hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn tell(&self, own: &Intercepted, host: Option<&Name>, note: Note) {
        if !self.events.has_room() {
            self.lost.set(self.lost.get() + 1);
            return;
        }
        self.tell_lost();
        let at = SystemTime::now();
        let event = Event::Request {
            flow: own.flow,
            host: host.cloned(),
            note,
        };
        self.events.push(Entry { at, event });
    }

    /// Tells how many events nobody took in time.
    fn tell_lost(&self) {
        let lost = self.lost.take();
        if lost > 0 {
            let at = SystemTime::now();
            let event = Event::Lost(lost);
            self.events.push(Entry { at, event });
        }
    }
}

impl Connection {
    fn note(&self, note: Note) {
        self.shared.tell(&self.own, Some(&self.host), note);
    }

    /// Tells what a session has to tell.
    fn tell(&self, session: &mut Session) {
        for note in session.take_notes() {
            self.note(note);
        }
    }

    async fn grants(&self) -> Arc<[crate::secret::substitute::Grant]> {
        let mut notes = Vec::new();
        // Without TLS the proxy could read a value, whoever that is.
        let bound = match self.tunnelled {
            true => &[][..],
            false => &self.own.bound,
        };
        let (vault, secure) = (&self.shared.vault, self.own.secure);
        let grants = vault.grants(&self.host, secure, bound, &mut notes).await;
        for note in notes {
            self.note(note);
        }
        grants
    }

    async fn session(&self) -> Session {
        let context = Context {
            host: self.host.clone(),
            bound: self.own.bound.clone(),
            flow: self.own.facts,
            secure: self.own.secure,
            tunnels: !self.own.secure && !self.tunnelled,
            policy: Arc::clone(&self.shared.policy),
        };
        Session::new(context, self.grants().await)
    }

    /// Reads values again, after a server did not accept one.
    async fn renew(&self, session: &mut Session) {
        session.renew(self.grants().await);
    }
}

/// Serves one flow until it ends.
async fn serve(shared: Rc<Shared>, job: Job) {
    let Job { own, guest, server } = job;
    // Any stream socket will do.
    let server = UnixStream::from_std(StdStream::from(server));
    let (Ok(mut guest), Ok(server)) = (UnixStream::from_std(guest), server) else {
        return;
    };
    let Some(host) = own.host.clone() else {
        let why = "the client does not say which host it wants".to_owned();
        let (method, path) = (String::new(), String::new());
        shared.tell(&own, None, Note::Refused { method, path, why });
        let told = if own.secure {
            tls::alert(AlertDescription::UnrecognisedName).to_vec()
        } else {
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec()
        };
        let _ = guest.write_all(&told).await;
        return;
    };
    let connection = Connection {
        shared,
        own,
        host,
        tunnelled: false,
    };
    if connection.own.secure {
        secure(connection, guest, server).await;
    } else {
        let session = connection.session().await;
        let opened = relay::run(&connection, session, guest, server).await;
        if let Some(opened) = opened {
            tunnel::run(connection, opened).await;
        }
    }
}

/// Tells a client why there will be no connection.
async fn refuse(mut guest: impl AsyncWrite + Unpin, description: AlertDescription) {
    let _ = guest.write_all(&tls::alert(description)).await;
    let _ = guest.shutdown().await;
}

async fn secure(
    connection: Connection,
    guest: impl AsyncRead + AsyncWrite + Unpin + 'static,
    server: impl AsyncRead + AsyncWrite + Unpin + 'static,
) {
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), guest);
    let Ok(Ok(start)) = tokio::time::timeout(HANDSHAKE, acceptor).await else {
        return;
    };
    let hello = start.client_hello();
    let named = hello.server_name().and_then(|name| Name::new(name).ok());
    let protocols = tls::protocols(hello.alpn());
    if named.as_ref() != Some(&connection.host) {
        return refuse(start.io, AlertDescription::UnrecognisedName).await;
    }
    let untrusted = |why: &str| connection.note(Note::Untrusted { why: why.into() });
    let Some(protocols) = protocols else {
        untrusted("the client offers no protocol that can be read");
        return refuse(start.io, AlertDescription::NoApplicationProtocol).await;
    };
    let (configs, name) = (
        &connection.shared.configs,
        tls::server_name(&connection.host),
    );
    let (Some(config), Some(name)) = (configs.client(protocols), name) else {
        untrusted("there is no certificate authority to trust");
        return refuse(start.io, AlertDescription::UnknownCA).await;
    };
    let connecting = TlsConnector::from(config).connect(name, server);
    let server = match tokio::time::timeout(HANDSHAKE, connecting).await {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => {
            untrusted(&crate::error::excerpt(&error.to_string()));
            return refuse(start.io, tls::alert_for(&error)).await;
        }
        Err(_) => {
            untrusted("its handshake took too long");
            return refuse(start.io, AlertDescription::HandshakeFailure).await;
        }
    };
    let (_, state) = server.get_ref();
    let protocol = state.alpn_protocol().map(<[u8]>::to_vec);
    let certificate = state.peer_certificates().and_then(<[_]>::first);
    let leaf = certificate.and_then(|server| {
        let mut authority = connection.shared.authority.borrow_mut();
        authority.leaf(&connection.host, server).ok()
    });
    let config = leaf.and_then(|leaf| configs.server(leaf, protocol.clone()));
    let Some(config) = config else {
        return refuse(start.io, AlertDescription::InternalError).await;
    };
    // Values are read while the client finishes its handshake.
    let accepting = tokio::time::timeout(HANDSHAKE, start.into_stream(config));
    let (accepted, session) = tokio::join!(accepting, connection.session());
    let guest = match accepted {
        Ok(Ok(guest)) => guest,
        Ok(Err(error)) => {
            let why = crate::error::excerpt(&error.to_string());
            return connection.note(Note::Pinned { why });
        }
        Err(_) => return,
    };
    if protocol.as_deref() == Some(tls::H2) {
        h2::run(connection, session, guest, server).await;
    } else {
        relay::run(&connection, session, guest, server).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::gateway::FlowId;

    /// Whoever stops a network may rely on it that nothing of it talks any more.
    #[test]
    fn the_thread_and_its_connections_end_with_it() {
        let policy: Policy = "preset allow-all\ndeny http DELETE any".parse().unwrap();
        let own = Intercepted {
            flow: FlowId(1),
            facts: crate::policy::Flow::tcp([192, 0, 2, 1].into(), 80),
            host: Some("a.example".parse().unwrap()),
            bound: Vec::new(),
            secure: false,
        };
        let (sender, _listener) = mpsc::unbounded_channel();
        let waiting = Arc::default();
        let events = Sink { sender, waiting };
        let interception = Interception::default();
        let (mut interceptor, _) =
            Interceptor::spawn(interception, Arc::new(policy), events).unwrap();
        let mut ends = Vec::new();
        for _ in 0..3 {
            let [(guest, ours), (server, theirs)] = [(); 2].map(|()| StdStream::pair().unwrap());
            for end in [&guest, &server, &ours, &theirs] {
                end.set_nonblocking(true).unwrap();
            }
            interceptor.take(own.clone(), ours, theirs.into()).unwrap();
            ends.extend([guest, server]);
        }
        drop(interceptor);
        for mut end in ends {
            assert_eq!(end.read(&mut [0]).unwrap(), 0, "it is closed already");
        }
    }
}
