//! One program in a sandbox at this terminal: its output, input, signals and size.

use std::io::{self, Write};

use msb_sdk::{
    Error, ExecEvent, ExecHandle, ExecOptions, ExecStdin, Sandbox, SessionId, Signal, Trouble,
    TtySize,
};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::Failure;
use crate::args::TerminalArgs;
use crate::detach::DetachKeys;
use crate::terminal::{self, RawMode};

/// How much of standard input is read at once.
const STDIN_CHUNK: usize = 64 * 1024;

/// The exit code of a program whose reader went away: as if ended by SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;

/// Signals to this process that are the program's to deal with.
const FORWARDED: [(SignalKind, u8); 4] = [
    (SignalKind::interrupt(), 2),
    (SignalKind::terminate(), 15),
    (SignalKind::hangup(), 1),
    (SignalKind::quit(), 3),
];

/// After so many signals to a program that does not end, the sandbox is ended.
const PATIENCE: u32 = 3;

/// How the program is connected to what this process has.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Pass standard input on.
    pub(crate) stdin: bool,
    /// Give it a terminal.
    pub(crate) tty: bool,
    /// What lets go of it; nothing, where the sandbox ends with this process.
    detach: Option<DetachKeys>,
}

/// How following a program ended.
enum Followed {
    Ended(u8),
    /// It goes on.
    LetGo(SessionId),
}

impl Session {
    /// As the flags say; where they say nothing, a person at a terminal gets all of it.
    pub(crate) fn asked(args: &TerminalArgs) -> Result<Self, Failure> {
        let said = args.interactive || args.tty || args.no_tty;
        let person = !said && terminal::is_a_persons();
        Self::new(args.interactive || person, args.tty || person)
    }

    /// With standard input, and with a terminal. Input that is no terminal is passed on in any case.
    pub(crate) fn new(interactive: bool, tty: bool) -> Result<Self, Failure> {
        let piped = !terminal::stdin_is_terminal();
        if tty && interactive && piped {
            return Err(Failure::Usage {
                message: "-i -t needs a terminal, and standard input is none".into(),
                hint: Some("leave out -t".into()),
            });
        }
        let stdin = piped || interactive;
        let detach = None;
        Ok(Self { stdin, tty, detach })
    }

    /// The program can be let go of by these keys, where it has this terminal.
    pub(crate) fn detached_by(mut self, keys: DetachKeys) -> Self {
        self.detach = Some(keys);
        self
    }

    /// Runs a program to its end; returns its exit code.
    pub(crate) async fn run(
        self,
        sandbox: &Sandbox,
        mut options: ExecOptions,
        mut signals: mpsc::Receiver<u8>,
    ) -> Result<u8, Failure> {
        if self.stdin {
            options = options.stdin();
        }
        if self.tty {
            options = options.tty(terminal::size());
        }
        let program = options.program();
        let handle = tokio::select! {
            handle = sandbox.exec_with(options) => handle?,
            // There is no program yet to deal with it.
            Some(number) = signals.recv() => return Ok(128 + number),
        };
        self.attend(sandbox, handle, program, signals).await
    }

    /// Goes on with a program that was let go of.
    pub(crate) async fn resume(
        self,
        sandbox: &Sandbox,
        handle: ExecHandle,
        signals: mpsc::Receiver<u8>,
    ) -> Result<u8, Failure> {
        if self.tty {
            // A program that draws draws again only if the size is another.
            let size = terminal::size();
            let rows = size.rows.saturating_sub(1).max(1);
            handle.resize(TtySize { rows, ..size });
            handle.resize(size);
        }
        let program = handle.command().to_owned();
        self.attend(sandbox, handle, program, signals).await
    }

    async fn attend(
        self,
        sandbox: &Sandbox,
        handle: ExecHandle,
        program: String,
        signals: mpsc::Receiver<u8>,
    ) -> Result<u8, Failure> {
        let raw = if self.tty && self.stdin {
            RawMode::enter()
        } else {
            None
        };
        let (let_go, asked) = mpsc::channel(1);
        if self.stdin {
            let keys = self.detach.filter(|_| raw.is_some());
            tokio::spawn(feed(handle.stdin(), keys, let_go));
        }
        let mut troubles = Vec::new();
        let followed = follow(handle, program, self.tty, signals, asked, &mut troubles).await;
        drop(raw);
        for trouble in &troubles {
            terminal::complain(&format!("msb: {}", sandbox.explain(trouble)));
        }
        match followed? {
            Followed::Ended(code) => Ok(code),
            Followed::LetGo(id) => {
                let name = &sandbox.spec().name;
                terminal::complain(&format!(
                    "\nit goes on; `msb attach {name} {id}` comes back"
                ));
                Ok(0)
            }
        }
    }
}

