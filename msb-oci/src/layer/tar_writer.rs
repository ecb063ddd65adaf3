//! A tar writer for tests: writes whatever it is told, also nonsense.

/// A tar under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tar {
    pub(crate) bytes: Vec<u8>,
}

/// The header of an entry, to be changed before it is written.
#[derive(Clone, Debug)]
pub(crate) struct Header(pub(crate) [u8; 512]);

impl Header {
    pub(crate) fn new(name: &[u8], flag: u8) -> Header {
        let mut header = Header([0; 512]);
        let length = name.len().min(100);
        header.0[..length].copy_from_slice(&name[..length]);
        header.octal(100, 8, if flag == b'5' { 0o755 } else { 0o644 });
        for (at, width) in [(108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8)] {
            header.octal(at, width, 0);
        }
        header.0[156] = flag;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header
    }

    pub(crate) fn octal(&mut self, at: usize, width: usize, value: u64) {
        let text = format!("{value:0digits$o}\0", digits = width - 1);
        self.0[at..at + width].copy_from_slice(text.as_bytes());
    }

    pub(crate) fn size(mut self, size: u64) -> Header {
        self.octal(124, 12, size);
        self
    }

    pub(crate) fn link(mut self, target: &[u8]) -> Header {
        self.0[157..157 + target.len()].copy_from_slice(target);
        self
    }

    pub(crate) fn checksummed(mut self) -> Header {
        self.0[148..156].copy_from_slice(b"        ");
        let sum: u64 = self.0.iter().map(|&byte| u64::from(byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    pub(crate) fn header(mut self, header: Header, data: &[u8]) -> Tar {
        self.bytes.extend_from_slice(&header.checksummed().0);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Tar {
        self.header(
            Header::new(name.as_bytes(), b'0').size(data.len() as u64),
            data,
        )
    }

    pub(crate) fn dir(self, name: &str) -> Tar {
        self.header(Header::new(name.as_bytes(), b'5'), b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Tar {
        self.header(
            Header::new(name.as_bytes(), b'2').link(target.as_bytes()),
            b"",
        )
    }

    pub(crate) fn hard(self, name: &str, target: &str) -> Tar {
        self.header(
            Header::new(name.as_bytes(), b'1').link(target.as_bytes()),
            b"",
        )
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let digits = (1..)
                .find(|digits| (body + digits).to_string().len() == *digits)
                .unwrap();
            data.extend_from_slice(format!("{} {key}=", body + digits).as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.header(Header::new(b"pax", b'x').size(data.len() as u64), &data)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}
