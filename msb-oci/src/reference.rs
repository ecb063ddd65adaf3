//! Image references: `[registry/]repository[:tag][@digest]`.
//!
//! The grammar and the defaults are docker's (`distribution/reference`): no
//! registry means `docker.io`, a single-component repository there belongs to
//! `library/`, no tag and no digest means `latest`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::layer::printable;
use crate::{Digest, Error};

/// The registry that names without one belong to.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry answers.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// docker's bound on a repository's name.
const MAX_REPOSITORY: usize = 255;
/// The specification's bound on a tag.
const MAX_TAG: usize = 128;
/// DNS's bound on a host name, and room for a port.
const MAX_REGISTRY: usize = 253 + 6;

/// Names an image in a registry.
///
/// ```
/// use msb_oci::Reference;
///
/// let reference: Reference = "python".parse()?;
/// assert_eq!(reference.to_string(), "docker.io/library/python:latest");
/// assert_eq!(reference.familiar(), "python:latest");
/// # Ok::<(), msb_oci::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry: a host name or address, perhaps with a port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given or nothing else was.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the content, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The short spelling that people use: without `docker.io/library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => rest.strip_prefix("library/").unwrap_or(rest).to_owned(),
            None => full,
        }
    }

    /// Host and port to connect to: docker.io answers under another name.
    pub(crate) fn registry_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY {
            DEFAULT_REGISTRY_HOST
        } else {
            &self.registry
        }
    }

    /// What stands for the wanted manifest in a registry URL.
    pub(crate) fn manifest_selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        parse(text).map_err(|reason| Error::InvalidReference {
            reference: printable(text.as_bytes()),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            let digest = digest
                .parse()
                .map_err(|_| "what follows `@` is not sha256: and 64 digits")?;
            (name, Some(digest))
        }
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let tag_at = name
        .rfind(':')
        .filter(|&colon| !name[colon..].contains('/'));
    let (name, tag) = match tag_at {
        Some(colon) => (&name[..colon], Some(&name[colon + 1..])),
        None => (name, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name);
    let registry = normal_registry(registry)?;
    if registry == DEFAULT_REGISTRY && Digest::from_hex(repository).is_some() {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    check_repository(&repository)?;
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// The first component is a registry if no repository could look like it.
/// docker takes `Host/name` for one, too; here it is refused, because host
/// names are folded to lower case and `host/name` means something else.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':', '[']) || first == "localhost" => {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn normal_registry(registry: &str) -> Result<String, &'static str> {
    if registry.len() > MAX_REGISTRY {
        return Err("the registry's name is too long");
    }
    let lower = registry.to_ascii_lowercase();
    let (host, port) = split_port(&lower).ok_or("the registry is not HOST or HOST:PORT")?;
    if let Some(port) = port
        && (port.is_empty()
            || !port.bytes().all(|byte| byte.is_ascii_digit())
            || !matches!(port.parse::<u16>(), Ok(1..)))
    {
        return Err("the registry's port is not a number from 1 to 65535");
    }
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        address
            .parse::<Ipv6Addr>()
            .map_err(|_| "the registry's IPv6 address is malformed")?;
    } else if !host.split('.').all(is_label) {
        return Err("the registry's host name is malformed");
    }
    Ok(match lower.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        _ => lower,
    })
}

/// Splits `host[:port]`, where the host may be a bracketed IPv6 address.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    let host_end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(host_end);
    match rest.strip_prefix(':') {
        Some(port) => Some((host, Some(port))),
        None if rest.is_empty() => Some((host, None)),
        None => None,
    }
}

/// Whether a host (with or without brackets, no port) means this machine.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    bare == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match tag.as_bytes() {
        [] => Err("the tag is empty"),
        bytes if bytes.len() > MAX_TAG => Err("the tag is longer than 128 characters"),
        [first, rest @ ..]
            if word(*first)
                && rest
                    .iter()
                    .all(|&byte| word(byte) || matches!(byte, b'.' | b'-')) =>
        {
            Ok(())
        }
        _ => Err("the tag may hold letters, digits, `_`, `.` and `-`, the last two not first"),
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.len() > MAX_REPOSITORY {
        return Err("the repository's name is longer than 255 characters");
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository's name must be lower case");
    }
    if !repository.split('/').all(is_path_component) {
        return Err("the repository's name is malformed");
    }
    Ok(())
}

/// `[a-z0-9]+` runs joined by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::Reference;
    use proptest::prelude::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn errors_are_fit_for_a_terminal() {
        let error = "a\u{1b}[31mb".parse::<Reference>().unwrap_err().to_string();
        assert!(error.contains(r"a\u{1b}[31mb"), "{error}");
    }

    #[test]
    fn fills_in_what_docker_fills_in() {
        for (short, long) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.11", "docker.io/library/python:3.11"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/python:3.11", "localhost:5000/python:3.11"),
            ("[::1]:5000/a/b", "[::1]:5000/a/b:latest"),
            ("[2001:db8::1]/a:t", "[2001:db8::1]/a:t"),
            (
                "127.0.0.1:80/a__b/c---d.e",
                "127.0.0.1:80/a__b/c---d.e:latest",
            ),
            ("GHCR.io/x/y", "ghcr.io/x/y:latest"),
        ] {
            assert_eq!(full(short), long);
        }
    }

    #[test]
    fn keeps_a_digest() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(
            full(&format!("a@sha256:{hex}")),
            format!("docker.io/library/a@sha256:{hex}")
        );
        assert_eq!(
            full(&format!("a:b@sha256:{hex}")),
            format!("docker.io/library/a:b@sha256:{hex}")
        );
        assert!(hex.parse::<Reference>().is_err());
    }

    #[test]
    fn refuses_what_is_not_a_reference() {
        for bad in [
            "",
            ":",
            "@",
            "/",
            "a:",
            "a@",
            "a@sha256:12",
            "A",
            "a/B",
            "a//b",
            "a/../b",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a b",
            "a\n",
            "localhost:/a",
            "localhost:0/a",
            "localhost:65536/a",
            "localhost:+5/a",
            "[::1/a",
            "[::g]/a",
            "[]/a",
            "h_st.com/a",
            "-h.com/a",
            "a:.t",
            "a:-t",
            "a:t/",
            "http://a/b",
            "a:b:c",
            "user@host/a",
            ".com/a",
            "a.com/",
            "Host/y",
            "\u{e4}/b",
            "exa\u{e4}.com/b",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        assert!(
            format!("a:{}", "t".repeat(129))
                .parse::<Reference>()
                .is_err()
        );
        assert!("a".repeat(256).parse::<Reference>().is_err());
    }

    #[test]
    fn shortens_for_people() {
        assert_eq!(
            "python".parse::<Reference>().unwrap().familiar(),
            "python:latest"
        );
        assert_eq!("u/a:1".parse::<Reference>().unwrap().familiar(), "u/a:1");
        assert_eq!(
            "h.io/a:1".parse::<Reference>().unwrap().familiar(),
            "h.io/a:1"
        );
    }

    proptest! {
        #[test]
        fn canonical_text_parses_to_itself(text in "([a-zA-Z0-9.:\\[\\]-]{1,12}/)?[a-z0-9._/-]{1,20}(:[a-zA-Z0-9._-]{1,10})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                let canonical = reference.to_string();
                prop_assert_eq!(&canonical.parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }
    }
}
