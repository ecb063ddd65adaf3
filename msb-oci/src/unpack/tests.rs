use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::{Source, Summary, UnpackError, unpack};
use crate::layer::tar_writer::{Header, Tar};
use crate::layer::{Limits, Reason};

/// A directory with a destination inside, and something next to it that must
/// never change.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "untouched").unwrap();
        Place { directory }
    }

    fn destination(&self) -> PathBuf {
        self.directory.path().join("destination")
    }

    fn unpack(&self, layers: Vec<Tar>) -> Result<Summary, UnpackError> {
        self.unpack_bytes(layers.into_iter().map(Tar::finish).collect())
    }

    fn unpack_bytes(&self, layers: Vec<Vec<u8>>) -> Result<Summary, UnpackError> {
        let mut sources = Vec::new();
        for (number, bytes) in layers.into_iter().enumerate() {
            let path = self.directory.path().join(format!("layer{number}"));
            fs::write(&path, bytes).unwrap();
            sources.push(Source::open(
                &path,
                self.directory.path(),
                Limits::default(),
            )?);
        }
        unpack(&self.destination(), &sources)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.destination().join(path)).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        self.destination().join(path).symlink_metadata().is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let outside = self.directory.path().join("outside");
        if !std::thread::panicking() {
            assert_eq!(
                fs::read_to_string(outside.join("secret")).unwrap(),
                "untouched"
            );
            assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
        }
    }
}

fn tar() -> Tar {
    Tar::new()
}

#[test]
fn unpacks_what_the_layers_say() {
    let place = Place::new();
    let mut mode = Header::new(b"d/run", b'0').size(3);
    mode.octal(100, 8, 0o751);
    mode.octal(136, 12, 1_000_000);
    let records: [(&str, &[u8]); 2] = [
        ("GNU.sparse.size", b"100000"),
        ("GNU.sparse.map", b"4096,512"),
    ];
    let layer = tar()
        .dir("d")
        .header(mode, b"abc")
        .symlink("l", "d/run")
        .hard("h", "d/run");
    let layer = layer
        .pax(&records)
        .file("sparse", &[7; 512])
        .file("gone", b"");
    place
        .unpack(vec![layer, tar().file(".wh.gone", b"").file("d/new", b"n")])
        .unwrap();
    assert_eq!(place.read("l"), "abc");
    let run = fs::metadata(place.destination().join("d/run")).unwrap();
    assert_eq!(
        (run.permissions().mode() & 0o7777, run.mtime(), run.nlink()),
        (0o751, 1_000_000, 2)
    );
    let sparse = fs::read(place.destination().join("sparse")).unwrap();
    assert_eq!(
        (sparse.len(), sparse[4096], sparse[4095], sparse[4608]),
        (100_000, 7, 0, 0)
    );
    assert!(!place.has("gone") && place.has("d/new"));
    assert_eq!(
        fs::metadata(place.destination().join("d")).unwrap().mtime(),
        0
    );
}

#[test]
fn compressed_layers_are_recognised() {
    let plain = tar().file("a", &[1; 5000]).finish();
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let members = [gzip(&plain[..700]), gzip(&plain[700..]), vec![0; 100]].concat();
    let frames = [
        zstd::encode_all(&plain[..700], 1).unwrap(),
        zstd::encode_all(&plain[700..], 1).unwrap(),
    ]
    .concat();
    for layer in [plain, members, frames] {
        let place = Place::new();
        place.unpack_bytes(vec![layer]).unwrap();
        assert_eq!(place.read("a").len(), 5000);
    }
}

#[test]
fn damaged_streams_leave_nothing_behind() {
    let plain = tar().file("a", &[1; 5000]).finish();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let gzip = encoder.finish().unwrap();
    let mut garbage = gzip.clone();
    garbage.extend_from_slice(b"garbage");
    for bad in [
        plain[..1000].to_vec(),
        zstd[..zstd.len() - 3].to_vec(),
        gzip[..gzip.len() - 9].to_vec(),
        garbage,
        vec![b'x'; 600],
    ] {
        let place = Place::new();
        assert!(place.unpack_bytes(vec![bad]).is_err());
        assert!(!place.destination().exists());
    }
}

