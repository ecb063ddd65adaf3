//! Registries and images that mean harm: refused, with nothing left behind.

use std::path::Path;
use std::time::Duration;

use msb_oci::{Credentials, Error, Limits, PullOptions, Store, Timeouts};

use crate::fake::{Fake, Reply};
use crate::image::{TestImage, digest, gzip, tar};

/// Files below a directory, locks and marks aside.
fn leftovers(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["blobs/sha256", "blobs/tmp", "images", "images/references"] {
        for entry in std::fs::read_dir(root.join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name != "references" {
                found.push(format!("{directory}/{name}"));
            }
        }
    }
    found
}

/// Pulls from the fake, expects a refusal and a clean store.
fn refused(fake: &Fake, options: &PullOptions) -> Error {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let reference = format!("{}/app:1", fake.host()).parse().unwrap();
    let error = store.pull(&reference, options, &|_| {}).unwrap_err();
    assert_eq!(
        leftovers(directory.path()),
        Vec::<String>::new(),
        "after: {error}"
    );
    assert!(store.list().unwrap().is_empty());
    error
}

fn refused_image(image: TestImage) -> Error {
    let fake = Fake::start(move |request| image.answer(request));
    refused(&fake, &PullOptions::default())
}

#[test]
fn layer_with_a_wrong_digest() {
    let mut image = TestImage::of(&[("a", b"good")]);
    let mut evil = gzip(&tar(&[("a", b"evil")]));
    let layer = image.layers[0].clone();
    evil.resize(image.blobs[&layer].len(), 0);
    image.blobs.insert(layer, evil);
    let error = refused_image(image);
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    assert!(error.to_string().contains("layer 1 of 1"), "{error}");
}

#[test]
fn layer_with_a_wrong_diff_id() {
    let error = refused_image(TestImage::new(&[(
        gzip(&tar(&[("a", b"x")])),
        tar(&[("b", b"y")]),
    )]));
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    assert!(
        error.to_string().contains("uncompressed layer 1 of 1"),
        "{error}"
    );
}

#[test]
fn layer_that_is_longer_than_it_says() {
    let image = TestImage::of(&[("a", b"x")]);
    let fake = Fake::start(move |request| {
        let mut reply = image.answer(request);
        if request.path.contains(&image.layers[0]) {
            reply.body.resize(10 << 20, 0);
        }
        reply
    });
    let error = refused(&fake, &PullOptions::default());
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
}

#[test]
fn bombs_of_one_layer_and_of_several() {
    let limits = Limits {
        image_bytes: 1 << 20,
        parallel: 1,
        ..Limits::default()
    };
    let options = PullOptions {
        limits,
        ..PullOptions::default()
    };
    let image = TestImage::of(&[("zeros", &vec![0; 8 << 20])]);
    let fake = Fake::start(move |request| image.answer(request));
    let error = refused(&fake, &options);
    assert!(error.to_string().contains("zeros"), "{error}");

    let layers = ["a", "b"].map(|name| tar(&[(name, &vec![0; 700 << 10])]));
    let image = TestImage::new(&layers.map(|plain| (gzip(&plain), plain)));
    let fake = Fake::start(move |request| image.answer(request));
    let text = refused(&fake, &options).to_string();
    assert!(
        text.contains("layer 2 of 2") && text.contains("entry \"b\""),
        "{text}"
    );
}

