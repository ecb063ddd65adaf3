//! Paths of requests, and what servers may take them for.
//!
//! RFC 3986, 6.2.2, says how a path is normalised; servers differ in how much of it
//! they do, and in what order. A rule must not be passed by because its author and
//! the server read a path differently. So a path has several *readings*: with
//! escapes undone once or twice, with `..` followed or not, empty segments kept or
//! not, parameters (`;v=1`) kept or not. A rule that allows must fit all of them, a
//! rule that denies any.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The longest path that is read; servers take heads of this size.
pub const MAX_PATH: usize = 16 * 1024;

/// Returns what a server may take a path for, each a list of segments with `/` in
/// front of each. Empty when it cannot be said: the path has a byte that no path
/// has, or an escape that is none.
pub fn readings(path: &str) -> Vec<String> {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let printable = path.bytes().all(|byte| byte.is_ascii_graphic());
    if path.len() > MAX_PATH || !path.starts_with('/') || !printable {
        return Vec::new();
    }
    let Some(once) = decode(path) else {
        return Vec::new();
    };
    let mut texts = BTreeSet::from([once.clone()]);
    texts.extend(decode(&once));
    // Segments are told apart before escapes are undone, or after.
    texts.insert(segmented(path));
    let mut readings = BTreeSet::new();
    for text in texts {
        for choice in 0..8u8 {
            let (params, empty, dots) = (choice & 1 != 0, choice & 2 != 0, choice & 4 != 0);
            readings.insert(resolve(&text, params, empty, dots));
        }
    }
    readings.into_iter().collect()
}

/// Undoes escapes; `None` when one is wrong or hides a control character.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let byte = (digit()? << 4 | digit()?) as u8;
        if byte.is_ascii_control() {
            return None;
        }
        bytes.push(byte);
    }
    // Segments are compared as text; bytes beyond ASCII only have to stay different.
    let text = String::from_utf8(bytes).unwrap_or_else(|error| {
        let bytes = error.into_bytes();
        bytes.into_iter().map(char::from).collect()
    });
    // Some servers take it for a slash.
    Some(text.replace('\\', "/"))
}

/// Undoes escapes within segments: one that hides a slash stays as it is.
fn segmented(path: &str) -> String {
    let segment = |segment: &str| match decode(segment) {
        Some(text) if !text.contains('/') => text,
        _ => segment.to_owned(),
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

fn resolve(text: &str, params: bool, empty: bool, dots: bool) -> String {
    let mut segments = Vec::new();
    let mut parts = text[1..].split('/').peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        let part = match part.split_once(';') {
            Some((before, _)) if params => before,
            _ => part,
        };
        match part {
            "." | ".." if dots => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            "" if empty && !last => {}
            _ => segments.push(part),
        }
    }
    segments.iter().fold(String::new(), |mut text, segment| {
        text.push('/');
        text.push_str(segment);
        text
    })
}

/// The paths that a rule is about: segments, of which `*` stands for any one and
/// `**` for any number.
///
/// ```
/// use msb_net::http::path::PathPattern;
///
/// let pattern: PathPattern = "/v1/*/keys/**".parse().unwrap();
/// assert!(pattern.matches_all("/v1/me/keys/7"));
/// assert!(!pattern.matches_all("/v1/me/keys/../../admin"));
/// assert!(pattern.matches_any("/v1/me/%6beys//7"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPattern(Box<[Segment]>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Text(Box<str>),
    One,
    Many,
}

/// A text that is no pattern of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a path is `/` and segments of visible characters, `*` or `**`, with no `%`, `;`, `?`, `.` or `..` segment"
)]
pub struct InvalidPath;

impl FromStr for PathPattern {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let segments = text.strip_prefix('/').ok_or(InvalidPath)?;
        let good = |byte: u8| byte.is_ascii_graphic() && !b"%;?#\\\"".contains(&byte);
        if text.len() > MAX_PATH {
            return Err(InvalidPath);
        }
        let segment = |segment: &str| match segment {
            "*" => Ok(Segment::One),
            "**" => Ok(Segment::Many),
            "." | ".." => Err(InvalidPath),
            text if text.bytes().all(good) && !text.contains('*') => Ok(Segment::Text(text.into())),
            _ => Err(InvalidPath),
        };
        segments
            .split('/')
            .map(segment)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|segment| match segment {
            Segment::Text(text) => write!(f, "/{text}"),
            Segment::One => f.write_str("/*"),
            Segment::Many => f.write_str("/**"),
        })
    }
}

