//! The system calls that have no safe form.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{self, IntegerSetter, Setter, opcode};
use rustix::thread::UnshareFlags;

/// The kernel's `struct ifreq`: a name, and here flags.
#[repr(C)]
#[derive(Debug)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const TUNSETIFF: ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

const TUNSETOFFLOAD: ioctl::Opcode = opcode::write::<u32>(b'T', 208);
/// Checksums are left out, and TCP segments may be large.
const OFFLOADS: usize = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
const TUN_F_CSUM: usize = 1;
const TUN_F_TSO4: usize = 2;
const TUN_F_TSO6: usize = 4;

/// Moves this process into namespaces of its own. It must have one thread.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the file descriptor table is not among the flags used here, so no
    // descriptor changes its meaning under anybody.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

/// Makes a TAP device with offload headers in the network namespace of this
/// process. It is there as long as the descriptor, in whichever process, is open.
pub(crate) fn tap(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    // The last byte stays zero: the kernel expects an end.
    for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF takes a `struct ifreq`, which the type lays out; its
    // opcode says `int` for historical reasons.
    unsafe { ioctl::ioctl(&device, Setter::<TUNSETIFF, _>::new(request))? };
    // SAFETY: TUNSETOFFLOAD takes a number, and no pointer.
    unsafe { ioctl::ioctl(&device, IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS))? };
    Ok(device)
}
