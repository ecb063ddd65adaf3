//! The driver: does with host sockets what the gateway says.
//!
//! [`Network::spawn`] takes a [`Link`], where the guest's frames come from, and
//! runs one gateway on a thread of its own until it is stopped or the link ends.
//! This is the only place in the crate that starts anything.
//!
//! It needs no asynchronous runtime and works beside any: [`Events::recv`] can be
//! awaited, [`Events::blocking_recv`] waits without.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use msb_net::gateway::Config;
//! use msb_net::policy::Policy;
//! use msb_net::shell::{Link, Network, Options};
//!
//! // The other end goes to the VMM: QEMU's `-netdev stream`, or libkrun.
//! let (ours, theirs) = UnixStream::pair().unwrap();
//! let config = Config::new(Policy::public_only(), 0x5eed);
//! let (network, mut events) = Network::spawn(Options::new(config), Link::stream(ours))?;
//! drop(theirs);
//! while let Some(entry) = events.blocking_recv() {
//!     println!("{}", entry.to_json(network.policy()));
//! }
//! # Ok::<(), msb_net::Error>(())
//! ```

mod datagram;
mod dial;
mod driver;
mod failures;
mod host;
mod intercept;
mod link;
mod pcapng;
mod ping;
mod published;
mod resolve;
mod stream;
mod traffic;
mod way;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::SystemTime;

use mio::{Poll, Waker};

pub use self::dial::{Dial, HostDialer};
use self::driver::{Driver, Outside, WAKE};
pub use self::host::host_addresses;
#[doc(hidden)]
pub use self::intercept::fuzzing;
use self::intercept::{Handout, Interceptor};
pub use self::intercept::{Interception, read_file as read_secret_file};
use self::link::Port;
pub use self::link::{Link, MAX_FRAME};
pub use self::pcapng::Capture;
use self::published::Offer;
pub use self::published::{Fallback, Publication};
pub use self::resolve::host_resolvers;
pub use self::traffic::{Traffic, TrafficMeter};
use crate::Error;
use crate::gateway::{Config, Gateway, OFFLOAD_HEADER, PublishedId};
use crate::journal::Entry;
use crate::policy::Policy;
use crate::publish::Publish;
use crate::secret::Placeholder;

/// Events on their way to whoever listens; behind them the gateway holds some
/// more, and then drops the oldest and counts them.
const MAX_EVENTS: usize = 1024;

/// What a network is made from.
pub struct Options {
    /// The gateway's configuration.
    pub config: Config,
    /// Opens the host's sockets.
    pub dialer: Box<dyn Dial>,
    /// Where the guest's frames are written to, if anywhere.
    pub capture: Option<Capture>,
    /// Who takes clients of published ports whom the guest refuses.
    pub fallback: Option<Box<dyn Fallback>>,
    /// What is done with requests.
    pub interception: Interception,
}

impl Options {
    /// Options with which sockets are opened on this host.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            dialer: Box::new(HostDialer),
            capture: None,
            fallback: None,
            interception: Interception::default(),
        }
    }
}

/// A running gateway. It stops when this is dropped.
#[derive(Debug)]
pub struct Network {
    commands: mpsc::Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    policy: Arc<Policy>,
    handout: Handout,
    traffic: TrafficMeter,
    /// Numbers published ports.
    published: AtomicU64,
}

/// What a handle asks of its driver.
enum Command {
    Stop,
    Publish(Vec<Offer>),
    /// Answered once the ports are free again.
    Unpublish(Vec<PublishedId>, mpsc::Sender<()>),
}

impl Network {
    /// Starts a gateway on a thread of its own.
    ///
    /// # Errors
    ///
    /// The system refuses a thread or a descriptor.
    pub fn spawn(mut options: Options, link: Link) -> Result<(Self, Events), Error> {
        let failed = |doing| move |error: io::Error| Error::system(doing, &error);
        let policy = Arc::new(options.config.policy.clone());
        let poll = Poll::new().map_err(failed("make an epoll set"))?;
        let waker = Waker::new(poll.registry(), WAKE).map_err(failed("make an event counter"))?;
        let waker = Arc::new(waker);
        let (commands, inbox) = mpsc::channel();
        let (mut feed, events) = channel(&waker);
        feed.capture = options.capture;
        let traffic = feed.traffic.clone();
        feed.skip = if link.offload { OFFLOAD_HEADER } else { 0 };
        options.config.offload = link.offload;
        let port = Port::new(link).map_err(failed("use the guest's link"))?;
        let intercept = options.interception.wanted(&policy);
        let (interceptor, handout) = match intercept.is_some() {
            true => {
                let (policy, events) = (Arc::clone(&policy), feed.sink.clone());
                let (own, handout) = Interceptor::spawn(options.interception, policy, events)?;
                (Some(own), handout)
            }
            false => (None, Handout::default()),
        };
        options.config.intercept = intercept;
        let gateway = Gateway::new(options.config);
        let outside = Outside {
            dialer: options.dialer,
            fallback: options.fallback,
            interceptor,
        };
        let driver = Driver::new(gateway, port, outside, feed, inbox, poll)
            .map_err(failed("watch the guest's link"))?;
        let thread = std::thread::Builder::new()
            .name("msb-net".into())
            .spawn(move || driver.run())
            .map_err(failed("start a thread"))?;
        let network = Self {
            commands,
            waker,
            thread: Some(thread),
            policy,
            handout,
            traffic,
            published: AtomicU64::new(0),
        };
        Ok((network, events))
    }

