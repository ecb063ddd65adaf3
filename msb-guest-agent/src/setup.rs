//! The host's side of the setup phase: blocking requests and answers.
//!
//! Setup happens before streams exist: while a template is being made, and
//! after each start. Everything is one request and one answer, so nothing is
//! left in a buffer when the link is handed on to a
//! [`HostEndpoint`](crate::endpoint::HostEndpoint).

use std::io::{Read, Write};

use bytes::BytesMut;

use crate::error::Error;
use crate::message::{
    self, AgentHello, AgentMessage, ByteString, Configured, GuestConfig, HostMessage, MAX_MESSAGE,
    NetworkSpec, PROTOCOL_VERSION, RootSpec, SetupFailure,
};
use crate::wire::{Frame, FrameDecoder, HEADER_LEN, Kind, StreamId, put_message};

/// Greets the agent and waits for its answer: afterwards it is known to be
/// ready and of the same version.
///
/// # Errors
/// [`Error::Setup`] naming both versions when they differ, [`Error::LinkClosed`]
/// when the guest ended, [`Error::LinkIo`] also for a timeout set on the link.
pub fn hello<L: Read + Write>(link: &mut L) -> Result<AgentHello, Error> {
    let request = HostMessage::Hello {
        version: PROTOCOL_VERSION,
    };
    match exchange(link, &request, "greeting it")? {
        AgentMessage::Hello(hello) if hello.version == PROTOCOL_VERSION => Ok(hello),
        AgentMessage::Hello(hello) => Err(Error::Setup(SetupFailure::Version {
            host: PROTOCOL_VERSION,
            agent: hello.version,
        })),
        _ => Err(unexpected("another answer to Hello")),
    }
}

/// Makes the agent set up what all copies share and let go of all disks, so that the
/// guest can be saved and restored with others.
///
/// # Errors
/// As [`hello`].
pub fn prepare<L: Read + Write>(link: &mut L, network: Option<NetworkSpec>) -> Result<(), Error> {
    let request = HostMessage::Prepare { network };
    match exchange(link, &request, "preparing it for a template")? {
        AgentMessage::Prepared => Ok(()),
        _ => Err(unexpected("another answer to Prepare")),
    }
}

/// Makes the agent mount the root before anybody is configured, and read the files
/// `read_ahead`, so that the guest can be saved with both.
///
/// # Errors
/// As [`hello`].
pub fn mount_root<L: Read + Write>(
    link: &mut L,
    root: RootSpec,
    read_ahead: Vec<ByteString>,
) -> Result<(), Error> {
    let request = HostMessage::MountRoot { root, read_ahead };
    match exchange(link, &request, "mounting its root")? {
        AgentMessage::Prepared => Ok(()),
        _ => Err(unexpected("another answer to MountRoot")),
    }
}

/// Configures the guest, which ends the setup phase, and checks that it became
/// what it was told to: no user code has run before this returns.
///
/// # Errors
/// [`Error::Setup`] with what went wrong in the guest, otherwise as [`hello`].
pub fn configure<L: Read + Write>(link: &mut L, config: GuestConfig) -> Result<Configured, Error> {
    identify(link, config, HostMessage::Configure)
}

/// Makes a guest that was saved while it was held another one, and checks that it is. Its
/// processes are held until [`thaw`].
///
/// # Errors
/// As [`configure`].
pub fn become_other<L: Read + Write>(
    link: &mut L,
    config: GuestConfig,
) -> Result<Configured, Error> {
    identify(link, config, HostMessage::Become)
}

fn identify<L: Read + Write>(
    link: &mut L,
    config: GuestConfig,
    request: fn(Box<GuestConfig>) -> HostMessage,
) -> Result<Configured, Error> {
    let (hostname, machine_id) = (config.hostname.clone(), config.machine_id);
    let mac = config.network.as_ref().map(|network| network.mac);
    let request = request(Box::new(config));
    let AgentMessage::Configured(done) = exchange(link, &request, "configuring it")? else {
        return Err(unexpected("another answer than what it has become"));
    };
    let confirmed = done.entropy_bits >= 256
        && done.hostname == hostname
        && done.machine_id == machine_id
        && done.mac == mac
        && !done.boot_id.is_empty();
    if !confirmed {
        return Err(unexpected("the guest did not confirm its identity"));
    }
    Ok(*done)
}

/// Lets all processes of a guest go on that were held.
///
/// # Errors
/// As [`hello`].
pub fn thaw<L: Read + Write>(link: &mut L) -> Result<(), Error> {
    match exchange(link, &HostMessage::Thaw, "letting its processes go on")? {
        AgentMessage::Thawed => Ok(()),
        _ => Err(unexpected("another answer to Thaw")),
    }
}

fn exchange<L: Read + Write>(
    link: &mut L,
    request: &HostMessage,
    during: &'static str,
) -> Result<AgentMessage, Error> {
    let io = |error: &std::io::Error| Error::LinkIo {
        during,
        kind: error.kind(),
    };
    let message = message::encode(request);
    if message.len() > MAX_MESSAGE {
        return Err(Error::RequestTooLong {
            len: message.len(),
            max: MAX_MESSAGE,
        });
    }
    let mut out = BytesMut::new();
    put_message(&mut out, Kind::Control, StreamId::CONTROL, &message);
    link.write_all(&out).map_err(|error| io(&error))?;
    link.flush().map_err(|error| io(&error))?;

    let mut answer = Vec::new();
    loop {
        let frame = read_frame(link, during)?;
        if answer.len() + frame.payload.len() > MAX_MESSAGE {
            return Err(Error::MessageTooLong {
                stream: frame.stream,
                max: MAX_MESSAGE,
            });
        }
        answer.extend_from_slice(&frame.payload);
        match (frame.stream, frame.kind) {
            (StreamId::CONTROL, Kind::Control) => break,
            (StreamId::CONTROL, Kind::Part) => {}
            _ => return Err(unexpected("no streams during setup")),
        }
    }
    match message::decode(&answer) {
        Some(AgentMessage::Failed(failure)) => Err(Error::Setup(failure)),
        Some(message) => Ok(message),
        None => Err(Error::Message {
            kind: Kind::Control,
            stream: StreamId::CONTROL,
        }),
    }
}

/// Reads exactly one frame, so that nothing is taken that belongs to whoever
/// reads next.
fn read_frame<L: Read>(link: &mut L, during: &'static str) -> Result<Frame, Error> {
    let mut decoder = FrameDecoder::new();
    let mut header = [0; HEADER_LEN];
    read_exact(link, &mut header, during)?;
    decoder.extend(&header);
    if let Some(frame) = decoder.next_frame()? {
        return Ok(frame);
    }
    // The decoder has found the length to be in bounds.
    let counted = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let mut payload = vec![0; counted + 4 - HEADER_LEN];
    read_exact(link, &mut payload, during)?;
    decoder.extend(&payload);
    decoder.next_frame()?.ok_or(Error::LinkClosed { during })
}

fn read_exact<L: Read>(link: &mut L, buffer: &mut [u8], during: &'static str) -> Result<(), Error> {
    link.read_exact(buffer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
            Error::LinkClosed { during }
        }
        kind => Error::LinkIo { during, kind },
    })
}

fn unexpected(reason: &'static str) -> Error {
    Error::Unexpected {
        kind: Kind::Control,
        stream: StreamId::CONTROL,
        reason,
    }
}
