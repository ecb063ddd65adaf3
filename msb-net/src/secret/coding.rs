//! Content codings: what a body is compressed with (RFC 9110, 8.4.1).
//!
//! A [`Decoder`] gives out what it decompresses in pieces of the caller's size, so
//! a body of any expansion needs the same memory.

use std::fmt;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{InBuffer, Operation as _, OutBuffer};

/// The largest window of zstd, as the exponent of two: RFC 9659 gives the web
/// 8 MiB.
const MAX_WINDOW_LOG: u32 = 23;

/// The most codings on top of each other: servers use one.
const MAX_CODINGS: usize = 3;

/// The size of the pieces between two decoders.
const PIECE: usize = 16 * 1024;

/// A coding that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950, or RFC 1951 alone, as some servers have it.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// The names of all, as they stand in Accept-Encoding.
    pub const ALL: [(&'static str, Self); 5] = [
        ("gzip", Self::Gzip),
        ("x-gzip", Self::Gzip),
        ("deflate", Self::Deflate),
        ("br", Self::Brotli),
        ("zstd", Self::Zstd),
    ];

    /// Reads the value of a Content-Encoding field: the codings in the order in
    /// which they were applied. `None` when one of them is not known, or there are
    /// too many.
    pub fn list(value: &str) -> Option<Vec<Self>> {
        let mut codings = Vec::new();
        for word in value.split(',').map(str::trim) {
            if word.is_empty() || word.eq_ignore_ascii_case("identity") {
                continue;
            }
            let known = Self::ALL
                .iter()
                .find(|(name, _)| word.eq_ignore_ascii_case(name));
            codings.push(known?.1);
        }
        (codings.len() <= MAX_CODINGS).then_some(codings)
    }
}

/// A body that is not what its coding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// Undoes one coding.
pub struct Decoder {
    state: State,
    /// A whole body was read.
    complete: bool,
    /// Any byte was read.
    begun: bool,
}

enum State {
    Gzip(Decompress),
    /// Before the first two bytes, which tell the two kinds apart.
    DeflateStart(Vec<u8>),
    /// And the first two bytes, until they were read.
    Deflate(Decompress, Vec<u8>),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(zstd::stream::raw::Decoder<'static>),
}

impl Decoder {
    /// A decoder of one body; `None` when there is no memory for it.
    pub fn new(coding: Coding) -> Option<Self> {
        let state = match coding {
            Coding::Gzip => State::Gzip(Decompress::new_gzip(15)),
            Coding::Deflate => State::DeflateStart(Vec::new()),
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                State::Brotli(Box::new(BrotliState::new(alloc(), alloc(), alloc())))
            }
            Coding::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().ok()?;
                let limit = zstd::stream::raw::DParameter::WindowLogMax(MAX_WINDOW_LOG);
                decoder.set_parameter(limit).ok()?;
                State::Zstd(decoder)
            }
        };
        Some(Self {
            state,
            complete: false,
            begun: false,
        })
    }

    /// Decompresses into `output`; returns how much of the input was read and how
    /// much of the output was written. When neither is anything, more is needed.
    ///
    /// # Errors
    ///
    /// The input is not what its coding says.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), Corrupt> {
        self.begun |= !input.is_empty();
        match &mut self.state {
            State::DeflateStart(start) => {
                let missing = 2usize.saturating_sub(start.len()).min(input.len());
                start.extend_from_slice(&input[..missing]);
                let [cmf, flg] = start[..] else {
                    return Ok((missing, 0));
                };
                let wrapped = cmf & 15 == 8 && u16::from_be_bytes([cmf, flg]) % 31 == 0;
                self.state = State::Deflate(Decompress::new(wrapped), std::mem::take(start));
                let (read, written) = self.decode(&input[missing..], output)?;
                Ok((missing + read, written))
            }
            State::Gzip(inner) => {
                if self.complete && !input.is_empty() {
                    // Another member follows (RFC 1952, 2.2).
                    *inner = Decompress::new_gzip(15);
                    self.complete = false;
                }
                inflate(inner, input, output, &mut self.complete)
            }
            State::Deflate(inner, start) => {
                let (mut read, mut written) = (1, 0);
                while !start.is_empty() && read > 0 {
                    let room = &mut output[written..];
                    let moved = inflate(inner, start, room, &mut self.complete)?;
                    (read, written) = (moved.0, written + moved.1);
                    start.drain(..read);
                }
                if !start.is_empty() {
                    return Ok((0, written));
                }
                let room = &mut output[written..];
                let moved = inflate(inner, input, room, &mut self.complete)?;
                Ok((moved.0, written + moved.1))
            }
            State::Brotli(state) => brotli(state, input, output, &mut self.complete),
            State::Zstd(decoder) => {
                let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
                let hint = decoder.run(&mut from, &mut to).map_err(|_| Corrupt)?;
                let moved = (from.pos(), to.pos());
                if moved != (0, 0) {
                    self.complete = hint == 0;
                }
                Ok(moved)
            }
        }
    }

    /// Tells whether the body may end here.
    pub fn may_end(&self) -> bool {
        self.complete || !self.begun
    }
}

