//! A stream whose writes are gathered until whoever writes has nothing more to say.
//!
//! The library for HTTP/2 flushes behind each frame. With TLS below, that is a record and
//! a system call for each, of which servers send one for 8 KiB. Here a flush does nothing:
//! what was gathered is written by [`Corked::poll_uncork`], which the task that writes
//! calls when it would wait, and whenever there is a lot of it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at most: what TLS takes at once.
const MAX_GATHERED: usize = 64 * 1024;

/// A stream that is shared by who writes to it and who uncorks it.
pub(super) struct Corked<S>(Rc<RefCell<Inner<S>>>);

struct Inner<S> {
    stream: S,
    gathered: Vec<u8>,
    /// How many of them the stream has.
    written: usize,
    /// The stream has bytes that it may keep until it is flushed.
    owed: bool,
}

impl<S> Clone for Corked<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.owed = true;
        }
        self.gathered.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if self.owed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.owed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room if there is none, and takes what fits into it.
    fn poll_gather(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= MAX_GATHERED {
            ready!(self.poll_drain(cx))?;
        }
        let before = self.gathered.len();
        for piece in pieces {
            let room = MAX_GATHERED - self.gathered.len();
            self.gathered
                .extend_from_slice(&piece[..room.min(piece.len())]);
        }
        Poll::Ready(Ok(self.gathered.len() - before))
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Gathers what is written to a stream.
    pub(super) fn new(stream: S) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            stream,
            gathered: Vec::new(),
            written: 0,
            owed: false,
        })))
    }

    /// Writes what was gathered, and sees to it that it is sent.
    pub(super) fn poll_uncork(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_gather(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_gather(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_before_it_is_uncorked_or_a_lot() {
        let (near, mut far) = tokio::io::duplex(2 * MAX_GATHERED);
        let mut corked = Corked::new(near);
        corked.write_all(b"one ").await.unwrap();
        corked.flush().await.unwrap();
        corked.write_all(b"two").await.unwrap();
        let mut got = [0; 7];
        let mut reading = Box::pin(far.read_exact(&mut got));
        let early = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_ready())).await;
        assert!(!early);
        poll_fn(|cx| corked.poll_uncork(cx)).await.unwrap();
        reading.await.unwrap();
        assert_eq!(&got, b"one two");
        let long = vec![7; MAX_GATHERED + 1];
        corked.write_all(&long).await.unwrap();
        let mut got = vec![0; MAX_GATHERED];
        far.read_exact(&mut got).await.unwrap();
        corked.shutdown().await.unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&got[..], &rest[..]), (&long[1..], &long[..1]));
    }

    /// A reader that is slow stops the writer, and loses nothing.
    #[tokio::test]
    async fn what_cannot_be_sent_yet_waits_in_bounded_memory() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut corked = Corked::new(near);
        let all: Vec<u8> = (0..3 * MAX_GATHERED).map(|at| at as u8).collect();
        let uncorked = corked.clone();
        let writing = async {
            corked.write_all(&all).await.unwrap();
            poll_fn(|cx| uncorked.poll_uncork(cx)).await.unwrap();
            assert!(uncorked.0.borrow().gathered.capacity() <= 2 * MAX_GATHERED);
            corked.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(writing, far.read_to_end(&mut got));
        read.unwrap();
        assert!(got == all);
    }
}
