//! The description of a sandbox: what the user asked for, checked.

use std::net::SocketAddr;
use std::path::PathBuf;

use msb_net::publish::Publish;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::network::{NetworkLimits, NetworkPolicy};
use crate::patch::{self, Patch};
use crate::port::MAX_PORTS;
use crate::secret::{self, SecretSpec};

mod file;
mod pairs;
mod reader;
mod yaml;

/// The longest name: it becomes a host name (RFC 1035 allows 63 bytes in a label).
const MAX_NAME: usize = 63;

/// The largest disk that can be asked for, in MiB: what ext4 with 4 KiB blocks holds.
const MAX_DISK_MIB: u32 = 16 * 1024 * 1024;

/// The smallest disk: ext4's own tables and some room.
const MIN_DISK_MIB: u32 = 16;

/// One sandbox, as plain data: what builders, command lines, files and the state of a sandbox
/// come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxSpec {
    /// Name on this host and in the guest.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Virtual processors.
    pub cpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// Size of the disk that takes the guest's changes, MiB; they are kept in
    /// guest memory when `None`.
    pub disk_mib: Option<u32>,
    /// Environment of every program, on top of the image's.
    #[serde(deserialize_with = "pairs::read")]
    #[schemars(with = "pairs::Pairs")]
    pub env: Vec<(String, String)>,
    /// Working folder instead of the image's.
    pub workdir: Option<String>,
    /// User instead of the image's.
    pub user: Option<String>,
    /// Whether a software processor is refused.
    pub require_hardware: bool,
    /// The engine, `krun` or `qemu`, instead of the best that the host can run.
    pub engine: Option<String>,
    /// What the guest may reach, as the text of a policy.
    #[schemars(with = "String")]
    pub network: NetworkPolicy,
    /// How much of the network the guest may use.
    pub network_limits: NetworkLimits,
    /// Servers that names are asked of, instead of the host's.
    pub resolvers: Vec<SocketAddr>,
    /// File that gets a copy of every frame of the guest's link (pcapng).
    pub capture: Option<PathBuf>,
    /// Ports of the guest that the host offers, as `[BIND:]HOST:GUEST[/udp]`.
    pub ports: Vec<String>,
    /// Changes to the image's files, made once, before anything runs.
    #[serde(default)]
    pub patches: Vec<Patch>,
    /// Scripts, by name, that are on the `PATH` of the guest.
    #[serde(default, deserialize_with = "pairs::read")]
    #[schemars(with = "pairs::Pairs")]
    pub scripts: Vec<(String, String)>,
    /// What the guest has placeholders of.
    #[serde(default)]
    pub secrets: Vec<SecretSpec>,
    /// Which TLS connections are taken apart beside those that secrets and rules need.
    #[serde(default)]
    pub tls: TlsSpec,
    /// Program with its arguments that is run at each start, beside those that come later;
    /// the image's own if it is empty.
    pub command: Option<Vec<String>>,
}

/// How TLS connections of a guest are treated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSpec {
    /// Whether all are taken apart.
    pub intercept_all: bool,
    /// Hosts whose connections are not, unless a rule is about their requests; with a dot in
    /// front also those below.
    pub passthrough: Vec<String>,
    /// Files of authorities, in PEM, that servers are verified with beside the host's.
    pub authorities: Vec<PathBuf>,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self::new(String::new())
    }
}

