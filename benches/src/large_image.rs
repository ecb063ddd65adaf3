//! A large image, made up: the same bytes on every machine.
//!
//! Its shape is that of a language image with its libraries: 46,000 entries in
//! three layers, most files small, some large, most of them text that
//! compresses well, some of it not at all; later layers replace and remove a
//! few files of earlier ones. About 260 MB compressed with gzip.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Raised when the content changes, so that old copies are made anew.
pub const VERSION: u32 = 2;

/// Entries of each layer, folders and links included, and the folder they are in.
const LAYERS: &[(usize, &str)] = &[(27_000, "usr"), (14_000, "opt/lib"), (5_000, "srv/app")];

/// Files in a folder.
const FILES_PER_FOLDER: usize = 11;

/// One of so many entries is a symbolic link.
const LINK_EVERY: usize = 25;

/// One of so many files of a later layer replaces, and another removes, one of
/// the first layer.
const CHANGE_EVERY: usize = 200;

/// Files that do not compress, in percent of all.
const INCOMPRESSIBLE: u64 = 5;

/// One of so many words of a text is a passage that was there before.
const REPEAT_EVERY: u64 = 16;

/// Words that text is made of.
const WORDS: usize = 8_000;

/// 2024-01-01.
const MTIME: u64 = 1_704_067_200;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Writes the image as an OCI layout with uncompressed layers, tagged `latest`.
///
/// # Errors
/// When `layout` can't be written.
pub fn make(layout: &Path) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("cannot make the layout of the large image")?;
    let mut random = Random(0x6d73_625f_6265_6e63);
    let words = dictionary(&mut random);
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for (index, &(entries, prefix)) in LAYERS.iter().enumerate() {
        let mut tar = Tar::create(&blobs)?;
        fill(&mut tar, index, entries, prefix, &mut random, &words)?;
        let layer = tar.finish(&blobs)?;
        diff_ids.push(layer["digest"].clone());
        layers.push(layer);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(&blobs, CONFIG_TYPE, &config)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers,
    });
    let mut manifest = put(&blobs, MANIFEST_TYPE, &manifest)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        json!({ "imageLayoutVersion": "1.0.0" }).to_string(),
    )?;
    Ok(())
}

/// Fills one layer with `entries` entries below `prefix`.
fn fill(
    tar: &mut Tar,
    layer: usize,
    entries: usize,
    prefix: &str,
    random: &mut Random,
    words: &[String],
) -> Result<()> {
    let mut content = Vec::new();
    let mut made = 0;
    for (depth, _) in prefix.match_indices('/') {
        tar.entry(&prefix[..depth], b'5', "", &[])?;
        made += 1;
    }
    tar.entry(prefix, b'5', "", &[])?;
    made += 1;
    let mut folder = String::new();
    let mut file = 0;
    while made < entries {
        if file % FILES_PER_FOLDER == 0 {
            let number = file / FILES_PER_FOLDER;
            // Three in four folders lie beside each other, each fourth begins a new branch.
            let branch = number / 4 * 4;
            if number == branch {
                folder = format!("{prefix}/part-{branch:04}");
            } else {
                folder = format!("{prefix}/part-{branch:04}/section-{number:04}");
            }
            tar.entry(&folder, b'5', "", &[])?;
            made += 1;
        }
        let name = format!("{folder}/item-{file:05}.txt");
        if file % LINK_EVERY == 1 {
            tar.entry(&name, b'2', &format!("item-{:05}.txt", file - 1), &[])?;
        } else {
            fill_file(&mut content, random, words);
            tar.entry(&name, b'0', "", &content)?;
        }
        made += 1;
        if layer > 0 && file % CHANGE_EVERY == 0 && file > 0 {
            // In the first folder of the first layer, whose files are known by name.
            let number = file / CHANGE_EVERY % 5 + 2;
            let (kind, data) = (b'0', format!("changed by layer {layer}\n"));
            let changed = format!("usr/part-0000/item-{number:05}.txt");
            let removed = format!("usr/part-0000/.wh.item-{:05}.txt", number + 5);
            if file / CHANGE_EVERY < 2 {
                tar.entry(&changed, kind, "", data.as_bytes())?;
                tar.entry(&removed, kind, "", &[])?;
                made += 2;
            }
        }
        file += 1;
    }
    Ok(())
}

