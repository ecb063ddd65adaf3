//! The 512-byte header block: a view over its fields in every dialect.

use super::{BLOCK, Reason};

pub(super) const BLOCK_SIZE: usize = BLOCK as usize;

/// A view of a header whose checksum is right.
#[derive(Clone, Copy)]
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK_SIZE],
    dialect: Dialect,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the checksum; `None` if it does not match.
    pub(super) fn parse(block: &'a [u8; BLOCK_SIZE]) -> Option<Header<'a>> {
        let stored = octal(&block[148..156])?;
        // Some ancient tars summed signed bytes.
        let (mut unsigned, mut signed) = (8 * 32, 8 * 32);
        for &byte in block[..148].iter().chain(&block[156..]) {
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return None;
        }
        let dialect = match &block[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") && &block[508..512] == b"tar\0" => Dialect::Star,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        };
        Some(Header { block, dialect })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// Writes the name, joined with the prefix if the dialect has one.
    pub(super) fn name(&self, name: &mut Vec<u8>) {
        name.clear();
        let prefix = match self.dialect {
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if !prefix.is_empty() {
            name.extend_from_slice(prefix);
            name.push(b'/');
        }
        name.extend_from_slice(text(&self.block[..100]));
    }

    pub(super) fn link_name(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    /// Permission bits; the file type bits some tars add are dropped.
    pub(super) fn mode(&self) -> Result<u16, Reason> {
        let mode = number(&self.block[100..108]).ok_or(Reason::BadNumber { field: "mode" })?;
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, Reason> {
        self.id(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, Reason> {
        self.id(116..124, "gid")
    }

    fn id(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u32, Reason> {
        number(&self.block[range])
            .and_then(valid_id)
            .ok_or(Reason::BadNumber { field })
    }

    pub(super) fn size(&self) -> Result<u64, Reason> {
        unsigned(&self.block[124..136], "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, Reason> {
        number(&self.block[136..148]).ok_or(Reason::BadNumber { field: "mtime" })
    }

    /// Major and minor number, within the widths that Linux has for them.
    pub(super) fn device(&self) -> Result<(u32, u32), Reason> {
        if self.dialect == Dialect::V7 {
            return Ok((0, 0));
        }
        let field = |range: std::ops::Range<usize>, bits: u32, field| {
            let value = unsigned(&self.block[range], field)?;
            u32::try_from(value)
                .ok()
                .filter(|value| value >> bits == 0)
                .ok_or(Reason::BadNumber { field })
        };
        Ok((
            field(329..337, 12, "device major")?,
            field(337..345, 20, "device minor")?,
        ))
    }

    /// The four runs that an old GNU sparse header has room for.
    pub(super) fn sparse_runs(&self) -> &'a [u8] {
        &self.block[386..482]
    }

    pub(super) fn sparse_continues(&self) -> bool {
        self.block[482] != 0
    }

    pub(super) fn sparse_real_size(&self) -> Result<u64, Reason> {
        unsigned(&self.block[483..495], "real size")
    }
}

/// A user or group id. The largest value means "no change" to chown.
pub(super) fn valid_id(value: i64) -> Option<u32> {
    u32::try_from(value).ok().filter(|&id| id != u32::MAX)
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len())]
}

pub(super) fn unsigned(field: &[u8], name: &'static str) -> Result<u64, Reason> {
    number(field)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or(Reason::BadNumber { field: name })
}

/// A number in octal digits or in GNU's base 256 (first bit set).
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement over the whole field but its marker bit.
    let negative = first & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (position, &byte) in field.iter().enumerate() {
        let byte = match (position, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
        if position == 0 && negative {
            value = i64::from(byte.cast_signed());
        }
    }
    Some(value)
}

/// Octal digits between spaces and NULs; nothing at all is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !padding(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(padding).unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn reads_octal() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000648\0", None),
            (b"-000644\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn reads_base_256() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 5]), Some(5));
        assert_eq!(number(&[0xff; 8]), Some(-1));
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
            Some(-2)
        );
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0]),
            Some(0x7f << 56)
        );
    }
}
