//! Snapshots of sandboxes that ran, and sandboxes that go on from them.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, SystemTime};

use msb_guest_agent::message::PROTOCOL_VERSION;
use msb_oci::{Holder, Image};
use msb_vmm::Snapshots as Folder;
use serde::{Deserialize, Serialize};

use crate::builder::{Start, Started, blocking};
use crate::error::Error;
use crate::home::{GuestBundle, Home};
use crate::machine::{MachineFailure, MachineRequest, Source};
use crate::network::NetworkPolicy;
use crate::record::Record;
use crate::sandbox::Sandbox;
use crate::secret::{Secret, Values};
use crate::spec::SandboxSpec;
use crate::state::{self, SandboxDir};

/// The version of what is written beside a snapshot.
const VERSION: u32 = 2;

/// The most sandboxes that one call makes: each is some processes.
pub(crate) const MAX_FORKS: usize = 256;

/// How many names are tried for a sandbox that has none.
const MAX_NAMES: usize = 4096;

/// What is written beside a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    version: u32,
    /// Of the link to its agent, which is in its memory as it was.
    protocol: u32,
    /// The sandbox that was saved.
    pub(crate) spec: SandboxSpec,
    /// Digest of its image's manifest.
    pub(crate) image: String,
    /// Which file its root was read from: its kernel knows where in it things are.
    pub(crate) root: String,
}

impl About {
    pub(crate) fn new(spec: SandboxSpec, image: String, root: String) -> Self {
        Self {
            version: VERSION,
            protocol: PROTOCOL_VERSION,
            spec,
            image,
            root,
        }
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data can be encoded")
    }

    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, MachineFailure> {
        let failed = |reason: String| {
            let reason = format!("the snapshot {name:?} can't be read: {reason}");
            MachineFailure::new(reason, "remove it, and make it again")
        };
        // What is of another version may have another shape.
        #[derive(Deserialize)]
        struct Versions {
            version: u32,
            #[serde(default)]
            protocol: u32,
        }
        let invalid = |error: serde_json::Error| failed(error.to_string());
        let made: Versions = serde_json::from_str(text).map_err(invalid)?;
        if (made.version, made.protocol) != (VERSION, PROTOCOL_VERSION) {
            return Err(failed("it was made by another version of msb".into()));
        }
        serde_json::from_str(text).map_err(invalid)
    }

    /// What a sandbox is that goes on from it: like the first one, but for what only one can
    /// have.
    fn child(&self) -> SandboxSpec {
        SandboxSpec {
            name: String::new(),
            capture: None,
            ports: Vec::new(),
            ..self.spec.clone()
        }
    }
}

/// Who needs images: all snapshots.
pub(crate) fn holders(snapshots: &Path) -> Vec<Holder> {
    let folder = Folder::new(snapshots);
    let holder = |listed: msb_vmm::Listed| {
        let about = About::parse(&listed.name, &folder.peek(&listed.name)?).ok()?;
        let digest = about.image.parse().ok()?;
        let name = format!("the snapshot {}", listed.name);
        Some(Holder { digest, name })
    };
    folder.list().into_iter().filter_map(holder).collect()
}

impl Sandbox {
    /// Holds the sandbox: nothing is executed in it, and its clocks stand still, until
    /// [`Sandbox::resume`]. It keeps its memory.
    ///
    /// # Errors
    /// [`Error::Machine`] where the engine can't, [`Error::Gone`] when the sandbox has ended.
    pub async fn pause(&self) -> Result<(), Error> {
        self.link.machine(MachineRequest::Pause).await.map(drop)
    }

