//! Running programs in a sandbox.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::time::Duration;

use bytes::Bytes;
use msb_guest_agent::message::{
    ByteString, ExecError, ExecRequest, ExitStatus, Limit, Request, Resource, Signal,
    StreamCommand, StreamEvent, Trouble, TtySize,
};
use msb_guest_agent::wire::{Channel, StreamId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::Error;
use crate::link::{Ask, Item, Link, given_up};
use crate::session::{About, Session, SessionId};

/// The most output that [`Output`] collects, each of stdout and stderr, in
/// bytes. The guest decides how much it writes; a caller that wants more reads
/// it from an [`ExecHandle`] as it comes.
const MAX_COLLECTED: usize = 64 << 20;

/// The most of a command line that others are told, in bytes.
const MAX_SHOWN: usize = 200;

/// The exit code of a program that was killed, as a shell has it.
const KILLED: u8 = 128 + 9;

/// What to run and how.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    request: ExecRequest,
    input: Option<Bytes>,
    timeout: Option<Duration>,
}

impl ExecOptions {
    /// A program with its arguments. Without a slash in it, the program is
    /// looked for on the guest's `PATH`. There is no shell.
    pub fn new<A: Into<OsString>>(
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let words = std::iter::once(program.into()).chain(args.into_iter().map(Into::into));
        let argv = words.map(ByteString::from).collect();
        Self {
            request: ExecRequest {
                argv,
                ..ExecRequest::default()
            },
            input: None,
            timeout: None,
        }
    }

    /// Adds an environment variable on top of the sandbox's.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.request.env.push(format!("{key}={value}").into());
        self
    }

    /// Working folder instead of the sandbox's.
    #[must_use]
    pub fn cwd(mut self, path: impl Into<OsString>) -> Self {
        self.request.cwd = Some(path.into().into());
        self
    }

    /// User instead of the sandbox's: `name|uid[:group|gid]`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.request.user = Some(user.into());
        self
    }

    /// Gives the program a terminal. Its output comes as stdout.
    #[must_use]
    pub fn tty(mut self, size: TtySize) -> Self {
        self.request.tty = Some(size);
        self
    }

    /// Gives the program a standard input to be fed by [`ExecHandle::stdin`].
    /// Without it the program reads from `/dev/null`.
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.request.stdin = true;
        self
    }

    /// Gives the program these bytes as its standard input, and then its end.
    #[must_use]
    pub fn input(mut self, data: impl Into<Bytes>) -> Self {
        self.request.stdin = true;
        self.input = Some(data.into());
        self
    }

    /// Kills the program, with all of its process group, when it has not ended by then.
    #[must_use]
    pub fn timeout(mut self, after: Duration) -> Self {
        self.timeout = Some(after);
        self
    }

    /// Bounds what the program and those that it starts use of a resource; see
    /// `getrlimit(2)`. `None` is no bound.
    #[must_use]
    pub fn limit(self, resource: Resource, bound: Option<u64>) -> Self {
        self.limits(resource, bound, bound)
    }

    /// As [`ExecOptions::limit`], with the bound that holds (`soft`) apart from the one up to
    /// which the program may raise it (`hard`).
    #[must_use]
    pub fn limits(mut self, resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Self {
        self.request.limits.push(Limit {
            resource,
            soft,
            hard,
        });
        self
    }

    /// The words, as one line that is fit for showing.
    fn command_line(&self) -> String {
        let words: Vec<String> = self.request.argv.iter().map(ToString::to_string).collect();
        let mut line = words.join(" ");
        line.truncate(line.floor_char_boundary(MAX_SHOWN));
        line
    }

    /// The program's name, as it was given.
    #[must_use]
    pub fn program(&self) -> String {
        self.request
            .argv
            .first()
            .map(ToString::to_string)
            .unwrap_or_default()
    }
}