    /// Returns the policy that decides.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the certificate that the guest must trust, in PEM, if any of its flows
    /// are taken apart.
    pub fn ca_pem(&self) -> Option<&str> {
        self.handout.ca_pem.as_deref()
    }

    /// Returns the names of the secrets and what the guest has in their place.
    pub fn placeholders(&self) -> &[(String, Placeholder)] {
        &self.handout.placeholders
    }

    /// Returns what tells how much has crossed the guest's link.
    pub fn traffic(&self) -> TrafficMeter {
        self.traffic.clone()
    }

    /// Offers ports of the guest on this host.
    ///
    /// # Errors
    ///
    /// A port of the host cannot be had; none of the range is offered then.
    pub fn publish(&self, publish: &Publish) -> Result<Publication, Error> {
        let number = || PublishedId(self.published.fetch_add(1, Ordering::Relaxed));
        let (publication, offers) = published::bind(publish, number)?;
        // If the link has ended, there is nobody to reach any more, and the
        // sockets are closed again.
        self.tell(Command::Publish(offers));
        Ok(publication)
    }

    /// Stops offering ports: when this returns, they are free again. Connections
    /// that are open go on.
    pub fn unpublish(&self, publication: &Publication) {
        let (done, wait) = mpsc::channel();
        if self.tell(Command::Unpublish(publication.ids.clone(), done)) {
            // An error says that the driver ended, and its sockets with it.
            let _ = wait.recv();
        }
    }

    /// Stops the gateway: all its sockets are closed when this returns.
    pub fn stop(self) {
        drop(self);
    }

    /// Hands a command to the driver; false when the link has ended.
    fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok() && self.waker.wake().is_ok()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by its hook; its sockets are closed.
            let _ = thread.join();
        }
    }
}

/// Where events go, for as many threads as there are.
#[derive(Clone, Debug)]
struct Sink {
    sender: tokio::sync::mpsc::UnboundedSender<Entry>,
    /// How many wait: bounded, but for what is told at the end.
    waiting: Arc<AtomicUsize>,
}

impl Sink {
    fn has_room(&self) -> bool {
        // Nobody listens any more: what is pushed goes nowhere.
        self.sender.is_closed() || self.waiting.load(Ordering::SeqCst) < MAX_EVENTS
    }

    fn push(&self, entry: Entry) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _ = self.sender.send(entry);
    }
}

/// The driver's end of the events.
struct Feed {
    sink: Sink,
    starved: Arc<AtomicBool>,
    capture: Option<Capture>,
    /// What of each frame is no part of it.
    skip: usize,
    traffic: TrafficMeter,
}

impl Feed {
    /// Tells whether an event can be pushed; if not, the driver is woken when one can.
    fn has_room(&self) -> bool {
        if self.sink.has_room() {
            return true;
        }
        self.starved.store(true, Ordering::SeqCst);
        // It may have been emptied between the two.
        self.sink.has_room()
    }

    fn push(&self, entry: Entry) {
        self.sink.push(entry);
    }

    /// Takes note of a frame that crosses the link.
    fn note(&mut self, frame: &[u8], from_guest: bool) {
        self.traffic
            .count(frame.len().saturating_sub(self.skip), from_guest);
        if let Some(capture) = &mut self.capture {
            let frame = frame.get(self.skip..).unwrap_or(&[]);
            capture.frame(SystemTime::now(), frame, from_guest);
        }
    }

    /// Nothing will happen for a while: whoever reads the capture meanwhile sees all.
    fn rest(&mut self) {
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
    }
}

/// What a [`Network`] tells of, in order. Nobody has to listen: the oldest events
/// are then dropped, and counted in [`Event::Lost`](crate::gateway::Event::Lost). When
/// the network stops, each flow that is open is told of as closed.
#[derive(Debug)]
pub struct Events {
    receiver: tokio::sync::mpsc::UnboundedReceiver<Entry>,
    waiting: Arc<AtomicUsize>,
    starved: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Events {
    /// Waits for the next event; `None` when the network has stopped.
    pub async fn recv(&mut self) -> Option<Entry> {
        let entry = self.receiver.recv().await;
        self.taken(entry.is_some());
        entry
    }

    /// As [`recv`](Self::recv), without an asynchronous runtime.
    ///
    /// # Panics
    ///
    /// Called from within one.
    pub fn blocking_recv(&mut self) -> Option<Entry> {
        let entry = self.receiver.blocking_recv();
        self.taken(entry.is_some());
        entry
    }

    /// Takes the next event if there is one already.
    pub fn try_recv(&mut self) -> Option<Entry> {
        let entry = self.receiver.try_recv().ok();
        self.taken(entry.is_some());
        entry
    }

    /// There is room again: the driver may wait for that.
    fn taken(&self, one: bool) {
        if one {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if self.starved.swap(false, Ordering::SeqCst) {
            let _ = self.waker.wake();
        }
    }
}

fn channel(waker: &Arc<Waker>) -> (Feed, Events) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let starved = Arc::new(AtomicBool::new(false));
    let feed = Feed {
        sink: Sink {
            sender,
            waiting: Arc::clone(&waiting),
        },
        starved: Arc::clone(&starved),
        capture: None,
        skip: 0,
        traffic: TrafficMeter::default(),
    };
    let waker = Arc::clone(waker);
    (
        feed,
        Events {
            receiver,
            waiting,
            starved,
            waker,
        },
    )
}
