//! PAX extended headers: records, and the attributes they set.

use std::collections::BTreeMap;

use super::header::valid_id;
use super::{MAX_EXTENDED_HEADER, MAX_NAME, MAX_SPARSE_EXTENTS, MAX_XATTR_VALUE, Reason};

/// What extended headers say about the next entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of all xattrs that were ever set: headers may follow each other.
    xattr_bytes: usize,
    pub(super) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records of versions 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) version: (u32, u32),
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Runs as (offset, length), from versions 0.0 and 0.1.
    pub(super) runs: Vec<(u64, u64)>,
    pub(super) has_map: bool,
    pending_offset: Option<u64>,
}

impl Extended {
    /// Applies the records of one extended header. A `global` one may not say
    /// what can be true of a single entry only.
    pub(super) fn apply(&mut self, mut data: &[u8], global: bool) -> Result<(), Reason> {
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            data = rest;
            // Attributes for all entries would be copied to each of them.
            let single = matches!(key, b"path" | b"linkpath" | b"size")
                || key.starts_with(b"GNU.sparse.")
                || key.starts_with(b"SCHILY.xattr.")
                || key.starts_with(b"LIBARCHIVE.xattr.");
            if global && single {
                return Err(malformed("a global header names one entry"));
            }
            self.set(key, value)?;
        }
        if self.sparse.pending_offset.is_some() {
            return Err(malformed("a sparse offset without a length"));
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Reason> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link_path = name(value)?,
            b"size" => {
                self.size = optional(value, |value| {
                    decimal(value).ok_or(Reason::BadNumber { field: "size" })
                })?;
            }
            b"uid" => self.uid = optional(value, |value| id(value, "uid"))?,
            b"gid" => self.gid = optional(value, |value| id(value, "gid"))?,
            b"mtime" => {
                self.mtime = optional(value, |value| {
                    time(value).ok_or(Reason::BadNumber { field: "mtime" })
                })?;
            }
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent_decoded(name);
                    // Archives that have both spellings agree in the plain one.
                    if !self.xattrs.contains_key(&name) {
                        let value = base64(value).ok_or(malformed("an xattr is not base64"))?;
                        self.set_xattr(&name, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), Reason> {
        if !is_representable(name) {
            return Ok(());
        }
        if name.contains(&0) || name.len() > MAX_NAME {
            return Err(malformed("an xattr name is too long or has a NUL"));
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(malformed("an xattr value is longer than 65,535 bytes"));
        }
        self.xattr_bytes += name.len() + value.len();
        if self.xattr_bytes as u64 > MAX_EXTENDED_HEADER {
            let limit = MAX_EXTENDED_HEADER;
            return Err(Reason::LimitExceeded {
                what: "bytes of extended attributes of one entry",
                limit,
            });
        }
        self.xattrs.insert(name.to_vec(), value);
        Ok(())
    }
}

/// Whether Linux has the attribute's namespace. Those of other systems
/// (`com.apple.…`) are dropped, as every unpacker on Linux has to; so is
/// overlayfs's own bookkeeping, which would steer the guest's overlay.
fn is_representable(name: &[u8]) -> bool {
    let rest = [b"user.".as_slice(), b"trusted.", b"security."]
        .iter()
        .find_map(|prefix| name.strip_prefix(*prefix));
    let acl = matches!(
        name,
        b"system.posix_acl_access" | b"system.posix_acl_default"
    );
    (acl || rest.is_some_and(|rest| !rest.is_empty())) && !name.starts_with(b"trusted.overlay.")
}

impl PaxSparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Reason> {
        let bad = |what| Reason::BadSparseMap { what };
        let number = || decimal(value).ok_or(bad("malformed number"));
        let small = || number().map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        match key {
            b"major" => self.version.0 = small()?,
            b"minor" => self.version.1 = small()?,
            b"name" => self.name = name(value)?,
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"numblocks" => self.has_map = true,
            b"offset" => {
                let before = self.pending_offset.replace(number()?);
                before.map_or(Ok(()), |_| Err(bad("an offset without a length")))?;
            }
            b"numbytes" => {
                let offset = self
                    .pending_offset
                    .take()
                    .ok_or(bad("a length without an offset"))?;
                self.add_run(offset, number()?)?;
            }
            b"map" => {
                self.runs.clear();
                let mut numbers = value
                    .split(|&byte| byte == b',')
                    .filter(|text| !text.is_empty());
                while let Some(offset) = numbers.next() {
                    let pair = decimal(offset).zip(numbers.next().and_then(decimal));
                    let (offset, length) = pair.ok_or(bad("malformed number"))?;
                    self.add_run(offset, length)?;
                }
                self.has_map = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn add_run(&mut self, offset: u64, length: u64) -> Result<(), Reason> {
        if self.runs.len() == MAX_SPARSE_EXTENTS {
            let limit = MAX_SPARSE_EXTENTS as u64;
            return Err(Reason::LimitExceeded {
                what: "extents of a sparse file",
                limit,
            });
        }
        self.has_map = true;
        self.runs.push((offset, length));
        Ok(())
    }
}

fn malformed(what: &'static str) -> Reason {
    Reason::BadExtendedHeader { what }
}

/// Key, value, and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits off the first record: `LENGTH key=value\n`.
fn record(data: &[u8]) -> Result<Record<'_>, Reason> {
    let bad = || malformed("a record is not \"LENGTH KEY=VALUE\"");
    let space = data
        .iter()
        .take(8)
        .position(|&byte| byte == b' ')
        .ok_or_else(bad)?;
    let length = decimal(&data[..space]).ok_or_else(bad)? as usize;
    let record = data.get(space + 1..length).ok_or_else(bad)?;
    let (b'\n', record) = record.split_last().ok_or_else(bad)? else {
        return Err(bad());
    };
    let equals = record
        .iter()
        .position(|&byte| byte == b'=')
        .ok_or_else(bad)?;
    Ok((&record[..equals], &record[equals + 1..], &data[length..]))
}

/// An empty value takes the record back.
fn optional<T>(
    value: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<T, Reason>,
) -> Result<Option<T>, Reason> {
    if value.is_empty() {
        Ok(None)
    } else {
        parse(value).map(Some)
    }
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
    match value {
        [] => Ok(None),
        _ if value.contains(&0) => Err(Reason::NulByte),
        _ => Ok(Some(value.to_vec())),
    }
}

fn id(value: &[u8], field: &'static str) -> Result<u32, Reason> {
    let number = decimal(value).and_then(|value| i64::try_from(value).ok());
    number.and_then(valid_id).ok_or(Reason::BadNumber { field })
}

/// A decimal number below 2^63.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0u64, |value, &byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })?;
    (value <= i64::MAX as u64).then_some(value)
}

/// Seconds with an optional sign and fraction, rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |position: usize| {
        fraction
            .get(position)
            .map_or(0, |digit| u32::from(digit - b'0'))
    };
    let nanos = (0..9).fold(0, |nanos, position| nanos * 10 + digit(position));
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%'
            && let [high, low, tail @ ..] = tail
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            decoded.push(high << 4 | low);
            rest = tail;
        } else {
            decoded.push(*first);
        }
    }
    decoded
}

