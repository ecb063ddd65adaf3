//! The files that say who this guest is: host name, machine id, hosts, resolvers.
//!
//! Where the upper of the root is new, empty ones are put there before the overlay is
//! mounted, and kept open until their content is known: writing through an overlay copies
//! up what is below, which is much kernel code for a freshly restored guest. What cannot
//! be made that way is written through the root.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::network::Files;
use crate::message::GuestConfig;

const MACHINE_ID: &str = "machine-id";
const HOSTNAME: &str = "hostname";
const HOSTS: &str = "hosts";
/// Replaced, not written: in images it often is a link to what a service would make.
const RESOLV_CONF: &str = "resolv.conf";

/// The longest `hosts` that a name is looked for in: a list of blocked names can be longer,
/// and a guest that becomes another does not wait for it.
const MAX_HOSTS: u64 = 256 << 10;

/// Files in `/etc` that are there already and wait for their content.
#[derive(Debug, Default)]
pub(super) struct Identity {
    files: Vec<(&'static str, File)>,
}

impl Identity {
    /// Makes in a new `upper` of `lower` what can be made there with the result that
    /// writing through the overlay has.
    pub(super) fn prepare(lower: &Path, upper: &Path) -> io::Result<Identity> {
        let (lower, upper) = (lower.join("etc"), upper.join("etc"));
        let Some(image) = plain(&lower)?.filter(Metadata::is_dir) else {
            return Ok(Identity::default());
        };
        fs::create_dir(&upper)?;
        take_over(&upper, &image, 0o755)?;
        let mut files = Vec::new();
        for name in [MACHINE_ID, HOSTNAME, HOSTS, RESOLV_CONF] {
            let path = upper.join(name);
            match plain_or_missing(&lower.join(name))? {
                Below::Missing => files.push((name, create(&path)?)),
                // What is in the upper hides what is below, whatever that is.
                _ if name == RESOLV_CONF => files.push((name, create(&path)?)),
                Below::Plain(image) if image.is_file() => {
                    files.push((name, create(&path)?));
                    take_over(&path, &image, 0o644)?;
                }
                _ => {}
            }
        }
        Ok(Identity { files })
    }

    /// Writes everything, into the files that were prepared or else into the `/etc` of
    /// `root`. In a root that was used before (`resumed`) only what must not be stale is
    /// written: the rest may be the user's.
    ///
    /// What an image has made unwritable keeps nothing else from being written; the error is
    /// that of the first such file.
    pub(super) fn write(
        mut self,
        config: &GuestConfig,
        network: Files,
        resumed: bool,
        root: &Path,
    ) -> io::Result<()> {
        let etc = root.join("etc");
        let mut done = Ok(());
        for (name, content) in contents(config, network, resumed) {
            let prepared = self.files.iter_mut().find(|(known, _)| *known == name);
            let written = match prepared {
                Some((_, file)) => file.write_all(content.as_bytes()),
                None => write_through(&etc, name, &content),
            };
            done = done.and(written);
        }
        done
    }
}

/// The files of a root that was used before, to be written over when it becomes another's:
/// opened and read ahead of that, because to find a file takes a restored guest more than to
/// write it.
///
/// Those that nobody may change meanwhile are kept open: files of the root's own file system.
/// The others are found when they are written.
#[derive(Debug)]
pub(super) struct Used<'a> {
    root: &'a Path,
    files: Vec<(&'static str, Opened)>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    content: String,
}

impl Used<'_> {
    /// Opens nothing: all of them are found when they are written.
    pub(super) fn unopened(root: &Path) -> Used<'_> {
        let files = Vec::new();
        Used { root, files }
    }

    /// Opens what can be opened.
    pub(super) fn open(root: &Path) -> Used<'_> {
        let files = [MACHINE_ID, HOSTNAME, HOSTS, RESOLV_CONF].into_iter();
        let files = files.filter_map(|name| Some((name, Opened::open(root, name)?)));
        Used {
            root,
            files: files.collect(),
        }
    }

    /// Writes over what says whose root this is. In `hosts` that is one line, if it is still
    /// as it was written: the rest may be the user's.
    pub(super) fn rename(
        &mut self,
        config: &GuestConfig,
        network: Files,
        old_name: &str,
    ) -> io::Result<()> {
        let etc = self.root.join("etc");
        let mut done = Ok(());
        for (name, content) in contents(config, network, true) {
            let written = match self.opened(name) {
                Some(opened) => opened.overwrite(content),
                None => write_through(&etc, name, &content),
            };
            done = done.and(written);
        }
        let rename = |text: &str| {
            let old = own_line(old_name);
            let lines = text.split('\n').map(|line| match line {
                line if line == old => own_line(&config.hostname),
                line => line.to_owned(),
            });
            lines.collect::<Vec<String>>().join("\n")
        };
        let hosts = etc.join(HOSTS);
        if let Some(opened) = self.opened(HOSTS) {
            let renamed = rename(&opened.content);
            done = done.and(opened.overwrite(renamed));
        } else if hosts.metadata().is_ok_and(|file| is_small(&file)) {
            overwrite(&hosts, &rename(&fs::read_to_string(&hosts)?))?;
        }
        done
    }

    /// The machine id that programs read, if there is one that they understand.
    pub(super) fn machine_id(&mut self) -> Option<[u8; 16]> {
        match self.opened(MACHINE_ID) {
            Some(opened) => parse_machine_id(&opened.content),
            None => machine_id(self.root),
        }
    }

    fn opened(&mut self, name: &str) -> Option<&mut Opened> {
        let mut files = self.files.iter_mut();
        let found = files.find(|(known, _)| *known == name);
        found.map(|(_, opened)| opened)
    }
}

