//! Descriptions that people write, as YAML; JSON is YAML, too.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use super::SandboxSpec;
use super::reader::{Mistake, Reader};
use super::yaml::{self, Malformed, Place};
use crate::error::Error;
use crate::secret::SecretSource;

/// The longest file: all the content that patches may have, in base64.
const MAX_FILE: u64 = 24 << 20;

impl SandboxSpec {
    /// Reads a description from a file. Its keys are the fields of this type, and all may be
    /// left out; `env` and `scripts` may be maps. Paths of the host are relative to the file.
    ///
    /// ```yaml
    /// image: python:3.12
    /// memory_mib: 1024
    /// env: {MODE: test}
    /// network: |
    ///   preset none
    ///   allow tcp 443 api.github.com
    /// patches:
    ///   - path: /etc/app.conf
    ///     action: {file: app.conf}
    ///     mode: 0o600
    /// ```
    ///
    /// # Errors
    /// [`Error::Unreadable`], and [`Error::SpecFile`] with line and column of a mistake.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let unreadable = |source| Error::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        let file = File::open(path).map_err(unreadable)?;
        let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
        if read.map_err(unreadable)? as u64 > MAX_FILE {
            return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
        }
        let mut spec = Self::from_yaml(&text, path)?;
        let absolute = std::path::absolute(path).map_err(unreadable)?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        for patch in &mut spec.patches {
            patch.resolve(folder);
        }
        for secret in &mut spec.secrets {
            if let SecretSource::File(file) = &mut secret.source {
                *file = folder.join(&*file);
            }
        }
        for authority in &mut spec.tls.authorities {
            *authority = folder.join(&*authority);
        }
        if let Some(capture) = &mut spec.capture {
            *capture = folder.join(&*capture);
        }
        Ok(spec)
    }

    /// Reads a description; `path` is for saying where a mistake is.
    pub(crate) fn from_yaml(text: &str, path: &Path) -> Result<Self, Error> {
        let error = |at: Place, message, hint| Error::SpecFile {
            path: path.to_owned(),
            line: at.line,
            column: at.column,
            message,
            hint,
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let root =
            yaml::parse(text).map_err(|Malformed { at, message }| error(at, message, None))?;
        let Some(root) = root else {
            return Ok(Self::default());
        };
        Self::deserialize(Reader(&root)).map_err(|mistake| {
            let Mistake {
                mut message,
                word,
                hint,
                at,
            } = mistake;
            let at = at.unwrap_or(root.at);
            // Among the secrets it may be a value, in the wrong place.
            if let Some(word) = word.filter(|_| !root.holds("secrets", at)) {
                message.push_str(&format!(" {word:?}"));
            }
            error(at, message, hint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NetworkPolicy, Patch};

    fn read(text: &str) -> Result<SandboxSpec, Error> {
        SandboxSpec::from_yaml(text, Path::new("sandbox.yaml"))
    }

    #[track_caller]
    fn refused(text: &str, start: &str, hint: Option<&str>) {
        let error = read(text).expect_err(text);
        let told = error.to_string();
        assert!(told.starts_with(start), "{text:?}: {told}");
        assert!(!told.chars().any(char::is_control), "{text:?}: {told:?}");
        if let Some(hint) = hint {
            assert_eq!(error.hint().as_deref(), Some(hint), "{text:?}");
        }
    }

    const FULL: &str = r#"
name: worker
image: python:3.12
cpus: 2
memory_mib: 1024
disk_mib: null
env: {MODE: test, PORT: 8080, EMPTY: ""}
require_hardware: false
network: |
  preset none
  allow tcp 443 api.github.com
network_limits:
  upload: 1000000
resolvers: ["192.0.2.1:53"]
ports: [8080:80]
patches:
  - path: /etc/app.conf
    action: {text: "key=value\n"}
    mode: 0o600
    owner: [1000, 1000]
  - path: /app
    action: mkdir
  - path: /etc/token
    action: {bytes: AP8=}
scripts:
  setup: |
    #!/bin/sh
    echo no
command: [python3, -m, http.server]
"#;

    #[test]
    fn a_file_is_what_the_builder_makes_of_the_same() {
        let spec = read(FULL).expect("a description");
        let expected = SandboxSpec {
            image: "python:3.12".into(),
            cpus: 2,
            memory_mib: 1024,
            env: [("MODE", "test"), ("PORT", "8080"), ("EMPTY", "")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            network: NetworkPolicy::none().rule("allow tcp 443 api.github.com"),
            network_limits: crate::NetworkLimits {
                upload: Some(1_000_000),
                ..Default::default()
            },
            resolvers: vec!["192.0.2.1:53".parse().expect("an address")],
            ports: vec!["8080:80".into()],
            patches: vec![
                Patch::text("/etc/app.conf", "key=value\n")
                    .mode(0o600)
                    .owner(1000, 1000),
                Patch::mkdir("/app"),
                Patch::bytes("/etc/token", [0, 255]),
            ],
            scripts: vec![("setup".into(), "#!/bin/sh\necho no\n".into())],
            command: Some(["python3", "-m", "http.server"].map(Into::into).into()),
            ..SandboxSpec::new("worker".into())
        };
        assert_eq!(spec, expected);
        assert!(spec.validate().is_ok());
        // JSON is YAML: what the state holds may be given as a file.
        let json = serde_json::to_string_pretty(&expected).expect("encode");
        assert_eq!(read(&json).expect("a description"), expected);
        assert_eq!(
            read("# nothing\n").expect("nothing"),
            SandboxSpec::default()
        );
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let near = |word: &str| format!("did you mean `{word}`?");
        refused(
            "image: a\nmemmory_mib: 5\n",
            "sandbox.yaml:2:1: there is no key \"memmory_mib\"",
            Some(&near("memory_mib")),
        );
        refused("memory: 5", "sandbox.yaml:1:1:", Some(&near("memory_mib")));
        refused(
            "network_limits:\n  uplaod: 1",
            "sandbox.yaml:2:3:",
            Some(&near("upload")),
        );
        refused(
            "patches:\n  - path: /a\n    action: {txt: a}",
            "sandbox.yaml:3:14: there is no value \"txt\"",
            Some(&near("text")),
        );
        refused("cpus: many", "sandbox.yaml:1:7: expected a number", None);
        refused("cpus: 300", "sandbox.yaml:1:7:", None);
        refused("cpus: -1", "sandbox.yaml:1:7: expected a number", None);
        refused("cpus: [1]", "sandbox.yaml:1:7: expected a number", None);
        refused(
            "patches: [{path: /a, action: mkdir, mode: 0755}]",
            "sandbox.yaml:1:43:",
            Some("write 0o755"),
        );
        refused(
            "env: {A: }",
            "sandbox.yaml:1:",
            Some("write \"\" for empty text"),
        );
        refused("require_hardware: yes", "sandbox.yaml:1:19:", None);
        refused("image: [a]", "sandbox.yaml:1:8: expected text", None);
        refused("resolvers: [here]", "sandbox.yaml:1:13:", None);
        refused("network: |\n  alow tcp 443 a", "sandbox.yaml:2:3:", None);
        refused("[image]", "sandbox.yaml:1:1: expected keys", None);
    }

    #[test]
    fn what_is_more_than_a_description_is_refused() {
        refused("image: a\nimage: b", "sandbox.yaml:2:1: the key", None);
        refused("image: &a x\nname: *a", "sandbox.yaml:1:", None);
        refused("image: !!str x", "sandbox.yaml:1:", None);
        refused("image: a\n---\nimage: b", "sandbox.yaml:2:", None);
        refused("{[a]: b}", "sandbox.yaml:1:2:", None);
        refused("image: \"a", "sandbox.yaml:", None);
        assert!(read(&"[".repeat(100_000)).is_err());
        refused(&"[".repeat(20), "sandbox.yaml:1:", None);
        refused(
            &format!("ports: [{}]", "a,".repeat(100_001)),
            "sandbox.yaml:1:",
            None,
        );
        refused("\u{1b}[2J: a", "sandbox.yaml:1:", None);
        refused("\"\\e[2J\": a", "sandbox.yaml:1:1: there is no key", None);
    }

    /// Whatever people take for the way to write one.
    #[test]
    fn a_value_in_the_wrong_place_is_not_repeated() {
        for text in [
            "secrets: HUNTER2",
            "secrets: [HUNTER2]",
            "secrets: [TOKEN=HUNTER2@a.example]",
            "secrets: {TOKEN: HUNTER2}",
            "secrets: {HUNTER2: a}",
            "secrets: [{TOKEN: HUNTER2}]",
            "secrets: [{HUNTER2: a}]",
            "secrets: [{HUNTER2: a, HUNTER2: a}]",
            "secrets: [{name: [HUNTER2]}]",
            "secrets: [{name: T, source: HUNTER2}]",
            "secrets: [{name: T, source: [HUNTER2]}]",
            "secrets: [{name: T, source: {HUNTER2: }}]",
            "secrets: [{name: T, source: {value: HUNTER2}}]",
            "secrets: [{name: T, source: {given: HUNTER2}}]",
            "secrets: [{name: T, source: {command: HUNTER2}}]",
            "secrets: [{name: T, source: {env: T, value: HUNTER2}}]",
            "secrets: [{name: T, value: HUNTER2, source: given}]",
            "secrets: [{name: T, source: given, hosts: HUNTER2}]",
            "secrets: [{name: T, source: given, hosts: [a], query: HUNTER2}]",
            "secrets: [{name: T, source: given, hosts: [a], prefix: [HUNTER2]}]",
            "secrets:\n- name: T\n  source: HUNTER2\nimage: a",
            "secrets:\n- name: T\n  source: \"HUNTER2",
            "secrets:\n- name: T\n  source: *HUNTER2",
            "secrets:\n- name: T\n  source: !HUNTER2 a",
            "secrets:\n- name: T\n  source: %HUNTER2",
            "secrets:\n- name: T\n source: HUNTER2",
            "secrets:\n- name: T: HUNTER2",
            "env: T=HUNTER2",
            "env: [T=HUNTER2]",
            "env: [[T, [HUNTER2]]]",
            "env: {T: [HUNTER2]}",
            "network: |\n  allow http a.example with authorization=HUNTER2",
            "network: |\n  allow http a.example with authorization HUNTER2",
            "network: |\n  allow http a.example authorization=HUNTER2",
            "network: |\n  allow http a.example/v1?key=HUNTER2",
        ] {
            let error = read(text).expect_err(text);
            let told = format!("{error} {error:?} {:?}", error.hint());
            assert!(told.starts_with("sandbox.yaml:"), "{text:?}: {told}");
            assert!(!told.to_uppercase().contains("HUNTER2"), "{text:?}: {told}");
        }
        // Elsewhere it is shown what was mistyped.
        refused(
            "secrets: []\nimmage: a",
            "sandbox.yaml:2:1: there is no key \"immage\"",
            None,
        );
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("sandbox.yaml");
        std::fs::write(
            &path,
            "capture: out.pcap\npatches: [{path: /a, action: {file: a.txt}}]",
        )
        .expect("a file");
        let spec = SandboxSpec::from_file(&path).expect("a description");
        assert_eq!(spec.capture, Some(dir.path().join("out.pcap")));
        assert_eq!(spec.patches, [Patch::file("/a", dir.path().join("a.txt"))]);
        let none = SandboxSpec::from_file(dir.path().join("none")).expect_err("none");
        assert!(matches!(none, Error::Unreadable { .. }));
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read() {
        let schema = SandboxSpec::schema();
        let known = serde_json::to_value(SandboxSpec::default()).expect("encode");
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.clone())
                .collect()
        };
        assert_eq!(keys(&schema["properties"]), keys(&known));
        assert_eq!(schema["additionalProperties"], false);
        assert!(schema["required"].is_null(), "{schema}");
    }
}
