//! What happens to all sandboxes of a home.
//!
//! There is no daemon to ask. The folder of sandboxes tells which come and go (inotify), and
//! the socket in each one's folder that its supervisor is there; what happens to it and in it
//! its supervisor tells, over a connection for each.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinSet;

use crate::builder::blocking;
use crate::error::Error;
use crate::event::{Activity, LifeEvent, SandboxEvent, SandboxEvents, TimedLife};
use crate::handle::SandboxHandle;
use crate::home::{Home, unusable};
use crate::record::{STATE, State};
use crate::sandbox::Sandbox;
use crate::socket;
use crate::spec::check_name;
use crate::waiting::{Waiting, Watcher, waiting};

/// Events that may wait for whoever listens, of all sandboxes together.
const MAX_WAITING: usize = 4096;

/// How much of what the kernel tells is read at once: some dozen names.
const CHUNK: usize = 16 << 10;

/// Events of all sandboxes; see [`Sandbox::watch`]. The watch ends when this is dropped.
#[derive(Debug)]
pub struct SandboxWatch {
    events: Waiting<SandboxEvent>,
    /// Ends what runs in the background.
    _tasks: JoinSet<()>,
}

impl Sandbox {
    /// What happens from now on to all sandboxes of the home of [`Home::from_env`], also to
    /// those that are made meanwhile. When this returns, everything that happens is seen.
    ///
    /// One that is made and gone faster than it can be connected to is told of as removed only.
    ///
    /// ```no_run
    /// # async fn demo() -> Result<(), msb_sdk::Error> {
    /// let mut events = msb_sdk::Sandbox::watch().await?;
    /// while let Some(event) = events.recv().await {
    ///     println!("{event}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Home`] when the host does not tell of changes in the folder.
    pub async fn watch() -> Result<SandboxWatch, Error> {
        Self::watch_in(&Home::from_env()?, SystemTime::now()).await
    }

    /// As [`Sandbox::watch`], in a home of the caller's choice, with what happened since then:
    /// as far back as the sandboxes that run now have begun to run and remember.
    ///
    /// # Errors
    /// As [`Sandbox::watch`].
    pub async fn watch_in(home: &Home, since: SystemTime) -> Result<SandboxWatch, Error> {
        let folder = home.sandboxes();
        home.make_dir(&folder)?;
        let failed = |source: io::Error| unusable(&folder, source);
        let notify = Notify::of(&folder).map_err(failed)?;
        let (watcher, events) = waiting(MAX_WAITING);
        let out = Out { watcher, since };
        let mut watch = Watch {
            home: home.clone(),
            notify,
            out,
            followed: HashSet::new(),
            again: HashSet::new(),
            gone: HashSet::new(),
            followers: JoinSet::new(),
        };
        watch.look_around();
        let mut tasks = JoinSet::new();
        tasks.spawn(watch.run());
        Ok(SandboxWatch {
            events,
            _tasks: tasks,
        })
    }
}

impl SandboxWatch {
    /// Waits for the next event. `None` when the host tells of no more changes. Nothing is
    /// lost when this is given up.
    pub async fn recv(&mut self) -> Option<SandboxEvent> {
        self.events.recv().await
    }
}

/// Where events go.
#[derive(Clone, Debug)]
struct Out {
    watcher: Watcher<SandboxEvent>,
    since: SystemTime,
}

impl Out {
    fn tell(&self, event: SandboxEvent) {
        let missing = matches!(event.activity, Activity::Life(LifeEvent::Lost { .. }));
        if event.at < self.since && !missing {
            return;
        }
        // The task ends with whoever listens.
        let _ = self.watcher.tell(event);
    }

    fn life(&self, sandbox: &str, event: LifeEvent) {
        self.tell(TimedLife::now(event).of(sandbox));
    }
}

/// What the kernel tells of the folders.
struct Notify {
    // It is read like a pipe, though it is none.
    events: Receiver,
    folder: PathBuf,
    /// The watch of the folder of sandboxes, and those of the sandboxes.
    all: i32,
    names: HashMap<i32, String>,
}

