//! Why a layer is refused: the entry at fault and the reason.

use std::fmt;

/// A refusal of a layer. Displays as `entry "NAME": REASON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    entry: Option<Vec<u8>>,
    reason: Reason,
}

impl Fault {
    pub(crate) fn new(entry: &[u8], reason: Reason) -> Fault {
        Fault {
            entry: Some(entry.to_vec()),
            reason,
        }
    }

    /// A fault of the stream rather than of one entry.
    pub(crate) fn of_stream(reason: Reason) -> Fault {
        Fault {
            entry: None,
            reason,
        }
    }

    /// The entry's name as the layer spells it, control and non-UTF-8 bytes
    /// escaped; `None` if the stream as a whole is at fault.
    pub fn entry(&self) -> Option<String> {
        self.entry.as_deref().map(printable)
    }

    /// What is wrong.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some(entry) => write!(f, "entry \"{entry}\": {}", self.reason),
            None => self.reason.fmt(f),
        }
    }
}

impl std::error::Error for Fault {}

/// Escapes what could confuse a terminal and shortens what would flood it.
pub(crate) fn printable(name: &[u8]) -> String {
    const SHOWN: usize = 300;
    let mut text = String::new();
    for chunk in name[..name.len().min(SHOWN)].utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\\' => text.extend(['\\', character]),
                _ if character.is_control() => text.extend(character.escape_default()),
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    if name.len() > SHOWN {
        text.push('…');
    }
    text
}

/// What is wrong with a layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The stream stops inside an entry.
    #[error("the archive is truncated")]
    Truncated,
    /// A header's checksum does not match: not a tar, or a damaged one.
    #[error("not a tar header at offset {offset} (checksum mismatch)")]
    BadHeader {
        /// Position in the uncompressed stream.
        offset: u64,
    },
    /// Something other than zeros follows the end-of-archive mark.
    #[error("data follows the end of the archive at offset {offset}")]
    TrailingData {
        /// Position in the uncompressed stream.
        offset: u64,
    },
    /// A numeric field is malformed, negative or too large.
    #[error("the {field} field is malformed, negative or too large")]
    BadNumber {
        /// Which field.
        field: &'static str,
    },
    /// An extended header (PAX, GNU long name) is malformed.
    #[error("malformed extended header: {what}")]
    BadExtendedHeader {
        /// What about it.
        what: &'static str,
    },
    /// A sparse map is malformed.
    #[error("malformed sparse map: {what}")]
    BadSparseMap {
        /// What about it.
        what: &'static str,
    },
    /// An entry type that has no meaning in a layer.
    #[error("unsupported entry type {kind:?}")]
    UnsupportedType {
        /// The tar type flag.
        kind: char,
    },
    /// More of something than a bound allows.
    #[error("more than {limit} {what}")]
    LimitExceeded {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The entry has no name.
    #[error("empty name")]
    EmptyName,
    /// The name starts with a slash.
    #[error("absolute name")]
    AbsoluteName,
    /// The name has a `..` component.
    #[error("\"..\" in a name, which could lead out of the root")]
    ParentComponent,
    /// The name holds a NUL byte.
    #[error("NUL byte in a name")]
    NulByte,
    /// A component or the whole path is longer than Linux can open.
    #[error("name longer than {limit} bytes")]
    NameTooLong {
        /// The bound.
        limit: usize,
    },
    /// The entry lies deeper than the bound.
    #[error("more than {MAX_DEPTH} directories deep", MAX_DEPTH = super::MAX_DEPTH)]
    TooDeep,
    /// A `.wh.` name that hides nothing that could exist.
    #[error("malformed whiteout name")]
    BadWhiteout,
    /// The link target is empty, too long or holds a NUL.
    #[error("malformed link target")]
    BadTarget,
    /// A hard link whose target has a `..` component.
    #[error("hard link to outside of the root: \"{target}\"")]
    LinkOutside {
        /// The target as the layer spells it.
        target: String,
    },
    /// A hard link to something that is not there.
    #[error("hard link to \"{target}\", which does not exist")]
    LinkMissing {
        /// The target as the layer spells it.
        target: String,
    },
    /// A hard link to a directory.
    #[error("hard link to the directory \"{target}\"")]
    LinkToDirectory {
        /// The target as the layer spells it.
        target: String,
    },
    /// A component of the path is there, but is no directory.
    #[error("\"{parent}\" is not a directory")]
    ParentNotDirectory {
        /// The component.
        parent: String,
    },
    /// The path runs through a symlink that leads out of the root.
    #[error("the path leaves the root through the symlink \"{link}\"")]
    SymlinkEscape {
        /// The symlink.
        link: String,
    },
    /// The path runs through an absolute symlink that the same layer made.
    #[error("the path runs through the absolute symlink \"{link}\" of the same layer")]
    SymlinkTrick {
        /// The symlink.
        link: String,
    },
    /// The path runs through too many symlinks.
    #[error("too many levels of symbolic links")]
    SymlinkLoop,
    /// The layer has the path twice.
    #[error("duplicate entry")]
    Duplicate,
    /// The root itself must be a directory.
    #[error("the root is not a directory")]
    RootNotDirectory,
}
