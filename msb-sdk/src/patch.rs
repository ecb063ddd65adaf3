//! Changes to an image's files that a sandbox begins with.
//!
//! They are the operations of [`Fs`], done before the first program can run. The image's own
//! files are not touched: what is changed lies above them, as what programs write.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::fs::{CopyOptions, Fs, WriteOptions};

/// What is msb's own in the guest.
const FOLDER: &str = "/.msb";

/// Is there when everything was done: a start may end in the middle.
const DONE: &str = "/.msb/patched";

/// Where scripts are, in the guest.
pub(crate) const SCRIPTS: &str = "/.msb/scripts";

/// The most bytes that the content of patches and scripts may have together: they travel with
/// the description of the sandbox. [`Patch::file`] and [`Patch::dir`] do not count.
pub(crate) const MAX_CONTENT: usize = 16 << 20;

/// The longest name of a script: that of any file.
const MAX_SCRIPT_NAME: usize = 255;

/// One change. Folders above what is made are made, too.
///
/// ```
/// use msb_sdk::{Patch, Sandbox};
///
/// let builder = Sandbox::builder("worker")
///     .image("python:3.12")
///     .patch(Patch::text("/etc/app.conf", "key=value\n").mode(0o600))
///     .patch(Patch::mkdir("/app").owner(1000, 1000))
///     .patch(Patch::append("/etc/hosts", "127.0.0.1 myapp.local\n"))
///     .patch(Patch::remove("/etc/motd"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[must_use = "a patch does nothing until it is given to a builder"]
pub struct Patch {
    /// Absolute path in the guest.
    path: String,
    /// What becomes of it.
    action: Action,
    /// Permissions, such as 0o755 in YAML; a number in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    /// Numbers of user and group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<(u32, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// A file with this text.
    Text(String),
    /// A file with these bytes, in base64.
    Bytes(#[schemars(with = "String")] Content),
    /// A copy of this file of the host.
    File(PathBuf),
    /// A copy of this folder of the host.
    Dir(PathBuf),
    /// A folder.
    Mkdir,
    /// A symlink that says this.
    Symlink(String),
    /// This text behind what is in the file.
    Append(String),
    /// Nothing in this place.
    Remove,
}

/// Bytes, as base64 in text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content(Vec<u8>);

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64
            .decode(text)
            .map(Content)
            .map_err(serde::de::Error::custom)
    }
}

impl Patch {
    fn new(path: impl Into<String>, action: Action) -> Self {
        Self {
            path: path.into(),
            action,
            mode: None,
            owner: None,
        }
    }

    /// A file with this text.
    pub fn text(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(path, Action::Text(text.into()))
    }