/// A change of a folder.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// There may be a sandbox of this name, or its supervisor may have come.
    Comes(String),
    /// Its folder has lost its name.
    Goes(String),
    /// Too much has changed for the kernel to tell.
    Much,
}

impl Notify {
    fn of(folder: &Path) -> io::Result<Self> {
        let notify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let comes = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
        let all = inotify::add_watch(&notify, folder, comes | WatchFlags::ONLYDIR)?;
        Ok(Self {
            events: Receiver::from_owned_fd_unchecked(notify)?,
            folder: folder.to_owned(),
            all,
            names: HashMap::new(),
        })
    }

    /// Watches the folder of a sandbox for its socket, and for notes of its supervisor: one
    /// that has just made its socket does not listen yet, and tells so when it does. One that
    /// is gone already is none.
    fn add(&mut self, name: &str) {
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        if let Ok(watch) = inotify::add_watch(&self.events, self.folder.join(name), flags) {
            self.names.insert(watch, name.to_owned());
        }
    }

    /// Waits for changes. Nothing is lost when this is given up.
    async fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut buffer = [0; CHUNK];
        loop {
            self.events.readable().await?;
            match self.events.try_read(&mut buffer) {
                Ok(count) => {
                    let told = Told(&buffer[..count]);
                    return Ok(told.filter_map(|one| self.change(&one)).collect());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn change(&mut self, told: &Event<'_>) -> Option<Change> {
        if told.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Some(Change::Much);
        }
        if told.watch != self.all {
            if told.flags.contains(ReadFlags::IGNORED) {
                self.names.remove(&told.watch);
                return None;
            }
            let name = self.names.get(&told.watch)?;
            let comes = [socket::NAME, STATE].contains(&told.name);
            return comes.then(|| Change::Comes(name.clone()));
        }
        // What is being removed begins with a dot.
        check_name(told.name).ok()?;
        let name = told.name.to_owned();
        Some(match told.flags.contains(ReadFlags::MOVED_FROM) {
            true => Change::Goes(name),
            false => Change::Comes(name),
        })
    }
}

/// An event of the kernel: `inotify(7)`.
struct Event<'a> {
    watch: i32,
    flags: ReadFlags,
    /// Empty where it is none that a sandbox could have.
    name: &'a str,
}

/// What was read of them.
struct Told<'a>(&'a [u8]);

impl<'a> Iterator for Told<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        /// Watch, flags, cookie and the length of the name, 32 bits each.
        const HEADER: usize = 16;
        let (header, rest) = self.0.split_at_checked(HEADER)?;
        let word = |at: usize| {
            header[at..at + 4]
                .first_chunk()
                .copied()
                .unwrap_or_default()
        };
        let length = u32::from_ne_bytes(word(12));
        let (name, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Event {
            watch: i32::from_ne_bytes(word(0)),
            flags: ReadFlags::from_bits_retain(u32::from_ne_bytes(word(4))),
            name: std::str::from_utf8(name).unwrap_or_default(),
        })
    }
}

/// Looks after all of it.
struct Watch {
    home: Home,
    notify: Notify,
    out: Out,
    /// Those with whose supervisors there is a connection, or will be.
    followed: HashSet<String>,
    /// Those of them that came again meanwhile.
    again: HashSet<String>,
    /// Those of them that were removed.
    gone: HashSet<String>,
    /// Their names, and whether there was a connection.
    followers: JoinSet<(String, bool)>,
}

impl Watch {
    async fn run(mut self) {
        loop {
            tokio::select! {
                changes = self.notify.changes() => match changes {
                    Ok(changes) => changes.into_iter().for_each(|change| self.handle(change)),
                    Err(_) => return,
                },
                Some(done) = self.followers.join_next() => {
                    let Ok((name, linked)) = done else { continue };
                    self.followed.remove(&name);
                    if self.gone.remove(&name) {
                        self.out.life(&name, LifeEvent::Removed);
                    }
                    // It may have been started again before this was noticed. One that lets
                    // nobody in is not asked again before it comes anew.
                    let again = self.again.remove(&name) || linked;
                    if again && socket::connect(&self.home.sandboxes().join(&name)).is_ok() {
                        self.follow(name);
                    }
                }
            }
        }
    }