/// Something that a running program did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecEvent {
    /// It wrote to standard output, or to its terminal.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It did not succeed, and this may be why: its end follows.
    Trouble(Trouble),
    /// It ended; nothing follows.
    Exited(ExitStatus),
    /// Its time was up, and it was killed; nothing follows.
    TimedOut {
        /// How long it had.
        after: Duration,
    },
    /// The sandbox ended under it; nothing follows.
    Lost {
        /// Why, as far as it is known.
        reason: String,
    },
}

/// A program that runs in a sandbox. Dropping the handle kills the program.
#[derive(Debug)]
pub struct ExecHandle {
    link: Link,
    stream: StreamId,
    items: mpsc::UnboundedReceiver<Item>,
    program: String,
    pid: u32,
    /// When the program is killed, and how long it had.
    deadline: Option<(Instant, Duration)>,
    /// Its command line, as others are told of it.
    command: String,
    /// The supervisor has its stream.
    detached: bool,
    /// What is still to be said of its end.
    end: VecDeque<ExecEvent>,
    over: bool,
}

impl ExecHandle {
    /// Starts a program; returns when it runs.
    pub(crate) async fn start(link: &Link, options: ExecOptions) -> Result<Self, Error> {
        let program = options.program();
        let command = options.command_line();
        let deadline = options.timeout.map(|after| (Instant::now() + after, after));
        let (stream, items) = link.open(Request::Exec(options.request)).await?;
        // From here on the stream is this handle's to give up.
        let mut handle = Self {
            link: link.clone(),
            stream,
            items,
            program: program.clone(),
            pid: 0,
            deadline,
            command,
            detached: false,
            end: VecDeque::new(),
            over: false,
        };
        match handle.items.recv().await {
            Some(Item::Event(StreamEvent::Started { pid })) => {
                handle.pid = pid;
                if let Some(input) = options.input {
                    let stdin = handle.stdin();
                    tokio::spawn(async move {
                        // A program that does not read its input may end first.
                        if stdin.write(input).await.is_ok() {
                            stdin.close();
                        }
                    });
                }
                Ok(handle)
            }
            Some(Item::Event(StreamEvent::Failed(reason))) => {
                handle.over = true;
                Err(Error::Exec { program, reason })
            }
            Some(_) => Err(Error::Exec {
                program,
                reason: ExecError::Invalid {
                    reason: "the guest refused the request".into(),
                },
            }),
            None => Err(link.gone().await),
        }
    }

    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the next event; `None` after the last one, which is
    /// [`ExecEvent::Exited`], [`ExecEvent::TimedOut`] or [`ExecEvent::Lost`].
    ///
    /// Whoever does not call this stops the program when it has written some
    /// hundred KiB, and nothing else.
    pub async fn recv(&mut self) -> Option<ExecEvent> {
        while !self.over {
            if let Some(event) = self.end.pop_front() {
                self.over = self.end.is_empty();
                return Some(event);
            }
            let item = match self.deadline {
                None => self.items.recv().await,
                Some((at, after)) => tokio::select! {
                    biased;
                    item = self.items.recv() => item,
                    () = tokio::time::sleep_until(at) => {
                        // The guest kills what nobody wants any more.
                        self.link.ask(Ask::Reset { stream: self.stream });
                        self.over = true;
                        return Some(ExecEvent::TimedOut { after });
                    }
                },
            };
            match item {
                Some(Item::Data(channel, data)) => {
                    let (stream, len) = (self.stream, data.len());
                    self.link.ask(Ask::Consumed {
                        stream,
                        channel,
                        len,
                    });
                    return Some(match channel {
                        Channel::Stderr => ExecEvent::Stderr(data),
                        _ => ExecEvent::Stdout(data),
                    });
                }
                Some(Item::Kept(channel, data)) => {
                    return Some(match channel {
                        Channel::Stderr => ExecEvent::Stderr(data),
                        _ => ExecEvent::Stdout(data),
                    });
                }
                Some(Item::Event(StreamEvent::Exited(status))) => {
                    self.over = true;
                    return Some(ExecEvent::Exited(status));
                }
                Some(Item::Event(StreamEvent::Troubled { status, troubles })) => {
                    self.end = troubles.into_iter().map(ExecEvent::Trouble).collect();
                    self.end.push_back(ExecEvent::Exited(status));
                }
                // The end of output comes as an event, too.
                Some(Item::Event(_) | Item::Eof(_)) => {}
                Some(Item::Reset(code)) => {
                    self.over = true;
                    let reason = given_up(code).into();
                    return Some(ExecEvent::Lost { reason });
                }
                None if self.detached => self.over = true,
                None => {
                    self.over = true;
                    let reason = self.link.ended().await.reason;
                    return Some(ExecEvent::Lost { reason });
                }
            }
        }
        None
    }

