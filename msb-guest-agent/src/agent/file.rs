//! Operations on files: each runs on a thread of its own, because any file can make its
//! reader wait, and the loop must not.
//!
//! ```text
//! link ─► loop ─► Shared.input  ─► thread ─► file
//! link ◄─ loop ◄─ Shared.output ◄─ thread ◄─ file      a thread wakes the loop by an eventfd
//! ```
//!
//! Input is bounded by the stream's window, output by [`MAX_OUTPUT`]. A thread whose stream
//! was given up ends the next time that it wants bytes or room for some, or looks.

mod operate;
mod place;
mod remove;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use rustix::event::{EventfdFlags, eventfd};

use self::operate::Worker;
use self::place::Places;
use super::users::Database;
use super::world::World;
use crate::endpoint::GuestEndpoint;
use crate::message::{Errno, FileError, FileFault, FileRequest, Metadata, ResetCode, StreamEvent};
use crate::wire::{Channel, StreamId};

/// Output of one operation that may wait for the loop: as much as keeps both busy.
const MAX_OUTPUT: usize = 256 * 1024;

/// Stack of a thread: nothing in it recurses.
const STACK: usize = 128 * 1024;

/// All operations that were not reported as over.
pub(super) struct Files {
    streams: BTreeMap<StreamId, Arc<Shared>>,
    wake: Arc<OwnedFd>,
    /// One clone for each thread.
    running: Arc<()>,
}

/// What the loop and a thread tell each other.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    input: VecDeque<Bytes>,
    input_ended: bool,
    /// Input that was taken and not acknowledged.
    taken: usize,
    opened: Option<Metadata>,
    output: VecDeque<Bytes>,
    output_len: usize,
    end: Option<StreamEvent>,
    cancelled: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    pub(super) fn new() -> io::Result<Files> {
        Ok(Files {
            streams: BTreeMap::new(),
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            running: Arc::new(()),
        })
    }

    /// Readable when a thread has something for [`turn`](Files::turn).
    pub(super) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    pub(super) fn woken(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    /// Starts an operation.
    pub(super) fn start(
        &mut self,
        stream: StreamId,
        request: &FileRequest,
        world: &World,
    ) -> Result<(), StreamEvent> {
        let fails = |fault| {
            StreamEvent::FileFailed(FileError {
                path: request.operation.path().clone(),
                fault,
            })
        };
        let user = request
            .user
            .as_ref()
            .map(|spec| Database::load().find(spec));
        let user = user
            .transpose()
            .map_err(|reason| fails(FileFault::BadUser(reason)))?;
        let places = Places::new(world.workdir());
        let places = places.map_err(|errno| fails(errno.into()))?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let port = Port {
            shared: Arc::clone(&shared),
            wake: Arc::clone(&self.wake),
            running: Some(Arc::clone(&self.running)),
        };
        let worker = Worker::new(places, port);
        let operation = request.operation.clone();
        let started = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || worker.run(user, &operation));
        match started {
            Ok(_) => {
                self.streams.insert(stream, shared);
                Ok(())
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                Err(fails(FileFault::System(Errno(errno))))
            }
        }
    }

    pub(super) fn has(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Takes input from the host.
    pub(super) fn take_input(&mut self, stream: StreamId, data: Bytes) {
        if let Some(shared) = self.streams.get(&stream) {
            shared.lock().input.push_back(data);
            shared.changed.notify_all();
        }
    }

    /// Notes that the host has sent all input.
    pub(super) fn end_input(&mut self, stream: StreamId) {
        if let Some(shared) = self.streams.get(&stream) {
            shared.lock().input_ended = true;
            shared.changed.notify_all();
        }
    }

    /// The host has given a stream up.
    pub(super) fn abandon(&mut self, stream: StreamId) {
        if let Some(shared) = self.streams.remove(&stream) {
            shared.cancel();
        }
    }

    /// The host has given all streams up, and does not want to hear of them.
    pub(super) fn abandon_all(&mut self) {
        for (_, shared) in std::mem::take(&mut self.streams) {
            shared.cancel();
        }
    }

    /// Gives all streams up.
    pub(super) fn shut_down(&mut self, endpoint: &mut GuestEndpoint) {
        for (stream, shared) in std::mem::take(&mut self.streams) {
            shared.cancel();
            endpoint.reset(stream, ResetCode::ShuttingDown);
        }
    }

    /// Tells whether no thread runs.
    pub(super) fn idle(&self) -> bool {
        Arc::strong_count(&self.running) == 1
    }

    /// Passes on what threads have made, as long as no more than `most` bytes wait for the
    /// link.
    pub(super) fn turn(&mut self, endpoint: &mut GuestEndpoint, most: usize) {
        self.streams
            .retain(|stream, shared| !shared.turn(*stream, endpoint, most));
    }
}

