//! Secrets: what people write, what is kept of it, and where values are read.
//!
//! The spec of a sandbox, and so its files, hold a [`SecretSpec`]: the name, where the value
//! comes from, and where it may go. [`Values`] travel from the creator to the supervisor
//! beside the spec, and are nowhere else.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use msb_net::Name;
use msb_net::policy::Pattern;
use msb_net::secret::{
    self as net, Headers, MAX_SECRETS, MAX_VALUE, OnMisuse, SecretValue, Source,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, SecretProblem};

/// The longest name of a secret that a message carries; a longer one is refused before.
const MAX_NAME: usize = 128;

/// A secret that a guest uses without having it.
///
/// The guest's environment holds a placeholder under the secret's name. In requests to the
/// hosts that are named it becomes the value, outside of the guest; elsewhere it stays what
/// it is, worth nothing.
///
/// ```
/// use msb_sdk::{Sandbox, Secret};
///
/// let builder = Sandbox::builder("worker").image("python:3.12").secret(
///     Secret::env("OPENAI_API_KEY")
///         .from_env()
///         .allow_host("api.openai.com")
///         .header("authorization"),
/// );
/// # drop(builder);
/// ```
#[derive(Clone, Debug)]
#[must_use = "a secret does nothing until a sandbox has it"]
pub struct Secret {
    pub(crate) spec: SecretSpec,
    /// Of one that is [`SecretSource::Given`].
    pub(crate) value: Option<Result<Arc<SecretValue>, msb_net::Error>>,
}

impl Secret {
    /// A secret whose placeholder is in this variable of the guest. It needs a value, or a
    /// source of one, and a host.
    pub fn env(variable: impl Into<String>) -> Self {
        let spec = SecretSpec {
            name: variable.into(),
            source: SecretSource::Given,
            hosts: Vec::new(),
            headers: Vec::new(),
            query: false,
            body: false,
            methods: Vec::new(),
            path: None,
            plain_http: false,
            block_elsewhere: false,
            prefix: None,
        };
        Self { spec, value: None }
    }

    /// This value. One line's end behind it is not part of it. It is not kept: whoever
    /// starts a sandbox again gives it again.
    pub fn value(mut self, value: impl AsRef<[u8]>) -> Self {
        self.spec.source = SecretSource::Given;
        self.value = Some(SecretValue::new(value.as_ref()).map(Arc::new));
        self
    }

    /// The value of this process's variable of the same name, now and at each later start.
    pub fn from_env(self) -> Self {
        let variable = self.spec.name.clone();
        self.from_env_var(variable)
    }

    /// As [`Secret::from_env`], of a variable with another name.
    pub fn from_env_var(mut self, variable: impl Into<String>) -> Self {
        self.spec.source = SecretSource::Env(variable.into());
        self
    }

    /// The content of a file, read again for each connection and after a 401.
    pub fn from_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.source = SecretSource::File(path.into());
        self
    }

    /// What a program prints, run again for each connection and after a 401.
    pub fn from_command<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.spec.source = SecretSource::Command(words.into_iter().map(Into::into).collect());
        self
    }

    /// Lets requests to a host have the value: a name, or a name with a dot in front for it
    /// and all names below it.
    pub fn allow_host(mut self, host: impl Into<String>) -> Self {
        self.spec.hosts.push(host.into());
        self
    }

    /// Puts the value into this header field only, and others that are named so; into any
    /// that can carry a credential if none is named. Basic credentials are decoded.
    pub fn header(mut self, name: impl Into<String>) -> Self {
        self.spec.headers.push(name.into().to_ascii_lowercase());
        self
    }

    /// Puts the value into the query of a request's target, too.
    pub fn query(mut self) -> Self {
        self.spec.query = true;
        self
    }

    /// Puts the value into the body of a request, too, unless that is compressed.
    pub fn body(mut self) -> Self {
        self.spec.body = true;
        self
    }

    /// Only requests of this method have the value, and of others that are named so.
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.spec.methods.push(method.into().to_ascii_uppercase());
        self
    }

    /// Only requests whose path begins so, in whole segments, have the value.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.spec.path = Some(path.into());
        self
    }

    /// Lets requests without TLS have the value. Who answers them is then the word of the
    /// name servers, and anybody in between reads it.
    pub fn allow_plain_http(mut self) -> Self {
        self.spec.plain_http = true;
        self
    }

    /// Refuses requests that carry the placeholder to where the value may not go, as far as
    /// they are looked into.
    pub fn block_elsewhere(mut self) -> Self {
        self.spec.block_elsewhere = true;
        self
    }

    /// What the placeholder begins with, for programs that check the form of a key, such as
    /// `sk-`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.spec.prefix = Some(prefix.into());
        self
    }

    /// Checks all but its value and where that comes from, as is done when a sandbox gets it.
    ///
    /// # Errors
    ///
    /// [`Error::Secret`]: its name, or something that says where the value may go, is none.
    /// The message quotes the name and nothing else: people put a value where it does not
    /// belong.
    pub fn check(&self) -> Result<(), Error> {
        self.spec.check()
    }
}