impl Opened {
    /// `None` for what is not a small file of text on the file system of `root`. Another may
    /// be served by somebody who is held.
    fn open(root: &Path, name: &str) -> Option<Opened> {
        let mut flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        // A link in its place is replaced, not followed.
        flags.set(OFlags::NOFOLLOW, name == RESOLV_CONF);
        let mut file = open_on(root, &Path::new("etc").join(name), flags).ok()?;
        let mut content = String::new();
        if !is_small(&file.metadata().ok()?) {
            return None;
        }
        Read::by_ref(&mut file)
            .take(MAX_HOSTS)
            .read_to_string(&mut content)
            .ok()?;
        Some(Opened { file, content })
    }

    /// Makes its content another one, if it is.
    fn overwrite(&mut self, content: String) -> io::Result<()> {
        if self.content == content {
            return Ok(());
        }
        self.file.write_all_at(content.as_bytes(), 0)?;
        if content.len() < self.content.len() {
            self.file.set_len(content.len() as u64)?;
        }
        self.content = content;
        Ok(())
    }
}

/// Opens a file of the file system of `root`, by a path from there.
fn open_on(root: &Path, path: &Path, flags: OFlags) -> io::Result<File> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), within)?;
    Ok(file.into())
}

/// Whether a file is on the file system of `root`, or nowhere: to read it then depends on
/// nobody who is held.
pub(super) fn is_on(root: &Path, path: &str) -> bool {
    let opened = open_on(root, Path::new(path), OFlags::PATH);
    opened.map_or_else(|error| error.kind() == ErrorKind::NotFound, |_| true)
}

fn is_small(file: &Metadata) -> bool {
    file.is_file() && file.len() <= MAX_HOSTS
}

/// The machine id that programs in `root` read, if it has one that they understand.
fn machine_id(root: &Path) -> Option<[u8; 16]> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(root.join("etc").join(MACHINE_ID)).ok()?;
    let mut text = String::new();
    // Two digits a byte, and the end of the line.
    file.take(33).read_to_string(&mut text).ok()?;
    parse_machine_id(&text)
}

fn parse_machine_id(text: &str) -> Option<[u8; 16]> {
    let text = text.trim_end();
    let number = u128::from_str_radix(text, 16).ok();
    number
        .filter(|_| text.len() == 32 && !text.starts_with('+'))
        .map(u128::to_be_bytes)
}

/// The line of `hosts` that has the guest's own name.
fn own_line(name: &str) -> String {
    format!("127.0.0.1\tlocalhost {name}")
}