/// Replaces `content` by that of a made-up file.
fn fill_file(content: &mut Vec<u8>, random: &mut Random, words: &[String]) {
    content.clear();
    let size = match random.below(100) {
        0..60 => 200 + random.below(4 << 10),
        60..90 => (4 << 10) + random.below(28 << 10),
        90..99 => (32 << 10) + random.below(96 << 10),
        _ => (256 << 10) + random.below(1280 << 10),
    };
    let size = usize::try_from(size).expect("a small file");
    if random.below(100) < INCOMPRESSIBLE {
        while content.len() < size {
            content.extend(random.next().to_le_bytes());
        }
    } else {
        while content.len() < size {
            if content.len() > 256 && random.below(REPEAT_EVERY) == 0 {
                let start = content.len() - 200 - pick(random, 56);
                content.extend_from_within(start..start + 80 + pick(random, 120));
            }
            // Few words make most of a text.
            let at = pick(random, WORDS as u64) * pick(random, WORDS as u64) / WORDS;
            let at = at * pick(random, WORDS as u64) / WORDS;
            content.extend(words[at].as_bytes());
            content.push(if random.below(10) == 0 { b'\n' } else { b' ' });
        }
    }
    content.truncate(size);
}

fn dictionary(random: &mut Random) -> Vec<String> {
    let word = |random: &mut Random| {
        let length = 2 + random.below(9);
        (0..length)
            .map(|_| char::from(b"etaoinshrdlucmfwypvbgkqjxz_.-()="[pick(random, 32)]))
            .collect()
    };
    (0..WORDS).map(|_| word(random)).collect()
}

fn pick(random: &mut Random, count: u64) -> usize {
    usize::try_from(random.below(count)).expect("a small number")
}

/// `SplitMix64`: fast, and random enough that nothing compresses it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is small.
    fn below(&mut self, bound: u64) -> u64 {
        ((self.next() >> 32) * bound) >> 32
    }
}

/// A tar archive that becomes a blob.
struct Tar {
    file: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Tar {
    fn create(blobs: &Path) -> Result<Self> {
        let file = File::create(blobs.join("unfinished"))?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            size: 0,
        })
    }

    /// Adds a file (`0`), link (`2`) or folder (`5`).
    fn entry(&mut self, name: &str, kind: u8, target: &str, data: &[u8]) -> Result<()> {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        let mut header = [0; 512];
        let mut field = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        field(0, name);
        field(100, &format!("{mode:07o}"));
        field(108, "0000000");
        field(116, "0000000");
        field(124, &format!("{:011o}", data.len()));
        field(136, &format!("{MTIME:011o}"));
        field(148, "        ");
        field(157, target);
        field(257, "ustar\u{0}00");
        header[156] = kind;
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.write(&header)?;
        self.write(data)?;
        let padding = data.len().next_multiple_of(512) - data.len();
        self.write(&[0; 512][..padding])
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.hash.update(data);
        self.size += data.len() as u64;
        self.file.write_all(data).context("cannot write a layer")
    }

    /// Ends the archive and returns its descriptor.
    fn finish(mut self, blobs: &Path) -> Result<Value> {
        self.write(&[0; 1024])?;
        self.file.flush()?;
        let hex = hex(&self.hash.finalize());
        fs::rename(blobs.join("unfinished"), blobs.join(&hex))?;
        Ok(descriptor(LAYER_TYPE, &hex, self.size))
    }
}

/// Stores a JSON blob and returns its descriptor.
fn put(blobs: &Path, media_type: &str, value: &Value) -> Result<Value> {
    let text = value.to_string();
    let hex = hex(&Sha256::digest(&text));
    fs::write(blobs.join(&hex), &text)?;
    Ok(descriptor(media_type, &hex, text.len() as u64))
}

fn descriptor(media_type: &str, hex: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": size })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
