//! Entry points for fuzzing: each takes any bytes and panics when a property fails.

use crate::engine::krun::protocol::{self, Reply, RunnerConfig};
use crate::engine::qemu::qmp::{Lines, MAX_MESSAGE, parse};

/// Feeds bytes to the reader of the control protocol, in one piece and in several;
/// both must agree, and no piece of it may panic or keep more than its bound.
pub fn qmp_reply(data: &[u8]) {
    let _ = parse(data);
    let whole = read(data, data.len());
    let pieces = read(data, 7);
    assert_eq!(whole, pieces);
}

fn read(data: &[u8], chunk: usize) -> Vec<String> {
    let mut lines = Lines::default();
    let mut seen = Vec::new();
    for piece in data.chunks(chunk.max(1)) {
        lines.push(piece);
        loop {
            match lines.next_message() {
                Ok(Some(message)) => seen.push(format!("{message:?}")),
                Ok(None) => break,
                Err(error) => {
                    seen.push(error.to_string());
                    return seen;
                }
            }
        }
    }
    assert!(data.len() > MAX_MESSAGE || seen.len() <= data.len());
    seen
}

/// Reads bytes as what a runner is told and as what it answers; what is taken is written
/// and read back as the same.
pub fn runner_config(data: &[u8]) {
    if let Ok(config) = protocol::parse::<RunnerConfig>(data) {
        let written = serde_json::to_vec(&config).expect("a configuration can be written");
        let again = protocol::parse::<RunnerConfig>(&written);
        assert_eq!(again.expect("what was written can be read"), config);
    }
    if let Ok(reply) = protocol::parse::<Reply>(data) {
        let written = serde_json::to_vec(&reply).expect("a reply can be written");
        let again = protocol::parse::<Reply>(&written);
        assert_eq!(again.expect("what was written can be read"), reply);
    }
}