/// Writes a file of an image, if that has a place for it.
fn write_through(etc: &Path, name: &str, content: &str) -> io::Result<()> {
    if !etc.is_dir() {
        return Ok(());
    }
    let path = etc.join(name);
    if name == RESOLV_CONF && !path.symlink_metadata().is_ok_and(|old| old.is_file()) {
        let _ = fs::remove_file(&path);
    }
    overwrite(&path, content)
}

/// The files by their names.
fn contents(config: &GuestConfig, network: Files, resumed: bool) -> Vec<(&'static str, String)> {
    let id = config.machine_id.iter().map(|byte| format!("{byte:02x}"));
    let mut files = vec![
        (MACHINE_ID, id.collect::<String>() + "\n"),
        (HOSTNAME, format!("{}\n", config.hostname)),
    ];
    if !resumed {
        let hosts = format!(
            "{}\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
            own_line(&config.hostname)
        );
        files.push((HOSTS, hosts + &network.hosts));
    }
    // Without a network there is nobody to ask: the image's resolvers are not reached.
    files.push((RESOLV_CONF, network.resolv_conf));
    files
}

/// What the image has in a place.
enum Below {
    Missing,
    /// Something without extended attributes.
    Plain(Metadata),
    Special,
}

fn plain_or_missing(path: &Path) -> io::Result<Below> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Below::Missing),
        Err(error) => return Err(error),
    };
    match rustix::fs::llistxattr(path, &mut [0u8; 0]) {
        Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(Below::Plain(metadata)),
        Ok(_) => Ok(Below::Special),
        Err(errno) => Err(errno.into()),
    }
}

fn plain(path: &Path) -> io::Result<Option<Metadata>> {
    Ok(match plain_or_missing(path)? {
        Below::Plain(metadata) => Some(metadata),
        Below::Missing | Below::Special => None,
    })
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644).open(path)
}

/// Gives what was made with `mode`, by root, the owner and mode of `image`.
pub(super) fn take_over(path: &Path, image: &Metadata, mode: u32) -> io::Result<()> {
    if (image.uid(), image.gid()) != (0, 0) {
        chown(path, Some(image.uid()), Some(image.gid()))?;
    }
    if image.mode() & 0o7777 != mode {
        fs::set_permissions(path, Permissions::from_mode(image.mode() & 0o7777))?;
    }
    Ok(())
}

