//! Templates: machines booted once, saved, and started again as often as needed.
//!
//! A template is a machine that was booted until its guest waited for orders, and then
//! saved: guest memory in a sparse file, device state in a small one. A start maps the
//! memory copy-on-write, so that it costs what the copy touches, however large the guest.
//!
//! What all copies share must be made different by the caller before anything else
//! runs in them: random generator, clock, names, addresses. Disks need no care here: a
//! template is made with placeholders, which the guest is told to let go of before the
//! save (that is part of getting ready).
//!
//! A *variant* is a template that was started, brought further, and saved again. Its
//! read-only disks are not placeholders: the guest keeps its hold on them.
//!
//! [`key`] decides which machines share a template, [`store`] keeps them on disk.
//!
//! # Trust
//!
//! QEMU insists on opening the memory file for writing, although it maps it privately. In
//! place of what it opens it is handed a descriptor that can only be read
//! ([`Confinement::memory`](crate::Confinement::memory) says whether this host can do that).
//!
//! Elsewhere a VMM that was taken over could write to it. The store remembers the file's
//! change time, which no unprivileged process can set, and rebuilds a template whose files
//! are no longer as they were saved. That keeps later starts from a changed template, not the
//! copies that run already: they see what they have not touched yet change. And it takes a
//! file system that notes writes through a mapping: on tmpfs a page that was read first can be
//! changed unnoticed, so a store does not belong there.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::engine::qemu::{Launched, Origin, Platform, Qemu, layout};
use crate::error::Error;
use crate::machine::Machine;
use crate::snapshot::Snapshot;
use crate::vm::Vm;

pub(crate) mod copy;
pub(crate) mod key;
pub(crate) mod store;

use key::Key;
use store::{Draft, Files, Store};

/// What QEMU says of a state that it cannot load. A template that is refused, for a reason
/// that its key does not cover, is dropped so that the next start makes a new one.
const UNLOADABLE: &str = "load of migration failed";

/// What is being done about a template, for progress displays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Another thread or process makes the template.
    Waiting,
    /// The guest boots.
    Booting,
    /// The guest is being saved.
    Saving,
    /// The files are being written out to the disk.
    Syncing,
    /// The template is complete and about to be put in its place.
    Publishing,
}

/// A store of templates in a folder, safe to use from any number of threads and
/// processes at once.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use msb_vmm::{Engine, EngineOptions, Machine, PortName};
///
/// let machine = Machine {
///     ports: vec![PortName::try_from("msb.agent")?],
///     ..Machine::new("guest/vmlinux", "guest/initramfs.cpio")
/// };
/// let templates = Engine::choose(EngineOptions::default())?.templates("/home/me/.msb/templates")?;
/// let template = templates.ensure(
///     &machine,
///     |step| eprintln!("{step:?}"),
///     |_agent| Ok::<(), std::io::Error>(()), // wait here until the guest says that it is ready
/// )?;
/// let mut vm = template.start(&machine)?;
/// let agent = vm.take_port("msb.agent");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Templates {
    qemu: Qemu,
    store: Store,
}

impl Templates {
    pub(crate) fn new(qemu: Qemu, root: PathBuf) -> Self {
        Templates {
            qemu,
            store: Store::new(root),
        }
    }

    /// Returns the template for `machine` when there is an undamaged one.
    ///
    /// # Errors
    ///
    /// [`Error::NoPort`] and what [`Machine::validate`] finds; [`Error::Unreadable`] for the
    /// machine's files. A damaged template is not an error, it is none.
    pub fn find(&self, machine: &Machine) -> Result<Option<Template>, Error> {
        let (key, plan) = self.plan(machine)?;
        Ok(self
            .store
            .open(&key)
            .map(|files| self.template(key, plan, files)))
    }

