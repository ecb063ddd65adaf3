//! One layer, from its source into the store, in one streaming pass.
//!
//! ```text
//! transfer: read, hash ──► inflate ──► store: hash (diff-id), index, write
//! ```
//!
//! Three threads joined by bounded channels, so that two cores are busy and
//! memory does not depend on the layer. Nothing gets a name in the store
//! before digest, size and diff-id are verified.

use std::collections::HashSet;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::layer::{BLOCK, Indexer, LayerIndex, Limits as LayerLimits, Reason};
use crate::store::{self, Layout};
use crate::{Digest, Error, PullEvent, Result, decompress};

/// Bytes that move between threads at a time: small enough for the caches,
/// large enough that handing over costs nothing.
const CHUNK: usize = 128 << 10;
/// Chunks in a channel: what one side may be ahead of the other.
const QUEUE: usize = 8;
/// Attempts to continue a transfer without a byte of progress in between.
const MAX_ATTEMPTS: u32 = 5;
/// Pause before the second attempt; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Times its compressed size that an image may come to. Programs and texts come
/// to three or four times of it, a disk image that is mostly empty to thirty.
const MAX_EXPANSION: u64 = 100;
/// An image may come to so many bytes however well it is compressed.
const MIN_EXPANDED: u64 = 4 << 30;
/// Fewer bytes than these are no progress: a transfer that breaks off after
/// each byte has no end.
const MIN_PROGRESS: u64 = 4 << 10;
/// How often progress is told.
const PROGRESS: u64 = 1 << 20;

/// What is known of a layer before it is there.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// From zero, the base layer first.
    pub(crate) number: usize,
    pub(crate) of: usize,
    /// Digest as transferred; a docker archive gives none.
    pub(crate) digest: Option<Digest>,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
}

impl Layer {
    /// How errors name it.
    pub(crate) fn name(&self) -> String {
        format!(
            "layer {} of {} ({})",
            self.number + 1,
            self.of,
            self.digest.unwrap_or(self.diff_id).short()
        )
    }
}

/// A failed attempt to open or read a source.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether trying again may help.
    pub(crate) transient: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure {
            error,
            transient: false,
        }
    }
}

/// Where layers come from.
pub(crate) trait Source: Sync {
    /// Opens a layer's bytes from `offset` on.
    fn open(&self, layer: &Layer, offset: u64) -> Result<Box<dyn Read + Send + '_>, Failure>;

    /// Makes an error of a read that failed.
    fn broken(&self, layer: &Layer, error: io::Error) -> Failure;

    /// Whether an early end may be an accident of the transfer.
    fn resumes(&self) -> bool {
        true
    }
}

/// What `packed` bytes may come to when they are decompressed: a bomb is
/// refused long before it has reached the limit of large images.
pub(crate) fn expanded_limit(limits: &crate::Limits, packed: u64) -> u64 {
    let expanded = packed.saturating_mul(MAX_EXPANSION).max(MIN_EXPANDED);
    limits.image_bytes.min(expanded)
}

/// What an image may cost, or all images of an archive together, counted down by all layers.
pub(crate) struct Budget {
    limits: crate::Limits,
    /// What it is said to come to when transferred.
    announced: AtomicU64,
    /// What has been transferred: an announcement may lie.
    received: AtomicU64,
    /// Uncompressed bytes.
    spent: AtomicU64,
    /// Layers that have been counted, by their diff-ids: of several images that share one it
    /// costs what it costs once.
    counted: Mutex<HashSet<Digest>>,
}

impl Budget {
    pub(crate) fn new(limits: &crate::Limits) -> Budget {
        Budget {
            limits: limits.clone(),
            announced: AtomicU64::new(0),
            received: AtomicU64::new(0),
            spent: AtomicU64::new(0),
            counted: Mutex::default(),
        }
    }

    pub(crate) fn limits(&self) -> &crate::Limits {
        &self.limits
    }

    /// Counts a layer of so many bytes as transferred; `false` when it was counted before.
    pub(crate) fn announce(&self, diff_id: Digest, bytes: u64) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let new = counted.insert(diff_id);
        if new {
            let sum = |sum: u64| Some(sum.saturating_add(bytes));
            // It can't fail: there is always a sum.
            let _ = self
                .announced
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
        }
        new
    }

    fn announced(&self) -> u64 {
        self.announced.load(Ordering::Relaxed)
    }

    /// Makes all layers that share the budget end.
    pub(crate) fn cancel(&self) {
        self.spent.store(u64::MAX, Ordering::Relaxed);
    }

    /// Notes bytes that have come, before they are decompressed.
    pub(crate) fn receive(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes uncompressed bytes off the budget.
    pub(crate) fn spend(&self, bytes: u64) -> Result<(), Reason> {
        let packed = self.received.load(Ordering::Relaxed).min(self.announced());
        let limit = expanded_limit(&self.limits, packed);
        let spend = |spent: u64| spent.checked_add(bytes).filter(|&spent| spent <= limit);
        match self
            .spent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(Reason::LimitExceeded {
                what: "bytes in the uncompressed image",
                limit,
            }),
        }
    }

    /// What one layer may hold.
    fn layer_limits(&self) -> LayerLimits {
        LayerLimits {
            entries: self.limits.layer_entries,
            bytes: expanded_limit(&self.limits, self.announced()),
        }
    }
}

