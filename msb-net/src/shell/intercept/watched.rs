//! A stream of HTTP/2 to a guest, and what it is refused in it.
//!
//! The library answers what breaks the protocol by itself: with a reset of the stream
//! or the end of the connection, and tells nobody. Both are frames that go through
//! here, so their heads (RFC 9113, 4.1) are read on the way out.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a frame's head.
const HEAD: usize = 9;

/// Where the code of an error is in a frame that ends something, and how long it is:
/// behind the last stream's number in one that ends the connection.
const CODE: usize = 4;

const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

/// The frames of what is written.
#[derive(Default)]
struct Frames {
    /// The head of the frame at hand, and the first bytes behind it.
    begun: Vec<u8>,
    /// Bytes of it that are of no interest.
    skip: usize,
}

impl Frames {
    /// Reads what was written; returns what was refused in it.
    fn read(&mut self, mut bytes: &[u8], refused: &mut dyn FnMut(Reason)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            (self.skip, bytes) = (self.skip - skipped, &bytes[skipped..]);
            let wanted = self.wanted();
            let taken = (wanted - self.begun.len()).min(bytes.len());
            self.begun.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.begun.len() < HEAD || self.begun.len() < self.wanted() {
                continue;
            }
            if let Some(code) = self.begun.last_chunk::<CODE>()
                && self.begun.len() > HEAD
            {
                refused(Reason::from(u32::from_be_bytes(*code)));
            }
            self.skip = self.length() - (self.begun.len() - HEAD);
            self.begun.clear();
        }
    }

    fn length(&self) -> usize {
        let [a, b, c] = [0, 1, 2].map(|at| usize::from(self.begun[at]));
        a << 16 | b << 8 | c
    }

    /// How many bytes of a frame have to be seen.
    fn wanted(&self) -> usize {
        let code = match self.begun.get(3) {
            _ if self.begun.len() < HEAD => 0,
            Some(&RST_STREAM) => CODE,
            Some(&GOAWAY) => 2 * CODE,
            _ => 0,
        };
        // The library's own frames have a code; were it not so, none would be read.
        if code > 0 && self.length() < code {
            HEAD
        } else {
            HEAD + code
        }
    }
}

/// A stream that tells of refusals.
pub(super) struct Watched<S, F> {
    inner: S,
    frames: Frames,
    refused: F,
}

impl<S, F: FnMut(Reason)> Watched<S, F> {
    /// Watches what is written to a stream; `refused` hears of it.
    pub(super) fn new(inner: S, refused: F) -> Self {
        Self {
            inner,
            frames: Frames::default(),
            refused,
        }
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let refused = &mut self.refused;
        self.frames.read(bytes, &mut |reason| {
            // What ends in good order, or because somebody does not want it.
            let ordinary = [Reason::NO_ERROR, Reason::CANCEL];
            if !ordinary.contains(&reason) {
                refused(reason);
            }
        });
    }
}

impl<S: AsyncRead + Unpin, F: Unpin> AsyncRead for Watched<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, F: FnMut(Reason) + Unpin> AsyncWrite for Watched<S, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.wrote(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, pieces))?;
        let mut left = written;
        for piece in pieces {
            let now = left.min(piece.len());
            self.wrote(&piece[..now]);
            left -= now;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        [&head[..], payload].concat()
    }

    #[test]
    fn codes_are_found_whatever_the_pieces() {
        let all = [
            frame(4, &[0; 12]),
            frame(RST_STREAM, &[0, 0, 0, 1]),
            frame(0, &[7; 300]),
            frame(0, &[]),
            frame(GOAWAY, b"\0\0\0\x05\0\0\0\x0bmore"),
            frame(RST_STREAM, &[0, 0, 0, 8]),
        ]
        .concat();
        for size in [1, 2, 7, all.len()] {
            let mut frames = Frames::default();
            let mut told = Vec::new();
            for piece in all.chunks(size) {
                frames.read(piece, &mut |reason| told.push(u32::from(reason)));
            }
            assert_eq!(told, [1, 11, 8], "in pieces of {size}");
        }
    }
}
