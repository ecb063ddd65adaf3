//! What a sandbox's folder says about it, in two files.
//!
//! `sandbox.json` is what the sandbox is; it is written before the sandbox starts, as that of one
//! that is not kept, and once more when one that is has started.
//! `state.json` is how far it got; its supervisor writes it, and only who holds the lock
//! may believe that it runs.
//!
//! Both begin with a version. A file of a version that is not known is refused and not
//! touched. Files are replaced as a whole, so that there is never half of one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use msb_oci::Holder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::Ready;
use crate::error::Error;
use crate::home::unusable;
use crate::spec::SandboxSpec;
use crate::trouble::TroubleNote;

/// The version of both files that is written here.
const VERSION: u32 = 1;

const RECORD: &str = "sandbox.json";
pub(crate) const STATE: &str = "state.json";

/// The longest file that is read, in bytes: a block list of a million names and more.
const MAX_FILE: u64 = 64 << 20;

/// What a sandbox is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// Whether it stays when it is stopped.
    pub(crate) keep: bool,
    /// Milliseconds since the Unix epoch.
    pub(crate) created: u64,
    /// Digest of the image's manifest: what the reference meant when it was created.
    pub(crate) image: String,
    pub(crate) spec: SandboxSpec,
}

/// How far a sandbox got.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    pub(crate) phase: Phase,
    /// Process id of the supervisor that wrote this.
    pub(crate) pid: u32,
    /// When it began to start, in milliseconds since the Unix epoch.
    pub(crate) started: u64,
    pub(crate) ready: Option<Ready>,
    pub(crate) end: Option<Ended>,
    /// How the program that was started with the sandbox ended.
    #[serde(default)]
    pub(crate) program: Option<ProgramEnd>,
    /// What ran out or broke in it, a note for each kind.
    #[serde(default)]
    pub(crate) troubles: Vec<TroubleNote>,
}

/// See [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Starting,
    Running,
    Paused,
    Stopping,
    Stopped,
}

/// How a sandbox ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) reason: String,
    /// Whether that is what was asked for.
    pub(crate) asked: bool,
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
}

/// How a program ended, in words; the code is that of a shell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProgramEnd {
    pub(crate) reason: String,
    pub(crate) code: Option<u8>,
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

impl Record {
    pub(crate) fn new(spec: SandboxSpec, image: String, keep: bool) -> Self {
        Self {
            version: VERSION,
            keep,
            created: now(),
            image,
            spec,
        }
    }

    /// Writes it into the folder of a sandbox that begins to start. Until [`keep`] the folder is
    /// a leftover as soon as its lock is free: whoever dies in between leaves nothing.
    pub(crate) fn begin(&self, dir: &Path) -> Result<(), Error> {
        let provisional = Self {
            keep: false,
            ..self.clone()
        };
        replace(dir, RECORD, &provisional, false)
    }

    /// Reads it; `None` when there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        read(dir, RECORD)
    }
}

impl State {
    /// That of a sandbox which this process begins to start.
    pub(crate) fn starting() -> Self {
        Self {
            version: VERSION,
            phase: Phase::Starting,
            pid: std::process::id(),
            started: now(),
            ready: None,
            end: None,
            program: None,
            troubles: Vec::new(),
        }
    }

    /// Notes the end.
    pub(crate) fn ended(&mut self, reason: &str, asked: bool) {
        self.phase = Phase::Stopped;
        self.end = Some(Ended {
            reason: reason.to_owned(),
            asked,
            at: now(),
        });
    }

    /// Writes it into a sandbox's folder.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Error> {
        replace(dir, STATE, self, false)
    }

    /// Reads it; `None` when there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        read(dir, STATE)
    }
}

/// Notes that a sandbox stays when it is stopped. From here on it survives a crash of the host.
pub(crate) fn keep(dir: &Path) -> Result<(), Error> {
    match Record::read(dir)? {
        Some(record) => replace(
            dir,
            RECORD,
            &Record {
                keep: true,
                ..record
            },
            true,
        ),
        // Somebody removes it.
        None => Ok(()),
    }
}

/// Whether the folder is that of a sandbox that is kept.
pub(crate) fn is_kept(dir: &Path) -> Result<bool, Error> {
    Ok(Record::read(dir)?.is_some_and(|record| record.keep))
}

/// What a record says about its image, whatever else there is in it.
#[derive(Deserialize)]
struct Needs {
    keep: bool,
    image: String,
}