    /// Lets a sandbox go on that was paused, and sets its clock. One that runs is left as it
    /// is.
    ///
    /// # Errors
    /// As [`Sandbox::pause`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.link.machine(MachineRequest::Resume).await.map(drop)
    }

    /// Saves the sandbox under a name while it runs: its memory with everything that runs in
    /// it, and its disk. It stands still for as long as it takes to copy what it has changed
    /// of its memory, and goes on. [`Sandbox::from_snapshot`] makes others of what was saved.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: msb_sdk::Sandbox) -> Result<(), msb_sdk::Error> {
    /// use msb_sdk::Sandbox;
    ///
    /// sandbox.snapshot("warm").await?;
    /// let copy = Sandbox::from_snapshot("warm").create().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Machine`]: the name is taken, the sandbox is paused, its engine can't, a
    /// program can't be held, the host's disk is full.
    pub async fn snapshot(&self, name: impl Into<String>) -> Result<(), Error> {
        let name = name.into();
        let request = MachineRequest::Snapshot { name };
        self.link.machine(request).await.map(drop)
    }

    /// Describes a sandbox that goes on from a snapshot.
    pub fn from_snapshot(name: impl Into<String>) -> SnapshotBuilder {
        SnapshotBuilder {
            snapshot: name.into(),
            name: None,
            home: None,
            network: None,
            env: Vec::new(),
            ports: Vec::new(),
            secrets: Vec::new(),
        }
    }

    /// Makes `count` sandboxes that go on from where this one is, which goes on, too. Each
    /// has all that runs in this one, and is another: it has a host name, a machine id,
    /// addresses and random numbers of its own, and the connections of this one are reset in
    /// it. They are called like this one, with a number. Those of programs that this process
    /// talks to go on as well, but nobody hears what they write.
    ///
    /// They end with this process; [`Sandbox::fork_detached`] makes others.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: msb_sdk::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// for child in sandbox.fork(3).await? {
    ///     println!("{}", child.exec("hostname", [""; 0]).await?.stdout()?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::snapshot`] and [`SnapshotBuilder::create`]; none is left running then.
    pub async fn fork(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        self.fork_as(count, Values::default(), true).await
    }

    /// As [`Sandbox::fork`], with the values of secrets, by their names: of those that were
    /// given when this sandbox was made, and in place of what others would be read from.
    ///
    /// # Errors
    /// As [`Sandbox::fork`].
    pub async fn fork_with<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        count: usize,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Vec<Sandbox>, Error> {
        let values = Values::named(secrets)?;
        self.fork_as(count, values, true).await
    }

    /// As [`Sandbox::fork`], for sandboxes that go on when this process ends. Those of a
    /// sandbox with a disk are kept when they are stopped.
    ///
    /// # Errors
    /// As [`Sandbox::fork`].
    pub async fn fork_detached(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        self.fork_as(count, Values::default(), false).await
    }

    /// As [`Sandbox::fork_detached`], with the values of secrets as [`Sandbox::fork_with`]
    /// takes them.
    ///
    /// # Errors
    /// As [`Sandbox::fork`].
    pub async fn fork_detached_with<N: Into<String>, V: AsRef<[u8]>>(
        &self,
        count: usize,
        secrets: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Vec<Sandbox>, Error> {
        let values = Values::named(secrets)?;
        self.fork_as(count, values, false).await
    }

    async fn fork_as(
        &self,
        count: usize,
        values: Values,
        attached: bool,
    ) -> Result<Vec<Sandbox>, Error> {
        if !(1..=MAX_FORKS).contains(&count) {
            return Err(Error::InvalidSetting {
                setting: "the number of forks",
                value: count.to_string(),
                reason: format!("1 to {MAX_FORKS} are made at once"),
            });
        }
        // As for a start: what was given to this one is not kept.
        let values = values.complete(&self.spec.secrets)?;
        let bundle = GuestBundle::find(&self.home)?;
        let source = self.link.machine(MachineRequest::Fork { count }).await?;
        let source = source.ok_or_else(|| Error::gone("its supervisor is of another version"))?;
        let about = About::new(
            self.spec.clone(),
            self.image.digest().to_string(),
            String::new(),
        );
        let plan = Plan {
            home: self.home.clone(),
            bundle,
            source: source.clone(),
            image: self.image.clone(),
            spec: about.child(),
            values,
            stem: self.spec.name.clone(),
            attached,
        };
        let forked = plan.start_all(count).await;
        // It has served. A sandbox that has ended meanwhile has taken it along.
        let name = source.name;
        let _ = self.link.machine(MachineRequest::Forked { name }).await;
        forked
    }
}

