//! What a VMM that was taken over can do: this test binary is started again as one.

use std::collections::BTreeMap;
use std::io::{PipeReader, Write, pipe};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use rustix::process::{PidfdFlags, Signal, WaitStatus, kill_process, pidfd_open};

use super::*;

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let command = Command::new("/nonexistent/program");
    let error = spawn(command, Vec::new(), &Grants::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn what_this_host_has_is_found() {
    let found = examine().unwrap();
    assert_eq!(found.system_calls, Ok(()));
}

/// Some hosts allow the namespaces, and then no user in them.
#[test]
fn a_host_that_refuses_the_names_of_users_does_not_refuse_the_vmm() {
    let program = std::fs::canonicalize("/bin/true").unwrap();
    let mut grants = Grants::default();
    grants.program(&program);
    let refused = ["no map".to_owned(), "no map".to_owned()];
    let command = Command::new(&program);
    let confined = spawn_as(command, Vec::new(), &grants, refused).unwrap();
    let (_, status) = waitpid(Some(confined.pid), WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert_eq!(status.exit_status(), Some(0), "{status:?}");
}

/// What is said to the stand-in: who to attack, and where.
struct Targets {
    parent: Pid,
    port: u16,
    folder: PathBuf,
}

impl Targets {
    fn write(&self, mut pipe: impl Write) {
        let pid = self.parent.as_raw_nonzero();
        let folder = self.folder.display();
        write!(pipe, "{pid}\n{}\n{folder}\n", self.port).unwrap();
    }

    /// Reads what `write` wrote, in the stand-in.
    fn read() -> Targets {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).unwrap();
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap();
        Targets {
            parent: Pid::from_raw(next().parse().unwrap()).unwrap(),
            port: next().parse().unwrap(),
            folder: next().into(),
        }
    }
}

type Attempt = (&'static str, io::Result<()>);

/// Everything a taken-over VMM would try.
fn attempts(targets: &Targets) -> Vec<Attempt> {
    let folder = &targets.folder;
    let parent = targets.parent;
    let proc = PathBuf::from(format!("/proc/{}", parent.as_raw_nonzero()));
    let errno = |result: Result<(), Errno>| result.map_err(io::Error::from);
    let abstract_name = SocketAddr::from_abstract_name(abstract_name(folder)).unwrap();
    let socket = |family| {
        let opened = rustix::net::socket(family, rustix::net::SocketType::DGRAM, None);
        errno(opened.map(drop))
    };
    let mut attempts = vec![
        (
            "read its own file",
            std::fs::read(folder.join("own")).map(drop),
        ),
        (
            "write its own file",
            std::fs::write(folder.join("own"), "written"),
        ),
        (
            "read a file beside it",
            std::fs::read(folder.join("other")).map(drop),
        ),
        (
            "write a file beside it",
            std::fs::write(folder.join("new"), "x"),
        ),
        (
            "remove its own file",
            std::fs::remove_file(folder.join("own")),
        ),
        ("list the folder", std::fs::read_dir(folder).map(drop)),
        ("read the users", std::fs::read("/etc/passwd").map(drop)),
        ("list the processes", std::fs::read_dir("/proc").map(drop)),
        (
            "read the parent's environment",
            std::fs::read(proc.join("environ")).map(drop),
        ),
        (
            "open the parent's memory",
            File::open(proc.join("mem")).map(drop),
        ),
        (
            "connect to loopback",
            TcpStream::connect((Ipv4Addr::LOCALHOST, targets.port)).map(drop),
        ),
        (
            "bind a datagram socket",
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop),
        ),
        (
            "connect to a socket file",
            UnixStream::connect(folder.join("socket")).map(drop),
        ),
        (
            "connect to an abstract socket",
            UnixStream::connect_addr(&abstract_name).map(drop),
        ),
        (
            "open a netlink socket",
            socket(rustix::net::AddressFamily::NETLINK),
        ),
        (
            "open a packet socket",
            socket(rustix::net::AddressFamily::PACKET),
        ),
        (
            "start a program",
            Command::new("/bin/true").status().map(drop),
        ),
        (
            "start itself",
            Command::new("/proc/self/exe").status().map(drop),
        ),
        (
            "signal the parent",
            errno(kill_process(parent, Signal::URG)),
        ),
        (
            "hold the parent",
            errno(pidfd_open(parent, PidfdFlags::empty()).map(drop)),
        ),
        (
            "outlive the parent",
            errno(rustix::process::set_parent_process_death_signal(None)),
        ),
        ("limit the parent", errno(limit(Some(parent)))),
        ("limit itself", errno(limit(None))),
        (
            "mount",
            errno(rustix::mount::mount(
                "none",
                "/",
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                None,
            )),
        ),
        ("change the root", errno(rustix::process::chroot("/"))),
        (
            "change its user",
            errno(rustix::thread::set_thread_res_uid(
                rustix::process::Uid::from_raw(1),
                rustix::process::Uid::from_raw(1),
                rustix::process::Uid::from_raw(1),
            )),
        ),
        (
            "let go of a lock",
            errno(rustix::fs::flock(
                io::stdin(),
                rustix::fs::FlockOperation::Unlock,
            )),
        ),
        (
            "set the host name",
            errno(rustix::system::sethostname(b"mine")),
        ),
    ];
    let threads = std::thread::spawn(|| ()).join();
    attempts.push((
        "start a thread",
        threads.map_err(|_| io::ErrorKind::Other.into()),
    ));
    attempts
}

fn limit(pid: Option<Pid>) -> Result<(), Errno> {
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::prlimit(pid, rustix::process::Resource::Core, none).map(drop)
}

fn abstract_name(folder: &Path) -> Vec<u8> {
    [b"msb-confine-", folder.as_os_str().as_encoded_bytes()].concat()
}

const STAND_IN: &str = "confine::tests::a_vmm_that_was_taken_over_reaches_nothing";

#[test]
fn a_vmm_that_was_taken_over_reaches_nothing() {
    // A VMM has no environment; a test has.
    if std::env::vars_os().next().is_none() {
        for (what, result) in attempts(&Targets::read()) {
            let code = result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
            println!("attempt {what}: {code}");
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["own", "other"] {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let _file = UnixListener::bind(folder.path().join("socket")).unwrap();
    let name = SocketAddr::from_abstract_name(abstract_name(folder.path())).unwrap();
    let _abstract = UnixListener::bind_addr(&name).unwrap();
    let targets = Targets {
        parent: rustix::process::getpid(),
        port: tcp.local_addr().unwrap().port(),
        folder: folder.path().to_owned(),
    };
    let (results, confinement) = run_stand_in(&targets);
    assert_eq!(confinement.system_calls, Ok(()));
    let may = [
        "read its own file",
        "write its own file",
        "start a thread",
        "limit itself",
    ];
    for (what, code) in &results {
        assert_eq!(*code == 0, may.contains(&what.as_str()), "{what}: {code}");
    }
    assert_eq!(results.len(), 29, "{results:?}");
    assert_eq!(
        std::fs::read(folder.path().join("own")).unwrap(),
        b"written"
    );
}

fn run_stand_in(targets: &Targets) -> (BTreeMap<String, i32>, Confinement) {
    let (input, mut to_child) = pipe().unwrap();
    targets.write(&mut to_child);
    drop(to_child);
    let (output, from_child) = pipe().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut grants = Grants::default();
    grants.program(&program);
    grants.write.push(targets.folder.join("own"));
    grants.largest_file = 1 << 20;
    let mut command = Command::new(&program);
    command.args(["--exact", STAND_IN, "--nocapture", "--test-threads=1"]);
    command
        .stdin(input)
        .stdout(from_child)
        .stderr(Stdio::inherit());
    let confined = spawn(command, Vec::new(), &grants).unwrap();
    let results = read_results(output);
    let (_, status) = waitpid(Some(confined.pid), WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert!(
        matches!(WaitStatus::exit_status(status), Some(0)),
        "{status:?}"
    );
    (results, confined.confinement)
}

fn read_results(mut output: PipeReader) -> BTreeMap<String, i32> {
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    let parse = |line: &str| {
        let (what, code) = line.split_once("attempt ")?.1.split_once(": ")?;
        Some((what.to_owned(), code.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}
