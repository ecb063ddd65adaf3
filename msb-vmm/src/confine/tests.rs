//! What a VMM that was taken over can do: this test binary is started again as one.

use std::collections::BTreeMap;
use std::io::{PipeReader, Read, Write, pipe};
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
    attempts.extend(on_files(folder));
    attempts.extend(raw_calls(parent));
    let threads = std::thread::spawn(|| ()).join();
    attempts.push((
        "start a thread",
        threads.map_err(|_| io::ErrorKind::Other.into()),
    ));
    attempts
}

/// What it would do to files, and to the memory that it was handed.
fn on_files(folder: &Path) -> Vec<Attempt> {
    use rustix::fs::{CWD, FallocateFlags, FlockOperation, Mode, OFlags, fallocate, flock, openat};
    let errno = |result: Result<(), Errno>| result.map_err(io::Error::from);
    let path = folder.join("memory");
    // As the C library does, for QEMU.
    let open = || openat(CWD, &path, OFlags::RDWR, Mode::empty());
    let memory = open();
    let Ok(memory) = memory else {
        return vec![("be handed the memory", errno(memory.map(drop)))];
    };
    let again = open();
    let number = memory.as_raw_fd();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    vec![
        ("be handed the memory", Ok(())),
        ("open the memory again", errno(again.map(drop))),
        (
            "write to the memory",
            errno(rustix::io::pwrite(&memory, b"mine", 0).map(drop)),
        ),
        (
            "shorten the memory",
            errno(rustix::fs::ftruncate(&memory, 0)),
        ),
        // It is told that it did.
        (
            "punch a hole into the memory",
            errno(fallocate(&memory, punch, 0, 4096)),
        ),
        (
            "open the memory by its number",
            File::options()
                .write(true)
                .open(format!("/proc/self/fd/{number}"))
                .map(drop),
        ),
        (
            "rename its own file",
            std::fs::rename(folder.join("own"), folder.join("new")),
        ),
        (
            "link its own file",
            std::fs::hard_link(folder.join("own"), folder.join("new")),
        ),
        ("make a folder", std::fs::create_dir(folder.join("new"))),
        (
            "make a link",
            std::os::unix::fs::symlink("own", folder.join("new")),
        ),
        (
            "change the mode of its own file",
            std::fs::set_permissions(
                folder.join("own"),
                std::os::unix::fs::PermissionsExt::from_mode(0o777),
            ),
        ),
        (
            "lock the memory",
            errno(flock(&memory, FlockOperation::NonBlockingLockExclusive)),
        ),
        ("read the kernel's log", File::open("/dev/kmsg").map(drop)),
        ("open a terminal", File::open("/dev/tty").map(drop)),
        (
            "open its own memory",
            File::open("/proc/self/mem").map(drop),
        ),
        ("list the devices", std::fs::read_dir("/dev").map(drop)),
        (
            "list the kernel's objects",
            std::fs::read_dir("/sys").map(drop),
        ),
    ]
}

