//! The push parser: bytes of the uncompressed tar in, a [`LayerIndex`] out.
//!
//! ```text
//!            ┌───────────── extended header ◄─┐
//!            ▼                                │
//!  Block(Header) ──► Block(GnuSparse | PaxMap) ──► Skip(data) ──► Block(Header)
//!            │
//!            └─► two zero blocks ──► End (only zeros may follow)
//! ```

use super::header::{BLOCK_SIZE, Header};
use super::name::{self, Meaning};
use super::pax::Extended;
use super::sparse::{self, MapReader};
use super::{
    BLOCK, Builder, Draft, Extent, Fault, Kind, LayerIndex, Limits, MAX_EXTENDED_HEADER,
    MAX_FILE_SIZE, MAX_PATH, Reason,
};

/// Reads a layer's uncompressed tar in pieces of any size.
///
/// ```
/// use msb_oci::layer::{Indexer, Limits};
///
/// let mut indexer = Indexer::new(Limits::default());
/// for piece in [&[0u8; 300][..], &[0; 724]] {
///     indexer.push(piece)?;
/// }
/// assert!(indexer.finish()?.is_empty());
/// # Ok::<(), msb_oci::layer::Fault>(())
/// ```
#[derive(Debug)]
pub struct Indexer {
    limits: Limits,
    builder: Builder,
    state: State,
    block: Box<[u8; BLOCK_SIZE]>,
    filled: usize,
    /// Bytes consumed.
    position: u64,
    headers: u64,
    global: Extended,
    extended: Option<Extended>,
    /// What is wrong with an extended header, until the entry that it belongs
    /// to has told its name.
    flaw: Option<Reason>,
    name: Vec<u8>,
    path: Vec<u8>,
    target: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// A whole block is awaited.
    Block(Wanted),
    /// An extended header is being collected.
    Collect {
        kind: Collected,
        data: Vec<u8>,
        size: usize,
    },
    /// Data of this many bytes passes by.
    Skip(u64),
    /// The end-of-archive mark has been seen.
    End,
    /// A fault was reported; nothing more is read.
    Failed(Fault),
}

#[derive(Debug)]
enum Wanted {
    Header,
    /// A header after one block of zeros: must be zeros, too.
    SecondZero,
    GnuSparse(Box<Sparse>),
    PaxMap(Box<Sparse>, MapReader),
}

#[derive(Clone, Copy, Debug)]
enum Collected {
    Pax,
    GlobalPax,
    LongName,
    LongLink,
}

/// A sparse file whose map is not complete yet.
#[derive(Debug)]
struct Sparse {
    metadata: Metadata,
    runs: Vec<(u64, u64)>,
    stored: u64,
}

/// What a header says, independent of the parser's buffers.
#[derive(Clone, Debug)]
struct Metadata {
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    size: u64,
    device: (u32, u32),
}

impl Indexer {
    /// A parser at the start of a stream.
    pub fn new(limits: Limits) -> Indexer {
        Indexer {
            limits,
            builder: Builder::default(),
            state: State::Block(Wanted::Header),
            block: Box::new([0; BLOCK_SIZE]),
            filled: 0,
            position: 0,
            headers: 0,
            global: Extended::default(),
            extended: None,
            flaw: None,
            name: Vec::new(),
            path: Vec::new(),
            target: Vec::new(),
        }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// The layer is malformed, hostile or over a limit. The same fault is
    /// returned by each later call.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let result = self.advance(bytes);
        if let Err(fault) = &result {
            self.state = State::Failed(fault.clone());
        }
        result
    }

    /// Ends the stream. A missing end-of-archive mark is tolerated, as GNU
    /// tar does, if the stream ends where a header could begin.
    ///
    /// # Errors
    /// The stream ends within an entry, or [`Indexer::push`] failed before.
    pub fn finish(self) -> Result<LayerIndex, Fault> {
        let complete = match self.state {
            State::Failed(fault) => return Err(fault),
            State::End => true,
            State::Block(Wanted::Header) => self.filled == 0 && self.extended.is_none(),
            State::Block(Wanted::SecondZero) => self.filled == 0,
            State::Block(_) | State::Collect { .. } | State::Skip(_) => false,
        };
        match self.flaw {
            Some(flaw) => Err(Fault::of_stream(flaw)),
            None if complete => Ok(self.builder.finish(self.position)),
            None => Err(self.fault(Reason::Truncated)),
        }
    }