/// What is kept of a secret: never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SecretSpec {
    /// Its name, which is also that of the guest's variable.
    pub name: String,
    /// Where its value comes from.
    pub source: SecretSource,
    /// The hosts whose requests get it; with a dot in front also those below.
    pub hosts: Vec<String>,
    /// The header fields that get it; all that can if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Whether the query of a request's target gets it.
    #[serde(default)]
    pub query: bool,
    /// Whether the body of a request gets it.
    #[serde(default)]
    pub body: bool,
    /// The methods whose requests get it; all if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// What a request's path must begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether requests without TLS get it.
    #[serde(default)]
    pub plain_http: bool,
    /// Whether its placeholder is refused elsewhere.
    #[serde(default)]
    pub block_elsewhere: bool,
    /// What its placeholder begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SecretSource {
    /// It was given, and is given again at each start.
    Given,
    /// A variable of whoever starts the sandbox.
    Env(String),
    /// A file.
    File(PathBuf),
    /// The output of a program.
    Command(Vec<String>),
}

impl SecretSpec {
    /// Checks everything but the value.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.hosts.is_empty() {
            return Err(self.failed(SecretProblem::NoHost));
        }
        if let SecretSource::Command(words) = &self.source
            && words.is_empty()
        {
            return Err(self.failed(SecretProblem::NotGiven));
        }
        patterns(&self.hosts).map_err(|_| self.failed(SecretProblem::Host))?;
        let source = Source::Env(String::new());
        let built = self.build(source);
        built.map_err(|source| self.failed(SecretProblem::Invalid(source)))?;
        Ok(())
    }

    pub(crate) fn failed(&self, problem: SecretProblem) -> Error {
        // What stands behind a name may be a value.
        let end = self
            .name
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let name = match end {
            Some(end) => format!("{}…", &self.name[..end]),
            None => self.name.clone(),
        };
        Error::Secret { name, problem }
    }

    /// The variable of this process that it is read from.
    pub(crate) fn variable(&self) -> Option<&str> {
        match &self.source {
            SecretSource::Env(variable) => Some(variable),
            _ => None,
        }
    }

    /// Paths do not depend on the working folder any more: the supervisor has another.
    pub(crate) fn make_absolute(&mut self) -> io::Result<()> {
        match &mut self.source {
            SecretSource::File(path) => *path = std::path::absolute(&*path)?,
            SecretSource::Command(words) => {
                if let Some(program) = words.first_mut()
                    && program.contains('/')
                {
                    let path = std::path::absolute(&*program)?;
                    *program = path.to_string_lossy().into_owned();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The network's side of it.
    fn build(&self, source: Source) -> Result<net::Secret, msb_net::Error> {
        let mut secret = net::Secret::new(&self.name, source)?;
        secret.hosts = patterns(&self.hosts)?;
        if !self.headers.is_empty() {
            secret.headers = Headers::Named(self.headers.clone());
        }
        (secret.query, secret.body) = (self.query, self.body);
        secret.methods.clone_from(&self.methods);
        secret.path.clone_from(&self.path);
        secret.plain_http = self.plain_http;
        if self.block_elsewhere {
            secret.on_misuse = OnMisuse::Block;
        }
        if let Some(prefix) = &self.prefix {
            // Tried out, with what is never used.
            net::Placeholder::new(prefix, [0; 24])?;
            secret.placeholder_prefix.clone_from(prefix);
        }
        secret.check()?;
        Ok(secret)
    }
}

/// Hosts: names, or names with a dot in front for all below them.
pub(crate) fn patterns(hosts: &[String]) -> Result<Vec<Pattern>, msb_net::Error> {
    let pattern = |host: &String| match host.strip_prefix('.') {
        Some(suffix) => suffix.parse::<Name>().map(Pattern::Suffix),
        None => host.parse::<Name>().map(Pattern::Domain),
    };
    hosts.iter().map(pattern).collect()
}

/// Checks what belongs to all of them.
pub(crate) fn check(secrets: &[SecretSpec], env: &[(String, String)]) -> Result<(), Error> {
    if secrets.len() > MAX_SECRETS {
        return Err(msb_net::Error::TooManySecrets { max: MAX_SECRETS }.into());
    }
    for (place, secret) in secrets.iter().enumerate() {
        secret.check()?;
        let again = secrets[..place].iter().any(|one| one.name == secret.name);
        if again || env.iter().any(|(name, _)| *name == secret.name) {
            return Err(secret.failed(SecretProblem::NameTaken));
        }
    }
    Ok(())
}

/// Values, by the names of their secrets. They are overwritten when this is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values(Vec<(String, Arc<SecretValue>)>);

impl Values {
    /// Takes the value of a secret, if it was given; returns what is kept of the secret.
    pub(crate) fn give(&mut self, secret: Secret) -> Result<SecretSpec, Error> {
        let Secret { spec, value } = secret;
        match (&spec.source, value) {
            (SecretSource::Given, Some(Ok(value))) => self.insert(&spec.name, value),
            (SecretSource::Given, Some(Err(source))) => {
                return Err(spec.failed(SecretProblem::Invalid(source)));
            }
            _ => {}
        }
        Ok(spec)
    }

    /// Takes values as they are given at a start, by the names of their secrets.
    pub(crate) fn named<N: Into<String>, V: AsRef<[u8]>>(
        given: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, Error> {
        let mut values = Self::default();
        for (name, value) in given {
            let name = name.into();
            match SecretValue::new(value.as_ref()) {
                Ok(value) => values.insert(&name, Arc::new(value)),
                Err(source) => {
                    let problem = SecretProblem::Invalid(source);
                    return Err(Error::Secret { name, problem });
                }
            }
        }
        Ok(values)
    }

    pub(crate) fn insert(&mut self, name: &str, value: Arc<SecretValue>) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value));
    }

    /// Reads what this process has to read, and looks whether the supervisor will find the
    /// rest.
    pub(crate) fn complete(mut self, secrets: &[SecretSpec]) -> Result<Self, Error> {
        let known = |name: &String| secrets.iter().any(|secret| secret.name == *name);
        if let Some((name, _)) = self.0.iter().find(|(name, _)| !known(name)) {
            return Err(Error::Secret {
                name: name.clone(),
                problem: SecretProblem::Unknown,
            });
        }
        for secret in secrets {
            let given = self.0.iter().any(|(name, _)| *name == secret.name);
            match &secret.source {
                _ if given => {}
                SecretSource::Given => return Err(secret.failed(SecretProblem::NotGiven)),
                SecretSource::Env(variable) => {
                    let value = read_variable(variable).map_err(|why| secret.failed(why))?;
                    self.insert(&secret.name, value);
                }
                SecretSource::File(path) => {
                    read_file(path).map_err(|why| secret.failed(why))?;
                }
                // It may ask somebody: it is run when its value is needed.
                SecretSource::Command(_) => {}
            }
        }
        Ok(self)
    }

    /// The variables of this process that secrets are read from, and all others that hold
    /// one of the values: whatever is started here would have them in the open.
    pub(crate) fn variables(&self, secrets: &[SecretSpec]) -> Vec<OsString> {
        use std::os::unix::ffi::OsStrExt;
        let sources: Vec<&str> = secrets.iter().filter_map(SecretSpec::variable).collect();
        let holds_one = |text: &OsStr| {
            let text = text.as_bytes();
            let in_text = |value: &[u8]| text.windows(value.len()).any(|part| part == value);
            self.0.iter().any(|(_, value)| in_text(value.expose()))
        };
        std::env::vars_os()
            .filter(|(name, text)| sources.iter().any(|own| *name == **own) || holds_one(text))
            .map(|(name, _)| name)
            .collect()
    }

    /// The network's secrets.
    pub(crate) fn secrets(
        &self,
        secrets: &[SecretSpec],
    ) -> Result<Vec<net::Secret>, msb_net::Error> {
        let build = |spec: &SecretSpec| {
            let given = self.0.iter().find(|(name, _)| *name == spec.name);
            let source = match (given, &spec.source) {
                (Some((_, value)), _) => Source::Literal(Arc::clone(value)),
                (None, SecretSource::File(path)) => Source::File(path.clone()),
                (None, SecretSource::Command(words)) => Source::Command(words.clone()),
                (None, SecretSource::Env(_) | SecretSource::Given) => {
                    return Err(msb_net::Error::Secret {
                        name: spec.name.clone(),
                        reason: msb_net::error::InvalidSecret::NoValue,
                    });
                }
            };
            spec.build(source)
        };
        secrets.iter().map(build).collect()
    }

    /// Sends them: their number, then length and bytes of each name and value, u32 LE.
    pub(crate) fn send(&self, socket: &mut impl Write) -> io::Result<()> {
        let parts =
            |(name, value): &(String, Arc<SecretValue>)| 8 + name.len() + value.expose().len();
        // Enough room: a vector that grows leaves copies behind.
        let room = 4 + self.0.iter().map(parts).sum::<usize>();
        let mut out = Zeroizing::new(Vec::with_capacity(room));
        out.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        for (name, value) in &self.0 {
            for part in [name.as_bytes(), value.expose()] {
                out.extend_from_slice(&(part.len() as u32).to_le_bytes());
                out.extend_from_slice(part);
            }
        }
        socket.write_all(&out)
    }

    /// Reads what was sent, and not a byte more.
    pub(crate) fn receive(socket: &mut impl Read) -> io::Result<Self> {
        let mut values = Self::default();
        for _ in 0..length(socket, MAX_SECRETS)? {
            let name = piece(socket, MAX_NAME)?;
            let name = std::str::from_utf8(&name).map_err(|_| io::ErrorKind::InvalidData)?;
            let value = SecretValue::new(&piece(socket, MAX_VALUE)?);
            let value = value.map_err(|_| io::ErrorKind::InvalidData)?;
            values.insert(name, Arc::new(value));
        }
        Ok(values)
    }
}

fn length(socket: &mut impl Read, max: usize) -> io::Result<usize> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(length)
}

