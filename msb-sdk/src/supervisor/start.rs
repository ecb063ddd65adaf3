//! From a launch message to a configured guest.
//!
//! Blocking, on the main thread: the VMM asks to die with the thread that
//! started it, and there is nothing else to do meanwhile.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use msb_guest_agent::message::{
    ByteString, Configured, DiskName, Entropy, GuestConfig, NetworkSpec, RootSpec, Upper,
};
use msb_guest_agent::setup;
use msb_oci::{Image, Lease};
use msb_vmm::{
    Disk, DiskFormat, Engine, EngineKind, EngineOptions, Hold, Isolation, Machine, MemorySize,
    PortName, Snapshot, Step, Vcpus, Vm,
};

use super::machine::{Keeper, PASSING, wall_clock_ns};
use super::meter::Meter;
use super::network::{Wire, Wiring};
use super::{patch, restore, template};
use crate::control::{Launch, Ready};
use crate::error::chain;
use crate::home::Home;
use crate::patch::SCRIPTS;
use crate::progress::VmStep;
use crate::secret::Values;
use crate::state::SandboxDir;

/// The console port that is the agent link.
const AGENT_PORT: &str = "msb.agent";

/// The sandbox's own disk, in its folder.
const DISK: &str = "disk";

/// Longer than any guest needs, even on a loaded host under emulation; a guest
/// that hangs is given up.
pub(super) const AGENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A guest that is configured and waits for requests.
pub(super) struct Running {
    pub(super) keeper: Keeper,
    pub(super) agent: UnixStream,
    pub(super) ready: Ready,
    pub(super) wire: Wire,
    /// Keeps the image's files while the guest reads them.
    pub(super) lease: Lease,
    /// The program that the supervisor runs in it.
    pub(super) command: Option<Vec<String>>,
}

impl Running {
    /// What reads what the host sees of it.
    pub(super) fn meter(&self, dir: &SandboxDir) -> Meter {
        let disk = dir.path().join(DISK);
        Meter {
            vmm: self.ready.vmm_pid,
            disk: disk.exists().then_some(disk),
            traffic: self.wire.traffic(),
        }
    }
}

/// Why there is none, in words for the user.
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) hint: Option<String>,
}

/// Starts the sandbox that `launch` describes.
pub(super) fn start(
    (launch, values): (&Launch, Values),
    home: &Home,
    dir: &SandboxDir,
    progress: &mut dyn FnMut(VmStep),
) -> Result<Running, Failure> {
    let (image, lease) = image(launch, home)?;
    let source = launch.source.as_ref();
    let snapshot = source.map(|source| restore::open(source, &image));
    let snapshot = snapshot.transpose()?;
    let wiring = Wiring::new(&launch.spec, &values, source)?;
    let seats = wiring.seats();
    drop(values);
    let mut machine = machine(launch, dir, &image, snapshot.as_ref())?;
    machine.network = Some(wiring.card());
    // The name is in use for as long as anything can write to the disk.
    machine.hold = Some(Hold::new(dir.lock().map_err(Failure::io)?));
    let mut options = EngineOptions::default();
    options.kvm_cache = Some(home.path().join("kvm.json"));
    if launch.spec.require_hardware {
        options.min_isolation = Isolation::Hardware;
    }
    let kind = launch.spec.engine.as_deref().map(str::parse);
    options.kind = kind.transpose().map_err(vmm)?;
    let has_overlay = |disk: &Disk| disk.format == DiskFormat::Overlay;
    if snapshot.is_some() || machine.disks.iter().any(has_overlay) {
        options.kind = Some(restore::engine(options.kind)?);
    }
    let engine = Engine::choose(options).map_err(vmm)?;

    let (begin, mut vm) = match &snapshot {
        Some(snapshot) => restore::boot(&engine, home, &machine, snapshot)?,
        None => boot(&engine, launch, home, &machine, &image, progress)?,
    };
    let spec = wiring.spec();
    let mut wire = wiring.connect(&mut vm)?;
    let mut agent = vm
        .take_port(AGENT_PORT)
        .ok_or_else(|| Failure::bug("the machine has no agent port"))?;
    agent
        .set_read_timeout(Some(AGENT_TIMEOUT))
        .map_err(Failure::io)?;
    let config = guest_config(launch, &image, spec, &wire)?;
    let (configured, agent_time) = match snapshot {
        Some(_) => go_on(&mut agent, config, begin),
        None => configure(&mut agent, config, begin),
    }
    .map_err(|error| guest(&error, &mut vm))?;
    agent.set_read_timeout(None).map_err(Failure::io)?;
    let configured_time = begin.elapsed() - agent_time;
    // A disk that was kept has them.
    if !configured.resumed {
        patch::apply(&agent, &launch.spec)?;
    }

    let ports = wire.publish_all(&launch.spec.ports)?;
    let ready = Ready {
        engine: vm.engine().to_string(),
        hardware: vm.isolation() == Isolation::Hardware,
        vmm_pid: vm.pid(),
        agent: agent_time,
        configured: configured_time,
        ports,
    };
    let about = restore::about(launch, &image)?.to_json();
    let passing = dir.path().join(PASSING);
    let keeper = Keeper::new(vm, home.snapshots(), passing, about, seats);
    let keeper = keeper.map_err(Failure::io)?;
    Ok(Running {
        keeper,
        agent,
        ready,
        wire,
        lease,
        command: command(launch, &image),
    })
}

