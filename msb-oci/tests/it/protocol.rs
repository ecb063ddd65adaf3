//! What the registry protocol asks of an honest client.

use std::sync::Mutex;

use msb_oci::{
    Credentials, Digest, Error, Image, PullEvent, PullOptions, PullPolicy, Reference, Result, Store,
};

use crate::fake::{Fake, Reply};
use crate::image::{TestImage, digest, gzip, tar, zstd};

fn reference(fake: &Fake) -> Reference {
    format!("{}/app:1", fake.host()).parse().unwrap()
}

fn pull_with(fake: &Fake, options: &PullOptions) -> Result<Image> {
    let directory = tempfile::tempdir().unwrap();
    Store::open(directory.path())?.pull(&reference(fake), options, &|_| {})
}

#[test]
fn layers_of_every_compression() {
    let plain: Vec<Vec<u8>> = (0..3)
        .map(|n| tar(&[(&*format!("file{n}"), &[n; 3000])]))
        .collect();
    let image = TestImage::new(&[
        (gzip(&plain[0]), plain[0].clone()),
        (zstd(&plain[1]), plain[1].clone()),
        (plain[2].clone(), plain[2].clone()),
    ]);
    let fake = Fake::start(move |request| image.answer(request));
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pulled = store
        .pull(&reference(&fake), &PullOptions::default(), &|_| {})
        .unwrap();
    assert_eq!(pulled.config().cmd, ["sh"]);
    for (layer, plain) in pulled.layers().iter().zip(&plain) {
        let stored =
            std::fs::read(directory.path().join("blobs/sha256").join(layer.hex())).unwrap();
        assert_eq!((&stored, *layer), (plain, Digest::of(plain)));
    }
    let descriptor = std::fs::read_to_string(pulled.root_disk()).unwrap();
    assert_eq!(
        descriptor
            .lines()
            .filter(|line| line.starts_with("RW "))
            .count(),
        4,
        "{descriptor}"
    );
    assert!(pulled.files().iter().all(|file| file.exists()));
}

#[test]
fn what_is_there_is_not_transferred_again() {
    let image = TestImage::of(&[("a", b"content")]);
    let layer = image.layers[0].clone();
    let fake = Fake::start(move |request| image.answer(request));
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let options = PullOptions::default();
    store.pull(&reference(&fake), &options, &|_| {}).unwrap();
    let requests = fake.requests().len();
    store.pull(&reference(&fake), &options, &|_| {}).unwrap();
    assert_eq!(fake.requests().len(), requests);
    let events = Mutex::new(Vec::new());
    let always = PullOptions {
        policy: PullPolicy::Always,
        ..options
    };
    store
        .pull(&reference(&fake), &always, &|event| {
            events.lock().unwrap().push(event);
        })
        .unwrap();
    assert_eq!(fake.count(&layer), 1);
    assert!(
        events
            .lock()
            .unwrap()
            .contains(&PullEvent::LayerExists { layer: 0 })
    );
}

#[test]
fn two_pulls_at_once_share_the_transfer() {
    let image = TestImage::of(&[("a", &[7; 100_000])]);
    let layer = image.layers[0].clone();
    let fake = Fake::start(move |request| image.answer(request));
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                store
                    .pull(&reference(&fake), &PullOptions::default(), &|_| {})
                    .unwrap()
            });
        }
    });
    assert_eq!(fake.count(&layer), 1);
}

