//! Commands that open sandboxes: a script where the user's programs are, and what it opens in
//! `installed/NAME` of msb's home.
//!
//! `sandbox.json` there is a file as `--file` takes it, `command` a symlink to the script.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use msb_sdk::{Home, SandboxSpec};

use crate::Failure;

/// Scripts without this line are not ours to touch.
const MARK: &str = "# Made by `msb install`.";

/// The most that is read of a file to see whether it is a script of ours.
const MAX_SCRIPT: u64 = 64 << 10;

/// A command that was installed.
pub(crate) struct Installed {
    pub(crate) name: String,
    pub(crate) script: PathBuf,
    /// `None` if its file can't be read.
    pub(crate) spec: Option<SandboxSpec>,
}

impl Installed {
    /// Whether its sandbox is removed each time.
    pub(crate) fn is_temporary(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.name.is_empty())
    }
}

/// Where commands go.
pub(crate) fn folder() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = match (set("MSB_BIN"), set("HOME")) {
        (Some(folder), _) => PathBuf::from(folder),
        (None, Some(home)) => Path::new(&home).join(".local/bin"),
        (None, None) => {
            return Err(Failure::Usage {
                message: "there is no folder for commands: neither MSB_BIN nor HOME is set".into(),
                hint: Some("set MSB_BIN to a folder on PATH".into()),
            });
        }
    };
    std::path::absolute(&folder).map_err(|error| failed("use", &folder, &error))
}

/// All commands of this home, by name.
pub(crate) fn list(home: &Home) -> Result<Vec<Installed>, Failure> {
    let folder = home.path().join("installed");
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| failed("read", &folder, &error))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<_> = names.filter_map(|name| find(home, &name)).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// One of them.
pub(crate) fn find(home: &Home, name: &str) -> Option<Installed> {
    let place = place(home, name)?;
    let script = fs::read_link(place.join("command")).ok()?;
    Some(Installed {
        name: name.to_owned(),
        script,
        spec: SandboxSpec::from_file(place.join("sandbox.json")).ok(),
    })
}

/// Its folder, unless the name is that of another one.
fn place(home: &Home, name: &str) -> Option<PathBuf> {
    let single = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    single.then(|| home.path().join("installed").join(name))
}

/// Makes a command, or replaces one of ours.
pub(crate) fn add(home: &Home, name: &str, spec: &SandboxSpec) -> Result<PathBuf, Failure> {
    let script = folder()?.join(name);
    // One of this name in another home may be in the way, too: it is ours, and replaced.
    if fs::symlink_metadata(&script).is_ok() && !is_ours(&script) {
        return Err(Failure::Usage {
            message: format!("{} is there already, and not msb's", script.display()),
            hint: Some("give the command another name: --name NAME".into()),
        });
    }
    let place = place(home, name).ok_or_else(|| unknown(name))?;
    fs::create_dir_all(&place).map_err(|error| failed("make", &place, &error))?;
    let json = serde_json::to_vec_pretty(spec).map_err(io::Error::from);
    let file = place.join("sandbox.json");
    json.and_then(|json| replace(&file, &json, 0o600))
        .map_err(|error| failed("write", &file, &error))?;
    let link = place.join("command");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&script, &link).map_err(|error| failed("make", &link, &error))?;

    let text = text(home, name, &file, spec.name.is_empty())?;
    let bin = script.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(bin)
        .and_then(|()| replace(&script, text.as_bytes(), 0o755))
        .map_err(|error| failed("write", &script, &error))?;
    Ok(script)
}

/// Removes a command; its sandbox stays. Returns the script, if it was there and ours.
pub(crate) fn remove(home: &Home, name: &str) -> Result<Option<PathBuf>, Failure> {
    let installed = find(home, name).ok_or_else(|| unknown(name))?;
    let script = installed.script;
    let ours = is_ours(&script);
    if ours {
        fs::remove_file(&script).map_err(|error| failed("remove", &script, &error))?;
    }
    let place = place(home, name).ok_or_else(|| unknown(name))?;
    fs::remove_dir_all(&place).map_err(|error| failed("remove", &place, &error))?;
    Ok(ours.then_some(script))
}

fn unknown(name: &str) -> Failure {
    Failure::Usage {
        message: format!("msb has installed no command {name:?}"),
        hint: Some("`msb install --list` lists those that there are".into()),
    }
}

pub(crate) fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Usage {
        message: format!("cannot {what} {}: {error}", path.display()),
        hint: None,
    }
}

fn is_ours(script: &Path) -> bool {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        let file = fs::File::open(script)?;
        io::Read::read_to_string(&mut io::Read::take(file, MAX_SCRIPT), &mut text)?;
        Ok(text)
    };
    // Symlinks are somebody else's: what they name would be replaced.
    let regular = fs::symlink_metadata(script).is_ok_and(|found| found.is_file());
    regular && read().is_ok_and(|text| text.lines().any(|line| line == MARK))
}

/// Writes a file beside its place and moves it there.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside);
    let written = file.and_then(|mut file| file.write_all(content));
    let moved = written.and_then(|()| fs::rename(&beside, path));
    if moved.is_err() {
        let _ = fs::remove_file(&beside);
    }
    moved
}

/// The script.
fn text(home: &Home, name: &str, file: &Path, temporary: bool) -> Result<String, Failure> {
    let msb = std::env::current_exe();
    let msb = msb.map_err(|error| failed("find", Path::new("msb"), &error))?;
    let (home, msb, file) = (quoted(home.path())?, quoted(&msb)?, quoted(file)?);
    let shell = super::commands::shell::BEST;
    let open = if temporary {
        format!(
            "[ $# -gt 0 ] || set -- /bin/sh -c '{shell}'\nexec {msb} run -q $tty -f {file} -- \"$@\"\n"
        )
    } else {
        format!(
            "[ $# -gt 0 ] || exec {msb} shell -f {file} {name}\n\
             exec {msb} exec $tty -f {file} {name} -- \"$@\"\n"
        )
    };
    Ok(format!(
        "#!/bin/sh\n{MARK}\n# `msb uninstall {name}` removes it.\nMSB_HOME={home}\nexport MSB_HOME\n\
         tty=\n[ -t 0 ] && [ -t 1 ] && tty=-it\n{open}"
    ))
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| Failure::Usage {
        message: format!("the path {} is not UTF-8", path.display()),
        hint: None,
    })?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_whatever_is_in_them() {
        let quoted = quoted(Path::new("/a b/$(c)/d'e")).expect("UTF-8");
        assert_eq!(quoted, r"'/a b/$(c)/d'\''e'");
    }

    #[test]
    fn names_stay_in_their_folder() {
        let home = Home::at("/nowhere").expect("a home");
        for name in ["", ".", "..", "../x", "a/b", ".hidden"] {
            assert_eq!(place(&home, name), None, "{name:?}");
        }
        assert!(place(&home, "ubuntu").is_some());
    }
}