    /// A file with these bytes.
    pub fn bytes(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Action::Bytes(Content(bytes.into())))
    }

    /// A copy of a file of this host. It is read when the sandbox starts.
    pub fn file(path: impl Into<String>, source: impl AsRef<Path>) -> Self {
        Self::new(path, Action::File(absolute(source.as_ref())))
    }

    /// A copy of a folder of this host with all that is in it. It is read when the sandbox
    /// starts. What is in the guest's folder already stays, but for files of the same name.
    pub fn dir(path: impl Into<String>, source: impl AsRef<Path>) -> Self {
        Self::new(path, Action::Dir(absolute(source.as_ref())))
    }

    /// A folder.
    pub fn mkdir(path: impl Into<String>) -> Self {
        Self::new(path, Action::Mkdir)
    }

    /// A symlink at `path` that says `target`, in the place of a file that is there.
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, Action::Symlink(target.into()))
    }

    /// Text behind what is in a file, which is made when it is missing.
    pub fn append(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(path, Action::Append(text.into()))
    }

    /// Nothing in this place: a file, or a folder with all that is in it.
    pub fn remove(path: impl Into<String>) -> Self {
        Self::new(path, Action::Remove)
    }

    /// Sets permissions, such as `0o755`. Of a folder that is copied, those of its top.
    pub fn mode(mut self, permissions: u32) -> Self {
        self.mode = Some(permissions);
        self
    }

    /// Sets owner and group by their numbers; root otherwise. Of a folder that is copied, all
    /// that is in it.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// Takes a source that is relative as one below `folder`.
    pub(crate) fn resolve(&mut self, folder: &Path) {
        if let Action::File(source) | Action::Dir(source) = &mut self.action {
            *source = folder.join(&*source);
        }
    }

    /// Bytes that travel with the description.
    fn content_len(&self) -> usize {
        match &self.action {
            Action::Text(text) | Action::Append(text) | Action::Symlink(text) => text.len(),
            Action::Bytes(content) => content.0.len(),
            Action::File(_) | Action::Dir(_) | Action::Mkdir | Action::Remove => 0,
        }
    }

    /// Says what is wrong with it, if anything.
    fn check(&self) -> Result<(), &'static str> {
        if !self.path.starts_with('/') {
            return Err("its path must be absolute");
        }
        if self.path.contains('\0') {
            return Err("a NUL byte is in its path");
        }
        if self.mode.is_some_and(|mode| mode > 0o7777) {
            return Err("its mode is above 7777");
        }
        if let Action::File(source) | Action::Dir(source) = &self.action
            && !source.is_absolute()
        {
            return Err("its source must be an absolute path");
        }
        let fixed = matches!(self.action, Action::Symlink(_) | Action::Remove);
        if fixed && self.mode.is_some() {
            return Err("it has no mode");
        }
        Ok(())
    }

    /// Makes the change.
    async fn apply(&self, fs: &Fs) -> Result<(), Error> {
        let path = Path::new(&self.path);
        let above = path.parent().filter(|above| *above != Path::new("/"));
        if let Some(above) = above
            && !matches!(self.action, Action::Remove)
        {
            fs.mkdir_all(above).await?;
        }
        match &self.action {
            Action::Text(text) => self.write(fs, text.as_bytes(), WriteOptions::new()).await?,
            Action::Bytes(content) => self.write(fs, &content.0, WriteOptions::new()).await?,
            Action::Append(text) => {
                let options = WriteOptions::new().append();
                self.write(fs, text.as_bytes(), options).await?;
            }
            Action::File(source) | Action::Dir(source) => return self.copy(fs, source).await,
            Action::Mkdir => fs.make_folder(path, self.mode, true).await?,
            Action::Symlink(target) => {
                if fs.lexists(path).await? {
                    fs.remove(path).await?;
                }
                fs.symlink(target, path).await?;
            }
            Action::Remove => {
                if fs.lexists(path).await? {
                    fs.remove_all(path).await?;
                }
                return Ok(());
            }
        }
        if let Some((uid, gid)) = self.owner {
            fs.lchown(path, Some(uid), Some(gid)).await?;
        }
        Ok(())
    }

    async fn write(&self, fs: &Fs, content: &[u8], mut options: WriteOptions) -> Result<(), Error> {
        if let Some(mode) = self.mode {
            options = options.permissions(mode);
        }
        let mut writer = fs.open_write_with(&self.path, options).await?;
        writer.write(content).await?;
        writer.finish().await
    }

    async fn copy(&self, fs: &Fs, source: &Path) -> Result<(), Error> {
        let mut options = CopyOptions::default();
        if let Some((uid, gid)) = self.owner {
            options = options.owner(uid, gid);
        }
        // The file that is meant, not a symlink that names it.
        let source = std::fs::canonicalize(source).map_err(|error| Error::HostFile {
            path: source.to_owned(),
            fault: (&error).into(),
        })?;
        fs.copy_in_with(source, &self.path, options).await?;
        match self.mode {
            Some(mode) => fs.chmod(&self.path, mode).await,
            None => Ok(()),
        }
    }
}

