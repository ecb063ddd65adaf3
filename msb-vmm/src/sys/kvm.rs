//! KVM through its raw interface, as far as the probe needs it: one processor, 64 KiB
//! of memory, a guest of some twenty instructions in long mode.
//!
//! Read first: `Documentation/virt/kvm/api.rst` of the kernel, sections 4.1 to 4.13 and 5.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use crate::probe::KvmFault;

/// How long the guest may take. It takes microseconds, also where it is interpreted.
const PATIENCE: Duration = Duration::from_secs(2);

/// The guest's memory, from physical address 0.
const MEMORY: usize = 64 << 10;

/// Where the page tables lie: one page each for the three upper levels.
const TABLES: [usize; 3] = [0x1000, 0x2000, 0x3000];

/// Where `cmpxchg16b` finds its operand.
const OPERAND: usize = 0x4000;

/// Where the guest's code lies.
const CODE: usize = 0x8000;

/// The guest. A processor runs it without noticing; an interpreter of guest code has no
/// `cmpxchg16b`, or else no `xsave` and `xrstor`.
#[rustfmt::skip]
const GUEST: [u8; 63] = [
    0xb8, 0x01, 0x00, 0x00, 0x00, //       mov eax, 1
    0xba, 0x02, 0x00, 0x00, 0x00, //       mov edx, 2
    0xbb, 0x03, 0x00, 0x00, 0x00, //       mov ebx, 3
    0xb9, 0x04, 0x00, 0x00, 0x00, //       mov ecx, 4
    0xbe, 0x00, 0x40, 0x00, 0x00, //       mov esi, OPERAND
    0xf0, 0x48, 0x0f, 0xc7, 0x0e, //       lock cmpxchg16b [rsi]
    0x75, 0x1e, //                         jnz end
    0x31, 0xc9, //                         xor ecx, ecx
    0x31, 0xd2, //                         xor edx, edx
    0xb8, 0x03, 0x00, 0x00, 0x00, //       mov eax, 3
    0x0f, 0x01, 0xd1, //                   xsetbv
    0xbf, 0x00, 0x50, 0x00, 0x00, //       mov edi, 0x5000
    0x0f, 0xae, 0x27, //                   xsave [rdi]
    0x0f, 0xae, 0x2f, //                   xrstor [rdi]
    0xb0, DONE, //                         mov al, DONE
    0x66, 0xba, 0x01, 0x05, //             mov dx, DONE_PORT
    0xee, //                               out dx, al
    0xf4, //                         end:  hlt
];

/// What the guest says at its end, and where.
const DONE: u8 = 0x4d;
const DONE_PORT: u16 = 0x501;

const KVM_CREATE_VM: libc::Ioctl = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: libc::Ioctl = 0xae04;
const KVM_GET_SUPPORTED_CPUID: libc::Ioctl = 0xc008_ae05;
const KVM_CREATE_VCPU: libc::Ioctl = 0xae41;
const KVM_SET_USER_MEMORY_REGION: libc::Ioctl = 0x4020_ae46;
const KVM_SET_TSS_ADDR: libc::Ioctl = 0xae47;
const KVM_RUN: libc::Ioctl = 0xae80;
const KVM_SET_REGS: libc::Ioctl = 0x4090_ae82;
const KVM_GET_SREGS: libc::Ioctl = 0x8138_ae83;
const KVM_SET_SREGS: libc::Ioctl = 0x4138_ae84;
const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b;
const KVM_SET_CPUID2: libc::Ioctl = 0x4008_ae90;

const KVM_EXIT_IO: u32 = 2;

/// An unused guest-physical range that Intel processors want for their own use.
const TSS_ADDRESS: libc::c_ulong = 0xfffb_d000;

/// The most processor features that are passed on: the kernel's own bound.
const MAX_CPUID: usize = 256;

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    size: u64,
    host_address: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Table {
    base: u64,
    limit: u16,
    padding: [u16; 3],
}

