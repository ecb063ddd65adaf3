//! The archive that the guest's kernel unpacks and starts the agent from.
//!
//! A "newc" cpio as described in the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`, written
//! directly: device nodes and owners need no privileges that way, and the same
//! agent always gives the same bytes.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHAR_DEVICE: u32 = 0o020_600;

/// Directories the agent mounts on.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "mnt"];

/// Device nodes with their numbers. The kernel opens the console for the
/// agent's descriptors 0 to 2 before anything is mounted; where there is none,
/// Rust's start-up code opens the null device instead, or gives up.
const DEVICES: [(&str, (u32, u32)); 2] = [("dev/console", (5, 1)), ("dev/null", (1, 3))];

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

/// Writes the archive with `agent` as `/init`.
///
/// # Errors
/// Those of `out`, and [`io::ErrorKind::InvalidInput`] for an agent of 4 GiB or
/// more.
pub fn write(agent: &[u8], out: impl Write) -> io::Result<()> {
    let mut archive = Archive {
        out,
        written: 0,
        inode: 0,
    };
    let entry = |name, mode| Entry {
        name,
        mode,
        device: (0, 0),
        content: b"",
    };
    for name in DIRECTORIES {
        archive.add(&entry(name, DIRECTORY))?;
    }
    for (name, device) in DEVICES {
        archive.add(&Entry {
            device,
            ..entry(name, CHAR_DEVICE)
        })?;
    }
    archive.add(&Entry {
        content: agent,
        ..entry("init", EXECUTABLE)
    })?;
    archive.inode = 0;
    archive.add(&entry("TRAILER!!!", 0))?;
    archive.out.flush()
}

struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let size = u32::try_from(entry.content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "agent of 4 GiB or more"))?;
        self.inode += 1;
        let links = if entry.mode == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.inode,
            entry.mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0, // device of the file, major
            0, // minor
            entry.device.0,
            entry.device.1,
            entry.name.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.put(header.as_bytes())?;
        self.put(entry.name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(entry.content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let gap = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..gap as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device, content.
    type Parsed = (String, u32, (u32, u32), Vec<u8>);

    /// An independent reading of the format.
    fn parse(mut bytes: &[u8]) -> Vec<Parsed> {
        let whole = bytes.len();
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = String::from_utf8(bytes[110..110 + name_len - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_len - 1], 0);
            let start = (110 + name_len).next_multiple_of(4);
            let content = bytes[start..start + size].to_vec();
            bytes = &bytes[(start + size).next_multiple_of(4)..];
            assert_eq!((whole - bytes.len()) % 4, 0);
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, device, content));
        }
    }

    #[test]
    fn holds_the_agent_a_console_and_mount_points() {
        let mut archive = Vec::new();
        write(b"\x7fELF!", &mut archive).unwrap();
        let entries = parse(&archive);
        let find = |name| entries.iter().find(|entry| entry.0 == name).unwrap();
        assert_eq!(find("init").1, 0o100_755);
        assert_eq!(find("init").3, b"\x7fELF!");
        assert_eq!(
            (find("dev/console").1, find("dev/console").2),
            (0o020_600, (5, 1))
        );
        for name in DIRECTORIES {
            assert_eq!(find(name).1, 0o040_755);
        }
        let position = |name| entries.iter().position(|entry| entry.0 == name);
        assert!(position("dev") < position("dev/console"), "parents first");
    }
}