impl PathPattern {
    /// Tells whether the path fits, whatever a server takes it for.
    pub fn matches_all(&self, path: &str) -> bool {
        let readings = readings(path);
        !readings.is_empty() && readings.iter().all(|reading| self.fits(reading))
    }

    /// Tells whether the path fits if a server takes it for something possible. A
    /// path that cannot be read fits.
    pub fn matches_any(&self, path: &str) -> bool {
        let readings = readings(path);
        readings.is_empty() || readings.iter().any(|reading| self.fits(reading))
    }

    /// Compares segments; the usual two places to go back to, so that the work is
    /// bounded by the product of the lengths.
    fn fits(&self, reading: &str) -> bool {
        let path: Vec<_> = reading.split('/').skip(1).collect();
        let (mut own, mut at) = (0, 0);
        let mut again: Option<(usize, usize)> = None;
        while at < path.len() {
            match self.0.get(own) {
                Some(Segment::Many) => {
                    again = Some((own + 1, at));
                    own += 1;
                    continue;
                }
                Some(Segment::One) => {}
                Some(Segment::Text(text)) if **text == *path[at] => {}
                _ => {
                    let Some((behind, taken)) = &mut again else {
                        return false;
                    };
                    *taken += 1;
                    (own, at) = (*behind, *taken);
                    continue;
                }
            }
            own += 1;
            at += 1;
        }
        self.0[own..]
            .iter()
            .all(|segment| *segment == Segment::Many)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> PathPattern {
        text.parse().unwrap()
    }

    #[test]
    fn stars_stand_for_segments() {
        for (own, path, fits) in [
            ("/", "/", true),
            ("/a", "/a", true),
            ("/a", "/a/", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/**", "/a", true),
            ("/a/**", "/a/b/c", true),
            ("/**/z", "/a/b/z", true),
            ("/**/z", "/z/y", false),
            ("/a/**/b/*/c", "/a/x/b/b/1/c", true),
            ("/**", "/", true),
        ] {
            assert_eq!(pattern(own).matches_all(path), fits, "{own} {path}");
        }
    }

    #[test]
    fn a_denied_path_has_no_other_spelling() {
        let denied = pattern("/admin/**");
        for path in [
            "/admin",
            "/%61dmin/x",
            "//admin/x",
            "/x/../admin",
            "/x/%2e%2e/admin",
            "/x/.%2E/admin",
            "/x/%252e%252e/admin",
            "/%2561dmin",
            "/x%2f..%2fadmin",
            "/./admin/",
            "/admin;x=1/y",
            "/x/..;/admin",
            "/x\\..\\admin",
            "/x/..%5cadmin",
            "/admin?x",
            "/admin%00",
            "/%zz",
        ] {
            assert!(denied.matches_any(path), "{path}");
        }
        assert!(!denied.matches_any("/administrator"));
        assert!(!denied.matches_any("/v1/admin"));
    }

    #[test]
    fn an_allowed_path_leads_nowhere_else() {
        let allowed = pattern("/public/**");
        for path in [
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/..%2fadmin",
            "/public/%252e%252e%252fadmin",
            "/public/..;/admin",
            "/public/..\\admin",
            "/public%00/x",
            "*",
            "",
        ] {
            assert!(!allowed.matches_all(path), "{path}");
        }
        assert!(allowed.matches_all("/public/a%20b/c;v=1//d"));
    }

    #[test]
    fn what_no_path_has_is_no_pattern() {
        for text in ["", "a", "/a%20b", "/a/../b", "/a*", "/a?b", "/a;b"] {
            assert_eq!(text.parse::<PathPattern>(), Err(InvalidPath), "{text}");
        }
    }

    proptest! {
        #[test]
        fn matching_never_panics(own in "(/[a.*]{0,2}){1,5}", path in "(/|%2[ef]|%25|\\.|a|;|\\\\|é){0,20}") {
            if let Ok(own) = own.parse::<PathPattern>() {
                prop_assert!(!own.matches_all(&path) || own.matches_any(&path));
                prop_assert_eq!(own.to_string().parse(), Ok(own));
            }
        }
    }
}
