//! A sandbox that goes on from a snapshot.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use msb_oci::Image;
use msb_vmm::{Disk, DiskFormat, Engine, EngineKind, Machine, Snapshot, Snapshots, Vm};

use super::start::{Failure, vmm};
use crate::control::Launch;
use crate::home::Home;
use crate::machine::{MachineFailure, Source};
use crate::snapshot::About;

/// The place of the disk that takes the guest's changes, behind that of its root.
const OWN_DISK: usize = 1;

/// Opens the snapshot, and checks that the image is where its kernel expects it.
pub(super) fn open(source: &Source, image: &Image) -> Result<Snapshot, Failure> {
    let Source {
        root, name, memory, ..
    } = source;
    let snapshots = Snapshots::new(root);
    let snapshot = snapshots.open_with(name, memory.as_deref()).map_err(vmm)?;
    let about = About::parse(name, snapshot.about())?;
    if about.root != root_of(image)? {
        return Err(Failure {
            reason: format!("the image of the snapshot {name:?} was made again since"),
            hint: Some("make the snapshot again".into()),
        });
    }
    Ok(snapshot)
}

/// What is to be written beside snapshots of a sandbox.
pub(super) fn about(launch: &Launch, image: &Image) -> Result<About, Failure> {
    let (spec, digest) = (launch.spec.clone(), launch.image.clone());
    Ok(About::new(spec, digest, root_of(image)?))
}

/// Names the very file that a root is read from.
fn root_of(image: &Image) -> Result<String, Failure> {
    let disk = fs::metadata(image.root_disk()).map_err(Failure::io)?;
    let (ctime, nanos) = (disk.ctime(), disk.ctime_nsec());
    Ok(format!("{} {} {ctime}.{nanos}", disk.dev(), disk.ino()))
}

/// Makes the disk that takes the guest's changes.
pub(super) fn copy_disk(snapshot: &Snapshot, to: &Path) -> Result<(), Failure> {
    // Of one that was killed half-way the folder is removed: it has never run.
    snapshot.copy_disk(OWN_DISK, to).map(drop).map_err(vmm)
}

/// How the disk `path` of a sandbox is to be read: as what it was made.
pub(super) fn format(path: &Path) -> DiskFormat {
    let overlay = Disk {
        path: path.to_owned(),
        format: DiskFormat::Overlay,
        read_only: false,
    };
    match overlay.base() {
        Some(base) if base.exists() => DiskFormat::Overlay,
        _ => DiskFormat::Raw,
    }
}

/// The only engine that can, also with a disk of a fork.
pub(super) fn engine(named: Option<EngineKind>) -> Result<EngineKind, Failure> {
    match named {
        None | Some(EngineKind::Qemu) => Ok(EngineKind::Qemu),
        Some(engine) => Err(Failure {
            reason: format!("snapshots and forks are not supported by the engine {engine}"),
            hint: Some("ask for the engine qemu".into()),
        }),
    }
}

/// Starts the machine; says when that began. Its processes are held.
pub(super) fn boot(
    engine: &Engine,
    home: &Home,
    machine: &Machine,
    snapshot: &Snapshot,
) -> Result<(Instant, Vm), Failure> {
    let templates = engine.templates(home.templates()).map_err(vmm)?;
    let begin = Instant::now();
    let vm = templates.start_snapshot(snapshot, machine).map_err(vmm)?;
    Ok((begin, vm))
}

impl From<MachineFailure> for Failure {
    fn from(failure: MachineFailure) -> Self {
        let MachineFailure { reason, hint } = failure;
        Self { reason, hint }
    }
}