/// Writes a file of the image, which may have a FIFO in its place: that must
/// not hold the agent up.
///
/// It is cut off behind what was written, if there is something: to empty it first is
/// much kernel code for a freshly restored guest.
fn overwrite(path: &Path, content: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let mut file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
    file.write_all(content.as_bytes())?;
    // What has no length has nothing behind.
    match file.seek(SeekFrom::End(0)) {
        Ok(length) if length > content.len() as u64 => file.set_len(content.len() as u64),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ByteString, Entropy, RootSpec};

    fn config() -> GuestConfig {
        GuestConfig {
            entropy: Entropy(ByteString::default()),
            wall_clock_ns: 0,
            hostname: "box".into(),
            machine_id: [0xab; 16],
            root: RootSpec {
                lower: "vda".into(),
                upper: crate::message::Upper::Tmpfs { size: None },
            },
            env: Vec::new(),
            user: None,
            workdir: None,
            network: None,
            trust: None,
        }
    }

    /// A place of its own, gone when it is dropped.
    struct Place(std::path::PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let name = format!("msb-identity-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            for part in ["lower", "upper"] {
                fs::create_dir(path.join(part)).unwrap();
            }
            Place(path)
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_of_a_new_upper_have_the_modes_of_the_image() {
        let place = Place::new("modes");
        let (lower, upper) = (place.0.join("lower"), place.0.join("upper"));
        fs::create_dir(lower.join("etc")).unwrap();
        fs::set_permissions(lower.join("etc"), Permissions::from_mode(0o711)).unwrap();
        fs::write(lower.join("etc/hostname"), "a longer old name").unwrap();
        let secret = Permissions::from_mode(0o600);
        fs::set_permissions(lower.join("etc/hostname"), secret).unwrap();
        let identity = Identity::prepare(&lower, &upper).unwrap();
        identity
            .write(&config(), Files::default(), false, &place.0)
            .unwrap();
        assert_eq!(place.read("upper/etc/hostname"), "box\n");
        assert_eq!(place.read("upper/etc/machine-id"), "ab".repeat(16) + "\n");
        assert!(place.read("upper/etc/hosts").contains("localhost box\n"));
        let mode = |path: &str| fs::metadata(upper.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("etc"), mode("etc/hostname")), (0o711, 0o600));
    }

    #[test]
    fn what_is_not_a_plain_file_is_left_to_the_overlay() {
        let place = Place::new("links");
        let (lower, upper) = (place.0.join("lower"), place.0.join("upper"));
        fs::create_dir(lower.join("etc")).unwrap();
        std::os::unix::fs::symlink("/nowhere", lower.join("etc/hosts")).unwrap();
        fs::create_dir(lower.join("etc/machine-id")).unwrap();
        let identity = Identity::prepare(&lower, &upper).unwrap();
        let made: Vec<_> = identity.files.iter().map(|(name, _)| *name).collect();
        assert_eq!(made, [HOSTNAME, RESOLV_CONF]);
        assert!(!upper.join("etc/hosts").is_symlink());
    }

    #[test]
    fn another_guest_takes_over_its_own_line_only() {
        let place = Place::new("rename");
        let etc = place.0.join("etc");
        fs::create_dir(&etc).unwrap();
        let before = "127.0.0.1\tlocalhost old\n10.0.0.1\told old-db\n# old\n";
        fs::write(etc.join("hosts"), before).unwrap();
        for name in ["machine-id", "hostname", "resolv.conf"] {
            fs::write(
                etc.join(name),
                "a longer old text than any new one, for sure",
            )
            .unwrap();
        }
        let mut used = Used::open(&place.0);
        assert_eq!(used.files.len(), 4);
        used.rename(&config(), network(), "old").unwrap();
        assert_eq!(used.machine_id(), Some([0xab; 16]));
        assert_eq!(
            place.read("etc/hosts"),
            "127.0.0.1\tlocalhost box\n10.0.0.1\told old-db\n# old\n"
        );
        assert_eq!(place.read("etc/hostname"), "box\n");
        assert_eq!(place.read("etc/machine-id"), "ab".repeat(16) + "\n");
        assert!(!place.read("etc/resolv.conf").contains("longer"));
        // An image without the file does not get one.
        fs::remove_file(etc.join("hosts")).unwrap();
        let mut used = Used::open(&place.0);
        used.rename(&config(), network(), "old").unwrap();
        assert!(!etc.join("hosts").exists());
    }

    /// What is not a file is found when it is written, and a link of the resolvers' replaced.
    #[test]
    fn another_guest_takes_over_what_was_not_opened() {
        let place = Place::new("unopened");
        let etc = place.0.join("etc");
        fs::create_dir(&etc).unwrap();
        fs::create_dir(etc.join("machine-id")).unwrap();
        fs::write(
            etc.join("hosts"),
            "127.0.0.1\tlocalhost old\n".repeat(20_000),
        )
        .unwrap();
        std::os::unix::fs::symlink("hostname", etc.join("resolv.conf")).unwrap();
        let mut used = Used::open(&place.0);
        assert!(used.files.is_empty(), "{used:?}");
        assert!(used.rename(&config(), network(), "old").is_err());
        assert_eq!(used.machine_id(), None);
        assert_eq!(place.read("etc/hostname"), "box\n");
        let resolvers = etc.join("resolv.conf");
        assert!(resolvers.symlink_metadata().unwrap().is_file());
        assert_eq!(place.read("etc/resolv.conf"), network().resolv_conf);
        assert_eq!(place.read("etc/hosts").len(), 24 * 20_000);
    }

    /// A directory, and a link to where nothing can be: neither keeps the resolvers away.
    #[test]
    fn a_file_that_cannot_be_written_keeps_no_other_from_it() {
        type Make = fn(&Path) -> io::Result<()>;
        let makers: [(&str, Make); 2] = [
            ("in-the-way", |path| fs::create_dir(path)),
            ("astray", |path| {
                std::os::unix::fs::symlink("/nowhere/id", path)
            }),
        ];
        for (name, make) in makers {
            let place = Place::new(name);
            let (lower, upper) = (place.0.join("lower"), place.0.join("upper"));
            fs::create_dir(lower.join("etc")).unwrap();
            make(&lower.join("etc/machine-id")).unwrap();
            // What the overlay would show.
            fs::create_dir(place.0.join("etc")).unwrap();
            make(&place.0.join("etc/machine-id")).unwrap();
            let identity = Identity::prepare(&lower, &upper).unwrap();
            let written = identity.write(&config(), network(), false, &place.0);
            assert!(written.is_err(), "{name}");
            assert_eq!(place.read("upper/etc/hostname"), "box\n", "{name}");
            let resolvers = place.read("upper/etc/resolv.conf");
            assert_eq!(resolvers, network().resolv_conf, "{name}");
        }
    }

    fn network() -> Files {
        Files {
            resolv_conf: "nameserver 192.0.2.1\n".into(),
            hosts: "192.0.2.1\tgateway\n".into(),
        }
    }

    /// What images have in place of the resolver's file: whatever it is, it gives way.
    #[test]
    fn the_resolvers_file_is_ours() {
        type Make = fn(&Path) -> io::Result<()>;
        use std::os::unix::fs::symlink;
        let makers: [(&str, Make); 4] = [
            ("nothing", |_| Ok(())),
            ("file", |path| fs::write(path, "nameserver 203.0.113.1\n")),
            ("dangling", |path| symlink("../run/stub-resolv.conf", path)),
            ("elsewhere", |path| symlink("hostname", path)),
        ];
        for (name, make) in makers {
            let place = Place::new(&format!("resolver-{name}"));
            let (lower, upper) = (place.0.join("lower"), place.0.join("upper"));
            for root in [&lower, &upper] {
                fs::create_dir(root.join("etc")).unwrap();
            }
            fs::write(lower.join("etc/hostname"), "old").unwrap();
            make(&lower.join("etc/resolv.conf")).unwrap();
            fs::remove_dir(upper.join("etc")).unwrap();
            let identity = Identity::prepare(&lower, &upper).unwrap();
            identity
                .write(&config(), network(), false, &place.0)
                .unwrap();
            let written = upper.join("etc/resolv.conf");
            assert!(written.symlink_metadata().unwrap().is_file(), "{name}");
            assert_eq!(
                fs::read_to_string(&written).unwrap(),
                "nameserver 192.0.2.1\n"
            );
            assert!(
                place
                    .read("upper/etc/hosts")
                    .ends_with("192.0.2.1\tgateway\n")
            );

            // The same where the upper was used before, through the mounted root.
            let identity = Identity::default();
            identity.write(&config(), network(), true, &lower).unwrap();
            let written = lower.join("etc/resolv.conf");
            assert!(written.symlink_metadata().unwrap().is_file(), "{name}");
            assert_eq!(
                fs::read_to_string(&written).unwrap(),
                "nameserver 192.0.2.1\n"
            );
            assert_eq!(place.read("lower/etc/hostname"), "box\n");
        }
    }

    #[test]
    fn an_etc_that_is_no_directory_is_left_alone() {
        let place = Place::new("etc");
        let (lower, upper) = (place.0.join("lower"), place.0.join("upper"));
        std::os::unix::fs::symlink("/", lower.join("etc")).unwrap();
        let identity = Identity::prepare(&lower, &upper).unwrap();
        assert!(identity.files.is_empty());
        assert!(!upper.join("etc").exists());
    }

    #[test]
    fn a_used_root_keeps_its_hosts() {
        let place = Place::new("used");
        let etc = place.0.join("upper/etc");
        fs::create_dir(&etc).unwrap();
        fs::write(etc.join("hosts"), "mine").unwrap();
        let upper = place.0.join("upper");
        Identity::default()
            .write(&config(), Files::default(), true, &upper)
            .unwrap();
        assert_eq!(place.read("upper/etc/hosts"), "mine");
        assert_eq!(place.read("upper/etc/hostname"), "box\n");
        assert_eq!(place.read("upper/etc/resolv.conf"), "");
    }
}
