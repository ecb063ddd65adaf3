//! A host for tests: blocking, one agent process, everything it says is kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus as ProcessStatus, Stdio};

use msb_guest_agent::endpoint::{HostEndpoint, HostEvent};
use msb_guest_agent::message::{
    AgentMessage, ExecError, ExecRequest, ExitStatus, FileAnswer, FileError, FileOperation,
    FileRequest, HostMessage, Metadata, Request, ResetCode, StreamCommand, StreamEvent,
};
use msb_guest_agent::wire::{Channel, StreamId};

/// All that a command did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) status: Result<ExitStatus, ExecError>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Run {
    pub(crate) fn exited(code: u8, stdout: &str, stderr: &str) -> Run {
        Run {
            status: Ok(ExitStatus::Code(code)),
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

pub(crate) trait WithStdin {
    fn with_stdin(self) -> Self;
}

impl WithStdin for ExecRequest {
    fn with_stdin(self) -> ExecRequest {
        ExecRequest {
            stdin: true,
            ..self
        }
    }
}

#[derive(Default)]
struct Stream {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    eof: [bool; 3],
    result: Option<Result<ExitStatus, ExecError>>,
    closed: bool,
    reset: Option<ResetCode>,
    /// The errno of a connection that did not come about.
    not_connected: Option<i32>,
    opened: Option<Metadata>,
    file: Option<Result<FileAnswer, FileError>>,
    /// Output is not acknowledged; this much is owed.
    held: Option<[usize; 3]>,
    input: Vec<u8>,
    finish: bool,
}

/// A running agent and the host's end of its link.
pub(crate) struct Agent {
    process: Child,
    link: UnixStream,
    endpoint: HostEndpoint,
    streams: BTreeMap<StreamId, Stream>,
    answers: Vec<AgentMessage>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Agent {
    /// A started agent that has answered: what it opens for itself is open, so that
    /// its descriptors can be counted.
    pub(crate) fn start() -> Agent {
        let (link, theirs) = UnixStream::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_msb-guest-agent"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let mut agent = Agent {
            process,
            link,
            endpoint: HostEndpoint::new(),
            streams: BTreeMap::new(),
            answers: Vec::new(),
        };
        agent.ping();
        agent.answers.clear();
        agent
    }

    pub(crate) fn run(&mut self, request: ExecRequest) -> Run {
        let stream = self.open(request);
        self.finished(stream)
    }

    pub(crate) fn run_with_input(&mut self, request: ExecRequest, input: &[u8]) -> Run {
        let stream = self.open(request);
        self.send(stream, input);
        self.finish(stream);
        self.finished(stream)
    }

    pub(crate) fn open(&mut self, request: ExecRequest) -> StreamId {
        let stream = self.endpoint.open(&Request::Exec(request)).unwrap();
        self.streams.insert(stream, Stream::default());
        self.flush();
        stream
    }

    pub(crate) fn dial(&mut self, port: u16) -> StreamId {
        let stream = self.endpoint.open(&Request::Dial { port }).unwrap();
        self.streams.insert(stream, Stream::default());
        self.flush();
        stream
    }

    /// Begins an operation on files.
    pub(crate) fn open_file(&mut self, operation: FileOperation, user: Option<&str>) -> StreamId {
        let user = user.map(str::to_owned);
        let request = Request::File(FileRequest { operation, user });
        let stream = self.endpoint.open(&request).unwrap();
        self.streams.insert(stream, Stream::default());
        self.flush();
        stream
    }

    /// Waits for the end of an operation on files; says what came of it, and its bytes.
    pub(crate) fn file_done(
        &mut self,
        stream: StreamId,
    ) -> (Result<FileAnswer, FileError>, Vec<u8>) {
        self.until(|agent| agent.streams[&stream].closed);
        let state = self.streams.remove(&stream).unwrap();
        (state.file.expect("closed with an answer"), state.stdout)
    }

    /// Does an operation that needs no input.
    pub(crate) fn file(
        &mut self,
        operation: FileOperation,
    ) -> (Result<FileAnswer, FileError>, Vec<u8>) {
        let stream = self.open_file(operation, None);
        self.file_done(stream)
    }

    pub(crate) fn opened(&self, stream: StreamId) -> Option<Metadata> {
        self.streams[&stream].opened
    }

    pub(crate) fn is_closed(&self, stream: StreamId) -> bool {
        self.streams[&stream].closed
    }

    pub(crate) fn not_connected(&self, stream: StreamId) -> Option<i32> {
        self.streams[&stream].not_connected
    }

    pub(crate) fn send(&mut self, stream: StreamId, data: &[u8]) {
        self.stream(stream).input.extend_from_slice(data);
        self.push_input(stream);
    }

    pub(crate) fn finish(&mut self, stream: StreamId) {
        self.stream(stream).finish = true;
        self.push_input(stream);
    }

    fn push_input(&mut self, stream: StreamId) {
        let state = self.streams.get_mut(&stream).unwrap();
        if let Ok(n) = self.endpoint.send(stream, &state.input) {
            state.input.drain(..n);
            if state.input.is_empty() && state.finish {
                self.endpoint.finish(stream).unwrap();
            }
        }
        self.flush();
    }

    pub(crate) fn command(&mut self, stream: StreamId, command: StreamCommand) {
        self.endpoint.command(stream, &command).unwrap();
        self.flush();
    }

    pub(crate) fn reset(&mut self, stream: StreamId, code: ResetCode) {
        self.endpoint.reset(stream, code);
        self.streams.remove(&stream);
        self.flush();
    }

    pub(crate) fn control(&mut self, message: &HostMessage) {
        self.endpoint.control(message);
        self.flush();
    }

    /// Says several things at once, and waits for an answer to each: those are returned.
    pub(crate) fn exchange(&mut self, messages: &[HostMessage]) -> Vec<AgentMessage> {
        let before = self.answers.len();
        for message in messages {
            self.endpoint.control(message);
        }
        self.flush();
        self.until(|agent| agent.answers.len() == before + messages.len());
        self.answers.split_off(before)
    }

    pub(crate) fn ping(&mut self) {
        self.control(&HostMessage::Ping { token: 5 });
        let answer = AgentMessage::Pong { token: 5 };
        self.until(|agent| agent.answers.contains(&answer));
    }

    pub(crate) fn sync(&mut self) {
        self.control(&HostMessage::Sync { token: 1 });
        self.control(&HostMessage::Sync { token: 2 });
        for token in [1, 2] {
            let answer = AgentMessage::Synced { token };
            self.until(|agent| agent.answers.contains(&answer));
        }
    }

    /// Waits for the answer to a shutdown and for the agent's end.
    pub(crate) fn shut_down(&mut self) -> bool {
        let answer = AgentMessage::ShutdownDone { clean: true };
        self.until(|agent| agent.answers.contains(&answer));
        self.process.wait().unwrap().success()
    }

    pub(crate) fn wait(&mut self) -> ProcessStatus {
        self.process.wait().unwrap()
    }

    pub(crate) fn write_raw(&mut self, bytes: &[u8]) {
        self.link.write_all(bytes).unwrap();
    }

    /// Stops acknowledging a stream's output.
    pub(crate) fn hold(&mut self, stream: StreamId) {
        self.stream(stream).held = Some([0; 3]);
    }

    /// Acknowledges what was held back, and goes on doing so.
    pub(crate) fn release(&mut self, stream: StreamId) {
        let held = self.stream(stream).held.take().unwrap();
        for channel in [Channel::Stdout, Channel::Stderr] {
            self.endpoint
                .consumed(stream, channel, held[channel.index()]);
        }
        self.flush();
    }

    pub(crate) fn stdout(&self, stream: StreamId) -> &[u8] {
        &self.streams[&stream].stdout
    }

    pub(crate) fn eof(&self, stream: StreamId, channel: Channel) -> bool {
        self.streams[&stream].eof[channel.index()]
    }

    pub(crate) fn result(&self, stream: StreamId) -> Option<&Result<ExitStatus, ExecError>> {
        self.streams[&stream].result.as_ref()
    }

    pub(crate) fn was_reset(&self, stream: StreamId) -> Option<ResetCode> {
        self.streams[&stream].reset
    }

    /// Waits for the end of a command.
    pub(crate) fn finished(&mut self, stream: StreamId) -> Run {
        self.until(|agent| agent.streams[&stream].closed);
        let state = self.streams.remove(&stream).unwrap();
        Run {
            status: state.result.expect("closed with a result"),
            stdout: state.stdout,
            stderr: state.stderr,
        }
    }

    /// Handles what the agent says until `done`. When the condition is not
    /// about what it says, asks it something so that it does.
    pub(crate) fn until(&mut self, mut done: impl FnMut(&Agent) -> bool) {
        while !done(self) {
            if self.streams.values().all(|stream| stream.closed) {
                self.endpoint.control(&HostMessage::Ping { token: 0 });
                self.flush();
            }
            self.read();
        }
    }

    fn read(&mut self) {
        let mut buffer = vec![0; 128 * 1024];
        let n = self.link.read(&mut buffer).unwrap();
        assert!(n > 0, "the agent hung up");
        self.endpoint.handle_input(&buffer[..n]);
        while let Some(event) = self.endpoint.poll_event().unwrap() {
            self.handle(event);
        }
        self.flush();
    }

    fn handle(&mut self, event: HostEvent) {
        match event {
            HostEvent::Control(AgentMessage::Pong { token: 0 }) => {}
            HostEvent::Control(answer) => self.answers.push(answer),
            HostEvent::Data {
                stream,
                channel,
                data,
            } => {
                let state = self.stream(stream);
                match channel {
                    Channel::Stderr => state.stderr.extend_from_slice(&data),
                    _ => state.stdout.extend_from_slice(&data),
                }
                match &mut state.held {
                    Some(held) => held[channel.index()] += data.len(),
                    None => self.endpoint.consumed(stream, channel, data.len()),
                }
            }
            HostEvent::Eof { stream, channel } => self.stream(stream).eof[channel.index()] = true,
            HostEvent::Writable { stream } => self.push_input(stream),
            HostEvent::Stream { stream, event } => match event {
                StreamEvent::Exited(status) => self.stream(stream).result = Some(Ok(status)),
                StreamEvent::Failed(error) => self.stream(stream).result = Some(Err(error)),
                StreamEvent::NotConnected(errno) => {
                    self.stream(stream).not_connected = Some(errno.0);
                }
                StreamEvent::FileOpened(metadata) => {
                    self.stream(stream).opened = Some(metadata);
                }
                StreamEvent::FileDone(answer) => self.stream(stream).file = Some(Ok(answer)),
                StreamEvent::FileFailed(error) => self.stream(stream).file = Some(Err(error)),
                _ => {}
            },
            HostEvent::Closed { stream, reset } => {
                let state = self.stream(stream);
                state.closed = true;
                state.reset = reset;
            }
        }
    }

    fn stream(&mut self, stream: StreamId) -> &mut Stream {
        self.streams.get_mut(&stream).unwrap()
    }

    fn flush(&mut self) {
        // The agent reads whatever it is doing, so this does not block for long.
        // When it has ended, what it said before is still to be read.
        let n = self.endpoint.output().len();
        match self.link.write_all(self.endpoint.output()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.unwrap(),
        }
        self.endpoint.consume_output(n);
    }

    pub(crate) fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.process.id());
        fs::read_dir(path).unwrap().count()
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> usize {
        let path = format!("/proc/{}/statm", self.process.id());
        let statm = fs::read_to_string(path).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// Number of processes, also dead ones, that are the agent's children.
    pub(crate) fn children(&self) -> usize {
        let pid = self.process.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        fs::read_to_string(path).unwrap().split_whitespace().count()
    }
}
