//! Describing a sandbox, and making it.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use msb_guest_agent::wire::FrameDecoder;
use msb_oci::{Image, PullPolicy};
use msb_vmm::{EngineKind, Isolation};

use crate::control::{self, FromSupervisor, Launch, Ready};
use crate::error::Error;
use crate::home::{GuestBundle, Home};
use crate::image::Images;
use crate::link::Link;
use crate::machine::Source;
use crate::network::{NetworkLimits, NetworkPolicy};
use crate::patch::Patch;
use crate::progress::Progress;
use crate::record::{self, Record};
use crate::sandbox::Sandbox;
use crate::secret::{Secret, Values};
use crate::spec::{DEFAULT_DISK_MIB, SandboxSpec};
use crate::state::{self, SandboxDir};
use crate::supervisor;

type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Describes a sandbox. Everything but the image has a default.
#[derive(Clone)]
#[must_use = "a builder does nothing until create is called"]
pub struct SandboxBuilder {
    spec: SandboxSpec,
    pull: PullPolicy,
    home: Option<Home>,
    progress: Option<OnProgress>,
    keep: Option<bool>,
    /// Those of `spec.secrets`.
    secrets: Vec<Secret>,
}

impl From<SandboxSpec> for SandboxBuilder {
    /// Begins with a description that was read from somewhere, as by
    /// [`SandboxSpec::from_file`].
    fn from(spec: SandboxSpec) -> Self {
        Self {
            spec,
            pull: PullPolicy::Missing,
            home: None,
            progress: None,
            keep: None,
            secrets: Vec::new(),
        }
    }
}

impl SandboxBuilder {
    pub(crate) fn new(name: String) -> Self {
        SandboxSpec::new(name).into()
    }

    /// What has been described so far.
    #[must_use]
    pub fn spec(&self) -> &SandboxSpec {
        &self.spec
    }

    /// The image, as container tools name it: `python:3.12`,
    /// `localhost:5000/app@sha256:…`.
    pub fn image(mut self, reference: impl Into<String>) -> Self {
        self.spec.image = reference.into();
        self
    }

    /// Virtual processors; 1 when not set.
    pub fn cpus(mut self, count: u8) -> Self {
        self.spec.cpus = count;
        self
    }

