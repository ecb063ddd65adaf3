//! Bodies of HTTP/1 messages: where they end, and how they are written again.

use super::head::{Fault, Fields, Framing, MAX_FIELDS};
use super::outgoing::Put;

/// The most bytes of a chunk's line: a size, and an extension that nobody reads.
const MAX_CHUNK_LINE: usize = 256;

/// The most bytes of a trailer: checksums and gRPC's status with its message.
const MAX_TRAILER: usize = 16 * 1024;

/// Finds the end of a body.
#[derive(Debug)]
pub struct BodyReader(State);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilEnd,
    ChunkLine,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    Done,
}

/// What the next bytes of a body are.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// This many bytes are about framing.
    Skip(usize),
    /// This many bytes are the body's.
    Data(usize),
    /// The body is over with this many bytes, and has these trailers.
    End(usize, Fields),
}

impl BodyReader {
    /// A reader of one body.
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None => State::Length(0),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkLine,
            Framing::UntilEnd => State::UntilEnd,
        })
    }

    /// Says what the next bytes are, and goes past them.
    ///
    /// # Errors
    ///
    /// They are not what must come here.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Fault> {
        let available = bytes.len() as u64;
        match &mut self.0 {
            State::Done | State::Length(0) => {
                self.0 = State::Done;
                Ok(Step::End(0, Fields::default()))
            }
            _ if bytes.is_empty() => Ok(Step::More),
            State::UntilEnd => Ok(Step::Data(bytes.len())),
            State::Length(left) => {
                let taken = available.min(*left);
                *left -= taken;
                Ok(Step::Data(taken as usize))
            }
            State::Chunk(left) => {
                let taken = available.min(*left);
                *left -= taken;
                if *left == 0 {
                    self.0 = State::ChunkEnd;
                }
                Ok(Step::Data(taken as usize))
            }
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.0 = State::ChunkLine;
                    Ok(Step::Skip(2))
                }
                [b'\r'] => Ok(Step::More),
                _ => Err(Fault::Chunk),
            },
            State::ChunkLine => self.chunk_line(bytes),
            State::Trailer => self.trailer(bytes),
        }
    }

    /// Tells whether a connection that ends here ends the body.
    pub fn may_end(&self) -> bool {
        matches!(self.0, State::UntilEnd | State::Done | State::Length(0))
    }

    fn chunk_line(&mut self, bytes: &[u8]) -> Result<Step, Fault> {
        let Some(end) = bytes.iter().take(MAX_CHUNK_LINE).position(|b| *b == b'\n') else {
            let full = bytes.len() >= MAX_CHUNK_LINE;
            return if full {
                Err(Fault::Chunk)
            } else {
                Ok(Step::More)
            };
        };
        let line = bytes[..end].strip_suffix(b"\r").ok_or(Fault::Chunk)?;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        // Blanks in front of an extension are read in different ways.
        let good = |b: &u8| *b == b'\t' || (0x20..0x7f).contains(b);
        let extension_is_good =
            extension.is_empty() || extension[0] == b';' && extension.iter().all(good);
        if digits == 0 || digits > 15 || !extension_is_good {
            return Err(Fault::Chunk);
        }
        let size = std::str::from_utf8(size).map_err(|_| Fault::Chunk)?;
        let size = u64::from_str_radix(size, 16).map_err(|_| Fault::Chunk)?;
        self.0 = if size == 0 {
            State::Trailer
        } else {
            State::Chunk(size)
        };
        Ok(Step::Skip(end + 1))
    }

    fn trailer(&mut self, bytes: &[u8]) -> Result<Step, Fault> {
        if bytes.starts_with(b"\r\n") {
            self.0 = State::Done;
            return Ok(Step::End(2, Fields::default()));
        }
        let window = &bytes[..bytes.len().min(MAX_TRAILER)];
        let Some(end) = window.windows(4).position(|four| four == b"\r\n\r\n") else {
            let full = bytes.len() >= MAX_TRAILER;
            return if full {
                Err(Fault::TooLarge)
            } else {
                Ok(Step::More)
            };
        };
        let text = &bytes[..end + 4];
        let folded = text
            .windows(2)
            .any(|two| two[0] == b'\n' && matches!(two[1], b' ' | b'\t'));
        let bare = text.iter().enumerate().any(|(at, byte)| match byte {
            b'\r' => text.get(at + 1) != Some(&b'\n'),
            b'\n' => at == 0 || text[at - 1] != b'\r',
            byte => *byte == 0,
        });
        if folded || bare {
            return Err(Fault::BareControl);
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let parsed = httparse::parse_headers(text, &mut headers);
        let Ok(httparse::Status::Complete((_, headers))) = parsed else {
            return Err(Fault::Malformed);
        };
        let mut fields = super::head::collect(headers);
        drop_from_trailer(&mut fields);
        self.0 = State::Done;
        Ok(Step::End(end + 4, fields))
    }
}

/// Takes out what must not stand in a trailer (RFC 9110, 6.5.1): what frames or
/// routes a message, or who asks for it.
pub fn drop_from_trailer(fields: &mut Fields) {
    const NEVER: &[&str] = &[
        "transfer-encoding",
        "content-length",
        "host",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "content-encoding",
        "content-type",
        "expect",
        "range",
    ];
    fields.0.retain(|field| !NEVER.contains(&&field.name[..]));
}

/// Writes a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyWriter {
    /// As it is.
    Plain,
    /// In chunks.
    Chunked,
}

impl BodyWriter {
    /// Writes a piece.
    pub fn write(self, piece: &[u8], out: &mut impl Put) {
        if piece.is_empty() {
            return;
        }
        if self == Self::Chunked {
            out.put(format!("{:x}\r\n", piece.len()).as_bytes());
        }
        out.put(piece);
        if self == Self::Chunked {
            out.put(b"\r\n");
        }
    }

    /// Writes the end, and trailers where there can be any.
    pub fn finish(self, trailers: &Fields, out: &mut impl Put) {
        if self == Self::Chunked {
            out.put(b"0\r\n");
            super::head::write_fields(trailers, out);
        }
    }
}
