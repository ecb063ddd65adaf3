//! Replays the committed fuzz seeds.

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let seeds = std::fs::read_dir(corpus.join(target)).expect("the corpus is there");
    let mut replayed = 0;
    for seed in seeds {
        run(&std::fs::read(seed.expect("an entry").path()).expect("a seed"));
        replayed += 1;
    }
    assert!(replayed > 0, "{target} has no seeds");
}

#[test]
fn policy_text() {
    replay("policy_text", msb_net::fuzzing::policy_text);
}

#[test]
fn claim() {
    replay("claim", msb_net::fuzzing::claim);
}

#[test]
fn scrubber() {
    replay("scrubber", msb_net::fuzzing::scrubber);
}

#[test]
fn content_coding() {
    replay("content_coding", msb_net::fuzzing::content_coding);
}

#[test]
fn http_relay() {
    replay("http_relay", msb_net::fuzzing::http_relay);
}

#[test]
fn request_path() {
    replay("request_path", msb_net::fuzzing::request_path);
}

#[test]
fn dns_query() {
    replay("dns_query", msb_net::fuzzing::dns_query);
}

#[test]
fn dns_response() {
    replay("dns_response", msb_net::fuzzing::dns_response);
}

#[test]
fn reassembly() {
    replay("reassembly", msb_net::fuzzing::reassembly);
}

#[test]
fn gateway_frames() {
    replay("gateway_frames", msb_net::fuzzing::gateway_frames);
}

#[test]
fn offload_frames() {
    replay("offload_frames", msb_net::fuzzing::offload_frames);
}

#[test]
fn http1_head() {
    replay("http1_head", msb_net::fuzzing::http1_head);
}

#[test]
fn http2_frames() {
    replay("http2_frames", msb_net::fuzzing::http2_frames);
}

#[test]
fn basic_credentials() {
    replay("basic_credentials", msb_net::fuzzing::basic_credentials);
}

/// What is refused is where the search for what is not begins.
#[test]
fn every_ambiguous_request_is_a_seed() {
    use msb_net::fuzzing::ambiguous::{CHUNKED, CHUNKS, HEADS};

    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let heads = HEADS
        .iter()
        .map(|(name, text)| ("http1_head", name, text.to_vec()));
    let whole = |chunk: &[u8]| [CHUNKED, chunk].concat();
    let chunks = CHUNKS
        .iter()
        .map(|(name, text)| ("http_relay", name, whole(text)));
    for (target, name, text) in heads.chain(chunks) {
        let path = corpus.join(target).join(name);
        assert!(
            std::fs::read(path).ok() == Some(text),
            "{target}/{name} is no seed"
        );
    }
}

/// Seeds that the first check throws out would replay nothing.
#[test]
fn the_frame_seeds_open_flows() {
    use std::time::Duration;

    use msb_net::gateway::{Config, Gateway};
    use msb_net::policy::Policy;

    for (seed, flows) in [
        (
            &include_bytes!("../../../fuzz/corpus/gateway_frames/syn-six")[..],
            (6, 0),
        ),
        (
            &include_bytes!("../../../fuzz/corpus/gateway_frames/udp")[..],
            (0, 2),
        ),
    ] {
        let mut gateway = Gateway::new(Config::new(Policy::allow_all(), 1));
        let mut data = seed;
        while let Some((&[high, low], rest)) = data.split_first_chunk() {
            let (frame, rest) = rest.split_at(u16::from_be_bytes([high, low]).into());
            gateway.handle_frame(Duration::ZERO, frame);
            data = rest;
        }
        assert_eq!(gateway.flows(), flows);
    }
}
