//! Whom the guest's programs trust: the authority of their sandbox, beside those that the
//! image knows.
//!
//! Its certificate goes into the bundles that distributions have, and where their own tools
//! look when they make these anew. An authority is another one at each start, so what an
//! earlier start left on a disk is replaced. Programs that bring authorities of their own
//! are told by variables, of which each may be set otherwise by image or user.
//!
//! What is not here: stores that are not text, such as Java's.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::boot::step;
use super::identity::take_over;
use super::stage::attach;
use crate::message::{ByteString, SetupFailure, TrustSpec};

/// The authority alone, and what is trusted where no bundle of the image can be used. In
/// memory, so that there is a place for them on a full disk.
const PLACE: &str = "/.msb/trust";
const AUTHORITY: &str = "ca.pem";
const BUNDLE: &str = "bundle.pem";

/// Bundles of distributions; some are links to others.
const BUNDLES: [&str; 5] = [
    // Debian, Ubuntu, Alpine, Arch.
    "etc/ssl/certs/ca-certificates.crt",
    // Fedora, RHEL and their kin.
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    // SUSE.
    "etc/ssl/ca-bundle.pem",
    // Alpine.
    "etc/ssl/cert.pem",
];

/// Where tools that make these bundles look for what was added, and whether the folder is
/// made: Debian's tool is often installed only later.
const ANCHORS: [(&str, &str, bool); 4] = [
    ("usr/local/share/ca-certificates", "msb-sandbox.crt", true),
    ("etc/pki/ca-trust/source/anchors", "msb-sandbox.pem", false),
    ("etc/pki/trust/anchors", "msb-sandbox.pem", false),
    (
        "etc/ca-certificates/trust-source/anchors",
        "msb-sandbox.crt",
        false,
    ),
];

/// Variables that name a bundle, which is used instead of a program's own.
const BUNDLE_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    // gRPC's own library has authorities of its own, and looks nowhere else.
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];

/// Variables that name certificates which are used beside a program's own.
const ADDING_VARIABLES: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// Lines around the certificate in a bundle; readers skip what is outside of certificates.
const BEGIN: &[u8] = b"# msb sandbox: its own authority\n";
const END: &[u8] = b"# end of msb sandbox\n";

/// The longest bundle that is changed: those of distributions have 200 to 500 KiB.
const MAX_BUNDLE: u64 = 4 << 20;

/// Makes the authority trusted in `/`; returns the variables that say so.
pub(super) fn install(trust: &TrustSpec) -> Result<Vec<ByteString>, SetupFailure> {
    let failed = |error: io::Error| step(&format!("prepare {PLACE}"), &error);
    fs::create_dir_all(PLACE).map_err(failed)?;
    // A guest that becomes another has it mounted.
    if !is_mounted(PLACE).map_err(failed)? {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        attach("trust", PLACE, "tmpfs", flags, "mode=0755,size=16m")?;
    }
    install_in(trust, Path::new("/"), Path::new(PLACE)).map_err(failed)
}

/// Whether a folder is on another file system than the one that it is in.
fn is_mounted(folder: &str) -> io::Result<bool> {
    let outside = fs::metadata(Path::new(folder).join(".."))?;
    Ok(fs::metadata(folder)?.dev() != outside.dev())
}

/// As [`install`], in the root and the place given. Fails only for what is written to the
/// place: what an image has made unwritable is its own affair.
fn install_in(trust: &TrustSpec, root: &Path, place: &Path) -> io::Result<Vec<ByteString>> {
    let authority = trust.authority.as_bytes();
    let alone = place.join(AUTHORITY);
    // Not through what the guest may have put there: a FIFO would hold the agent up.
    replace(&alone, authority)?;
    let mut old = Vec::new();
    for (folder, name, make) in ANCHORS {
        let folder = root.join(folder);
        if make && folder.parent().is_some_and(Path::is_dir) {
            let _ = fs::create_dir(&folder);
        }
        if folder.is_dir() {
            let file = folder.join(name);
            old.extend(read(&file).ok().filter(|old| !old.is_empty()));
            let _ = replace(&file, authority);
        }
    }
    let bundle = match into_bundles(authority, &old, root) {
        Ok(bundle) => Path::new("/").join(bundle),
        Err(known) => {
            let bundle = place.join(BUNDLE);
            let known = known.unwrap_or_else(|| trust.fallback.0.clone());
            replace(&bundle, &with_authority(known, authority))?;
            bundle
        }
    };
    let name = |variables: &[&str], path: &Path| -> Vec<ByteString> {
        let entry = |variable: &&str| format!("{variable}={}", path.display()).into();
        variables.iter().map(entry).collect()
    };
    let mut variables = name(&BUNDLE_VARIABLES, &bundle);
    variables.extend(name(&ADDING_VARIABLES, &alone));
    Ok(variables)
}

