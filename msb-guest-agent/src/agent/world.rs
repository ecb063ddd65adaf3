//! What all commands of a guest share, and turning a request into a process.
//!
//! Descriptors to `/dev/null` and the terminal multiplexer are held, because a
//! workload may remove or replace the files.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::termios;

use super::stage::Devices;
use super::sys::{self, Ids, Launch, Step};
use super::users::{Database, User};
use crate::message::{ByteString, Errno, ExecError, ExecRequest, GuestConfig};

/// Docker's, for images that set none.
const DEFAULT_PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The defaults of the guest and the devices every command needs.
#[derive(Debug)]
pub(super) struct World {
    /// What is set where neither image nor user set it.
    defaults: Vec<ByteString>,
    env: Vec<ByteString>,
    hostname: String,
    user: Option<String>,
    workdir: ByteString,
    devices: Devices,
}

impl World {
    pub(super) fn new(config: &GuestConfig, defaults: Vec<ByteString>, devices: Devices) -> World {
        World {
            defaults,
            env: config.env.clone(),
            hostname: config.hostname.clone(),
            user: config.user.clone(),
            workdir: config.workdir.clone().unwrap_or_else(|| "/".into()),
            devices,
        }
    }

    /// The kernel's files.
    pub(super) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The defaults are those of another guest from here on.
    pub(super) fn become_other(&mut self, config: &GuestConfig, defaults: Vec<ByteString>) {
        self.defaults = defaults;
        self.env.clone_from(&config.env);
        self.hostname.clone_from(&config.hostname);
        self.user.clone_from(&config.user);
        self.workdir = config.workdir.clone().unwrap_or_else(|| "/".into());
    }

    /// Whom commands run as where nothing else is said.
    pub(super) fn default_user(&self) -> &str {
        self.user.as_deref().unwrap_or("")
    }

    /// A descriptor that reads as empty.
    pub(super) fn null(&self) -> BorrowedFd<'_> {
        self.devices.null.as_fd()
    }

    /// Where paths begin that do not say so.
    pub(super) fn workdir(&self) -> &ByteString {
        &self.workdir
    }

    /// Opens a new terminal: its master, non-blocking, and its slave.
    pub(super) fn open_terminal(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = flags | OFlags::NONBLOCK;
        let master = rustix::fs::openat(&self.devices.pts, "ptmx", master, Mode::empty())?;
        // So that a character is rubbed out with all of its bytes. Not worth failing for.
        if let Ok(mut settings) = termios::tcgetattr(&master) {
            settings.input_modes |= termios::InputModes::IUTF8;
            let _ = termios::tcsetattr(&master, termios::OptionalActions::Now, &settings);
        }
        rustix::pty::unlockpt(&master)?;
        let flags = rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        Ok((master, slave))
    }

    /// Finds whom a request runs as.
    pub(super) fn user(&self, request: &ExecRequest) -> Result<User, ExecError> {
        let spec = request.user.as_ref().or(self.user.as_ref());
        let spec = spec.map_or("", String::as_str);
        Database::load()
            .find(spec)
            .map_err(|reason| ExecError::BadUser {
                user: spec.into(),
                reason,
            })
    }

    /// Starts the command on the given descriptors and returns its pid.
    pub(super) fn spawn(
        &self,
        request: &ExecRequest,
        user: &User,
        group: Option<BorrowedFd<'_>>,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<i32, ExecError> {
        let program = request.argv.first().ok_or_else(|| ExecError::Invalid {
            reason: "no program".into(),
        })?;
        let env = self.environment(request, user);
        let path = env.iter().find_map(|entry| entry.0.strip_prefix(b"PATH="));
        let programs = candidates(program.as_bytes(), path.unwrap_or(b""));
        let cwd = request.cwd.as_ref().unwrap_or(&self.workdir);
        let launch = Launch {
            programs: &c_strings(programs.iter().map(Vec::as_slice))?,
            argv: &c_strings(request.argv.iter().map(ByteString::as_bytes))?,
            env: &c_strings(env.iter().map(ByteString::as_bytes))?,
            cwd: &c_strings([cwd.as_bytes()])?[0],
            stdio,
            terminal: request.tty.is_some(),
            ids: change_of_identity(user),
            limits: &request.limits,
            group,
        };
        sys::launch(&launch).map_err(|(step, errno)| explain(step, errno, program, cwd, request))
    }

    /// The variables of a command, each name once; see [`ExecRequest`].
    fn environment(&self, request: &ExecRequest, user: &User) -> Vec<ByteString> {
        let mut env = vec![ByteString::from(DEFAULT_PATH)];
        env.push(format!("HOSTNAME={}", self.hostname).into());
        if request.tty.is_some() {
            env.push("TERM=xterm".into());
        }
        let mut home = b"HOME=".to_vec();
        home.extend_from_slice(&user.home);
        env.push(home.into());
        env.extend(self.defaults.iter().cloned());
        for entry in self.env.iter().chain(&request.env) {
            let name = name_of(entry.as_bytes());
            let place = env.iter().position(|old| name_of(old.as_bytes()) == name);
            let sets = entry.0.contains(&b'=');
            match place {
                Some(place) if sets => env[place] = entry.clone(),
                Some(place) => drop(env.remove(place)),
                None if sets => env.push(entry.clone()),
                None => {}
            }
        }
        env
    }
}