fn piece(socket: &mut impl Read, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; length(socket, max)?]);
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_variable(variable: &str) -> Result<Arc<SecretValue>, SecretProblem> {
    use std::os::unix::ffi::OsStringExt;
    let odd = variable.is_empty() || variable.contains(['=', '\0']);
    let found = (!odd).then(|| std::env::var_os(variable)).flatten();
    let found = found.ok_or(SecretProblem::NoVariable)?;
    let found = Zeroizing::new(found.into_vec());
    let value = SecretValue::new(&found).map_err(SecretProblem::Invalid)?;
    Ok(Arc::new(value))
}

/// Reads a value from a file.
pub(crate) fn read_file(path: &Path) -> Result<Arc<SecretValue>, SecretProblem> {
    let bytes = msb_net::shell::read_secret_file(path).map_err(SecretProblem::Unreadable)?;
    let value = SecretValue::new(&bytes).map_err(SecretProblem::Invalid)?;
    Ok(Arc::new(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "s3cr3t-v4lue";

    fn problem(secret: Secret) -> String {
        let mut values = Values::default();
        if let Some(Ok(value)) = secret.value {
            values.insert(&secret.spec.name, value);
        }
        let specs = [secret.spec];
        let checked = check(&specs, &[("TAKEN".into(), String::new())]);
        let error = checked.and_then(|()| values.complete(&specs).map(drop));
        error.expect_err("a problem").to_string()
    }

    #[test]
    fn values_are_in_no_text_and_survive_the_way() {
        let secret = Secret::env("TOKEN").value(VALUE).allow_host(".example.com");
        let spec = serde_json::to_string(&secret.spec).expect("JSON");
        let shown = format!("{secret:?}");
        assert!(
            !spec.contains(VALUE) && !shown.contains(VALUE),
            "{spec} {shown}"
        );
        let mut values = Values::default();
        values.insert("TOKEN", secret.value.expect("a value").expect("a good one"));
        let mut sent = Vec::new();
        values.send(&mut sent).expect("send");
        sent.extend_from_slice(b"the rest");
        let mut socket = sent.as_slice();
        let received = Values::receive(&mut socket).expect("receive");
        assert_eq!(socket, b"the rest");
        let secrets = received.secrets(&[secret.spec]).expect("secrets");
        let Source::Literal(value) = &secrets[0].source else {
            panic!("{:?}", secrets[0].source);
        };
        assert_eq!(value.expose(), VALUE.as_bytes());
        assert!(secrets[0].is_for(&"api.example.com".parse().expect("a name")));
    }

    #[test]
    fn messages_that_lie_are_refused() {
        for sent in [
            &[1, 0, 0][..],
            &[0xff, 0xff, 0xff, 0xff],
            &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f],
            &[1, 0, 0, 0, 1, 0, 0, 0, 0xff],
            &[1, 0, 0, 0, 1, 0, 0, 0, b'A', 1, 0, 0, 0, b'v'],
        ] {
            assert!(Values::receive(&mut &*sent).is_err(), "{sent:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_its_value() {
        let good = || Secret::env("TOKEN").allow_host("a.example");
        for (secret, part) in [
            (Secret::env("TOKEN").value(VALUE), "no host"),
            (good(), "no value"),
            (good().from_env_var(VALUE), "variable"),
            (good().from_file(VALUE), "file"),
            (good().from_file(format!("/{VALUE}/{VALUE}")), "file"),
            (
                Secret::env("1A").value(VALUE).allow_host("a.example"),
                "digit",
            ),
            (Secret::env("TAKEN").value(VALUE).allow_host("a"), "TAKEN"),
            (
                Secret::env(format!("T={VALUE}")).allow_host("https://a.example"),
                "T…",
            ),
            (good().value(VALUE).allow_host("*.example"), "hosts"),
            (good().allow_host(format!("{VALUE}+")), "hosts"),
            (good().prefix(format!("{VALUE}/")), "prefix"),
            (good().header(format!("x key {VALUE}")), "header fields"),
            (good().value(VALUE).header("Host"), "header fields"),
            (good().method(format!("{VALUE}@")), "methods"),
            (good().value(VALUE).method("connect"), "methods"),
            (good().path(VALUE), "path"),
            (good().path(format!("/{VALUE}?a")), "path"),
            (good().value(VALUE).path("/a/../b"), "path"),
        ] {
            let text = problem(secret);
            let parts = ["s3cr3t", "S3CR3T", "v4lue", "V4LUE"];
            assert!(
                text.contains(part) && !parts.iter().any(|own| text.contains(own)),
                "{part}: {text}"
            );
        }
    }
}