/// A source as this program means it: the supervisor has another working folder.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Checks patches and scripts; the error is what is wrong and with which.
pub(crate) fn check(
    patches: &[Patch],
    scripts: &[(String, String)],
) -> Result<(), (String, String)> {
    for patch in patches {
        patch
            .check()
            .map_err(|reason| (format!("of {}", patch.path), reason.to_owned()))?;
    }
    for (name, _) in scripts {
        let wrong = name.is_empty()
            || name.len() > MAX_SCRIPT_NAME
            || name == "."
            || name == ".."
            || name.contains(['/', '\0']);
        if wrong {
            let reason = "a script is called by its name, without folders";
            return Err((format!("script {name:?}"), reason.to_owned()));
        }
    }
    let content: usize = patches.iter().map(Patch::content_len).sum();
    let content = content + scripts.iter().map(|(_, text)| text.len()).sum::<usize>();
    if content > MAX_CONTENT {
        let reason =
            format!("at most {MAX_CONTENT} bytes of content; Patch::file and Patch::dir take more");
        return Err((format!("with {content} bytes"), reason));
    }
    Ok(())
}

/// Makes all changes, in order, and puts scripts in their place, unless that was done at an
/// earlier start of the same root.
pub(crate) async fn apply(
    fs: &Fs,
    patches: &[Patch],
    scripts: &[(String, String)],
) -> Result<(), Error> {
    if fs.lexists(DONE).await? {
        return Ok(());
    }
    for patch in patches {
        patch.apply(fs).await?;
    }
    if !scripts.is_empty() {
        fs.mkdir_all(SCRIPTS).await?;
    }
    for (name, text) in scripts {
        let options = WriteOptions::new().permissions(0o755);
        let path = format!("{SCRIPTS}/{name}");
        let mut writer = fs.open_write_with(path, options).await?;
        writer.write(text).await?;
        writer.finish().await?;
    }
    fs.mkdir_all(FOLDER).await?;
    fs.write(DONE, "").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_survive_the_way_to_the_supervisor() {
        let patches = [
            Patch::text("/a", "text").mode(0o600),
            Patch::bytes("/b", [0, 255, 7]).owner(1, 2),
            Patch::file("/c", "/etc/hostname"),
            Patch::dir("/d", "relative"),
            Patch::mkdir("/e"),
            Patch::symlink("/f", "target"),
            Patch::append("/g", "more"),
            Patch::remove("/h"),
        ];
        let json = serde_json::to_string(&patches).expect("encode");
        assert!(
            json.contains(r#"{"path":"/a","action":{"text":"text"},"mode":384}"#),
            "{json}"
        );
        assert!(!json.contains("\"relative\""), "it is absolute: {json}");
        let back: Vec<Patch> = serde_json::from_str(&json).expect("decode");
        assert_eq!(back, patches);
        let relative = r#"[{"path":"/a","action":{"dir":"here"}}]"#;
        let relative: Vec<Patch> = serde_json::from_str(relative).expect("decode");
        assert!(
            check(&relative, &[]).is_err(),
            "the supervisor is elsewhere"
        );
        let unknown = r#"{"path":"/a","action":"mkdir","mod":1}"#;
        assert!(serde_json::from_str::<Patch>(unknown).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for patch in [
            Patch::text("relative", ""),
            Patch::mkdir("/a\0b"),
            Patch::mkdir("/a").mode(0o10000),
            Patch::remove("/a").mode(0o644),
            Patch::symlink("/a", "b").mode(0o644),
        ] {
            assert!(
                check(std::slice::from_ref(&patch), &[]).is_err(),
                "{patch:?}"
            );
        }
        for name in ["", ".", "..", "a/b", "/a", "a\0"] {
            let script = [(name.to_owned(), String::new())];
            assert!(check(&[], &script).is_err(), "{name:?}");
        }
        let large = Patch::bytes("/a", vec![0; MAX_CONTENT + 1]);
        assert!(check(&[large], &[]).is_err());
        assert!(check(&[Patch::remove("/a")], &[("setup".into(), "true".into())]).is_ok());
    }
}
