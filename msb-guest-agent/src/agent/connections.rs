//! Ending the TCP connections of a guest that has become another one.
//!
//! At their other ends is whoever the first guest talks to, which goes on. The programs that
//! have them are held meanwhile; each finds its connections reset. Those within the guest,
//! over loopback, stay.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use rustix::net::{SocketType, connect_unspec, getsockname, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Resets the connections of `processes` that come from one of the addresses `own`.
pub(super) fn reset(proc: BorrowedFd<'_>, processes: &[i32], own: &[IpAddr]) -> io::Result<()> {
    let mut seen = HashSet::new();
    let processes = processes.iter().filter(|pid| **pid > 0);
    for pid in processes.filter_map(|pid| Pid::from_raw(*pid)) {
        if let Err(error) = reset_of(proc, pid, own, &mut seen)
            // It has ended, and its connections with it.
            && !matches!(error, Errno::SRCH | Errno::NOENT)
        {
            return Err(error.into());
        }
    }
    Ok(())
}

fn reset_of(
    proc: BorrowedFd<'_>,
    pid: Pid,
    own: &[IpAddr],
    seen: &mut HashSet<Vec<u8>>,
) -> Result<(), Errno> {
    let path = format!("{}/fd", pid.as_raw_nonzero());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(proc, path, flags, Mode::empty())?;
    let mut process = None;
    for entry in Dir::read_from(&folder)? {
        let name = entry?.file_name().to_owned();
        let Some(number) = name.to_str().ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let target = match readlinkat(&folder, &name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        // Processes share sockets.
        if !target.starts_with(b"socket:[") || !seen.insert(target) {
            continue;
        }
        let process: &OwnedFd = match &mut process {
            Some(process) => process,
            none => none.insert(pidfd_open(pid, PidfdFlags::empty())?),
        };
        match pidfd_getfd(process, number, PidfdGetfdFlags::empty()) {
            Ok(socket) if is_from(&socket, own) => connect_unspec(&socket)?,
            Ok(_) | Err(Errno::BADF) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Whether it is a TCP socket, other than one that listens, with one of the addresses.
fn is_from(socket: &OwnedFd, own: &[IpAddr]) -> bool {
    if sockopt::socket_type(socket) != Ok(SocketType::STREAM)
        || sockopt::socket_acceptconn(socket) != Ok(false)
    {
        return false;
    }
    let address = getsockname(socket)
        .ok()
        .and_then(|name| SocketAddr::try_from(name).ok());
    address.is_some_and(|address| own.contains(&address.ip().to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    /// Loopback stands for a card's address; the other process has the connection as its
    /// input.
    #[test]
    fn the_connection_of_another_process_is_reset_and_one_from_elsewhere_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut peer = listener.accept().unwrap().0;
        let mut child = Command::new("cat")
            .stdin(Stdio::from(OwnedFd::from(stream)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let proc = rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        let pids = [child.id() as i32];
        let other = ["127.0.0.2".parse().unwrap()];
        let reset = |own: &[IpAddr]| super::reset(proc.as_fd(), &pids, own).unwrap();
        use std::os::fd::AsFd;
        reset(&other);
        assert!(child.try_wait().unwrap().is_none());
        reset(&["127.0.0.1".parse().unwrap()]);
        // Reading fails, so the program ends in an error, and the peer hears of it, too.
        assert!(!child.wait().unwrap().success());
        assert!(peer.read(&mut [0]).is_err());
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        let proc = rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        use std::os::fd::AsFd;
        assert!(super::reset(proc.as_fd(), &[i32::MAX, 0, -1], &[]).is_ok());
    }
}
