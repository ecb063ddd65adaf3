//! The store over time: sharing, leases, removal, damage, leftovers.

use std::sync::{Arc, Mutex};

use msb_oci::{Error, Holder, Holders, PullOptions, Reference, Store};

use crate::fake::Fake;
use crate::image::{TestImage, gzip, tar};

fn reference(fake: &Fake, name: &str) -> Reference {
    format!("{}/{name}:1", fake.host()).parse().unwrap()
}

/// Two images that share their first layer.
fn two_images() -> Fake {
    let layer = |name: &str, size: usize| {
        let plain = tar(&[(name, &vec![1; size])]);
        (gzip(&plain), plain)
    };
    let one = TestImage::new(&[layer("base", 50_000), layer("one", 10)]);
    let two = TestImage::new(&[layer("base", 50_000), layer("two", 10)]);
    Fake::start(move |request| {
        if request.path.contains("/one/") {
            one.answer(request)
        } else {
            two.answer(request)
        }
    })
}

#[test]
fn shared_layers_exist_once_and_outlive_one_image() {
    let fake = two_images();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let options = PullOptions::default();
    let one = store
        .pull(&reference(&fake, "one"), &options, &|_| {})
        .unwrap();
    let two = store
        .pull(&reference(&fake, "two"), &options, &|_| {})
        .unwrap();
    assert_eq!(one.layers()[0], two.layers()[0]);
    assert_eq!(store.list().unwrap().len(), 2);

    let removed = store.remove(&reference(&fake, "one")).unwrap();
    assert!(removed.image_removed && removed.bytes_freed > 0);
    assert!(store.get(&reference(&fake, "one")).unwrap().is_none());
    let two = store.get(&reference(&fake, "two")).unwrap().unwrap();
    assert!(two.files().iter().all(|file| file.exists()));

    store.remove(&reference(&fake, "two")).unwrap();
    assert_eq!(
        std::fs::read_dir(directory.path().join("blobs/sha256"))
            .unwrap()
            .count(),
        0
    );
    assert!(matches!(
        store.remove(&reference(&fake, "two")),
        Err(Error::NotInStore { .. })
    ));
}

#[test]
fn lease_keeps_the_image() {
    let fake = two_images();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let image = store
        .pull(&reference(&fake, "one"), &PullOptions::default(), &|_| {})
        .unwrap();
    let lease = image.lease().unwrap();
    assert!(matches!(
        store.remove(&reference(&fake, "one")),
        Err(Error::InUse { .. })
    ));
    assert!(image.files().iter().all(|file| file.exists()));
    drop(lease);
    store.remove(&reference(&fake, "one")).unwrap();
    assert!(matches!(image.lease(), Err(Error::NotInStore { .. })));
}

#[test]
fn an_image_that_somebody_needs_stays_until_it_is_forced_out_or_not_needed() {
    let fake = two_images();
    let directory = tempfile::tempdir().unwrap();
    let needed: Arc<Mutex<Vec<Holder>>> = Arc::default();
    let asked = Arc::clone(&needed);
    let holders = Holders::new(move || asked.lock().unwrap().clone());
    let store = Store::open_held(directory.path(), holders.clone()).unwrap();
    let options = PullOptions::default();
    let (one, two) = (reference(&fake, "one"), reference(&fake, "two"));
    let pull = |name: &Reference| store.pull(name, &options, &|_| {}).unwrap();
    let (first, second) = (pull(&one), pull(&two));
    for image in [&first, &second] {
        needed.lock().unwrap().push(Holder {
            digest: image.digest(),
            name: "sandbox app".into(),
        });
    }
    let error = store.remove(&one).unwrap_err();
    assert!(error.to_string().contains("needed by sandbox app"));
    assert!(error.hint().is_some());
    assert!(store.get(&one).unwrap().is_some());

    // By force; the other one that is needed stays, and its layers.
    assert!(store.remove_held(&one).unwrap().image_removed);
    assert!(store.get_digest(first.digest()).unwrap().is_none());
    assert!(second.files().iter().all(|file| file.exists()));

    // Without a reference it stays as long as it is needed, whoever looks.
    let name = directory.path().join("images/references");
    for entry in std::fs::read_dir(name).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    std::fs::write(directory.path().join("blobs/collect"), "").unwrap();
    Store::open_held(directory.path(), holders).unwrap();
    assert!(second.files().iter().all(|file| file.exists()));
    needed.lock().unwrap().clear();
    assert!(store.collect().unwrap() > 0);
    assert!(store.get_digest(second.digest()).unwrap().is_none());
}

#[test]
fn damage_is_named_and_repaired_by_a_pull() {
    let fake = two_images();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let image = store
        .pull(&reference(&fake, "one"), &PullOptions::default(), &|_| {})
        .unwrap();
    let record = image.root_disk().with_file_name("image.json");
    std::fs::write(&record, "{").unwrap();
    let error = store.get(&reference(&fake, "one")).unwrap_err();
    assert!(error.to_string().contains("image.json"), "{error}");
    assert!(error.hint().is_some());
    store
        .pull(&reference(&fake, "one"), &PullOptions::default(), &|_| {})
        .unwrap();

    // A layer that was deleted by hand.
    std::fs::remove_file(
        directory
            .path()
            .join("blobs/sha256")
            .join(image.layers()[1].hex()),
    )
    .unwrap();
    assert!(store.get(&reference(&fake, "one")).unwrap().is_none());
    let image = store
        .pull(&reference(&fake, "one"), &PullOptions::default(), &|_| {})
        .unwrap();
    assert!(image.files().iter().all(|file| file.exists()));
}

#[test]
fn opening_clears_what_killed_processes_left() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(directory.path()).unwrap());
    let leftover = directory.path().join("blobs/tmp/unfinished");
    std::fs::write(&leftover, "half a layer").unwrap();
    Store::open(directory.path()).unwrap();
    assert!(!leftover.exists());
}

#[test]
fn store_in_a_bad_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(&file).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

#[test]
fn damage_does_not_keep_the_store_from_opening_while_a_collection_is_due() {
    let fake = two_images();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let options = PullOptions::default();
    let one = reference(&fake, "one");
    let image = store.pull(&one, &options, &|_| {}).unwrap();
    let record = image.root_disk().with_file_name("image.json");
    std::fs::write(record, "{").unwrap();
    std::fs::write(directory.path().join("blobs/collect"), "").unwrap();

    let store = Store::open(directory.path()).unwrap();
    assert!(matches!(store.get(&one), Err(Error::Damaged { .. })));
    store.pull(&one, &options, &|_| {}).unwrap();
}