/// Who needs images: all sandboxes below a folder that are kept. A record of a newer version
/// is believed as far as it is understood; one that is damaged is that of a sandbox which
/// cannot be started.
pub(crate) fn holders(sandboxes: &Path) -> Vec<Holder> {
    let entries = fs::read_dir(sandboxes).into_iter().flatten().flatten();
    let holder = |entry: fs::DirEntry| {
        let path = entry.path().join(RECORD);
        if fs::metadata(&path).ok()?.len() > MAX_FILE {
            return None;
        }
        let needs: Needs = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let digest = needs.image.parse().ok().filter(|_| needs.keep)?;
        let name = format!("the sandbox {}", entry.file_name().display());
        Some(Holder { digest, name })
    };
    entries.filter_map(holder).collect()
}

/// Makes a leftover of the folder.
pub(crate) fn forget(dir: &Path) -> io::Result<()> {
    remove(&dir.join(RECORD))
}

/// Forgets how far a sandbox got.
pub(crate) fn forget_state(dir: &Path) -> io::Result<()> {
    remove(&dir.join(STATE))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn replace<T: Serialize>(dir: &Path, name: &str, value: &T, durable: bool) -> Result<(), Error> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.new"));
    let written = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, &path)?;
        if durable {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    written().map_err(|source| unusable(&path, source))
}

/// Nothing but the version: the rest may be anything.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>, Error> {
    let path = dir.join(name);
    match fs::metadata(&path) {
        Ok(found) if found.len() > MAX_FILE => {
            let reason = "it is too long".into();
            return Err(Error::DamagedState { path, reason });
        }
        _ => {}
    }
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(unusable(&path, source)),
    };
    let damaged = |error: serde_json::Error| Error::DamagedState {
        path: path.clone(),
        reason: error.to_string(),
    };
    let Versioned { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version > VERSION {
        return Err(Error::NewerState {
            path,
            version,
            known: VERSION,
        });
    }
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(Record::read(dir.path()).expect("nothing").is_none());
        let spec = SandboxSpec::new("one".into());
        Record::new(spec.clone(), "sha256:1".into(), true)
            .begin(dir.path())
            .expect("begin");
        assert!(!is_kept(dir.path()).expect("nobody knows of it"));
        keep(dir.path()).expect("keep");
        let record = Record::read(dir.path())
            .expect("read")
            .expect("it is there");
        assert_eq!((record.spec, record.keep), (spec, true));
        let mut state = State::starting();
        state.ended("killed", true);
        state.write(dir.path()).expect("write");
        let state = State::read(dir.path()).expect("read").expect("it is there");
        assert_eq!(state.phase, Phase::Stopped);
        assert_eq!(state.pid, std::process::id());
        forget(dir.path()).expect("forget");
        forget(dir.path()).expect("once is enough");
        keep(dir.path()).expect("it is gone");
        assert!(!is_kept(dir.path()).expect("nothing"));
    }

    #[test]
    fn kept_sandboxes_need_their_images_whatever_else_is_in_their_records() {
        let dir = tempfile::tempdir().expect("tempdir");
        let digest = format!("sha256:{}", "1".repeat(64));
        let write = |name: &str, text: &str| {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
            fs::write(dir.path().join(name).join(RECORD), text).expect("write");
        };
        let record = |keep: bool| {
            let spec = SandboxSpec::new("one".into());
            serde_json::to_string(&Record::new(spec, digest.clone(), keep)).expect("JSON")
        };
        write("kept", &record(true));
        write("fleeting", &record(false));
        write(
            "newer",
            &record(true).replace("\"version\":1", "\"version\":9,\"x\":[]"),
        );
        write("damaged", "{");
        fs::create_dir(dir.path().join("empty")).expect("mkdir");
        let mut names: Vec<_> = holders(dir.path())
            .into_iter()
            .map(|one| one.name)
            .collect();
        names.sort();
        assert_eq!(names, ["the sandbox kept", "the sandbox newer"]);
        assert!(holders(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn damage_is_reported_and_not_repaired() {
        let dir = tempfile::tempdir().expect("tempdir");
        for text in ["", "{", "[]", r#"{"version": 1}"#, r#"{"version": -1}"#] {
            fs::write(dir.path().join(RECORD), text).expect("write");
            let error = Record::read(dir.path()).expect_err(text);
            assert!(matches!(error, Error::DamagedState { .. }), "{error}");
        }
    }
}