fn name_of(entry: &[u8]) -> &[u8] {
    entry.split(|byte| *byte == b'=').next().unwrap_or(entry)
}

/// Where a program may be: itself when it has a slash, else in each directory
/// of `path`, where an empty one is the working directory.
fn candidates(program: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let join = |directory: &[u8]| match directory {
        b"" => [b"./", program].concat(),
        _ => [directory, b"/", program].concat(),
    };
    path.split(|byte| *byte == b':').map(join).collect()
}

fn c_strings<'a>(strings: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<CString>, ExecError> {
    strings
        .into_iter()
        .map(CString::new)
        .collect::<Result<_, _>>()
        .map_err(|_| ExecError::Invalid {
            reason: "a NUL byte in program, arguments, environment or path".into(),
        })
}

/// `None` when the agent runs as that user already.
pub(super) fn change_of_identity(user: &User) -> Option<Ids<'_>> {
    let same = rustix::process::getuid().as_raw() == user.uid
        && rustix::process::getgid().as_raw() == user.gid
        && user.groups.is_empty();
    (!same).then_some(Ids {
        uid: user.uid,
        gid: user.gid,
        groups: &user.groups,
    })
}

fn explain(
    step: Step,
    errno: i32,
    program: &ByteString,
    cwd: &ByteString,
    request: &ExecRequest,
) -> ExecError {
    let resources = |step: &str| ExecError::Resources {
        step: step.into(),
        errno: Errno(errno),
    };
    match step {
        Step::Execute => match errno {
            libc::ENOENT | libc::ENOTDIR => ExecError::NotFound {
                program: program.clone(),
            },
            libc::E2BIG => resources("pass so many arguments and variables"),
            libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE => resources("execute"),
            _ => ExecError::NotExecutable {
                program: program.clone(),
                errno: Errno(errno),
            },
        },
        Step::Workdir => ExecError::BadWorkdir {
            path: cwd.clone(),
            errno: Errno(errno),
        },
        Step::Identity => ExecError::BadUser {
            user: request.user.clone().unwrap_or_default(),
            reason: format!("the kernel refuses: {}", Errno(errno)),
        },
        Step::Limits => resources("set its limits"),
        Step::Clone => resources("start a process"),
        Step::Session => resources("make a session"),
        Step::Terminal => resources("take the terminal"),
        Step::Descriptors => resources("set up descriptors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(env: &[&str]) -> World {
        let config = GuestConfig {
            entropy: crate::message::Entropy(ByteString::default()),
            wall_clock_ns: 0,
            hostname: "box".into(),
            machine_id: [1; 16],
            root: crate::message::RootSpec {
                lower: "vda".into(),
                upper: crate::message::Upper::Tmpfs { size: None },
            },
            env: env.iter().map(|entry| ByteString::from(*entry)).collect(),
            user: None,
            network: None,
            trust: None,
            workdir: None,
        };
        World::new(&config, vec!["CA=/own".into()], Devices::open().unwrap())
    }

    #[test]
    fn environment_has_dockers_precedence() {
        let world = world(&["PATH=/image", "LANG=C", "A=1=2"]);
        let user = User {
            uid: 7,
            gid: 7,
            groups: vec![],
            home: b"/home/u".to_vec(),
        };
        let mut request = ExecRequest {
            env: vec!["LANG=de".into(), "A".into(), "B=".into(), "NONE".into()],
            ..ExecRequest::default()
        };
        let show = |request: &ExecRequest| -> Vec<String> {
            let env = world.environment(request, &user);
            env.iter().map(ByteString::to_string).collect()
        };
        let expected = [
            "PATH=/image",
            "HOSTNAME=box",
            "HOME=/home/u",
            "CA=/own",
            "LANG=de",
            "B=",
        ];
        assert_eq!(show(&request), expected);
        request.tty = Some(crate::message::TtySize { rows: 1, cols: 1 });
        assert!(show(&request).contains(&"TERM=xterm".to_owned()));
        request.env = vec!["HOME=/x".into(), "TERM=dumb".into(), "CA=/mine".into()];
        let env = show(&request);
        assert!(env.contains(&"CA=/mine".into()) && !env.contains(&"CA=/own".into()));
        assert!(env.contains(&"HOME=/x".into()) && env.contains(&"TERM=dumb".into()));
    }

    #[test]
    fn programs_are_looked_up_as_execvp_does() {
        let show = |program: &str, path: &str| -> Vec<String> {
            let found = candidates(program.as_bytes(), path.as_bytes());
            found
                .into_iter()
                .map(|path| String::from_utf8(path).unwrap())
                .collect()
        };
        assert_eq!(show("sh", "/bin::/x"), ["/bin/sh", "./sh", "/x/sh"]);
        assert_eq!(show("./sh", "/bin"), ["./sh"]);
        assert_eq!(show("", "/bin"), [""; 0]);
    }
}
