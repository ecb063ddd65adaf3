//! A TAP device whose frames go to a stream socket and come from there: QEMU without a
//! machine, as the wire between two of its network back ends.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use super::Namespace;
use crate::program;

/// How long a gateway may take until it listens, and QEMU until the device is there:
/// tries, 25 ms apart.
const MAX_TRIES: u32 = 200;

/// The addresses on the link, which are those that gvisor-tap-vsock has.
pub(super) const GUEST: &str = "192.168.127.2";
pub(super) const GATEWAY: &str = "192.168.127.1";

/// A bridge at work.
#[derive(Debug)]
pub(super) struct Bridge(Child);

impl Bridge {
    /// Joins a new TAP device of `guest` to a gateway that listens, or soon will, on
    /// `socket`; gives it its addresses.
    pub(super) fn new(guest: &Namespace, socket: &Path, mtu: u16) -> Result<Self> {
        if !tries(|| socket.exists()) {
            bail!("nobody listens on {}", socket.display());
        }
        let mut command = guest.command("qemu-system-x86_64");
        command.args(["-M", "none", "-nodefaults", "-display", "none"]);
        for netdev in [
            "tap,id=tap,ifname=tap0,script=no,downscript=no,vnet_hdr=off",
            &format!(
                "stream,id=far,addr.type=unix,addr.path={}",
                socket.display()
            ),
            "hubport,id=one,hubid=0,netdev=tap",
            "hubport,id=other,hubid=0,netdev=far",
        ] {
            command.args(["-netdev", netdev]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let qemu = command.stderr(Stdio::null()).spawn();
        let qemu = qemu.map_err(|error| program::cannot_run(&command, &error))?;
        let bridge = Self(qemu);
        let up = format!("link set tap0 mtu {mtu} up");
        if !tries(|| guest.ip(&up).is_ok()) {
            bail!("QEMU makes no TAP device");
        }
        guest.ip(&format!("addr add {GUEST}/24 dev tap0"))?;
        guest.ip(&format!("route add default via {GATEWAY}"))?;
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until it is so; false if it takes too long.
fn tries(mut is_so: impl FnMut() -> bool) -> bool {
    for _ in 0..MAX_TRIES {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    false
}
