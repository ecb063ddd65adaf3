//! The secrets of a sandbox, and where their values are read.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::http::session::Note;
use crate::secret::substitute::Grant;
use crate::secret::{MAX_KNOWN, MAX_VALUE, Placeholder, Secret, SecretValue, Source};
use crate::{Error, Name};

/// How long a program may take to print a value: long enough for one that asks a
/// server, short enough for the request that waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is read at most: a value and the end of its line.
const MAX_READ: u64 = MAX_VALUE as u64 + 3;

/// The secrets of a sandbox.
pub(super) struct Vault(Vec<Entry>);

struct Entry {
    secret: Arc<Secret>,
    placeholder: Placeholder,
    /// The last reading. Whoever holds it reads: a guest that opens a thousand
    /// connections at once must not start a thousand programs.
    last: Mutex<Option<Reading>>,
}

#[derive(Clone)]
struct Reading {
    began: Instant,
    value: Option<Arc<SecretValue>>,
    /// Other values that were read before, the latest last: servers may still know them.
    former: Vec<Arc<SecretValue>>,
}

impl Entry {
    /// Reads the value, or takes it from a reading that began since.
    async fn value(&self) -> Reading {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.began >= asked) {
            return last.clone();
        }
        let began = Instant::now();
        let value = read(&self.secret.source).await;
        let (mut former, before) = match last.take() {
            Some(last) => (last.former, last.value),
            None => (Vec::new(), None),
        };
        former.extend(before);
        // One that comes again is the latest again.
        former.retain(|own| Some(own) != value.as_ref());
        former.drain(..former.len().saturating_sub(MAX_KNOWN - 1));
        let reading = Reading {
            began,
            value,
            former,
        };
        *last = Some(reading.clone());
        reading
    }
}

