//! The description of a virtual machine: what it has, not how it is run.
//!
//! Everything here is plain data, checked when it is made. Nothing here touches
//! the host; a path may name a file that does not exist until an engine opens it.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;

/// The most virtual processors a machine may have: what the guest kernel is
/// configured for (`CONFIG_NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;

/// The least memory a machine may have: kernel, agent and a small workload.
pub const MIN_MEMORY_MIB: u64 = 64;

/// The most memory a machine may have. A bound against slips of the keyboard,
/// far above what a host of today gives to one guest.
pub const MAX_MEMORY_MIB: u64 = 1024 * 1024;

/// The most disks a machine may have. The `microvm` board has eight virtio-mmio
/// slots; the console takes one, and network, entropy and balloon want one each.
pub const MAX_DISKS: usize = 4;

/// The most console ports a machine may have: agent link and file shares.
/// A virtio-serial device stops at 31.
pub const MAX_PORTS: usize = 16;

/// The longest name a console port may have, in bytes.
pub const MAX_PORT_NAME: usize = 32;

/// A number of virtual processors, from 1 to [`MAX_VCPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vcpus(u8);

impl Vcpus {
    /// One virtual processor.
    pub const ONE: Vcpus = Vcpus(1);

    /// Returns the count.
    pub fn count(self) -> u8 {
        self.0
    }
}

impl TryFrom<u32> for Vcpus {
    type Error = Error;

    fn try_from(value: u32) -> Result<Self, Error> {
        match u8::try_from(value) {
            Ok(count) if (1..=MAX_VCPUS).contains(&count) => Ok(Vcpus(count)),
            _ => Err(Error::Vcpus {
                value,
                max: MAX_VCPUS,
            }),
        }
    }
}

impl fmt::Display for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An amount of guest memory in whole MiB, from [`MIN_MEMORY_MIB`] to
/// [`MAX_MEMORY_MIB`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemorySize(u64);

impl MemorySize {
    /// Checks an amount given in MiB.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] when the amount is out of bounds.
    pub fn from_mib(mib: u64) -> Result<Self, Error> {
        if (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&mib) {
            Ok(MemorySize(mib))
        } else {
            Err(Error::Memory {
                mib,
                min: MIN_MEMORY_MIB,
                max: MAX_MEMORY_MIB,
            })
        }
    }

    /// Returns the amount in MiB.
    pub fn mib(self) -> u64 {
        self.0
    }