/// Adds the authority to the image's bundles, and names the first. If there is none, or
/// none that can be changed, the error is what the image trusts. The authorities of before go.
fn into_bundles(
    authority: &[u8],
    before: &[Vec<u8>],
    root: &Path,
) -> Result<&'static str, Option<Vec<u8>>> {
    let mut done: Vec<PathBuf> = Vec::new();
    let (mut first, mut known) = (None, None);
    for name in BUNDLES {
        // A link leads to a file of the root: there is nothing else.
        let Ok(path) = fs::canonicalize(root.join(name)) else {
            continue;
        };
        if done.contains(&path) {
            continue;
        }
        let Ok(bundle) = read(&path) else { continue };
        let mut bundle = without_authority(bundle);
        // The tools that make bundles know nothing of the comments.
        for old in before {
            remove(&mut bundle, old);
        }
        // An empty one trusts nobody, which would be taken for all that is known.
        let trusts = bundle.windows(5).any(|dashes| dashes == b"-----");
        if replace(&path, &with_authority(bundle.clone(), authority)).is_ok() && trusts {
            first = first.or(Some(name));
        }
        if trusts && known.is_none() {
            known = Some(bundle);
        }
        done.push(path);
    }
    first.ok_or(known)
}

/// Reads a bundle, if it is a file of bounded length: an image may have anything there.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > MAX_BUNDLE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bundle = Vec::with_capacity(found.len() as usize);
    file.take(MAX_BUNDLE).read_to_end(&mut bundle)?;
    Ok(bundle)
}

fn with_authority(mut bundle: Vec<u8>, authority: &[u8]) -> Vec<u8> {
    if bundle.last().is_some_and(|last| *last != b'\n') {
        bundle.push(b'\n');
    }
    for part in [BEGIN, authority, END] {
        bundle.extend_from_slice(part);
    }
    bundle
}

/// What was there before an earlier start.
fn without_authority(mut bundle: Vec<u8>) -> Vec<u8> {
    if let Some(begin) = find(&bundle, BEGIN)
        && let Some(length) = find(&bundle[begin..], END)
    {
        bundle.drain(begin..begin + length + END.len());
    }
    bundle
}

/// Takes what is written in one file out of another.
fn remove(bundle: &mut Vec<u8>, text: &[u8]) {
    while let Some(begin) = find(bundle, text) {
        bundle.drain(begin..begin + text.len());
    }
}

fn find(bundle: &[u8], text: &[u8]) -> Option<usize> {
    bundle.windows(text.len()).position(|at| at == text)
}

