//! Streams: running a command, and what is said about it while it runs; what else a stream
//! can be for.

use serde::{Deserialize, Serialize};

use super::{
    ByteString, Errno, FileAnswer, FileError, FileRequest, GuestMetrics, Metadata, Trouble,
};

/// What a new stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Run a command.
    Exec(ExecRequest),
    /// Connect to a service that listens on the guest's loopback address. What the host
    /// sends on [`Stdin`](crate::wire::Channel::Stdin) goes to it, what it sends comes on
    /// [`Stdout`](crate::wire::Channel::Stdout).
    Dial {
        /// Its TCP port.
        port: u16,
    },
    /// Do something to files.
    File(FileRequest),
    /// Say what is used in the guest.
    Metrics {
        /// Whether to tell of single processes.
        processes: bool,
    },
}

/// A command to run.
///
/// The environment is made as Docker makes it, later ones win: `PATH`, `HOME`,
/// `HOSTNAME` (and `TERM` with a terminal); the image's; this request's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments. A program without a slash is looked up in `PATH`.
    pub argv: Vec<ByteString>,
    /// Variables to set, `NAME=value`; a bare `NAME` removes one.
    pub env: Vec<ByteString>,
    /// Working directory; the image's when `None`.
    pub cwd: Option<ByteString>,
    /// `name|uid[:group|gid]`; the image's when `None`.
    pub user: Option<String>,
    /// Gives the command a terminal of this size instead of pipes.
    pub tty: Option<TtySize>,
    /// Whether the channel [`Stdin`](crate::wire::Channel::Stdin) is used;
    /// otherwise the command reads from `/dev/null` (a terminal stays open).
    pub stdin: bool,
    /// Bounds on what the command and its descendants use, instead of the guest's.
    pub limits: Vec<Limit>,
}

/// A bound on what a process uses; see `getrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Of what.
    pub resource: Resource,
    /// The bound that holds; none when `None`.
    pub soft: Option<u64>,
    /// How far the process may raise it; as far as it likes when `None`.
    pub hard: Option<u64>,
}

/// What can be bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Resource {
    /// Processor time in seconds.
    CpuTime,
    /// Bytes of address space.
    AddressSpace,
    /// Bytes of a core file.
    CoreFile,
    /// Bytes of a file that is written.
    FileSize,
    /// Open descriptors.
    Descriptors,
    /// Processes of the user.
    Processes,
    /// Bytes of stack.
    Stack,
    /// Bytes of locked memory.
    LockedMemory,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// A signal number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Signal(u8);

impl Signal {
    /// Interrupt from the keyboard.
    pub const INT: Signal = Signal(2);
    /// Cannot be caught.
    pub const KILL: Signal = Signal(9);
    /// Polite request to end.
    pub const TERM: Signal = Signal(15);

    /// The number.
    pub fn number(self) -> u8 {
        self.0
    }
}

/// No such signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("signal {0} is not between 1 and 64")]
pub struct InvalidSignal(u8);

impl TryFrom<u8> for Signal {
    type Error = InvalidSignal;
    fn try_from(number: u8) -> Result<Signal, InvalidSignal> {
        match number {
            1..=64 => Ok(Signal(number)),
            _ => Err(InvalidSignal(number)),
        }
    }
}

impl From<Signal> for u8 {
    fn from(signal: Signal) -> u8 {
        signal.0
    }
}

/// What the host wants done to a running command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StreamCommand {
    /// Send a signal.
    Signal {
        /// Which.
        signal: Signal,
        /// To the command's whole process group, not only to its first process.
        group: bool,
    },
    /// The terminal has a new size.
    Resize(TtySize),
}

