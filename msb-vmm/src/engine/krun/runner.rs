//! The runner: the process that becomes the VMM of the krun engine.
//!
//! ```text
//! executed, confined ──► receive ──► check files, lock disks ──► prepare ──► reply ──► enter
//!                           └───────────────┴──────────────────────┴──► Failed, ends
//! ```
//!
//! Everything that can be wrong with a machine is found before the reply, by the process
//! that it matters to. After it there is no way back: the library does not return.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::library;
use super::protocol::{self, Fault, Part, Reply, RunnerConfig};
use crate::sys;

/// `argv[0]` of a runner: tells the hook what it is started as, and shows in process lists.
pub(super) const ARGV0: &str = "msb-vmm";

/// The exit code of a runner that gave up.
const FAILED: i32 = 1;

/// Makes this program able to be the VMM of its machines, which the krun engine needs. To
/// be called first in `main`, before anything is printed and any thread is started.
///
/// In an ordinary process it returns at once. In one that an engine has started as a VMM
/// it runs the machine and ends the process with it.
///
/// ```
/// // first thing in main:
/// msb_vmm::runner_hook();
/// ```
pub fn runner_hook() {
    if std::env::args_os()
        .next()
        .is_some_and(|argv0| argv0 == ARGV0)
    {
        std::process::exit(run());
    }
    super::hooked();
}

/// The runner's whole life; returns its exit code if it does not become a VMM.
fn run() -> i32 {
    let Ok(control) = rustix::io::dup(rustix::stdio::stdin()) else {
        return FAILED;
    };
    let control = UnixStream::from(control);
    let reply = |reply: &Reply| protocol::send(&control, reply).is_ok();
    let prepared = receive(&control).and_then(|config| {
        // Locks are held for as long as the machine runs: nothing drops them.
        std::mem::forget(check_files(&config)?);
        library::prepare(&config)
    });
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(fault) => {
            reply(&Reply::Failed(fault));
            return FAILED;
        }
    };
    if !reply(&Reply::Running) {
        return FAILED;
    }
    drop(control);
    // What confines this process was taken on before it was executed (see `confine`). What
    // can only be given up by one that is set up belongs here.
    let fault = library::enter(prepared);
    eprintln!("the machine does not start: {fault:?}");
    FAILED
}

fn receive(control: &UnixStream) -> Result<RunnerConfig, Fault> {
    protocol::receive(control).map_err(|error| Fault::Configuration {
        reason: error.to_string(),
    })
}

/// Opens everything that the library will open, because it says little of what it cannot,
/// and locks the disks that the guest can write to.
fn check_files(config: &RunnerConfig) -> Result<Vec<File>, Fault> {
    let fault = |part: Part| {
        move |error: io::Error| Fault::File {
            part,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    };
    let write = OpenOptions::new().read(true).write(true).clone();
    write.open("/dev/kvm").map_err(fault(Part::Kvm))?;
    File::open(&config.initramfs).map_err(fault(Part::Initramfs))?;
    check_kernel(&config.kernel).map_err(fault(Part::Kernel))?;
    let mut locks = Vec::new();
    for (index, disk) in config.disks.iter().enumerate() {
        let fault = fault(Part::Disk(index));
        if disk.read_only {
            File::open(&disk.path).map_err(fault)?;
            continue;
        }
        let file = write.open(&disk.path).map_err(fault)?;
        match sys::lock_whole(&file) {
            Ok(true) => locks.push(file),
            Ok(false) => return Err(Fault::InUse { disk: index }),
            Err(error) => return Err(fault(error)),
        }
    }
    Ok(locks)
}

/// The library trusts the kernel's headers, and says only "invalid" of what is no ELF.
fn check_kernel(kernel: &Path) -> io::Result<()> {
    const ELF_64_LITTLE: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    let mut head = [0; 6];
    let mut file = File::open(kernel)?;
    match file.read_exact(&mut head) {
        Ok(()) if head == ELF_64_LITTLE => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Err(io::Error::from_raw_os_error(libc::ENOEXEC)),
    }
}
