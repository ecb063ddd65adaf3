//! Decompression of layers: gzip, zstd or none, told apart by their magic.
//!
//! gzip may have several members and zero padding after the last; zstd may
//! have several frames and skippable ones. Anything else after the end is an
//! error, so that a layer has one meaning only.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// zstd's own bound for decoders (128 MiB): what `zstd --ultra -22` needs.
const MAX_WINDOW_LOG: u32 = 27;

/// Bytes by which compressions are told apart.
const MAGIC: usize = 6;

/// Opens a stream of unknown compression.
///
/// # Errors
/// The input fails, or is compressed in a way that images may not be.
pub(crate) fn open<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    // A broken transfer may have brought its first bytes one by one.
    let mut start = Vec::with_capacity(MAGIC);
    input.by_ref().take(MAGIC as u64).read_to_end(&mut start)?;
    let compression = start.clone();
    let input = io::Cursor::new(start).chain(input);
    Ok(match compression.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(Gzip(Member::Within(Box::new(GzDecoder::new(input))))),
        // A frame, or a skippable frame before it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(decoder)
        }
        [b'B', b'Z', b'h', ..] => return Err(unsupported("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(unsupported("xz")),
        _ => Box::new(input),
    })
}

fn unsupported(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{name} is not a compression of container images"),
    )
}

struct Gzip<R>(Member<R>);

enum Member<R> {
    Within(Box<GzDecoder<R>>),
    End,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Member::Within(decoder) = &mut self.0 {
            let read = decoder.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Member::Within(decoder) = std::mem::replace(&mut self.0, Member::End) else {
                unreachable!()
            };
            let mut input = decoder.into_inner();
            match input.fill_buf()?.first() {
                None => {}
                Some(0x1f) => self.0 = Member::Within(Box::new(GzDecoder::new(input))),
                Some(0) => only_zeros(&mut input)?,
                Some(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "garbage after the gzip stream",
                    ));
                }
            }
        }
        Ok(0)
    }
}

fn only_zeros(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let rest = input.fill_buf()?;
        if rest.is_empty() {
            return Ok(());
        }
        if rest.iter().any(|&byte| byte != 0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "garbage after the gzip stream",
            ));
        }
        let length = rest.len();
        input.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::open;
    use std::io::{self, Read, Write};

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_start_may_come_in_pieces() {
        for data in [
            gzip(b"content"),
            zstd::encode_all(&b"content"[..], 1).unwrap(),
        ] {
            let mut out = Vec::new();
            let pieces = io::BufReader::with_capacity(1, &data[..]);
            open(pieces).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, b"content");
        }
    }

    fn decode(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        open(io::BufReader::with_capacity(7, data))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn gzip_members_and_padding() {
        let mut data = gzip(b"one ");
        data.extend(gzip(b"two"));
        assert_eq!(decode(&data).unwrap(), b"one two");
        data.extend([0; 1000]);
        assert_eq!(decode(&data).unwrap(), b"one two");
        data.push(1);
        assert!(decode(&data).is_err());
    }

    #[test]
    fn zstd_frames_and_skippable_ones() {
        let mut data = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
        data.extend(zstd::encode_all(&b"one "[..], 1).unwrap());
        data.extend(zstd::encode_all(&b"two"[..], 1).unwrap());
        assert_eq!(decode(&data).unwrap(), b"one two");
        data.push(1);
        assert!(decode(&data).is_err());
    }

    #[test]
    fn truncation_is_an_error() {
        for whole in [
            gzip(b"some content"),
            zstd::encode_all(&b"some content"[..], 1).unwrap(),
        ] {
            for length in 4..whole.len() {
                assert!(
                    decode(&whole[..length]).is_err(),
                    "{length} of {}",
                    whole.len()
                );
            }
        }
    }

    #[test]
    fn plain_and_unsupported() {
        assert_eq!(decode(b"plain").unwrap(), b"plain");
        assert_eq!(decode(b"").unwrap(), b"");
        assert!(decode(b"BZh91AY").is_err());
        assert!(decode(b"\xfd7zXZ\0").is_err());
    }
}
