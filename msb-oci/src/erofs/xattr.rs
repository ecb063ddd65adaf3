//! Inline extended attributes, which follow their inode.

use crate::layer::Xattr;

const HEADER: usize = 12;
const ENTRY: usize = 4;

/// Bytes of xattrs that `i_xattr_icount` can express.
const MAX_BODY: usize = HEADER + (u16::MAX as usize - 1) * 4;

/// The name's namespace number, and the rest of the name. `None` for a
/// namespace that EROFS does not have.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => PREFIXES
            .iter()
            .find_map(|&(prefix, number)| Some((number, name.strip_prefix(prefix)?))),
    }
}

fn entry_size(name: &[u8], value: &[u8]) -> usize {
    (ENTRY + name.len() + value.len()).next_multiple_of(4)
}

/// Bytes that the attributes take after the inode; `None` if that is more
/// than the format can say.
pub(super) fn size<'a>(xattrs: impl Iterator<Item = Xattr<'a>>) -> Option<usize> {
    let mut total = 0;
    for xattr in xattrs {
        if let Some((_, name)) = split(xattr.name) {
            if name.len() > usize::from(u8::MAX) || xattr.value.len() > usize::from(u16::MAX) {
                return None;
            }
            total += entry_size(name, xattr.value);
        }
    }
    match total {
        0 => Some(0),
        _ => Some(HEADER + total).filter(|&size| size <= MAX_BODY),
    }
}

/// The `i_xattr_icount` that stands for `size` bytes.
pub(super) fn count(size: usize) -> u16 {
    if size == 0 {
        0
    } else {
        ((size - HEADER) / 4 + 1) as u16
    }
}

/// Appends the attributes as they follow the inode.
pub(super) fn emit<'a>(xattrs: impl Iterator<Item = Xattr<'a>>, out: &mut Vec<u8>) {
    let mut header_written = false;
    for xattr in xattrs {
        let Some((namespace, name)) = split(xattr.name) else {
            continue;
        };
        if !header_written {
            out.extend_from_slice(&[0; HEADER]);
            header_written = true;
        }
        out.extend_from_slice(&[name.len() as u8, namespace]);
        out.extend_from_slice(&(xattr.value.len() as u16).to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(xattr.value);
        let padding = entry_size(name, xattr.value) - ENTRY - name.len() - xattr.value.len();
        out.extend_from_slice(&[0; 3][..padding]);
    }
}