/// System calls by their numbers: arguments with which they work, or fail in another way,
/// where nobody refuses them.
fn raw_calls(parent: Pid) -> Vec<Attempt> {
    let pid = libc::c_long::from(parent.as_raw_nonzero().get());
    let calls = [
        (
            "trace the parent",
            libc::SYS_ptrace,
            [libc::PTRACE_SEIZE as _, pid, 0, 0, 0],
        ),
        (
            "be traced",
            libc::SYS_ptrace,
            [libc::PTRACE_TRACEME as _, 0, 0, 0, 0],
        ),
        (
            "read the parent's memory",
            libc::SYS_process_vm_readv,
            [pid, 0, 0, 0, 0],
        ),
        (
            "write the parent's memory",
            libc::SYS_process_vm_writev,
            [pid, 0, 0, 0, 0],
        ),
        (
            "queue a signal to the parent",
            libc::SYS_tkill,
            [pid, libc::SIGURG.into(), 0, 0, 0],
        ),
        ("signal its group", libc::SYS_kill, [0, 0, 0, 0, 0]),
        (
            "slow the parent down",
            libc::SYS_setpriority,
            [0, pid, 19, 0, 0],
        ),
        (
            "move the parent's pages",
            libc::SYS_migrate_pages,
            [pid, 0, 0, 0, 0],
        ),
        ("make a process", libc::SYS_fork, [0; 5]),
        ("clone", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0]),
        (
            "clone into namespaces",
            libc::SYS_clone,
            [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0],
        ),
        ("clone in another way", libc::SYS_clone3, [0; 5]),
        (
            "leave its namespaces",
            libc::SYS_unshare,
            [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0],
        ),
        ("enter namespaces", libc::SYS_setns, [0; 5]),
        ("make a session", libc::SYS_setsid, [0; 5]),
        ("make a file in memory", libc::SYS_memfd_create, [0; 5]),
        ("make secret memory", libc::SYS_memfd_secret, [0; 5]),
        ("execute a descriptor", libc::SYS_execveat, [0; 5]),
        ("set up a ring", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        ("load a program into the kernel", libc::SYS_bpf, [0; 5]),
        ("take page faults", libc::SYS_userfaultfd, [0; 5]),
        ("count events", libc::SYS_perf_event_open, [0; 5]),
        ("compare processes", libc::SYS_kcmp, [pid, pid, 0, 0, 0]),
        ("use keys", libc::SYS_keyctl, [0; 5]),
        ("add a key", libc::SYS_add_key, [0; 5]),
        ("load a module", libc::SYS_init_module, [0; 5]),
        ("load another kernel", libc::SYS_kexec_load, [0; 5]),
        ("restart the host", libc::SYS_reboot, [0; 5]),
        ("swap", libc::SYS_swapon, [0; 5]),
        ("set the clock", libc::SYS_clock_settime, [0; 5]),
        ("account", libc::SYS_acct, [0; 5]),
        (
            "open by a handle",
            libc::SYS_open_by_handle_at,
            [-1, 0, 0, 0, 0],
        ),
        (
            "change the root in another way",
            libc::SYS_pivot_root,
            [0; 5],
        ),
        ("open a file system", libc::SYS_fsopen, [0; 5]),
        ("open a tree", libc::SYS_open_tree, [-1, 0, 0, 0, 0]),
        ("watch files", libc::SYS_inotify_init1, [0; 5]),
        ("watch the file system", libc::SYS_fanotify_init, [0; 5]),
        ("make a device", libc::SYS_mknodat, [-1, 0, 0, 0, 0]),
        ("change its personality", libc::SYS_personality, [0; 5]),
        ("touch a port", libc::SYS_ioperm, [0, 1, 1, 0, 0]),
        ("gain ports", libc::SYS_iopl, [3, 0, 0, 0, 0]),
        (
            "attach shared memory",
            libc::SYS_shmget,
            [0, 4096, 0o1600, 0, 0],
        ),
        ("make a queue", libc::SYS_msgget, [0, 0o1600, 0, 0, 0]),
        (
            "open a raw socket",
            libc::SYS_socket,
            [libc::AF_INET.into(), libc::SOCK_RAW.into(), 0, 0, 0],
        ),
        (
            "open a socket of machines",
            libc::SYS_socket,
            [libc::AF_VSOCK.into(), libc::SOCK_STREAM.into(), 0, 0, 0],
        ),
        (
            "open a local socket",
            libc::SYS_socket,
            [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0, 0],
        ),
        (
            "make a pair of sockets",
            libc::SYS_socketpair,
            [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0, 0],
        ),
        ("accept a connection", libc::SYS_accept4, [0; 5]),
        ("listen", libc::SYS_listen, [0; 5]),
    ];
    let attempt = |(what, call, arguments)| (what, sys::attempt(call, arguments));
    calls.map(attempt).into()
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

const MEMORY: [u8; 8192] = [7; 8192];

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
    std::fs::write(folder.path().join("memory"), MEMORY).unwrap();
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
        "be handed the memory",
        "punch a hole into the memory",
    ];
    for (what, code) in &results {
        let is_allowed = may.contains(&what.as_str());
        assert_eq!(*code == 0, is_allowed, "{what}: {code}");
        // Whatever else would have kept it: it is refused.
        let refused = match what.as_str() {
            // Of a file that can only be read.
            "shorten the memory" => &[libc::EINVAL][..],
            _ => &[libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EBADF],
        };
        assert!(is_allowed || refused.contains(code), "{what}: {code}");
    }
    assert_eq!(results.len(), 29 + 17 + 49, "{results:?}");
    assert_eq!(std::fs::read(folder.path().join("memory")).unwrap(), MEMORY);
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
    let memory = targets.folder.join("memory");
    let handed = File::open(&memory).unwrap();
    let mut grants = Grants {
        memory: Some(GuestMemory {
            path: memory,
            number: handed.as_raw_fd(),
            returns: true,
        }),
        ..Grants::default()
    };
    grants.program(&program);
    grants.write.push(targets.folder.join("own"));
    grants.largest_file = 1 << 20;
    let mut command = Command::new(&program);
    command.args(["--exact", STAND_IN, "--nocapture", "--test-threads=1"]);
    command
        .stdin(input)
        .stdout(from_child)
        .stderr(Stdio::inherit());
    let confined = spawn(command, vec![handed.as_raw_fd()], &grants).unwrap();
    let listener = confined.listener.expect("this kernel has listeners");
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    listener.hand_over(&handed, deadline).unwrap();
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
