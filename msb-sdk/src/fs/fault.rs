//! What can be wrong with a file, in terms that a program can decide on.

use msb_guest_agent::message::{self, Errno, FileKind};

/// Why an operation on files failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// Nothing is there.
    #[error("there is no such file or folder")]
    NotFound,
    /// Something is there already.
    #[error("it is there already")]
    AlreadyExists,
    /// A folder is there, and a file was wanted.
    #[error("it is a folder")]
    IsAFolder,
    /// A folder was wanted, as the path itself or on its way.
    #[error("it, or something on the way to it, is no folder")]
    NotAFolder,
    /// A file was wanted, and this is there: a device, a socket, a named pipe.
    #[error("it is a {0}, not a file")]
    NotAFile(FileKind),
    /// The folder is not empty.
    #[error("the folder is not empty")]
    NotEmpty,
    /// The user may not.
    #[error("permission denied")]
    PermissionDenied,
    /// The file system cannot be written to.
    #[error("its file system is read-only")]
    ReadOnly,
    /// The disk is full, or the memory that stands for one.
    #[error("no space is left")]
    NoSpace,
    /// The file would be longer than its file system allows, or than the sender may make it.
    #[error("the file is too large")]
    TooLarge,
    /// Symlinks go in circles, or one is where none may be.
    #[error("a symlink is in the way, or they go in circles")]
    Symlink,
    /// No path can be so.
    #[error("no path can be so: {0}")]
    InvalidPath(String),
    /// The user is not known to the image.
    #[error("the user is unknown: {0}")]
    BadUser(String),
    /// It is not UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// It is longer than what is collected.
    #[error("it is longer than {max} bytes")]
    TooLong {
        /// The most that is collected.
        max: usize,
    },
    /// The folder has more entries than are collected.
    #[error("it has more than {max} entries")]
    TooManyEntries {
        /// The most that are collected.
        max: usize,
    },
    /// Folders are nested deeper than is followed.
    #[error("folders are nested deeper than {0}")]
    TooDeep(u32),
    /// A tree is larger than [`CopyOptions`](crate::CopyOptions) allow.
    #[error("the copy is larger than allowed: {0}")]
    TooMuch(String),
    /// What the guest sent makes no sense.
    #[error("the guest sent what makes no sense: {0}")]
    Malformed(String),
    /// Another error of the kernel, by its number.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
}

impl FileFault {
    /// What the user can do about it, when there is something.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoSpace => "give the sandbox a disk (--disk, disk_mib) or more memory",
            Self::TooLong { .. } => "read it as it comes, with open_read",
            Self::TooManyEntries { .. } => "read them as they come, with open_list",
            Self::TooMuch(_) => "copy a part of it, or raise the limits of CopyOptions",
            Self::BadUser(_) => "name a user of the image's /etc/passwd, or a numeric uid",
            Self::IsAFolder => "name a file in it, or copy it as a whole",
            _ => return None,
        })
    }
}

impl From<message::FileFault> for FileFault {
    fn from(fault: message::FileFault) -> Self {
        use message::FileFault as Wire;
        match fault {
            Wire::System(errno) => errno.into(),
            Wire::NotAFile(kind) => Self::NotAFile(kind),
            Wire::BadPath(reason) => Self::InvalidPath(told(&reason)),
            Wire::BadUser(reason) => Self::BadUser(told(&reason)),
            Wire::TooDeep(max) => Self::TooDeep(max),
            Wire::TooMuch(what) => Self::TooMuch(told(&what)),
            Wire::BadTree(reason) => Self::Malformed(told(&reason)),
            other => Self::Malformed(told(&other.to_string())),
        }
    }
}

/// The kernel's largest error number.
const MAX_ERRNO: i32 = 4095;

/// The most that is taken of a guest's words, in characters.
const MAX_WORDS: usize = 300;

/// A guest's words: one line, of a bounded length.
fn told(words: &str) -> String {
    let line = words.chars().take(MAX_WORDS);
    line.map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

impl From<Errno> for FileFault {
    fn from(errno: Errno) -> Self {
        use rustix::io::Errno as Os;
        // The guest may send any number, and the type takes only those of errors.
        if !(1..=MAX_ERRNO).contains(&errno.0) {
            return Self::Os(errno.0);
        }
        match Os::from_raw_os_error(errno.0) {
            Os::NOENT => Self::NotFound,
            Os::EXIST => Self::AlreadyExists,
            Os::ISDIR => Self::IsAFolder,
            Os::NOTDIR => Self::NotAFolder,
            Os::NOTEMPTY => Self::NotEmpty,
            Os::ACCESS | Os::PERM => Self::PermissionDenied,
            Os::ROFS => Self::ReadOnly,
            Os::NOSPC | Os::DQUOT => Self::NoSpace,
            Os::FBIG => Self::TooLarge,
            Os::LOOP => Self::Symlink,
            Os::NAMETOOLONG => Self::InvalidPath("it is too long".into()),
            _ => Self::Os(errno.0),
        }
    }
}

impl From<&std::io::Error> for FileFault {
    fn from(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Errno(errno).into(),
            None => Self::Malformed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_are_one_short_line() {
        let words = "\u{1b}]0;x\u{7}\n".repeat(1000);
        let fault = FileFault::from(message::FileFault::BadPath(words));
        let text = fault.to_string();
        assert!(
            !text.contains(char::is_control) && text.len() < 400,
            "{text:?}"
        );
    }

    #[test]
    fn errors_of_the_kernel_have_their_names() {
        let of = |errno: rustix::io::Errno| FileFault::from(Errno(errno.raw_os_error()));
        use rustix::io::Errno as Os;
        assert_eq!(of(Os::NOSPC), FileFault::NoSpace);
        assert_eq!(of(Os::DQUOT), FileFault::NoSpace);
        assert_eq!(of(Os::ROFS), FileFault::ReadOnly);
        assert_eq!(of(Os::PERM), FileFault::PermissionDenied);
        assert_eq!(of(Os::IO), FileFault::Os(5));
        // What is no errno at all stays a number.
        assert_eq!(FileFault::from(Errno(-1)), FileFault::Os(-1));
        for number in [i32::MIN, 0, 4096, i32::MAX] {
            let fault = FileFault::from(Errno(number));
            assert_eq!(fault, FileFault::Os(number));
            assert!(!fault.to_string().is_empty());
        }
    }
}
