//! `WWW-Authenticate`: how a registry asks who we are.
//!
//! Read: RFC 9110 section 11, and "Token Authentication" of the distribution
//! specification.

/// More than any registry sends.
const MAX_CHALLENGE: usize = 8 << 10;

/// What the registry wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from the realm.
    Bearer {
        realm: String,
        service: Option<String>,
    },
    /// User name and password.
    Basic,
}

/// Reads one header value; the first challenge in it that is understood, with
/// Bearer before Basic.
pub(crate) fn parse(header: &str) -> Option<Challenge> {
    if header.len() > MAX_CHALLENGE {
        return None;
    }
    let mut basic = None;
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let (scheme, after) = token(rest)?;
        let (parameters, next) = parameters(after)?;
        let find = |name: &str| {
            parameters
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = find("realm") {
                return Some(Challenge::Bearer {
                    realm,
                    service: find("service"),
                });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
        rest = next;
    }
    basic
}

/// A token and what follows it, without the space between.
fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |character: char| {
        character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
    };
    let end = text
        .find(|character| !is_token(character))
        .unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], text[end..].trim_start()))
}

type Parameters = Vec<(String, String)>;

/// `name=value` pairs up to the next scheme, and the text from there.
fn parameters(mut rest: &str) -> Option<(Parameters, &str)> {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let Some((name, after)) = token(rest) else {
            return rest.is_empty().then_some((found, rest));
        };
        let Some(value) = after.strip_prefix('=') else {
            return Some((found, rest));
        };
        let (value, after) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => quoted_string(quoted)?,
            None => token(value.trim_start()).map(|(value, after)| (value.to_owned(), after))?,
        };
        found.push((name.to_owned(), value));
        rest = after;
    }
}

fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Challenge, parse};

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn reads_what_registries_send() {
        assert_eq!(
            parse(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull""#
            ),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"))
        );
        assert_eq!(parse(r#"Basic realm="x, y""#), Some(Challenge::Basic));
        assert_eq!(
            parse(r#"basic realm="x", BEARER realm="https://a/""#),
            bearer("https://a/", None)
        );
        assert_eq!(parse(r#"Bearer realm="a\"b""#), bearer("a\"b", None));
        assert_eq!(parse("Negotiate, Basic"), Some(Challenge::Basic));
    }

    #[test]
    fn refuses_the_rest() {
        for bad in [
            "",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"x",
            "Digest a=b",
            "\u{0}",
            "Bearer realm=\"x\\",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
