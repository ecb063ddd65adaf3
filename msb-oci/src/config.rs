//! The image configuration: what the image says about running it.
//!
//! Read: OCI image specification, "config.md". Only the fields that matter to
//! a microVM are kept; unknown ones are ignored, malformed ones are errors.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Platform, Result};

/// What an image says about running it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// Further words, replaced by what the user gives.
    pub cmd: Vec<String>,
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: String,
    /// Working directory; empty means `/`.
    pub workdir: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports the workload listens on, `80/tcp` each.
    pub exposed_ports: Vec<String>,
    /// Paths the image wants to be volumes.
    pub volumes: Vec<String>,
    /// Signal that asks the workload to end, such as `SIGTERM`.
    pub stop_signal: Option<String>,
    /// The image's shell with its flag for a script, such as `/bin/bash`, `-c`; empty
    /// where the image names none.
    #[serde(default)]
    pub shell: Vec<String>,
    /// Operating system, `linux`.
    pub os: String,
    /// Architecture, `amd64`.
    pub architecture: String,
    /// When the image was made: RFC 3339, as the image has it.
    pub created: Option<String>,
}

/// A configuration as the image has it: `null` stands for nothing anywhere.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawRun>,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    stop_signal: Option<String>,
    shell: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Reads a configuration and the diff-ids of its layers.
    ///
    /// # Errors
    /// [`Error::BadImage`] for what is no configuration.
    pub(crate) fn parse(json: &[u8]) -> Result<(ImageConfig, Vec<Digest>)> {
        let bad = |reason: String| Error::BadImage {
            what: "the image configuration".to_owned(),
            reason,
        };
        let raw: RawConfig =
            serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
        let Some(diff_ids) = raw.rootfs.and_then(|rootfs| rootfs.diff_ids) else {
            return Err(bad("it lists no diff-ids".to_owned()));
        };
        let run = raw.config.unwrap_or_default();
        let env = run.env.unwrap_or_default();
        if let Some(entry) = env
            .iter()
            .find(|entry| !entry.contains('=') || entry.starts_with('=') || entry.contains('\0'))
        {
            return Err(bad(format!("its environment holds {entry:?}")));
        }
        let config = ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env,
            user: run.user.unwrap_or_default(),
            workdir: run.working_dir.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
            exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: run.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            shell: run.shell.unwrap_or_default(),
            os: raw.os.unwrap_or_default(),
            architecture: raw.architecture.unwrap_or_default(),
            created: raw.created,
        };
        Ok((config, diff_ids))
    }

    /// The platform it is for.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ImageConfig;

    #[test]
    fn reads_what_docker_writes() {
        let (config, layers) = ImageConfig::parse(
            br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["python3"],"Entrypoint":null,
            "Env":["PATH=/bin","A="],"WorkingDir":"/app","ExposedPorts":{"80/tcp":{}},"Labels":null,
            "OnBuild":null,"Shell":["/bin/bash","-c"],"Healthcheck":{"Test":["x"]}},"history":[{}],
            "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#,
        )
        .unwrap();
        assert_eq!(config.cmd, ["python3"]);
        assert_eq!(config.shell, ["/bin/bash", "-c"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(
            (
                config.workdir.as_str(),
                config.platform().to_string().as_str()
            ),
            ("/app", "linux/amd64")
        );
        assert_eq!(layers.len(), 1);
    }

    #[test]
    fn refuses_what_is_no_configuration() {
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"rootfs":{"diff_ids":["x"]}}"#,
            r#"{"config":{"Env":["nothing"]},"rootfs":{"diff_ids":[]}}"#,
        ] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
