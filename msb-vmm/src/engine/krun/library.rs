//! libkrun, linked into this program: the unsafe code of the engine.
//!
//! Every call is a function of the crate `libkrun` itself, so that the compiler checks
//! arguments against definitions; nothing is declared twice.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr;

use super::protocol::{Fault, RunnerConfig};
use crate::machine::{Disk, DiskFormat};

/// The library's version, as the workspace asks for it; `None` without the library.
pub(crate) const VERSION: Option<&str> = Some("1.19.7");

/// `KRUN_KERNEL_FORMAT_ELF`.
const KERNEL_ELF: u32 = 1;

/// `KRUN_DISK_FORMAT_RAW` and `KRUN_DISK_FORMAT_VMDK`.
const DISK_RAW: u32 = 0;
const DISK_VMDK: u32 = 2;

/// Errors only, to standard error, without colours, whatever the environment says.
const LOG_TO: i32 = 2;
const LOG_ERRORS: u32 = 1;
const LOG_PLAIN: u32 = 2;
const LOG_NO_ENVIRONMENT: u32 = 1;

/// Descriptors of the serial port: it has no input, and its output is what the kernel says
/// when it dies.
const NONE: i32 = -1;
const STDOUT: i32 = 1;

/// The guest may receive long packets: its driver then takes frames as large as they
/// come, for which it would otherwise have to know the card's MTU, which libkrun does
/// not tell. None are ever sent to it in one piece with a header saying so, and none
/// are taken from it: `VIRTIO_NET_F_GUEST_CSUM`, `_GUEST_TSO4`, `_GUEST_TSO6`.
const NET_FEATURES: u32 = 1 << 1 | 1 << 7 | 1 << 8;

/// A machine that is described and can be entered.
#[derive(Debug)]
pub(super) struct Prepared(u32);

/// Describes the machine of `config` to the library.
pub(super) fn prepare(config: &RunnerConfig) -> Result<Prepared, Fault> {
    // SAFETY: takes integers; the descriptor is this process's standard error, which is
    // never closed. Nothing has set up logging before: this process does nothing else.
    let status = unsafe { krun::krun_init_log(LOG_TO, LOG_ERRORS, LOG_PLAIN, LOG_NO_ENVIRONMENT) };
    check("krun_init_log", status)?;
    let context = check("krun_create_ctx", krun::krun_create_ctx())?;
    let mib = u32::try_from(config.memory.mib()).unwrap_or(u32::MAX);
    let status = krun::krun_set_vm_config(context, config.vcpus.count(), mib);
    check("krun_set_vm_config", status)?;
    // Without these the guest would get devices that nobody here asked for.
    let status = krun::krun_disable_implicit_console(context);
    check("krun_disable_implicit_console", status)?;
    let status = krun::krun_disable_implicit_vsock(context);
    check("krun_disable_implicit_vsock", status)?;
    let status = krun::krun_disable_implicit_init(context);
    check("krun_disable_implicit_init", status)?;

    // SAFETY: takes integers. Standard output was left to this process for this device alone,
    // which owns it from here on; nothing else writes to it.
    let status = unsafe { krun::krun_add_serial_console_default(context, NONE, STDOUT) };
    check("krun_add_serial_console_default", status)?;

    let kernel = path(&config.kernel)?;
    let initramfs = path(&config.initramfs)?;
    let cmdline = text("command line", config.cmdline.as_bytes())?;
    // SAFETY: the pointers are to terminated strings that outlive the call, which copies them.
    let status = unsafe {
        krun::krun_set_kernel(
            context,
            kernel.as_ptr(),
            KERNEL_ELF,
            initramfs.as_ptr(),
            cmdline.as_ptr(),
        )
    };
    check("krun_set_kernel", status)?;
    for disk in &config.disks {
        add_disk(context, disk)?;
    }
    add_ports(context, config)?;
    if let Some((mac, fd)) = &config.network {
        // SAFETY: a null path says that the descriptor counts. It was left to this process
        // for this card alone, which owns it from here on. `mac` has the six bytes that
        // are read.
        let status = unsafe {
            krun::krun_add_net_unixstream(context, ptr::null(), *fd, mac.as_ptr(), NET_FEATURES, 0)
        };
        check("krun_add_net_unixstream", status)?;
    }
    Ok(Prepared(context))
}

/// Runs the machine. The process ends with it; what is returned is why it did not start.
#[allow(clippy::needless_pass_by_value)] // a machine is entered once
pub(super) fn enter(prepared: Prepared) -> Fault {
    let status = krun::krun_start_enter(prepared.0);
    match check("krun_start_enter", status) {
        Err(fault) => fault,
        Ok(_) => Fault::Library {
            call: "krun_start_enter".to_owned(),
            errno: 0,
        },
    }
}

fn add_disk(context: u32, disk: &Disk) -> Result<(), Fault> {
    let file = path(&disk.path)?;
    let format = match disk.format {
        DiskFormat::Raw | DiskFormat::Overlay => DISK_RAW,
        DiskFormat::Vmdk => DISK_VMDK,
    };
    // An empty name lets the library make one up from the file.
    let name: &CStr = c"";
    // SAFETY: the pointers are to terminated strings that outlive the call, which copies them.
    let status = unsafe {
        krun::krun_add_disk2(
            context,
            name.as_ptr(),
            file.as_ptr(),
            format,
            disk.read_only,
        )
    };
    check("krun_add_disk2", status).map(drop)
}

fn add_ports(context: u32, config: &RunnerConfig) -> Result<(), Fault> {
    if config.ports.is_empty() {
        return Ok(());
    }
    // SAFETY: takes an integer.
    let console = unsafe { krun::krun_add_virtio_console_multiport(context) };
    let console = check("krun_add_virtio_console_multiport", console)?;
    for (name, fd) in &config.ports {
        let name = text("port name", name.as_str().as_bytes())?;
        // SAFETY: the pointer is to a terminated string that outlives the call, which
        // copies it. The descriptor was left to this process for this port; the library
        // duplicates it, and nothing closes it.
        let status =
            unsafe { krun::krun_add_console_port_inout(context, console, name.as_ptr(), *fd, *fd) };
        check("krun_add_console_port_inout", status)?;
    }
    Ok(())
}

fn path(path: &Path) -> Result<CString, Fault> {
    text("path", path.as_os_str().as_encoded_bytes())
}

fn text(what: &'static str, bytes: &[u8]) -> Result<CString, Fault> {
    CString::new(bytes).map_err(|_| Fault::Configuration {
        reason: format!("a {what} holds a NUL"),
    })
}

/// The library returns a negative error number, or something that is none.
fn check(call: &'static str, status: i32) -> Result<u32, Fault> {
    u32::try_from(status).map_err(|_| Fault::Library {
        call: call.to_owned(),
        errno: status.saturating_neg(),
    })
}