    /// Returns the template for `machine`, and makes it when there is none, when it is
    /// damaged or when a part that it depends on has changed.
    ///
    /// `ready` is called at most once, with the machine's first port, in a guest that has
    /// just been started. It returns when the guest is fit to be saved: waiting, and
    /// without a hold on its disks. It should bound its own waiting.
    ///
    /// Of several callers at once one makes the template, the others wait for it.
    ///
    /// # Errors
    ///
    /// Those of [`Templates::find`], of starting a machine and of writing files, and
    /// [`Error::NotReady`] when `ready` fails.
    pub fn ensure<E>(
        &self,
        machine: &Machine,
        mut progress: impl FnMut(Step),
        ready: impl FnOnce(&UnixStream) -> Result<(), E>,
    ) -> Result<Template, Error>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (key, plan) = self.plan(machine)?;
        if let Some(files) = self.store.open(&key) {
            return Ok(self.template(key, plan, files));
        }
        let _lock = self.store.lock(&key, || progress(Step::Waiting))?;
        if let Some(files) = self.store.open(&key) {
            return Ok(self.template(key, plan, files));
        }
        let draft = self.store.draft(&key, machine.memory.bytes())?;
        progress(Step::Booting);
        let launched = self
            .qemu
            .boot_template(machine, &plan.platform, draft.ram())?;
        get_ready(&launched, ready)?;
        let files = self.finish(launched, draft, &mut progress)?;
        self.store.prune(&[&key]);
        Ok(self.template(key, plan, files))
    }

    /// Returns the variant `variant` of the template for `machine`, as
    /// [`ensure_variant`](Self::ensure_variant) makes it, when there is an undamaged one.
    ///
    /// # Errors
    ///
    /// Those of [`Templates::find`].
    pub fn find_variant(
        &self,
        machine: &Machine,
        variant: &str,
    ) -> Result<Option<Template>, Error> {
        let (base, plan) = self.plan(machine)?;
        let key = base.variant(variant);
        let files = self.store.open(&key);
        Ok(files.map(|files| self.template(key, plan, files)))
    }

    /// Returns a variant of a template: started with the disks of `machine`, brought
    /// further by `ready`, and saved again under a key made of that of `base` and `variant`.
    ///
    /// The guest may keep its hold on read-only disks. `variant` so has to name their
    /// content, and whatever else `ready` makes depend on. Writable disks are placeholders,
    /// as in any template.
    ///
    /// # Errors
    ///
    /// Those of [`Templates::ensure`] and [`Template::start`].
    pub fn ensure_variant<E>(
        &self,
        base: &Template,
        machine: &Machine,
        variant: &str,
        mut progress: impl FnMut(Step),
        ready: impl FnOnce(&UnixStream) -> Result<(), E>,
    ) -> Result<Template, Error>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        base.check(machine)?;
        let key = base.key.variant(variant);
        let _lock = self.store.lock(&key, || progress(Step::Waiting))?;
        if let Some(files) = self.store.open(&key) {
            return Ok(self.template(key, base.plan.clone(), files));
        }
        let draft = self.store.draft(&key, machine.memory.bytes())?;
        progress(Step::Booting);
        self.copy_memory(base, &draft)?;
        let state = base.files.fresh_state()?;
        let mut launched =
            self.qemu
                .resume_template(machine, &base.plan.platform, draft.ram(), &state)?;
        get_ready(&launched, ready)?;
        self.qemu.detach_images(&mut launched, machine)?;
        let files = self.finish(launched, draft, &mut progress)?;
        self.store.prune(&[&key, &base.key]);
        Ok(self.template(key, base.plan.clone(), files))
    }

    /// Copies the memory of `base`. The copy becomes a template of its own, so what a
    /// taken-over VMM writes meanwhile must not get into it.
    fn copy_memory(&self, base: &Template, draft: &Draft) -> Result<(), Error> {
        let copied = copy::sparse(&base.files.ram, draft.ram()).and_then(|()| {
            if base.files.is_intact() {
                return Ok(());
            }
            self.store.discard(&base.key);
            Err(io::Error::other("it was changed meanwhile"))
        });
        copied.map_err(|source| Error::Os {
            action: "copy a template's memory",
            source,
        })
    }

    /// Saves a guest that is ready and puts it into the store.
    fn finish(
        &self,
        mut launched: Launched,
        draft: Draft,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Files, Error> {
        progress(Step::Saving);
        self.qemu.save(&mut launched, draft.state())?;
        drop(launched);
        progress(Step::Syncing);
        let sealed = draft.seal()?;
        progress(Step::Publishing);
        sealed.publish()
    }

    fn template(&self, key: Key, plan: Plan, files: Files) -> Template {
        Template {
            store: self.store.clone(),
            key,
            plan,
            files,
        }
    }

    /// Checks the machine and computes what its template depends on.
    fn plan(&self, machine: &Machine) -> Result<(Key, Plan), Error> {
        machine.validate()?;
        if machine.ports.is_empty() {
            return Err(Error::NoPort);
        }
        let platform = self.qemu.platform(self.store.tsc_rate());
        let layout = layout(machine, &platform);
        let key = Key::of(&self.qemu, machine, &layout, &self.store)?;
        let kind = Key::kind(&self.qemu, &layout, &self.store)?;
        Ok((
            key,
            Plan {
                qemu: self.qemu.clone(),
                platform,
                layout,
                kind: kind.as_str().to_owned(),
            },
        ))
    }

    /// Starts a copy of a machine that was saved while it ran, with the disks of `machine`,
    /// which must otherwise be like it. Writable disks are copies of those of the snapshot:
    /// [`Snapshot::copy_disk`].
    ///
    /// Returns when the copy runs, in the state the guest was saved in. Everything in it
    /// takes itself for the guest that was saved: nothing but what is held back in it until
    /// it has an identity of its own should run.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMachine`] when layout, QEMU or processor differ, [`Error::Snapshot`] when
    /// its files are no longer as they were saved, and those of [`crate::Engine::boot`].
    pub fn start_snapshot(&self, snapshot: &Snapshot, machine: &Machine) -> Result<Vm, Error> {
        let (_, plan) = self.plan(machine)?;
        if snapshot.kind() != plan.kind {
            return Err(Error::OtherMachine {
                what: "the VMM, the host's processor, vcpus, memory or devices",
            });
        }
        let state = snapshot.fresh_state()?;
        let origin = Origin::Fork {
            ram: snapshot.ram(),
            state: &state,
        };
        let started = plan
            .qemu
            .restore(machine, &plan.platform, &origin, &plan.kind);
        snapshot.check_ram()?;
        started
    }
}