#[repr(C)]
#[derive(Default)]
struct SpecialRegisters {
    cs: Segment,
    /// DS, ES, FS, GS, SS.
    data: [Segment; 5],
    tr: Segment,
    ldt: Segment,
    gdt: Table,
    idt: Table,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

#[repr(C)]
#[derive(Default)]
struct Registers {
    /// RAX to R15 in KVM's order; the guest needs none of them set.
    general: [u64; 16],
    rip: u64,
    rflags: u64,
}

#[repr(C)]
struct Cpuid {
    count: u32,
    padding: u32,
    entries: [[u32; 10]; MAX_CPUID],
}

#[repr(C)]
struct SignalMask {
    len: u32,
    mask: [u8; 8],
}

/// The head of the structure shared with the kernel, for an exit by port access.
#[repr(C)]
struct RunHead {
    requests: [u8; 8],
    exit_reason: u32,
    state: [u8; 20],
    direction: u8,
    size: u8,
    port: u16,
    count: u32,
    data_offset: u64,
}

/// Runs the guest and says why it didn't come to its end, if it did not.
///
/// The guest runs in a thread of its own, which is called back by a signal when it
/// takes too long. No signal handler is involved: the signal stays blocked but for the
/// time in the guest, and ends with the thread.
pub(crate) fn probe_kvm() -> Result<(), KvmFault> {
    let (report, outcome) = sync_channel(2);
    let run = move || {
        block_signals();
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        // The receiver lives until the thread is joined.
        let _ = report.send(Err(thread));
        let _ = report.send(Ok(run_guest()));
    };
    let failed = |error: io::Error| fault("start a thread", &error);
    let guest = thread::Builder::new()
        .name("msb-probe".into())
        .stack_size(256 << 10)
        .spawn(run)
        .map_err(failed)?;
    let mut thread_id = 0;
    let verdict = loop {
        match outcome.recv_timeout(PATIENCE) {
            Ok(Err(id)) => thread_id = id,
            Ok(Ok(verdict)) => break verdict,
            Err(RecvTimeoutError::Timeout) => {
                // SAFETY: takes integers; the thread is ours and has not been joined.
                unsafe {
                    libc::syscall(libc::SYS_tgkill, libc::getpid(), thread_id, libc::SIGALRM)
                };
                break Err(KvmFault::TooSlow);
            }
            Err(RecvTimeoutError::Disconnected) => break Err(KvmFault::TooSlow),
        }
    };
    let _ = guest.join();
    verdict
}

fn fault(action: &'static str, error: &io::Error) -> KvmFault {
    KvmFault::Failed {
        action,
        errno: error.raw_os_error().unwrap_or(0),
    }
}

/// Blocks all signals in the calling thread.
fn block_signals() {
    // SAFETY: a zeroed `sigset_t` is a valid one, and the pointers are to a live local.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, ptr::null_mut());
    }
}

fn run_guest() -> Result<(), KvmFault> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KvmFault::Missing,
            io::ErrorKind::PermissionDenied => KvmFault::Denied,
            _ => fault("open it", &error),
        })?;
    let vm = create(kvm.as_raw_fd(), KVM_CREATE_VM, "create a virtual machine")?;
    let memory = Mapping::new(MEMORY, None).map_err(|error| fault("map guest memory", &error))?;
    fill(&memory);
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_address: 0,
        size: MEMORY as u64,
        host_address: memory.address.as_ptr() as u64,
    };
    // Intel's processors need it, for others it is an unknown request: both is fine.
    let _ = control_value(vm.as_raw_fd(), KVM_SET_TSS_ADDR, TSS_ADDRESS);
    // SAFETY: the region is a mapping that outlives the virtual machine's last run.
    unsafe { control(&vm, KVM_SET_USER_MEMORY_REGION, &region, "set guest memory") }?;
    let vcpu = create(
        vm.as_raw_fd(),
        KVM_CREATE_VCPU,
        "create a virtual processor",
    )?;
    set_processor(&kvm, &vcpu)?;
    let size = control_value(kvm.as_raw_fd(), KVM_GET_VCPU_MMAP_SIZE, 0)
        .map_err(|error| fault("ask for the size of shared memory", &error))?;
    let run = Mapping::new(size as usize, Some(&vcpu))
        .map_err(|error| fault("map shared memory", &error))?;
    control_value(vcpu.as_raw_fd(), KVM_RUN, 0).map_err(|error| match error.raw_os_error() {
        Some(libc::EINTR) => KvmFault::TooSlow,
        _ => fault("run guest code", &error),
    })?;
    verdict(&memory, &run)
}

/// Judges the guest's exit and what it left in memory.
fn verdict(memory: &Mapping, run: &Mapping) -> Result<(), KvmFault> {
    let head: RunHead = run.read(0).ok_or(KvmFault::NotExecuting { exit: 0 })?;
    if head.exit_reason != KVM_EXIT_IO {
        return Err(KvmFault::NotExecuting {
            exit: head.exit_reason,
        });
    }
    let said: Option<u8> = usize::try_from(head.data_offset)
        .ok()
        .and_then(|offset| run.read(offset));
    let swapped: Option<[u64; 2]> = memory.read(OPERAND);
    if head.port == DONE_PORT && said == Some(DONE) && swapped == Some([3, 4]) {
        Ok(())
    } else {
        Err(KvmFault::NotExecuting {
            exit: head.exit_reason,
        })
    }
}

/// Writes page tables, operand and code.
fn fill(memory: &Mapping) {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let mut image = vec![0; MEMORY];
    let mut put = |at: usize, value: u64| image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(TABLES[0], TABLES[1] as u64 | PRESENT_WRITABLE);
    put(TABLES[1], TABLES[2] as u64 | PRESENT_WRITABLE);
    put(TABLES[2], LARGE | PRESENT_WRITABLE);
    put(OPERAND, 1);
    put(OPERAND + 8, 2);
    image[CODE..CODE + GUEST.len()].copy_from_slice(&GUEST);
    // SAFETY: the mapping is as long as the image, and no guest runs yet.
    unsafe { ptr::copy_nonoverlapping(image.as_ptr(), memory.address.as_ptr(), MEMORY) };
}