/// Describes a sandbox that goes on from a snapshot. It is like the one that was saved, but
/// for what is said here.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until create is called"]
pub struct SnapshotBuilder {
    snapshot: String,
    name: Option<String>,
    home: Option<Home>,
    network: Option<NetworkPolicy>,
    env: Vec<(String, String)>,
    ports: Vec<String>,
    secrets: Vec<Secret>,
}

impl SnapshotBuilder {
    /// Its name; that of the snapshot with a number when not set.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where state lies; [`Home::from_env`] when not set.
    pub fn home(mut self, home: Home) -> Self {
        self.home = Some(home);
        self
    }

    /// What it may reach, instead of what the one that was saved may.
    pub fn network(mut self, policy: NetworkPolicy) -> Self {
        self.network = Some(policy);
        self
    }

    /// Sets an environment variable for programs that are started from here on.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Gives the value of one of its secrets: of one that was given when the sandbox was made
    /// that was saved, or in place of what it would be read from. The placeholders are others
    /// than the saved sandbox's, for programs that are started from here on.
    pub fn secret_value(mut self, name: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        self.secrets.push(Secret::env(name).value(value));
        self
    }

    /// Offers ports on this host, as [`SandboxBuilder::publish`](crate::SandboxBuilder::publish)
    /// does. Those of the sandbox that was saved are its own.
    pub fn publish(mut self, ports: impl Into<String>) -> Self {
        self.ports.push(ports.into());
        self
    }

    /// Starts the sandbox, and returns when all that was running when it was saved goes on in
    /// it. It ends with this process. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Machine`] when there is no such snapshot or it is damaged,
    /// [`Error::ImageGone`], and those of
    /// [`SandboxBuilder::create`](crate::SandboxBuilder::create).
    pub async fn create(self) -> Result<Sandbox, Error> {
        self.create_as(true).await
    }

    /// As [`SnapshotBuilder::create`], for a sandbox that goes on when this process ends. One
    /// with a disk is kept when it is stopped.
    ///
    /// # Errors
    /// As [`SnapshotBuilder::create`].
    pub async fn create_detached(self) -> Result<Sandbox, Error> {
        self.create_as(false).await
    }

    async fn create_as(self, attached: bool) -> Result<Sandbox, Error> {
        let started = move || {
            let plan = self.plan(attached)?;
            state::sweep(&plan.home);
            plan.start()
        };
        blocking(started).await?.sandbox()
    }

    fn plan(self, attached: bool) -> Result<Plan, Error> {
        let home = match self.home {
            Some(home) => home,
            None => Home::from_env()?,
        };
        let snapshot = Folder::new(home.snapshots()).open(&self.snapshot);
        let snapshot = snapshot.map_err(MachineFailure::from)?;
        let about = About::parse(&self.snapshot, snapshot.about())?;
        let image = home.store()?.get_digest(about.image.parse()?)?;
        let image = image.ok_or_else(|| Error::ImageGone {
            image: about.spec.image.clone(),
        })?;
        let mut spec = about.child();
        if let Some(policy) = self.network {
            spec.network = policy;
        }
        for (key, value) in self.env {
            spec.env.retain(|(existing, _)| *existing != key);
            spec.env.push((key, value));
        }
        spec.ports = self.ports;
        spec.name = self.name.unwrap_or_default();
        let mut values = Values::default();
        for secret in self.secrets {
            values.give(secret)?;
        }
        Ok(Plan {
            values: values.complete(&spec.secrets)?,
            bundle: GuestBundle::find(&home)?,
            source: Source {
                root: home.snapshots(),
                name: self.snapshot.clone(),
                memory: None,
                seats: Vec::new(),
            },
            home,
            image,
            spec,
            stem: self.snapshot,
            attached,
        })
    }
}