/// Makes a guest that waits for orders the sandbox; says when it first answered.
fn configure(
    agent: &mut UnixStream,
    config: GuestConfig,
    begin: Instant,
) -> Result<(Configured, Duration), msb_guest_agent::Error> {
    setup::hello(agent)?;
    let answered = begin.elapsed();
    Ok((setup::configure(agent, config)?, answered))
}

/// Makes a guest that was saved while it was held the sandbox, and only then lets its
/// programs go on.
fn go_on(
    agent: &mut UnixStream,
    config: GuestConfig,
    begin: Instant,
) -> Result<(Configured, Duration), msb_guest_agent::Error> {
    let configured = setup::become_other(agent, config)?;
    let answered = begin.elapsed();
    setup::thaw(agent)?;
    Ok((configured, answered))
}

/// What is run at the start; the image's own where none is named, if it has one.
fn command(launch: &Launch, image: &Image) -> Option<Vec<String>> {
    let config = image.config();
    let own = || {
        config
            .entrypoint
            .iter()
            .chain(&config.cmd)
            .cloned()
            .collect()
    };
    // Where a sandbox goes on it runs already.
    let named = launch
        .spec
        .command
        .clone()
        .filter(|_| launch.source.is_none())?;
    let words: Vec<String> = if named.is_empty() { own() } else { named };
    (!words.is_empty()).then_some(words)
}

/// Starts the machine from a template, or boots it where the engine has none; says when
/// that began. A guest that boots mounts its root when it is configured.
fn boot(
    engine: &Engine,
    launch: &Launch,
    home: &Home,
    machine: &Machine,
    image: &Image,
    progress: &mut dyn FnMut(VmStep),
) -> Result<(Instant, Vm), Failure> {
    if engine.kind() == EngineKind::Krun {
        let begin = Instant::now();
        let vm = engine.boot(machine).map_err(vmm)?;
        return Ok((begin, vm));
    }
    let templates = engine.templates(home.templates()).map_err(vmm)?;
    let root = root_spec(launch);
    let mut tell = |step| progress(shown(step));
    let template = template::ensure(&templates, machine, image, &root, &mut tell)?;
    let begin = Instant::now();
    let vm = template.start(machine).map_err(vmm)?;
    Ok((begin, vm))
}

fn image(launch: &Launch, home: &Home) -> Result<(Image, Lease), Failure> {
    let store = home.store().map_err(oci)?;
    let digest = launch.image.parse().map_err(oci)?;
    let image = store.get_digest(digest).map_err(oci)?;
    let image = image.ok_or_else(|| Failure {
        reason: format!(
            "the image {} was removed or replaced meanwhile",
            launch.spec.image
        ),
        hint: Some("create the sandbox again".into()),
    })?;
    let lease = image.lease().map_err(oci)?;
    Ok((image, lease))
}

fn machine(
    launch: &Launch,
    dir: &SandboxDir,
    image: &Image,
    snapshot: Option<&Snapshot>,
) -> Result<Machine, Failure> {
    let root = Disk {
        path: image.root_disk().to_owned(),
        format: DiskFormat::Vmdk,
        read_only: true,
    };
    let mut disks = vec![root];
    if let Some(mib) = launch.spec.disk_mib {
        let path = dir.path().join(DISK);
        // That of a sandbox that was stopped is taken up again.
        match snapshot {
            Some(snapshot) => restore::copy_disk(snapshot, &path)?,
            None if !path.exists() => make_disk(&path, mib, launch.keep)?,
            None => {}
        }
        disks.push(Disk {
            format: restore::format(&path),
            path,
            read_only: false,
        });
    }
    Ok(Machine {
        vcpus: Vcpus::try_from(u32::from(launch.spec.cpus)).map_err(vmm)?,
        memory: MemorySize::from_mib(u64::from(launch.spec.memory_mib)).map_err(vmm)?,
        disks,
        ports: vec![PortName::try_from(AGENT_PORT).map_err(vmm)?],
        ..Machine::new(&launch.kernel, &launch.initramfs)
    })
}

/// Makes a sparse file with an empty ext4 file system. Only one that is kept has a
/// journal: another is never looked at again after a crash.
fn make_disk(path: &Path, mib: u32, keep: bool) -> Result<(), Failure> {
    // Under its name there is only ever a whole one.
    let unfinished = path.with_extension("new");
    let file = File::create(&unfinished).map_err(Failure::io)?;
    file.set_len(u64::from(mib) << 20).map_err(Failure::io)?;
    let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
    let journal = if keep { "has_journal" } else { "^has_journal" };
    let output = Command::new(mke2fs())
        .args([
            "-q", "-F", "-t", "ext4", "-O", journal, "-m", "0", "-E", options,
        ])
        .arg(&unfinished)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            std::fs::rename(&unfinished, path).map_err(Failure::io)
        }
        Ok(output) => Err(Failure {
            reason: format!(
                "mke2fs could not format a disk: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            hint: None,
        }),
        Err(error) => Err(Failure {
            reason: format!("cannot run mke2fs: {error}"),
            hint: Some("install e2fsprogs, or leave out the disk".into()),
        }),
    }
}