    /// A fault of the entry being read, or of the stream before the first.
    pub(crate) fn fault(&self, reason: Reason) -> Fault {
        if self.name.is_empty() {
            Fault::of_stream(reason)
        } else {
            Fault::new(&self.name, reason)
        }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        if bytes.len() as u64 > self.limits.bytes.saturating_sub(self.position) {
            return Err(self.too_large());
        }
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Failed(fault) => return Err(fault.clone()),
                State::End => {
                    if let Some(at) = bytes.iter().position(|&byte| byte != 0) {
                        let offset = self.position + at as u64;
                        return Err(Fault::of_stream(Reason::TrailingData { offset }));
                    }
                    bytes.len()
                }
                State::Skip(remaining) => {
                    let taken = usize::try_from(*remaining)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    *remaining -= taken as u64;
                    if *remaining == 0 {
                        self.state = State::Block(Wanted::Header);
                    }
                    taken
                }
                State::Collect { data, size, .. } => {
                    let taken = (size.next_multiple_of(BLOCK_SIZE) - data.len()).min(bytes.len());
                    data.extend_from_slice(&bytes[..taken]);
                    if data.len() == size.next_multiple_of(BLOCK_SIZE) {
                        self.position += taken as u64;
                        bytes = &bytes[taken..];
                        self.collected()?;
                        continue;
                    }
                    taken
                }
                State::Block(_) => {
                    let taken = (BLOCK_SIZE - self.filled).min(bytes.len());
                    self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
                    self.filled += taken;
                    if self.filled == BLOCK_SIZE {
                        self.filled = 0;
                        self.position += taken as u64;
                        bytes = &bytes[taken..];
                        self.block_complete()?;
                        continue;
                    }
                    taken
                }
            };
            self.position += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn too_large(&self) -> Fault {
        self.fault(Reason::LimitExceeded {
            what: "bytes in a layer",
            limit: self.limits.bytes,
        })
    }

    fn block_complete(&mut self) -> Result<(), Fault> {
        let State::Block(wanted) = std::mem::replace(&mut self.state, State::Block(Wanted::Header))
        else {
            return Ok(());
        };
        let zero = self.block.iter().all(|&byte| byte == 0);
        match wanted {
            Wanted::Header if zero && self.extended.is_none() => {
                self.state = State::Block(Wanted::SecondZero);
            }
            Wanted::Header => return self.header(),
            Wanted::SecondZero if zero => self.state = State::End,
            Wanted::SecondZero => {
                let offset = self.position - BLOCK;
                return Err(Fault::of_stream(Reason::TrailingData { offset }));
            }
            Wanted::GnuSparse(mut sparse) => {
                sparse::gnu_runs(&self.block[..504], &mut sparse.runs)
                    .map_err(|reason| self.fault(reason))?;
                if self.block[504] != 0 {
                    self.state = State::Block(Wanted::GnuSparse(sparse));
                } else {
                    return self.sparse_file(&sparse);
                }
            }
            Wanted::PaxMap(mut sparse, mut map) => {
                if sparse.stored < map.bytes + BLOCK {
                    return Err(self.fault(Reason::BadSparseMap {
                        what: "the map is longer than the data",
                    }));
                }
                if map
                    .push(&self.block[..])
                    .map_err(|reason| self.fault(reason))?
                {
                    sparse.stored -= map.bytes;
                    sparse.runs = map.into_runs();
                    return self.sparse_file(&sparse);
                }
                self.state = State::Block(Wanted::PaxMap(sparse, map));
            }
        }
        Ok(())
    }

    fn header(&mut self) -> Result<(), Fault> {
        self.headers += 1;
        if self.headers > self.limits.entries {
            return Err(self.fault(Reason::LimitExceeded {
                what: "entries in a layer",
                limit: self.limits.entries,
            }));
        }
        let block = *self.block;
        let Some(header) = Header::parse(&block) else {
            let offset = self.position - BLOCK;
            return Err(Fault::of_stream(Reason::BadHeader { offset }));
        };
        let collected = match header.type_flag() {
            b'x' | b'X' => Some(Collected::Pax),
            b'g' => Some(Collected::GlobalPax),
            b'L' => Some(Collected::LongName),
            b'K' => Some(Collected::LongLink),
            _ => None,
        };
        match collected {
            Some(kind) => self.collect(&header, kind),
            None => self.entry(&header),
        }
    }

