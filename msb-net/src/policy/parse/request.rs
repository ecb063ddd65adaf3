//! Rules and expectations about HTTP requests.

use super::{Word, Words, careful, set_behind_at};
use crate::http::path::PathPattern;
use crate::policy::decide::SOME_PUBLIC;
use crate::policy::{Flow, Pattern, Requests, Subject, Target};
use crate::{Error, Name};

/// The most methods of a rule.
const MAX_METHODS: usize = 32;

/// The most header fields of a rule: nobody tells requests apart by more.
const MAX_NAMED_FIELDS: usize = 16;

/// Fields that are about the connection or the message's length: they are read, and
/// written anew, before a request is judged.
const NOT_JUDGED: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

fn is_method(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
    !text.is_empty() && text.bytes().all(good)
}

/// Reads methods, if any, and a host with or without a path.
pub(super) fn requests(words: &mut Words<'_>) -> Result<(Requests, Target), Error> {
    let mut requests = Requests::default();
    if let Some(word) = words.peek()
        && word.text.split(',').all(is_method)
    {
        words.next();
        requests.methods = word.text.split(',').map(str::to_owned).collect();
        if requests.methods.len() > MAX_METHODS {
            let message = format!("a rule has at most {MAX_METHODS} methods");
            return Err(words.error(word, message));
        }
    } else if words.peek().is_some_and(|word| word.text == "*") {
        words.next();
    }
    let suffix = words.take("suffix");
    let named = suffix || words.take("domain");
    let Some(word) = words.next() else {
        return match named {
            true => Err(words.unexpected(None, "a domain name", &[])),
            false => Ok((requests, Target::Any)),
        };
    };
    let (host, path) = split(word, words)?;
    requests.path = path;
    let target = if host == "any" && !named {
        Target::Any
    } else {
        let name = name(host, named, word, words)?;
        let pattern = match suffix {
            true => Pattern::Suffix(name),
            false => Pattern::Domain(name),
        };
        let at = set_behind_at(words)?;
        Target::Names { pattern, at }
    };
    if words.take("with") {
        requests.with = fields(words)?;
    }
    if words.take("without") {
        requests.without = fields(words)?;
    }
    Ok((requests, target))
}

/// What stands there may be a credential, so it is not repeated.
const ONLY_NAMES: &str =
    "write names without values, with commas between them: `with x-team,x-role`";

/// Reads the names of header fields, which become lower case.
fn fields(words: &mut Words<'_>) -> Result<Vec<String>, Error> {
    let Some(word) = words.next() else {
        return Err(words.unexpected(None, "names of header fields", &[]));
    };
    let names: Vec<_> = word.text.split(',').map(str::to_ascii_lowercase).collect();
    if names.len() > MAX_NAMED_FIELDS {
        let message = format!("a rule has at most {MAX_NAMED_FIELDS} header fields");
        return Err(words.error(word, message));
    }
    // What a name is made of says RFC 9110, 5.6.2.
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    for name in &names {
        if name.is_empty() || !name.bytes().all(good) {
            let message = "this is not the name of a header field";
            return Err(words.error_with(word, message.into(), Some(ONLY_NAMES.into())));
        }
        if NOT_JUDGED.contains(&&name[..]) {
            let message = format!("{name:?} is about the connection and not judged");
            return Err(words.error(word, message));
        }
    }
    match words.peek() {
        Some(more) if more.text != "without" => {
            let message = "expected `without` or the end of the line";
            Err(words.error_with(more, message.into(), Some(ONLY_NAMES.into())))
        }
        _ => Ok(names),
    }
}

fn split<'a>(word: Word<'a>, words: &Words<'_>) -> Result<(&'a str, Option<PathPattern>), Error> {
    let Some(at) = word.text.find('/') else {
        return Ok((word.text, None));
    };
    let (host, path) = word.text.split_at(at);
    match path.parse() {
        Ok(path) => Ok((host, Some(path))),
        Err(error) => {
            let message = format!("{:?} is no pattern of paths: {error}", careful(path));
            Err(words.error(word, message))
        }
    }
}

/// Reads a host. A lone word is one only where it is said to be.
fn name(text: &str, named: bool, word: Word<'_>, words: &Words<'_>) -> Result<Name, Error> {
    let name = Name::new(text);
    let lone = name.as_ref().is_ok_and(|name| !name.as_str().contains('.'));
    if !named && (lone || !text.contains('.')) {
        let message = "an `http` rule is about `any` host or a domain name";
        return Err(words.error(word, message.into()));
    }
    name.map_err(|error| words.error(word, error.to_string()))
}

/// Reads a request that is expected to pass or not: method, host, path and fields.
pub(super) fn subject(words: &mut Words<'_>) -> Result<Subject, Error> {
    let word = words.next();
    let Some(method) = word.filter(|word| is_method(word.text)) else {
        return Err(words.unexpected(word, "a method", &["GET", "POST"]));
    };
    let Some(word) = words.next() else {
        return Err(words.unexpected(None, "a host and a path", &[]));
    };
    let at = word.text.find('/').unwrap_or(word.text.len());
    let (host, path) = word.text.split_at(at);
    let host = name(host, false, word, words)?;
    let mut flow = Flow::tcp(SOME_PUBLIC, 443);
    if words.take("at") {
        flow.address = words.address()?;
    }
    let fields = match words.take("with") {
        true => fields(words)?,
        false => Vec::new(),
    };
    Ok(Subject::Request {
        fields,
        flow,
        host,
        method: method.text.into(),
        path: if path.is_empty() { "/" } else { path }.into(),
    })
}