#[test]
fn refusals_name_layer_and_entry_and_write_nothing() {
    let hostile = [
        tar().file("ok", b"").symlink("e", "/").file("e/x", b""),
        tar()
            .file("ok", b"")
            .symlink("e", "../outside")
            .file("e/x", b""),
        tar()
            .file("ok", b"")
            .symlink("e", "../outside")
            .file("e/.wh.secret", b""),
        tar().file("ok", b"").hard("e", "../outside/secret"),
        tar().file("ok", b"").file("../outside/x", b""),
        tar().file("ok", b"").file("/x", b""),
        tar().file("ok", b"").file("ok", b""),
    ];
    for layer in hostile {
        let place = Place::new();
        let error = place
            .unpack(vec![tar().file("base", b""), layer])
            .unwrap_err();
        assert!(
            matches!(&error, UnpackError::Refused { layer, .. } if layer.ends_with("layer1")),
            "{error}"
        );
        assert!(!place.destination().exists());
    }
}

#[test]
fn symlinks_in_the_destination_are_never_followed_out() {
    let place = Place::new();
    fs::create_dir(place.destination()).unwrap();
    let outside = place.directory.path().join("outside");
    symlink(&outside, place.destination().join("dir")).unwrap();
    symlink("../outside/secret", place.destination().join("file")).unwrap();
    symlink("../outside", place.destination().join("climb")).unwrap();
    let climbing = place.unpack(vec![tar().file("climb/x", b"")]).unwrap_err();
    assert!(
        matches!(&climbing, UnpackError::Refused { fault, .. } if matches!(fault.reason(), Reason::SymlinkEscape { .. }))
    );
    // An absolute one is taken relative to the destination.
    place
        .unpack(vec![
            tar().file("dir/x", b"in").file("file", b"new").dir("climb"),
        ])
        .unwrap();
    assert_eq!(place.read("file"), "new");
    let inside = outside.strip_prefix("/").unwrap().join("x");
    assert_eq!(place.read(inside.to_str().unwrap()), "in");
    assert!(
        place
            .destination()
            .join("climb")
            .symlink_metadata()
            .unwrap()
            .is_dir()
    );
}

#[test]
fn the_destination_is_the_lowest_layer() {
    let place = Place::new();
    let base = tar()
        .dir("d")
        .file("d/1", b"1")
        .file("d/2", b"2")
        .file("moved", b"m")
        .dir("o")
        .file("o/x", b"")
        .file("kept", b"k");
    place.unpack(vec![base]).unwrap();
    symlink("d", place.destination().join("l")).unwrap();
    let before = fs::metadata(place.destination().join("d")).unwrap();
    let upper = tar()
        .file("d/.wh.1", b"")
        .file("l/3", b"3")
        .file("o/.wh..wh..opq", b"")
        .file("o/y", b"")
        .hard("new", "moved")
        .file(".wh.moved", b"")
        .file("kept/.wh.x", b"");
    place.unpack(vec![upper]).unwrap();
    assert_eq!(
        (
            place.read("d/2"),
            place.read("d/3"),
            place.read("new"),
            place.read("kept")
        ),
        ("2".into(), "3".into(), "m".into(), "k".into())
    );
    assert!(!place.has("d/1") && !place.has("o/x") && place.has("o/y") && !place.has("moved"));
    let after = fs::metadata(place.destination().join("d")).unwrap();
    assert_eq!(
        (before.ino(), before.mtime(), before.mtime_nsec()),
        (after.ino(), after.mtime(), after.mtime_nsec())
    );
    let names = fs::read_dir(place.destination()).unwrap().count();
    assert_eq!(names, 5, "nothing of the staging is left");
}

#[test]
fn a_directory_replaced_by_a_layer_is_a_new_one() {
    let place = Place::new();
    place
        .unpack(vec![
            tar()
                .dir("d")
                .file("d/old", b"")
                .dir("d/sub")
                .file("d/sub/x", b""),
        ])
        .unwrap();
    place
        .unpack(vec![
            tar().file(".wh.d", b"").dir("d").file("d/sub", b"file"),
        ])
        .unwrap();
    assert!(!place.has("d/old"));
    assert_eq!(place.read("d/sub"), "file");
}

#[test]
fn nested_destinations_are_made() {
    let place = Place::new();
    let deeper = place.destination().join("a/b");
    let path = place.directory.path().join("layer");
    fs::write(&path, tar().file("x", b"").finish()).unwrap();
    let source = Source::open(&path, place.directory.path(), Limits::default()).unwrap();
    unpack(&deeper, &[source]).unwrap();
    assert!(deeper.join("x").exists());
}
