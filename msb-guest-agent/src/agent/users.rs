//! Users and groups of the image, from its own `/etc/passwd` and `/etc/group`.
//!
//! The agent is static: the C library's lookups would load plugins of the
//! image into PID 1. The rules are Docker's: a name or a number, optionally
//! `:` and a group or number; numbers need no entry; the supplementary groups
//! of a known user apply unless a group was given.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// Most bytes read of either file; the rest is not seen. Hundreds of times
/// what images have.
const MAX_DATABASE: u64 = 1024 * 1024;

/// Most supplementary groups, the kernel's own bound.
const MAX_GROUPS: usize = 65_536;

/// Somebody who can run a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: Vec<u8>,
}

/// The files, as read.
#[derive(Debug, Default)]
pub(super) struct Database {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Database {
    /// Reads the files; one that is missing is empty.
    pub(super) fn load() -> Database {
        let read = |path| {
            let mut bytes = Vec::new();
            // The workload may have put a FIFO there to hold the agent up.
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(libc::O_NONBLOCK);
            if let Ok(file) = options.open(path) {
                // What could be read is as good as the file gets.
                let _ = file.take(MAX_DATABASE).read_to_end(&mut bytes);
            }
            bytes
        };
        Database {
            passwd: read("/etc/passwd"),
            group: read("/etc/group"),
        }
    }

    /// Finds whom `spec` means: `name|uid[:group|gid]`, empty for root.
    pub(super) fn find(&self, spec: &str) -> Result<User, String> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = records(&self.passwd, 7).find(|fields| {
            fields[0] == user.as_bytes() || (is_number(user) && fields[2] == user.as_bytes())
        });
        let (uid, primary, home) = match &entry {
            Some(fields) => (
                number(fields[2]).ok_or("its entry in /etc/passwd has no uid")?,
                number(fields[3]).ok_or("its entry in /etc/passwd has no gid")?,
                fields[5].to_vec(),
            ),
            None => (
                number(user.as_bytes()).ok_or("no such user in the image's /etc/passwd")?,
                0,
                Vec::new(),
            ),
        };
        let group = group.filter(|group| !group.is_empty());
        let gid = group.map(|group| self.find_group(group)).transpose()?;
        let groups = match (&entry, gid) {
            (Some(fields), None) => self.groups_of(fields[0]),
            _ => Vec::new(),
        };
        Ok(User {
            uid,
            gid: gid.unwrap_or(primary),
            groups,
            home: if home.is_empty() { b"/".into() } else { home },
        })
    }

    fn find_group(&self, group: &str) -> Result<u32, String> {
        records(&self.group, 3)
            .find(|fields| fields[0] == group.as_bytes())
            .and_then(|fields| number(fields[2]))
            .or_else(|| number(group.as_bytes()))
            .ok_or_else(|| format!("no group {group:?} in the image's /etc/group"))
    }

    fn groups_of(&self, name: &[u8]) -> Vec<u32> {
        records(&self.group, 4)
            .filter(|fields| {
                fields[3]
                    .split(|byte| *byte == b',')
                    .any(|member| member == name)
            })
            .filter_map(|fields| number(fields[2]))
            .take(MAX_GROUPS)
            .collect()
    }
}

/// Lines with at least `count` fields.
fn records(file: &[u8], count: usize) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>())
        .filter(move |fields| fields.len() >= count && !fields[0].is_empty())
}

fn is_number(text: &str) -> bool {
    number(text.as_bytes()).is_some()
}

/// An id; the highest value means "no change" to the kernel and is none.
fn number(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        Database {
            passwd: b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/false\n\
                      broken\n1000:x:7:7::/odd:/bin/sh\nnohome:x:5:5:::/bin/sh"
                .to_vec(),
            group: b"root:x:0:\nstaff:x:50:www,other\nextra:x:60:other\nweb:x:34:\nadm:x:4:www\n"
                .to_vec(),
        }
    }

    #[test]
    fn users_by_name_number_and_group() {
        let find = |spec| {
            let user = database().find(spec).unwrap();
            (
                user.uid,
                user.gid,
                user.groups,
                String::from_utf8(user.home).unwrap(),
            )
        };
        assert_eq!(find(""), (0, 0, vec![], "/root".into()));
        assert_eq!(find("root"), (0, 0, vec![], "/root".into()));
        assert_eq!(find("www"), (33, 34, vec![50, 4], "/var/www".into()));
        assert_eq!(find("33"), (33, 34, vec![50, 4], "/var/www".into()));
        assert_eq!(find("www:staff"), (33, 50, vec![], "/var/www".into()));
        assert_eq!(find("www:77"), (33, 77, vec![], "/var/www".into()));
        assert_eq!(find("www:"), (33, 34, vec![50, 4], "/var/www".into()));
        assert_eq!(find("4711:12"), (4711, 12, vec![], "/".into()));
        assert_eq!(find("4711"), (4711, 0, vec![], "/".into()));
        assert_eq!(find("nohome"), (5, 5, vec![], "/".into()));
        assert_eq!(find(":staff"), (0, 50, vec![], "/root".into()));
        assert_eq!(
            find("1000"),
            (7, 7, vec![], "/odd".into()),
            "names go first"
        );
    }

    #[test]
    fn unknown_users_and_groups_are_refused() {
        for spec in [
            "nobody",
            "-1",
            "4294967295",
            "99999999999",
            "+5",
            "www:nope",
            "broken",
        ] {
            assert!(database().find(spec).is_err(), "{spec}");
        }
        assert!(Database::default().find("0").is_ok());
    }
}