/// Puts a file in the place of another, whose owner and mode it gets; there is never half
/// of one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".msb-new");
    let unfinished = path.with_file_name(name);
    let _ = fs::remove_file(&unfinished);
    let written = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o644);
        options.open(&unfinished)?.write_all(content)?;
        if let Ok(old) = fs::metadata(path) {
            take_over(&unfinished, &old, 0o644)?;
        }
        fs::rename(&unfinished, path)
    };
    let done = written();
    if done.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const OLD: &str = "-----BEGIN CERTIFICATE-----\nold\n-----END CERTIFICATE-----";

    fn trust(authority: &str) -> TrustSpec {
        TrustSpec {
            authority: format!("{authority}\n").into(),
            fallback: "-----host-----\n".into(),
        }
    }

    /// A root, and a place in memory.
    struct Guest(PathBuf);

    impl Guest {
        fn new(name: &str) -> Guest {
            let name = format!("msb-trust-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(path.join("place")).unwrap();
            fs::create_dir_all(path.join("root/etc/ssl/certs")).unwrap();
            Guest(path)
        }

        fn install(&self, authority: &str) -> Vec<String> {
            let (root, place) = (self.0.join("root"), self.0.join("place"));
            let variables = install_in(&trust(authority), &root, &place).unwrap();
            let place = place.to_str().unwrap();
            let text = |entry: &ByteString| entry.to_string().replace(place, "PLACE");
            variables.iter().map(text).collect()
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap()
        }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_start_replaces_the_authority_of_the_one_before() {
        let guest = Guest::new("again");
        let bundle = guest.0.join("root/etc/ssl/certs/ca-certificates.crt");
        fs::write(&bundle, OLD).unwrap();
        fs::set_permissions(&bundle, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(
            "certs/ca-certificates.crt",
            guest.0.join("root/etc/ssl/cert.pem"),
        )
        .unwrap();
        fs::create_dir_all(guest.0.join("root/usr/local/share")).unwrap();
        for authority in ["one", "two"] {
            let variables = guest.install(authority);
            let text = guest.read("root/etc/ssl/certs/ca-certificates.crt");
            let own =
                format!("# msb sandbox: its own authority\n{authority}\n# end of msb sandbox\n");
            assert_eq!(text, format!("{OLD}\n{own}"));
            assert!(variables.contains(&"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt".into()));
            assert!(variables.contains(&"NODE_EXTRA_CA_CERTS=PLACE/ca.pem".into()));
            let anchor = "root/usr/local/share/ca-certificates/msb-sandbox.crt";
            assert_eq!(guest.read(anchor), format!("{authority}\n"));
        }
        assert_eq!(fs::metadata(&bundle).unwrap().mode() & 0o777, 0o640);
        assert!(guest.0.join("root/etc/ssl/cert.pem").is_symlink());
        assert!(!guest.0.join("place/bundle.pem").exists());
        assert_eq!(
            fs::read_dir(guest.0.join("root/etc/ssl/certs"))
                .unwrap()
                .count(),
            1
        );
    }

    /// What `update-ca-certificates` has made holds the authority without comments.
    #[test]
    fn a_bundle_that_was_made_anew_keeps_no_authority_of_before() {
        let guest = Guest::new("anew");
        let bundle = guest.0.join("root/etc/ssl/certs/ca-certificates.crt");
        fs::create_dir_all(guest.0.join("root/usr/local/share")).unwrap();
        fs::write(&bundle, format!("{OLD}\n")).unwrap();
        for authority in ["one", "two", "three"] {
            guest.install(authority);
            let anchor = guest.read("root/usr/local/share/ca-certificates/msb-sandbox.crt");
            fs::write(&bundle, format!("{OLD}\n{anchor}")).unwrap();
        }
        guest.install("four");
        let text = guest.read("root/etc/ssl/certs/ca-certificates.crt");
        let own = "# msb sandbox: its own authority\nfour\n# end of msb sandbox\n";
        assert_eq!(text, format!("{OLD}\n{own}"));
    }

    #[test]
    fn an_image_without_a_bundle_trusts_whom_the_host_trusts() {
        let guest = Guest::new("none");
        // A link to nothing, and an empty one.
        symlink("/nowhere/at/all", guest.0.join("root/etc/ssl/cert.pem")).unwrap();
        fs::write(guest.0.join("root/etc/ssl/ca-bundle.pem"), "").unwrap();
        let variables = guest.install("one");
        assert!(variables.contains(&"CURL_CA_BUNDLE=PLACE/bundle.pem".into()));
        let bundle = guest.read("place/bundle.pem");
        assert!(bundle.starts_with("-----host-----\n# msb") && bundle.contains("\none\n"));
        assert!(guest.read("root/etc/ssl/ca-bundle.pem").contains("\none\n"));
        assert!(!guest.0.join("root/usr").exists());
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        let guest = Guest::new("odd");
        let certs = guest.0.join("root/etc/ssl/certs/ca-certificates.crt");
        fs::create_dir(&certs).unwrap();
        let fifo = guest.0.join("root/etc/ssl/cert.pem");
        let mode = rustix::fs::Mode::from(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let big = fs::File::create(guest.0.join("root/etc/ssl/ca-bundle.pem")).unwrap();
        big.set_len(MAX_BUNDLE + 1).unwrap();
        guest.install("one");
        assert!(certs.is_dir());
        assert_eq!(big.metadata().unwrap().len(), MAX_BUNDLE + 1);
        assert!(guest.0.join("place/bundle.pem").exists());
    }
}