fn inflate(
    inner: &mut Decompress,
    input: &[u8],
    output: &mut [u8],
    complete: &mut bool,
) -> Result<(usize, usize), Corrupt> {
    if *complete {
        // What stands behind the end belongs to nobody.
        return Ok((input.len(), 0));
    }
    let before = (inner.total_in(), inner.total_out());
    let status = inner.decompress(input, output, FlushDecompress::None);
    let moved = (inner.total_in() - before.0, inner.total_out() - before.1);
    *complete = matches!(status.map_err(|_| Corrupt)?, Status::StreamEnd);
    Ok((moved.0 as usize, moved.1 as usize))
}

fn brotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    input: &[u8],
    output: &mut [u8],
    complete: &mut bool,
) -> Result<(usize, usize), Corrupt> {
    if *complete {
        return Ok((input.len(), 0));
    }
    let (mut left, mut read) = (input.len(), 0);
    let (mut room, mut written, mut total) = (output.len(), 0, 0);
    let result = BrotliDecompressStream(
        &mut left,
        &mut read,
        input,
        &mut room,
        &mut written,
        output,
        &mut total,
        state,
    );
    match result {
        BrotliResult::ResultSuccess => *complete = true,
        BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        BrotliResult::ResultFailure => return Err(Corrupt),
    }
    Ok((read, written))
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

/// Undoes a list of codings, the last applied first.
#[derive(Debug)]
pub struct Decoders(Vec<Decoder>);

impl Decoders {
    /// Decoders for codings in the order in which they were applied.
    pub fn new(codings: &[Coding]) -> Option<Self> {
        let decoders = codings.iter().rev().map(|coding| Decoder::new(*coding));
        decoders.collect::<Option<_>>().map(Self)
    }

    /// Decompresses a piece of the body; `take` gets what comes of it, a bounded
    /// piece at a time.
    ///
    /// # Errors
    ///
    /// The body is not what its codings say.
    pub fn push(&mut self, input: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), Corrupt> {
        through(&mut self.0, input, take)
    }

    /// Tells whether the body may end here.
    pub fn may_end(&self) -> bool {
        self.0.iter().all(Decoder::may_end)
    }
}

fn through(
    decoders: &mut [Decoder],
    mut input: &[u8],
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), Corrupt> {
    let Some((first, rest)) = decoders.split_first_mut() else {
        take(input);
        return Ok(());
    };
    let mut piece = vec![0; PIECE];
    loop {
        let (read, written) = first.decode(input, &mut piece)?;
        if written > 0 {
            through(rest, &piece[..written], take)?;
        }
        input = &input[read..];
        if read == 0 && written == 0 || input.is_empty() && written < PIECE {
            return Ok(());
        }
    }
}
