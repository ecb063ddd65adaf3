use proptest::prelude::*;

use super::reader::Disk;
use super::roundtrip::roundtrip;
use super::{Device, WriteError, write};
use crate::layer::tar_writer::{Header, Tar};
use crate::layer::{Indexer, LayerIndex, Limits};
use crate::tree::Tree;

fn index(tar: &[u8]) -> LayerIndex {
    let mut indexer = Indexer::new(Limits::default());
    indexer.push(tar).unwrap();
    indexer.finish().unwrap()
}

/// Writes the layers' root, compares it with the tree, and returns the disk.
fn disk(layers: &[Vec<u8>]) -> Vec<u8> {
    let indexes: Vec<LayerIndex> = layers.iter().map(|layer| index(layer)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    roundtrip(&indexes, &layers).unwrap()
}

#[test]
fn an_empty_root() {
    let disk = disk(&[]);
    let found = Disk::open(&disk).unwrap().list().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[&b""[..]].links, 2);
}

#[test]
fn everything_at_once() {
    let mut device = Header::new(b"dev", b'4');
    device.octal(329, 8, 259);
    device.octal(337, 8, 0xf_ffff);
    let value = vec![9; 3000];
    let capability = [1u8; 20];
    let xattrs: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.user.big", &value),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.system.posix_acl_access", b"acl"),
        ("SCHILY.xattr.trusted.t", b""),
    ];
    let long = "t/".repeat(1500);
    let lower = Tar::new()
        .dir("d")
        .file("d/empty", b"")
        .file("d/small", b"hello")
        .file("d/blocks", &[3; 1536])
        .pax(&[("mtime", b"-5.25"), ("uid", b"70000")])
        .file("d/big", &vec![4; 100_000])
        .pax(&[("linkpath", long.as_bytes())])
        .symlink("long", "x")
        .symlink("block", &"b".repeat(99))
        .header(device, b"")
        .header(Header::new(b"pipe", b'6'), b"")
        .pax(&xattrs)
        .file("attributes", b"x")
        .hard("again", "attributes")
        .file("!first", b"");
    let upper = Tar::new()
        .file("d/new", b"upper")
        .file("d/.wh.small", b"")
        .hard("third", "again");
    let disk = disk(&[lower.finish(), upper.finish()]);
    let disk = Disk::open(&disk).unwrap();
    let found = disk.list().unwrap();
    let device = &found[&b"dev"[..]];
    assert_eq!(device.device, 0xff | 259 << 8 | 0xfff << 20);
    let attributes = &found[&b"third"[..]];
    assert_eq!((attributes.links, attributes.xattrs.len()), (3, 4));
    assert_eq!(attributes.xattrs[&b"user.big"[..]], value);
    let link = &found[&b"long"[..]];
    assert_eq!(disk.read(link, 0, link.size).unwrap(), long.as_bytes());
    assert_eq!(found[&b"d/big"[..]].mtime, (-6, 750_000_000));
    assert_eq!(found[&b"d/big"[..]].uid, 70_000);
    assert!(!found.contains_key(&b"d/small"[..]));
}

#[test]
fn symlinks_of_every_length() {
    let layer = (1..1100).step_by(7).fold(Tar::new(), |tar, length| {
        let target = "x".repeat(length);
        tar.pax(&[("linkpath", target.as_bytes())])
            .symlink(&format!("l{length}"), "x")
    });
    disk(&[layer.finish()]);
}

#[test]
fn large_directories() {
    let layer = (0..20_000).fold(Tar::new(), |tar, number| {
        tar.file(&format!("d/{number:x}-{}", "n".repeat(number % 80)), b"")
    });
    let disk = disk(&[layer.finish()]);
    assert_eq!(Disk::open(&disk).unwrap().list().unwrap().len(), 20_002);
}

#[test]
fn directories_around_a_block() {
    // Sizes of a directory's last block on both sides of what fits inline.
    for width in 1..40 {
        let layer = (0..40).fold(Tar::new(), |tar, number| {
            let name = format!("d{number}/{}", "n".repeat(width * 6 + number % 7));
            tar.file(&name, b"").file(&(name + "x"), b"")
        });
        disk(&[layer.finish()]);
    }
}