/// Puts the processor into long mode at the start of the guest's code.
fn set_processor(kvm: &File, vcpu: &File) -> Result<(), KvmFault> {
    let mut cpuid = Box::new(Cpuid {
        count: MAX_CPUID as u32,
        padding: 0,
        entries: [[0; 10]; MAX_CPUID],
    });
    // SAFETY: the structure has room for as many entries as it says.
    unsafe {
        control(
            kvm,
            KVM_GET_SUPPORTED_CPUID,
            &raw mut *cpuid,
            "ask for processor features",
        )
    }?;
    // SAFETY: the kernel filled in `count` entries, no more than there are.
    unsafe { control(vcpu, KVM_SET_CPUID2, &*cpuid, "set processor features") }?;

    let mut special = SpecialRegisters::default();
    // SAFETY: the structure has the layout and size that the request's number names.
    unsafe { control(vcpu, KVM_GET_SREGS, &raw mut special, "read registers") }?;
    let data = Segment {
        limit: u32::MAX,
        selector: 16,
        kind: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Segment::default()
    };
    special.cs = Segment {
        selector: 8,
        kind: 11,
        db: 0,
        l: 1,
        ..data
    };
    special.data = [data; 5];
    special.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    special.cr3 = TABLES[0] as u64;
    special.cr4 = 0x0004_0620; // OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
    special.efer = 0x500; // LMA, LME
    // SAFETY: as above.
    unsafe { control(vcpu, KVM_SET_SREGS, &special, "enter long mode") }?;
    let registers = Registers {
        rip: CODE as u64,
        rflags: 2,
        ..Registers::default()
    };
    // SAFETY: as above.
    unsafe { control(vcpu, KVM_SET_REGS, &registers, "set registers") }?;

    let mut mask = SignalMask {
        len: 8,
        mask: [0xff; 8],
    };
    let alarm = libc::SIGALRM as usize - 1;
    mask.mask[alarm / 8] &= !(1 << (alarm % 8));
    // SAFETY: the structure holds as many bytes of mask as it says.
    unsafe { control(vcpu, KVM_SET_SIGNAL_MASK, &mask, "set the signal mask") }
}

/// Makes a request whose result is a number.
fn control_value(fd: RawFd, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: the requests passed here take an integer.
    let result = unsafe { libc::ioctl(fd, request, value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Makes a request whose result is a new descriptor.
fn create(fd: RawFd, request: libc::Ioctl, action: &'static str) -> Result<File, KvmFault> {
    let created = control_value(fd, request, 0).map_err(|error| fault(action, &error))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { File::from_raw_fd(created) })
}

/// Makes a request that takes a structure.
///
/// # Safety
///
/// `argument` must point to what the request expects, live for the call, and writable if it writes.
unsafe fn control<T>(
    file: &File,
    request: libc::Ioctl,
    argument: *const T,
    action: &'static str,
) -> Result<(), KvmFault> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 {
        Err(fault(action, &io::Error::last_os_error()))
    } else {
        Ok(())
    }
}

/// Memory shared with the kernel or the guest.
struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps anonymous memory, or the shared part of a virtual processor.
    fn new(len: usize, vcpu: Option<&File>) -> io::Result<Self> {
        let (flags, fd) = match vcpu {
            Some(vcpu) => (libc::MAP_SHARED, vcpu.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        match NonNull::new(address.cast::<u8>()) {
            Some(address) if address.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => {
                Ok(Mapping { address, len })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Copies a value of plain integers out; `None` when it is not within the mapping.
    fn read<T: Plain>(&self, offset: usize) -> Option<T> {
        if offset.checked_add(size_of::<T>())? > self.len {
            return None;
        }
        // SAFETY: within the mapping, as checked; any bytes make a valid `T`, and the
        // guest, which alone could change them, is not running.
        Some(unsafe {
            self.address
                .as_ptr()
                .add(offset)
                .cast::<T>()
                .read_unaligned()
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it was given out.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// Types of which any bytes are a valid value.
trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for [u64; 2] {}
impl Plain for RunHead {}
impl Clone for RunHead {
    fn clone(&self) -> Self {
        *self
    }
}
impl Copy for RunHead {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_in_the_request_numbers() {
        let size = |request: libc::Ioctl| (request >> 16) as usize & 0x3fff;
        assert_eq!(size(KVM_SET_USER_MEMORY_REGION), size_of::<MemoryRegion>());
        assert_eq!(size(KVM_GET_SREGS), size_of::<SpecialRegisters>());
        assert_eq!(size(KVM_SET_SREGS), size_of::<SpecialRegisters>());
        assert_eq!(size(KVM_SET_REGS), size_of::<Registers>());
        assert_eq!(size_of::<Cpuid>(), 8 + 40 * MAX_CPUID);
    }

    #[test]
    fn what_lies_outside_a_mapping_is_not_read() {
        let mapping = Mapping::new(4096, None).unwrap();
        assert_eq!(mapping.read::<u8>(4095), Some(0));
        assert_eq!(mapping.read::<u8>(4096), None);
        assert_eq!(mapping.read::<[u64; 2]>(4081), None);
        assert_eq!(mapping.read::<u8>(usize::MAX), None);
    }
}
