//! Where things lie on the host: `$MSB_HOME` and the guest bundle.
//!
//! The only file of the SDK that reads the environment.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use msb_oci::{Holders, Store};

use crate::error::Error;
use crate::{record, snapshot};

/// The folder that holds images, templates and sandboxes.
///
/// Its layout: `blobs/` and `images/` belong to the image store, `templates/` to
/// the virtual machine monitor, `snapshots/NAME/` is a sandbox that was saved,
/// `sandboxes/NAME/` belongs to one sandbox each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// `$MSB_HOME`, else `.msb` in the user's home folder.
    ///
    /// # Errors
    /// [`Error::NoHome`] when neither `MSB_HOME` nor `HOME` is set.
    pub fn from_env() -> Result<Self, Error> {
        if let Some(root) = env::var_os("MSB_HOME").filter(|root| !root.is_empty()) {
            return Self::at(root);
        }
        let user = env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .ok_or(Error::NoHome)?;
        Self::at(Path::new(&user).join(".msb"))
    }

    /// A home at a path of the caller's choice. It is made when first used.
    ///
    /// # Errors
    /// [`Error::NoHome`] when the path is relative and the current folder is gone,
    /// [`Error::Home`] when it is not UTF-8.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = std::path::absolute(root.into()).map_err(|_| Error::NoHome)?;
        if root.to_str().is_none() {
            // Paths travel in JSON, to the supervisor and to QEMU.
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
            return Err(unusable(&root, source));
        }
        Ok(Self { root })
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The image store. Sandboxes that are kept need their images, also while they are stopped,
    /// and so do snapshots.
    pub(crate) fn store(&self) -> msb_oci::Result<Store> {
        let (sandboxes, snapshots) = (self.sandboxes(), self.snapshots());
        Store::open_held(
            &self.root,
            Holders::new(move || {
                let mut holders = record::holders(&sandboxes);
                holders.extend(snapshot::holders(&snapshots));
                holders
            }),
        )
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// Makes a folder below the home; only its owner may look into it.
    pub(crate) fn make_dir(&self, path: &Path) -> Result<(), Error> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| Error::Home {
                path: path.to_owned(),
                source,
            })
    }
}

/// The guest's kernel and first program, as files on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestBundle {
    /// The kernel: an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// The initramfs, which holds the agent.
    pub initramfs: PathBuf,
}

impl GuestBundle {
    /// Looks for `vmlinux` and `initramfs.cpio` in `$MSB_GUEST`, in `guest` beside
    /// this program or in the three folders above it, in `lib/msb` of the
    /// prefix it is installed in, and in `guest` below the home.
    ///
    /// # Errors
    /// [`Error::NoGuest`], which lists where it looked.
    pub fn find(home: &Home) -> Result<Self, Error> {
        let mut searched = Vec::new();
        if let Some(dir) = env::var_os("MSB_GUEST").filter(|dir| !dir.is_empty()) {
            // Asked for by name: nothing else will do.
            searched.push(PathBuf::from(dir));
        } else {
            if let Ok(program) = env::current_exe() {
                let folders = program.ancestors().skip(1).take(4);
                searched.extend(folders.map(|folder| folder.join("guest")));
                searched.extend(
                    program
                        .ancestors()
                        .nth(2)
                        .map(|prefix| prefix.join("lib/msb")),
                );
            }
            searched.push(home.root.join("guest"));
        }
        for dir in &searched {
            let bundle = Self {
                kernel: dir.join("vmlinux"),
                initramfs: dir.join("initramfs.cpio"),
            };
            if bundle.kernel.is_file() && bundle.initramfs.is_file() {
                return Ok(bundle);
            }
        }
        Err(Error::NoGuest { searched })
    }
}

/// The program to start as supervisor when this one has no hook.
pub(crate) fn installed_msb() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join("msb"))
        .find(|file| file.is_file())
}

/// Where `docker login` keeps credentials for this user.
pub(crate) fn docker_config() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let dir = set("DOCKER_CONFIG").map(PathBuf::from);
    dir.or_else(|| set("HOME").map(|home| Path::new(&home).join(".docker")))
        .map(|dir| dir.join("config.json"))
}

/// What keeps a folder from being used, as an error that names it.
pub(crate) fn unusable(path: &Path, source: io::Error) -> Error {
    Error::Home {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_home_becomes_absolute() {
        let home = Home::at("somewhere").expect("home");
        assert!(home.path().is_absolute());
    }

    #[test]
    fn a_home_that_is_not_utf8_is_refused_by_name() {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(b"/tmp/\xff");
        assert!(matches!(Home::at(path), Err(Error::Home { .. })));
    }

    #[test]
    fn folders_of_the_home_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::at(dir.path().join("home")).expect("home");
        home.make_dir(&home.sandboxes()).expect("make");
        let mode = fs::metadata(home.sandboxes())
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
