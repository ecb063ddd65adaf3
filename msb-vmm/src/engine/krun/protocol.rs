//! What an engine and its runner say to each other, over a socket that is the runner's
//! standard input: one configuration, one reply.
//!
//! Each is its length as a 32-bit little-endian number, then JSON. Both are read into
//! types that hold what the reader relies on: the runner's caller is whoever executed it,
//! and the engine hears a process that may have gone wrong.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine::{
    Card, Disk, DiskFormat, MAX_DISKS, MAX_MTU, MAX_PORTS, MemorySize, PortName, Vcpus,
};

/// The longest message, in bytes: six paths of the longest kind, escaped, and a command line.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// The longest command line, in bytes: what the kernel keeps of one (`COMMAND_LINE_SIZE`),
/// less the room for naming eight devices.
pub(super) const MAX_CMDLINE: usize = 2048 - 8 * 48;

/// The longest path, in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Descriptors below are the standard ones.
const FIRST_FD: RawFd = 3;

/// A VMM has no descriptors above (`RLIMIT_NOFILE`, see `confine`).
const LAST_FD: RawFd = 1023;

/// What a runner is to run, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(crate) struct RunnerConfig {
    pub(super) vcpus: Vcpus,
    pub(super) memory: MemorySize,
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) cmdline: String,
    pub(super) disks: Vec<Disk>,
    pub(super) ports: Vec<(PortName, RawFd)>,
    /// The card's address, and the socket of its frames.
    pub(super) network: Option<([u8; 6], RawFd)>,
}

/// As it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    vcpus: u32,
    memory_mib: u64,
    kernel: String,
    initramfs: String,
    cmdline: String,
    disks: Vec<WrittenDisk>,
    ports: Vec<(String, RawFd)>,
    network: Option<([u8; 6], RawFd)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDisk {
    path: String,
    format: WrittenFormat,
    read_only: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenFormat {
    Raw,
    Vmdk,
}

/// Why a configuration is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("{0}")]
    Machine(#[from] crate::error::Error),
    #[error("the path of the {0} is relative, too long, or holds a NUL")]
    Path(&'static str),
    #[error("the command line is too long, or holds unprintable characters")]
    Cmdline,
    #[error("a disk of this format cannot be written to")]
    Writable,
    #[error("too many {0}")]
    TooMany(&'static str),
    #[error("descriptor {0} is out of bounds or given twice")]
    Descriptor(RawFd),
    #[error("the network card's address is no card's")]
    Mac,
}

impl TryFrom<Written> for RunnerConfig {
    type Error = Invalid;

    fn try_from(written: Written) -> Result<Self, Invalid> {
        if written.cmdline.len() > MAX_CMDLINE || !written.cmdline.bytes().all(printable) {
            return Err(Invalid::Cmdline);
        }
        if written.disks.len() > MAX_DISKS {
            return Err(Invalid::TooMany("disks"));
        }
        if written.ports.len() > MAX_PORTS {
            return Err(Invalid::TooMany("console ports"));
        }
        let mut seen = BTreeSet::new();
        let ports = written.ports.iter().map(|(_, fd)| *fd);
        for fd in ports.chain(written.network.map(|(_, fd)| fd)) {
            if !(FIRST_FD..=LAST_FD).contains(&fd) || !seen.insert(fd) {
                return Err(Invalid::Descriptor(fd));
            }
        }
        let mut names = Vec::with_capacity(written.ports.len());
        for (name, fd) in written.ports {
            let name = PortName::try_from(name.as_str())?;
            if names.iter().any(|(taken, _)| *taken == name) {
                let name = name.to_string();
                return Err(crate::error::Error::DuplicatePort { name }.into());
            }
            names.push((name, fd));
        }
        if let Some((mac, _)) = written.network {
            let card = Card { mac, mtu: MAX_MTU };
            card.validate().map_err(|_| Invalid::Mac)?;
        }
        Ok(RunnerConfig {
            vcpus: Vcpus::try_from(written.vcpus)?,
            memory: MemorySize::from_mib(written.memory_mib)?,
            kernel: path("kernel", written.kernel)?,
            initramfs: path("initramfs", written.initramfs)?,
            cmdline: written.cmdline,
            disks: written
                .disks
                .into_iter()
                .map(disk)
                .collect::<Result<_, _>>()?,
            ports: names,
            network: written.network,
        })
    }
}

impl From<RunnerConfig> for Written {
    fn from(config: RunnerConfig) -> Written {
        // Encoding refuses other paths before it comes to this.
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        Written {
            vcpus: config.vcpus.count().into(),
            memory_mib: config.memory.mib(),
            kernel: text(config.kernel),
            initramfs: text(config.initramfs),
            cmdline: config.cmdline,
            disks: config
                .disks
                .into_iter()
                .map(|disk| WrittenDisk {
                    path: text(disk.path),
                    format: match disk.format {
                        // Overlays are refused before it comes to this.
                        DiskFormat::Raw | DiskFormat::Overlay => WrittenFormat::Raw,
                        DiskFormat::Vmdk => WrittenFormat::Vmdk,
                    },
                    read_only: disk.read_only,
                })
                .collect(),
            ports: config
                .ports
                .into_iter()
                .map(|(name, fd)| (name.to_string(), fd))
                .collect(),
            network: config.network,
        }
    }
}

fn printable(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte == b' '
}

fn path(what: &'static str, text: String) -> Result<PathBuf, Invalid> {
    if text.len() > MAX_PATH || text.contains('\0') || !Path::new(&text).is_absolute() {
        return Err(Invalid::Path(what));
    }
    Ok(text.into())
}

fn disk(written: WrittenDisk) -> Result<Disk, Invalid> {
    let format = match written.format {
        WrittenFormat::Raw => DiskFormat::Raw,
        WrittenFormat::Vmdk => DiskFormat::Vmdk,
    };
    if format == DiskFormat::Vmdk && !written.read_only {
        return Err(Invalid::Writable);
    }
    Ok(Disk {
        path: path("disk", written.path)?,
        format,
        read_only: written.read_only,
    })
}

/// What a runner answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Reply {
    /// Everything is there; the next thing it does is to run the machine.
    Running,
    /// It gives up.
    Failed(Fault),
}

/// Why a runner gives up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Fault {
    /// The configuration is none.
    Configuration { reason: String },
    /// A file cannot be opened, or is not what it should be.
    File { part: Part, errno: i32 },
    /// Another machine writes to the disk.
    InUse { disk: usize },
    /// The library refused something.
    Library { call: String, errno: i32 },
    /// The program was built without the library.
    NoLibrary,
}

/// A file of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    Kvm,
    Kernel,
    Initramfs,
    Disk(usize),
}

