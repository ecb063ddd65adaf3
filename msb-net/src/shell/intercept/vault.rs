//! The secrets of a sandbox, and where their values are read.

use std::io::Read as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use crate::http::session::Note;
use crate::secret::substitute::Grant;
use crate::secret::{MAX_VALUE, Placeholder, Secret, SecretValue, Source};
use crate::{Error, Name};

/// How long a program may take to print a value: long enough for one that asks a
/// server, short enough for the request that waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is read at most: a value and the end of its line.
const MAX_READ: u64 = MAX_VALUE as u64 + 3;

/// The secrets of a sandbox.
pub(super) struct Vault(Vec<(Arc<Secret>, Placeholder)>);

impl Vault {
    /// Gives each secret a placeholder of its own.
    pub(super) fn new(secrets: Vec<Secret>) -> Result<Self, Error> {
        let pair = |secret: Secret| {
            let mut random = [0; 24];
            let mut filled = 0;
            while filled < random.len() {
                let flags = rustix::rand::GetRandomFlags::empty();
                filled += rustix::rand::getrandom(&mut random[filled..], flags)
                    .map_err(|error| Error::system("get random bytes", &error.into()))?;
            }
            let placeholder = Placeholder::new(&secret.placeholder_prefix, random)?;
            Ok((Arc::new(secret), placeholder))
        };
        secrets
            .into_iter()
            .map(pair)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn placeholders(&self) -> Vec<(String, Placeholder)> {
        let pair = |(secret, own): &(Arc<Secret>, Placeholder)| (secret.name().into(), own.clone());
        self.0.iter().map(pair).collect()
    }

    /// What the requests of a connection may have: `host` is proven by TLS if
    /// `secure`, and otherwise by the resolver's word only.
    pub(super) async fn grants(
        &self,
        host: &Name,
        secure: bool,
        bound: &[Name],
        notes: &mut Vec<Note>,
    ) -> Arc<[Grant]> {
        let mut grants = Vec::new();
        for (secret, placeholder) in &self.0 {
            let proven = secure || secret.plain_http && bound.contains(host);
            let mut value = None;
            if proven && secret.is_for(host) {
                value = read(&secret.source).await;
                if value.is_none() {
                    let secret = secret.name().into();
                    notes.push(Note::NoValue { secret });
                }
            }
            grants.push(Grant {
                secret: Arc::clone(secret),
                placeholder: placeholder.clone(),
                value,
            });
        }
        grants.into()
    }
}

/// Reads a value; what went wrong is not told, as it may hold part of one.
async fn read(source: &Source) -> Option<Arc<SecretValue>> {
    let bytes = match source {
        Source::Literal(value) => return Some(Arc::clone(value)),
        Source::Env(name) => {
            use std::os::unix::ffi::OsStringExt as _;
            Zeroizing::new(std::env::var_os(name)?.into_vec())
        }
        Source::File(path) => {
            let path = path.clone();
            let read = move || {
                // Enough room: a vector that grows leaves copies behind.
                let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_READ as usize + 32));
                let file = std::fs::File::open(path).ok()?;
                file.take(MAX_READ).read_to_end(&mut bytes).ok()?;
                Some(bytes)
            };
            tokio::task::spawn_blocking(read).await.ok()??
        }
        Source::Command(words) => tokio::time::timeout(PATIENCE, run(words)).await.ok()??,
    };
    SecretValue::new(&bytes).ok().map(Arc::new)
}

async fn run(words: &[String]) -> Option<Zeroizing<Vec<u8>>> {
    let (program, arguments) = words.split_first()?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_READ as usize + 32));
    let stdout = child.stdout.take()?;
    stdout.take(MAX_READ).read_to_end(&mut bytes).await.ok()?;
    child.wait().await.ok()?.success().then_some(bytes)
}