impl Shared {
    fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
    }

    /// Passes on what there is; `true` when the stream is over.
    fn turn(&self, stream: StreamId, endpoint: &mut GuestEndpoint, most: usize) -> bool {
        let mut state = self.lock();
        // Events and bytes fail for streams that are over only, and those are not here.
        endpoint.consumed(stream, std::mem::take(&mut state.taken));
        if let Some(metadata) = state.opened.take() {
            let _ = endpoint.event(stream, &StreamEvent::FileOpened(metadata));
        }
        let full = state.output_len >= MAX_OUTPUT;
        while endpoint.output().len() < most {
            let Some(data) = state.output.front_mut() else {
                break;
            };
            let Ok(sent @ 1..) = endpoint.send(stream, Channel::Stdout, data) else {
                break;
            };
            data.advance(sent);
            if data.is_empty() {
                state.output.pop_front();
            }
            state.output_len -= sent;
        }
        if full && state.output_len < MAX_OUTPUT {
            self.changed.notify_all();
        }
        if !state.output.is_empty() {
            return false;
        }
        let Some(event) = state.end.take() else {
            return false;
        };
        let _ = endpoint.event(stream, &event);
        true
    }
}

/// A thread's end of its stream.
struct Port {
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    running: Option<Arc<()>>,
}

/// Nobody wants to know any more.
#[derive(Debug)]
struct Abandoned;

impl Port {
    fn wake(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// Says that the file is open.
    fn opened(&self, metadata: Metadata) {
        self.shared.lock().opened = Some(metadata);
        self.wake();
    }

    /// Waits for input; `None` at its end.
    fn receive(&self) -> Result<Option<Bytes>, Abandoned> {
        let mut state = self.shared.lock();
        loop {
            if state.cancelled {
                return Err(Abandoned);
            }
            if let Some(data) = state.input.pop_front() {
                return Ok(Some(data));
            }
            if state.input_ended {
                return Ok(None);
            }
            state = self.shared.wait(state);
        }
    }

    /// Acknowledges input that is where it belongs.
    fn took(&self, len: usize) {
        self.shared.lock().taken += len;
        self.wake();
    }

    /// Passes bytes on, once there is room for them.
    fn send(&self, data: Bytes) -> Result<(), Abandoned> {
        let mut state = self.shared.lock();
        while state.output_len >= MAX_OUTPUT && !state.cancelled {
            state = self.shared.wait(state);
        }
        if state.cancelled {
            return Err(Abandoned);
        }
        state.output_len += data.len();
        state.output.push_back(data);
        drop(state);
        self.wake();
        Ok(())
    }

    fn check(&self) -> Result<(), Abandoned> {
        if self.shared.lock().cancelled {
            return Err(Abandoned);
        }
        Ok(())
    }

    fn end(&self, event: StreamEvent) {
        self.shared.lock().end = Some(event);
    }
}

impl Shared {
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // The loop looks whether anybody runs when it is woken.
        self.running = None;
        self.wake();
    }
}