/// Sends a message.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] for one that is too long, and what writing fails with.
pub(super) fn send(mut socket: impl Write, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    if json.len() > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let length = (json.len() as u32).to_le_bytes();
    socket.write_all(&[&length[..], &json].concat())
}

/// Receives a message.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] with the reason for one that is too long or makes no
/// sense, and what reading fails with.
pub(super) fn receive<T: DeserializeOwned>(mut socket: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        let reason = format!("a message of {length} bytes; there are at most {MAX_MESSAGE}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let mut json = vec![0; length];
    socket.read_exact(&mut json)?;
    parse(&json)
}

/// Reads the JSON of a message.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] with the reason.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    serde_json::from_slice(json).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written() -> Value {
        json!({
            "vcpus": 2, "memory_mib": 512,
            "kernel": "/guest/vmlinux", "initramfs": "/guest/initramfs.cpio",
            "cmdline": "quiet panic=-1",
            "disks": [
                { "path": "/image/root.vmdk", "format": "vmdk", "read_only": true },
                { "path": "/a b/disk", "format": "raw", "read_only": false },
            ],
            "ports": [["msb.agent", 5], ["second", 6]],
            "network": [[2, 0, 0, 0, 0, 1], 7],
        })
    }

    fn read(value: &Value) -> io::Result<RunnerConfig> {
        parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_configuration_survives_the_way() {
        let config = read(&written()).unwrap();
        let mut sent = Vec::new();
        send(&mut sent, &config).unwrap();
        let received: RunnerConfig = receive(sent.as_slice()).unwrap();
        assert_eq!(received, config);
        assert_eq!(serde_json::to_value(&config).unwrap(), written());
    }

    #[test]
    fn what_would_mean_something_else_to_the_library_is_refused() {
        let changes = [
            ("/vcpus", json!(0)),
            ("/vcpus", json!(65)),
            ("/memory_mib", json!(1)),
            ("/memory_mib", json!(u64::MAX)),
            ("/kernel", json!("guest/vmlinux")),
            ("/kernel", json!("/guest\0/vmlinux")),
            ("/initramfs", json!(format!("/{}", "x".repeat(MAX_PATH)))),
            ("/cmdline", json!("a\nb")),
            ("/cmdline", json!("x".repeat(MAX_CMDLINE + 1))),
            ("/disks/1/path", json!("")),
            ("/disks/1/format", json!("qcow2")),
            ("/disks/0/read_only", json!(false)),
            ("/disks", json!(vec![written()["disks"][0].clone(); 5])),
            ("/ports/0/0", json!("a,b")),
            ("/ports/0/0", json!("second")),
            ("/ports/0/1", json!(0)),
            ("/ports/0/1", json!(-1)),
            ("/ports/0/1", json!(6)),
            ("/ports/0/1", json!(7)),
            ("/ports/0/1", json!(1024)),
            ("/network/0", json!([1, 0, 0, 0, 0, 1])),
            ("/network/0", json!([2, 0, 0, 0, 0])),
            ("/network/1", json!(2)),
        ];
        for (place, value) in changes {
            let mut changed = written();
            *changed.pointer_mut(place).unwrap() = value;
            let error = read(&changed).expect_err(place);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{place}: {error}");
        }
        let mut more = written();
        more["bios"] = json!("/x");
        assert!(read(&more).is_err());
    }

    #[test]
    fn messages_are_bounded_before_they_are_read() {
        let endless = io::repeat(0xff);
        let error = receive::<Reply>(endless).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let cut = receive::<Reply>(&[5, 0, 0, 0, b'"'][..]).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn replies_survive_the_way() {
        for reply in [
            Reply::Running,
            Reply::Failed(Fault::File {
                part: Part::Disk(3),
                errno: 13,
            }),
            Reply::Failed(Fault::Library {
                call: "krun_set_vm_config".into(),
                errno: 22,
            }),
        ] {
            let mut sent = Vec::new();
            send(&mut sent, &reply).unwrap();
            assert_eq!(receive::<Reply>(sent.as_slice()).unwrap(), reply);
        }
    }
}
