//! PID 1 from its first instruction to the session: early mounts, the console
//! port, the setup phase.
//!
//! Until `Hello` is answered as little as possible is done: every template
//! start and every cold boot waits for it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use bytes::BytesMut;
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};

use super::connections::Sockets;
use super::disks::Disks;
use super::link::Link;
use super::network::Network;
use super::root::Root;
use super::stage::{self, Stage};
use super::world::World;
use super::{configure, read_ahead};
use crate::message::{
    self, AgentHello, AgentMessage, ByteString, Errno, HostMessage, MAX_MESSAGE, NetworkSpec,
    PROTOCOL_VERSION, RootSpec, SetupFailure, Upper,
};
use crate::wire::{FrameDecoder, Kind, StreamId, put_message};

/// Name of the console port that is the agent link.
const PORT_NAME: &str = "msb.agent";

/// `uevent` multicast group of the kernel.
const UEVENT_GROUP: u32 = 1;

/// What the session needs from setup.
pub(super) struct Booted {
    pub(super) link: Link,
    pub(super) world: World,
    pub(super) guest: Guest,
}

/// What makes this guest a particular one, beside its world.
pub(super) struct Guest {
    pub(super) root: Root,
    /// Kept: see there.
    pub(super) network: Network,
    pub(super) sockets: Sockets,
    /// Of its kernel. Copies that go on from this guest have the same.
    pub(super) boot_id: String,
}

/// Boots to the end of the setup phase.
pub(super) fn boot() -> io::Result<Booted> {
    stage::mount_early()?;
    let link = Link::new(open_port()?)?;
    let mut setup = Setup {
        link,
        decoder: FrameDecoder::new(),
        scratch: vec![0; 16 * 1024],
        stage: Stage::default(),
        disks: Disks::default(),
        network: Network::default(),
        root: None,
    };
    loop {
        let request = setup.receive()?;
        if let HostMessage::Configure(config) = request {
            match configure::configure(&config, &mut setup) {
                Ok((answer, world, root)) => {
                    let boot_id = answer.boot_id.clone();
                    setup.send(&AgentMessage::Configured(Box::new(answer)))?;
                    return Ok(Booted {
                        link: setup.link,
                        world,
                        guest: Guest {
                            root,
                            network: setup.network,
                            sockets: Sockets::default(),
                            boot_id,
                        },
                    });
                }
                // The guest may be half made now: nothing but a new one helps.
                Err(failure) => setup.send(&AgentMessage::Failed(failure))?,
            }
        } else {
            let answer = setup.answer(&request);
            setup.send(&answer)?;
        }
    }
}

/// The state of the setup phase.
pub(super) struct Setup {
    link: Link,
    decoder: FrameDecoder,
    scratch: Vec<u8>,
    pub(super) stage: Stage,
    pub(super) disks: Disks,
    pub(super) network: Network,
    /// The root, if it was mounted ahead.
    pub(super) root: Option<Root>,
}

impl Setup {
    fn answer(&mut self, request: &HostMessage) -> AgentMessage {
        match request {
            HostMessage::Hello { version } if *version == PROTOCOL_VERSION => {
                AgentMessage::Hello(AgentHello {
                    version: PROTOCOL_VERSION,
                })
            }
            HostMessage::Hello { version } => AgentMessage::Failed(SetupFailure::Version {
                host: *version,
                agent: PROTOCOL_VERSION,
            }),
            HostMessage::Prepare { network } => match self.prepare(network.as_ref()) {
                Ok(()) => AgentMessage::Prepared,
                Err(failure) => AgentMessage::Failed(failure),
            },
            HostMessage::MountRoot { root, read_ahead } => {
                match self.mount_root(root, read_ahead) {
                    Ok(()) => AgentMessage::Prepared,
                    Err(failure) => AgentMessage::Failed(failure),
                }
            }
            HostMessage::Ping { token } => AgentMessage::Pong { token: *token },
            _ => AgentMessage::Failed(SetupFailure::Refused("not during setup".into())),
        }
    }

