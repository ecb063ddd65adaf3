//! Two network namespaces: a host, and behind it the world.
//!
//! ```text
//!   host 11.0.0.2, 2600:b::2 ──── 11.0.0.1, 2600:b::1 world
//!                                  1.1.1.1, 10.9.0.1, 169.254.169.254, 2606::1
//! ```
//!
//! The addresses are made up: nothing here is joined to a network. A namespace
//! lives as long as a process in it, and that one ends when the test does.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) struct World {
    pub(crate) host: Namespace,
    pub(crate) world: Namespace,
    /// For files that the host's programs need; anybody may read them.
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) struct Namespace(Child);

impl World {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let folder = tempfile::tempdir().expect("a folder");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("its mode");
        let (host, world) = (Namespace::new(), Namespace::new());
        let peer = world.0.id().to_string();
        host.ip(&[
            "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", &peer,
        ]);
        for (space, link, addresses) in [
            (&host, "up0", &["11.0.0.2/24", "2600:b::2/64"][..]),
            (&world, "down0", &["11.0.0.1/24", "2600:b::1/64"]),
            (
                &world,
                "lo",
                &[
                    "1.1.1.1/32",
                    "10.9.0.1/32",
                    "169.254.169.254/32",
                    "2606::1/128",
                ],
            ),
            (&host, "lo", &[]),
        ] {
            space.ip(&["link", "set", link, "up"]);
            for address in addresses {
                let arguments = ["addr", "add", address, "dev", link];
                let nodad: &[&str] = if address.contains(':') {
                    &["nodad"]
                } else {
                    &[]
                };
                space.ip(&[&arguments[..], nodad].concat());
            }
        }
        host.ip(&["route", "add", "default", "via", "11.0.0.1"]);
        host.ip(&["route", "add", "default", "via", "2600:b::1"]);
        Self {
            host,
            world,
            folder,
        }
    }

    /// A third place, which the world routes to: 8.8.8.8 and 2608::1.
    pub(crate) fn beyond(&self) -> Namespace {
        let far = Namespace::new();
        let peer = far.0.id().to_string();
        let (world, link) = (&self.world, ["link", "add", "down1", "type", "veth"]);
        world.ip(&[&link[..], &["peer", "name", "up0", "netns", &peer]].concat());
        world.ip(&["link", "set", "down1", "up"]);
        world.ip(&["addr", "add", "12.0.0.1/24", "dev", "down1"]);
        world.ip(&["addr", "add", "2600:c::1/64", "dev", "down1", "nodad"]);
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward;
            echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
        done(world.command("sh").args(["-c", forward]));
        far.ip(&["link", "set", "lo", "up"]);
        far.ip(&["link", "set", "up0", "up"]);
        for address in ["12.0.0.2/24", "2600:c::2/64"] {
            far.ip(&["addr", "add", address, "dev", "up0"]);
        }
        for (address, near, back) in [
            ("8.8.8.8", "12.0.0.2", "12.0.0.1"),
            ("2608::1", "2600:c::2", "2600:c::1"),
        ] {
            far.ip(&["addr", "add", address, "dev", "lo"]);
            far.ip(&["route", "add", "default", "via", back]);
            world.ip(&["route", "add", address, "via", near]);
        }
        far
    }

    /// A TCP server in the world, which answers every connection with `answer` to
    /// what came until then, for as long as the test runs.
    pub(crate) fn serve(&self, at: &str, answer: fn(&mut std::net::TcpStream)) {
        let at: SocketAddr = at.parse().expect("an address");
        let listener = self
            .world
            .enter(move || TcpListener::bind(at).expect("a free port"));
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || answer(&mut stream));
            }
        });
    }

    /// An example of this crate where everybody may execute it.
    pub(crate) fn example(&self, name: &str) -> PathBuf {
        let copy = self.folder.path().join(name);
        if !copy.exists() {
            std::fs::copy(example(name), &copy).expect("it can be copied");
        }
        copy
    }
}

/// Where an example of this crate was built.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's path");
    let target = test
        .parent()
        .and_then(Path::parent)
        .expect("a target folder");
    let path = target.join("examples").join(name);
    assert!(
        path.exists(),
        "{} is missing: build with --examples",
        path.display()
    );
    path
}

impl Namespace {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "a namespace");
        Self(child)
    }

    /// A command that runs here.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.0.id().to_string();
        command
            .args(["--net", "--mount", "-t", &target, "--"])
            .arg(program);
        command
    }

    pub(crate) fn ip(&self, arguments: &[&str]) {
        done(self.command("ip").args(arguments));
    }

    /// Runs `work` in the network of this namespace: its sockets stay there.
    pub(crate) fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/proc/{}/ns/net", self.0.id());
        let space = std::fs::File::open(path).expect("the namespace is there");
        let entered = std::thread::spawn(move || {
            use std::os::fd::AsFd as _;
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(space.as_fd(), kind).expect("it can be entered");
            work()
        });
        entered.join().expect("the work succeeds")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command that must succeed.
pub(crate) fn done(command: &mut Command) -> Output {
    let output = command.output().expect("it can be started");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