/// Base 64, with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |last| last + 1);
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0u32, 0);
    for &byte in &text[..end] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'\n' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            decoded.push((bits >> held) as u8);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::{Extended, base64, percent_decoded, time};

    fn records(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (key, value) in pairs {
            let body = key.len() + value.len() + 3;
            let length = (1..)
                .find(|digits| (body + digits).to_string().len() == *digits)
                .unwrap()
                + body;
            data.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        data
    }

    #[test]
    fn reads_records() {
        let mut extended = Extended::default();
        let data = records(&[
            ("path", "a=b"),
            ("uid", "4000000000"),
            ("mtime", "1.25"),
            ("SCHILY.xattr.user.k", "v=\n1"),
            ("LIBARCHIVE.xattr.user.%41", "AQI"),
            ("SCHILY.xattr.com.apple.x", "y"),
            ("SCHILY.xattr.trusted.overlay.opaque", "y"),
            ("comment", ""),
        ]);
        extended.apply(&data, false).unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"a=b"[..]));
        assert_eq!(extended.uid, Some(4_000_000_000));
        assert_eq!(extended.mtime, Some((1, 250_000_000)));
        let xattrs: Vec<_> = extended.xattrs.into_iter().collect();
        assert_eq!(
            xattrs,
            [
                (b"user.A".to_vec(), vec![1, 2]),
                (b"user.k".to_vec(), b"v=\n1".to_vec())
            ]
        );
    }

    #[test]
    fn refuses_malformed_records() {
        for bad in [
            "",
            "5 a=",
            "99 a=b\n",
            "6 a=b",
            "6 ab\n",
            "3 a",
            "x a=b\n",
            "0 a=b\n",
            "1 \n",
            "2 \n",
            "9 uid=-1\n",
        ] {
            let refused = Extended::default().apply(bad.as_bytes(), false).is_err();
            assert_eq!(refused, !bad.is_empty(), "{bad:?}");
        }
        let path = records(&[("path", "x")]);
        assert!(Extended::default().apply(&path, true).is_err());
    }

    #[test]
    fn headers_in_a_row_do_not_pile_up_attributes() {
        let value = "v".repeat(60_000);
        let mut extended = Extended::default();
        let refused = (0..100).find(|number| {
            let key = format!("SCHILY.xattr.user.{number}");
            extended.apply(&records(&[(&key, &value)]), false).is_err()
        });
        assert_eq!(refused, Some(17));
        for key in ["SCHILY.xattr.user.k", "LIBARCHIVE.xattr.user.k"] {
            let data = records(&[(key, "AQI=")]);
            assert!(Extended::default().apply(&data, true).is_err(), "{key}");
        }
    }

    #[test]
    fn reads_times() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            (
                "1700000000.123456789123",
                Some((1_700_000_000, 123_456_789)),
            ),
            ("-1.5", Some((-2, 500_000_000))),
            ("-2", Some((-2, 0))),
            ("1.", Some((1, 0))),
            (".5", None),
            ("1.x", None),
            ("--1", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn decodes() {
        assert_eq!(base64(b"aGVsbG8=").unwrap(), b"hello");
        assert_eq!(base64(b"aGVsbG8").unwrap(), b"hello");
        assert_eq!(base64(b"a*"), None);
        assert_eq!(percent_decoded(b"a%20b%zz%2"), b"a b%zz%2");
    }
}