    fn collect(&mut self, header: &Header<'_>, kind: Collected) -> Result<(), Fault> {
        // Whose header this is can't be known: what tells its name comes later.
        let size = header.size().map_err(Fault::of_stream)?;
        let limit = match kind {
            Collected::Pax | Collected::GlobalPax => MAX_EXTENDED_HEADER,
            Collected::LongName | Collected::LongLink => MAX_PATH as u64 + 1,
        };
        if size > limit {
            return Err(Fault::of_stream(Reason::LimitExceeded {
                what: "bytes in an extended header",
                limit,
            }));
        }
        self.state = State::Collect {
            kind,
            data: Vec::new(),
            size: size as usize,
        };
        if size == 0 { self.collected() } else { Ok(()) }
    }

    fn collected(&mut self) -> Result<(), Fault> {
        let State::Collect {
            kind,
            mut data,
            size,
        } = std::mem::replace(&mut self.state, State::Block(Wanted::Header))
        else {
            return Ok(());
        };
        data.truncate(size);
        let result = match kind {
            Collected::GlobalPax => self.global.apply(&data, true),
            Collected::Pax => self.extended().apply(&data, false),
            Collected::LongName | Collected::LongLink => {
                data.truncate(data.iter().position(|&byte| byte == 0).unwrap_or(size));
                let extended = self.extended();
                match kind {
                    Collected::LongName => extended.path = Some(data),
                    _ => extended.link_path = Some(data),
                }
                Ok(())
            }
        };
        match (result, kind) {
            (Ok(()), _) => Ok(()),
            (Err(flaw), Collected::GlobalPax) => Err(Fault::of_stream(flaw)),
            (Err(flaw), _) => {
                self.flaw.get_or_insert(flaw);
                Ok(())
            }
        }
    }

    fn extended(&mut self) -> &mut Extended {
        self.extended.get_or_insert_with(|| self.global.clone())
    }

    /// Takes an entry's header, everything before it being known.
    fn entry(&mut self, header: &Header<'_>) -> Result<(), Fault> {
        header.name(&mut self.name);
        let extended = self.extended.get_or_insert_with(|| self.global.clone());
        if let Some(path) = extended.sparse.name.as_ref().or(extended.path.as_ref()) {
            self.name.clone_from(path);
        }
        if let Some(flaw) = self.flaw.take() {
            return Err(self.fault(flaw));
        }
        let flag = header.type_flag();
        let kind = match flag {
            b'0' | b'7' | b'S' => Kind::File,
            0 if self.name.ends_with(b"/") => Kind::Directory,
            0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // A volume's label is no entry.
            b'V' => {
                self.extended = None;
                return Ok(());
            }
            _ => {
                return Err(self.fault(Reason::UnsupportedType {
                    kind: char::from(flag),
                }));
            }
        };
        let fault = |reason| Fault::new(&self.name, reason);
        let metadata = metadata(header, kind, extended).map_err(fault)?;
        let stored = match (kind, extended.size) {
            (Kind::File, Some(size)) => size,
            (Kind::File, None) => header.size().map_err(fault)?,
            _ => 0,
        };
        if stored > self.limits.bytes.saturating_sub(self.position) {
            return Err(self.too_large());
        }
        if flag == b'S' {
            let mut runs = Vec::new();
            sparse::gnu_runs(header.sparse_runs(), &mut runs).map_err(fault)?;
            let size = header.sparse_real_size().map_err(fault)?;
            let sparse = Box::new(Sparse {
                metadata: Metadata { size, ..metadata },
                runs,
                stored,
            });
            if header.sparse_continues() {
                self.state = State::Block(Wanted::GnuSparse(sparse));
                return Ok(());
            }
            return self.sparse_file(&sparse);
        }
        if kind == Kind::File && (extended.sparse.has_map || extended.sparse.version != (0, 0)) {
            return self.pax_sparse(&metadata, stored);
        }
        let extent = [Extent {
            offset: 0,
            tar_offset: self.position,
            length: stored,
        }];
        let extents = if stored > 0 { &extent[..] } else { &[] };
        self.store(
            &Metadata {
                size: stored,
                ..metadata
            },
            header.link_name(),
            extents,
        )?;
        self.skip(stored);
        Ok(())
    }

