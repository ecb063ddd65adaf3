//! Imports: OCI layouts, OCI archives and `docker save`, made by skopeo.

use std::path::Path;
use std::sync::Mutex;

use msb_oci::{Error, Image, PullEvent, PullOptions, Reference, Result, Store};

use crate::image::{TestImage, digest, gzip, tar};
use crate::real::{layout, run};

fn import(path: &Path, name: Option<&str>) -> Result<Image> {
    let directory = tempfile::tempdir().unwrap();
    let reference: Option<Reference> = name.map(|name| name.parse().unwrap());
    Store::open(directory.path())?.import(
        path,
        reference.as_ref(),
        &PullOptions::default(),
        &|_| {},
    )
}

#[test]
fn every_layout_gives_the_same_layers() {
    let directory = tempfile::tempdir().unwrap();
    let image = layout(directory.path());
    let source = format!("oci:{image}");
    let layout = directory.path().join("oci");
    let oci = directory.path().join("oci.tar");
    let docker = directory.path().join("docker.tar");
    run(
        "skopeo",
        &[
            "skopeo",
            "copy",
            &source,
            &format!("oci-archive:{}:demo:1", oci.display()),
        ],
    );
    run(
        "skopeo",
        &[
            "skopeo",
            "copy",
            &source,
            &format!("docker-archive:{}:demo:1", docker.display()),
        ],
    );
    let wanted = import(&layout, Some("demo")).unwrap();
    assert_eq!(wanted.layers().len(), 2);
    assert_eq!(
        import(&oci, Some("demo")).unwrap().layers(),
        wanted.layers()
    );
    let named = import(&docker, None).unwrap();
    assert_eq!(named.references()[0].familiar(), "demo:1");
    assert_eq!(named.layers(), wanted.layers());
    let packed = directory.path().join("docker.tar.gz");
    std::fs::write(&packed, gzip(&std::fs::read(&docker).unwrap())).unwrap();
    assert_eq!(import(&packed, None).unwrap().digest(), named.digest());
}

#[test]
fn what_is_no_archive() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for content in [
        tar(&[("a", b"x")]),
        tar(&[("../index.json", b"{}")]),
        b"hello".repeat(500),
        tar(&[("manifest.json", b"[]")]),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = import(&path, Some("a")).unwrap_err();
        assert!(matches!(error, Error::NotAnArchive { .. }), "{error}");
    }
    assert!(matches!(
        import(directory.path(), Some("a")).unwrap_err(),
        Error::NotAnArchive { .. }
    ));
}

#[test]
fn layout_whose_blob_is_a_link_out_of_it() {
    let directory = tempfile::tempdir().unwrap();
    layout(directory.path());
    let root = directory.path().join("oci");
    // Every blob is where it was, but through a link that leaves the layout.
    let blobs = root.join("blobs/sha256");
    let outside = directory.path().join("outside");
    std::fs::rename(&blobs, &outside).unwrap();
    std::fs::create_dir(&blobs).unwrap();
    for entry in std::fs::read_dir(&outside).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), blobs.join(entry.file_name())).unwrap();
    }
    assert!(import(&root, Some("demo")).is_err());
}

/// A store with two images that share their layers.
fn filled(directory: &Path) -> (Store, [Reference; 2]) {
    let image = layout(directory);
    let source = image.trim_end_matches(":demo");
    let store = Store::open(directory.join("store")).unwrap();
    let names = ["localhost:5000/demo:1", "docker.io/library/other:2"];
    let names = names.map(|name| name.parse::<Reference>().unwrap());
    for name in &names {
        let options = PullOptions::default();
        store
            .import(Path::new(source), Some(name), &options, &|_| {})
            .unwrap();
    }
    (store, names)
}