    fn handle(&mut self, change: Change) {
        match change {
            Change::Comes(name) => self.comes(name),
            // What it did last comes first.
            Change::Goes(name) if self.followed.contains(&name) => drop(self.gone.insert(name)),
            Change::Goes(name) => self.out.life(&name, LifeEvent::Removed),
            Change::Much => self.look_around(),
        }
    }

    fn look_around(&mut self) {
        let entries = std::fs::read_dir(self.home.sandboxes());
        for entry in entries.into_iter().flatten().flatten() {
            if let Ok(name) = entry.file_name().into_string()
                && check_name(&name).is_ok()
            {
                self.comes(name);
            }
        }
    }

    fn comes(&mut self, name: String) {
        self.notify.add(&name);
        // Its socket may have come before it was watched for.
        if self
            .home
            .sandboxes()
            .join(&name)
            .join(socket::NAME)
            .exists()
        {
            self.follow(name);
        }
    }

    fn follow(&mut self, name: String) {
        if self.followed.insert(name.clone()) {
            let (home, out) = (self.home.clone(), self.out.clone());
            self.followers.spawn(async move {
                let linked = follow(&home, &name, &out).await;
                (name, linked)
            });
        } else {
            self.again.insert(name);
        }
    }
}

/// Passes on what a supervisor tells, to its end. Returns whether it let us in.
async fn follow(home: &Home, name: &str, out: &Out) -> bool {
    let handle = SandboxHandle::named(home, name);
    // This waits until it has started.
    match handle.link().await {
        Ok(link) => {
            let mut events = SandboxEvents::new(&link, name);
            while let Some(event) = events.recv().await {
                out.tell(event);
            }
            return true;
        }
        Err(Error::Busy { .. }) => {
            let dir = home.sandboxes().join(name);
            let state = blocking(move || State::read(&dir)).await;
            let end = state.ok().flatten().and_then(|state| state.end);
            if let Some(end) = end.filter(|end| !end.asked) {
                out.life(name, LifeEvent::Failed { reason: end.reason });
            }
        }
        // It runs no more.
        Err(_) => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(notify: &mut Notify, count: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        while changes.len() < count {
            changes.extend(notify.changes().await.expect("changes"));
        }
        changes
    }

    #[tokio::test]
    async fn folders_that_come_and_go_are_told_of() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut notify = Notify::of(dir.path()).expect("notify");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("app")).expect("mkdir");
        std::fs::create_dir(at(".app.1.0")).expect("mkdir");
        let comes = || Change::Comes("app".into());
        assert_eq!(all(&mut notify, 1).await, [comes()]);
        notify.add("app");
        notify.add("none");
        std::fs::write(at("app/other"), "{}").expect("write");
        std::fs::write(at("app").join(socket::NAME), "").expect("write");
        assert_eq!(all(&mut notify, 1).await, [comes()]);
        std::fs::rename(at("app/other"), at("app").join(STATE)).expect("rename");
        assert_eq!(all(&mut notify, 1).await, [comes()]);
        std::fs::rename(at("app"), at(".gone")).expect("rename");
        std::fs::create_dir(at("b")).expect("mkdir");
        let both = [Change::Goes("app".into()), Change::Comes("b".into())];
        assert_eq!(all(&mut notify, 2).await, both);
        std::fs::remove_dir_all(at(".gone")).expect("remove");
        std::fs::create_dir(at("c")).expect("mkdir");
        assert_eq!(all(&mut notify, 1).await, [Change::Comes("c".into())]);
        assert!(notify.names.is_empty());
    }

    #[test]
    fn half_an_event_is_none() {
        for count in 0..40 {
            let bytes = [7; 40];
            assert_eq!(Told(&bytes[..count]).count(), 0, "{count}");
        }
        let mut one = vec![0; 16];
        one[12] = 4;
        one.extend(b"a\0\0\0");
        assert_eq!(
            Told(&one)
                .map(|event| event.name.to_owned())
                .collect::<Vec<_>>(),
            ["a"]
        );
    }
}