    fn pax_sparse(&mut self, metadata: &Metadata, stored: u64) -> Result<(), Fault> {
        let pax = &mut self.extended().sparse;
        let (version, real_size) = (pax.version, pax.real_size);
        let runs = std::mem::take(&mut pax.runs);
        let bad = |what| Reason::BadSparseMap { what };
        let size = real_size
            .ok_or(bad("no real size"))
            .map_err(|reason| self.fault(reason))?;
        let sparse = Box::new(Sparse {
            metadata: Metadata {
                size,
                ..metadata.clone()
            },
            runs,
            stored,
        });
        match version {
            (1, 0) => {
                self.state = State::Block(Wanted::PaxMap(sparse, MapReader::default()));
                Ok(())
            }
            (0, _) => self.sparse_file(&sparse),
            _ => Err(self.fault(bad("unknown version"))),
        }
    }

    /// Takes a sparse file whose map is complete; its data comes next.
    fn sparse_file(&mut self, sparse: &Sparse) -> Result<(), Fault> {
        let extents = sparse::extents(
            &sparse.runs,
            sparse.metadata.size,
            self.position,
            sparse.stored,
        )
        .map_err(|reason| self.fault(reason))?;
        self.store(&sparse.metadata, b"", &extents)?;
        self.skip(sparse.stored);
        Ok(())
    }

    fn skip(&mut self, stored: u64) {
        let padded = stored.next_multiple_of(BLOCK);
        self.state = if padded == 0 {
            State::Block(Wanted::Header)
        } else {
            State::Skip(padded)
        };
    }

    /// Puts the entry into the index, unless it is one to be ignored.
    fn store(
        &mut self,
        metadata: &Metadata,
        link_name: &[u8],
        extents: &[Extent],
    ) -> Result<(), Fault> {
        let extended = self.extended.take().unwrap_or_default();
        let fault = |reason| Fault::new(&self.name, reason);
        let kind = match name::parse(&self.name, &mut self.path).map_err(fault)? {
            Meaning::Ignored => return Ok(()),
            Meaning::Whiteout => Kind::Whiteout,
            Meaning::Opaque => Kind::Opaque,
            Meaning::Entry => metadata.kind,
        };
        if self.path.is_empty() && !matches!(kind, Kind::Directory | Kind::Opaque) {
            return Err(fault(Reason::RootNotDirectory));
        }
        if metadata.size > MAX_FILE_SIZE {
            return Err(fault(Reason::LimitExceeded {
                what: "bytes in a file",
                limit: MAX_FILE_SIZE,
            }));
        }
        let link_name = extended.link_path.as_deref().unwrap_or(link_name);
        self.target.clear();
        match kind {
            Kind::HardLink => {
                name::parse_link_target(link_name, &mut self.target).map_err(fault)?;
            }
            Kind::Symlink => {
                if link_name.is_empty() || link_name.len() > MAX_PATH || link_name.contains(&0) {
                    return Err(fault(Reason::BadTarget));
                }
                self.target.extend_from_slice(link_name);
            }
            _ => {}
        }
        let plain = !matches!(kind, Kind::HardLink | Kind::Whiteout | Kind::Opaque);
        let draft = Draft {
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            size: if kind == Kind::File { metadata.size } else { 0 },
            device: metadata.device,
            path: &self.path,
            target: &self.target,
        };
        let xattrs = extended.xattrs.iter().filter(|_| plain);
        let xattrs = xattrs.map(|(name, value)| (name.as_slice(), value.as_slice()));
        self.builder.add(
            &draft,
            if kind == Kind::File { extents } else { &[] },
            xattrs,
        )
    }
}

fn metadata(header: &Header<'_>, kind: Kind, extended: &Extended) -> Result<Metadata, Reason> {
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => header.device()?,
        _ => (0, 0),
    };
    Ok(Metadata {
        kind,
        // Linux has no modes of symlinks; tars hold whatever their makers had.
        mode: if kind == Kind::Symlink {
            0o777
        } else {
            header.mode()?
        },
        uid: extended.uid.map_or_else(|| header.uid(), Ok)?,
        gid: extended.gid.map_or_else(|| header.gid(), Ok)?,
        mtime: extended
            .mtime
            .map_or_else(|| header.mtime().map(|seconds| (seconds, 0)), Ok)?,
        size: 0,
        device,
    })
}
