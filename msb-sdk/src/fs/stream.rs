//! One operation under way.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use msb_guest_agent::message::{FileAnswer, FileRequest, Metadata, Request, StreamEvent};
use msb_guest_agent::wire::StreamId;
use tokio::sync::{mpsc, oneshot};

use super::fault::FileFault;
use crate::error::Error;
use crate::link::{Ask, Item, Link, given_up};

/// What the guest said.
#[derive(Debug)]
pub(super) enum Next {
    Opened(Metadata),
    Data(Bytes),
    Done(FileAnswer),
}

/// A stream for one operation. Dropping it gives the operation up.
#[derive(Debug)]
pub(super) struct FileStream {
    link: Link,
    stream: StreamId,
    items: mpsc::UnboundedReceiver<Item>,
    operation: &'static str,
    path: PathBuf,
    over: bool,
}

impl FileStream {
    /// Asks for an operation. `operation` and `path` are for messages.
    pub(super) async fn open(
        link: &Link,
        request: FileRequest,
        operation: &'static str,
        path: &Path,
    ) -> Result<Self, Error> {
        let (stream, items) = link.open(Request::File(request)).await?;
        Ok(Self {
            link: link.clone(),
            stream,
            items,
            operation,
            path: path.to_owned(),
            over: false,
        })
    }

    /// Waits until bytes can pass.
    pub(super) async fn opened(&mut self) -> Result<Metadata, Error> {
        match self.next().await? {
            Next::Opened(metadata) => Ok(metadata),
            Next::Data(_) | Next::Done(_) => Err(self.fails(senseless())),
        }
    }

    /// Waits for what the guest says next. After [`Next::Done`] it says nothing.
    pub(super) async fn next(&mut self) -> Result<Next, Error> {
        loop {
            match self.items.recv().await {
                Some(Item::Data(channel, data)) => {
                    let (stream, len) = (self.stream, data.len());
                    self.link.ask(Ask::Consumed {
                        stream,
                        channel,
                        len,
                    });
                    return Ok(Next::Data(data));
                }
                Some(Item::Event(StreamEvent::FileOpened(metadata))) => {
                    return Ok(Next::Opened(metadata));
                }
                Some(Item::Event(StreamEvent::FileDone(answer))) => {
                    self.over = true;
                    return Ok(Next::Done(answer));
                }
                Some(Item::Event(StreamEvent::FileFailed(error))) => {
                    self.over = true;
                    return Err(Error::File {
                        operation: self.operation,
                        path: OsString::from_vec(error.path.0).into(),
                        fault: error.fault.into(),
                    });
                }
                Some(Item::Eof(_)) => {}
                Some(Item::Event(_) | Item::Kept(..)) => return Err(self.fails(senseless())),
                Some(Item::Reset(code)) => {
                    self.over = true;
                    return Err(Error::gone(given_up(code)));
                }
                None => {
                    self.over = true;
                    return Err(self.link.gone().await);
                }
            }
        }
    }

    /// Sends bytes; returns when the last of them is on its way.
    pub(super) async fn send(&mut self, data: Bytes) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.link.ask(Ask::Send {
            stream: self.stream,
            data,
            reply,
        });
        match answer.await {
            Ok(Ok(())) => Ok(()),
            // The guest takes no more: it has said why.
            _ => match self.next().await {
                Err(error) => Err(error),
                Ok(_) => Err(self.fails(senseless())),
            },
        }
    }

    /// Says that all bytes were sent, and waits for what comes of them.
    pub(super) async fn finish(&mut self) -> Result<FileAnswer, Error> {
        self.link.ask(Ask::Finish {
            stream: self.stream,
        });
        match self.next().await? {
            Next::Done(answer) => Ok(answer),
            Next::Opened(_) | Next::Data(_) => Err(self.fails(senseless())),
        }
    }

    /// An error about the operation's own path.
    pub(super) fn fails(&self, fault: FileFault) -> Error {
        Error::File {
            operation: self.operation,
            path: self.path.clone(),
            fault,
        }
    }
}

fn senseless() -> FileFault {
    FileFault::Malformed("an answer out of turn".into())
}

impl Drop for FileStream {
    fn drop(&mut self) {
        if !self.over {
            self.link.ask(Ask::Reset {
                stream: self.stream,
            });
        }
    }
}