#[test]
fn what_is_saved_is_loaded_by_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let (store, names) = filled(directory.path());
    let saved = directory.path().join("saved.tar");
    let save = |names: &[Reference]| {
        let mut out = Vec::new();
        store.save(names, &mut out).unwrap();
        out
    };
    let both = save(&names);
    assert_eq!(both, save(&names), "it does not depend on the moment");
    std::fs::write(&saved, &both).unwrap();
    let original = store.get(&names[0]).unwrap().unwrap();

    // By this store, from the file and as a stream, compressed too.
    let other = Store::open(directory.path().join("other")).unwrap();
    let options = PullOptions::default();
    let loaded = other.load(&saved, &options, &|_| {}).unwrap();
    assert_eq!(loaded.len(), 2);
    for image in &loaded {
        assert_eq!(image.layers(), original.layers());
        assert_eq!(image.config_digest(), original.config_digest());
        assert_eq!(image.config(), original.config());
    }
    let mut all: Vec<_> = other.list().unwrap()[0].references().to_vec();
    all.sort();
    let mut wanted = names.to_vec();
    wanted.sort();
    assert_eq!(all, wanted);
    let third = Store::open(directory.path().join("third")).unwrap();
    let stream = third.load_from(&mut gzip(&both).as_slice(), &options, &|_| {});
    assert_eq!(stream.unwrap().len(), 2);

    // By skopeo, which reads it as either format, and by umoci.
    std::fs::write(&saved, save(&names[..1])).unwrap();
    let place = saved.display();
    for source in [
        format!("oci-archive:{place}"),
        format!("docker-archive:{place}"),
    ] {
        let copy = directory.path().join(source.split(':').next().unwrap());
        let target = format!("oci:{}:copy", copy.display());
        run("skopeo", &["skopeo", "copy", &source, &target]);
        let again = import(&copy, Some("copy")).unwrap();
        assert_eq!(again.layers(), original.layers());
        assert_eq!(again.config(), original.config());
        let bundle = copy.join("bundle");
        let image = format!("{}:copy", copy.display());
        let words = ["umoci", "unpack", "--rootless", "--image", &image];
        run("umoci", &[&words[..], &[bundle.to_str().unwrap()]].concat());
        let content = std::fs::read_to_string(bundle.join("rootfs/second")).unwrap();
        assert_eq!(content, "second".repeat(1000));
    }
}

#[test]
fn what_docker_saves_is_loaded_with_all_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let source = format!("oci:{}", layout(directory.path()));
    let archive = directory.path().join("docker.tar");
    let place = format!("docker-archive:{}:demo:1", archive.display());
    let more = ["--additional-tag", "docker.io/library/demo:latest"];
    let words = ["skopeo", "copy", more[0], more[1], &source, &place];
    run("skopeo", &words);
    let store = Store::open(directory.path().join("store")).unwrap();
    let options = PullOptions::default();
    let loaded = store.load(&archive, &options, &|_| {}).unwrap();
    assert_eq!(loaded.len(), 2);
    assert_eq!(store.list().unwrap()[0].references().len(), 2);
}

#[test]
fn a_damaged_layer_is_not_saved() {
    let directory = tempfile::tempdir().unwrap();
    let (store, names) = filled(directory.path());
    let image = store.get(&names[0]).unwrap().unwrap();
    let layer = image.files().pop().unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let error = store.save(&names, &mut std::io::sink()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let missing = "none:1".parse().unwrap();
    let error = store.save(&[missing], &mut std::io::sink()).unwrap_err();
    assert!(matches!(error, Error::NotInStore { .. }), "{error}");
}

#[test]
fn a_stream_without_end_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut options = PullOptions::default();
    options.limits.image_bytes = 1 << 20;
    let error = store.load_from(&mut std::io::repeat(0), &options, &|_| {});
    assert!(matches!(error.unwrap_err(), Error::TooLarge { .. }));
    let left = std::fs::read_dir(directory.path().join("blobs/tmp")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn what_nobody_needs_is_told_with_what_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    let (store, names) = filled(directory.path());
    let unused = store.unused().unwrap();
    assert_eq!(unused.images.len(), 1);
    assert_eq!(unused.images[0].references().len(), 2);
    let lease = unused.images[0].lease().unwrap();
    assert!(store.unused().unwrap().images.is_empty());
    drop(lease);
    store.remove(&names[0]).unwrap();
    let removed = store.remove(&names[1]).unwrap();
    // What is written about an image is freed, too.
    assert!(
        unused.bytes > 0 && removed.bytes_freed >= unused.bytes,
        "{removed:?}"
    );
    assert!(removed.bytes_freed < unused.bytes + 100_000, "{removed:?}");
}

/// An OCI layout of images, each with the annotations of its entry in the index.
fn layout_of(directory: &Path, images: &[(&TestImage, &str)]) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let write = |digest: &str, content: &[u8]| {
        let name = digest.trim_start_matches("sha256:");
        std::fs::write(blobs.join(name), content).unwrap();
    };
    let entry = |(image, annotations): &(&TestImage, &str)| {
        for (digest, content) in &image.blobs {
            write(digest, content);
        }
        let (manifest, size) = (digest(image.manifest.as_bytes()), image.manifest.len());
        write(&manifest, image.manifest.as_bytes());
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{size},"annotations":{{{annotations}}}}}"#
        )
    };
    let entries: Vec<String> = images.iter().map(entry).collect();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    );
    std::fs::write(directory.join("index.json"), index).unwrap();
    std::fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[test]
