//! The VMDK text descriptor that presents several files as one disk.
//!
//! Only the `twoGbMaxExtentFlat` form: plain files one after the other, which
//! QEMU and libkrun read. The two gigabytes in its name bind neither of them.

use std::fmt::Write as _;

/// Longest path that QEMU's reader takes.
const MAX_EXTENT_PATH: usize = 511;

/// A file that is part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmdkExtent {
    /// Path, relative to the descriptor's directory.
    pub path: String,
    /// Bytes; a multiple of 512.
    pub bytes: u64,
}

/// Why no descriptor can be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a disk extent can't be written to a VMDK descriptor: \"{path}\" ({bytes} bytes)")]
pub struct BadExtent {
    /// The path.
    pub path: String,
    /// The size.
    pub bytes: u64,
}

/// Writes the descriptor of a disk made of `extents`, in this order. Extents
/// without a byte are left out.
///
/// # Errors
/// A size that is not a multiple of 512, or a path that the format can't
/// express: with a quote or a control character, empty, or over 511 bytes.
pub fn descriptor(extents: &[VmdkExtent]) -> Result<String, BadExtent> {
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n",
    );
    for VmdkExtent { path, bytes } in extents {
        let bad_path = path.is_empty()
            || path.len() > MAX_EXTENT_PATH
            || path.contains(|character: char| character == '"' || character.is_control());
        if bad_path || bytes % 512 != 0 {
            return Err(BadExtent {
                path: path.clone(),
                bytes: *bytes,
            });
        }
        if *bytes > 0 {
            let _ = writeln!(text, "RW {} FLAT \"{path}\" 0", bytes / 512);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{VmdkExtent, descriptor};

    fn extent(path: &str, bytes: u64) -> VmdkExtent {
        VmdkExtent {
            path: path.to_owned(),
            bytes,
        }
    }

    #[test]
    fn lists_extents_in_order_and_skips_empty_ones() {
        let text = descriptor(&[
            extent("metadata.erofs", 4096),
            extent("empty", 0),
            extent("../b", 512),
        ])
        .unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("RW")).collect();
        assert_eq!(
            lines,
            ["RW 8 FLAT \"metadata.erofs\" 0", "RW 1 FLAT \"../b\" 0"]
        );
    }

    #[test]
    fn refuses_what_the_format_cannot_say() {
        for bad in [
            extent("a\"b", 512),
            extent("a\nb", 512),
            extent("", 512),
            extent("a", 513),
        ] {
            assert!(descriptor(&[bad]).is_err());
        }
        assert!(descriptor(&[extent(&"p".repeat(512), 512)]).is_err());
    }
}
