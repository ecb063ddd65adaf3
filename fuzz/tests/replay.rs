//! Every seed through its property, and some damage to each.

use std::fs;
use std::path::{Path, PathBuf};

use msb_fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(corpus().join(target))
        .unwrap_or_else(|error| panic!("corpus of {target}: {error}"));
    entries
        .map(|entry| fs::read(entry.expect("entry").path()).expect("seed"))
        .collect()
}

#[test]
fn every_target_has_seeds_and_holds_on_them() {
    for (name, property) in TARGETS {
        let seeds = seeds(name);
        assert!(
            seeds.len() >= 3,
            "{name} has {} seeds, too few to start from",
            seeds.len()
        );
        for seed in &seeds {
            property(seed);
        }
    }
}

#[test]
fn every_target_holds_on_damaged_seeds() {
    for (name, property) in TARGETS {
        for seed in seeds(name) {
            // Cut short, and one byte changed, at a few dozen places.
            let step = (seed.len() / 24).max(1);
            for at in (0..seed.len()).step_by(step) {
                property(&seed[..at]);
                let mut changed = seed.clone();
                changed[at] = changed[at].wrapping_add(0x81);
                property(&changed);
            }
        }
    }
}

#[test]
fn every_corpus_has_a_target() {
    for entry in fs::read_dir(corpus()).expect("corpus") {
        let name = entry
            .expect("entry")
            .file_name()
            .to_string_lossy()
            .into_owned();
        assert!(
            msb_fuzz::property(&name).is_some(),
            "corpus {name} belongs to no target"
        );
    }
}