/// A tar whose first header has other bytes at `at`.
fn changed(tar: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    tar[at..at + bytes.len()].copy_from_slice(bytes);
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|&byte| u32::from(byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar
}

/// A layer of one file of zeros: header and gzip made by hand, as the zeros
/// are too many to be held.
fn bomb(bytes: u64) -> TestImage {
    let size = format!("{bytes:011o}\0");
    let header = changed(&tar(&[("boom", b"")])[..512], 124, size.as_bytes());
    let mut packed = gzip(&header);
    let zeros = gzip(&vec![0; 16 << 20]);
    for _ in 0..bytes.div_ceil(16 << 20) {
        packed.extend_from_slice(&zeros);
    }
    TestImage::new(&[(packed, header)])
}

#[test]
fn a_bomb_is_told_by_its_expansion() {
    let error = refused_image(bomb(5 << 30));
    let text = error.to_string();
    assert!(
        text.contains("layer 1 of 1") && text.contains("\"boom\": more than"),
        "{text}"
    );
    assert!(error.hint().is_some());
}

#[test]
fn zeros_take_no_space_in_the_store() {
    use std::os::unix::fs::MetadataExt;
    let image = TestImage::of(&[("zeros", &vec![0; 8 << 20]), ("end", b"x")]);
    let fake = Fake::start(move |request| image.answer(request));
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let reference = format!("{}/app:1", fake.host()).parse().unwrap();
    let image = store
        .pull(&reference, &PullOptions::default(), &|_| {})
        .unwrap();
    let blob = directory
        .path()
        .join("blobs/sha256")
        .join(image.layers()[0].hex());
    let metadata = std::fs::metadata(blob).unwrap();
    assert!(metadata.len() > 8 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
}

#[test]
fn sparse_file_that_the_root_cannot_hold() {
    let records = b"30 GNU.sparse.size=9999999999\n26 GNU.sparse.map=512,512\n";
    let mut layer = changed(&tar(&[("pax", records)]), 156, b"x")[..1024].to_vec();
    layer.extend(tar(&[("fine", &[1; 512])]));
    let text = refused_image(TestImage::new(&[(gzip(&layer), layer)])).to_string();
    assert!(
        text.contains("layer 1 of 1") && text.contains("\"fine\""),
        "{text}"
    );
}

#[test]
fn entry_that_climbs_out() {
    let error = refused_image(TestImage::of(&[("../evil", b"x")]));
    assert!(matches!(error, Error::Layer { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("layer 1 of 1") && text.contains("../evil"),
        "{text}"
    );
}

#[test]
fn layer_that_does_not_inflate() {
    let mut packed = gzip(&tar(&[("a", &[1; 9000])]));
    let middle = packed.len() / 2;
    packed.truncate(middle);
    let error = refused_image(TestImage::new(&[(packed, tar(&[("a", &[1; 9000])]))]));
    assert!(matches!(error, Error::Decompress { .. }), "{error}");
}

#[test]
fn documents_that_are_not_what_was_asked_for() {
    let image = TestImage::of(&[("a", b"x")]);
    let pinned = digest(b"something else");
    let other = image.clone();
    let fake = Fake::start(move |request| other.answer(request));
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let reference = format!("{}/app@{pinned}", fake.host()).parse().unwrap();
    let error = store
        .pull(&reference, &PullOptions::default(), &|_| {})
        .unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");

    let mut forged = image.clone();
    let config = digest(image.config.as_bytes());
    forged
        .blobs
        .insert(config, image.config.replace("sh", "su").into_bytes());
    assert!(matches!(refused_image(forged), Error::WrongDigest { .. }));

    let fake = Fake::start(|_| Reply::ok(vec![b' '; 5 << 20]));
    assert!(matches!(
        refused(&fake, &PullOptions::default()),
        Error::TooLarge { .. }
    ));
}

#[test]
fn credentials_stay_with_their_host() {
    let image = TestImage::of(&[("a", b"x")]);
    let layer = image.layers[0].clone();
    let mirror = image.clone();
    let elsewhere = Fake::start(move |request| mirror.answer(request));
    let target = format!("http://{}/v2/app/blobs/{layer}", elsewhere.host());
    let fake = Fake::start(move |request| match request.header("authorization") {
        None => Reply::new(401, "").with("WWW-Authenticate: Basic realm=\"r\""),
        Some(_) if request.path.contains(&layer) => Reply::redirect(&target),
        Some(_) => image.answer(request),
    });
    let credentials = Credentials::Basic {
        user: "user".to_owned(),
        password: "pass".to_owned(),
    };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let reference = format!("{}/app:1", fake.host()).parse().unwrap();
    store
        .pull(
            &reference,
            &PullOptions {
                credentials,
                ..PullOptions::default()
            },
            &|_| {},
        )
        .unwrap();
    assert_eq!(elsewhere.requests().len(), 1);
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[test]
fn redirects_to_where_no_registry_belongs() {
    for target in [
        "http://169.254.169.254/latest/meta-data",
        "https://[fd00:ec2::254]/",
        "http://10.0.0.1/x",
        "http://user@127.0.0.1/",
        "file:///etc/passwd",
        "not an address",
    ] {
        let fake = Fake::start(move |_| Reply::redirect(target));
        let error = refused(&fake, &PullOptions::default());
        assert!(matches!(error, Error::Redirect { .. }), "{target}: {error}");
    }
}

#[test]
fn redirects_without_end() {
    let fake = Fake::start(|request| Reply::redirect(&request.path));
    let error = refused(&fake, &PullOptions::default());
    assert!(error.to_string().contains("redirects too often"), "{error}");
    assert!(fake.requests().len() < 20);
}

#[test]
fn token_service_in_the_users_network() {
    for realm in [
        "http://169.254.169.254/token",
        "https://169.254.169.254/token",
        "ftp://a/",
    ] {
        let fake = Fake::start(move |_| {
            Reply::new(401, "").with(format!(
                "WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\""
            ))
        });
        let credentials = Credentials::Basic {
            user: "user".to_owned(),
            password: "pass".to_owned(),
        };
        let error = refused(
            &fake,
            &PullOptions {
                credentials,
                ..PullOptions::default()
            },
        );
        assert!(
            matches!(error, Error::Redirect { .. } | Error::Registry { .. }),
            "{realm}: {error}"
        );
    }
}

#[test]
fn messages_are_fit_for_a_terminal() {
    let fake =
        Fake::start(|_| Reply::new(404, "{\"errors\":[{\"message\":\"a\\u001b[31mb\\n\"}]}"));
    let text = refused(&fake, &PullOptions::default()).to_string();
    assert!(text.ends_with("a[31mb"), "{text:?}");
}

/// A registry that sends a byte at a time never lets a single read wait.
#[test]
fn a_trickle_is_given_up() {
    let fake = Fake::start(|_| Reply::ok(vec![b' '; 10_000]).trickling());
    let timeouts = Timeouts {
        idle: Duration::from_secs(1),
        ..Timeouts::default()
    };
    let options = PullOptions {
        timeouts,
        ..PullOptions::default()
    };
    let text = refused(&fake, &options).to_string();
    assert!(text.contains("less than 1024 bytes per second"), "{text}");
    assert_eq!(fake.requests().len(), 1);
}

#[test]
fn a_transfer_that_ends_after_each_byte_is_given_up() {
    let image = TestImage::of(&[("a", &[1; 100])]);
    let layer = image.layers[0].clone();
    let fake = Fake::start(move |request| {
        let mut reply = image.answer(request);
        if request.path.contains(&layer) {
            let start = request
                .header("range")
                .map_or(0, |range| range[6..range.len() - 1].parse().unwrap());
            reply.length = Some((reply.body.len() - start) as u64);
            reply.body = vec![reply.body[start]];
            if start > 0 {
                reply.status = 206;
                reply = reply.with(format!("Content-Range: bytes {start}-200/201"));
            }
        }
        reply
    });
    let error = refused(&fake, &PullOptions::default());
    assert!(matches!(error, Error::Registry { .. }), "{error}");
    assert_eq!(fake.count("blobs"), 6);
}
