//! CRC-32C (Castagnoli), table driven.

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                value >> 1 ^ 0x82f6_3b78
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

static TABLE: [u32; 256] = table();

/// The register after `data`, starting from all ones and not inverted at the
/// end: the form in the EROFS superblock.
pub(crate) fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(u32::MAX, |crc, &byte| {
        crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn matches_the_check_value() {
        assert_eq!(!super::crc32c(b"123456789"), 0xe306_9283);
    }
}
