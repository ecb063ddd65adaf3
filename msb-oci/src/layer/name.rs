//! Entry names: from the bytes in the tar to a path below the root.

use super::{MAX_DEPTH, MAX_NAME, MAX_PATH, Reason};

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A thing at the path.
    Entry,
    /// The thing at the path is hidden in lower layers.
    Whiteout,
    /// The content of the directory at the path is hidden in lower layers.
    Opaque,
    /// Bookkeeping of AUFS (`.wh..wh.…`), which no other file system reads.
    Ignored,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Writes the path that `raw` names into `path`: components joined by single
/// slashes, without `.` components; the root is empty.
pub(super) fn parse(raw: &[u8], path: &mut Vec<u8>) -> Result<Meaning, Reason> {
    // Some builders call the root what it is.
    if !raw.is_empty() && raw.iter().all(|&byte| byte == b'/') {
        path.clear();
        return Ok(Meaning::Entry);
    }
    normalise(raw, path)?;
    let base_start = path
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    let (parents, base) = path.split_at(base_start);
    let reserved = parents
        .split(|&byte| byte == b'/')
        .find(|parent| parent.starts_with(WHITEOUT));
    match reserved {
        Some(parent) if parent.starts_with(AUFS) => return Ok(Meaning::Ignored),
        Some(_) => return Err(Reason::BadWhiteout),
        None => {}
    }
    let meaning = match base {
        OPAQUE => Meaning::Opaque,
        _ if base.starts_with(AUFS) => return Ok(Meaning::Ignored),
        _ if base.starts_with(WHITEOUT) => Meaning::Whiteout,
        _ => return Ok(Meaning::Entry),
    };
    if meaning == Meaning::Opaque {
        path.truncate(base_start.saturating_sub(1));
        return Ok(meaning);
    }
    match &base[WHITEOUT.len()..] {
        b"" | b"." | b".." => Err(Reason::BadWhiteout),
        _ => {
            path.drain(base_start..base_start + WHITEOUT.len());
            Ok(meaning)
        }
    }
}

/// Writes the path of a hard link's target, which begins at the root, with a
/// slash or without: kaniko writes one.
pub(super) fn parse_link_target(raw: &[u8], path: &mut Vec<u8>) -> Result<(), Reason> {
    let slashes = raw.iter().take_while(|&&byte| byte == b'/').count();
    match normalise(&raw[slashes..], path) {
        Err(Reason::ParentComponent) => Err(Reason::LinkOutside {
            target: super::fault::printable(raw),
        }),
        Err(_) => Err(Reason::BadTarget),
        Ok(()) => Ok(()),
    }
}

/// Whether `path` is one that [`parse`] could have made.
pub(super) fn is_normal(path: &[u8]) -> bool {
    let mut again = Vec::with_capacity(path.len());
    path.is_empty() || (normalise(path, &mut again).is_ok() && again == path)
}

fn normalise(raw: &[u8], path: &mut Vec<u8>) -> Result<(), Reason> {
    path.clear();
    match raw {
        [] => return Err(Reason::EmptyName),
        [b'/', ..] => return Err(Reason::AbsoluteName),
        _ if raw.contains(&0) => return Err(Reason::NulByte),
        _ => {}
    }
    let mut depth = 0;
    for component in raw.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(Reason::ParentComponent),
            _ if component.len() > MAX_NAME => return Err(Reason::NameTooLong { limit: MAX_NAME }),
            _ => {}
        }
        depth += 1;
        if depth > MAX_DEPTH {
            return Err(Reason::TooDeep);
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        if path.len() > MAX_PATH {
            return Err(Reason::NameTooLong { limit: MAX_PATH });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Meaning, Reason, parse};

    fn parsed(raw: &[u8]) -> Result<(Meaning, String), Reason> {
        let mut path = Vec::new();
        parse(raw, &mut path).map(|meaning| (meaning, String::from_utf8(path).unwrap()))
    }

    #[test]
    fn normalises() {
        for (raw, path) in [
            ("./", ""),
            (".", ""),
            ("/", ""),
            ("./a//b/./c/", "a/b/c"),
            ("a", "a"),
            ("...", "..."),
        ] {
            assert_eq!(
                parsed(raw.as_bytes()),
                Ok((Meaning::Entry, path.to_owned()))
            );
        }
    }

    #[test]
    fn refuses_what_leaves_the_root() {
        assert_eq!(parsed(b""), Err(Reason::EmptyName));
        assert_eq!(parsed(b"/a"), Err(Reason::AbsoluteName));
        for raw in ["..", "a/..", "../a", "a/../b", "./.."] {
            assert_eq!(
                parsed(raw.as_bytes()),
                Err(Reason::ParentComponent),
                "{raw}"
            );
        }
        assert_eq!(parsed(b"a\0b"), Err(Reason::NulByte));
        assert!(parsed(&[b'x'; 255]).is_ok());
        assert!(matches!(
            parsed(&[b'x'; 256]),
            Err(Reason::NameTooLong { limit: 255 })
        ));
        assert!(matches!(
            parsed("a/".repeat(2000).as_bytes()),
            Err(Reason::TooDeep)
        ));
        assert!(matches!(
            parsed("abcdefghi/".repeat(500).as_bytes()),
            Err(Reason::NameTooLong { limit: 4095 })
        ));
    }

    #[test]
    fn knows_whiteouts() {
        for (raw, meaning, path) in [
            (".wh.a", Meaning::Whiteout, "a"),
            ("d/.wh.a", Meaning::Whiteout, "d/a"),
            (".wh....", Meaning::Whiteout, "..."),
            (".wh..wh..opq", Meaning::Opaque, ""),
            ("./d/e/.wh..wh..opq", Meaning::Opaque, "d/e"),
            (".wh..wh.plnk", Meaning::Ignored, ".wh..wh.plnk"),
            (".wh..wh.plnk/1.2", Meaning::Ignored, ".wh..wh.plnk/1.2"),
            ("a.wh.b", Meaning::Entry, "a.wh.b"),
        ] {
            assert_eq!(parsed(raw.as_bytes()), Ok((meaning, path.to_owned())));
        }
        for raw in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.a/b"] {
            assert_eq!(parsed(raw.as_bytes()), Err(Reason::BadWhiteout), "{raw}");
        }
    }
}