    /// Guest memory in MiB; 512 when not set.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.spec.memory_mib = mib;
        self
    }

    /// Keeps what the guest writes on a disk of this many MiB, sparse on the
    /// host, instead of in guest memory.
    pub fn disk_mib(mut self, mib: u32) -> Self {
        self.spec.disk_mib = Some(mib);
        self
    }

    /// Sets an environment variable for every program.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.spec.env.retain(|(existing, _)| *existing != key);
        self.spec.env.push((key, value.into()));
        self
    }

    /// Working folder instead of the image's; made when it is missing.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.spec.workdir = Some(path.into());
        self
    }

    /// User instead of the image's: `name|uid[:group|gid]`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.spec.user = Some(user.into());
        self
    }

    /// What the guest may reach; [`NetworkPolicy::public_only`] when not set.
    pub fn network(mut self, policy: NetworkPolicy) -> Self {
        self.spec.network = policy;
        self
    }

    /// How much of the network the guest may use; as much as there is when not set.
    pub fn network_limits(mut self, limits: NetworkLimits) -> Self {
        self.spec.network_limits = limits;
        self
    }

    /// Adds a server that the guest's names are asked of; without any, those of the host's
    /// `/etc/resolv.conf` are asked.
    pub fn resolver(mut self, server: SocketAddr) -> Self {
        self.spec.resolvers.push(server);
        self
    }

    /// Writes every frame between the guest and its network to a file, for Wireshark and
    /// its kin (pcapng). Only its owner may read it; it ends at a gibibyte.
    pub fn capture(mut self, file: impl Into<PathBuf>) -> Self {
        self.spec.capture = Some(file.into());
        self
    }

    /// Gives the guest a secret that it can use and not see; one of the same name is replaced.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secrets.retain(|old| old.spec.name != secret.spec.name);
        self.secrets.push(secret);
        self
    }

    /// Takes all TLS connections of the guest apart, not only those that secrets and rules
    /// about requests need.
    pub fn tls_intercept_all(mut self) -> Self {
        self.spec.tls.intercept_all = true;
        self
    }

    /// Leaves the TLS connections to a host alone, unless a rule is about its requests:
    /// a name, or a name with a dot in front for it and all names below it.
    pub fn tls_passthrough(mut self, host: impl Into<String>) -> Self {
        self.spec.tls.passthrough.push(host.into());
        self
    }

    /// Verifies servers, whose connections are taken apart, with the authorities of a PEM
    /// file beside those of this host.
    pub fn tls_authority(mut self, file: impl Into<PathBuf>) -> Self {
        self.spec.tls.authorities.push(file.into());
        self
    }

    /// Offers a TCP port of the guest on a port of the host's loopback address; 0 is any
    /// port that is free, which [`Sandbox::ports`] tells.
    pub fn port(self, host: u16, guest: u16) -> Self {
        self.publish(format!("{host}:{guest}"))
    }

    /// Offers ports of the guest on this host: `[BIND:]HOST:GUEST[/udp]`, where `BIND` is
    /// an address and both ports may be ranges of the same length.
    pub fn publish(mut self, ports: impl Into<String>) -> Self {
        self.spec.ports.push(ports.into());
        self
    }

    /// Adds a change to the image's files, which is made before anything runs. Changes are
    /// made in the order in which they are added.
    pub fn patch(mut self, patch: Patch) -> Self {
        self.spec.patches.push(patch);
        self
    }

    /// Adds a script that programs of the guest find on their `PATH`, ahead of the image's
    /// programs. Its first line says what runs it, as `#!/bin/sh`.
    pub fn script(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        let name = name.into();
        self.spec.scripts.retain(|(existing, _)| *existing != name);
        self.spec.scripts.push((name, text.into()));
        self
    }

    /// When the registry is asked; [`PullPolicy::Missing`] when not set.
    pub fn pull(mut self, policy: PullPolicy) -> Self {
        self.pull = policy;
        self
    }

    /// Refuses to start with weaker isolation.
    pub fn min_isolation(mut self, level: Isolation) -> Self {
        self.spec.require_hardware = level == Isolation::Hardware;
        self
    }

    /// Runs on this engine instead of the best that the host can run.
    pub fn engine(mut self, engine: EngineKind) -> Self {
        self.spec.engine = Some(engine.to_string());
        self
    }

    /// Runs a program at each start, beside those that come later; the image's own if there
    /// are no words. It gets no input, and what it writes is in the sandbox's
    /// [logs](crate::SandboxHandle::logs). When it ends, the sandbox goes on.
    pub fn command<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.spec.command = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Whether the sandbox and its disk stay when it is stopped, to be started again; as
    /// long as nothing else is said, a detached one is kept and an attached one is not.
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Where state lies; [`Home::from_env`] when not set.
    pub fn home(mut self, home: Home) -> Self {
        self.home = Some(home);
        self
    }

    /// Is called with each step, from any thread.
    pub fn on_progress(mut self, callback: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(callback));
        self
    }

    /// Fetches the image if need be, starts the sandbox, and returns when
    /// programs can be run in it. Must be called in a tokio runtime.
    ///
    /// On QEMU, the first start with some number of cpus and amount of memory boots a
    /// guest to make a template from, which takes a second or two.
    ///
    /// # Errors
    /// Wrong settings, an image that can't be had, a host that lacks something:
    /// see [`Error`]. Nothing is left behind.
    pub async fn create(self) -> Result<Sandbox, Error> {
        self.create_as(true).await
    }

    /// As [`SandboxBuilder::create`], for a sandbox that goes on when this process ends, and
    /// when what is returned is dropped. [`Sandbox::get`] finds it by its name.
    ///
    /// # Errors
    /// As [`SandboxBuilder::create`].
    pub async fn create_detached(self) -> Result<Sandbox, Error> {
        self.create_as(false).await
    }

    async fn create_as(mut self, attached: bool) -> Result<Sandbox, Error> {
        let keep = self.keep.unwrap_or(!attached);
        if keep {
            self.spec.disk_mib.get_or_insert(DEFAULT_DISK_MIB);
        }
        // Fetching and starting are blocking work.
        let started = move || self.create_blocking(attached, keep);
        blocking(started).await?.sandbox()
    }

    /// Checks the spec and reads the secrets. The supervisor has another working folder.
    fn complete(&mut self) -> Result<Values, Error> {
        let mut values = Values::default();
        for secret in self.secrets.drain(..) {
            // One that a file describes gives way.
            let name = &secret.spec.name;
            self.spec.secrets.retain(|old| old.name != *name);
            self.spec.secrets.push(values.give(secret)?);
        }
        self.spec.validate()?;
        let files = self.spec.capture.iter_mut();
        for file in files.chain(&mut self.spec.tls.authorities) {
            *file = std::path::absolute(&*file).map_err(|error| Error::InvalidSetting {
                setting: "a file",
                value: file.display().to_string(),
                reason: error.to_string(),
            })?;
        }
        for secret in &mut self.spec.secrets {
            secret
                .make_absolute()
                .map_err(|error| Error::InvalidSetting {
                    setting: "the source of a secret",
                    value: secret.name.clone(),
                    reason: error.to_string(),
                })?;
        }
        values.complete(&self.spec.secrets)
    }

    fn create_blocking(mut self, attached: bool, keep: bool) -> Result<Started, Error> {
        let values = self.complete()?;
        let home = match self.home {
            Some(home) => home,
            None => Home::from_env()?,
        };
        let bundle = GuestBundle::find(&home)?;
        let progress = self.progress.unwrap_or_else(|| Arc::new(|_| {}));
        let image = Images::open(&home)?.pull_blocking(&self.spec.image, self.pull, &|event| {
            progress(Progress::Pull(event));
        })?;
        // Nobody removes it until the record below says that it is needed.
        let _lease = image.lease()?;
        state::sweep(&home);
        let dir = SandboxDir::create(&home, &self.spec.name)?;
        let record = Record::new(self.spec, image.digest().to_string(), keep);
        let start = Start {
            home,
            bundle,
            record,
            image,
            values,
            attached,
            fresh: true,
            source: None,
        };
        start.run(dir, &*progress)
    }
}