pub(crate) type Events<'a> = &'a (dyn Fn(PullEvent) + Sync);

/// Why a stage ended early.
enum Stop {
    /// Its own error.
    Failed(Error),
    /// The next stage takes no more; that one knows why.
    Unwanted,
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.into())
    }
}

/// Fetches, verifies, indexes and stores a layer.
pub(crate) fn ingest(
    layout: &Layout,
    layer: &Layer,
    source: &dyn Source,
    budget: &Budget,
    events: Events<'_>,
) -> Result<LayerIndex> {
    let (packed_out, packed_in) = sync_channel(QUEUE);
    let (plain_out, plain_in) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        // Each thread owns its sender: its end closes the channel.
        let transfer = scope.spawn(move || transfer(layer, source, &packed_out, budget, events));
        let inflate = scope.spawn(move || inflate(layer, packed_in, &plain_out));
        let stored = store(layout, layer, plain_in, budget);
        let transferred = transfer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let inflated = inflate
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The first stage in the line with an error of its own knows best: a
        // layer with a wrong digest often does not inflate, either.
        for result in [transferred, inflated] {
            if let Err(Stop::Failed(error)) = result {
                return Err(error);
            }
        }
        let (file, index) = stored?;
        // The index goes first: a layer's blob is never there without it.
        let (index_path, path) = (layout.index(layer.diff_id), layout.blob(layer.diff_id));
        let index_file = layout.temp_file_with(&index_path, &index.encode())?;
        store::sync(&[(&path, file.as_file()), (&index_path, index_file.as_file())])?;
        store::rename(index_file, &index_path)?;
        store::rename(file, &path)?;
        Ok(index)
    })
}

fn transfer(
    layer: &Layer,
    source: &dyn Source,
    out: &SyncSender<Vec<u8>>,
    budget: &Budget,
    events: Events<'_>,
) -> Result<(), Stop> {
    let mut hash = Sha256::new();
    let (mut done, mut attempt, mut told, mut received) = (0, 1, 0, 0);
    loop {
        let before = done;
        let failure =
            match attempt_transfer(layer, source, out, &mut hash, &mut done, &mut |done| {
                budget.receive(done - received);
                received = done;
                if done - told >= PROGRESS || done == layer.size {
                    told = done;
                    events(PullEvent::LayerProgress {
                        layer: layer.number,
                        done,
                        total: layer.size,
                    });
                }
            }) {
                Ok(()) => break,
                Err(Attempt::Unwanted) => return Err(Stop::Unwanted),
                Err(Attempt::Failed(failure)) => failure,
            };
        attempt = if done - before >= MIN_PROGRESS {
            2
        } else {
            attempt + 1
        };
        if !failure.transient || attempt > MAX_ATTEMPTS {
            return Err(Stop::Failed(failure.error));
        }
        let reason = failure.error.to_string();
        events(PullEvent::LayerRetry {
            layer: layer.number,
            attempt,
            reason,
        });
        std::thread::sleep(FIRST_PAUSE * 2u32.pow(attempt - 2));
    }
    let got = Digest::from_bytes(hash.finalize().into());
    match layer.digest {
        Some(expected) if expected != got => Err(Stop::Failed(Error::WrongDigest {
            what: layer.name(),
            expected,
            got,
        })),
        _ => Ok(()),
    }
}

enum Attempt {
    Failed(Failure),
    Unwanted,
}

fn attempt_transfer(
    layer: &Layer,
    source: &dyn Source,
    out: &SyncSender<Vec<u8>>,
    hash: &mut Sha256,
    done: &mut u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Attempt> {
    let wrong_size = |got| Error::WrongSize {
        what: layer.name(),
        expected: layer.size,
        got,
    };
    let mut body = source.open(layer, *done).map_err(Attempt::Failed)?;
    loop {
        let mut chunk = vec![0; CHUNK];
        let (length, result) = fill(&mut *body, &mut chunk);
        chunk.truncate(length);
        *done += length as u64;
        if *done > layer.size {
            return Err(Attempt::Failed(wrong_size(*done).into()));
        }
        if length > 0 {
            hash.update(&chunk);
            progress(*done);
            out.send(chunk).map_err(|_| Attempt::Unwanted)?;
        }
        result.map_err(|error| Attempt::Failed(source.broken(layer, error)))?;
        if length < CHUNK {
            if *done < layer.size {
                return Err(Attempt::Failed(Failure {
                    error: wrong_size(*done),
                    transient: source.resumes(),
                }));
            }
            return Ok(());
        }
    }
}

/// Reads until the buffer is full or the input ends or fails.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> (usize, io::Result<()>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Err(error)),
        }
    }
    (filled, Ok(()))
}

