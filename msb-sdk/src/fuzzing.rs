//! Entry points for fuzzing: each takes any bytes and panics when a property fails.

use std::path::Path;

use crate::error::Error;
use crate::spec::SandboxSpec;

/// A file that describes a sandbox: it is one, which written as JSON is read as the same, or
/// a mistake is told in a line of text, with a place in the file.
pub fn sandbox_description(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let read = |text: &str| SandboxSpec::from_yaml(text, Path::new("sandbox.yaml"));
    match read(text) {
        Ok(spec) => {
            let json = serde_json::to_string(&spec).expect("a description can be written");
            let again = read(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
            assert_eq!(again, spec, "{json}");
        }
        Err(error) => {
            let told = error.to_string();
            let Error::SpecFile { line, column, .. } = error else {
                panic!("{told}");
            };
            // Behind the last character is a place, too.
            assert!((1..=text.split('\n').count() + 1).contains(&line), "{told}");
            assert!(column >= 1, "{told}");
            assert!(!told.chars().any(char::is_control), "{told:?}");
            assert!(told.len() < 1000 + 16 * text.len(), "{} bytes", told.len());
        }
    }
}