/// What happened to a command or a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StreamEvent {
    /// It runs. Comes at most once, before any output.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// It ended. Comes after all of its output; the stream closes.
    Exited(ExitStatus),
    /// It could not be run. The stream closes.
    Failed(ExecError),
    /// The service took the connection. Comes before its bytes.
    Connected,
    /// It did not. The stream closes.
    NotConnected(Errno),
    /// Both ends of the connection have said everything. The stream closes.
    HungUp,
    /// The file or folder is open. Comes before content, entries or a tree.
    FileOpened(Metadata),
    /// The operation on files is over. Comes after all of its bytes; the stream closes.
    FileDone(FileAnswer),
    /// It failed. What was passed before it did counts for nothing. The stream closes.
    FileFailed(FileError),
    /// What is used in the guest. The stream closes.
    Metrics(Box<GuestMetrics>),
    /// Instead of [`Exited`](Self::Exited): the command did not succeed, and something else
    /// may be why.
    Troubled {
        /// How it ended.
        status: ExitStatus,
        /// What ran out or broke while it ran. At most eight.
        #[serde(deserialize_with = "super::trouble::few")]
        troubles: Vec<Trouble>,
    },
}

impl StreamEvent {
    /// Tells whether the stream closes with this event.
    pub fn is_last(&self) -> bool {
        !matches!(
            self,
            StreamEvent::Started { .. } | StreamEvent::Connected | StreamEvent::FileOpened(_)
        )
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(u8),
    /// By a signal.
    Signal {
        /// Its number.
        signal: u8,
        /// Whether a core file was written.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// The code a shell would report: 128 + number for a signal.
    pub fn shell_code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal { signal, .. } => 128u8.saturating_add(signal),
        }
    }

    /// The code as a shell reports it: that of the program, or 128 + number for a signal.
    pub fn code(self) -> u8 {
        self.shell_code()
    }

    /// Tells whether it ended by itself with code 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit code {code}"),
            ExitStatus::Signal { signal, .. } => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Why a command could not be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The program is not there (127 in a shell).
    #[error("{program}: command not found")]
    NotFound {
        /// As asked for.
        program: ByteString,
    },
    /// The program is there and cannot be executed (126 in a shell).
    #[error("{program}: cannot be executed: {errno}")]
    NotExecutable {
        /// As asked for.
        program: ByteString,
        /// Why not.
        errno: Errno,
    },
    /// The user or group is not known to the image.
    #[error("user {user:?}: {reason}")]
    BadUser {
        /// As asked for.
        user: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The working directory cannot be entered.
    #[error("working directory {path}: {errno}")]
    BadWorkdir {
        /// As asked for.
        path: ByteString,
        /// Why not.
        errno: Errno,
    },
    /// The request makes no sense: no program, a NUL byte.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// The guest could not start a process.
    #[error("cannot {step}: {errno}")]
    Resources {
        /// What was being done.
        step: String,
        /// Why it failed.
        errno: Errno,
    },
}

impl ExecError {
    /// The code a shell would report: 127 not found, 126 not executable, 125
    /// for all else.
    pub fn shell_code(&self) -> u8 {
        match self {
            ExecError::NotFound { .. } => 127,
            ExecError::NotExecutable { .. } => 126,
            _ => 125,
        }
    }

    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ExecError::NotFound { .. } => {
                Some("the program must exist in the image, at that path or on its PATH")
            }
            ExecError::NotExecutable { .. } => {
                Some("check its mode, its format, and the interpreter its first line names")
            }
            ExecError::BadUser { .. } => {
                Some("name a user of the image's /etc/passwd, or a numeric uid")
            }
            ExecError::BadWorkdir { .. } => Some("name a folder that is there, or make it first"),
            ExecError::Resources { .. } => {
                Some("the guest has too many processes or too little memory: end some of them")
            }
            _ => None,
        }
    }
}

/// Why a side gave a stream up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum ResetCode {
    /// Whoever wanted it is gone.
    Cancelled = 0,
    /// The guest runs as many as it can.
    Refused = 1,
    /// The guest is shutting down.
    ShuttingDown = 2,
    /// A reason this version does not know.
    Other = 255,
}

impl ResetCode {
    /// Reads the byte used on the wire.
    pub fn from_wire(byte: u8) -> ResetCode {
        match byte {
            0 => ResetCode::Cancelled,
            1 => ResetCode::Refused,
            2 => ResetCode::ShuttingDown,
            _ => ResetCode::Other,
        }
    }
}
