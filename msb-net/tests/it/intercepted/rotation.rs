//! Values that change while requests are under way.

use msb_net::secret::Source;

use super::servers::{self, Outside};
use super::{connect, run, secret, world};

/// One request is held by the server while another one learns that the value is not
/// good any more: the next gets the new value, and the old one stays secret.
#[test]
fn a_request_under_way_keeps_its_value_and_the_next_has_the_new_one() {
    let outside = Outside::new("known");
    let (port, seen) = servers::h2(outside.config("a.example", b"h2"));
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "the-first-value").unwrap();
    let command = format!("cat {}", token.display());
    let source = Source::Command(["sh", "-c", &command].map(String::from).into());
    let mut world = world("preset allow-all", &outside, secret(source));
    let own = world.placeholder();
    let (stream, config) = (world.connect(port), world.client(b"h2"));
    run(async {
        let tls = connect(stream, config, "a.example").await.unwrap();
        let (mut requests, driver) = h2::client::handshake(tls).await.unwrap();
        tokio::task::spawn_local(driver);
        requests = requests.ready().await.unwrap();
        // A response that comes is awaited where it is wanted.
        let mut ask = |path: &str| {
            let request = http::Request::get(format!("https://a.example{path}"))
                .header("authorization", format!("Bearer {own}"));
            let request = request.body(()).unwrap();
            requests.send_request(request, true).unwrap().0
        };
        // The first value is there now.
        ask("/").await.unwrap();
        let held = ask("/hold");
        std::fs::write(&token, "the-second-value").unwrap();
        let refused = ask("/401").await.unwrap();
        assert_eq!(refused.status(), 401);
        assert_eq!(refused.headers()["x-echo"], own);
        let released = ask("/release").await.unwrap();
        assert_eq!(released.headers()["x-echo"], own);
        let (parts, mut body) = held.await.unwrap().into_parts();
        assert_eq!(parts.headers["x-echo"], own);
        let mut text = String::new();
        while let Some(piece) = body.data().await {
            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
        assert!(
            text.starts_with(&format!("{own} ")) && !text.contains("value"),
            "{text}"
        );
    });
    let seen = seen.lock().unwrap();
    let values = seen.iter().map(|line| line.rsplit(' ').next().unwrap());
    let first = "the-first-value";
    let expected = [first, first, first, "the-second-value"];
    assert_eq!(values.collect::<Vec<_>>(), expected);
}