    /// Lets go of the program without ending it: it goes on, and what it writes from now on is
    /// kept, up to some screens of it. [`Sandbox::attach`](crate::Sandbox::attach) comes back
    /// to it, in this process or another. Output that was under way is still to be had from
    /// [`ExecHandle::recv`], which then ends. Its [timeout](ExecOptions::timeout) is off.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: msb_sdk::Sandbox) -> Result<(), msb_sdk::Error> {
    /// use msb_sdk::ExecOptions;
    ///
    /// let mut build = sandbox.exec_with(ExecOptions::new("make", ["-j2"])).await?;
    /// let id = build.detach().await?;
    /// // Later:
    /// let output = sandbox.attach(id).await?.output().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Machine`] when it has ended, or too many were let go of: then it is still this
    /// handle's. [`Error::Gone`] when the sandbox has ended.
    pub async fn detach(&mut self) -> Result<SessionId, Error> {
        let (reply, answer) = oneshot::channel();
        self.link.ask(Ask::Detach {
            stream: self.stream,
            about: About {
                command: self.command.clone(),
                pid: self.pid,
            },
            reply,
        });
        match answer.await {
            Ok(Ok(Session::Detached(id))) => {
                self.detached = true;
                self.deadline = None;
                Ok(id)
            }
            Ok(Ok(_)) => Err(Error::gone("its supervisor said something else")),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err(self.link.gone().await),
        }
    }

    /// Comes back to a program that was let go of.
    pub(crate) async fn attach(link: &Link, id: SessionId) -> Result<Self, Error> {
        let (stream, about, items) = link.attach(id).await?;
        let program = about.command.split(' ').next().unwrap_or_default();
        Ok(Self {
            link: link.clone(),
            stream,
            items,
            program: program.to_owned(),
            pid: about.pid,
            deadline: None,
            command: about.command,
            detached: false,
            end: VecDeque::new(),
            over: false,
        })
    }

