//! Sizes as people type and read them: `512M`, `4G`.

/// Mebibytes in a size such as `512M`, `512MiB`, `2g` or `1048576k`.
pub(crate) fn parse_mebibytes(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text)?;
    if bytes % (1 << 20) != 0 {
        return Err(format!("{text:?} is not a whole number of mebibytes"));
    }
    u32::try_from(bytes >> 20).map_err(|_| format!("{text:?} is too large"))
}

/// Bytes in a size such as `512M`, `2g` or `64k`.
///
/// A unit is asked for: a bare number means bytes to some tools and mebibytes
/// to others.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| {
        format!("{text:?} does not start with a whole number; write for example 512M or 2G")
    })?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "" => {
            return Err(format!(
                "{text:?} has no unit; write for example {number}M or {number}G"
            ));
        }
        _ => return Err(format!("{unit:?} is not a unit; use K, M, G or T")),
    };
    let bytes = number.checked_mul(factor);
    bytes.ok_or_else(|| format!("{text:?} is too large"))
}

/// Bytes in the largest unit that leaves at least one before the point.
pub(crate) fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse_mebibytes("512M"), Ok(512));
        assert_eq!(parse_mebibytes("512MiB"), Ok(512));
        assert_eq!(parse_mebibytes("2g"), Ok(2048));
        assert_eq!(parse_mebibytes("1T"), Ok(1 << 20));
        assert_eq!(parse_mebibytes("2048k"), Ok(2));
    }

    #[test]
    fn bad_sizes_say_what_to_write() {
        for (text, part) in [
            ("512", "no unit"),
            ("M", "whole number"),
            ("", "whole number"),
            ("-1M", "whole number"),
            ("5X", "not a unit"),
            ("1500k", "whole number of mebibytes"),
            ("99999999999999T", "too large"),
            ("18446744073709551616M", "whole number"),
        ] {
            let error = parse_mebibytes(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn bytes_are_shown_short() {
        assert_eq!(human(999), "999 B");
        assert_eq!(human(1_000), "1.0 kB");
        assert_eq!(human(261_400_000), "261.4 MB");
    }
}