#[test]
fn broken_transfers_are_resumed() {
    let noise: Vec<u8> = (0..400_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for honours_range in [true, false] {
        let image = TestImage::of(&[("noise", &noise)]);
        let layer = image.layers[0].clone();
        let first = Mutex::new(true);
        let fake = Fake::start(move |request| {
            let whole = image.answer(request);
            if !request.path.contains(&image.layers[0]) {
                return whole;
            }
            let total = whole.body.len();
            if std::mem::take(&mut *first.lock().unwrap()) {
                let length = Some(total as u64);
                return Reply {
                    length,
                    body: whole.body[..total / 2].to_vec(),
                    ..whole
                };
            }
            match request.header("range").filter(|_| honours_range) {
                Some(range) => {
                    let from: usize = range
                        .strip_prefix("bytes=")
                        .unwrap()
                        .trim_end_matches('-')
                        .parse()
                        .unwrap();
                    let header = format!("Content-Range: bytes {from}-{}/{total}", total - 1);
                    Reply::new(206, &whole.body[from..]).with(header)
                }
                None => whole,
            }
        });
        pull_with(&fake, &PullOptions::default()).unwrap();
        let asked: Vec<_> = fake
            .requests()
            .into_iter()
            .filter(|request| request.path.contains(&layer))
            .collect();
        assert_eq!(asked.len(), 2);
        assert!(asked[1].header("range").is_some());
    }
}

#[test]
fn token_is_fetched_with_the_credentials_and_sent() {
    let image = TestImage::of(&[("a", b"x")]);
    let fake = Fake::start(move |request| {
        if request.path.starts_with("/token?") {
            assert_eq!(request.header("authorization"), Some("Basic dXNlcjpwYXNz"));
            assert!(
                request.path.contains("scope=repository%3Aapp%3Apull"),
                "{}",
                request.path
            );
            assert!(request.path.contains("service=us"), "{}", request.path);
            return Reply::ok(r#"{"token":"abc"}"#);
        }
        if request.header("authorization") == Some("Bearer abc") {
            return image.answer(request);
        }
        let host = request.header("host").unwrap();
        Reply::new(401, "").with(format!(
            r#"WWW-Authenticate: Bearer realm="http://{host}/token",service="us""#
        ))
    });
    let credentials = Credentials::Basic {
        user: "user".to_owned(),
        password: "pass".to_owned(),
    };
    pull_with(
        &fake,
        &PullOptions {
            credentials,
            ..PullOptions::default()
        },
    )
    .unwrap();
    assert_eq!(fake.count("/token"), 1);
}

#[test]
fn basic_credentials_from_docker_config() {
    let image = TestImage::of(&[("a", b"x")]);
    let fake = Fake::start(move |request| match request.header("authorization") {
        Some("Basic dXNlcjpwYXNz") => image.answer(request),
        _ => Reply::new(401, r#"{"errors":[{"message":"who are you"}]}"#)
            .with("WWW-Authenticate: Basic realm=\"r\""),
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let json = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#,
        fake.host()
    );
    std::fs::write(&path, json).unwrap();
    pull_with(
        &fake,
        &PullOptions {
            credentials: Credentials::DockerConfig(path),
            ..PullOptions::default()
        },
    )
    .unwrap();

    let error = pull_with(&fake, &PullOptions::default()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Denied {
                authenticated: false,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("who are you"));
    assert!(error.hint().unwrap().contains("docker login"));
}

#[test]
fn index_leads_to_the_platform() {
    let image = TestImage::of(&[("a", b"x")]);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[
        {{"digest":"{0}","size":1,"platform":{{"os":"linux","architecture":"arm64"}}}},
        {{"digest":"{1}","size":{2},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        digest(b"arm"),
        digest(image.manifest.as_bytes()),
        image.manifest.len()
    );
    let wanted = Digest::of(image.manifest.as_bytes());
    let fake = Fake::start(
        move |request| match request.path.ends_with("/manifests/1") {
            true => Reply::ok(index.clone()),
            false => image.answer(request),
        },
    );
    assert_eq!(
        pull_with(&fake, &PullOptions::default()).unwrap().digest(),
        wanted
    );
}

#[test]
fn errors_name_what_is_missing() {
    let fake = Fake::start(|_| Reply::new(404, r#"{"errors":[{"message":"manifest unknown"}]}"#));
    let error = pull_with(&fake, &PullOptions::default()).unwrap_err();
    assert!(matches!(error, Error::UnknownImage { .. }), "{error}");

    let image = TestImage::for_platform("linux", "arm64", &[]);
    let fake = Fake::start(move |request| image.answer(request));
    let error = pull_with(&fake, &PullOptions::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("has no linux/amd64 variant; it offers: linux/arm64"),
        "{error}"
    );

    let fake = Fake::start(|_| Reply::ok(r#"{"schemaVersion":1,"fsLayers":[]}"#));
    assert!(
        pull_with(&fake, &PullOptions::default())
            .unwrap_err()
            .to_string()
            .contains("schema 1")
    );

    let never = PullOptions {
        policy: PullPolicy::Never,
        ..PullOptions::default()
    };
    assert!(matches!(
        pull_with(&fake, &never).unwrap_err(),
        Error::NotInStore { .. }
    ));

    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let error = store
        .pull(
            &format!("{port}/a").parse().unwrap(),
            &PullOptions::default(),
            &|_| {},
        )
        .unwrap_err();
    assert!(error.to_string().contains("connection refused"), "{error}");
}