    /// Its command line, cut to a length fit for showing.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Waits for the end and passes over output.
    ///
    /// # Errors
    /// [`Error::Gone`] when the sandbox ended under the program, [`Error::TimedOut`] when its
    /// time was up, [`Error::OutOfMemory`] when it was killed because memory ran out.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        let mut troubles = Vec::new();
        loop {
            let event = self.recv().await;
            if let Some(end) = self.end(event.as_ref(), &troubles) {
                return end;
            }
            if let Some(ExecEvent::Trouble(trouble)) = event {
                troubles.push(trouble);
            }
        }
    }

    /// Waits for the end and collects output.
    ///
    /// # Errors
    /// As [`ExecHandle::wait`], and [`Error::OutputTooLong`] above 64 MiB of
    /// either output; the program is killed then.
    pub async fn output(mut self) -> Result<Output, Error> {
        let (mut stdout, mut stderr, mut troubles) = (Vec::new(), Vec::new(), Vec::new());
        let collect = |into: &mut Vec<u8>, data: &Bytes| {
            if into.len() + data.len() > MAX_COLLECTED {
                return Err(Error::OutputTooLong { max: MAX_COLLECTED });
            }
            into.extend_from_slice(data);
            Ok(())
        };
        loop {
            let event = self.recv().await;
            match &event {
                Some(ExecEvent::Stdout(data)) => collect(&mut stdout, data)?,
                Some(ExecEvent::Stderr(data)) => collect(&mut stderr, data)?,
                _ => {}
            }
            if let Some(end) = self.end(event.as_ref(), &troubles) {
                return Ok(Output {
                    status: end?,
                    stdout,
                    stderr,
                    troubles,
                });
            }
            if let Some(ExecEvent::Trouble(trouble)) = event {
                troubles.push(trouble);
            }
        }
    }

    /// What an event means for whoever waits for the end.
    fn end(
        &self,
        event: Option<&ExecEvent>,
        troubles: &[Trouble],
    ) -> Option<Result<ExitStatus, Error>> {
        let killed = |trouble: &Trouble| matches!(trouble, Trouble::OutOfMemory { .. });
        Some(match event {
            // A shell says so of a program that was killed.
            Some(ExecEvent::Exited(status))
                if status.code() == KILLED && troubles.iter().any(killed) =>
            {
                Err(Error::OutOfMemory {
                    program: self.program.clone(),
                })
            }
            Some(ExecEvent::Exited(status)) => Ok(*status),
            Some(ExecEvent::TimedOut { after }) => Err(Error::TimedOut {
                program: self.program.clone(),
                after: *after,
            }),
            Some(ExecEvent::Lost { reason }) => Err(Error::gone(reason)),
            Some(_) => return None,
            None => Err(Error::gone("the program's end was reported before")),
        })
    }

    /// The program's standard input, when [`ExecOptions::stdin`] asked for one.
    /// May be used beside [`ExecHandle::recv`], in another task.
    #[must_use]
    pub fn stdin(&self) -> ExecStdin {
        ExecStdin {
            link: self.link.clone(),
            stream: self.stream,
        }
    }

    /// Sends a signal to the program's process group.
    pub fn signal(&self, signal: Signal) {
        self.order(StreamCommand::Signal {
            signal,
            group: true,
        });
    }

    /// Ends the program's process group at once. Its end is reported as any other.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Tells the program's terminal its new size.
    pub fn resize(&self, size: TtySize) {
        self.order(StreamCommand::Resize(size));
    }

    fn order(&self, command: StreamCommand) {
        self.link.ask(Ask::Command {
            stream: self.stream,
            command,
        });
    }
}

impl Drop for ExecHandle {
    fn drop(&mut self) {
        if !self.over && !self.detached {
            self.link.ask(Ask::Reset {
                stream: self.stream,
            });
        }
    }
}

/// The writing end of a program's standard input.
#[derive(Debug)]
pub struct ExecStdin {
    link: Link,
    stream: StreamId,
}

impl ExecStdin {
    /// Writes all of `data`; returns when the last of it is on its way, so
    /// that a program that does not read slows its writer down.
    ///
    /// # Errors
    /// [`Error::Gone`] when the program has ended.
    pub async fn write(&self, data: impl Into<Bytes>) -> Result<(), Error> {
        let data = data.into();
        if data.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.link.ask(Ask::Send {
            stream: self.stream,
            data,
            reply,
        });
        answer
            .await
            .unwrap_or_else(|_| Err(Error::gone("the program has ended")))
    }

    /// Ends the input: the program reads end-of-file.
    pub fn close(self) {
        self.link.ask(Ask::Finish {
            stream: self.stream,
        });
    }
}

/// What a program wrote, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    troubles: Vec<Trouble>,
}

impl Output {
    /// What else may be why it did not succeed: a full disk, for one.
    #[must_use]
    pub fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }

    /// How it ended.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        self.status
    }

    /// Standard output as text.
    ///
    /// # Errors
    /// When it is not UTF-8; see [`Output::stdout_bytes`].
    pub fn stdout(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.stdout)
    }

    /// Standard error as text.
    ///
    /// # Errors
    /// When it is not UTF-8; see [`Output::stderr_bytes`].
    pub fn stderr(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.stderr)
    }

    /// Standard output as it is.
    #[must_use]
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard error as it is.
    #[must_use]
    pub fn stderr_bytes(&self) -> &[u8] {
        &self.stderr
    }
}