/// Everything that the start of a sandbox takes.
pub(crate) struct Start {
    pub(crate) home: Home,
    pub(crate) bundle: GuestBundle,
    pub(crate) record: Record,
    pub(crate) image: Image,
    /// Those of its secrets that the supervisor does not read itself.
    pub(crate) values: Values,
    pub(crate) attached: bool,
    /// Whether it has never run.
    pub(crate) fresh: bool,
    /// The snapshot that it goes on from.
    pub(crate) source: Option<Source>,
}

/// A sandbox that runs, before anything of this process looks after it.
pub(crate) struct Started {
    pub(crate) home: Home,
    pub(crate) spec: SandboxSpec,
    pub(crate) image: Image,
    pub(crate) socket: UnixStream,
    pub(crate) ready: Ready,
    /// Whether its supervisor waits to hear that somebody knows of it.
    pub(crate) new: bool,
    /// Whether it ends at once when its socket is closed.
    pub(crate) fleeting: bool,
}

impl Started {
    /// Must be called in a tokio runtime. Whoever gives up before this leaves no sandbox.
    pub(crate) fn sandbox(mut self) -> Result<Sandbox, Error> {
        if self.new {
            // A supervisor that is gone is noticed with the first request.
            let _ = control::adopt(&mut self.socket);
        }
        Ok(Sandbox {
            home: self.home,
            spec: self.spec,
            image: self.image,
            link: Link::start(self.socket)?,
            report: self.ready.into(),
            fleeting: self.fleeting,
        })
    }
}