/// All that it takes to go on from a snapshot.
#[derive(Clone)]
struct Plan {
    home: Home,
    bundle: GuestBundle,
    source: Source,
    image: Image,
    /// Without a name, one is made up.
    spec: SandboxSpec,
    /// Those of its secrets.
    values: Values,
    /// What made-up names begin with.
    stem: String,
    attached: bool,
}

impl Plan {
    async fn start_all(self, count: usize) -> Result<Vec<Sandbox>, Error> {
        state::sweep(&self.home);
        // One after the other, so that their numbers are; the work is done at once.
        let mut starting = VecDeque::with_capacity(count);
        let mut failed = None;
        for number in 0..count {
            let this = self.clone();
            match blocking(move || this.folder()).await {
                Ok((dir, spec)) => {
                    let mut this = self.clone();
                    let seat = self.source.seats.get(number);
                    this.source.seats = seat.copied().into_iter().collect();
                    starting.push_back(tokio::spawn(blocking(move || this.start_in(dir, spec))));
                }
                // Those that are being started are waited for, to be ended.
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let mut forks = Vec::with_capacity(count);
        while let Some(started) = starting.pop_front() {
            let started = started
                .await
                .map_err(|error| Error::gone(error.to_string()));
            match started
                .and_then(|started| started)
                .and_then(Started::sandbox)
            {
                Ok(fork) => forks.push(fork),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let Some(error) = failed else {
            return Ok(forks);
        };
        for fork in forks {
            // What is wrong with these is not what is told.
            let _ = fork.kill().await;
        }
        Err(error)
    }

    fn start(self) -> Result<Started, Error> {
        let (dir, spec) = self.folder()?;
        self.start_in(dir, spec)
    }

    fn start_in(self, dir: SandboxDir, spec: SandboxSpec) -> Result<Started, Error> {
        // Without a disk there is nothing to keep.
        let keep = !self.attached && spec.disk_mib.is_some();
        let start = Start {
            home: self.home,
            bundle: self.bundle,
            record: Record::new(spec, self.image.digest().to_string(), keep),
            image: self.image,
            values: self.values,
            attached: self.attached,
            fresh: true,
            source: Some(self.source),
        };
        start.run(dir, &|_| {})
    }

    /// Takes a folder, and with it a name.
    fn folder(&self) -> Result<(SandboxDir, SandboxSpec), Error> {
        let mut spec = self.spec.clone();
        if !spec.name.is_empty() {
            spec.validate()?;
            return Ok((SandboxDir::create(&self.home, &spec.name)?, spec));
        }
        let mut taken = None;
        for number in 1..=MAX_NAMES {
            let number = format!("-{number}");
            let room = self.stem.len().min(MAX_STEM);
            spec.name = format!("{}{number}", &self.stem[..room]);
            spec.validate()?;
            match SandboxDir::create(&self.home, &spec.name) {
                Ok(dir) => return Ok((dir, spec)),
                Err(error @ (Error::NameTaken { .. } | Error::NameKept { .. })) => {
                    taken = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(taken.unwrap_or_else(|| Error::gone("there is no name for it")))
    }
}

/// What is left of a name for others to be made of it, in bytes: all are ASCII.
const MAX_STEM: usize = 57;

/// The snapshots of this host.
///
/// ```no_run
/// # fn demo() -> Result<(), msb_sdk::Error> {
/// use msb_sdk::{Home, Snapshots};
///
/// let snapshots = Snapshots::open(&Home::from_env()?);
/// for snapshot in snapshots.list() {
///     println!("{} of {:?}", snapshot.name, snapshot.sandbox);
/// }
/// snapshots.remove("warm")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Snapshots {
    folder: Folder,
}

/// A snapshot as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// The sandbox that was saved, if that can be read.
    pub sandbox: Option<String>,
    /// The image of that, if it can be read.
    pub image: Option<String>,
    /// When it was made.
    pub created: SystemTime,
    /// What it takes of the disk, in bytes.
    pub bytes: u64,
    /// What is wrong with it: it is not as it was saved.
    pub damage: Option<String>,
    /// Why else it can't be used, or not now: another version of msb made it, or it can't be
    /// read.
    pub unusable: Option<String>,
}

impl Snapshots {
    /// Those of a home.
    #[must_use]
    pub fn open(home: &Home) -> Self {
        Self {
            folder: Folder::new(home.snapshots()),
        }
    }

    /// Lists them by name. Each is looked at, and one that was moved is read as a whole.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotInfo> {
        let describe = |listed: msb_vmm::Listed| {
            let (mut damage, mut unusable) = (None, None);
            let spec = match self.folder.open(&listed.name) {
                Ok(snapshot) => match About::parse(&listed.name, snapshot.about()) {
                    Ok(about) => Some(about.spec),
                    Err(failure) => {
                        unusable = Some(failure.reason);
                        None
                    }
                },
                // Somebody has removed it meanwhile.
                Err(msb_vmm::Error::NoSnapshot { .. }) => return None,
                Err(error) => {
                    let is_damage = matches!(error, msb_vmm::Error::Snapshot { .. });
                    let reason = Some(MachineFailure::from(error).reason);
                    *(if is_damage {
                        &mut damage
                    } else {
                        &mut unusable
                    }) = reason;
                    None
                }
            };
            Some(SnapshotInfo {
                sandbox: spec.as_ref().map(|spec| spec.name.clone()),
                image: spec.map(|spec| spec.image),
                name: listed.name,
                created: listed.created,
                bytes: listed.bytes,
                damage,
                unusable,
            })
        };
        let listed = self.folder.list();
        listed.into_iter().filter_map(describe).collect()
    }

    /// Removes one. Sandboxes that go on from it are not touched.
    ///
    /// # Errors
    /// [`Error::Machine`] when there is none of that name.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let removed = self.folder.remove(name);
        Ok(removed.map_err(MachineFailure::from)?)
    }

    /// Lists those that are older than `age`, and those that are damaged. One that can't be
    /// used for another reason is not damaged.
    #[must_use]
    pub fn outdated(&self, age: Duration) -> Vec<SnapshotInfo> {
        let is_old = |info: &SnapshotInfo| info.created.elapsed().is_ok_and(|it| it > age);
        let mut listed = self.list();
        listed.retain(|info| info.damage.is_some() || is_old(info));
        listed
    }

    /// Removes those that are [outdated](Snapshots::outdated); returns their names.
    ///
    /// # Errors
    /// As [`Snapshots::remove`].
    pub fn prune(&self, age: Duration) -> Result<Vec<String>, Error> {
        let outdated = self.outdated(age).into_iter();
        let remove = |info: SnapshotInfo| self.remove(&info.name).map(|()| info.name);
        outdated.map(remove).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        let mut spec = SandboxSpec::new("one".into());
        spec.ports.push("80:80".into());
        spec.capture = Some("/frames".into());
        spec.env.push(("A".into(), "1".into()));
        About::new(spec, "sha256:0".into(), "root".into())
    }

    #[test]
    fn a_child_has_nothing_that_only_one_can_have() {
        let child = about().child();
        assert_eq!(child.name, "");
        assert!(child.ports.is_empty() && child.capture.is_none());
        assert_eq!(child.env, [("A".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn what_is_of_a_newer_version_is_refused() {
        let read = About::parse("s", &about().to_json()).expect("it was written here");
        assert_eq!(read.spec, about().spec);
        let mut newer = about();
        newer.version += 1;
        // Its agent would not be understood.
        let mut foreign = about();
        foreign.protocol += 1;
        for text in [&newer.to_json(), &foreign.to_json(), "", "{}", "[]"] {
            let failure = About::parse("s", text).expect_err(text);
            assert!(failure.reason.contains("\"s\""), "{failure:?}");
        }
    }
}
