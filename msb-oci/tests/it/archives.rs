//! Imports: OCI layouts, OCI archives and `docker save`, made by skopeo.

use std::path::Path;

use msb_oci::{Error, Image, PullOptions, Reference, Result, Store};

use crate::image::{gzip, tar};
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