impl Vault {
    /// Gives each secret a placeholder of its own.
    pub(super) fn new(secrets: Vec<Secret>) -> Result<Self, Error> {
        let entry = |secret: Secret| {
            let mut random = [0; 24];
            let mut filled = 0;
            while filled < random.len() {
                let flags = rustix::rand::GetRandomFlags::empty();
                filled += rustix::rand::getrandom(&mut random[filled..], flags)
                    .map_err(|error| Error::system("get random bytes", &error.into()))?;
            }
            let placeholder = Placeholder::new(&secret.placeholder_prefix, random)?;
            Ok(Entry {
                secret: Arc::new(secret),
                placeholder,
                last: Mutex::new(None),
            })
        };
        secrets
            .into_iter()
            .map(entry)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn placeholders(&self) -> Vec<(String, Placeholder)> {
        let pair = |own: &Entry| (own.secret.name().into(), own.placeholder.clone());
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
        for entry in &self.0 {
            let secret = &entry.secret;
            let proven = secure || secret.plain_http && bound.contains(host);
            let (mut value, mut former) = (None, Vec::new());
            if proven && secret.is_for(host) {
                Reading { value, former, .. } = entry.value().await;
                if value.is_none() {
                    let secret = secret.name().into();
                    notes.push(Note::NoValue { secret });
                }
            }
            grants.push(Grant {
                secret: Arc::clone(secret),
                placeholder: entry.placeholder.clone(),
                value,
                former,
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
            let read = move || read_file(&path);
            tokio::task::spawn_blocking(read).await.ok()?.ok()?
        }
        Source::Command(words) => tokio::time::timeout(PATIENCE, run(words)).await.ok()??,
    };
    SecretValue::new(&bytes).ok().map(Arc::new)
}

/// Reads what may be a value from a file: somewhat more than the longest, at most.
///
/// # Errors
///
/// It cannot be read, or is no file: a FIFO, a device or a terminal would have somebody
/// wait, for each connection.
pub fn read_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(
        path,
        OFlags::RDONLY | flags,
        Mode::empty(),
    )?);
    if !file.metadata()?.is_file() {
        let reason = "it is not a file, which can be read again";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    // Enough room: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_READ as usize + 32));
    file.take(MAX_READ).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A program and all that it started, unless it ended by itself: they end with this.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // One that was not waited for keeps its number.
        let own = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(own) = own {
            // They may all have ended.
            let _ = kill_process_group(own, Signal::KILL);
        }
    }
}

async fn run(words: &[String]) -> Option<Zeroizing<Vec<u8>>> {
    let (program, arguments) = words.split_first()?;
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = Group(child.ok()?);
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_READ as usize + 32));
    let stdout = child.0.stdout.take()?;
    stdout.take(MAX_READ).read_to_end(&mut bytes).await.ok()?;
    let status = child.0.wait().await.ok()?;
    status.success().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(command: &str) -> Vault {
        let words = ["sh", "-c", command].map(String::from);
        let secret = Secret::new("TOKEN", Source::Command(words.into())).unwrap();
        Vault::new(vec![secret.allow_host("a.example".parse().unwrap())]).unwrap()
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work)
    }

    async fn value(vault: &Vault) -> Option<String> {
        let (host, mut notes) = ("a.example".parse().unwrap(), Vec::new());
        let grants = vault.grants(&host, true, &[], &mut notes).await;
        let value = grants[0].value.as_ref();
        assert_eq!(value.is_none(), matches!(notes[..], [Note::NoValue { .. }]));
        value.map(|value| String::from_utf8(value.expose().to_vec()).unwrap())
    }

    #[test]
    fn what_a_program_prints_is_the_value_if_it_succeeds() {
        for (command, expected) in [
            ("echo a-good-value", Some("a-good-value")),
            ("printf 'a-good-value\\r\\n'", Some("a-good-value")),
            ("echo a-good-value; exit 1", None),
            ("echo a-good-value >&2", None),
            ("echo short", None),
            ("exit 0", None),
            ("yes a-value-without-end", None),
            ("head -c 8193 /dev/zero", None),
            ("no-such-program-anywhere", None),
        ] {
            let got = block_on(async { value(&vault(command)).await });
            assert_eq!(got.as_deref(), expected, "{command}");
        }
    }

    /// A server may send back what was a value until a moment ago.
    #[test]
    fn values_of_before_are_remembered_a_few_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let secret = Secret::new("TOKEN", Source::File(path.clone())).unwrap();
        let vault = Vault::new(vec![secret.allow_host("a.example".parse().unwrap())]).unwrap();
        let text = |value: &Arc<SecretValue>| String::from_utf8(value.expose().into()).unwrap();
        let grants = |host: &str| {
            let (host, mut notes) = (host.parse().unwrap(), Vec::new());
            block_on(vault.grants(&host, true, &[], &mut notes))
        };
        for (written, former) in [
            ("value-one", &[][..]),
            ("value-two", &["value-one"]),
            ("short", &["value-one", "value-two"]),
            ("value-one", &["value-two"]),
            ("value-three", &["value-two", "value-one"]),
            ("value-four", &["value-two", "value-one", "value-three"]),
            ("value-five", &["value-one", "value-three", "value-four"]),
        ] {
            std::fs::write(&path, written).unwrap();
            let grants = grants("a.example");
            let got: Vec<_> = grants[0].former.iter().map(text).collect();
            assert_eq!(got, former, "{written}");
            let value = grants[0].value.as_ref().map(text);
            assert_eq!(value.as_deref(), (written != "short").then_some(written));
        }
        assert!(grants("b.example")[0].former.is_empty());
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let mode = Mode::from(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [&*fifo, Path::new("/dev/zero"), folder.path()] {
            assert!(read_file(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn many_who_ask_at_once_start_few_programs() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        let vault = vault(&format!("echo x >> {}; echo a-good-value", runs.display()));
        let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
        block_on(async {
            let mut asking: Vec<_> = (0..50).map(|_| Box::pin(value(&vault))).collect();
            // All ask before the first program ends.
            std::future::poll_fn(|cx| {
                asking.retain_mut(|one| one.as_mut().poll(cx).is_pending());
                match asking.is_empty() {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                }
            })
            .await;
            assert!(count() <= 2, "{} programs", count());
            let before = count();
            value(&vault).await;
            assert_eq!(count(), before + 1, "later, it is read again");
        });
    }

    /// A program that takes too long ends, and so does what it started.
    #[test]
    fn nothing_is_left_of_a_program_that_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let command = format!(
            "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
            path.display()
        );
        let words = ["sh", "-c", &command].map(String::from);
        let started = |path: &Path| std::fs::read_to_string(path).ok();
        let pid = block_on(async {
            let mut running = Box::pin(run(&words));
            std::future::poll_fn(|cx| {
                assert!(running.as_mut().poll(cx).is_pending());
                match started(&path) {
                    Some(pid) => std::task::Poll::Ready(pid),
                    None => {
                        cx.waker().wake_by_ref();
                        std::task::Poll::Pending
                    }
                }
            })
            .await
        });
        let stat = format!("/proc/{}/stat", pid.trim());
        // Its parent is gone: whoever is its new one may not have taken notice yet.
        let runs = || std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "));
        while runs() {
            std::thread::yield_now();
        }
    }
}