/// Where mke2fs is; `/sbin` is not on every user's PATH.
pub(crate) fn mke2fs() -> PathBuf {
    let known = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].map(PathBuf::from);
    known
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| "mke2fs".into())
}

fn root_spec(launch: &Launch) -> RootSpec {
    RootSpec {
        lower: DiskName::from("vda"),
        upper: match launch.spec.disk_mib {
            Some(_) => Upper::Disk(DiskName::from("vdb")),
            None => Upper::Tmpfs { size: None },
        },
    }
}

/// Random bytes of the host's kernel.
pub(super) fn random(len: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)
            .map_err(|error| Failure::io(error.into()))?;
    }
    Ok(bytes)
}

fn guest_config(
    launch: &Launch,
    image: &Image,
    network: NetworkSpec,
    wire: &Wire,
) -> Result<GuestConfig, Failure> {
    let mut machine_id = [0; 16];
    machine_id.copy_from_slice(&random(16)?);
    let spec = &launch.spec;
    let config = image.config();
    let mut env = spec.env.clone();
    env.extend(wire.placeholders());
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(GuestConfig {
        entropy: Entropy(ByteString(random(64)?)),
        wall_clock_ns: wall_clock_ns(),
        hostname: spec.name.clone(),
        machine_id,
        root: root_spec(launch),
        env: environment(&config.env, &env, !spec.scripts.is_empty()),
        user: spec.user.clone().or_else(|| filled(&config.user)),
        workdir: spec
            .workdir
            .clone()
            .or_else(|| filled(&config.workdir))
            .map(ByteString::from),
        network: Some(network),
        trust: wire.trust(),
    })
}

/// Where programs are looked for when neither image nor sandbox say: the agent's own.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The image's environment with the sandbox's on top. Scripts are found first.
fn environment(image: &[String], sandbox: &[(String, String)], scripts: bool) -> Vec<ByteString> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let kept = image
        .iter()
        .filter(|entry| sandbox.iter().all(|(key, _)| *key != name(entry)));
    let kept = kept.filter(|entry| entry.contains('=')).cloned();
    let added = sandbox.iter().map(|(key, value)| format!("{key}={value}"));
    let mut all: Vec<String> = kept.chain(added).collect();
    if scripts {
        let path = all.iter().position(|entry| entry.starts_with("PATH="));
        let path = path.map(|at| all.remove(at));
        let path = path
            .as_deref()
            .and_then(|entry| entry.strip_prefix("PATH="));
        let path = path.unwrap_or(DEFAULT_PATH);
        all.push(format!("PATH={SCRIPTS}:{path}"));
    }
    all.into_iter().map(ByteString::from).collect()
}

fn shown(step: Step) -> VmStep {
    match step {
        Step::Waiting => VmStep::TemplateWaiting,
        Step::Booting => VmStep::TemplateBooting,
        Step::Publishing => VmStep::TemplateDone,
        _ => VmStep::TemplateSaving,
    }
}

impl Failure {
    #[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
    pub(super) fn io(error: std::io::Error) -> Self {
        Self {
            reason: error.to_string(),
            hint: None,
        }
    }

    pub(super) fn bug(reason: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            hint: None,
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
pub(super) fn vmm(error: msb_vmm::Error) -> Failure {
    Failure {
        reason: chain(&error),
        hint: error.hint().map(Into::into),
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn oci(error: msb_oci::Error) -> Failure {
    Failure {
        reason: chain(&error),
        hint: error.hint(),
    }
}

/// The guest's word, or how its machine ended when that is why it said none.
fn guest(error: &msb_guest_agent::Error, vm: &mut Vm) -> Failure {
    let reason = match vm.try_wait() {
        Ok(Some(exit)) => format!("{exit} while it started ({error})"),
        _ => error.to_string(),
    };
    Failure {
        reason,
        hint: error.hint().map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_overrides_the_image_by_name() {
        let image = ["PATH=/bin".to_owned(), "A=1".to_owned(), "junk".to_owned()];
        let sandbox = [("A".to_owned(), "2=3".to_owned())];
        let merged = environment(&image, &sandbox, false);
        assert_eq!(merged, ["PATH=/bin", "A=2=3"].map(ByteString::from));
        let merged = environment(&image, &sandbox, true);
        let path = "PATH=/.msb/scripts:/bin";
        assert_eq!(merged, ["A=2=3", path].map(ByteString::from));
        let merged = environment(&[], &[], true);
        let path = format!("PATH=/.msb/scripts:{DEFAULT_PATH}");
        assert_eq!(merged, [ByteString::from(path)]);
    }
}
