//! Credentials as `docker login` leaves them: `config.json` and its helpers.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::{Credentials, Error, Result};

/// A configuration with hundreds of registries stays far below.
const MAX_CONFIG: u64 = 1 << 20;
/// Tokens of cloud registries take a few kilobytes.
const MAX_HELPER_OUTPUT: u64 = 64 << 10;
/// Helpers may ask a cloud; one that asks a person is of no use here.
const HELPER_TIME: Duration = Duration::from_secs(30);

/// Whom we claim to be.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Password {
        user: String,
        password: String,
    },
    /// A refresh token, exchanged for an access token at the realm.
    IdentityToken(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperOutput {
    username: String,
    secret: String,
}

/// Finds the login for a registry.
pub(crate) fn find(credentials: &Credentials, registry: &str) -> Result<Option<Login>> {
    match credentials {
        Credentials::Anonymous => Ok(None),
        Credentials::Basic { user, password } => Ok(Some(Login::Password {
            user: user.clone(),
            password: password.clone(),
        })),
        Credentials::DockerConfig(path) => {
            from_config(path, registry).map_err(|reason| Error::Credentials {
                registry: registry.to_owned(),
                reason,
            })
        }
    }
}

fn from_config(path: &Path, registry: &str) -> Result<Option<Login>, String> {
    let failed = |reason: String| format!("{}: {reason}", path.display());
    let mut json = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(MAX_CONFIG)
            .read_to_end(&mut json)
            .map_err(|error| failed(error.to_string()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    // serde's message could quote a secret: only the place is told.
    let config: DockerConfig = serde_json::from_slice(&json).map_err(|error| {
        failed(format!(
            "it is malformed at line {}, column {}",
            error.line(),
            error.column()
        ))
    })?;
    let is_ours = |key: &&String| server(key) == Some(normal(registry));
    if let Some((key, helper)) = config.cred_helpers.iter().find(|(key, _)| is_ours(key)) {
        return ask_helper(helper, key);
    }
    if let Some(helper) = &config.creds_store {
        let key = config
            .auths
            .keys()
            .find(is_ours)
            .map_or_else(|| server_key(registry), Clone::clone);
        if let Some(login) = ask_helper(helper, &key)? {
            return Ok(Some(login));
        }
    }
    match config.auths.iter().find(|(key, _)| is_ours(key)) {
        Some((_, entry)) => login(entry).map_err(failed),
        None => Ok(None),
    }
}

/// The registry that a key of the configuration means.
fn server(key: &str) -> Option<&str> {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // `host/namespace` keys are for that namespace only; they are not used.
    matches!(path, "" | "v1" | "v1/" | "v2" | "v2/").then(|| normal(host))
}

fn normal(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Under which key helpers keep a registry.
fn server_key(registry: &str) -> String {
    match normal(registry) {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        host => host.to_owned(),
    }
}

fn login(entry: &Entry) -> Result<Option<Login>, String> {
    if let Some(token) = entry
        .identitytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Ok(Some(Login::IdentityToken(token.clone())));
    }
    if let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) {
        let decoded = STANDARD
            .decode(auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':'))
        else {
            return Err("its `auth` is not base64 of user:password".to_owned());
        };
        let password = password.trim_end_matches('\0');
        return Ok(Some(Login::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }));
    }
    Ok(match (&entry.username, &entry.password) {
        (Some(user), Some(password)) => Some(Login::Password {
            user: user.clone(),
            password: password.clone(),
        }),
        _ => None,
    })
}

fn ask_helper(name: &str, key: &str) -> Result<Option<Login>, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err("the credential helper's name is malformed".to_owned());
    }
    let program = format!("docker-credential-{name}");
    let failed = |reason: &str| format!("{program}: {reason}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(&error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read fails by its own answer.
        let _ = stdin.write_all(key.as_bytes());
    }
    let (done, answer) = sync_channel(1);
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut output = Vec::new();
            let result = stdout.take(MAX_HELPER_OUTPUT).read_to_end(&mut output);
            let _ = done.send(result.map(|_| output));
        });
    }
    let output = answer.recv_timeout(HELPER_TIME);
    if output.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed(&error.to_string()))?;
    let output = output
        .map_err(|_| failed("it did not answer in time"))?
        .map_err(|error| failed(&error.to_string()))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        let unknown = text.contains("credentials not found") || text.trim().is_empty();
        return if unknown {
            Ok(None)
        } else {
            Err(failed("it failed"))
        };
    }
    let output: HelperOutput =
        serde_json::from_slice(&output).map_err(|_| failed("its answer is malformed"))?;
    Ok(Some(match output.username.as_str() {
        "<token>" => Login::IdentityToken(output.secret),
        _ => Login::Password {
            user: output.username,
            password: output.secret,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::{Login, from_config};

    fn login(json: &str, registry: &str) -> Result<Option<Login>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        from_config(&path, registry)
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn finds_the_registry_and_no_other() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"localhost:5000":{"auth":"YTpiOmM="},
            "token.io":{"auth":"PHRva2VuPjo=","identitytoken":"t"}}}"#;
        assert!(login(json, "docker.io").unwrap() == password("u", "p"));
        assert!(login(json, "localhost:5000").unwrap() == password("a", "b:c"));
        assert!(login(json, "token.io").unwrap() == Some(Login::IdentityToken("t".to_owned())));
        assert!(login(json, "localhost:5001").unwrap().is_none());
        assert!(login(json, "localhost").unwrap().is_none());
    }

    #[test]
    fn does_not_tell_secrets_in_errors() {
        let error = login(r#"{"auths":{"a":"SECRET"}}"#, "a").err().unwrap();
        assert!(!error.contains("SECRET"), "{error}");
        assert!(login(r#"{"credsStore":"../../bin/sh"}"#, "a").is_err());
    }
}