#[test]
fn sparse_files_have_holes() {
    let sparse = |size: &str, map: &str, stored: usize| {
        let records: [(&str, &[u8]); 2] = [
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        disk(&[Tar::new()
            .pax(&records)
            .file("s", &vec![5; stored])
            .finish()])
    };
    sparse("8192", "512,512,4096,512", 1024);
    sparse("1000000", "4096,4096,65536,4096", 8192);
    sparse("5000", "4096,904", 904);
    sparse("5000", "", 0);
    sparse("1048576", "0,4096,1048576,0", 4096);
}

#[test]
fn a_huge_hole_costs_nothing_but_a_finely_mapped_one_is_refused() {
    let layer = |map: &str, stored: usize| {
        let records: [(&str, &[u8]); 2] = [
            ("GNU.sparse.size", b"1099511627776"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        Tar::new()
            .pax(&records)
            .file("s", &vec![1; stored])
            .finish()
    };
    let written = |layer: &[u8]| {
        let index = index(layer);
        let tree = Tree::merge([&index]).unwrap();
        write(&tree, &[Device::new(index.tar_bytes())], &mut Vec::new()).map(|info| info.bytes)
    };
    assert_eq!(written(&layer("", 0)).unwrap(), 4096);
    let refusal = written(&layer("512,512", 512)).unwrap_err();
    assert!(matches!(refusal, WriteError::TooSparse { layer: 0, path } if path == "s"));
}

#[test]
fn data_outside_of_its_layer_is_refused() {
    let index = index(&Tar::new().file("d/f", b"x").finish());
    let tree = Tree::merge([&index]).unwrap();
    for devices in [&[][..], &[Device::new(512)]] {
        let refusal = write(&tree, devices, &mut Vec::new()).unwrap_err();
        assert!(matches!(refusal, WriteError::NoDevice { layer: 0, path } if path == "d/f"));
    }
}

/// An entry of a random layer.
#[derive(Clone, Debug)]
enum Random {
    Dir(String),
    File(String, usize),
    Symlink(String, String),
    Hard(String, String),
    Whiteout(String),
}

fn random_entry() -> impl Strategy<Value = Random> {
    let path = || "[ab]{1,3}(/[ab]{1,2}){0,3}";
    prop_oneof![
        2 => path().prop_map(Random::Dir),
        4 => (path(), 0usize..3000).prop_map(|(path, size)| Random::File(path, size)),
        1 => (path(), path()).prop_map(|(path, target)| Random::Symlink(path, target)),
        1 => (path(), path()).prop_map(|(path, target)| Random::Hard(path, target)),
        1 => path().prop_map(|path| match path.rsplit_once('/') {
            Some((parent, name)) => Random::Whiteout(format!("{parent}/.wh.{name}")),
            None => Random::Whiteout(format!(".wh.{path}")),
        }),
    ]
}

/// The tar of as many of the entries as the layers below allow.
fn applicable(below: &[LayerIndex], entries: &[Random]) -> Vec<u8> {
    let mut kept = Tar::new();
    for entry in entries {
        let longer = match entry {
            Random::Dir(path) => kept.clone().dir(path),
            Random::File(path, size) => kept.clone().file(path, &vec![*size as u8; *size]),
            Random::Symlink(path, target) => kept.clone().symlink(path, target),
            Random::Hard(path, target) => kept.clone().hard(path, target),
            Random::Whiteout(path) => kept.clone().file(path, b""),
        };
        let top = index(&longer.clone().finish());
        if Tree::merge(below.iter().chain([&top])).is_ok() {
            kept = longer;
        }
    }
    kept.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_read_back_equal(layers in prop::collection::vec(prop::collection::vec(random_entry(), 0..25), 1..4)) {
        let (mut tars, mut indexes) = (Vec::new(), Vec::new());
        for layer in &layers {
            let tar = applicable(&indexes, layer);
            indexes.push(index(&tar));
            tars.push(tar);
        }
        let slices: Vec<&[u8]> = tars.iter().map(Vec::as_slice).collect();
        prop_assert!(roundtrip(&indexes, &slices).is_ok());
    }
}