    /// Does ahead of the save what does not depend on who the guest becomes.
    fn prepare(&mut self, network: Option<&NetworkSpec>) -> Result<(), SetupFailure> {
        self.stage.make()?;
        self.network.apply(network)?;
        let unbound = self.disks.unbind();
        unbound.map_err(|error| step("let go of the disks", &error))?;
        self.network.settle()
    }

    /// Mounts the root before anybody owns it.
    fn mount_root(
        &mut self,
        root: &RootSpec,
        read_ahead: &[ByteString],
    ) -> Result<(), SetupFailure> {
        if self.root.is_some() || matches!(root.upper, Upper::Disk(_)) {
            let reason = "a root is mounted ahead once, and not with a disk as its upper";
            return Err(SetupFailure::Refused(reason.into()));
        }
        self.stage.make()?;
        let bound = self.disks.bind_up_to(&root.lower);
        bound.map_err(|error| step("take up the root's disk", &error))?;
        self.root = Some(Root::mount(root, &self.disks)?);
        read_ahead::read(read_ahead, &mut self.scratch);
        Ok(())
    }

    /// Waits for a request, for as long as it takes. A host that went away is
    /// waited for too: a template is saved and restored in this call.
    fn receive(&mut self) -> io::Result<HostMessage> {
        let mut parts = Vec::new();
        loop {
            let frame = self.decoder.next_frame().map_err(|error| broken(&error))?;
            let Some(frame) = frame else {
                self.read()?;
                continue;
            };
            if !frame.stream.is_control() || parts.len() + frame.payload.len() > MAX_MESSAGE {
                return Err(broken(&"a frame that setup does not have"));
            }
            parts.extend_from_slice(&frame.payload);
            if frame.kind == Kind::Control {
                return message::decode(&parts).ok_or_else(|| broken(&"an unknown request"));
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        match self.link.read(&mut self.scratch)? {
            Some([]) => self.link.wait(PollFlags::IN).map(drop),
            Some(bytes) => {
                self.decoder.extend(bytes);
                Ok(())
            }
            None => {
                // A half request of the old host is not the new one's.
                self.decoder = FrameDecoder::new();
                self.link.wait_connected()
            }
        }
    }

    fn send(&mut self, message: &AgentMessage) -> io::Result<()> {
        let mut out = BytesMut::new();
        let message = message::encode(message);
        put_message(&mut out, Kind::Control, StreamId::CONTROL, &message);
        self.link.write_all(&out)
    }
}

fn broken(reason: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("agent link broken: {reason}"),
    )
}

/// Names a failed step.
pub(super) fn step(step: &str, error: &io::Error) -> SetupFailure {
    SetupFailure::Step {
        step: step.into(),
        errno: Errno(error.raw_os_error().unwrap_or(0)),
    }
}

/// Opens the console port of the link, waiting for the kernel to announce it
/// if need be: ports come and get their names after their device is probed.
fn open_port() -> io::Result<OwnedFd> {
    if let Some(port) = find_port()? {
        return Ok(port);
    }
    let flags = SocketFlags::CLOEXEC;
    let uevents = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(netlink::KOBJECT_UEVENT),
    )?;
    let address = netlink::SocketAddrNetlink::new(0, UEVENT_GROUP);
    rustix::net::bind(&uevents, &address)?;
    let mut event = [0; 4096];
    loop {
        if let Some(port) = find_port()? {
            return Ok(port);
        }
        // What it says does not matter; a lost one means there were others.
        match rustix::io::read(&uevents, &mut event) {
            Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn find_port() -> io::Result<Option<OwnedFd>> {
    let Ok(ports) = fs::read_dir("/sys/class/virtio-ports") else {
        return Ok(None);
    };
    for port in ports {
        let port = port?.file_name();
        let Some(port) = port.to_str() else { continue };
        let name = fs::read_to_string(format!("/sys/class/virtio-ports/{port}/name"));
        if name.is_ok_and(|name| name.trim_end() == PORT_NAME) {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            let device = format!("/dev/{port}");
            return Ok(Some(rustix::fs::open(device, flags, Mode::empty())?));
        }
    }
    Ok(None)
}