fn images_of_one_archive_have_one_budget() {
    let directory = tempfile::tempdir().unwrap();
    let shared = tar(&[("shared", &[7; 300 << 10])]);
    let image = |name: &str| {
        let own = tar(&[(name, &vec![0; 300 << 10])]);
        TestImage::new(&[(gzip(&shared), shared.clone()), (gzip(&own), own)])
    };
    let images: Vec<TestImage> = ["a", "b", "c"].map(image).into();
    let name = |at: usize| format!(r#""{CONTAINERD_NAME}":"localhost/{at}:1""#);
    let names: Vec<String> = (0..3).map(name).collect();
    let entries = images.iter().zip(&names);
    let entries: Vec<_> = entries.map(|(image, name)| (image, &**name)).collect();
    layout_of(directory.path(), &entries);
    let load = |kib: u64| {
        let store = tempfile::tempdir().unwrap();
        let mut options = PullOptions::default();
        options.limits.image_bytes = kib << 10;
        let store = Store::open(store.path()).unwrap();
        store.load(directory.path(), &options, &|_| {})
    };
    // What they share costs once.
    assert_eq!(load(1300).unwrap().len(), 3);
    let error = load(1100).unwrap_err().to_string();
    assert!(error.contains("entry \"c\""), "{error}");
}

#[test]
fn what_is_made_of_shared_layers_costs_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..2000).map(|at| format!("{at:090}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b""[..])).collect();
    let shared = tar(&files);
    let image = |name: &str| {
        let own = tar(&[(name, b"")]);
        TestImage::new(&[(gzip(&shared), shared.clone()), (gzip(&own), own)])
    };
    let images: Vec<TestImage> = ["a", "b", "c", "d"].map(image).into();
    let name = |at: usize| format!(r#""{CONTAINERD_NAME}":"localhost/{at}:1""#);
    let names: Vec<String> = (0..4).map(name).collect();
    let entries = images.iter().zip(&names);
    let entries: Vec<_> = entries.map(|(image, name)| (image, &**name)).collect();
    layout_of(directory.path(), &entries);
    let load = |bytes: usize| {
        let store = tempfile::tempdir().unwrap();
        let mut options = PullOptions::default();
        options.limits.image_bytes = bytes as u64;
        let store = Store::open(store.path()).unwrap();
        store.load(directory.path(), &options, &|_| {})
    };
    assert_eq!(load(shared.len() + (4 << 20)).unwrap().len(), 4);
    // Room for all layers, and for what is written about two images or so.
    let error = load(shared.len() + (1 << 20)).unwrap_err().to_string();
    assert!(error.contains("the root file system"), "{error}");
}

#[test]
fn images_without_a_name_of_their_own_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let [named, tagged, nameless] =
        ["named", "tagged", "nameless"].map(|name| TestImage::of(&[(name, b"x")]));
    layout_of(
        directory.path(),
        &[
            (
                &named,
                &format!(r#""{CONTAINERD_NAME}":"tools","{REF_NAME}":"latest""#),
            ),
            (&tagged, &format!(r#""{REF_NAME}":"v1""#)),
            (&nameless, ""),
        ],
    );
    let store = tempfile::tempdir().unwrap();
    let store = Store::open(store.path()).unwrap();
    let told = Mutex::new(Vec::new());
    let note = |event| {
        if let PullEvent::LeftOut { digest, tag } = event {
            told.lock().unwrap().push((digest.to_string(), tag));
        }
    };
    let loaded = store.load(directory.path(), &PullOptions::default(), &note);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.len(), 1);
    let name = loaded[0].references()[0].to_string();
    assert_eq!(name, "docker.io/library/tools:latest");
    let digest = |image: &TestImage| digest(image.manifest.as_bytes());
    assert_eq!(
        told.into_inner().unwrap(),
        [
            (digest(&tagged), Some("v1".to_owned())),
            (digest(&nameless), None)
        ]
    );
    // Where nothing has a name, one has to be given.
    layout_of(
        directory.path(),
        &[(&tagged, &format!(r#""{REF_NAME}":"v1""#))],
    );
    let error = store.load(directory.path(), &PullOptions::default(), &|_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("give it a name"), "{error}");
}