/// The receiving end of a channel, as a reader.
struct Chunks {
    input: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.chunk.len() {
            self.chunk = self.input.recv().unwrap_or_default();
            self.position = 0;
        }
        Ok(&self.chunk[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

fn inflate(layer: &Layer, input: Receiver<Vec<u8>>, out: &SyncSender<Vec<u8>>) -> Result<(), Stop> {
    let mut input = Chunks {
        input,
        chunk: Vec::new(),
        position: 0,
    };
    let result = inflate_all(&mut input, out);
    match result {
        Ok(true) => Ok(()),
        Ok(false) => Err(Stop::Unwanted),
        Err(error) => {
            // The transfer goes on to the end: only then is the digest known,
            // and a wrong one is the better explanation.
            while input.input.recv().is_ok() {}
            Err(Stop::Failed(Error::Decompress {
                what: layer.name(),
                reason: error.to_string(),
            }))
        }
    }
}

/// Whether the next stage took it all.
fn inflate_all(input: &mut Chunks, out: &SyncSender<Vec<u8>>) -> io::Result<bool> {
    let mut plain = decompress::open(input)?;
    loop {
        let mut chunk = vec![0; CHUNK];
        let (length, result) = fill(&mut *plain, &mut chunk);
        chunk.truncate(length);
        if length > 0 && out.send(chunk).is_err() {
            return Ok(false);
        }
        result?;
        if length < CHUNK {
            return Ok(true);
        }
    }
}

/// Whether there is nothing but zeros. Sixteen bytes at a time: most chunks
/// are told apart by their first.
fn is_zero(chunk: &[u8]) -> bool {
    let (words, rest) = chunk.as_chunks::<16>();
    words.iter().all(|&word| u128::from_ne_bytes(word) == 0) && rest.iter().all(|&byte| byte == 0)
}

fn store(
    layout: &Layout,
    layer: &Layer,
    input: Receiver<Vec<u8>>,
    budget: &Budget,
) -> Result<(tempfile::NamedTempFile, LayerIndex)> {
    let path = layout.blob(layer.diff_id);
    let failed = |source| Error::store("write", &path, source);
    let refused = |fault| Error::Layer {
        layer: layer.name(),
        fault,
    };
    let mut file = layout.temp_file()?;
    let mut hash = Sha256::new();
    let mut indexer = Indexer::new(budget.layer_limits());
    let mut size = 0;
    for chunk in input {
        budget
            .spend(chunk.len() as u64)
            .map_err(|reason| refused(indexer.fault(reason)))?;
        hash.update(&chunk);
        indexer.push(&chunk).map_err(refused)?;
        if is_zero(&chunk) {
            // A hole costs nothing, and reads the same.
            let length = chunk.len() as i64;
            file.seek(SeekFrom::Current(length)).map_err(failed)?;
        } else {
            file.write_all(&chunk).map_err(failed)?;
        }
        size += chunk.len() as u64;
    }
    let got = Digest::from_bytes(hash.finalize().into());
    if got != layer.diff_id {
        let what = format!("the uncompressed {}", layer.name());
        return Err(Error::WrongDigest {
            what,
            expected: layer.diff_id,
            got,
        });
    }
    let index = indexer.finish().map_err(refused)?;
    file.as_file()
        .set_len(size.next_multiple_of(BLOCK))
        .map_err(failed)?;
    Ok((file, index))
}

#[cfg(test)]
mod tests {
    use super::{Budget, MAX_EXPANSION, MIN_EXPANDED, is_zero};

    #[test]
    fn what_was_announced_and_did_not_come_expands_to_nothing() {
        let budget = Budget::new(&crate::Limits::default());
        let layer = crate::Digest::of(b"layer");
        assert!(budget.announce(layer, 100 << 20));
        // Another image has the same one.
        assert!(!budget.announce(layer, 100 << 20));
        budget.spend(MIN_EXPANDED).unwrap();
        assert!(budget.spend(1).is_err());
        budget.receive(60 << 20);
        let limit = (60 << 20) * MAX_EXPANSION;
        budget.spend(limit - MIN_EXPANDED).unwrap();
        assert!(budget.spend(1).is_err());
        // More than was announced is not accepted by the transfer, either.
        budget.receive(60 << 20);
        budget.spend((40 << 20) * MAX_EXPANSION).unwrap();
        assert!(budget.spend(1).is_err());
    }

    #[test]
    fn cancelling_ends_all() {
        let budget = Budget::new(&crate::Limits::default());
        budget.cancel();
        assert!(budget.spend(0).is_err() && budget.spend(1).is_err());
    }

    #[test]
    fn zeros_of_any_length() {
        for length in [0, 1, 15, 16, 17, 100] {
            let mut chunk = vec![0; length];
            assert!(is_zero(&chunk));
            if let Some(last) = chunk.last_mut() {
                *last = 1;
                assert!(!is_zero(&chunk));
            }
        }
    }
}