impl SandboxSpec {
    /// The JSON Schema of a description, as `msb schema` prints it.
    ///
    /// ```
    /// let schema = msb_sdk::SandboxSpec::schema();
    /// assert_eq!(schema["properties"]["memory_mib"]["type"], "integer");
    /// ```
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).into()
    }

    /// A spec with defaults for everything but the image.
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            image: String::new(),
            cpus: 1,
            memory_mib: 512,
            disk_mib: None,
            env: Vec::new(),
            workdir: None,
            user: None,
            require_hardware: false,
            engine: None,
            network: NetworkPolicy::default(),
            network_limits: NetworkLimits::default(),
            resolvers: Vec::new(),
            capture: None,
            ports: Vec::new(),
            patches: Vec::new(),
            scripts: Vec::new(),
            secrets: Vec::new(),
            tls: TlsSpec::default(),
            command: None,
        }
    }

    /// Checks what the types can't.
    ///
    /// # Errors
    /// [`Error::InvalidName`] and [`Error::InvalidSetting`].
    pub fn validate(&self) -> Result<(), Error> {
        check_name(&self.name)?;
        self.network.check()?;
        let invalid =
            |setting, value: &dyn ToString, reason: &dyn ToString| Error::InvalidSetting {
                setting,
                value: value.to_string(),
                reason: reason.to_string(),
            };
        msb_vmm::Vcpus::try_from(u32::from(self.cpus))
            .map_err(|error| invalid("the number of cpus", &self.cpus, &error))?;
        msb_vmm::MemorySize::from_mib(u64::from(self.memory_mib))
            .map_err(|error| invalid("the memory", &format!("{} MiB", self.memory_mib), &error))?;
        check_fits(self.memory_mib, host_memory_mib()).map_err(|reason| {
            invalid("the memory", &format!("{} MiB", self.memory_mib), &reason)
        })?;
        if let Some(limit) = self.network_limits.zero() {
            let reason = "nothing would pass; a policy of none says so better";
            return Err(invalid("a network limit", &format!("{limit}: 0"), &reason));
        }
        if let Some(name) = &self.engine {
            let known = name.parse::<msb_vmm::EngineKind>();
            known.map_err(|error| invalid("the engine", name, &error))?;
        }
        if let Some(mib) = self.disk_mib
            && !(MIN_DISK_MIB..=MAX_DISK_MIB).contains(&mib)
        {
            let reason = format!("a disk has {MIN_DISK_MIB} MiB to {MAX_DISK_MIB} MiB");
            return Err(invalid("the disk", &format!("{mib} MiB"), &reason));
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                // What stands behind it is a value.
                let (name, _) = key.split_once('=').unwrap_or((key, ""));
                return Err(invalid(
                    "an environment variable",
                    &name,
                    &"its name is empty or holds '=', or a NUL is in it",
                ));
            }
        }
        if self.resolvers.len() > msb_net::gateway::MAX_RESOLVERS {
            let reason = format!("at most {}", msb_net::gateway::MAX_RESOLVERS);
            return Err(invalid(
                "the number of resolvers",
                &self.resolvers.len(),
                &reason,
            ));
        }
        let mut ports = 0;
        for text in &self.ports {
            ports += text.parse::<Publish>()?.pairs().count();
            if ports > MAX_PORTS {
                return Err(Error::TooManyPorts { max: MAX_PORTS });
            }
        }
        secret::check(&self.secrets, &self.env)?;
        secret::patterns(&self.tls.passthrough)?;
        patch::check(&self.patches, &self.scripts)
            .map_err(|(which, reason)| invalid("a patch", &which, &reason))?;
        let words = self.command.iter().flatten();
        if let Some(word) = words.into_iter().find(|word| word.contains('\0')) {
            return Err(invalid("the command", word, &"a NUL is in it"));
        }
        if let Some(workdir) = &self.workdir
            && !workdir.starts_with('/')
        {
            return Err(invalid(
                "the working folder",
                workdir,
                &"it must be an absolute path",
            ));
        }
        Ok(())
    }
}

/// Memory and swap of this host, MiB.
fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let units = info.totalram.saturating_add(info.totalswap);
    (units as u64).saturating_mul(u64::from(info.mem_unit)) >> 20
}

/// A guest need not get all its memory, but never more than there is.
fn check_fits(memory_mib: u32, host_mib: u64) -> Result<(), String> {
    if u64::from(memory_mib) <= host_mib {
        Ok(())
    } else {
        Err(format!("this host has {host_mib} MiB"))
    }
}

/// The disk that a kept sandbox gets when none is asked for, in MiB. It is sparse:
/// what is not written takes no space.
pub(crate) const DEFAULT_DISK_MIB: u32 = 8 * 1024;

/// Checks a name: it becomes a folder and a host name.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME {
        "it is longer than 63 bytes"
    } else if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        "it does not start with a letter or digit"
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    {
        "it holds other characters than letters, digits, '.', '_' and '-'"
    } else {
        return Ok(());
    };
    Err(Error::InvalidName {
        name: name.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            image: "busybox".into(),
            ..SandboxSpec::new("demo".into())
        }
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        assert_eq!(check_fits(512, 512), Ok(()));
        assert_eq!(
            check_fits(513, 512),
            Err("this host has 512 MiB".to_owned())
        );
        assert!(host_memory_mib() >= 64);
        let mut spec = SandboxSpec::new("demo".into());
        spec.memory_mib = 1 << 20;
        // A host with a tebibyte may well be asked for it.
        assert_eq!(spec.validate().is_ok(), host_memory_mib() >= 1 << 20);
    }

    #[test]
    fn names_that_are_paths_or_flags_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../up",
            "a/b",
            "-x",
            "a b",
            "ä",
            "a\0b",
            &"x".repeat(64),
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["a", "Demo-1", "0.x_y", &"x".repeat(63)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn settings_out_of_bounds_are_named() {
        let cases: [(SandboxSpec, &str); 7] = [
            (
                SandboxSpec {
                    engine: Some("xen".into()),
                    ..spec()
                },
                "engine",
            ),
            (SandboxSpec { cpus: 0, ..spec() }, "cpus"),
            (
                SandboxSpec {
                    memory_mib: 1,
                    ..spec()
                },
                "memory",
            ),
            (
                SandboxSpec {
                    disk_mib: Some(1),
                    ..spec()
                },
                "disk",
            ),
            (
                SandboxSpec {
                    env: vec![("A=B".into(), String::new())],
                    ..spec()
                },
                "environment",
            ),
            (
                SandboxSpec {
                    env: vec![("A".into(), "x\0y".into())],
                    ..spec()
                },
                "environment",
            ),
            (
                SandboxSpec {
                    workdir: Some("app".into()),
                    ..spec()
                },
                "working folder",
            ),
        ];
        for (spec, part) in cases {
            let error = spec.validate().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(spec().validate().is_ok());
    }

    #[test]
    fn unknown_keys_are_refused() {
        let mut value = serde_json::to_value(spec()).expect("encode");
        assert!(serde_json::from_value::<SandboxSpec>(value.clone()).is_ok());
        value["memmory"] = 5.into();
        assert!(serde_json::from_value::<SandboxSpec>(value).is_err());
    }
}