    /// Returns the amount in bytes.
    pub fn bytes(self) -> u64 {
        self.0 << 20
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = Error;

    /// Checks an amount given in MiB.
    fn try_from(mib: u64) -> Result<Self, Error> {
        MemorySize::from_mib(mib)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// The name of a console port, as the guest finds it in
/// `/sys/class/virtio-ports/*/name`: letters, digits, `.`, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName(String);

impl PortName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for PortName {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self, Error> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > MAX_PORT_NAME || !name.bytes().all(plain) {
            return Err(Error::PortName {
                name: name.chars().take(64).collect(),
                max: MAX_PORT_NAME,
            });
        }
        Ok(PortName(name.to_owned()))
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How the bytes of a disk lie in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// The file is the disk, byte for byte.
    Raw,
    /// A VMDK text descriptor that joins flat files into one disk.
    Vmdk,
    /// What was changed of another disk ([`Disk::base`]), as QEMU's qcow2. That of a fork;
    /// engine qemu only.
    Overlay,
}

/// A block device of the guest. The first of a machine is `/dev/vda`, the
/// second `/dev/vdb` and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file on the host.
    pub path: PathBuf,
    /// How to read the file.
    pub format: DiskFormat,
    /// Whether the guest sees a write-protected device. Any number of machines
    /// may share a read-only disk; a writable one has a single user.
    pub read_only: bool,
}

impl Disk {
    /// The unchanged disk below that of a fork, byte for byte: the file of the same name with
    /// the extension `base`.
    #[must_use]
    pub fn base(&self) -> Option<PathBuf> {
        (self.format == DiskFormat::Overlay).then(|| base_of(&self.path))
    }
}

/// Where the base of the overlay `path` is.
pub(crate) fn base_of(path: &Path) -> PathBuf {
    path.with_extension("base")
}

/// The smallest largest packet of a network card: IPv6 asks for it (RFC 8200, 5).
pub const MIN_MTU: u16 = 1280;

/// The largest: what QEMU takes off a socket at once is a little more.
pub const MAX_MTU: u16 = 65_520;

/// A network card of the guest. Its frames cross a socket to whoever made the
/// machine ([`Vm::take_network`](crate::Vm::take_network)), and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The card's own address, which must be that of one receiver.
    ///
    /// A copy of a template starts with the template's address, which is
    /// [`TEMPLATE_MAC`], and has to be told by its guest to take up this one.
    pub mac: [u8; 6],
    /// The largest packet, from [`MIN_MTU`] to [`MAX_MTU`] bytes.
    pub mtu: u16,
}

/// The network card's address in each template.
pub const TEMPLATE_MAC: [u8; 6] = [0x02, 0x6d, 0x73, 0x62, 0, 0];

impl Card {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let multicast = self.mac[0] & 1 == 1;
        if multicast || self.mac == [0; 6] {
            return Err(Error::Mac { mac: self.mac });
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(Error::Mtu {
                mtu: self.mtu,
                min: MIN_MTU,
                max: MAX_MTU,
            });
        }
        Ok(())
    }
}

/// The description of a virtual machine.
///
/// ```
/// # fn main() -> Result<(), msb_vmm::Error> {
/// use msb_vmm::{Machine, MemorySize, PortName, Vcpus};
///
/// let machine = Machine {
///     vcpus: Vcpus::try_from(2)?,
///     memory: MemorySize::from_mib(512)?,
///     ports: vec![PortName::try_from("msb.agent")?],
///     ..Machine::new("guest/vmlinux", "guest/initramfs.cpio")
/// };
/// machine.validate()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Number of virtual processors.
    pub vcpus: Vcpus,
    /// Amount of guest memory.
    pub memory: MemorySize,
    /// The kernel: an uncompressed ELF with a PVH note.
    pub kernel: PathBuf,
    /// The initial file system: a `newc` archive.
    pub initramfs: PathBuf,
    /// Words added to the engine's own kernel command line.
    pub extra_cmdline: Vec<String>,
    /// Block devices, in the order of their names in the guest.
    pub disks: Vec<Disk>,
    /// Console ports. The first is the one a template waits on.
    pub ports: Vec<PortName>,
    /// The network card, `eth0` in the guest.
    pub network: Option<Card>,
    /// A descriptor that the VMM keeps for as long as it lives, and does nothing with.
    pub hold: Option<Hold>,
}

/// A descriptor for a VMM to keep. With a lock (`flock`) on it, whoever takes the lock
/// afterwards knows that the VMM is gone, and not only the process that started it.
///
/// The VMM may not let go of such a lock: the system call is not on its list.
#[derive(Clone, Debug)]
pub struct Hold(Arc<OwnedFd>);

