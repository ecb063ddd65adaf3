//! Ending the TCP connections of a guest that has become another one.
//!
//! At their other ends is whoever the first guest talks to, which goes on. The programs that
//! have them are held meanwhile; each finds its connections reset. Those within the guest,
//! over loopback, stay.
//!
//! They are looked for before the guest is saved: nobody makes another one until it goes on,
//! and each copy would have to translate what looking takes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use rustix::net::{SocketType, connect_unspec, getsockname, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// The longest table of connections that is read. Of a longer one some is taken for granted.
const MAX_TABLE: u64 = 8 << 20;

/// Whether anybody may have a connection from one of the addresses `own`: the tables of the
/// kernel are read with a fraction of the kernel code that it takes to look at all descriptors.
fn any(proc: BorrowedFd<'_>, own: &[IpAddr]) -> bool {
    let tables = [("self/net/tcp", false), ("self/net/tcp6", true)];
    tables.into_iter().any(|(path, is_v6)| {
        let own: Vec<String> = own.iter().filter_map(|own| shown(*own, is_v6)).collect();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match openat(proc, path, flags, Mode::empty()) {
            Ok(table) => is_in(File::from(table).take(MAX_TABLE), &own),
            // A kernel without IPv6 has no table of it.
            Err(errno) => errno != Errno::NOENT,
        }
    })
}

/// Whether a table has one that does not listen from one of the addresses, or can't be read to
/// its end.
fn is_in(mut table: io::Take<impl Read>, own: &[String]) -> bool {
    let mut text = String::new();
    if table.read_to_string(&mut text).is_err() || table.limit() == 0 {
        return true;
    }
    text.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1));
        let address = local.split(':').next().unwrap_or_default();
        state != Some(LISTENS) && own.iter().any(|own| own == address)
    })
}

/// The state of a socket that listens, in tables.
const LISTENS: &str = "0A";

/// How a table shows an address; `None` where it has none of the kind.
fn shown(address: IpAddr, is_v6: bool) -> Option<String> {
    let octets = match (address, is_v6) {
        (IpAddr::V4(address), false) => address.octets().to_vec(),
        (IpAddr::V4(address), true) => address.to_ipv6_mapped().octets().to_vec(),
        (IpAddr::V6(address), true) => address.octets().to_vec(),
        (IpAddr::V6(_), false) => return None,
    };
    let words = octets.chunks_exact(4);
    let word = |word: &[u8]| u32::from_ne_bytes(word.try_into().unwrap_or_default());
    Some(words.map(|bytes| format!("{:08X}", word(bytes))).collect())
}

/// Connections that somebody else has.
#[derive(Debug, Default)]
pub(super) struct Connections(Vec<OwnedFd>);

impl Connections {
    /// Finds those that come from one of the addresses `own`, among all that the `processes`
    /// have.
    pub(super) fn find(
        proc: BorrowedFd<'_>,
        processes: impl FnOnce() -> io::Result<Vec<i32>>,
        own: &[IpAddr],
    ) -> io::Result<Connections> {
        let mut found = Connections::default();
        if !any(proc, own) {
            return Ok(found);
        }
        let mut seen = HashSet::new();
        let processes = processes()?.into_iter().filter(|pid| *pid > 0);
        for pid in processes.filter_map(Pid::from_raw) {
            if let Err(error) = found.add_of(proc, pid, own, &mut seen)
                // It has ended, and its connections with it.
                && !matches!(error, Errno::SRCH | Errno::NOENT)
            {
                return Err(error.into());
            }
        }
        Ok(found)
    }

    /// Resets them.
    pub(super) fn reset(self) -> io::Result<()> {
        for socket in self.0 {
            connect_unspec(&socket)?;
        }
        Ok(())
    }

    fn add_of(
        &mut self,
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
                Ok(socket) if is_from(&socket, own) => self.0.push(socket),
                Ok(_) | Err(Errno::BADF) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
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
    use std::io::Write;
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
        use std::os::fd::AsFd;
        let find = |own: &[IpAddr]| {
            let processes = || Ok(pids.to_vec());
            Connections::find(proc.as_fd(), processes, own).unwrap()
        };
        let any = |own: &str| super::any(proc.as_fd(), &[own.parse().unwrap()]);
        assert!(any("127.0.0.1") && !any("127.0.0.2") && !any("2001:db8::1"));
        find(&other).reset().unwrap();
        let found = find(&["127.0.0.1".parse().unwrap()]);
        // To be found does nothing to it.
        peer.write_all(b"x").unwrap();
        assert!(child.try_wait().unwrap().is_none());
        found.reset().unwrap();
        // Reading fails, so the program ends in an error, and the peer hears of it, too.
        assert!(!child.wait().unwrap().success());
        assert!(peer.read(&mut [0]).is_err());
    }

    #[test]
    fn tables_are_read_as_the_kernel_writes_them() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 0\n   \
                     1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 0\n";
        let shown = |address: &str, is_v6| super::shown(address.parse().unwrap(), is_v6);
        let own = shown("127.0.0.1", false).unwrap();
        assert_eq!(own, "0100007F");
        let find = |text: &str, own: &str| is_in(text.as_bytes().take(999), &[own.to_owned()]);
        assert!(find(table, &own));
        assert!(!find(table, &shown("127.0.0.2", false).unwrap()));
        // One that listens is none.
        let listens: Vec<_> = table.lines().take(2).collect();
        assert!(!find(&listens.join("\n"), &own));
        // What is too long may have one.
        assert!(is_in(table.as_bytes().take(100), &["0200007F".to_owned()]));
        let mapped = "0000000000000000FFFF00000100007F";
        assert_eq!(shown("127.0.0.1", true).unwrap(), mapped);
        let real = "B80D0120000000000000000001000000";
        assert_eq!(shown("2001:db8::1", true).unwrap(), real);
        assert_eq!(shown("2001:db8::1", false), None);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        let proc = rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        use std::os::fd::AsFd;
        let mut found = Connections::default();
        let gone = Pid::from_raw(i32::MAX).unwrap();
        let added = found.add_of(proc.as_fd(), gone, &[], &mut HashSet::new());
        assert_eq!(added, Err(Errno::NOENT));
        let own = ["127.0.0.1".parse().unwrap()];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let gone = || Ok(vec![i32::MAX, 0, -1]);
        let found = Connections::find(proc.as_fd(), gone, &own).unwrap();
        assert!(found.0.is_empty());
    }
}