impl Start {
    /// Starts the sandbox in its folder.
    pub(crate) fn run(
        self,
        dir: SandboxDir,
        progress: &dyn Fn(Progress),
    ) -> Result<Started, Error> {
        if self.fresh {
            self.record.begin(dir.path())?;
        }
        let launch = Launch {
            spec: self.record.spec.clone(),
            image: self.record.image.clone(),
            home: self.home.path().to_owned(),
            kernel: self.bundle.kernel,
            initramfs: self.bundle.initramfs,
            attached: self.attached,
            keep: self.record.keep,
            fresh: self.fresh,
            source: self.source,
        };
        // Its processes do not inherit what this one has in the open.
        let hidden = self.values.variables(&launch.spec.secrets);
        let mut socket = supervisor::spawn(&dir, self.attached, hidden)?;
        let started = control::send_launch(&mut socket, &launch, &self.values)
            .map_err(|source| Error::Supervisor { source })
            .and_then(|()| await_ready(&mut socket, progress))
            .and_then(|ready| {
                if self.fresh && self.record.keep {
                    record::keep(dir.path())?;
                }
                Ok(ready)
            });
        match started {
            Ok(ready) => Ok(Started {
                home: self.home,
                spec: self.record.spec,
                image: self.image,
                socket,
                ready,
                new: !self.attached,
                fleeting: self.attached && !self.record.keep,
            }),
            Err(error) => {
                // The supervisor removes the folder, unless it was killed.
                drop(socket);
                if self.fresh {
                    dir.remove_own();
                }
                let home = self.home.path();
                Err(suspect_disk(error, free_mib(home), home))
            }
        }
    }
}

/// Does blocking work on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Supervisor {
        source: io::Error::other(error),
    })?
}

/// Free space, MiB, that a start needs at the most: a machine template takes
/// fifty.
const ENOUGH_MIB: u64 = 96;

/// A VMM whose memory is a file on a full disk ends without a word: what can
/// be said is how full the disk is.
fn suspect_disk(mut error: Error, free_mib: Option<u64>, home: &Path) -> Error {
    if let (Error::Start { hint, .. }, Some(free @ ..ENOUGH_MIB)) = (&mut error, free_mib) {
        hint.get_or_insert_with(|| {
            format!(
                "only {free} MiB are free at {}, which may be why: free some space, or set \
                 MSB_HOME to a folder on another disk",
                home.display()
            )
        });
    }
    error
}

fn free_mib(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize) >> 20)
}

impl std::fmt::Debug for SandboxBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SandboxBuilder")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

/// Passes progress on until the supervisor is ready or has failed.
pub(crate) fn await_ready(
    socket: &mut UnixStream,
    progress: &dyn Fn(Progress),
) -> Result<Ready, Error> {
    let mut decoder = FrameDecoder::new();
    // Nothing but what the supervisor says comes before the first request.
    let mut chunk = [0; 4096];
    loop {
        while let Some(frame) = decoder.next_frame().map_err(|_| protocol())? {
            match control::decode(&frame).ok_or_else(protocol)? {
                FromSupervisor::Progress(step) => progress(Progress::Vm(step)),
                FromSupervisor::Ready(ready) => return Ok(ready),
                FromSupervisor::Failed { reason, hint } => {
                    return Err(Error::Start { reason, hint });
                }
                FromSupervisor::Network { .. }
                | FromSupervisor::Ports(_)
                | FromSupervisor::Machine(_)
                | FromSupervisor::Metrics(_)
                | FromSupervisor::Life(_)
                | FromSupervisor::Sessions(_)
                | FromSupervisor::Kept { .. }
                | FromSupervisor::Ended { .. } => {
                    return Err(protocol());
                }
            }
        }
        match socket.read(&mut chunk) {
            Ok(0) => {
                return Err(Error::gone(
                    "its supervisor ended before the guest was ready",
                ));
            }
            Ok(count) => decoder.extend(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Supervisor { source }),
        }
    }
}

fn protocol() -> Error {
    Error::Supervisor {
        source: io::Error::new(io::ErrorKind::InvalidData, "its answer makes no sense"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_does_not_start_on_a_full_disk_is_told_so() {
        let told = |hint: Option<&str>, free_mib| {
            let error = Error::Start {
                reason: "the VMM was killed by signal 7".into(),
                hint: hint.map(Into::into),
            };
            suspect_disk(error, free_mib, Path::new("/state")).hint()
        };
        let hint = told(None, Some(3)).expect("a hint");
        assert!(hint.contains("only 3 MiB are free at /state"), "{hint}");
        assert_eq!(told(None, Some(ENOUGH_MIB)), None);
        assert_eq!(told(None, None), None);
        assert_eq!(told(Some("known"), Some(3)).as_deref(), Some("known"));
    }
}