impl Hold {
    /// Takes a descriptor. One that cannot be written to is best: a VMM that was taken over
    /// can write to it otherwise.
    pub fn new(descriptor: impl Into<OwnedFd>) -> Self {
        Hold(Arc::new(descriptor.into()))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Descriptors are the same when they are one.
impl PartialEq for Hold {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Hold {}

impl Machine {
    /// Describes a machine with one processor, 512 MiB of memory and neither
    /// disks nor ports nor a network card.
    pub fn new(kernel: impl Into<PathBuf>, initramfs: impl Into<PathBuf>) -> Self {
        Machine {
            vcpus: Vcpus::ONE,
            memory: MemorySize(512),
            kernel: kernel.into(),
            initramfs: initramfs.into(),
            extra_cmdline: Vec::new(),
            disks: Vec::new(),
            ports: Vec::new(),
            network: None,
            hold: None,
        }
    }

    /// Checks what the types of the fields cannot: counts, duplicate port names,
    /// words of the command line and the network card. Engines call it before they start anything.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`], [`Error::DuplicatePort`], [`Error::Cmdline`],
    /// [`Error::Mac`] or [`Error::Mtu`].
    pub fn validate(&self) -> Result<(), Error> {
        if self.disks.len() > MAX_DISKS {
            return Err(Error::TooMany {
                what: "disks",
                count: self.disks.len(),
                max: MAX_DISKS,
            });
        }
        if self.ports.len() > MAX_PORTS {
            return Err(Error::TooMany {
                what: "console ports",
                count: self.ports.len(),
                max: MAX_PORTS,
            });
        }
        for (index, port) in self.ports.iter().enumerate() {
            if self.ports[..index].contains(port) {
                return Err(Error::DuplicatePort {
                    name: port.to_string(),
                });
            }
        }
        for word in &self.extra_cmdline {
            let printable = word.bytes().all(|c| c.is_ascii_graphic());
            if word.is_empty() || !printable {
                return Err(Error::Cmdline {
                    word: word.chars().take(64).collect(),
                });
            }
        }
        self.network.as_ref().map_or(Ok(()), Card::validate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_bounded() {
        assert!(Vcpus::try_from(0).is_err());
        assert_eq!(Vcpus::try_from(1).unwrap(), Vcpus::ONE);
        assert_eq!(Vcpus::try_from(64).unwrap().count(), 64);
        let error = Vcpus::try_from(321).unwrap_err().to_string();
        assert!(error.contains("321") && error.contains("64"), "{error}");
    }

    #[test]
    fn memory_is_bounded() {
        assert!(MemorySize::from_mib(63).is_err());
        assert!(MemorySize::from_mib(u64::MAX).is_err());
        assert_eq!(MemorySize::from_mib(64).unwrap().bytes(), 64 << 20);
        let error = MemorySize::from_mib(7).unwrap_err().to_string();
        assert!(
            error.contains("7 MiB") && error.contains("64 MiB"),
            "{error}"
        );
    }

    #[test]
    fn port_names_cannot_carry_option_syntax() {
        for bad in ["", "a,b", "a=b", "a b", "ü", "a\0", &"x".repeat(33)] {
            assert!(PortName::try_from(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            PortName::try_from("msb.agent").unwrap().as_str(),
            "msb.agent"
        );
    }

    #[test]
    fn validate_refuses_what_types_allow() {
        let port = PortName::try_from("p").unwrap();
        let machine = Machine {
            ports: vec![port.clone(), port],
            ..Machine::new("k", "i")
        };
        assert!(matches!(
            machine.validate(),
            Err(Error::DuplicatePort { .. })
        ));
        for word in ["", "a b", "a\nb", "ä"] {
            let machine = Machine {
                extra_cmdline: vec![word.into()],
                ..Machine::new("k", "i")
            };
            assert!(
                matches!(machine.validate(), Err(Error::Cmdline { .. })),
                "{word:?}"
            );
        }
    }

    #[test]
    fn a_card_needs_an_address_and_a_fitting_mtu() {
        let with = |mac, mtu| Machine {
            network: Some(Card { mac, mtu }),
            ..Machine::new("k", "i")
        };
        assert!(with([2, 0, 0, 0, 0, 1], MAX_MTU).validate().is_ok());
        for mac in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
            let refused = with(mac, MIN_MTU).validate();
            assert!(matches!(refused, Err(Error::Mac { .. })), "{mac:x?}");
        }
        for mtu in [0, MIN_MTU - 1, MAX_MTU + 1, u16::MAX] {
            let refused = with(TEMPLATE_MAC, mtu).validate();
            assert!(matches!(refused, Err(Error::Mtu { .. })), "{mtu}");
        }
    }
}