/// Passes output, signals and sizes on until the program has ended.
async fn follow(
    mut handle: ExecHandle,
    program: String,
    tty: bool,
    mut signals: mpsc::Receiver<u8>,
    mut let_go: mpsc::Receiver<oneshot::Sender<()>>,
    troubles: &mut Vec<Trouble>,
) -> Result<Followed, Failure> {
    let mut resized = signal(SignalKind::window_change()).ok();
    let mut asked = 0;
    let mut gone = None;
    loop {
        tokio::select! {
            event = handle.recv() => match event {
                Some(ExecEvent::Stdout(data)) => {
                    if let Some(code) = write(&mut io::stdout().lock(), &data, "standard output")? {
                        return Ok(Followed::Ended(code));
                    }
                }
                Some(ExecEvent::Stderr(data)) => {
                    if let Some(code) = write(&mut io::stderr().lock(), &data, "standard error")? {
                        return Ok(Followed::Ended(code));
                    }
                }
                Some(ExecEvent::Trouble(trouble)) => troubles.push(trouble),
                Some(ExecEvent::Exited(status)) => return Ok(Followed::Ended(status.code())),
                Some(ExecEvent::TimedOut { after }) => {
                    return Err(Error::TimedOut { program, after }.into());
                }
                Some(ExecEvent::Lost { reason }) => return Err(Error::Gone { reason }.into()),
                Some(_) => {}
                None => return match gone {
                    Some(id) => Ok(Followed::LetGo(id)),
                    None => Err(Error::Gone { reason: "the program's end was not reported".into() }.into()),
                },
            },
            Some(number) = signals.recv() => {
                asked += 1;
                if asked > PATIENCE {
                    return Ok(Followed::Ended(128 + number));
                }
                if let Ok(signal) = Signal::try_from(number) {
                    handle.signal(signal);
                }
            }
            // What was under way is still to come.
            Some(refused) = let_go.recv(), if gone.is_none() => match handle.detach().await {
                Ok(id) => gone = Some(id),
                Err(error) => {
                    terminal::complain(&format!("\r\nmsb: {error}\r"));
                    let _ = refused.send(());
                }
            },
            Some(()) = next(&mut resized), if tty => handle.resize(terminal::size()),
        }
    }
}

async fn next(signal: &mut Option<tokio::signal::unix::Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => None,
    }
}

/// Writes all at once; `Some(code)` when nobody reads any more.
fn write(out: &mut impl Write, data: &[u8], name: &str) -> Result<Option<u8>, Failure> {
    match out.write_all(data).and_then(|()| out.flush()) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(BROKEN_PIPE)),
        Err(error) => Err(Failure::Usage {
            message: format!("cannot write to {name}: {error}"),
            hint: None,
        }),
    }
}

/// Feeds standard input to the program.
async fn feed(
    stdin: ExecStdin,
    mut keys: Option<DetachKeys>,
    let_go: mpsc::Sender<oneshot::Sender<()>>,
) {
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; STDIN_CHUNK];
    loop {
        match input.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let (input, detached) = match &mut keys {
                    Some(keys) => keys.take(&chunk[..count]),
                    None => (chunk[..count].to_vec(), false),
                };
                if stdin.write(input).await.is_err() {
                    return;
                }
                if detached {
                    let (refused, still_ours) = oneshot::channel();
                    if let_go.send(refused).await.is_err() || still_ours.await.is_err() {
                        return;
                    }
                }
            }
        }
    }
    stdin.close();
}

/// The numbers of signals as they come in.
pub(crate) fn forwarded_signals() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(16);
    for (kind, number) in FORWARDED {
        // A signal that can't be watched keeps its default action.
        let Ok(mut stream) = signal(kind) else {
            continue;
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(number).await.is_err() {
                    return;
                }
            }
        });
    }
    receiver
}