fn get_ready<E>(
    launched: &Launched,
    ready: impl FnOnce(&UnixStream) -> Result<(), E>,
) -> Result<(), Error>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let port = launched.first_port().ok_or(Error::NoPort)?;
    ready(port).map_err(|error| Error::NotReady {
        source: error.into(),
    })
}

/// What a template and its copies have in common, besides the files.
#[derive(Clone, Debug)]
struct Plan {
    qemu: Qemu,
    platform: Platform,
    layout: Vec<String>,
    /// What a machine has to be like to go on from a copy that was saved.
    kind: String,
}

/// A template that is open: it can be started even after the store dropped it.
#[derive(Debug)]
pub struct Template {
    store: Store,
    key: Key,
    plan: Plan,
    files: Files,
}

impl Template {
    /// Starts a copy with the disks of `machine`, which must otherwise be like the one
    /// the template was made of.
    ///
    /// Returns when the copy runs, in the state the guest was saved in. Its first port is
    /// connected, and nothing is left on it of what was said to the template.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMachine`] when the machine's layout differs, and those of [`crate::Engine::boot`].
    pub fn start(&self, machine: &Machine) -> Result<Vm, Error> {
        self.check(machine)?;
        // Each copy reads the state from its beginning, at its own pace.
        let state = self.files.fresh_state()?;
        let plan = &self.plan;
        let origin = Origin::Restore {
            ram: &self.files.ram,
            state: &state,
        };
        let started = plan
            .qemu
            .restore(machine, &plan.platform, &origin, &plan.kind);
        if matches!(&started, Err(Error::ExitedEarly { stderr, .. }) if stderr.contains(UNLOADABLE))
        {
            self.store.discard(&self.key);
        }
        started
    }

    fn check(&self, machine: &Machine) -> Result<(), Error> {
        machine.validate()?;
        if layout(machine, &self.plan.platform) == self.plan.layout {
            return Ok(());
        }
        Err(Error::OtherMachine {
            what: "vcpus, memory, devices or command line",
        })
    }

    /// Returns the template's key, in hex.
    pub fn key(&self) -> &str {
        self.key.as_str()
    }
}
